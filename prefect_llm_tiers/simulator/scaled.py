"""Time that runs N times as fast as real time, the same for every process that knows its origin."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx2
import msgspec

from prefect_llm_tiers.errors import ConfigurationError, ProviderUnavailable

__all__ = ["PublishedClock", "ScaledClock", "as_utc", "loop_runs_here", "real_now"]

T = TypeVar("T")


def real_now() -> datetime:
    """Return the real instant, aware, UTC."""
    return datetime.now(UTC)


def as_utc(instant: datetime, name: str) -> datetime:
    """Return an aware instant in UTC.

    Raises:
        ValueError: It is naive.
    """
    if instant.tzinfo is None:
        raise ValueError(f"{name} is naive ({instant.isoformat()}); give it a time zone, as UTC")
    return instant.astimezone(UTC)


def loop_runs_here() -> bool:
    """Tell whether the calling thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class PublishedClock(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulator tells of its time at `/_simulator/clock`.

    Attributes:
        origin: Instant at which simulated and real time were equal, or simulated time's start.
        speed: Simulated seconds in a real one; None where time jumps and nobody outside can follow.
        now: The instant there when it was asked.
    """

    origin: datetime
    speed: float | None
    now: datetime


class ScaledClock:
    """A clock that runs `speed` times as fast as real time from an origin that processes share.

    Processes that know origin and speed agree on the time as well as their machines' clocks do. Only
    `sleep_until` and `now` are scaled: timeouts of SDKs stay real, and so does the cost of each call,
    which makes it right for batches and wrong for the latency of single live calls.

    Args:
        origin: Real instant at which scaled and real time are equal.
        speed: Scaled seconds in a real one.
    """

    def __init__(self, origin: datetime, speed: float) -> None:
        if speed <= 0:
            raise ValueError(f"speed is {speed:g}; it must be above 0")
        self.origin = as_utc(origin, "origin")
        self.speed = speed

    @classmethod
    def of_server(cls, url: str) -> "ScaledClock":
        """Return the clock that a running simulator publishes.

        Raises:
            ProviderUnavailable: Nobody answered there.
            ConfigurationError: What answered is no simulator with scaled time.
        """
        try:
            reply = httpx2.get(f"{url.rstrip('/')}/_simulator/clock", timeout=10)
        except httpx2.TransportError as error:
            raise ProviderUnavailable(
                f"No simulator answered at {url} ({type(error).__name__}). Start one, or correct the URL."
            ) from error
        try:
            published = msgspec.json.decode(reply.content, type=PublishedClock)
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"{url} answered {reply.status_code} without a clock: it is no simulator. Correct the URL."
            ) from error
        if published.speed is None:
            raise ConfigurationError(
                f"The simulator at {url} jumps through time; use its clock inside its own process."
            )
        return cls(published.origin, published.speed)

    def now(self) -> datetime:
        """Return the scaled instant."""
        return self.origin + (real_now() - self.origin) * self.speed

    def wall(self) -> datetime:
        """Return the real instant."""
        return real_now()

    async def sleep_until(self, when: datetime) -> None:
        """Return at `when`, never before; at once if it is past."""
        while (left := (when - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - the instant is checked, not polled
            await asyncio.sleep(left / self.speed)

    def run(self, main: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run a coroutine to its end on a fresh loop, in the calling thread.

        Raises:
            RuntimeError: The calling thread runs an event loop already.
        """
        if loop_runs_here():
            main.close()
            raise RuntimeError(f"'{name}' was started in a thread that already runs an event loop")
        with asyncio.Runner() as runner:
            return runner.run(main)
