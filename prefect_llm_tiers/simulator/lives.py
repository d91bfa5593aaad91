"""The life of one batch as a pure function of the time: how far it is, how it ends, and when.

Nothing runs in the background. A life is drawn when the batch is created, a cancel changes it once, and
everything else is read off it.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from random import Random

import msgspec

from prefect_llm_tiers.simulator.settings import BatchLaw

__all__ = ["BatchLife", "End", "Progress", "draw_duration_s", "draw_progress"]


class End(StrEnum):
    """How a batch ends."""

    DONE = "done"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Progress(msgspec.Struct, frozen=True):
    """How the share of rows done grows with the share of the time.

    Attributes:
        jumps: (share of the time, share of the rows done from then on), ascending and ending in (1, 1).
        start: Where jumps are empty, rows are done evenly between this share of the time and its end.
    """

    jumps: tuple[tuple[float, float], ...] = ()
    start: float = 0.0

    def rows_done(self, rows: int, time_share: float) -> int:
        """Return how many of the rows are done after this share of the time."""
        if time_share >= 1:
            return rows
        if self.jumps:
            done = max((done for at, done in self.jumps if at <= time_share), default=0.0)
        else:
            done = max(0.0, (time_share - self.start) / (1 - self.start))
        return min(rows, int(rows * done + 1e-9))


def draw_duration_s(law: BatchLaw, random: Random, *, stuck: bool) -> float:
    """Draw the seconds from creation to the last row."""
    stuck = random.random() < law.stuck_share or stuck
    factor = random.lognormvariate(0.0, law.sigma) if law.sigma > 0 else 1.0
    low, high = law.stuck_s
    stuck_s = random.uniform(low, high)
    return stuck_s if stuck else law.median_s * factor


def draw_progress(law: BatchLaw, random: Random) -> Progress:
    """Draw how rows get done over the time."""
    if law.progress == "linear":
        return Progress(start=random.uniform(0.0, 0.5))
    count = random.randint(1, 4)
    times = [*sorted(random.random() for _ in range(count - 1)), 1.0]
    shares = [*sorted(random.random() for _ in range(count - 1)), 1.0]
    return Progress(jumps=tuple(zip(times, shares, strict=True)))


class BatchLife(msgspec.Struct, kw_only=True):
    """When a batch does what.

    Attributes:
        created_at: When it was accepted.
        rows: How many requests it holds.
        duration: Time from creation to the last row, if nothing ends it before.
        progress: See `Progress`.
        window: Time after which it expires.
        cancel_at: When its cancel began; ahead of now for one that was taken and shows later.
        cancel_final_at: When that cancel becomes final.
    """

    created_at: datetime
    rows: int
    duration: timedelta
    progress: Progress
    window: timedelta
    cancel_at: datetime | None = None
    cancel_final_at: datetime | None = None

    def cancel(self, at: datetime, takes: timedelta) -> None:
        """End it from an instant on; rows go on being done until that is final."""
        self.cancel_at = at
        self.cancel_final_at = at + takes

    def is_cancelling(self, at: datetime) -> bool:
        """Tell whether a cancel shows at an instant: it may have been asked for and show only later."""
        return self.cancel_at is not None and at >= self.cancel_at

    @property
    def end(self) -> tuple[datetime, End]:
        """When the work ends and how; a cancel or a window that comes after the last row changes nothing."""
        ends = [(self.created_at + self.duration, End.DONE), (self.created_at + self.window, End.EXPIRED)]
        if self.cancel_final_at is not None:
            ends.append((self.cancel_final_at, End.CANCELLED))
        return min(ends, key=lambda end: end[0])

    def rows_done(self, at: datetime) -> int:
        """Return how many rows are done at an instant; after the end, how many ever will be."""
        elapsed = min(at, self.end[0]) - self.created_at
        share = 1.0 if elapsed >= self.duration else elapsed / self.duration
        return self.progress.rows_done(self.rows, share)
