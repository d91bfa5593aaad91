"""What was seen of a provider's latency: plain facts, for the laws of completion time to be learned from."""

from datetime import datetime, timedelta

import msgspec

from prefect_llm_tiers.core.tiers import Tier

__all__ = ["ObservedBatch", "ObservedLane"]


class ObservedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """How long one batch took, or for how long it had not come back.

    Attributes:
        model: The model it asked.
        began_at: When the intent to send it was committed; its upload is part of what a step waits for.
        duration: Until the provider ended it; until its cancel was asked for, or until now, where `censored`.
        censored: Whether it was cut or is still out: all that is known is "longer than".
        requests: How many it carried.
        done: How many of them it had finished, as far as the provider told.
    """

    model: str
    began_at: datetime
    duration: timedelta
    censored: bool
    requests: int
    done: int


class ObservedLane(msgspec.Struct, frozen=True, kw_only=True):
    """What one step run saw of one live tier, in one visit or in all of them together.

    Attributes:
        step: The step's name.
        tier: The tier.
        model: The model it asked.
        began_at: When it first entered the tier.
        visits: How often it did.
        requests: How many requests got their outcome there.
        busy: For how long it asked, without the time in which the tier took no calls.
        concurrency: Calls in flight at most.
        spacing: What the account's own limits ask for between two calls; nothing where they are not known.
        latency: Of one call, on average; nothing without a reply.
        output_tokens: Of one answer, on average.
        found_down: Whether the tier took no calls when the run first entered it.
        down: For how long it took no calls, refusals that the next call disproved left out.
        recoveries: How many of these outages were seen to end.
    """

    step: str
    tier: Tier
    model: str
    began_at: datetime
    visits: int = 1
    requests: int
    busy: timedelta
    concurrency: int
    spacing: timedelta = timedelta(0)
    latency: timedelta = timedelta(0)
    output_tokens: float = 0.0
    found_down: bool = False
    down: timedelta = timedelta(0)
    recoveries: int = 0
