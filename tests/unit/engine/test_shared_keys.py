"""Two runs that ask the same at the same moment: paid once, and answered twice."""

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.runs import Entry
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.heartbeat import LEASE
from prefect_llm_tiers.engine.runner import Runner
from prefect_llm_tiers.planning.priors import LiveRate
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw, FlexOutages, LiveLaw
from tests.unit.engine.box import START, Box, Process, answered, documents, paid, to_the_end, unknown
from tests.unit.engine.faults import Call, Died, Mortal, Reply, meddling

HOUR = timedelta(hours=1)
LIVE = {"tiers": (Tier.STANDARD,)}
BATCH = {"tiers": (Tier.BATCH,), "due_in": None}
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)

Work = Callable[[Process], Awaitable[Any]]


def late(by: timedelta, work: Work = to_the_end) -> Work:
    """Return a process that begins after a while."""

    async def wait(process: Process) -> Any:
        await process.ports.clock.sleep_until(START + by)
        return await work(process)

    return wait


def two(box: Box, one: dict[str, Any], other: dict[str, Any], *, after_s: float = 0.0) -> list[Process]:
    """Carry two runs out together; the second begins after a while."""
    first = box.start("one", to_the_end, id="run-1", flow_run_id="flow-1", **one)
    second = box.start("two", late(timedelta(seconds=after_s)), id="run-2", flow_run_id="flow-2", **other)
    done: list[Process] = box.together(first, second)
    return done


def assert_paid_once(box: Box, both: list[Process], rows: int) -> None:
    """Assert that each run has all its answers, and that the provider was asked once for each and for nothing else."""
    assert [answered(box, process) for process in both] == [rows, rows]
    assert box.account.asked_more_than_once == 0
    assert paid(box, "run-1", "run-2") == box.account.billed_usd > 0


