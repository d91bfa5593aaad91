"""Calls that failed as a whole, as errors that a user can act on, and as reasons of rows."""

from typing import Final

from prefect_llm_tiers.core.ports import FailureMeaning
from prefect_llm_tiers.errors import (
    LLMTiersError,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RequestRejected,
)

__all__ = ["LOST", "error_of"]

LOST: Final = "lost: "
"""What the reason of a row begins with that failed because its calls were lost: nobody has judged the row."""


def error_of(meaning: FailureMeaning, *, doing: str) -> LLMTiersError:
    """Return the error that says what a failed call means.

    Args:
        meaning: What the adapter made of the reply.
        doing: What was tried, as "looking up model 'gpt-6-luna'".
    """
    fact = f"The provider failed at {doing} ({meaning.reason})."
    match meaning.kind:
        case "quota":
            return QuotaExhausted(f"{fact} The account has no credit left. Add credit, then run the flow again.")
        case "rate_limit":
            return RateLimited(
                f"{fact} The account's own limit is reached. Run the flow again later, or lower "
                "requests_per_minute on the block.",
                meaning.retry_after_s,
            )
        case "rejected" | "policy" | "auth" | "tier_unsupported":
            return RequestRejected(
                f"{fact} It will not accept this. Check the block and the step's model and endpoint."
            )
        case _:
            return ProviderUnavailable(
                f"{fact} Nothing was paid for it. The provider may be down or not reachable from here; run the flow "
                "again later."
            )
