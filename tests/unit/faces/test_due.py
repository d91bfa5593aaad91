"""Due times of day, across zones and clock changes."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies

from prefect_llm_tiers import ConfigurationError, by
from prefect_llm_tiers.due import check_due

LONDON_FORWARD = datetime(2026, 3, 29, tzinfo=UTC)
"""At 01:00Z the clocks go from 01:00 to 02:00."""
LONDON_BACK = datetime(2026, 10, 25, tzinfo=UTC)
"""At 01:00Z the clocks go from 02:00 back to 01:00."""


def at(day: datetime, time: str) -> datetime:
    """Return an instant of a day, in UTC."""
    hour, minute = time.split(":")
    return day + timedelta(hours=int(hour), minutes=int(minute))


@pytest.mark.parametrize(
    ("day", "start", "time", "due"),
    [
        (LONDON_FORWARD, "00:10", "09:00", "08:00"),
        # 01:30 is passed over: with the offset before it is what the clocks call 02:30.
        (LONDON_FORWARD, "00:10", "01:30", "01:30"),
        (LONDON_BACK, "00:10", "09:00", "09:00"),
        # 01:45 comes twice: the first that is not past.
        (LONDON_BACK, "00:10", "01:45", "00:45"),
        (LONDON_BACK, "00:50", "01:45", "01:45"),
        (LONDON_BACK, "01:30", "01:45", "01:45"),
        (LONDON_BACK, "01:50", "01:45", "25:45"),
    ],
)
def test_clock_changes(day: datetime, start: str, time: str, due: str) -> None:
    """A time of day is read in its zone on the day it comes, whatever the clocks do in between."""
    assert by(time, "Europe/London").after(at(day, start)) == at(day, due)


@given(
    start=strategies.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001 (made aware below)
    minute=strategies.integers(0, 24 * 60 - 1),
    zone=strategies.sampled_from(["UTC", "Europe/London", "America/New_York", "Asia/Kolkata", "Pacific/Apia"]),
)
def test_a_due_time_comes_within_a_day(start: datetime, minute: int, zone: str) -> None:
    """The due instant lies after the start, by no more than a day and a clock change."""
    start = start.replace(tzinfo=UTC)
    due = by(f"{minute // 60:02}:{minute % 60:02}", zone).after(start)
    assert timedelta(0) < due - start <= timedelta(hours=25)
    assert due.tzinfo is UTC


def test_a_run_that_starts_at_the_due_time_has_a_day() -> None:
    """No run is given no time at all."""
    start = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
    assert by("09:00", "UTC").after(start) == start + timedelta(days=1)


@pytest.mark.parametrize(
    ("time", "zone"), [("9 o'clock", "UTC"), ("09:00+01:00", "UTC"), ("09:00", "Mars/Base"), ("09:00", "Europe")]
)
def test_what_is_no_time_of_day(time: str, zone: str) -> None:
    """A time or a zone that cannot be read is refused where it is given."""
    with pytest.raises(ConfigurationError, match=r"^by\("):
        by(time, zone)


def test_a_due_time_of_another_type() -> None:
    """What is neither a span, an instant nor a time of day is refused by its type."""
    with pytest.raises(ConfigurationError, match="not str"):
        check_due("09:00", "due")  # type: ignore[arg-type]
