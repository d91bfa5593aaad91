"""Sequences that a hostile provider, a hostile clock or a second process can play on a batch."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.ports import BatchLimits, Capabilities, Clock, Provider, ResultLine
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.caretaker import WITHDRAW_WITHIN, recover, withdraw
from prefect_llm_tiers.engine.runner import Runner
from prefect_llm_tiers.planning.packing import Over
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import (
    START,
    Box,
    Process,
    answered,
    documents,
    now_and_then,
    paid,
    to_the_end,
    unknown,
    until,
)
from tests.unit.engine.faults import Call, Reply, Watch, meddling

BOTH = pytest.mark.parametrize("dialect", list(Dialect))
CREATES = {"/v1/batches", "/v1/messages/batches"}
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
SLOW = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def creates(call: Call) -> bool:
    """Return whether a call sends a batch."""
    return call.method == "POST" and call.path in CREATES


def lists(call: Call) -> bool:
    """Return whether a call reads a page of the list of batches."""
    return call.method == "GET" and call.path in CREATES


def cancels(call: Call) -> bool:
    """Return whether a call asks for a batch to be stopped."""
    return call.method == "POST" and call.path.endswith("/cancel")


def reads_results(call: Call) -> bool:
    """Return whether a call reads the results of a batch."""
    return call.method == "GET" and call.path.endswith(("/content", "/results"))


def looks_at_one(call: Call) -> bool:
    """Return whether a call looks at one batch."""
    return call.method == "GET" and "batches/" in call.path and not reads_results(call)


def come_by(box: Box, dialect: Dialect = Dialect.OPENAI, *, after: timedelta = HOUR, times: int = 30) -> None:
    """Come by now and then until nobody has to look after anything."""
    for number in range(times):

        async def later(process: Process) -> None:
            await process.ports.clock.sleep_until(process.ports.clock.now() + after)
            await recover(process.ports, account=process.job.account)

        box.process(f"passer-by-{number}", later, dialect=dialect)
        if not box.ledger.live_batches():
            return
    raise AssertionError("Something is looked after for ever.")


def counted(app: Any, calls: Counter[str]) -> Any:
    """Return a provider that counts what is asked of it, by kind."""

    def judge(call: Call) -> None:
        kinds = {"create": creates, "list": lists, "cancel": cancels, "results": reads_results, "look": looks_at_one}
        calls.update(kind for kind, is_one in kinds.items() if is_one(call))

    return meddling(app, judge)


# What an ordinary batch costs in calls


@BOTH
def test_an_undisturbed_batch_costs_hardly_a_list(tmp_path: Path, dialect: Dialect) -> None:
    """One create, one harvest, a look each five minutes, and the list once or twice: a copy is told by nothing else."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=4 * 3600, sigma=0, stuck_share=0))
    calls = Counter[str]()
    box.served = counted(box.served, calls)
    process = box.carry_out(dialect=dialect, due_in=None, tiers=(Tier.BATCH,))
    assert answered(box, process) == 20
    assert calls["create"] == 1
    assert calls["cancel"] == 0
    assert calls["list"] == (2 if dialect is Dialect.OPENAI else 1)
    assert calls["results"] <= 2
    # The first half hour has some more.
    assert 4 * 12 < calls["look"] < 4 * 12 + 10


def test_a_list_that_stalls_is_not_waited_for_with_every_batch(tmp_path: Path) -> None:
    """Ended batches of a run are read one after another; a search that stalls costs its minute once."""
    box = Box.at(tmp_path, batch=SLOW)
    limits = BatchLimits(requests=2, bytes=10**6, window=24 * HOUR, cancel=timedelta(minutes=10), reports_progress=True)
    capabilities = Capabilities(tiers=frozenset(Tier), batch=limits)
    box.served = meddling(box.served, lambda call: Reply(0) if lists(call) else None)
    process = box.carry_out(capabilities=capabilities, due_in=None, tiers=(Tier.BATCH,), prompts=documents(24))
    assert answered(box, process) == 24
    assert process.done is not None
    assert process.done.finished_at < START + timedelta(minutes=68)


