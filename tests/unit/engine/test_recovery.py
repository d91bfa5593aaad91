"""What nobody confirmed is looked for; nothing is sent twice, and every end settles."""

import asyncio
import itertools
import json
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.caretaker import recover
from prefect_llm_tiers.engine.heartbeat import LEASE, Heartbeat
from prefect_llm_tiers.engine.recovery import PROOF_AFTER
from prefect_llm_tiers.engine.submission import CREATE_TIMEOUT, create_timeout
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import START, Box, Process, answered, documents, paid, to_the_end, unknown, until
from tests.unit.engine.faults import Call, Died, Mortal, Reply, Watch, meddling

BOTH = pytest.mark.parametrize("dialect", list(Dialect))
CREATES = {"/v1/batches", "/v1/messages/batches"}
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
SLOW = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
HOUR = timedelta(hours=1)


def creates(call: Call) -> bool:
    """Return whether a call sends a batch."""
    return call.method == "POST" and call.path in CREATES


def lists(call: Call) -> bool:
    """Return whether a call reads a page of the list of batches."""
    return call.method == "GET" and call.path in CREATES


def reads_results(call: Call) -> bool:
    """Return whether a call reads the results of a batch."""
    return call.method == "GET" and call.path.endswith(("/content", "/results"))


def settle_all(box: Box, dialect: Dialect) -> None:
    """Come by now and then until nobody has to look after anything."""
    for number in range(30):

        async def later(process: Process) -> None:
            await process.ports.clock.sleep_until(process.ports.clock.now() + HOUR)
            await recover(process.ports, account=process.job.account)

        box.process(f"passer-by-{number}", later, dialect=dialect)
        if not box.ledger.live_batches():
            return
    raise AssertionError("Something is looked after for ever.")


def somebody_else_sends_a_batch(box: Box, folder: Path, dialect: Dialect, rows: int = 20) -> None:
    """Send a batch to the same account from another ledger."""
    (folder / "others").mkdir()
    other = Box.at(folder / "others")

    async def begin(process: Process) -> None:
        process.runner.enter()
        await process.runner.advance()

    box.process("theirs", begin, ledger=other.ledger, dialect=dialect, prompts=documents(rows))


# The file


def dies_at(box: Box, name: str) -> None:
    """Play a process that dies right after a kind of write."""

    class DiesAt(Mortal):
        BOUNDARIES = frozenset({name})

    with pytest.raises(Died):
        box.process("first", to_the_end, ledger=DiesAt(box.ledger, at=0, after=True))


def test_a_file_on_record_is_sent_and_not_uploaded_again(tmp_path: Path) -> None:
    """A process that died between the file's id and the intent leaves a file that the next one uses."""
    box = Box.at(tmp_path, batch=QUICK)
    dies_at(box, "note_batch")
    [batch] = box.ledger.live_batches()
    assert batch.state is BatchState.PLANNED
    assert batch.input_file_id is not None
    assert answered(box, box.carry_out("second")) == 20
    assert (box.account.files_uploaded, box.account.batches_created) == (1, 1)
    assert box.ledger.batch(batch.id).submission == 1


def test_a_file_on_record_that_is_gone_is_uploaded_anew(tmp_path: Path) -> None:
    """The provider refuses a batch of a file that it does not know: it took nothing, so a new file is sent, once."""
    box = Box.at(tmp_path, batch=QUICK)
    dies_at(box, "note_batch")
    [batch] = box.ledger.live_batches()
    body = json.dumps({"error": {"message": f"No such File object: {batch.input_file_id}", "param": "input_file_id"}})
    gone = (batch.input_file_id or "").encode()
    box.served = meddling(
        box.served, lambda call: Reply(400, body.encode()) if creates(call) and gone in call.body else None
    )
    assert answered(box, box.carry_out("second")) == 20
    assert (box.account.files_uploaded, box.account.batches_created) == (2, 1)
    assert box.ledger.batch(batch.id).submission == 2
    assert paid(box) == box.account.billed_usd


