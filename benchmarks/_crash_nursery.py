"""Processes that are cheap to start and honest to kill: forked from one that has imported everything.

The nursery runs no thread, so that a fork of it holds no lock that nobody will ever give back. It reads one task a
line from its standard input, forks, and tells who started and how each ended. When its input closes it kills what
is left and ends, so that nothing outlives whoever started it.

Tasks that are to warm it up it carries out itself: what they made it import and compile, every fork has.
"""

import asyncio
import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

__all__ = ["Nursery", "Worker"]

_CHECKOUT = Path(__file__).parents[1]

_SET_PARENT_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of Linux's prctl(2)."""


class Worker:
    """One process of a nursery.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, kill: Callable[[], None], show: Callable[[], None], ended: Callable[[], None]) -> None:
        self.pid = 0
        self.kill = kill
        self._show = show
        self._told = ended
        self._started = threading.Event()
        self._ended = threading.Event()
        self._status = 0

    def wait(self, timeout_s: float) -> int:
        """Return how it ended, as `subprocess` has it: its exit status, or minus the signal that killed it.

        Raises:
            TimeoutError: It is still there; it is killed.
        """
        if not self._ended.wait(timeout_s):
            self._show()
            self._ended.wait(1)
            self.kill()
            raise TimeoutError(f"process {self.pid} was still at it after {timeout_s:g} s, and was killed")
        return os.waitstatus_to_exitcode(self._status)

    def let_go(self, seconds: float) -> None:
        """Return when it has ended, or after some seconds."""
        self._ended.wait(seconds)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def _start(self, pid: int) -> None:
        self.pid = pid
        self._started.set()

    def _end(self, status: int) -> None:
        self._status = status
        self._told()
        self._ended.set()


class Nursery:
    """Starts processes; a context manager that leaves none behind."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_LLM_TIERS_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._crash_nursery"],
            cwd=_CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A library with threads of its own would make the fork unsafe.
            env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self._workers: dict[int, Worker] = {}
        self._pids: dict[int, Worker] = {}
        self._lock = threading.Lock()
        self._warm = threading.Event()
        self._reader = threading.Thread(target=self._read, name="nursery", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def start(
        self, task: dict[str, Any], *, crash_at: str | None = None, ended: Callable[[], None] = lambda: None
    ) -> Worker:
        """Start a process that carries a task out, and dies at a crash point if one is named.

        Args:
            task: See `_crash_task.Task`.
            crash_at: What `PREFECT_LLM_TIERS_CRASH_AT` is to it.
            ended: Called once it is gone, whatever it died of.
        """
        with self._lock:
            number = len(self._workers)
            worker = self._workers[number] = Worker(
                lambda: self._order(signal=signal.SIGKILL, to=number),
                lambda: self._order(signal=signal.SIGUSR1, to=number),
                ended,
            )
        self._order(number=number, task=task, crash_at=crash_at)
        if not worker._started.wait(60):  # noqa: SLF001 - a worker is this module's own
            raise TimeoutError("the nursery did not start a process within a minute; its stderr says why")
        return worker

    def warm_up(self, task: dict[str, Any]) -> None:
        """Let the nursery carry a task out itself, before it starts anybody; return when it has."""
        self._warm.clear()
        self._order(warm_up=task)
        while not self._warm.wait(0.1):
            if self._process.poll() is not None:
                raise RuntimeError(f"the nursery ended with status {self._process.returncode}; its stderr says why")

    def _order(self, **order: Any) -> None:
        assert self._process.stdin is not None
        with self._lock:
            print(json.dumps(order), file=self._process.stdin, flush=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "warm" in told:
                self._warm.set()
            elif "number" in told:
                worker = self._pids[told["pid"]] = self._workers[told["number"]]
                worker._start(told["pid"])  # noqa: SLF001 - as above
            else:
                self._pids[told["pid"]]._end(told["status"])  # noqa: SLF001 - as above


def _tell(**told: int) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


def _grow(order: dict[str, Any], *pipe: int) -> int:
    """Fork; the child carries its task out and ends without a word to the nursery's loop."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, _show_tasks)
        os.closerange(min(pipe), max(pipe) + 1)
        os.close(1)
        from benchmarks import _crash_task
        from prefect_llm_tiers.crash_points import CRASH_AT

        if order["crash_at"]:
            os.environ[CRASH_AT] = order["crash_at"]
        _crash_task.carry_out(order["task"])
        status = 0
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was, and its parent sees the status
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _warm_up(task: dict[str, Any]) -> None:
    from benchmarks import _crash_task

    _crash_task.carry_out(task)
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a thread would make the fork unsafe"
    _tell(warm=1)


def _show_tasks(_: int, now: FrameType | None) -> None:
    """Print where this process and every task of it is: it is taking too long."""
    traceback.print_stack(now, limit=20)
    for task in asyncio.all_tasks():
        print(f"{task.get_name()} waits in", file=sys.stderr)
        waiting: Any = task.get_coro()
        while waiting is not None:
            frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
            where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" if frame else repr(waiting)
            print(f"  {where}", file=sys.stderr)
            waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when whoever started this process is gone, killed perhaps like anybody here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _tend() -> None:
    _die_with_parent()
    sys.stdout = sys.stderr
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    # A handler of Python's own makes the signal arrive at the pipe.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    alive: dict[int, int] = {}
    buffered = b""
    while True:
        ready, _, _ = select.select([0, read_end], [], [])
        if read_end in ready:
            os.read(read_end, 4096)
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            del alive[pid]
            _tell(pid=pid, status=status)
        if 0 not in ready:
            continue
        read = os.read(0, 65536)
        if not read:
            break
        *lines, buffered = (buffered + read).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "warm_up" in order:
                _warm_up(order["warm_up"])
                continue
            if "signal" not in order:
                pid = _grow(order, read_end, write_end)
                alive[pid] = order["number"]
                _tell(number=order["number"], pid=pid)
                continue
            # Nobody else waits for its children, so a pid that is here is still the process that it was.
            for pid in [pid for pid, number in alive.items() if number == order["to"]]:
                os.kill(pid, order["signal"])
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _tend()
