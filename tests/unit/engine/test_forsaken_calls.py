"""Live calls of a run that died and that nobody enters again."""

from datetime import timedelta
from pathlib import Path

import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.heartbeat import LEASE
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import START, Box, Process, answered, documents, paid, to_the_end, unknown
from tests.unit.engine.faults import Died, Mortal

ROWS = 4


@pytest.mark.parametrize("tier", [Tier.STANDARD, Tier.BATCH])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_they_are_listed_once_another_run_asks_their_rows(tmp_path: Path, dialect: Dialect, tier: Tier) -> None:
    """What was in flight may be on the invoice: it is `billed_unknown`, though its own run never comes back."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=600, sigma=0, stuck_share=0))

    async def dying(process: Process) -> None:
        with pytest.raises(Died):
            await to_the_end(process)

    # Its sixth write would be that of the answers: every call was made and billed, and none of it is on record.
    mortal = Mortal(box.ledger, at=5, after=False)
    ask = {"dialect": dialect, "prompts": documents(ROWS)}
    box.process("dead", dying, ledger=mortal, tiers=(Tier.STANDARD,), **ask)
    assert box.account.answered == ROWS
    assert unknown(box) == 0
    done = box.carry_out("next", id="run-2", flow_run_id="flow-2", tiers=(tier,), due_in=None, **ask)
    assert answered(box, done) == ROWS
    assert unknown(box) == ROWS
    assert box.account.billed_again == ROWS
    assert paid(box, "run-1") == 0 < paid(box, "run-2") < box.account.billed_usd


def test_those_of_a_run_that_is_alive_are_left_alone(tmp_path: Path) -> None:
    """A run whose lease lasts has its calls in flight; only when it has ended are they nobody's."""
    box = Box.at(tmp_path)

    async def dying(process: Process) -> None:
        with pytest.raises(Died):
            await to_the_end(process)

    mortal = Mortal(box.ledger, at=5, after=False)
    ask = {"prompts": documents(ROWS), "tiers": (Tier.STANDARD,)}
    box.process("dead", dying, ledger=mortal, **ask)
    # The deadline cannot wait for the lease to end, so the rows are asked while it lasts.
    box.carry_out("hurried", id="run-2", flow_run_id="flow-2", due_in=timedelta(minutes=2), **ask)
    assert box.clock.now() < START + LEASE
    assert unknown(box) == 0
    assert box.account.billed_again == ROWS
