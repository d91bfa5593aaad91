"""The event loop that lives in simulated time, and its selector."""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack

from prefect_llm_tiers.errors import ConfigurationError

__all__ = ["LoopClock", "Participant", "SimulatedLoop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

WORKER_PATIENCE_S = 1.0
"""Real seconds that a loop waits for anyio's worker threads before it lets time jump over them."""


class Participant:
    """One loop's place in the clock; the clock's lock guards every field.

    Attributes:
        name: What it was started as; breaks ties between wake-ups at one instant.
        ordinal: How many started before it; breaks ties between equal names.
        busy: Whether it may run; time stands still meanwhile.
        poked: Whether a callback from another thread came that its loop has not looked at yet.
        wake_s: Its next timer in simulated seconds; None without one.
        fault: Why it must give up.
    """

    __slots__ = ("busy", "fault", "name", "ordinal", "poked", "wake_s")

    def __init__(self, *, name: str, ordinal: int) -> None:
        self.name = name
        self.ordinal = ordinal
        self.busy = True
        self.poked = False
        self.wake_s: float | None = None
        self.fault: str | None = None


class LoopClock(Protocol):
    """What a loop needs of the clock that made it."""

    def elapsed_s(self) -> float:
        """Return simulated seconds since the start."""
        ...

    def wait(self, participant: Participant, timeout_s: float | None, poll: Callable[[], bool]) -> None:
        """Block the thread until it is the participant's turn."""
        ...

    def wake(self, participant: Participant, deliver: Callable[[], T]) -> T:
        """Mark the participant busy and deliver under the same lock."""
        ...


class _IdleSelector(selectors.BaseSelector):
    """A selector that, where it would block, hands the thread to the clock instead.

    The only file it takes is the loop's own wake-up pipe, which asyncio registers first.
    """

    def __init__(self, clock: LoopClock, participant: Participant) -> None:
        self._pipe = selectors.DefaultSelector()
        self._clock = clock
        self._participant = participant
        self._stranger: str | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self._pipe.get_map():
            self._stranger = (
                f"{self._participant.name} opened a real socket or pipe (file {fileobj!r}) under simulated "
                "time, which cannot wait for the real world. Reach the simulator in the process "
                "(httpx2.ASGITransport), or use a ScaledClock."
            )
            raise ConfigurationError(self._stranger)
        return self._pipe.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._pipe.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._pipe.get_map()

    def close(self) -> None:
        self._pipe.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._stranger is not None:
            # The SDKs turn what `register` raised into a connection error, and a retry loop would wait
            # for simulated days on it: so the loop itself fails, once.
            message, self._stranger = self._stranger, None
            raise ConfigurationError(message)
        if timeout is None or timeout > 0:
            if self._worker_is_out() and (events := self._await_worker()):
                return events
            self._clock.wait(self._participant, timeout, lambda: bool(self._pipe.select(0)))
        return self._pipe.select(0)

    def _await_worker(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait in real time for a worker thread to report, for a while.

        The loop counts as busy meanwhile. The wait is bounded because a worker may itself wait for
        simulated time, through `anyio.from_thread`.
        """
        until = time.monotonic() + WORKER_PATIENCE_S
        while (left := until - time.monotonic()) > 0 and self._worker_is_out():
            if events := self._pipe.select(left):
                return events
        return []

    def _worker_is_out(self) -> bool:
        """Tell whether anyio runs a function for this loop in a thread.

        anyio does not go through `run_in_executor`. Its threads name their loop and the list they return
        to when done; a future anyio without these is simply not waited for.
        """
        if threading.active_count() == 1:
            return False
        for thread in threading.enumerate():
            idle = getattr(thread, "idle_workers", None)
            if idle is not None and getattr(thread, "loop", None) is self.loop:
                if getattr(thread, "stopping", False):
                    continue
                if thread not in idle:
                    return True
        return False


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a clock's."""

    def __init__(self, clock: LoopClock, participant: Participant) -> None:
        self.clock = clock
        self._participant = participant
        selector = _IdleSelector(clock, participant)
        super().__init__(selector)
        selector.loop = self
        # asyncio fires a timer this early. Below the microsecond of a datetime, so that a timer of one
        # microsecond waits for it; above the rounding of a float that counts decades of seconds.
        self._clock_resolution = 1e-7

    def time(self) -> float:
        """Return simulated seconds since the clock's start."""
        return self.clock.elapsed_s()

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule from another thread, marking this loop busy before its wake-up byte is written."""
        deliver = super().call_soon_threadsafe
        return self.clock.wake(self._participant, lambda: deliver(callback, *args, context=context))

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run the function here and now: a thread would answer at a real moment.

        `asyncio.to_thread` and name look-ups come this way.
        """
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the outcome is recorded in the future
            future.set_exception(error)
        return future