# Ends that are seen late


@BOTH
def test_results_that_answer_404_once_long_after_the_end_are_read_again(tmp_path: Path, dialect: Dialect) -> None:
    """Looked at hours after it ended, a batch's results are not given up for one 404: they were paid for."""
    box = Box.at(tmp_path, batch=QUICK)
    box.process("first", until(START + MINUTE), dialect=dialect, due_in=20 * HOUR)
    first = [True]
    box.served = meddling(
        box.served, lambda call: Reply(404, b"{}") if reads_results(call) and first and first.pop() else None
    )

    async def later(process: Process) -> Process:
        await process.ports.clock.sleep_until(START + 5 * HOUR)
        return await to_the_end(process)

    second = box.process("second", later, dialect=dialect, due_in=20 * HOUR)
    assert not first
    assert answered(box, second) == 20
    assert box.account.batches_created == 1
    assert box.account.billed_again == 0
    assert paid(box) == box.account.billed_usd


@BOTH
@pytest.mark.parametrize("status", [404, 502])
def test_a_look_that_fails_once_after_a_day_alone_gives_nothing_up(
    tmp_path: Path, dialect: Dialect, status: int
) -> None:
    """A machine that was off for longer than the window takes the results that wait, whatever its first look says."""
    box = Box.at(tmp_path, batch=QUICK)
    box.process("first", until(START + MINUTE), dialect=dialect, due_in=None, tiers=(Tier.BATCH,))
    first = [True]
    box.served = meddling(
        box.served, lambda call: Reply(status, b"{}") if looks_at_one(call) and first and first.pop() else None
    )

    async def later(process: Process) -> Process:
        await process.ports.clock.sleep_until(START + 30 * HOUR)
        return await to_the_end(process)

    second = box.process("second", later, dialect=dialect, due_in=None, tiers=(Tier.BATCH,))
    assert not first
    assert answered(box, second) == 20
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd


@BOTH
def test_a_batch_that_was_deleted_at_the_provider_may_be_on_the_invoice(tmp_path: Path, dialect: Dialect) -> None:
    """404 for an hour beyond its window: its rows are asked again, and each is listed, for it was confirmed once."""
    box = Box.at(tmp_path, batch=QUICK)
    job = {"dialect": dialect, "due_in": None, "tiers": (Tier.BATCH, Tier.STANDARD), "prompts": documents(3)}
    box.process("first", until(START + MINUTE), **job)
    [batch] = box.ledger.live_batches()
    deleted = batch.provider_batch_id or "?"
    box.served = meddling(box.served, lambda call: Reply(404, b"{}") if deleted in call.path else None)
    second = box.process("second", now_and_then, **job)
    assert answered(box, second) == 3
    come_by(box, dialect)
    assert box.ledger.batch(batch.id).state is BatchState.DISCARDED
    assert unknown(box) == 3 == box.account.billed_again


