"""Writes of the live lane, gathered: one commit for all that came up within 50 ms.

A call is sent after the commit that says it will be, and its row counts as settled after the commit that says
what came of it. A process that dies in between leaves an open attempt, which the next one lists as
`billed_unknown`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.ports import Clock, Ledger
from prefect_llm_tiers.core.runs import Lease, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import LedgerUnusable

__all__ = ["Journal"]

COMMIT_AFTER_S = 0.05
COMMIT_AT = 256

TELL_AGAIN_AFTER = tuple(timedelta(seconds=seconds) for seconds in (0.5, 1, 2, 4, 8))
"""Waits between two tries to write down what was paid for, where the ledger cannot be written for a moment."""

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
    """The live lane's access to the ledger for one run and tier.

    Args:
        ledger: What survives.
        clock: Time.
        run: The step run.
        tier: The tier asked.
        lease: The step run's.
        not_before: How old an answer may be to count.
        share: Whether a key that another run has a call out on is left to that run.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        *,
        run: StepRun,
        tier: Tier,
        lease: Lease,
        not_before: datetime,
        share: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._run = run
        self._tier = tier
        self._lease = lease
        self._not_before = not_before
        self._share = share
        self._begins = _Gatherer[str, int | None](self._write_begins)
        self._outcomes = _Gatherer[tuple[int, Outcome], None](self._write_outcomes)

    async def begin(self, key: str) -> int | None:
        """Commit that a call is about to be sent; return its attempt id, None where it must not be. Raises `LeaseLost`.

        It must not where the key was answered since it was looked at, or another run pays for it now.
        """
        return await self._begins.add(key)

    async def record(self, attempt_id: int, outcome: Outcome) -> None:
        """Commit what came of a call."""
        await self._outcomes.add((attempt_id, outcome))

    async def flush(self) -> None:
        """Commit everything gathered."""
        await self._begins.flush()
        await self._outcomes.flush()

    async def _write_begins(self, keys: list[str]) -> list[int | None]:
        return await _off_loop(
            lambda: self._ledger.begin_calls(
                keys,
                run=self._run,
                tier=self._tier,
                lease=self._lease,
                at=self._clock.now(),
                not_before=self._not_before,
                share=self._share,
            )
        )

    async def _write_outcomes(self, outcomes: list[tuple[int, Outcome]]) -> list[None]:
        """Write down what was paid for: told twice it is kept once, so a failure that may pass is waited out."""
        for wait in TELL_AGAIN_AFTER:
            try:
                return await self._tell(outcomes)
            except LedgerUnusable:
                await self._clock.sleep_until(self._clock.now() + wait)
        return await self._tell(outcomes)

    async def _tell(self, outcomes: list[tuple[int, Outcome]]) -> list[None]:
        await _off_loop(lambda: self._ledger.record_calls(outcomes, at=self._clock.now(), stamp=self._clock.wall()))
        return [None] * len(outcomes)


async def _off_loop(work: Callable[[], Result]) -> Result:
    """Run a blocking write in the loop's executor: a commit waits for the disk, calls do not wait for it."""
    return await asyncio.get_running_loop().run_in_executor(None, work)
