"""A process that dies right after it settled a batch."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import Box, Process, documents, paid, to_the_end
from tests.unit.engine.faults import Died

ROWS = 4


class DiesOnceSettled:
    """A ledger as a process sees it that dies with the commit that settles its first batch."""

    def __init__(self, box: Box) -> None:
        self._ledger = box.ledger
        self._dead = False

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._ledger, name)
        if not callable(attribute):
            return attribute

        def called(*args: object, **kwargs: object) -> object:
            if self._dead:
                raise Died
            result = attribute(*args, **kwargs)
            if name == "settle_batch":
                self._dead = True
                raise Died
            return result

        return called


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_second_one_at_the_provider_was_looked_for_before(tmp_path: Path, dialect: Dialect) -> None:
    """Nobody looks after a settled batch: what the provider took twice is on record by then, stopped or priced."""
    law = BatchLaw(median_s=600, sigma=0, stuck_share=0)
    box = Box.at(tmp_path, batch=law, faults=Faults(only={"create_twice": (0,)}))

    async def dying(process: Process) -> None:
        with pytest.raises(Died):
            await to_the_end(process)

    ask = {"dialect": dialect, "prompts": documents(ROWS), "tiers": (Tier.BATCH,), "due_in": None}
    box.process("dead", dying, ledger=DiesOnceSettled(box), **ask)
    box.carry_out("next", **ask)
    assert box.account.batches_created == 2
    assert paid(box) == box.account.billed_usd > 0


def test_a_second_one_that_no_list_showed_when_the_first_one_failed_is_found_later(tmp_path: Path) -> None:
    """A batch may fail within a minute and lists lag by minutes: what else there is of it is looked for again."""
    law = BatchLaw(median_s=600, sigma=0, stuck_share=0)
    box = Box.at(tmp_path, batch=law, faults=Faults(only=_FIRST_LAGS_AND_SECOND_FAILS, list_lag_s=(300.0, 300.0)))
    ask = {"prompts": documents(ROWS), "tiers": (Tier.BATCH,), "due_in": None}
    box.carry_out("first", **ask)
    for number in range(6):
        box.process("passer-by", _later(timedelta(minutes=20)), id=f"run-{number + 2}", **ask)
    assert len(box.simulation.batches()) == 3
    assert paid(box) == box.account.billed_usd > 0


_FIRST_LAGS_AND_SECOND_FAILS: dict[str, tuple[int, ...]] = {"create_twice": (0,), "list_lag": (0,), "token_limit": (1,)}


def _later(by: timedelta) -> Callable[[Process], Awaitable[Process]]:
    async def work(process: Process) -> Process:
        await process.ports.clock.sleep_until(process.ports.clock.now() + by)
        return await to_the_end(process)

    return work
