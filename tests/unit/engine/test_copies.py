"""A batch that the provider has more than once: every copy is found, stopped, harvested and priced."""

import contextlib
import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.runs import Spending
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.caretaker import recover
from prefect_llm_tiers.engine.recovery import PROOF_AFTER
from prefect_llm_tiers.errors import LedgerError
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import START, Box, Process, answered, paid
from tests.unit.engine.faults import Call, Reply, meddling

BOTH = pytest.mark.parametrize("dialect", list(Dialect))
CREATES = {"/v1/batches", "/v1/messages/batches"}
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
SLOW = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
HOUR = timedelta(hours=1)


def copies(box: Box) -> list[Batch]:
    """Return the copies that the ledger knows of."""
    found: list[Batch] = []
    with contextlib.suppress(LedgerError):
        # Numbered without gaps, and the ledger says so at the end.
        for number in itertools.count(1):
            batch = box.ledger.batch(number)
            if batch.copy_of is not None:
                found.append(batch)
    return found


def superseded(box: Box) -> int:
    """Return how many answers came a second time."""
    lines: list[Spending] = box.ledger.spending("run-1")
    return sum(line.attempts for line in lines if line.outcome == "superseded")


async def look(process: Process) -> Any:
    """Come by with the command line."""
    return await recover(process.ports, account=process.job.account)


def come_by_until_settled(box: Box, dialect: Dialect, *, after: timedelta = HOUR) -> None:
    """Come by now and then until nobody has to look after anything."""
    for number in range(30):

        async def later(process: Process) -> Any:
            await process.ports.clock.sleep_until(process.ports.clock.now() + after)
            return await look(process)

        box.process(f"passer-by-{number}", later, dialect=dialect)
        if not box.ledger.live_batches():
            return
    raise AssertionError("Something is looked after for ever.")


@BOTH
@pytest.mark.parametrize("law", [QUICK, SLOW])
def test_a_create_that_was_taken_twice_is_paid_for_twice_and_answers_once(
    tmp_path: Path, dialect: Dialect, law: BatchLaw
) -> None:
    """The provider confirms one batch and has two: the other is found, and all that it cost is in the ledger."""
    box = Box.at(tmp_path, batch=law, faults=Faults(only={"create_twice": (0,)}))
    process = box.carry_out(dialect=dialect)
    assert answered(box, process) == 20
    assert box.account.batches_created == 2
    come_by_until_settled(box, dialect)
    [copy] = copies(box)
    assert copy.state is BatchState.SETTLED
    assert paid(box) == box.account.billed_usd
    assert superseded(box) == box.account.billed_again


def test_a_copy_of_a_batch_that_is_out_is_stopped_at_once(tmp_path: Path) -> None:
    """Where the list shows tokens the copy is cancelled while it runs, and costs less than the batch."""
    box = Box.at(tmp_path, batch=SLOW, cancel_s=(1.0, 2.0), faults=Faults(only={"create_twice": (0,)}))
    process = box.carry_out()
    assert answered(box, process) == 20
    come_by_until_settled(box, Dialect.OPENAI)
    assert box.account.batches_cancelled == 1
    assert box.account.billed_again < 20
    assert paid(box) == box.account.billed_usd


@BOTH
@pytest.mark.parametrize("late", [timedelta(minutes=25), timedelta(hours=5)])
def test_a_create_that_lands_after_it_was_proven_absent_is_found_and_paid_for(
    tmp_path: Path, dialect: Dialect, late: timedelta
) -> None:
    """Sent again after the proof, one batch counts; the late one is found, harvested, and its bill is kept."""
    late_s = late.total_seconds()
    box = Box.at(
        tmp_path,
        batch=QUICK,
        faults=Faults(only={"create_502_lands_late": (0,)}, create_late_s=(late_s, late_s)),
    )
    process = box.carry_out(dialect=dialect, due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_created == 2
    [batch] = box.ledger.batches_of("run-1")
    assert batch.submission == 2
    assert batch.submitted_at is not None
    assert batch.submitted_at >= START + PROOF_AFTER
    for number in range(12):

        async def later(process: Process) -> Any:
            await process.ports.clock.sleep_until(process.ports.clock.now() + HOUR)
            return await look(process)

        box.process(f"passer-by-{number}", later, dialect=dialect)
    [copy] = copies(box)
    assert (copy.state, copy.token) == (BatchState.SETTLED, box.ledger.tokens(batch)[0])
    assert copy.token != batch.token
    assert paid(box) == box.account.billed_usd
    assert box.ledger.live_batches() == []


@BOTH
def test_what_a_late_copy_answers_first_counts(tmp_path: Path, dialect: Dialect) -> None:
    """A row that only the copy answered is answered: it was paid for."""
    late_s = 1500.0
    box = Box.at(
        tmp_path,
        batch=QUICK,
        faults=Faults(only={"create_502_lands_late": (0,), "no_output": (1,)}, create_late_s=(late_s, late_s)),
    )
    process = box.carry_out(dialect=dialect, due_in=20 * HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    come_by_until_settled(box, dialect)
    assert paid(box) == box.account.billed_usd


def test_a_batch_of_another_ledger_is_left_alone(tmp_path: Path) -> None:
    """Batches that bear none of this ledger's tokens are never touched, however alike they are."""
    others = tmp_path / "others"
    others.mkdir()
    box, other = Box.at(tmp_path, batch=SLOW), Box.at(others, batch=SLOW)

    async def begin(process: Process) -> None:
        process.runner.enter()
        await process.runner.advance()

    box.process("theirs", begin, ledger=other.ledger)
    refused: list[str] = []

    def judge(call: Call) -> Reply | None:
        if call.method == "POST" and call.path in CREATES and not refused:
            refused.append(call.path)
            return Reply(502, does_it=True)
        if call.path.endswith("/cancel"):
            raise AssertionError(call.path)
        return None

    box.served = meddling(box.served, judge)
    process = box.carry_out("ours", due_in=20 * HOUR)
    assert refused
    assert answered(box, process) == 20
    assert copies(box) == []
    assert box.account.batches_created == 2


def test_a_batch_that_was_left_while_nobody_knew_of_it_is_stopped_when_it_is_found(tmp_path: Path) -> None:
    """Its rows went live at the switch time: what it goes on doing is of no use to anybody."""
    box = Box.at(
        tmp_path,
        stuck_batches=("openai:0",),
        cancel_s=(1.0, 2.0),
        faults=Faults(only={"create_502_taken": (0,)}),
    )
    shown_at = START + HOUR
    box.served = meddling(
        box.served,
        lambda call: (
            Reply(503) if (call.method, call.path) == ("GET", "/v1/batches") and box.clock.now() < shown_at else None
        ),
    )
    process = box.carry_out(due_in=HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    come_by_until_settled(box, Dialect.OPENAI)
    assert box.account.batches_cancelled == 1
    assert paid(box) == box.account.billed_usd
