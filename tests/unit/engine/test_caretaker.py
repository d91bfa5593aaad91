"""Looking after batches without a step: from the command line, and when a run is cancelled."""

from datetime import timedelta
from pathlib import Path

import pytest

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.caretaker import WITHDRAW_WITHIN, give_up, recover, withdraw
from prefect_llm_tiers.errors import IllegalTransition, LeaseLost, LedgerError
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import START, Box, Process, answered, paid, to_the_end, until
from tests.unit.engine.faults import Call, Reply, meddling

BOTH = pytest.mark.parametrize("dialect", list(Dialect))
CREATES = {"/v1/batches", "/v1/messages/batches"}
SLOW = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def lists(call: Call) -> bool:
    """Return whether a call reads a page of the list of batches."""
    return call.method == "GET" and call.path in CREATES


def looks(box: Box, dialect: Dialect, *, at: timedelta, account: str | None = None) -> list[tuple[Batch, Batch]]:
    """Come by at an instant, as the command line does."""

    async def work(process: Process) -> list[tuple[Batch, Batch]]:
        await process.ports.clock.sleep_until(START + at)
        return await recover(process.ports, account=account or process.job.account)

    found: list[tuple[Batch, Batch]] = box.process("by hand", work, dialect=dialect)
    return found


@BOTH
def test_a_look_by_hand_takes_every_batch_as_far_as_it_goes(tmp_path: Path, dialect: Dialect) -> None:
    """Found, looked at, harvested: whatever its next look was due, and nothing is sent."""
    box = Box.at(tmp_path, batch=SLOW, faults=Faults(only={"create_502_taken": (0,)}))
    box.process("first", until(START + MINUTE / 4), dialect=dialect)
    states = []
    for minutes in (2, 30, 90):
        [(before, after)] = looks(box, dialect, at=minutes * MINUTE)
        states += [(before.state, after.state)]
    assert states[0][0] is BatchState.SUBMITTING
    assert states[-1][1] is BatchState.SETTLED
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd
    assert answered(box, box.carry_out("second", dialect=dialect)) == 20
    assert box.account.asked == 20


def test_a_look_by_hand_sends_nothing(tmp_path: Path) -> None:
    """A planned batch stays planned, and one proven absent is planned again: its run alone sends it."""
    box = Box.at(tmp_path, faults=Faults(only={"create_502_untaken": (0,)}))
    box.process("first", until(START + MINUTE / 4))
    looks(box, Dialect.OPENAI, at=2 * MINUTE)
    [(_, after)] = looks(box, Dialect.OPENAI, at=20 * MINUTE)
    assert after.state is BatchState.PLANNED
    [(_, after)] = looks(box, Dialect.OPENAI, at=40 * MINUTE)
    assert after.state is BatchState.PLANNED
    assert box.account.batches_created == 0


def test_a_look_under_another_account_touches_nothing(tmp_path: Path) -> None:
    """Another account's list proves nothing of this one's batches."""
    box = Box.at(tmp_path, batch=SLOW)
    box.process("first", until(START + MINUTE))
    assert looks(box, Dialect.OPENAI, at=2 * HOUR, account="somebody else") == []
    assert looks(box, Dialect.ANTHROPIC, at=2 * HOUR) == []
    [batch] = box.ledger.live_batches()
    assert batch.state is BatchState.IN_PROGRESS


def test_a_batch_in_the_hands_of_another_process_is_left_to_it(tmp_path: Path) -> None:
    """A look by hand says who is at it, and goes on with the rest."""
    box = Box.at(tmp_path, batch=SLOW)
    box.process("first", until(START + MINUTE))
    box.process("second", until(START + 2 * MINUTE), id="run-2", prompts=["Something else."])
    first, second = box.ledger.live_batches()
    assert box.ledger.acquire(f"batch:{first.id}", owner="alive", now=START, until=START + 5 * HOUR)

    async def work(process: Process) -> tuple[list[tuple[Batch, Batch]], list[str]]:
        await process.ports.clock.sleep_until(START + 2 * HOUR)
        return await recover(process.ports, account=process.job.account), process.notes.notices

    found, notices = box.process("by hand", work)
    assert [after.state for _, after in found] == [BatchState.IN_PROGRESS, BatchState.SETTLED]
    assert found[1][0].id == second.id
    assert any("another process (alive) is at it until 2026-11-22 03:00:00Z" in notice for notice in notices)


