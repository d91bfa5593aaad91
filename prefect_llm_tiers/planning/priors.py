"""What is believed of each tier's latency before anything was observed.

No provider publishes a curve of completion by hour. The figures are cautious readings of what is public: a
gateway's 230,000 batches (median 7 min, 90 % within 1 h, those that never completed left out), single teams'
batches of 8 to 24 h, OpenAI's "flex is slower" (about 2x standard) and may refuse with 429 for want of capacity
(how often, and for how long, nobody says: one time in five, for half an hour), and typical output speeds.
"""

import msgspec

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw

__all__ = ["LiveRate", "latency_of", "pace_of", "prior_batch", "prior_live"]

_OUTPUT_TOKENS_PER_S = {Tier.PRIORITY: 90.0, Tier.STANDARD: 60.0, Tier.FLEX: 30.0}
_FIRST_TOKEN_S = {Tier.PRIORITY: 0.6, Tier.STANDARD: 1.0, Tier.FLEX: 4.0}
_SIGMA = {Tier.PRIORITY: 0.3, Tier.STANDARD: 0.35, Tier.FLEX: 0.6}
_P_DOWN = {Tier.PRIORITY: 0.0, Tier.STANDARD: 0.0, Tier.FLEX: 0.2}
_DOWN_S = {Tier.PRIORITY: 0.0, Tier.STANDARD: 0.0, Tier.FLEX: 1800.0}


class LiveRate(msgspec.Struct, frozen=True, kw_only=True):
    """How fast the account may go.

    Attributes:
        concurrency: Calls in flight at most.
        requests_per_minute: The account's limit; None if not known.
        tokens_per_minute: The account's limit; None if not known.
    """

    concurrency: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def spacing_s(self, tokens: float) -> float:
        """Return the seconds between two calls of so many tokens that the account's limits ask for."""
        by_requests = 60.0 / self.requests_per_minute if self.requests_per_minute else 0.0
        return max(by_requests, 60.0 * tokens / self.tokens_per_minute if self.tokens_per_minute else 0.0)


def prior_batch(*, window_s: float) -> BatchLaw:
    """Return the prior of a batch: median 25 min, one in twenty stuck for 4 h or longer."""
    return BatchLaw(
        median_s=25 * 60.0,
        sigma=1.2,
        p_stuck=0.05,
        stuck_from_s=4 * 3600.0,
        stuck_to_s=max(28 * 3600.0, window_s),
        window_s=window_s,
    )


def latency_of(tier: Tier, output_tokens: float) -> float:
    """Return the seconds that a call of a live tier is believed to take before any was made."""
    return _FIRST_TOKEN_S[tier] + output_tokens / _OUTPUT_TOKENS_PER_S[tier]


def pace_of(latency_s: float, *, concurrency: int, spacing_s: float) -> tuple[float, float]:
    """Return the set-up of a lane and the seconds that a request adds to it.

    Args:
        latency_s: Of one call.
        concurrency: Calls in flight at most.
        spacing_s: What the account's own limits ask for between two calls.
    """
    # A lane ends with its slowest call, and starts narrow: three latencies on top of its throughput.
    return 3 * latency_s, max(latency_s / max(1, concurrency), spacing_s)


def prior_live(tier: Tier, *, rate: LiveRate, input_tokens: float, output_tokens: float) -> LiveLaw:
    """Return the prior of a live tier: the slowest of concurrency and the account's own limits.

    Args:
        tier: A live tier.
        rate: How fast the account may go.
        input_tokens: Tokens of a request, on average.
        output_tokens: Tokens of an answer, on average.
    """
    base_s, per_request_s = pace_of(
        latency_of(tier, output_tokens),
        concurrency=rate.concurrency,
        spacing_s=rate.spacing_s(input_tokens + output_tokens),
    )
    return LiveLaw(
        base_s=base_s,
        per_request_s=per_request_s,
        sigma=_SIGMA[tier],
        p_down=_P_DOWN[tier],
        down_s=_DOWN_S[tier],
    )