def test_a_host_that_drops_metadata_is_searched_by_the_file(tmp_path: Path) -> None:
    """Without a token in the list, the file that a batch was made from tells that it is ours."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_502_taken": (0,)}))

    def bare(body: bytes) -> bytes:
        listed = json.loads(body)
        for each in listed["data"]:
            each["metadata"] = None
        return json.dumps(listed).encode()

    box.served = meddling(box.served, lambda call: Reply(change=bare) if lists(call) else None)
    process = box.carry_out()
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd


# Verdicts


@BOTH
def test_all_that_is_found_is_taken(tmp_path: Path, dialect: Dialect) -> None:
    """A lost reply hides two batches: one is the batch, the other its copy, and both are on the bill."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_twice": (0,)}))
    lost = [True]
    box.served = meddling(
        box.served, lambda call: Reply(502, does_it=True) if creates(call) and lost and lost.pop() else None
    )
    process = box.carry_out(dialect=dialect, due_in=20 * HOUR)
    assert answered(box, process) == 20
    settle_all(box, dialect)
    [batch] = box.ledger.batches_of("run-1", left=True)
    copy = box.ledger.batch(batch.id + 1)
    assert batch.doubtful
    assert (copy.copy_of, copy.state) == (batch.id, BatchState.SETTLED)
    assert box.account.batches_created == 2
    assert paid(box) == box.account.billed_usd