# Giving up


def unknown(box: Box) -> Batch:
    """Return a batch that was sent and not confirmed, and that no list shows."""
    box.served = meddling(box.served, lambda call: Reply(503) if lists(call) else None)
    box.process("first", until(START + MINUTE))
    [batch] = box.ledger.live_batches()
    assert batch.state is BatchState.SUBMITTING
    return batch


def test_a_batch_that_nobody_knows_of_can_be_given_up(tmp_path: Path) -> None:
    """Its rows are asked again at once and may be billed twice: if it was taken, its answers are found and priced."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_502_taken": (0,)}))
    batch = unknown(box)
    given_up = give_up(box.ledger, batch.id, owner="by hand", now=box.clock.now())
    assert given_up.state is BatchState.DISCARDED
    last = box.ledger.events("batch", str(batch.id))[-1]
    assert (last.before, last.after, last.detail) == ("submitting", "discarded", "given up by hand")
    assert sum(line.billed_unknown for line in box.ledger.spending("run-1")) == 20
    box.served = box.simulation.app
    assert answered(box, box.carry_out("second", tiers=(Tier.STANDARD,))) == 20
    looks(box, Dialect.OPENAI, at=2 * HOUR)
    assert paid(box) == box.account.billed_usd


def test_an_overdue_batch_can_be_given_up(tmp_path: Path) -> None:
    """Nobody watches it any more."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_502_taken": (0,)}))
    batch = unknown(box)
    [(_, after)] = looks(box, Dialect.OPENAI, at=26 * HOUR)
    assert after.state is BatchState.OVERDUE
    assert give_up(box.ledger, batch.id, owner="by hand", now=box.clock.now()).state is BatchState.DISCARDED
    assert box.ledger.live_batches() == []


def test_a_batch_that_somebody_is_at_is_not_given_up(tmp_path: Path) -> None:
    """What a live process decides about is not decided beside it."""
    box = Box.at(tmp_path, faults=Faults(only={"create_502_taken": (0,)}))
    batch, now = unknown(box), box.clock.now()
    assert box.ledger.acquire(f"batch:{batch.id}", owner="alive", now=now, until=now + HOUR)
    with pytest.raises(LeaseLost, match=r"another process \(alive\) is at it until"):
        give_up(box.ledger, batch.id, owner="by hand", now=now)
    assert box.ledger.batch(batch.id).state is BatchState.SUBMITTING


def test_only_what_nobody_knows_of_can_be_given_up(tmp_path: Path) -> None:
    """Every other state says what it is and what to do instead."""
    box = Box.at(tmp_path, batch=SLOW)
    box.process("first", until(START + MINUTE))
    now = box.clock.now()
    [batch] = box.ledger.live_batches()
    with pytest.raises(IllegalTransition, match=r"it is in_progress, at the provider as batch_.* Cancel the run"):
        give_up(box.ledger, batch.id, owner="by hand", now=now)
    looks(box, Dialect.OPENAI, at=2 * HOUR)
    with pytest.raises(IllegalTransition, match="it is settled, which is its end"):
        give_up(box.ledger, batch.id, owner="by hand", now=box.clock.now())
    with pytest.raises(LedgerError, match="holds no batch 99"):
        give_up(box.ledger, 99, owner="by hand", now=now)


# Cancelled runs


def withdrawn(box: Box, *, keep: bool, dialect: Dialect = Dialect.OPENAI) -> list[Batch]:
    """Cancel the first flow run now."""

    async def work(process: Process) -> list[Batch]:
        return await withdraw(process.ports, flow_run_id="flow-1", keep=keep)

    left: list[Batch] = box.process("first", work, dialect=dialect)
    return left


@BOTH
def test_a_cancelled_run_stops_its_batches_and_what_they_finished_is_kept(tmp_path: Path, dialect: Dialect) -> None:
    """Stopped at once, harvested by whoever comes by; the run started again asks only what is left."""
    box = Box.at(tmp_path, batch=SLOW, cancel_s=(60.0, 60.0))
    box.process("first", until(START + 50 * MINUTE), dialect=dialect)
    [batch] = withdrawn(box, keep=False, dialect=dialect)
    assert batch.state is BatchState.CANCELLING
    assert box.account.batches_cancelled == 1
    [(_, after)] = looks(box, dialect, at=55 * MINUTE)
    assert after.state is BatchState.SETTLED
    kept = after.counts.completed
    assert 0 < kept < 20
    assert paid(box) == box.account.billed_usd
    second = box.carry_out("second", id="run-2", flow_run_id="flow-2", dialect=dialect, tiers=(Tier.STANDARD,))
    assert answered(box, second) == 20
    assert box.account.billed_again == 0


