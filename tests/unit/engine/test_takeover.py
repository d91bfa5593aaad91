"""Processes that die, wait for each other, or come by: one batch, one bill, one outcome for a row."""

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_llm_tiers.core.runs import StepRunState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.runner import Done, Waiting
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.settings import BatchLaw, LiveLaw
from tests.unit.engine.box import START, Box, Process, answered, paid, to_the_end, unknown, until
from tests.unit.engine.faults import Call, Died, Mortal, Reply, meddling

SLOW = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
SHORT = BatchLaw(median_s=100, sigma=0, stuck_share=0)
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
HOUR = timedelta(hours=1)
TWO = ["First document.", "Second document."]


def dies_at_every_write(folder_of_worlds: Path, **parameters: object) -> list[Box]:
    """Return the worlds in which a first process died at each of its writes, and a second one went on."""
    worlds: list[Box] = []
    # Made once: a new ledger takes longer than all that happens in it here.
    Box.at(folder_of_worlds).ledger.close()
    for point in range(200):
        folder = folder_of_worlds / str(point)
        folder.mkdir()
        shutil.copy(folder_of_worlds / "ledger.db", folder)
        settings = parameters.get("settings", {})
        assert isinstance(settings, dict)
        box = Box.at(folder, **settings)
        mortal = Mortal(box.ledger, at=point // 2, after=bool(point % 2))
        job = {name: value for name, value in parameters.items() if name != "settings"}
        try:
            box.process("first", to_the_end, ledger=mortal, prompts=TWO, **job)
        except Died:
            pass
        else:
            return worlds
        second = box.carry_out("second", prompts=TWO, **job)
        assert answered(box, second) == 2, point
        box.process("third", _a_day_later, prompts=["Something else."], id="run-3", due_in=None, tiers=(Tier.STANDARD,))
        worlds.append(box)
    raise AssertionError("The first process never came to its end.")


async def _a_day_later(process: Process) -> Process:
    await process.ports.clock.sleep_until(process.ports.clock.now() + 12 * HOUR)
    return await to_the_end(process)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_death_at_any_write_of_a_batch_costs_nothing(tmp_path: Path, dialect: Dialect) -> None:
    """Whichever write a process dies before or after, one batch is paid for, and the ledger has the bill."""
    worlds = dies_at_every_write(tmp_path, dialect=dialect, settings={"batch": SHORT})
    assert len(worlds) > 20
    for box in worlds:
        assert box.account.asked_more_than_once == 0
        assert box.account.answered == 3
        assert paid(box, "run-1", "run-3") == box.account.billed_usd
        assert unknown(box) == 0


def test_death_at_any_write_of_a_batch_that_is_left_costs_nothing(tmp_path: Path) -> None:
    """The same with a batch that is stuck, cancelled, harvested, and followed by a live tier."""
    worlds = dies_at_every_write(
        tmp_path,
        tiers=(Tier.BATCH, Tier.STANDARD),
        due_in=timedelta(minutes=24),
        settings={"stuck_batches": ("openai:0", "openai:1"), "seed": 7, "cancel_s": (60.0, 90.0)},
    )
    assert len(worlds) > 30
    for box in worlds:
        assert box.account.batches_created == 1
        assert box.account.asked_more_than_once <= unknown(box) <= 2
        assert paid(box, "run-1", "run-3") <= box.account.billed_usd


def test_death_at_any_write_of_a_live_tier_is_bounded_by_the_calls_in_flight(tmp_path: Path) -> None:
    """What was asked again was in flight when the process died, and is listed."""
    for box in dies_at_every_write(tmp_path, tiers=(Tier.STANDARD,)):
        assert box.account.asked_more_than_once <= unknown(box) <= 2


@pytest.mark.parametrize("tiers", [(Tier.BATCH, Tier.STANDARD), (Tier.STANDARD,)])
def test_two_processes_of_one_run_at_the_same_time_pay_once(tmp_path: Path, tiers: tuple[Tier, ...]) -> None:
    """They take turns; whoever has the lease decides, and both arrive at the same end."""
    box = Box.at(tmp_path, batch=QUICK)
    both = box.together(*(box.start(owner, to_the_end, tiers=tiers, due_in=9 * HOUR) for owner in ("one", "two")))
    assert [answered(box, process) for process in both] == [20, 20]
    assert box.account.batches_created <= 1
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


def test_two_runs_over_the_same_rows_at_the_same_time_share_a_batch(tmp_path: Path) -> None:
    """The later one attaches to the batch that carries its rows."""
    box = Box.at(tmp_path, batch=QUICK)
    runs = [box.start(run, to_the_end, id=run, tiers=(Tier.BATCH,), due_in=None) for run in ("run-1", "run-2")]
    assert [answered(box, process) for process in box.together(*runs)] == [20, 20]
    assert box.account.batches_created == 1
    assert paid(box, "run-1", "run-2") == box.account.billed_usd


def test_a_process_that_was_gone_for_a_while_finds_its_run_taken(tmp_path: Path) -> None:
    """One whose lease ran out while it stood still decides nothing more; what it had in flight is a fact."""
    box = Box.at(tmp_path, live={Tier.STANDARD: LiveLaw(base_s=200.0, sigma=0)})

    async def stolen(process: Process) -> Process:
        process.runner.enter()
        clock = process.ports.clock

        async def steal() -> None:
            await clock.sleep_until(START + timedelta(seconds=150))
            lease = box.ledger.lease("step:run-1")
            assert lease is not None
            box.ledger.release(lease)
            assert box.ledger.acquire("step:run-1", owner="other", now=clock.now(), until=clock.now() + HOUR)

        thief = asyncio.create_task(steal())
        outcome = await process.runner.advance()
        await thief
        assert isinstance(outcome, Waiting)
        return process

    box.process("first", stolen, tiers=(Tier.STANDARD,), prompts=[f"Document {n}." for n in range(40)], due_in=None)
    # The sixteen calls in flight came back and are kept; not one more was sent.
    assert box.account.asked == 16
    assert paid(box) == box.account.billed_usd
    box.process("later", _a_day_later, id="run-9", prompts=["x"], due_in=None, tiers=(Tier.STANDARD,))
    second = box.carry_out("second", tiers=(Tier.STANDARD,), prompts=[f"Document {n}." for n in range(40)], due_in=None)
    assert answered(box, second) == 40
    assert box.account.asked_more_than_once == 0


def test_calls_of_whoever_had_the_run_in_between_are_listed(tmp_path: Path) -> None:
    """A process that goes on after another one came and died lists that one's calls as `billed_unknown`."""
    box = Box.at(tmp_path, batch=SLOW)

    async def work(process: Process) -> Process:
        run = process.runner.enter()
        clock = process.ports.clock
        first = await process.runner.advance()
        assert isinstance(first, Waiting)
        run_now = box.ledger.step_run(run.id)
        assert run_now is not None
        lease = box.ledger.acquire(
            "step:run-1", owner="other", now=clock.now(), until=clock.now() + timedelta(minutes=5)
        )
        assert lease is not None
        [batch] = box.ledger.batches_of(run.id)
        box.ledger.leave(batch.id, run=run_now, lease=lease, at=clock.now())
        box.ledger.begin_calls(
            process.job.spool.keys([0]), run=run_now, tier=Tier.STANDARD, lease=lease, at=clock.now(), not_before=None
        )
        return await to_the_end(process)

    box.process("first", work)
    assert unknown(box) == 1


def test_answers_that_others_harvested_are_judged_by_the_step(tmp_path: Path) -> None:
    """A batch harvested by another step's process: what this step cannot use is asked again, not taken."""
    box = Box.at(tmp_path, batch=QUICK)
    refused: list[str] = []

    def picky(text: str) -> str | None:
        if "Document 7" in text and not refused:
            refused.append(text)
            return "unparsable: test"
        return None

    box.process("first", until(START + timedelta(minutes=1)), accept=picky)
    box.process("other", _a_day_later, id="run-2", prompts=["Something else."], due_in=None, tiers=(Tier.STANDARD,))
    assert not refused
    process = box.carry_out("second", accept=picky, due_in=None)
    assert refused
    assert answered(box, process) == 20
    assert box.account.asked_more_than_once == 1


def test_a_process_that_waited_does_not_ask_again_what_failed_meanwhile(tmp_path: Path) -> None:
    """Failures stick for those that were inside; only an entry after them asks again."""
    box = Box.at(tmp_path)

    def never(text: str) -> str | None:
        return "unparsable: test"

    both = box.together(
        *(
            box.start(owner, to_the_end, accept=never, max_attempts=2, tiers=(Tier.STANDARD,))
            for owner in ("one", "two")
        )
    )
    assert [process.done.failed for process in both] == [20, 20]
    assert box.account.asked == 40


@pytest.mark.parametrize(("first", "then"), [(20, 0), (0, 20)])
def test_an_end_is_told_by_the_failures_that_are_allowed_now(tmp_path: Path, first: int, then: int) -> None:
    """A finished run that is entered with another `max_failed` ends as that says."""
    box = Box.at(tmp_path)

    def never(text: str) -> str | None:
        return "unparsable: test"

    box.carry_out("one", accept=never, max_attempts=1, max_failed=first)
    process = box.carry_out("two", accept=never, max_attempts=1, max_failed=then)
    assert isinstance(process.done, Done)
    assert process.done.failed == 20
    run = box.ledger.step_run("run-1")
    assert run is not None
    assert run.state is (StepRunState.FAILED if then == 0 else StepRunState.COMPLETED)


def test_a_deadline_of_the_first_entry_holds_also_where_it_died_before_the_plan(tmp_path: Path) -> None:
    """A span that counts from the entry does not start again after a crash."""
    box = Box.at(tmp_path, stuck_batches=("openai:0",))

    async def enter(process: Process) -> None:
        process.runner.enter()

    box.process("first", enter, deadline=START + 2 * HOUR, due_in=None)

    async def an_hour_later(process: Process) -> Process:
        await process.ports.clock.sleep_until(START + HOUR)
        return await to_the_end(process)

    second = box.process("second", an_hour_later, deadline=START + 3 * HOUR, due_in=None)
    assert second.done is not None
    assert not second.done.late
    assert second.done.finished_at <= START + 2 * HOUR


def test_a_frame_without_rows_is_done_at_once(tmp_path: Path) -> None:
    """Nothing to ask is nothing to pay."""
    box = Box.at(tmp_path)
    process = box.carry_out(prompts=[])
    assert process.done is not None
    assert process.done.failed == 0
    assert box.account.asked == 0


def test_a_batch_whose_rows_were_answered_elsewhere_is_stopped(tmp_path: Path) -> None:
    """A run that has all its answers lets its batch go, so that no more of it is billed."""
    box = Box.at(tmp_path, batch=SLOW)
    box.process("first", until(START + timedelta(minutes=2)), due_in=20 * HOUR)
    box.carry_out("other", id="run-2", due_in=timedelta(minutes=5), tiers=(Tier.STANDARD,), infeasible="best_effort")
    process = box.carry_out("second", due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_cancelled == 1


def test_a_stalled_create_is_not_sent_a_second_time_by_the_next_process(tmp_path: Path) -> None:
    """A process that dies while its create is under way: the batch lands, and is found."""
    box = Box.at(tmp_path, batch=SLOW)

    def judge(call: Call) -> Reply | None:
        return Reply(0, does_it=True) if (call.method, call.path) == ("POST", "/v1/batches") else None

    box.served = meddling(box.served, judge)

    async def cut(process: Process) -> None:
        process.runner.enter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await process.runner.advance()

    box.process("first", cut)
    box.served = box.simulation.app
    assert answered(box, box.carry_out("second")) == 20
    assert box.account.batches_created == 1
