"""Time that jumps when everybody waits, and time that runs N times as fast.

`SimulatedClock` makes the event loops. A loop's `time()` is simulated time, and a loop is idle when its
selector would block. When every loop is idle, time jumps to the earliest wake-up and that loop runs
alone. So `asyncio.timeout`, the SDKs' own timers and our sleeps all live in simulated time, and a day of
waiting costs milliseconds.
"""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeVar

from prefect_llm_tiers.simulator.loops import Participant, SimulatedLoop
from prefect_llm_tiers.simulator.scaled import PublishedClock, ScaledClock, as_utc, loop_runs_here, real_now

__all__ = ["PublishedClock", "ScaledClock", "SimulatedClock", "real_now"]

T = TypeVar("T")

_LOOK_EVERY_S = 0.25
"""Real seconds between looks at signals and at stalls."""


class SimulatedClock:
    """A clock that stands still while anybody works and jumps when everybody waits.

    Runs with the same participants give the same order of events, wake-ups at one instant being ordered
    by name. Participants that start in several threads begin at real moments: announce them with `hold`
    where the order must be strict.

    Args:
        start: The instant simulated time starts at; it is kept over any number of `run` calls.
        wall: Returns the real instant, for stamps.
        settle_s: Real seconds without a start or an end of a run before time may jump. Zero is strict
            and right for one thread or announced ones; a small value lets unannounced threads join.
        stall_s: Real seconds after which loops that all wait for nothing raise.
    """

    def __init__(
        self,
        start: datetime,
        wall: Callable[[], datetime] = real_now,
        *,
        settle_s: float = 0.0,
        stall_s: float = 10.0,
    ) -> None:
        self._start = as_utc(start, "start")
        self._wall = wall
        self._settle_s = settle_s
        self._stall_s = stall_s
        # One lock for all participants. Reentrant, because a signal handler may wake a loop while the
        # very thread it interrupts holds it.
        self._changed = threading.Condition(threading.RLock())
        self._elapsed_s = 0.0
        self._participants: list[Participant] = []
        self._joined = 0
        self._holds = 0
        self._announced: Counter[str] = Counter()
        self._moved_at = time.monotonic()
        self._membership_at = 0.0

    def now(self) -> datetime:
        """Return the simulated instant."""
        return self._start + timedelta(seconds=self._elapsed_s)

    def wall(self) -> datetime:
        """Return the real instant, as the injected callable tells it."""
        return self._wall()

    def elapsed_s(self) -> float:
        """Return the simulated seconds since the start: what the loops call their time."""
        return self._elapsed_s

    async def sleep_until(self, when: datetime) -> None:
        """Return at `when`, never before; at once if it is past.

        Raises:
            RuntimeError: The running loop is none of this clock's, so that it would sleep in real time.
        """
        loop = asyncio.get_running_loop()
        if not (isinstance(loop, SimulatedLoop) and loop.clock is self):
            raise RuntimeError("sleep_until was awaited on a loop of another clock; start it with this clock's run()")
        while (left := (when - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - the instant is checked, not polled
            await asyncio.sleep(left)

    def run(self, main: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run a coroutine to its end on a loop of this clock, in the calling thread.

        Raises:
            RuntimeError: The calling thread runs an event loop already, or every loop of this clock
                waits for something that nobody will do.
            ConfigurationError: The coroutine opened a real socket.
        """
        if loop_runs_here():
            main.close()
            raise RuntimeError(f"'{name}' was started in a thread that already runs an event loop")
        try:
            participant = self._join(name)
        except BaseException:
            main.close()  # it is refused at the door and never awaited
            raise
        try:
            with asyncio.Runner(loop_factory=lambda: SimulatedLoop(self, participant)) as runner:
                return runner.run(main)
        finally:
            self._leave(participant)

    @contextlib.contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Announce participants: time stands still, and none of them starts, until all are there.

        Inside the block no loop that starts gets to run. After it, time goes on as soon as a run of each
        announced name has started; they are let in one at a time, in the order of their names. A block
        that raises withdraws its announcements.

        Args:
            names: Names of runs that are about to start, each as often as it will start.
        """
        with self._changed:
            self._holds += 1
            self._announced.update(names)
            self._moved_at = time.monotonic()
        try:
            yield
        except BaseException:
            with self._changed:
                self._announced -= Counter(names)
            raise
        finally:
            with self._changed:
                self._holds -= 1
                self._moved_at = time.monotonic()
                self._advance()

    def _join(self, name: str) -> Participant:
        with self._changed:
            participant = Participant(name=name, ordinal=self._joined)
            self._joined += 1
            if self._holds or self._announced:
                # Its first turn is a wake-up like any other, so that announced runs start one by one.
                participant.busy = False
                participant.wake_s = self._elapsed_s
            self._announced -= Counter((name,))
            self._participants.append(participant)
            self._note_membership()
            if not participant.busy:
                self._advance()
                try:
                    self._until_busy(participant)
                except BaseException:
                    self._leave(participant)
                    raise
            return participant

    def _leave(self, participant: Participant) -> None:
        with self._changed:
            if participant in self._participants:
                self._participants.remove(participant)
            self._note_membership()
            self._advance()

    def _note_membership(self) -> None:
        self._membership_at = self._moved_at = time.monotonic()

    def wait(self, participant: Participant, timeout_s: float | None, poll: Callable[[], bool]) -> None:
        """Let a loop be idle until it is its turn; called by the loop's selector.

        Args:
            participant: Whose loop would block.
            timeout_s: Simulated seconds until its next timer, None without one.
            poll: Whether the loop's own wake-up pipe has something to read.
        """
        with self._changed:
            if participant.poked:  # a callback came between the loop's last look and this one
                participant.poked = False
                return
            participant.busy = False
            participant.wake_s = None if timeout_s is None else self._elapsed_s + timeout_s
            self._moved_at = time.monotonic()
            self._advance()
            self._until_busy(participant, poll)
            participant.poked = False

    def wake(self, participant: Participant, deliver: Callable[[], T]) -> T:
        """Deliver a callback from another thread: the loop is busy before anybody can see it idle."""
        with self._changed:
            participant.busy = participant.poked = True
            self._changed.notify_all()
            return deliver()

    def _advance(self) -> None:
        """Give the earliest wake-up its turn if nobody is busy; the lock is held.

        Nothing moves while somebody is busy, held back or announced: a jump then would be a jump past
        what he is about to do.
        """
        if self._holds or self._announced or any(each.busy for each in self._participants):
            return
        if self._settling_s() > 0:
            return  # whoever waits looks again when the time is up
        waiting = [each for each in self._participants if each.wake_s is not None]
        if not waiting:
            return
        first = min(waiting, key=lambda each: (each.wake_s, each.name, each.ordinal))
        self._elapsed_s = max(self._elapsed_s, first.wake_s or 0.0)
        first.busy = True
        self._moved_at = time.monotonic()
        self._changed.notify_all()

    def _settling_s(self) -> float:
        if self._settle_s == 0:
            return 0.0
        return self._membership_at + self._settle_s - time.monotonic()

    def _until_busy(self, participant: Participant, poll: Callable[[], bool] | None = None) -> None:
        """Block the thread until it is the participant's turn; the lock is held and given up meanwhile."""
        while True:
            if participant.busy:
                break
            settling_s = self._settling_s()
            self._changed.wait(min(_LOOK_EVERY_S, settling_s) if settling_s > 0 else _LOOK_EVERY_S)
            if not participant.busy and poll is not None and poll():
                participant.busy = True  # a signal wrote to the wake-up pipe behind our back
            self._advance()
            self._watch()
        if participant.fault is not None:
            fault, participant.fault = participant.fault, None
            raise RuntimeError(fault)

    def _watch(self) -> None:
        """Fail every participant when all of them wait for nothing; the lock is held."""
        if any(each.busy for each in self._participants):
            return
        if time.monotonic() - self._moved_at < self._stall_s:
            return
        names = ", ".join(sorted(each.name for each in self._participants))
        since = f"Simulated time stands still at {self.now().isoformat()}"
        missing = ", ".join(sorted(self._announced))
        if self._holds:
            fault = (
                f"{since}: a hold() has lasted {self._stall_s:g} s while {names} waits. Start the runs "
                "inside its block in threads of their own, and leave the block before waiting for them."
            )
        elif missing:
            fault = (
                f"{since}: {missing} was announced with hold() and did not start within "
                f"{self._stall_s:g} s, while {names} waits. Start every announced run, or announce fewer."
            )
            self._announced.clear()
        elif all(each.wake_s is None for each in self._participants):
            fault = (
                f"{since}: every loop ({names}) waits without a timer, and no other thread woke one "
                f"within {self._stall_s:g} s. A task awaits an event, a lock or a queue that "
                "nobody will serve."
            )
        else:
            return
        for each in self._participants:
            each.fault = fault
            each.busy = True
        self._changed.notify_all()
