"""How many calls may be in flight, and how fast they may start.

Additive growth while calls succeed, a cut by half when the account's own limit answers, and never faster
than the limits that the account is known to have.
"""

import asyncio
from collections import deque
from datetime import datetime, timedelta

from prefect_llm_tiers.core.ports import Clock

__all__ = ["Circuit", "Throttle"]

_LEAST_PAUSE_S = 0.5
"""A `retry-after` of nothing is still a refusal: asked again at once it would be refused at once."""


class Throttle:
    """One adaptive limit for all calls of a (provider, model, tier).

    Attributes:
        limit: Calls that may be in flight now.
    """

    def __init__(
        self, clock: Clock, *, ceiling: int, requests_per_minute: float | None = None, start: int = 16
    ) -> None:
        self._clock = clock
        self._ceiling = ceiling
        self._spacing = timedelta(minutes=1) / requests_per_minute if requests_per_minute else None
        self._next_start = clock.now()
        self._paused_until = clock.now()
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._since_growth = 0
        self._last_cut: datetime | None = None
        self.limit = float(min(start, ceiling))

    async def acquire(self) -> None:
        """Return when one more call may start."""
        while self._in_flight >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()
                raise
        self._in_flight += 1
        try:
            await self._pace()
        except BaseException:
            self.release()
            raise

    async def _pace(self) -> None:
        """Wait out a pause, then take the next start the account's own rate allows."""
        while self._clock.now() < self._paused_until:
            await self._clock.sleep_until(self._paused_until)
        if self._spacing is not None:
            start = max(self._next_start, self._clock.now())
            self._next_start = start + self._spacing
            try:
                await self._clock.sleep_until(start)
            except BaseException:
                # The lane is being left: whoever comes next must not wait for starts that nobody made.
                self._next_start -= self._spacing
                raise

    def unused(self) -> None:
        """Note that a call that might have started now is not made after all: its start is another's."""
        if self._spacing is not None:
            self._next_start -= self._spacing

    def release(self) -> None:
        """Note that a call ended."""
        self._in_flight -= 1
        self._wake()

    def succeeded(self) -> None:
        """Grow by one call for every round of calls that went well."""
        self._since_growth += 1
        if self._since_growth >= self.limit and self.limit < self._ceiling:
            self._since_growth = 0
            self.limit += 1
            self._wake()

    def limited(self, *, retry_after_s: float | None) -> None:
        """Cut the limit in half and pause: the account's own limit was reached.

        Calls that were in flight together hit the limit together; they are one event, and cut once.
        """
        now = self._clock.now()
        if self._last_cut is None or now - self._last_cut > timedelta(seconds=1):
            self._last_cut = now
            self._since_growth = 0
            self.limit = max(1.0, self.limit / 2)
        pause = timedelta(seconds=max(retry_after_s if retry_after_s is not None else 2.0, _LEAST_PAUSE_S))
        self._paused_until = max(self._paused_until, now + pause)

    def _wake(self) -> None:
        free = int(self.limit) - self._in_flight
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


class Circuit:
    """Whether a tier that may refuse for capacity takes calls.

    Opens on a refusal and is probed after about a minute by one call; a refusal costs milliseconds. A
    stall costs a whole timeout, so it holds the circuit open for longer.

    An outage is counted as one when it outlasts that minute: of many calls in flight some may be refused while the
    others go through.

    Attributes:
        is_open: Whether calls are held back.
        recoveries: How many outages it saw end.
    """

    REFUSED = timedelta(seconds=60)
    STALLED = timedelta(minutes=15)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._probe_found: asyncio.Event | None = None
        self._probe_at = clock.now()
        self._refused_at: datetime | None = None
        self._answered = False
        self._found_down = False
        self._down = timedelta(0)
        self.is_open = False
        self.recoveries = 0

    def down(self, now: datetime) -> timedelta:
        """Return for how long the tier took no calls."""
        return self._down + self._outage(now)

    def found_down(self, now: datetime) -> bool:
        """Return whether the tier took no calls from the first one on."""
        return self._found_down or (not self._answered and self._outage(now) > timedelta(0))

    def _outage(self, now: datetime) -> timedelta:
        """Return how long the outage lasts that is not over yet; nothing where there is none."""
        lasts = now - self._refused_at if self._refused_at is not None else timedelta(0)
        return lasts if lasts >= self.REFUSED else timedelta(0)

    async def enter(self) -> bool:
        """Return when a call may go; True if it is the probe.

        Of all that wait one probes at a time; the others wait for what it finds.
        """
        while self.is_open:
            if self._probe_found is not None:
                await self._probe_found.wait()
            elif self._clock.now() >= self._probe_at:
                self._probe_found = asyncio.Event()
                return True
            else:
                await self._clock.sleep_until(self._probe_at)
        return False

    def unused(self) -> None:
        """Note that the probe was not made after all: the next of those that wait makes it."""
        self._probe_over()

    def answered(self) -> None:
        """Close the circuit: a call came through."""
        now = self._clock.now()
        if self._outage(now):
            self._found_down |= not self._answered
            self._down += self._outage(now)
            self.recoveries += 1
        self._refused_at, self._answered = None, True
        self.is_open = False
        self._probe_over()

    def refused(self, *, stalled: bool = False) -> None:
        """Open the circuit, or keep it open after a probe that failed."""
        if not self.is_open:
            self._refused_at = self._clock.now()
        self.is_open = True
        self._probe_at = self._clock.now() + (self.STALLED if stalled else self.REFUSED)
        self._probe_over()

    def _probe_over(self) -> None:
        if self._probe_found is not None:
            self._probe_found.set()
            self._probe_found = None