@pytest.mark.parametrize("after_s", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_two_live_runs_over_the_same_rows_pay_once(tmp_path: Path, dialect: Dialect, after_s: float) -> None:
    """Each asks what the other does not, and waits for what the other has out."""
    box = Box.at(tmp_path)
    ask = {"dialect": dialect, "prompts": documents(200), **LIVE}
    both = two(box, ask, ask, after_s=after_s)
    assert_paid_once(box, both, 200)
    assert box.account.asked == 200


@pytest.mark.parametrize("due_in", [None, 8 * HOUR])
def test_a_run_that_finds_everything_claimed_waits_for_it(tmp_path: Path, due_in: timedelta | None) -> None:
    """Rows that are all in another run's slow calls are not asked, and are there when they are answered."""
    box = Box.at(tmp_path, live={Tier.STANDARD: LiveLaw(base_s=400.0, sigma=0.0)})
    ask = {"prompts": documents(10), "due_in": due_in, **LIVE}
    both = two(box, ask, ask, after_s=1.0)
    assert_paid_once(box, both, 10)
    # It never went into a tier for what it did not ask, and did not look more than a few times.
    assert both[1].notes.switches == []
    assert len(both[1].notes.progress) < 30


def test_overlapping_halves_are_paid_once(tmp_path: Path) -> None:
    """What both ask is asked by one of them; what one asks is its own."""
    box = Box.at(tmp_path)
    prompts = documents(300)
    both = two(box, {"prompts": prompts[:200], **LIVE}, {"prompts": prompts[100:], **LIVE})
    assert_paid_once(box, both, 200)
    assert box.account.asked == 300


@pytest.mark.parametrize("after_s", [0.0, 2.0])
def test_a_batch_carries_nothing_that_a_live_run_has_out(tmp_path: Path, after_s: float) -> None:
    """A live run first, a batch run while it is at it: whoever comes second takes what is left."""
    box = Box.at(tmp_path, batch=QUICK)
    ask = {"prompts": documents(100)}
    both = two(box, {**ask, **LIVE}, {**ask, **BATCH}, after_s=after_s)
    assert_paid_once(box, both, 100)
    assert box.account.batches_created <= 1


@pytest.mark.parametrize("after_s", [0.0, 2.0, 300.0])
def test_a_live_run_asks_nothing_that_a_batch_carries(tmp_path: Path, after_s: float) -> None:
    """A batch run first, a live run while the batch is out: it waits for it as long as its deadline allows."""
    box = Box.at(tmp_path, batch=QUICK)
    ask = {"prompts": documents(100)}
    both = two(box, {**ask, **BATCH}, {**ask, **LIVE}, after_s=after_s)
    assert_paid_once(box, both, 100)


def test_two_batch_runs_over_overlapping_halves_pay_once(tmp_path: Path) -> None:
    """Each sends what the other has not, and waits for both batches."""
    box = Box.at(tmp_path, batch=QUICK)
    prompts = documents(90)
    both = two(box, {"prompts": prompts[:60], **BATCH}, {"prompts": prompts[30:], **BATCH})
    assert_paid_once(box, both, 60)
    assert box.account.asked == 90
    assert box.account.batches_created == 2


def test_a_flex_outage_that_two_runs_wait_out_is_paid_once(tmp_path: Path) -> None:
    """A claim that stays open over hours of free refusals is respected while the deadline allows."""
    box = Box.at(tmp_path, flex_outages=FlexOutages(mean_up_s=60, mean_down_s=900), seed=5)
    ask = {"prompts": documents(100), "tiers": (Tier.FLEX, Tier.STANDARD)}
    both = two(box, ask, ask)
    assert_paid_once(box, both, 100)
    assert box.account.capacity_refused > 0


def test_rows_of_a_run_that_died_in_the_middle_are_taken_over(tmp_path: Path) -> None:
    """When its lease has ended its rows are open again; what it had in flight is listed when it is entered again."""
    box = Box.at(tmp_path, live={Tier.STANDARD: LiveLaw(base_s=30.0, sigma=0.0)})
    prompts = documents(100)

    async def dying(process: Process) -> None:
        with pytest.raises(Died):
            await to_the_end(process)

    # It dies right after the commit that says which calls are about to be sent: its fifth write.
    mortal = Mortal(box.ledger, at=4, after=True)
    first = box.start("one", dying, id="run-1", flow_run_id="flow-1", prompts=prompts, ledger=mortal, **LIVE)
    later = late(timedelta(seconds=1))
    second = box.start("two", later, id="run-2", flow_run_id="flow-2", prompts=prompts, **LIVE)
    _, other = box.together(first, second)
    assert mortal.dead
    assert answered(box, other) == 100
    assert other.done is not None
    assert START + LEASE <= other.done.finished_at <= START + LEASE + timedelta(minutes=3)
    again = box.carry_out("three", id="run-1", prompts=prompts, **LIVE)
    assert answered(box, again) == 100
    assert unknown(box) == 16
    assert box.account.asked_more_than_once == 0
    assert paid(box, "run-1", "run-2") == box.account.billed_usd


def test_a_deadline_that_cannot_wait_asks_all_the_same_and_says_so(tmp_path: Path) -> None:
    """At the latest safe start what another run has out is asked again; both are priced, and it is announced."""
    box = Box.at(tmp_path, seed=1)

    def judge(call: Call) -> Reply | None:
        stuck = call.path == "/v1/responses" and box.clock.now() < START + timedelta(seconds=2)
        return Reply(0) if stuck else None

    # The first run's calls never answer; a call may stay silent for ten minutes.
    box.served = meddling(box.served, judge)
    ask = {"prompts": documents(10), **LIVE}
    one, other = two(box, {**ask, "due_in": 8 * HOUR}, {**ask, "due_in": timedelta(minutes=5)}, after_s=3.0)
    assert [answered(box, process) for process in (one, other)] == [10, 10]
    assert other.done is not None
    assert not other.done.late
    assert [notice for notice in other.notes.notices if "10 requests" in notice and "no time to wait" in notice]
    assert unknown(box) == 10


def test_a_deadline_that_cannot_wait_leaves_the_other_runs_batch_and_says_so(tmp_path: Path) -> None:
    """At the latest safe start a batch that both wait for is left by one of them: not by a cancel, and priced twice.

    The run that waits on finds everything answered, and stops its batch then.
    """
    box = Box.at(tmp_path, batch=BatchLaw(median_s=3600, sigma=0, stuck_share=0))
    ask = {"prompts": documents(20)}
    one, other = two(box, {**ask, **BATCH}, {**ask, **LIVE, "due_in": timedelta(minutes=30)}, after_s=60.0)
    assert [answered(box, process) for process in (one, other)] == [20, 20]
    assert other.done is not None
    assert not other.done.late
    assert one.done is not None
    assert one.done.finished_at > other.done.finished_at > START + timedelta(minutes=25)
    assert box.account.batches_cancelled == 1
    assert box.account.billed_again <= 20
    assert [notice for notice in other.notes.notices if "is left by step" in notice]
    # Whoever comes by next takes what the cancelled batch had finished.
    box.process("three", late(2 * HOUR), id="run-3", prompts=["Something else."], **LIVE)
    assert paid(box, "run-1", "run-2", "run-3") == box.account.billed_usd


def test_rows_that_another_run_took_cost_no_turn_of_the_accounts_rate(tmp_path: Path) -> None:
    """A key that turns out to be taken is passed over at once, not at the pace at which calls may start."""
    box = Box.at(tmp_path, batch=QUICK)
    slow = {"rate": LiveRate(concurrency=4, requests_per_minute=6), "due_in": None, "tiers": (Tier.STANDARD,)}
    prompts = documents(400)
    both = two(box, {"prompts": prompts, **slow}, {"prompts": prompts, **BATCH}, after_s=20.0)
    assert_paid_once(box, both, 400)
    # Four hundred turns would have taken more than an hour.
    assert box.clock.now() < START + timedelta(minutes=20)


def test_an_answer_that_one_run_cannot_use_is_asked_again_by_it_alone(tmp_path: Path) -> None:
    """The run whose parser takes it keeps it; the other asks again, and pays for that itself."""
    box = Box.at(tmp_path)

    def picky(text: str) -> str | None:
        return "unparsable: test" if "Document 3." in text else None

    ask = {"prompts": documents(20), **LIVE}
    one, other = two(box, ask, {**ask, "accept": picky, "max_attempts": 2})
    assert answered(box, one) + answered(box, other) >= 39
    assert other.done is not None
    assert other.done.failed == 1
    assert box.account.asked <= 20 + 2


def test_three_runs_and_a_crash_of_none_pay_once(tmp_path: Path) -> None:
    """It holds for more than two: live, flex and batch at once."""
    box = Box.at(tmp_path, batch=QUICK)
    prompts = documents(150)
    tiers = [(Tier.STANDARD,), (Tier.FLEX, Tier.STANDARD), (Tier.BATCH, Tier.STANDARD)]
    runs = [
        box.start(f"p{n}", to_the_end, id=f"run-{n}", flow_run_id=f"flow-{n}", prompts=prompts, tiers=tier)
        for n, tier in enumerate(tiers)
    ]
    assert [answered(box, process) for process in box.together(*runs)] == [150] * 3
    assert box.account.asked_more_than_once == 0
    assert box.account.asked == 150
    assert paid(box, "run-0", "run-1", "run-2") == box.account.billed_usd


def test_a_live_claim_of_a_run_that_waits_is_none(tmp_path: Path) -> None:
    """A run that only waits has no call out; two that wait for each other's batch do not wait for ever."""
    box = Box.at(tmp_path, batch=QUICK)
    prompts = documents(40)
    both = two(box, {"prompts": prompts, **BATCH}, {"prompts": prompts[::-1], **BATCH})
    assert_paid_once(box, both, 40)
    assert box.clock.now() < START + HOUR


def test_a_probe_whose_row_was_answered_elsewhere_is_made_by_another(tmp_path: Path) -> None:
    """Those that wait for what the one probe of a full tier finds do not wait for a call that nobody made."""
    box = Box.at(tmp_path, live={Tier.FLEX: LiveLaw(base_s=59.9, sigma=0.0), Tier.STANDARD: LiveLaw()})
    flex = itertools.count()

    def judge(call: Call) -> Reply | None:
        # The first call is answered when the others are about to probe; whoever follows it then has sent nothing yet.
        full = b'"flex"' in call.body and next(flex) > 0 and box.clock.now() < START + HOUR
        return Reply(429, b'{"error": {"code": "resource_unavailable"}}') if full else None

    box.served = meddling(box.served, judge)
    prompts = documents(8)
    flex_only = {"tiers": (Tier.FLEX,), "due_in": None, "rate": LiveRate(concurrency=4)}
    both = two(box, {"prompts": prompts, **flex_only}, {"prompts": prompts[4:], **LIVE}, after_s=90.0)
    assert [answered(box, process) for process in both] == [8, 4]
    assert box.account.asked_more_than_once == 0


@pytest.mark.parametrize("due_in", [timedelta(seconds=10), timedelta(minutes=1)])
def test_runs_that_are_too_late_to_wait_share_the_work_all_the_same(tmp_path: Path, due_in: timedelta) -> None:
    """Past their latest safe start from the first moment on, each asks what the other does not, as long as there is."""
    box = Box.at(tmp_path, live={Tier.STANDARD: LiveLaw(base_s=5.0, sigma=0.3)})
    ask = {"prompts": documents(120), "due_in": due_in, "infeasible": "best_effort", **LIVE}
    both = two(box, ask, ask, after_s=2.0)
    assert [answered(box, process) for process in both] == [120, 120]
    # At the end each may ask what the other one has in flight.
    assert box.account.asked_more_than_once <= 16


def test_a_batch_that_another_run_harvests_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    """While one run looks after a copy the other settles the batch: the first goes on, and not at its switch time."""
    faults = Faults(only={"create_twice": (0,), "cancel_slow": (0,)}, cancel_slow_s=(1800.0, 1800.0))
    box = Box.at(tmp_path, batch=BatchLaw(median_s=400, sigma=0, stuck_share=0), faults=faults)
    ask = {"tiers": (Tier.BATCH, Tier.STANDARD), "due_in": 8 * HOUR}
    both = two(box, {"prompts": documents(6), **ask}, {"prompts": documents(6)[2:], **ask}, after_s=20.0)
    assert [answered(box, process) for process in both] == [6, 4]
    for process in both:
        assert process.done is not None
        assert process.done.finished_at < START + timedelta(minutes=8)


class Overtaken:
    """A ledger in which another run plans a batch over the same rows just before this one's tier is recorded."""

    def __init__(self, box: Box, keys: list[str], account: str) -> None:
        self._box = box
        self._keys = keys
        self._account = account
        self.overtook = False

    def __getattr__(self, name: str) -> Any:
        if name == "record_tier" and not self.overtook:
            self.overtook = True
            self._plan_theirs()
        return getattr(self._box.ledger, name)

    def _plan_theirs(self) -> None:
        ledger, now = self._box.ledger, self._box.clock.now()
        entry = Entry(
            id="run-2",
            flow_run_id="flow-2",
            step="summary",
            key_digest="theirs",
            requests=len(self._keys),
            rows=len(self._keys),
            provider="openai",
            account=self._account,
            deadline=None,
            entered_at=now,
        )
        run = ledger.enter(entry, stamp=self._box.clock.wall())
        lease = ledger.acquire("step:run-2", owner="two", now=now, until=now + LEASE)
        assert lease is not None
        ledger.plan_batch(
            self._keys,
            run=run,
            provider="openai",
            account=self._account,
            model="gpt-6-luna",
            endpoint=Endpoint.RESPONSES,
            lease=lease,
            at=now,
        )


def test_a_run_that_is_overtaken_between_look_and_packing_joins_the_other_batch(tmp_path: Path) -> None:
    """What another run planned since the rows were looked at is waited for, and not slept through to the switch."""
    box = Box.at(tmp_path, batch=QUICK)

    async def overtaken(process: Process) -> Process:
        ledger = Overtaken(box, process.job.spool.keys(process.job.spool.distinct), process.job.account)
        ports = replace(process.ports, ledger=cast("Ledger", ledger))
        done = await to_the_end(Process(process.job, ports, process.notes, Runner(process.job, ports)))
        assert ledger.overtook
        return done

    process = box.process("one", overtaken, prompts=documents(20), due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert (box.account.batches_created, box.account.asked_more_than_once) == (1, 0)
    assert box.clock.now() < START + HOUR