@BOTH
def test_what_no_list_ever_told_of_may_be_on_the_invoice(tmp_path: Path, dialect: Dialect) -> None:
    """Given up because the list cannot be read, and not because it is absent: its rows are listed."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_502_taken": (0,)}))
    box.served = meddling(box.served, lambda call: Reply(503) if lists(call) else None)
    process = box.carry_out(dialect=dialect, due_in=2 * HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    come_by(box, dialect, after=2 * HOUR)
    assert box.ledger.batch(1).state is BatchState.DISCARDED
    assert unknown(box) == 20 == box.account.billed_again


# Cancels


def withdrawn(box: Box, dialect: Dialect) -> tuple[list[Batch], list[str]]:
    """Cancel the run, as the face does."""

    async def work(process: Process) -> tuple[list[Batch], list[str]]:
        batches = await withdraw(process.ports, flow_run_id="flow-1", keep=False)
        return batches, process.notes.notices

    found: tuple[list[Batch], list[str]] = box.process("first", work, dialect=dialect)
    return found


@BOTH
@pytest.mark.parametrize("how", [Reply(502), Reply(0), Reply(404, b"{}")], ids=["502", "stalls", "404"])
def test_a_cancel_that_was_lost_is_asked_for_again_by_whoever_comes_by(
    tmp_path: Path, dialect: Dialect, how: Reply
) -> None:
    """A run is cancelled while the provider does not take cancels: the next look stops the batch, and harvests it."""
    never = BatchLaw(median_s=20 * 3600, sigma=0, stuck_share=0)
    box = Box.at(tmp_path, batch=never, cancel_s=(1.0, 2.0))
    box.process("first", until(START + MINUTE), dialect=dialect, due_in=None)
    box.served = meddling(box.served, lambda call: how if cancels(call) else None)
    began = box.clock.now()
    [batch], notices = withdrawn(box, dialect)
    assert box.clock.now() - began <= 2 * WITHDRAW_WITHIN
    assert batch.state is BatchState.CANCELLING
    assert any("could not be" in notice for notice in notices)
    assert box.account.batches_cancelled == 0
    box.served = box.simulation.app
    come_by(box, dialect, after=10 * MINUTE)
    assert box.account.batches_cancelled == 1
    assert box.clock.now() < START + HOUR
    assert paid(box) == box.account.billed_usd


@BOTH
def test_a_batch_that_only_finished_runs_waited_for_is_stopped(tmp_path: Path, dialect: Dialect) -> None:
    """Two runs wait for it, both get their rows elsewhere: the first one's end does not keep it running."""
    never = BatchLaw(median_s=20 * 3600, sigma=0, stuck_share=0)
    box = Box.at(tmp_path, batch=never, cancel_s=(1.0, 2.0))
    box.process("first", until(START + MINUTE), dialect=dialect, due_in=20 * HOUR)
    second = {"id": "run-2", "flow_run_id": "flow-2", "dialect": dialect}
    box.process("second", until(START + 2 * MINUTE), due_in=20 * HOUR, **second)
    assert box.ledger.waiting_for(1) == ["run-1", "run-2"]
    live = {"tiers": (Tier.STANDARD,), "due_in": timedelta(minutes=9), "infeasible": "best_effort"}
    box.carry_out("third", id="run-3", flow_run_id="flow-3", dialect=dialect, **live)
    box.carry_out("first", dialect=dialect, due_in=20 * HOUR)
    assert box.account.batches_cancelled == 0
    box.carry_out("second", due_in=20 * HOUR, **second)
    come_by(box, dialect, after=10 * MINUTE)
    assert box.account.batches_cancelled == 1
    assert paid(box, "run-1", "run-2", "run-3") == box.account.billed_usd