def test_a_cancelled_run_may_leave_its_batches_out(tmp_path: Path) -> None:
    """Kept, a batch goes on, and the next run over the same rows takes it up."""
    box = Box.at(tmp_path, batch=SLOW)
    box.process("first", until(START + 10 * MINUTE))
    [batch] = withdrawn(box, keep=True)
    assert batch.state is BatchState.IN_PROGRESS
    second = box.carry_out("second", id="run-2", flow_run_id="flow-2")
    assert answered(box, second) == 20
    assert (box.account.batches_created, box.account.batches_cancelled) == (1, 0)
    assert box.account.billed_again == 0


@pytest.mark.parametrize("keep", [True, False])
def test_what_a_cancelled_run_had_not_sent_is_dropped(tmp_path: Path, keep: bool) -> None:
    """A planned batch costs nothing, and holds no row back."""
    box = Box.at(tmp_path)
    box.served = meddling(box.served, lambda call: Reply(502) if call.path == "/v1/files" else None)
    box.process("first", until(START + MINUTE))
    [batch] = withdrawn(box, keep=keep)
    assert batch.state is BatchState.DISCARDED


def test_a_batch_that_another_run_waits_for_outlives_the_cancelled_one(tmp_path: Path) -> None:
    """It is stopped only when the last run that waits for it leaves."""
    box = Box.at(tmp_path, batch=SLOW)
    box.process("first", until(START + MINUTE))
    box.process("other", until(START + 2 * MINUTE), id="run-2", flow_run_id="flow-2")
    [batch] = withdrawn(box, keep=False)
    assert batch.state is BatchState.IN_PROGRESS
    assert box.ledger.waiting_for(batch.id) == ["run-2"]
    assert box.account.batches_cancelled == 0


def test_a_cancelled_run_does_not_wait_for_a_provider_that_stalls(tmp_path: Path) -> None:
    """Batches are stopped side by side, each for some seconds at most; what could not be stopped is said."""
    box = Box.at(tmp_path, batch=SLOW)

    for number in range(3):
        box.process(
            f"first-{number}", until(START + (number + 1) * MINUTE), id=f"run-{number}", prompts=[f"Row {number}."]
        )
    box.served = meddling(box.served, lambda call: Reply(0) if call.path.endswith("/cancel") else None)
    began = box.clock.now()

    async def work(process: Process) -> tuple[list[Batch], list[str]]:
        return await withdraw(process.ports, flow_run_id="flow-1", keep=False), process.notes.notices

    batches, notices = box.process("first-0", work)
    assert box.clock.now() - began <= 2 * WITHDRAW_WITHIN
    assert [batch.state for batch in batches] == [BatchState.CANCELLING] * 3
    assert sum("could not be stopped" in notice for notice in notices) == 3


def test_a_batch_that_may_be_out_is_found_and_stopped(tmp_path: Path) -> None:
    """A run that is cancelled before its submission was confirmed stops what it finds at once."""
    box = Box.at(tmp_path, batch=SLOW, faults=Faults(only={"create_502_taken": (0,)}))
    box.process("first", until(START + MINUTE / 4))
    [batch] = box.ledger.live_batches()
    assert batch.state is BatchState.SUBMITTING
    [batch] = withdrawn(box, keep=False)
    assert batch.state is BatchState.CANCELLING
    assert box.account.batches_cancelled == 1


def test_a_run_that_is_entered_again_after_it_was_cancelled_pays_once(tmp_path: Path) -> None:
    """What was stopped is waited for, and only the rest is asked."""
    box = Box.at(tmp_path, batch=SLOW, cancel_s=(60.0, 60.0))
    box.process("first", until(START + 50 * MINUTE), due_in=20 * HOUR)
    withdrawn(box, keep=False)
    second = box.process("second", to_the_end, due_in=20 * HOUR)
    assert answered(box, second) == 20
    assert box.account.billed_again == 0
    assert paid(box) == box.account.billed_usd
