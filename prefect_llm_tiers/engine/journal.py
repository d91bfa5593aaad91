"""Writes of the live lane, gathered: one commit for all that came up within 50 ms.

A call is sent after the commit that says it will be, and its row counts as settled after the commit that says
what came of it. A process that dies in between leaves an open attempt, which the next one lists as
`billed_unknown`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.ports import Clock, Ledger
from prefect_llm_tiers.core.runs import Lease, StepRun
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["Journal"]

COMMIT_AFTER_S = 0.05
COMMIT_AT = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Gatherer(Generic[Item, Result]):
    """Gathers items for at most `COMMIT_AFTER_S` and hands them over together."""

    def __init__(self, write: Callable[[list[Item]], Awaitable[list[Result]]]) -> None:
        self._write = write
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writes: set[asyncio.Task[None]] = set()

    async def add(self, item: Item) -> Result:
        """Return what the commit that holds this item gave for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, done))
        if len(self._waiting) >= COMMIT_AT:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(COMMIT_AFTER_S, self._start)
        return await done

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, self._waiting = self._waiting, []
        if group:
            task = asyncio.get_running_loop().create_task(self._commit(group))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _commit(self, group: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._write([item for item, _ in group])
        except BaseException as error:
            for _, done in group:
                if not done.done():
                    done.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, done), result in zip(group, results, strict=True):
            if not done.done():
                done.set_result(result)

    async def flush(self) -> None:
        """Commit what waits, and return when every commit under way has ended."""
        self._start()
        while self._writes:
            await asyncio.gather(*self._writes)


class Journal:
    """The live lane's access to the ledger for one run and tier."""

    def __init__(self, ledger: Ledger, clock: Clock, *, run: StepRun, tier: Tier, lease: Lease) -> None:
        self._ledger = ledger
        self._clock = clock
        self._run = run
        self._tier = tier
        self._lease = lease
        self._begins = _Gatherer[str, int](self._write_begins)
        self._outcomes = _Gatherer[tuple[int, Outcome], None](self._write_outcomes)

    async def begin(self, key: str) -> int:
        """Commit that a call is about to be sent; return its attempt id. Raises `LeaseLost`."""
        return await self._begins.add(key)

    async def record(self, attempt_id: int, outcome: Outcome) -> None:
        """Commit what came of a call."""
        await self._outcomes.add((attempt_id, outcome))

    async def flush(self) -> None:
        """Commit everything gathered."""
        await self._begins.flush()
        await self._outcomes.flush()

    async def _write_begins(self, keys: list[str]) -> list[int]:
        return await _off_loop(
            lambda: self._ledger.begin_calls(
                keys, run=self._run, tier=self._tier, lease=self._lease, at=self._clock.now()
            )
        )

    async def _write_outcomes(self, outcomes: list[tuple[int, Outcome]]) -> list[None]:
        await _off_loop(lambda: self._ledger.record_calls(outcomes, at=self._clock.now(), stamp=self._clock.wall()))
        return [None] * len(outcomes)


async def _off_loop(work: Callable[[], Result]) -> Result:
    """Run a blocking write in the loop's executor: a commit waits for the disk, calls do not wait for it."""
    return await asyncio.get_running_loop().run_in_executor(None, work)
