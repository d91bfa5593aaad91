"""When a step or a chain must be done."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from prefect.context import FlowRunContext

from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.errors import ConfigurationError

__all__ = ["By", "Due", "by", "check_choice", "check_due", "check_on_time", "resolved_due"]

_CHOICES = {
    "infeasible": ("raise", "best_effort"),
    "on_miss": ("finish", "raise"),
    "on_input_change": ("raise", "ask"),
}


class By(msgspec.Struct, frozen=True):
    """A time of day by which something is due; see `by`."""

    at: time
    zone: str

    def after(self, start: datetime) -> datetime:
        """Return the first such instant after `start`, in UTC.

        A time of day that the clocks pass over when they go forward is read with the offset before (01:30
        becomes 02:30); one that comes twice when they go back is due at the first of the two that is not past.
        """
        zone = ZoneInfo(self.zone)
        today = start.astimezone(zone).date()
        for days in range(3):
            # Compared in UTC: two times of one zone compare by their digits, whatever their offsets.
            first = datetime.combine(today + timedelta(days=days), self.at, tzinfo=zone)
            instants = [first.astimezone(UTC), first.replace(fold=1).astimezone(UTC)]
            for instant in instants:
                if instant > start and instant >= instants[0]:
                    return instant
        msg = f"No {self.at} within three days after {start.isoformat()} in {self.zone}."
        raise AssertionError(msg)


def by(at: str, zone: str) -> By:
    """Return a due time of day: the next such instant after the flow run's *scheduled* start.

    A run that starts late has less time, not another day.

    Args:
        at: Time of day as `HH:MM` or `HH:MM:SS`.
        zone: IANA name of the time zone, as `Europe/London`.

    Raises:
        ConfigurationError: Either cannot be read.
    """
    try:
        moment = time.fromisoformat(at)
    except ValueError:
        msg = f"by({at!r}, ...) is no time of day. Write it as '09:00'."
        raise ConfigurationError(msg) from None
    if moment.tzinfo is not None:
        msg = f"by({at!r}, ...) carries an offset of its own. Give the time alone and name the zone."
        raise ConfigurationError(msg)
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        msg = f"by(..., {zone!r}) names no time zone. Use an IANA name, as 'Europe/London'."
        raise ConfigurationError(msg) from None
    return By(moment, zone)


Due = timedelta | datetime | By
"""When something must be done: a span from the run's start, an aware instant, or a time of day."""


def resolved_due(due: Due | None, clock: Clock) -> datetime | None:
    """Return a due time as an instant on a clock.

    Spans and times of day count from the flow run's start as Prefect recorded it, so that a run that is
    restarted arrives at the same instant; outside a flow they count from now.
    """
    if due is None:
        return None
    if isinstance(due, datetime):
        return due.astimezone(UTC)
    # The instants that Prefect recorded are real, the clock's may be simulated: ages carry over, instants do not.
    context = FlowRunContext.get()
    flow_run = context.flow_run if context is not None else None
    now, wall = clock.now(), clock.wall()
    started = flow_run.start_time if flow_run is not None else None
    if isinstance(due, By):
        scheduled = flow_run.expected_start_time if flow_run is not None else None
        return due.after(now - (wall - (scheduled or started or wall)))
    return now - (wall - (started or wall)) + due


def check_due(due: Due | None, name: str) -> None:
    """Check a due time.

    Raises:
        ConfigurationError: It is a naive instant, a span that is not positive, or something else.
    """
    if isinstance(due, datetime) and due.tzinfo is None:
        msg = (
            f"{name}={due.isoformat()} has no time zone, so nobody knows when it is. Give an aware datetime, or "
            "by(...)."
        )
        raise ConfigurationError(msg)
    if isinstance(due, timedelta) and due <= timedelta(0):
        msg = f"{name}={due} is no time at all. Give a positive timedelta."
        raise ConfigurationError(msg)
    if due is not None and not isinstance(due, datetime | timedelta | By):
        msg = f"{name}= takes a timedelta, an aware datetime or by(...), not {type(due).__name__}."
        raise ConfigurationError(msg)


def check_choice(name: str, value: str | None) -> None:
    """Check a choice by name. Raises `ConfigurationError`."""
    if value is not None and value not in _CHOICES[name]:
        msg = f"{name}={value!r} is not known. Choose one of {', '.join(map(repr, _CHOICES[name]))}."
        raise ConfigurationError(msg)


def check_on_time(on_time: float | None) -> None:
    """Check a chance. Raises `ConfigurationError`."""
    if on_time is not None and not 0.5 <= on_time < 1:
        msg = f"on_time={on_time} is no chance to plan by. Give a number from 0.5 to below 1, as 0.99."
        raise ConfigurationError(msg)
