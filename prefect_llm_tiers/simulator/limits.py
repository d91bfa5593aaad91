"""What the account may ask in a minute, and when flex has room."""

from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random

import msgspec

from prefect_llm_tiers.simulator.settings import FlexOutages

__all__ = ["FlexWeather", "Meter", "Reading", "reset_text"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One limit as a request met it.

    Attributes:
        limit: Units in a minute.
        remaining: Units left after this request.
        reset_s: Seconds until all of them are back.
        retry_after_s: Seconds until this request fits; 0 where it was taken.
    """

    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float


class Meter:
    """A bucket that holds a minute's worth and fills evenly: what a provider's limit does."""

    def __init__(self, per_minute: int, now: datetime) -> None:
        self._limit = per_minute
        self._level = float(per_minute)
        self._seen_at = now

    def look(self, units: int, now: datetime) -> Reading:
        """Say whether so many units fit, and take nothing."""
        gained = max(0.0, (now - self._seen_at).total_seconds()) * self._limit / 60
        self._level = min(float(self._limit), self._level + gained)
        self._seen_at = max(self._seen_at, now)
        # A request above the whole limit fits once the bucket is full; the real ones refuse it for ever.
        wanted = min(units, self._limit)
        missing = max(0.0, wanted - self._level - 1e-9)
        left = self._level if missing else self._level - wanted
        return Reading(
            limit=self._limit,
            remaining=max(0, int(left)),
            reset_s=(self._limit - left) * 60 / self._limit,
            retry_after_s=missing * 60 / self._limit,
        )

    def take(self, units: int) -> None:
        """Take units that `look` said fit."""
        self._level -= min(units, self._limit)


class FlexWeather:
    """Whether flex has room: an on/off process with exponential times, drawn from the start onward."""

    def __init__(self, outages: FlexOutages | None, start: datetime, random: Random) -> None:
        self._start = start
        self._changes: Iterator[float] | None = None
        self._known: list[float] = [0.0]
        self._up_first = True
        if outages is not None:
            up_share = outages.mean_up_s / (outages.mean_up_s + outages.mean_down_s)
            self._up_first = random.random() < up_share
            self._changes = _changes(outages, random, up=self._up_first)

    def is_up(self, at: datetime) -> bool:
        """Tell whether flex has room at an instant."""
        if self._changes is None:
            return True
        elapsed = (at - self._start).total_seconds()
        while self._known[-1] <= elapsed:
            self._known.append(next(self._changes))
        changes_so_far = bisect_right(self._known, max(0.0, elapsed)) - 1
        return (changes_so_far % 2 == 0) == self._up_first


def _changes(outages: FlexOutages, random: Random, *, up: bool) -> Iterator[float]:
    at = 0.0
    while True:
        at += random.expovariate(1 / (outages.mean_up_s if up else outages.mean_down_s))
        up = not up
        yield at


def reset_text(seconds: float) -> str:
    """Return a duration as OpenAI writes it in its headers, as `1m3.5s`."""
    span = timedelta(seconds=round(seconds, 3))
    minutes, rest = divmod(span.total_seconds(), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
