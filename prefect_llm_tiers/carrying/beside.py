"""The engine in a thread of its own: heard while it works, stopped when its run ends before it does.

In an async flow a sync task runs on the flow's own loop thread, where no other loop may run; and a thread that
waits for hours must still hear a signal.

Whoever ends a run early either cancels it or does not. Prefect cancels by the run's state first and by SIGTERM
then; a pod that is evicted sends SIGTERM too, and Ctrl-C is somebody at a keyboard. Only of a run that is being
cancelled are the batches cancelled: every other one may be started again, and attaches to what is out.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from prefect_llm_tiers.carrying.api import CancelledRun, TerminationSignal, is_being_cancelled

__all__ = ["Stop", "in_a_thread", "run_beside"]

T = TypeVar("T")

LISTEN_EVERY_S = 0.5
"""How long a signal may go unheard while a step waits."""

LOOK_EVERY_S = 10.0
"""Between two looks at the run's state. A step that was submitted hears no signal: those reach the main thread,
which then waits for the step until Prefect kills the process, 30 s later."""

STOP_WITHIN_S = 20.0
"""How long the engine may take to stop and to withdraw its batches."""


class Stop:
    """How a step's loop is told to end.

    Attributes:
        withdraws: Whether the batches that only this run waits for are to be cancelled first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._told = False
        self.withdraws = False

    def bind(self) -> None:
        """Name the calling task as the one that is to be ended."""
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._told and self._task is not None:
                self._task.cancel()

    def tell(self, *, withdraw: bool) -> None:
        """End the task, from any thread; once."""
        with self._lock:
            if self._told:
                return
            self._told, self.withdraws = True, withdraw
            if self._loop is not None and self._task is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)


def run_beside(work: Callable[[Stop], T], *, flow_run_id: str | None, keep: bool) -> T:
    """Run `work` in a thread of its own, in this context, and return or raise what it did.

    Args:
        work: What to do; it ends soon after its `Stop` was told.
        flow_run_id: The run it belongs to; None outside any.
        keep: Whether batches stay out also where the run is cancelled.

    Raises:
        CancelledRun: The run was cancelled meanwhile.
    """
    # Not by joining the thread: a join that a signal interrupts takes a thread that runs on for one that has ended.
    context, stop, ended = copy_context(), Stop(), threading.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(context.run(work, stop))
        except BaseException as error:  # noqa: BLE001 (raised again in the calling thread)
            failure.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="llm-step", daemon=True)
    watch = _CancelWatch(flow_run_id)
    try:
        thread.start()
        # polars' own handler restarts system calls, so a wait without an end would not hear Ctrl-C for hours.
        while not ended.wait(LISTEN_EVERY_S):
            watch.check()
    except BaseException as ending:
        cancelled = watch.cancelled or (
            isinstance(ending, TerminationSignal) and flow_run_id is not None and is_being_cancelled(flow_run_id)
        )
        stop.tell(withdraw=cancelled and not keep)
        again = _await_end(ended)
        if again is not None:
            raise again from ending
        raise
    finally:
        watch.end()
    if failure:
        raise failure[0]
    return outcome[0]


async def in_a_thread(work: Callable[[], T]) -> T:
    """Return or raise what `work` does, in a thread of its own and in this context.

    The loop's own pool has a handful of threads, and calls that wait for an answer would wait for one another.
    """
    loop, context = asyncio.get_running_loop(), copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def tell(outcome: Callable[[], None]) -> None:
        # Where the loop has ended, nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if future.done() else outcome())

    def run() -> None:
        try:
            value = context.run(work)
        except BaseException as error:  # noqa: BLE001 (raised again where it is awaited)
            tell(partial(future.set_exception, error))
        else:
            tell(partial(future.set_result, value))

    threading.Thread(target=run, name="llm-call", daemon=True).start()
    return await future


def _await_end(ended: threading.Event) -> BaseException | None:
    """Wait until the engine has stopped; return a signal that came meanwhile, which must not cut that short.

    Ctrl-C does: whoever presses it twice means it.
    """
    came: BaseException | None = None
    for _ in range(int(STOP_WITHIN_S / LISTEN_EVERY_S)):
        try:
            if ended.wait(LISTEN_EVERY_S):
                break
        except TerminationSignal as signal:
            came = signal
    return came


class _CancelWatch:
    """Looks now and then whether a run is being cancelled."""

    def __init__(self, flow_run_id: str | None) -> None:
        self._over = threading.Event()
        self.cancelled = False
        if flow_run_id is not None:
            context = copy_context()
            threading.Thread(
                target=context.run, args=(self._look, flow_run_id), name="llm-cancel-watch", daemon=True
            ).start()

    def _look(self, flow_run_id: str) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            if is_being_cancelled(flow_run_id):
                self.cancelled = True
                return

    def check(self) -> None:
        """Raise `CancelledRun` if the run is being cancelled."""
        if self.cancelled:
            msg = "The flow run is being cancelled."
            raise CancelledRun(msg)

    def end(self) -> None:
        """Look no more."""
        self._over.set()