@BOTH
def test_a_batch_that_ended_unseen_and_trickles_does_not_cost_the_deadline(tmp_path: Path, dialect: Dialect) -> None:
    """The cancel at the switch time finds it ended, and its results never come to an end: the rows go live in time."""
    box = Box.at(tmp_path, batch=QUICK)
    cancelled: list[str] = []

    def judge(call: Call) -> Reply | None:
        if cancels(call):
            cancelled.append(call.path)
        if reads_results(call):
            return Reply(0)
        return Reply(502) if looks_at_one(call) and not cancelled else None

    box.served = meddling(box.served, judge)
    process = box.carry_out(dialect=dialect, due_in=HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert cancelled
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late


# Other people's batches


def somebody_else_sends(box: Box, folder: Path, dialect: Dialect, number: int, rows: int = 20) -> list[str]:
    """Send batches to the same account from another ledger; return their ids at the provider."""
    (folder / "others").mkdir()
    other = Box.at(folder / "others")

    async def begin(process: Process) -> None:
        process.runner.enter()
        await process.runner.advance()

    for one in range(number):
        prompts = [f"Theirs {one}, {prompt}" for prompt in documents(rows)]
        job = {"id": f"theirs-{one}", "flow_run_id": f"theirs-{one}"}
        box.process(f"theirs-{one}", begin, ledger=other.ledger, dialect=dialect, prompts=prompts, due_in=None, **job)
    return [batch.provider_batch_id or "?" for batch in other.ledger.live_batches()]


@pytest.mark.parametrize("what", [Reply(404, b"{}"), Reply(200, b"not a line at all\n"), Reply(200, b"")])
def test_results_of_others_that_cannot_be_read_hide_no_batch_of_ours(tmp_path: Path, what: Reply) -> None:
    """Candidates that tell nothing leave the rest to be judged: ours is found among them, and sent once."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_502_taken": (0,)}))
    box.process("ours", until(START + MINUTE), dialect=Dialect.ANTHROPIC, due_in=20 * HOUR)
    # Newer than ours, so that they come first in the list.
    theirs = somebody_else_sends(box, tmp_path, Dialect.ANTHROPIC, 3)

    def judge(call: Call) -> Reply | None:
        if cancels(call):
            raise AssertionError(call.path)
        return what if reads_results(call) and any(each in call.path for each in theirs) else None

    box.served = meddling(box.served, judge)

    async def when_all_have_ended(process: Process) -> Process:
        await process.ports.clock.sleep_until(START + 30 * MINUTE)
        return await to_the_end(process)

    process = box.process("ours", when_all_have_ended, dialect=Dialect.ANTHROPIC, due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_created == 4
    assert box.clock.now() < START + HOUR
    assert box.account.billed_again == 0


# Two processes, lost leases, wrong clocks


@BOTH
@pytest.mark.parametrize("call", [creates, looks_at_one, reads_results, cancels])
def test_a_lease_that_is_lost_in_the_middle_of_a_call_costs_nothing(
    tmp_path: Path, dialect: Dialect, call: Callable[[Call], bool]
) -> None:
    """Another process takes the batch over while a call of the first one is under way: one batch, one bill."""
    left = call is cancels
    law = BatchLaw(median_s=20 * 3600, sigma=0, stuck_share=0) if left else QUICK
    box = Box.at(tmp_path, batch=law, cancel_s=(1.0, 2.0))
    stolen = [True]

    def judge(seen: Call) -> None:
        if call(seen) and stolen and stolen.pop():
            held = box.ledger.lease("batch:1")
            assert held is not None
            box.ledger.release(held)
            now = box.clock.now()
            assert box.ledger.acquire("batch:1", owner="thief", now=now, until=now + MINUTE)

    box.served = meddling(box.served, judge)
    job = {"due_in": HOUR, "tiers": (Tier.BATCH, Tier.STANDARD)} if left else {"due_in": 20 * HOUR}
    process = box.carry_out(dialect=dialect, **job)
    assert not stolen
    assert answered(box, process) == 20
    come_by(box, dialect)
    assert box.account.batches_created == 1
    assert box.account.billed_again == 0
    assert paid(box) == box.account.billed_usd


@BOTH
@pytest.mark.parametrize("call", [looks_at_one, reads_results, cancels])
def test_a_clock_set_back_an_hour_in_any_state_pays_once(
    tmp_path: Path, dialect: Dialect, call: Callable[[Call], bool]
) -> None:
    """While it runs, while it is read, while it is stopped: an hour more at most, one batch, one bill."""
    left = call is cancels
    law = BatchLaw(median_s=20 * 3600, sigma=0, stuck_share=0) if left else QUICK
    box = Box.at(tmp_path, batch=law, cancel_s=(300.0, 300.0))
    watch = Watch(box.clock, HOUR)

    def judge(seen: Call) -> None:
        if call(seen):
            watch.ahead = timedelta(0)

    box.served = meddling(box.served, judge)
    job = {"due_in": 3 * HOUR, "tiers": (Tier.BATCH, Tier.STANDARD)} if left else {"due_in": 20 * HOUR}
    process = box.process("first", to_the_end, dialect=dialect, clock=watch, **job)
    assert watch.ahead == timedelta(0)
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert box.account.batches_created == 1
    assert box.account.billed_again == 0
    assert box.clock.now() < START + 3 * HOUR


@BOTH
def test_two_processes_at_a_batch_and_its_copies_take_turns(tmp_path: Path, dialect: Dialect) -> None:
    """The owner and two that come by each minute: every answer and every bill is in the ledger once."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_twice": (0,)}))

    async def busy(process: Process) -> None:
        for _ in range(40):
            await recover(process.ports, account=process.job.account)
            await process.ports.clock.sleep_until(process.ports.clock.now() + MINUTE)

    run = box.start("owner", to_the_end, dialect=dialect)
    process, *_ = box.together(run, *(box.start(f"by-{n}", busy, dialect=dialect) for n in range(2)))
    assert answered(box, process) == 20
    come_by(box, dialect)
    assert box.account.batches_created == 2
    assert paid(box) == box.account.billed_usd
    lines = box.ledger.spending("run-1")
    assert sum(line.billed for line in lines) == box.account.answered


