"""How a ticket finds its provider and its ledger again, without carrying a key or a password of either."""

from prefect_llm_tiers.blocks import LedgerDatabase, ProviderBlock, block_name, load_ledger, load_provider
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.errors import ConfigurationError, InputError, LedgerUnusable
from prefect_llm_tiers.settings import ledger_location
from prefect_llm_tiers.tickets import BatchTicket

__all__ = ["ledger_name", "ledger_of", "provider_name", "provider_of", "remember"]

_HERE: dict[str, tuple[ProviderBlock | str, LedgerDatabase | str | None]] = {}
"""Of each step run of this process, by id: whom it asked and where its ledger is, which may have no name."""


def remember(step_run_id: str, provider: ProviderBlock | str, ledger: LedgerDatabase | str | None) -> None:
    """Note for this process what a ticket may have no name for."""
    _HERE[step_run_id] = (provider, ledger)


def provider_name(provider: ProviderBlock | str) -> str | None:
    """Return the name under which another process loads a provider's block; None for one that was never saved."""
    return provider if isinstance(provider, str) else block_name(provider)


def ledger_name(ledger: LedgerDatabase | str | None) -> str | None:
    """Return where another process finds a ledger; None where saying so might tell a password."""
    if isinstance(ledger, LedgerDatabase):
        return block_name(ledger)
    location = ledger if ledger is not None else ledger_location()
    return None if "://" in location else location


def provider_of(ticket: BatchTicket, given: ProviderBlock | str | None) -> ProviderBlock:
    """Return the provider of a ticket: the one that is given, or the one it was submitted to.

    Raises:
        ConfigurationError: It has no name, and this is another process than the one that submitted.
    """
    if given is None:
        given = ticket.provider if ticket.step_run_id not in _HERE else _HERE[ticket.step_run_id][0]
    if given is None:
        msg = (
            "The ticket comes from another process and its provider's block was never saved, so nobody here can look "
            "for its batches. Pass provider=, or save the block and submit with its name."
        )
        raise ConfigurationError(msg)
    return load_provider(given)


def ledger_of(ticket: BatchTicket, given: LedgerDatabase | str | None) -> Ledger:
    """Return the ledger of a ticket: the one that is given, the one it was written to, or the machine's.

    Raises:
        LedgerUnusable: It is another ledger, which knows nothing of the ticket.
        InputError: It is no ticket.
    """
    if not isinstance(ticket, BatchTicket):
        msg = (
            f"A BatchTicket is needed here, not {type(ticket).__name__}: pass what submit_batch returned, or a future "
            "of it."
        )
        raise InputError(msg)
    if given is None:
        given = ticket.ledger if ticket.step_run_id not in _HERE else _HERE[ticket.step_run_id][1]
    ledger = load_ledger(given)
    if ledger.ledger_id != ticket.ledger_id:
        msg = (
            f"The ticket was written to ledger {ticket.ledger_id[:8]}, and the one at hand is {ledger.ledger_id[:8]}: "
            "it knows nothing of these prompts. Pass ledger= with the place of the first one, and keep it where every "
            "machine reaches it."
        )
        raise LedgerUnusable(msg)
    return ledger