@pytest.mark.parametrize(
    ("create", "fault"), [("create_502_untaken", "list_endless"), ("create_502_taken", "list_503")]
)
@BOTH
def test_a_list_that_tells_nothing_leads_to_no_second_batch(
    tmp_path: Path, dialect: Dialect, create: str, fault: str
) -> None:
    """While the list never ends, or fails, nothing is sent in a batch's place; at the switch time the rows go live."""
    faults = Faults(**{"only": {create: (1,)}, fault: 1.0})  # type: ignore[arg-type]
    box = Box.at(tmp_path, batch=SLOW, faults=faults)
    somebody_else_sends_a_batch(box, tmp_path, dialect, rows=7)
    process = box.carry_out(dialect=dialect, due_in=3 * HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert box.account.batches_created == 1 + (create == "create_502_taken")
    [batch] = box.ledger.batches_of("run-1", left=True)
    assert batch.state is BatchState.SUBMITTING
    assert batch.doubtful


@BOTH
def test_a_list_that_stalls_is_cut_by_time(tmp_path: Path, dialect: Dialect) -> None:
    """A page that never comes costs a minute, and not the deadline."""
    box = Box.at(tmp_path, batch=SLOW, faults=Faults(only={"create_502_taken": (0,)}))
    box.served = meddling(box.served, lambda call: Reply(0) if lists(call) else None)

    async def once(process: Process) -> timedelta:
        process.runner.enter()
        await process.runner.advance()
        clock = process.ports.clock
        await clock.sleep_until(clock.now() + timedelta(minutes=5))
        began = clock.now()
        await recover(process.ports, account=process.job.account)
        return clock.now() - began

    assert box.process("first", once, dialect=dialect) <= timedelta(seconds=61)
    process = box.carry_out("second", dialect=dialect, due_in=3 * HOUR)
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert box.account.batches_created == 1


def test_a_candidate_that_runs_is_no_proof(tmp_path: Path) -> None:
    """Without metadata a batch of as many requests may be ours until it has ended: nothing is sent before."""
    box = Box.at(tmp_path, batch=SLOW)
    somebody_else_sends_a_batch(box, tmp_path, Dialect.ANTHROPIC)
    lost = [True]
    box.served = meddling(box.served, lambda call: Reply(502) if creates(call) and lost and lost.pop() else None)
    process = box.carry_out("ours", dialect=Dialect.ANTHROPIC, due_in=20 * HOUR)
    assert answered(box, process) == 20
    [batch] = box.ledger.batches_of("run-1", left=True)
    assert batch.submission == 2
    # Theirs took an hour, and only then ours was proven absent.
    assert batch.submitted_at is not None
    assert batch.submitted_at >= START + HOUR
    assert box.account.batches_created == 2


@BOTH
def test_what_was_never_found_resolves_an_hour_after_its_window(tmp_path: Path, dialect: Dialect) -> None:
    """A list that comes back after more than a day shows what the batch did: it is harvested, not asked again."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={"create_502_taken": (0,)}))
    box.served = meddling(
        box.served, lambda call: Reply(503) if lists(call) and box.clock.now() < START + 26 * HOUR else None
    )
    box.process("first", until(START + 2 * HOUR), dialect=dialect, due_in=None, tiers=(Tier.BATCH,))
    settle_all(box, dialect)
    [batch] = box.ledger.batches_of("run-1", left=True)
    assert batch.state is BatchState.SETTLED
    assert batch.counts.completed == 20
    assert paid(box) == box.account.billed_usd
    second = box.carry_out("second", dialect=dialect, due_in=None, tiers=(Tier.BATCH,))
    assert answered(box, second) == 20
    assert box.account.batches_created == 1


@BOTH
@pytest.mark.parametrize("when", [timedelta(seconds=1), timedelta(minutes=1), timedelta(minutes=5)])
@pytest.mark.parametrize("taken", [True, False])
def test_a_clock_that_is_set_back_an_hour_sends_nothing_twice(
    tmp_path: Path, dialect: Dialect, when: timedelta, taken: bool
) -> None:
    """Set back while a batch is searched for, or while it runs: one batch, and an end within the hour that was lost."""
    box = Box.at(tmp_path, batch=QUICK)
    lost = [True]
    box.served = meddling(
        box.served, lambda call: Reply(502, does_it=taken) if creates(call) and lost and lost.pop() else None
    )
    watch = Watch(box.clock, HOUR)

    async def work(process: Process) -> Process:
        async def set_back() -> None:
            await box.clock.sleep_until(START + when)
            watch.ahead = timedelta(0)

        hand = asyncio.create_task(set_back())
        finished = await to_the_end(process)
        await hand
        return finished

    process = box.process("first", work, dialect=dialect, clock=watch, due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert box.account.billed_again == 0
    assert box.clock.now() < START + timedelta(hours=2)


# Time


def test_a_create_that_carries_its_requests_is_given_time_for_them() -> None:
    """256 MB over a slow link take minutes: a create that is cut may have been taken all the same."""
    assert create_timeout(0) == CREATE_TIMEOUT
    assert create_timeout(256_000_000) >= timedelta(minutes=6)
    assert CREATE_TIMEOUT + timedelta(minutes=10) <= PROOF_AFTER


def test_a_lease_outlasts_the_call_that_it_was_renewed_for(tmp_path: Path) -> None:
    """No beat shortens what was promised: whoever takes over finds no call under way."""
    box = Box.at(tmp_path)

    async def work(process: Process) -> None:
        clock, ledger = process.ports.clock, process.ports.ledger
        lease = ledger.acquire("batch:1", owner="first", now=clock.now(), until=clock.now() + LEASE)
        assert lease is not None
        async with Heartbeat(process.ports, lease) as heartbeat:
            began = clock.now()
            heartbeat.outlast(timedelta(minutes=8))
            for minutes in (0, 2, 4):
                await clock.sleep_until(began + timedelta(minutes=minutes))
                held = ledger.lease("batch:1")
                assert held is not None
                assert held.until >= max(began + timedelta(minutes=8), clock.now() + LEASE * 0.5)

    box.process("first", work)


@BOTH
def test_results_that_trickle_do_not_cost_the_deadline(tmp_path: Path, dialect: Dialect) -> None:
    """A harvest that is not over at the switch time is cut; the rows go live, and the rest is read later."""
    box = Box.at(tmp_path, batch=SLOW)
    box.served = meddling(box.served, lambda call: Reply(0) if reads_results(call) else None)
    process = box.carry_out(dialect=dialect, due_in=timedelta(minutes=75), tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    box.served = box.simulation.app
    settle_all(box, dialect)
    assert paid(box) == box.account.billed_usd


# Ends

ENDS = [
    Faults(only={"validation_fails": (0,)}),
    Faults(only={"token_limit": (0,)}),
    Faults(only={"batch_expires": (0,)}),
    Faults(only={"no_output": (0,)}),
    Faults(only={"long_finalizing": (0,)}),
    Faults(only={"output_late": (0,)}, output_late_s=(500.0, 500.0)),
    Faults(only={"batch_404": (0,)}),
    Faults(only={"line_cut": (0, 1, 2)}),
    Faults(only={"line_missing": (0,), "line_twice": (3,), "line_conflict": (4,), "line_status_0": (5,)}),
]


@pytest.mark.parametrize("faults", ENDS, ids=lambda faults: "+".join(faults.only))
@BOTH
def test_every_end_settles_and_the_ledger_has_the_bill(tmp_path: Path, dialect: Dialect, faults: Faults) -> None:
    """However a batch ends, every row is answered, nothing that came back is lost, and nobody waits for ever."""
    box = Box.at(tmp_path, batch=QUICK, faults=faults, window_s=3 * 3600.0)
    process = box.carry_out(dialect=dialect, due_in=40 * HOUR)
    assert answered(box, process) == 20
    settle_all(box, dialect)
    # What was billed and never came back is all that may be missing, and is listed or was never seen.
    assert paid(box) <= box.account.billed_usd
    assert box.account.billed_again <= len(list(itertools.chain(*faults.only.values())))


@pytest.mark.parametrize("fault", ["line_missing", "line_no_json", "line_status_0", "line_cut"])
@BOTH
def test_a_row_whose_line_is_lost_is_listed_as_perhaps_billed(tmp_path: Path, dialect: Dialect, fault: str) -> None:
    """The counts say that it was done: it is asked again, and what it may have cost is in the ledger."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(only={fault: (2,)}))
    process = box.carry_out(dialect=dialect, due_in=6 * HOUR)
    assert answered(box, process) == 20
    assert box.account.faults[fault] == 1
    assert box.account.billed_again == unknown(box) == 1
    assert paid(box) <= box.account.billed_usd


def test_results_that_are_never_named_release_their_rows(tmp_path: Path) -> None:
    """`completed` for ever without an output file: after some minutes the rows are asked again."""
    box = Box.at(tmp_path, batch=QUICK)

    def nameless(body: bytes) -> bytes:
        told = json.loads(body)
        told["output_file_id"] = None
        return json.dumps(told).encode()

    first = [""]

    def judge(call: Call) -> Reply | None:
        looked_at = call.path.startswith("/v1/batches/") and call.method == "GET"
        if looked_at and first[0] in ("", call.path):
            first[0] = call.path
            return Reply(change=nameless)
        return None

    box.served = meddling(box.served, judge)
    process = box.carry_out(due_in=None, tiers=(Tier.BATCH,))
    assert answered(box, process) == 20
    assert box.clock.now() < START + 2 * HOUR


@BOTH
def test_a_batch_of_failures_keeps_no_answers(tmp_path: Path, dialect: Dialect) -> None:
    """Whoever watches is told how many answers were kept, and how many requests failed."""
    box = Box.at(tmp_path, batch=QUICK, faults=Faults(row_invalid=1.0))
    process = box.carry_out(dialect=dialect, due_in=None, tiers=(Tier.BATCH,), max_failed=20)
    assert process.done is not None
    assert process.done.failed == 20
    assert process.notes.harvests == [(1, 0, 0)]
    assert any(notice.startswith("20 requests of batch 1 failed") for notice in process.notes.notices)


def superseded(box: Box) -> int:
    """Return how many answers came for rows that had one."""
    return sum(line.attempts for line in box.ledger.spending("run-1") if line.outcome == "superseded")


@BOTH
def test_what_a_slow_cancel_brings_after_its_rows_went_live_is_superseded_and_priced(
    tmp_path: Path, dialect: Dialect
) -> None:
    """Past the last instant to wait, every unanswered row goes live; what the batch did meanwhile is on the bill."""
    faults = Faults(only={"cancel_slow": (0,)}, cancel_slow_s=(3600.0, 3600.0))
    box = Box.at(tmp_path, batch=BatchLaw(median_s=4000, sigma=0, stuck_share=0), faults=faults)
    process = box.carry_out(dialect=dialect, due_in=HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    settle_all(box, dialect)
    assert superseded(box) == box.account.billed_again > 0
    assert paid(box) == box.account.billed_usd


def test_an_overdue_batch_releases_its_rows_and_its_late_answers_count(tmp_path: Path) -> None:
    """Still out an hour after its window it is asked elsewhere, watched on, and read when it ends."""
    day_and_more = 26 * 3600.0
    faults = Faults(only={"long_finalizing": (0,)}, long_finalizing_s=(day_and_more, day_and_more))
    box = Box.at(tmp_path, batch=QUICK, faults=faults)
    process = box.carry_out(due_in=None, tiers=(Tier.BATCH,))
    assert answered(box, process) == 20
    settle_all(box, Dialect.OPENAI)
    states = [event.after for event in box.ledger.events("batch", "1")]
    assert states[-3:] == ["overdue", "completed", "settled"]
    assert superseded(box) == box.account.billed_again == 20
    assert paid(box) == box.account.billed_usd


# Other rows


@pytest.mark.parametrize("same_run", [True, False])
def test_a_step_whose_code_changed_harvests_the_old_batch_and_asks_what_changed(tmp_path: Path, same_run: bool) -> None:
    """Only rows whose request really changed are asked anew; what the old batch answers is paid for and counts."""
    box = Box.at(tmp_path, batch=SLOW)
    before = documents(20)
    after = [f"{prompt} Be brief." if number < 5 else prompt for number, prompt in enumerate(before)]
    box.process("first", until(START + timedelta(minutes=10)), prompts=before, due_in=20 * HOUR)
    again = {"on_input_change": "ask"} if same_run else {"id": "run-2", "flow_run_id": "flow-2"}
    second = box.carry_out("second", prompts=after, due_in=20 * HOUR, **again)
    assert answered(box, second) == 20
    assert box.account.billed_again == 0
    assert box.account.asked == 25
    settle_all(box, Dialect.OPENAI)
    assert paid(box, "run-1", "run-2") == box.account.billed_usd
    if not same_run:
        waits = [notice for notice in second.notes.notices if notice.startswith("Waiting for batch 1 of another run")]
        assert waits == ["Waiting for batch 1 of another run, which carries 15 of the requests."]


def test_a_file_of_an_earlier_submission_is_not_taken_for_the_current_one(tmp_path: Path) -> None:
    """A slow upload that ends after its submission was given up leaves no file behind that would be sent."""
    box = Box.at(tmp_path, batch=QUICK)
    stale: list[Batch] = []

    async def work(process: Process) -> Process:
        process.runner.enter()
        await process.runner.advance()
        stale.extend(box.ledger.live_batches())
        return process

    refused = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if creates(call) and not refused["create"]:
            refused["create"] += 1
            return Reply(429, b"{}", headers={"retry-after": "60"})
        return None

    box.served = meddling(box.served, judge)
    box.process("first", work)
    [batch] = stale
    assert (batch.state, batch.submission, batch.input_file_id) == (BatchState.PLANNED, 2, None)
    before = batch.__class__(**{**{name: getattr(batch, name) for name in batch.__struct_fields__}, "token": "old"})
    assert box.ledger.note_batch(before, input_file_id="file-of-submission-1").input_file_id is None
    assert answered(box, box.carry_out("second")) == 20
