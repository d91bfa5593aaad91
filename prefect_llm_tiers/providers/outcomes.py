"""Which failed calls are outcomes of the row, and which are none."""

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import CallFailed, FailureMeaning
from prefect_llm_tiers.providers.decoding import as_text, decode_any
from prefect_llm_tiers.providers.meanings import POLICY_CODES

__all__ = ["model_of", "outcome_of_rejection", "raise_if_unbilled_retry"]


def outcome_of_rejection(failed: CallFailed, *, key: str) -> Outcome:
    """Return the outcome of a call that the provider rejected for what it asks; nothing was billed.

    Raises:
        CallFailed: The call failed for another reason; it is raised again as it is.
    """
    if failed.meaning.kind != "rejected":
        raise failed
    refused = failed.meaning.reason in POLICY_CODES
    kind = OutcomeKind.REFUSAL if refused else OutcomeKind.FAILURE
    return Outcome(key=key, kind=kind, reason=failed.meaning.reason)


def raise_if_unbilled_retry(outcome: Outcome) -> None:
    """Raise `CallFailed` for a reply that says, in a 200, that the provider failed and billed nothing.

    One that was billed, or may have been, stays an outcome, because its money must be written down.
    """
    if outcome.kind is OutcomeKind.RETRY and outcome.billing is Billing.UNBILLED:
        reason = outcome.reason or "server_error"
        kind = "rate_limit" if reason.startswith("rate_limit") else "server"
        raise CallFailed(FailureMeaning(kind=kind, reason=reason))


def model_of(body: bytes) -> str:
    """Return the model that an encoded request asks."""
    value = decode_any(body)
    return (as_text(value.get("model")) if isinstance(value, dict) else None) or "(none named)"
