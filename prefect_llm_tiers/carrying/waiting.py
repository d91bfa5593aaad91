"""Waiting until a step run can go on. Here it sleeps in process; all that waits is in the ledger."""

from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.engine.runner import Done, Runner

__all__ = ["wait_until_done"]


async def wait_until_done(runner: Runner, clock: Clock) -> Done:
    """Advance a step run until it is done, sleeping in between.

    A process that dies here loses nothing: the next one enters the step run and goes on.
    """
    while True:
        outcome = await runner.advance()
        if isinstance(outcome, Done):
            return outcome
        await clock.sleep_until(outcome.until)
