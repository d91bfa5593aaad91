"""Which failed calls are outcomes of the row, and which are none."""

from typing import Any

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import CallFailed, FailureMeaning
from prefect_llm_tiers.providers.decoding import as_text, decode

__all__ = ["kind_of_rejection", "model_of", "outcome_of_rejection", "raise_if_unbilled_retry"]


def outcome_of_rejection(failed: CallFailed, *, key: str) -> Outcome:
    """Return the outcome of a call that the provider rejected for what it asks; nothing was billed.

    Raises:
        CallFailed: The call failed for another reason; it is raised again as it is.
    """
    kind = kind_of_rejection(failed.meaning)
    if kind is None:
        raise failed
    return Outcome(key=key, kind=kind, reason=failed.meaning.reason)


def kind_of_rejection(meaning: FailureMeaning) -> OutcomeKind | None:
    """Return what the row gets that a provider turned down; None where it judged something else than the row."""
    match meaning.kind:
        case "policy":
            return OutcomeKind.REFUSAL
        case "rejected":
            return OutcomeKind.FAILURE
        case _:
            return None


def raise_if_unbilled_retry(outcome: Outcome) -> None:
    """Raise `CallFailed` for a reply that says, in a 200, that the provider failed and billed nothing.

    One that was billed, or may have been, stays an outcome, because its money must be written down.
    """
    if outcome.kind is OutcomeKind.RETRY and outcome.billing is Billing.UNBILLED:
        reason = outcome.reason or "server_error"
        limited = reason.startswith("rate_limit")
        raise CallFailed(FailureMeaning(kind="rate_limit" if limited else "server", reason=reason))


def model_of(body: bytes) -> str:
    """Return the model that an encoded request asks."""
    asked = decode(body, _ASKED)
    return (as_text(asked.model) if asked is not None else None) or "(none named)"


class _Asked(msgspec.Struct, gc=False):
    model: Any = None


_ASKED = msgspec.json.Decoder(_Asked)