@BOTH
def test_creates_that_land_late_twice_are_all_found_and_priced(tmp_path: Path, dialect: Dialect) -> None:
    """Two submissions are proven absent and land after all, the third is confirmed: two copies, one answer a row."""
    faults = Faults(only={"create_502_lands_late": (0, 1)}, create_late_s=(3000.0, 3000.0))
    box = Box.at(tmp_path, batch=QUICK, faults=faults)
    process = box.carry_out(dialect=dialect, due_in=20 * HOUR)
    assert answered(box, process) == 20
    for number in range(4):

        async def later(process: Process) -> None:
            await process.ports.clock.sleep_until(process.ports.clock.now() + 5 * HOUR)
            await recover(process.ports, account=process.job.account)

        box.process(f"passer-by-{number}", later, dialect=dialect)
    assert box.account.batches_created == 3
    assert box.ledger.live_batches() == []
    assert paid(box) == box.account.billed_usd
    assert sum(line.billed for line in box.ledger.spending("run-1")) == box.account.answered


# Lists


@BOTH
def test_a_list_that_misses_the_newest_for_nine_minutes_sends_nothing_twice(tmp_path: Path, dialect: Dialect) -> None:
    """Absent in the first lists, there before the proof: found, and not sent again."""
    box = Box.at(
        tmp_path,
        batch=SLOW,
        faults=Faults(list_lag=1.0, list_lag_s=(540.0, 540.0), only={"create_502_taken": (0,)}),
    )
    process = box.carry_out(dialect=dialect, due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd


@BOTH
def test_an_empty_page_that_says_more_follows_proves_nothing(tmp_path: Path, dialect: Dialect) -> None:
    """A list that breaks off so is no complete one: the batch is looked for until it shows."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_502_taken": (0,)}))
    empty = json.dumps({"object": "list", "data": [], "has_more": True}).encode()
    shown_at = START + HOUR
    box.served = meddling(
        box.served, lambda call: Reply(200, empty) if lists(call) and box.clock.now() < shown_at else None
    )
    process = box.carry_out(dialect=dialect, due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert box.account.billed_again == 0


# Harvests


class Trickling:
    """A provider whose results stop after some lines and never go on, before an instant."""

    def __init__(self, provider: Provider, clock: Clock, *, lines: int, before: datetime) -> None:
        self._provider, self._clock, self._lines, self._before = provider, clock, lines, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    async def results(self, *args: Any, **kwargs: Any) -> AsyncIterator[ResultLine]:
        left = self._lines
        async for line in self._provider.results(*args, **kwargs):
            if not left and self._clock.now() < self._before:
                await asyncio.Event().wait()
            left -= 1
            yield line


@BOTH
def test_a_harvest_that_was_cut_keeps_what_it_read(tmp_path: Path, dialect: Dialect) -> None:
    """Half the lines came before the rows were needed: only the other half goes live, and all is priced."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=1500, sigma=0, stuck_share=0))

    async def work(process: Process) -> Process:
        ports = process.ports
        slow = cast("Provider", Trickling(ports.provider, ports.clock, lines=10, before=START + 2 * HOUR))
        ports = replace(ports, provider=slow)
        return await to_the_end(replace(process, ports=ports, runner=Runner(process.job, ports)))

    process = box.process("first", work, dialect=dialect, due_in=HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert box.account.billed_again == 10
    come_by(box, dialect)
    assert paid(box) == box.account.billed_usd
    superseded = sum(line.attempts for line in box.ledger.spending("run-1") if line.outcome == "superseded")
    assert superseded == 10


@BOTH
def test_a_long_harvest_of_a_batch_that_was_left_comes_to_its_end(tmp_path: Path, dialect: Dialect) -> None:
    """Results that take minutes are read to the end by a later run that waits for a batch of its own."""
    box = Box.at(tmp_path, batch=SLOW)
    box.process("first", until(START + MINUTE), dialect=dialect, due_in=None)

    class Slow(Trickling):
        async def results(self, *args: Any, **kwargs: Any) -> AsyncIterator[ResultLine]:
            async for line in self._provider.results(*args, **kwargs):
                await self._clock.sleep_until(self._clock.now() + timedelta(seconds=10))
                yield line

    async def work(process: Process) -> Process:
        ports = process.ports
        slow = cast("Provider", Slow(ports.provider, ports.clock, lines=0, before=START))
        ports = replace(ports, provider=slow)
        await ports.clock.sleep_until(START + 50 * MINUTE)
        return await to_the_end(replace(process, ports=ports, runner=Runner(process.job, ports)))

    other = {"id": "run-2", "flow_run_id": "flow-2", "prompts": ["Another one."]}
    box.process("second", work, dialect=dialect, due_in=9 * HOUR, tiers=(Tier.BATCH, Tier.STANDARD), **other)
    assert box.ledger.batch(1).state is BatchState.SETTLED
    assert paid(box, "run-1", "run-2") == box.account.billed_usd


# Room


@pytest.mark.parametrize("told", [None, 1])
def test_a_step_that_may_only_batch_ends_at_a_ceiling_that_lets_nothing_in(tmp_path: Path, told: int | None) -> None:
    """No request ever fits: each fails with the reason, nothing is paid, and nothing goes round."""
    box = Box.at(tmp_path, enqueued_tokens=1)
    calls = Counter[str]()
    box.served = counted(box.served, calls)
    process = box.carry_out(due_in=None, tiers=(Tier.BATCH,), enqueued_tokens=told, prompts=documents(4), max_failed=4)
    assert process.done is not None
    assert process.done.reasons == {Over.TOKENS: 4}
    assert box.account.billed_usd == 0
    assert calls["create"] == (0 if told else 3)
    assert box.clock.now() < START + HOUR


def test_a_step_that_may_only_batch_goes_through_a_narrow_ceiling_one_by_one(tmp_path: Path) -> None:
    """Room for one request: the bound is learned from two refusals, and every row is answered in its turn."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=10)
    calls = Counter[str]()
    box.served = counted(box.served, calls)
    process = box.carry_out(due_in=None, tiers=(Tier.BATCH,), prompts=documents(4))
    assert answered(box, process) == 4
    assert calls["create"] == 2 + 4
    assert box.clock.now() < START + 2 * HOUR


# What a user reads


@BOTH
def test_a_run_that_joins_a_batch_says_why_it_waits(tmp_path: Path, dialect: Dialect) -> None:
    """The tier that a run begins in has a reason, also where another run has sent everything."""
    box = Box.at(tmp_path, batch=QUICK)
    box.process("first", until(START + MINUTE), dialect=dialect)
    box.carry_out("second", dialect=dialect, id="run-2", flow_run_id="flow-2")
    for run in ("run-1", "run-2"):
        tiers = [event for event in box.ledger.events("step_run", run) if event.after == "batch"]
        assert tiers
        assert all(event.detail for event in tiers)
    assert list(itertools.chain(box.ledger.live_batches())) == []
