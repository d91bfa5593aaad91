"""Time that several processes share: it runs as fast as real time or faster, and leaps when all of them wait.

A clock that only runs N times as fast stakes the outcome on the machine: at 600x a lease of five minutes is half a
real second, and a process that the scheduler keeps from running for that long loses it in the middle of a call
that it was made to outlast. Here a call costs what it costs and only waiting is skipped: whoever has nothing to do
says until when, and once nobody is busy the clock is set on to the first of these instants. So a lease is lost by
those who died and not by those who were slow, and a batch of a day takes milliseconds.
"""

import asyncio
import contextlib
import fcntl
import heapq
import mmap
import threading
import time
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

__all__ = ["SERVER", "SLOTS", "START", "ClockSpec", "SharedClock"]

T = TypeVar("T")

START = datetime(2026, 11, 21, 22, tzinfo=UTC)
"""What every shared clock shows when it is made."""

SLOTS = 16
"""Participants of a clock at most, the server among them."""

SERVER = 0
"""The server's slot: what it has promised to do later is waited for, and nothing else of it."""

FREE = float("inf")
BUSY = -1.0

LOOK_S = 0.001
"""Real seconds between two looks at whether time has leapt."""


class ClockSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a process needs to read a clock.

    Attributes:
        path: The file that the participants share.
        began: The machine's monotonic clock when it showed `START`.
        speed: Its seconds in a real one while somebody is busy.
    """

    path: str
    began: float
    speed: float


class SharedClock:
    """One participant's view of a shared clock.

    Args:
        spec: The clock.
        slot: The participant's own number below `SLOTS`; no two have the same.
    """

    def __init__(self, spec: ClockSpec, slot: int) -> None:
        self.spec = spec
        self._slot = slot
        # An open file of its own: a lock taken by way of a file shared over a fork would keep nobody out.
        self._file = Path(spec.path).open("r+b")  # noqa: SIM115 - closed by close
        self._map = mmap.mmap(self._file.fileno(), 8 * (SLOTS + 1))
        self._cells = memoryview(self._map).cast("d")
        self._sleepers: list[float] = []
        self._lock = threading.Lock()
        if slot != SERVER:
            self._cells[1 + slot] = BUSY

    @staticmethod
    def make(path: Path, speed: float) -> ClockSpec:
        """Make a clock in which nobody takes part yet."""
        path.write_bytes(memoryview(bytearray(8 * (SLOTS + 1))))
        spec = ClockSpec(path=str(path), began=time.monotonic(), speed=speed)
        clock = SharedClock(spec, SERVER)
        for slot in range(SLOTS):
            clock.free(slot)
        clock.close()
        return spec

    def now_s(self) -> float:
        """Return the seconds since `START`."""
        leapt: float = self._cells[0]
        return (time.monotonic() - self.spec.began) * self.spec.speed + leapt

    def now(self) -> datetime:
        """Return the shared instant."""
        return START + timedelta(seconds=self.now_s())

    def wall(self) -> datetime:
        """Return the instant without leaps: answers are as old as they are in real time."""
        return START + timedelta(seconds=time.monotonic() - self.spec.began)

    async def sleep_until(self, when: datetime) -> None:
        """Return at `when`, never before; at once if it is past.

        In the server it holds leaps back to `when`; elsewhere it is a wait of somebody who is busy.
        """
        until_s = (when - START).total_seconds()
        with self._asleep(until_s) if self._slot == SERVER else contextlib.nullcontext():
            while (left_s := until_s - self.now_s()) > 0:  # noqa: ASYNC110 - no event tells that time has leapt
                await asyncio.sleep(min(left_s / self.spec.speed, LOOK_S))

    async def wait_until(self, when: datetime) -> None:
        """Return at `when`, with nothing to do before: time leaps once nobody else has anything to do either."""
        until_s = (when - START).total_seconds()
        self._cells[1 + self._slot] = until_s
        while self.now_s() < until_s:
            self._leap()
            await asyncio.sleep(min((until_s - self.now_s()) / self.spec.speed, LOOK_S) if until_s > 0 else 0)
        self._cells[1 + self._slot] = BUSY

    def run(self, main: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run a coroutine to its end on a fresh loop, in the calling thread."""
        with asyncio.Runner() as runner:
            return runner.run(main)

    def free(self, slot: int) -> None:
        """Let nobody wait for a participant any more: it is gone."""
        self._cells[1 + slot] = FREE

    def waits(self, slot: int) -> bool:
        """Tell whether a participant has said what it waits for."""
        return self._cells[1 + slot] not in (BUSY, FREE)

    def hold(self, slot: int) -> None:
        """Let time leap no more until a participant that is about to start says what it waits for."""
        self._cells[1 + slot] = BUSY

    def leap_by(self, seconds: float) -> None:
        """Set the time on, whoever is busy."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._cells[0] += seconds
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave: nobody waits for this participant any more."""
        self._cells[1 + self._slot] = FREE
        self._cells.release()
        self._map.close()
        self._file.close()

    def _leap(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            first_s = min(self._cells[1:].tolist())
            ahead_s = first_s - self.now_s()
            # One whose instant has come and who has not yet woken up is about to be busy.
            if first_s != FREE and ahead_s > 0:
                self._cells[0] += ahead_s
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _asleep(self, until_s: float) -> Iterator[None]:
        with self._lock:
            heapq.heappush(self._sleepers, until_s)
            self._cells[1 + SERVER] = self._sleepers[0]
        try:
            yield
        finally:
            with self._lock:
                self._sleepers.remove(until_s)
                heapq.heapify(self._sleepers)
                self._cells[1 + SERVER] = self._sleepers[0] if self._sleepers else FREE
