"""What came of a request: exactly one of answer, refusal, failure, or a reason to ask again."""

from decimal import Decimal
from enum import StrEnum

import msgspec

from prefect_llm_tiers.core.tiers import Tier

__all__ = ["Billing", "Outcome", "OutcomeKind", "Usage"]


class OutcomeKind(StrEnum):
    """How an attempt ended, seen from the row."""

    ANSWER = "answer"
    REFUSAL = "refusal"
    """The model declined. Kept like an answer: it was paid for and asking again gives the same."""
    FAILURE = "failure"
    """Permanent: the provider will say the same next time."""
    RETRY = "retry"
    """Nothing came back that counts, and asking again may work: capacity, expiry, a broken line."""


class Billing(StrEnum):
    """Whether an attempt is on the provider's invoice."""

    BILLED = "billed"
    UNBILLED = "unbilled"
    UNKNOWN = "billed_unknown"
    """The call was cut after it was sent; only the invoice knows."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one call, as the provider counted them.

    `input_tokens` counts all of the input: the cached and the written part are among it.
    `output_tokens` likewise includes `reasoning_tokens`.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One attempt's end, ready for the ledger.

    Attributes:
        key: The request's key.
        kind: What it means for the row.
        text: The answer as the model wrote it (also the text of a refusal); None without one.
        reason: Machine-readable cause of anything but an answer, as `rate_limit_exceeded`; never text
            of the prompt or the answer.
        usage: None where the provider named none.
        tier_served: The tier that the provider says it served; None where nothing was served.
        billing: Whether this attempt costs money.
        cost_usd: Price of the usage in the tier served; None where unpriced or unbilled.
        list_usd: What the same usage costs on the standard tier; None where unpriced or unbilled.
        price_source: Where the price came from, None where unpriced.
        provider_request_id: The provider's name for the call, to find it in its logs.
        counted: Whether a RETRY counts against `max_attempts`. An answer that does not parse does; a
            full provider, an expired batch or a lost connection says nothing about the row.
    """

    key: str
    kind: OutcomeKind
    text: str | None = None
    reason: str | None = None
    usage: Usage | None = None
    tier_served: Tier | None = None
    billing: Billing = Billing.UNBILLED
    cost_usd: Decimal | None = None
    list_usd: Decimal | None = None
    price_source: str | None = None
    provider_request_id: str | None = None
    counted: bool = True
