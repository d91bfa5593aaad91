"""One visit to a live tier: how long it lasts, and what ends it before its time."""

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar

from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.errors import LLMTiersError

__all__ = ["Dropped", "Visit"]

T = TypeVar("T")


class Dropped(Exception):
    """The row goes back to the ledger as open: the tier is being left."""


class Visit:
    """The time in which a tier is asked.

    Attributes:
        fatal: The error that ended it; None without one.
        unsupported: Whether the provider turned out not to offer the tier.

    Args:
        clock: Time.
        until: When no more calls are sent; None: when all have been.
        cut_at: When calls in flight are cut, not before `until`.
    """

    def __init__(self, clock: Clock, *, until: datetime | None, cut_at: datetime | None) -> None:
        self._clock = clock
        self._until = until
        self._cut_at = cut_at
        self._waits: set[asyncio.Timeout] = set()
        self.fatal: LLMTiersError | None = None
        self.unsupported = False

    @property
    def over(self) -> bool:
        """Whether no more calls are sent."""
        late = self._until is not None and self._clock.now() >= self._until
        return late or self.unsupported or self.fatal is not None

    def end(self, error: LLMTiersError | None) -> None:
        """End it now: with an error, or, without one, because the tier is not offered."""
        self.fatal = self.fatal or error
        self.unsupported |= error is None
        # Whoever waits for its turn, perhaps for hours, waits for nothing.
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    async def bounded(self, wait: Coroutine[Any, Any, T]) -> T:
        """Wait, but not past the end of the visit. Raises `Dropped` then."""
        left_s = None if self._until is None else (self._until - self._clock.now()).total_seconds()
        try:
            async with asyncio.timeout(left_s) as bound:
                self._waits.add(bound)
                try:
                    return await wait
                finally:
                    self._waits.discard(bound)
        except TimeoutError:
            raise Dropped from None

    async def pause(self, seconds: float) -> None:
        """Wait some seconds. Raises `Dropped` if the visit is over then, or before."""
        await self.bounded(self._clock.sleep_until(self._clock.now() + timedelta(seconds=seconds)))
        if self.over:
            raise Dropped

    def call_s(self, longest: timedelta) -> float:
        """Return how many seconds a call that is sent now may stay silent."""
        if self._cut_at is None:
            return longest.total_seconds()
        # Then the row is needed elsewhere; waiting longer would stake the deadline on a stall.
        left = min(longest, self._cut_at - self._clock.now())
        return max(left.total_seconds(), 1.0)
