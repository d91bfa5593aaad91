"""Time and loops of the real world."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

__all__ = ["SystemClock"]

T = TypeVar("T")

LONGEST_SLEEP_S = 60.0
"""Real time is looked at again at least this often, so that a machine that slept or whose clock was set
wakes late by this much at most."""


class SystemClock:
    """Real time; `now` and `wall` are the same instant."""

    def now(self) -> datetime:
        """Return the real instant, aware, UTC."""
        return datetime.now(UTC)

    def wall(self) -> datetime:
        """Return the real instant, aware, UTC."""
        return datetime.now(UTC)

    async def sleep_until(self, when: datetime) -> None:
        """Return at `when`, never before; at once if it is past."""
        while (left := (when - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - the instant is checked, not polled
            await asyncio.sleep(min(left, LONGEST_SLEEP_S))

    def run(self, main: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run a coroutine to its end on a fresh loop, in the calling thread.

        Args:
            main: What to run.
            name: Names the run's main task, for whoever looks at a stack.

        Raises:
            RuntimeError: The calling thread runs an event loop already.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            main.close()
            raise RuntimeError(
                f"'{name}' was started in a thread that already runs an event loop; run it in a thread of its own"
            )
        with asyncio.Runner() as runner:
            return runner.run(_named(main, name))


async def _named(main: Coroutine[Any, Any, T], name: str) -> T:
    task = asyncio.current_task()
    if task is not None:
        task.set_name(name)
    return await main
