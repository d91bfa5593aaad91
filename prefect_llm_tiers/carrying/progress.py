"""A progress bar for whoever watches a terminal."""

import sys
import threading

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from prefect_llm_tiers.engine.watching import Progress
from prefect_llm_tiers.planning.plan import show_span, show_usd

__all__ = ["ProgressBar"]


class ProgressBar:
    """One step's bar on standard error; nothing at all where that is no terminal."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._task: TaskID | None = None

    def start(self) -> None:
        """Show the bar, if somebody looks."""
        if sys.stderr.isatty():
            self._task = _screen.add(self._step)

    def update(self, progress: Progress) -> None:
        """Move the bar."""
        if self._task is None:
            return
        done = progress.answered + progress.failed + min(progress.provider_done, progress.out)
        left = f", {show_span(progress.deadline - progress.now)} left" if progress.deadline else ""
        told = f"{progress.now:%H:%M}Z, {progress.tier or 'planning'}, {show_usd(progress.spent_usd)}{left}"
        _screen.move(self._task, total=max(progress.rows, 1), completed=done, told=told)

    def stop(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            _screen.remove(self._task)
            self._task = None


class _Screen:
    """The bars of all steps that run in this process: two displays on one terminal would draw over each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Bars | None = None

    def add(self, step: str) -> TaskID:
        with self._lock:
            if self._bars is None:
                self._bars = Bars(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TextColumn("{task.percentage:>3.0f}%  {task.fields[told]}"),
                    console=Console(stderr=True),
                    transient=True,
                )
                self._bars.start()
            return self._bars.add_task(step, total=1, told="")

    def move(self, task: TaskID, *, total: int, completed: int, told: str) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.update(task, total=total, completed=completed, told=told)

    def remove(self, task: TaskID) -> None:
        with self._lock:
            if self._bars is None:
                return
            self._bars.remove_task(task)
            if not self._bars.task_ids:
                self._bars.stop()
                self._bars = None


_screen = _Screen()
