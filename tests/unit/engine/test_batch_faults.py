"""Batches at a provider that fails in every way: nothing is paid twice, lost, or waited for without end."""

import itertools
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_llm_tiers.core.batches import BatchState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import CredentialsRejected, DeadlineMissed, QuotaExhausted, RequestRejected
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import (
    MODELS,
    START,
    Box,
    Process,
    answered,
    documents,
    now_and_then,
    paid,
    to_the_end,
    until,
)
from tests.unit.engine.faults import Call, Reply, Watch, losing_replies, meddling, refusing

BOTH = pytest.mark.parametrize("dialect", list(Dialect))
CREATES = {"/v1/batches", "/v1/messages/batches"}
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
SLOW = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
HOUR = timedelta(hours=1)


def creates(call: Call) -> bool:
    """Return whether a call sends a batch."""
    return call.method == "POST" and call.path in CREATES


def reads_results(call: Call) -> bool:
    """Return whether a call reads the results of a batch."""
    return call.method == "GET" and call.path.endswith(("/content", "/results"))


@BOTH
@pytest.mark.parametrize("status", [500, 503, 504, 529, 409])
def test_a_refusal_that_may_hide_a_batch_is_looked_into_first(tmp_path: Path, dialect: Dialect, status: int) -> None:
    """A gateway that answers 5xx after the commit, a bare 503 among them, leads to no second submission."""
    box = Box.at(tmp_path, batch=QUICK)
    left = [True]
    box.served = meddling(
        box.served, lambda call: Reply(status, does_it=True) if creates(call) and left and left.pop() else None
    )
    process = box.carry_out(dialect=dialect)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd


@BOTH
def test_a_rate_limited_create_goes_out_again_once_its_time_has_come(tmp_path: Path, dialect: Dialect) -> None:
    """A 429 at the door took nothing: the same rows go out when the provider said, and not before."""
    box = Box.at(tmp_path, batch=QUICK)
    tries: list[float] = []

    def judge(call: Call) -> Reply | None:
        if not creates(call):
            return None
        tries.append((box.clock.now() - START).total_seconds())
        return Reply(429, b"{}", headers={"retry-after": "600"}) if len(tries) < 4 else None

    box.served = meddling(box.served, judge)
    process = box.carry_out(dialect=dialect)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert all(after - before >= 600 for before, after in itertools.pairwise(tries))


def test_an_upload_that_fails_for_hours_is_tried_now_and_then_and_the_deadline_kept(tmp_path: Path) -> None:
    """While no file can be uploaded nothing spins, and at the switch time the rows go live."""
    box = Box.at(tmp_path)
    uploads = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if call.path != "/v1/files":
            return None
        uploads["all"] += 1
        return Reply(502)

    box.served = meddling(box.served, judge)
    process = box.carry_out(due_in=4 * HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert 10 < uploads["all"] <= 4 * 30
    assert box.account.batches_created == 0


def test_an_upload_that_never_ends_does_not_outlast_the_switch_time(tmp_path: Path) -> None:
    """A stalled upload is dropped when its rows are needed elsewhere; it costs nothing."""
    box = Box.at(tmp_path)
    box.served = meddling(box.served, lambda call: Reply(0) if call.path == "/v1/files" else None)
    process = box.carry_out(due_in=HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "invalid_value", RequestRejected),
        (413, None, RequestRejected),
        (429, "insufficient_quota", QuotaExhausted),
        (401, "invalid_api_key", CredentialsRejected),
    ],
)
def test_a_batch_that_is_refused_for_good_ends_the_step_at_once(
    tmp_path: Path, path: str, status: int, code: str | None, error: type[Exception]
) -> None:
    """No loop, an error that names the cause, and rows that the next run may send at once."""
    box = Box.at(tmp_path)
    body = b'{"error": {"code": "%s", "message": "no"}}' % (code or "").encode()
    box.served = meddling(
        box.served, lambda call: Reply(status, body) if (call.method, call.path) == ("POST", path) else None
    )
    with pytest.raises(error) as raised:
        box.carry_out(due_in=None)
    assert code is None or error is CredentialsRejected or code in str(raised.value)
    assert box.clock.now() == START
    box.served = box.simulation.app
    assert answered(box, box.carry_out("second", due_in=None)) == 20
    assert box.account.batches_created == 1
    assert box.clock.now() < START + 26 * HOUR


def test_batches_over_the_token_ceiling_are_given_up_for_a_live_tier(tmp_path: Path) -> None:
    """A batch that finds no room is followed by smaller ones, and by a live tier; only those that ran teach a law."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=10)
    process = box.carry_out(due_in=None, tiers=(Tier.BATCH, Tier.STANDARD), prompts=documents(8))
    assert answered(box, process) == 8
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd
    ran = [batch for batch in box.ledger.batches_of("run-1", left=True) if batch.counts.completed]
    seen = box.ledger.observed_batches(
        provider="openai", model=MODELS[Dialect.OPENAI], account=ran[0].account, now=box.clock.now()
    )
    assert len(seen) == len(ran)


@BOTH
def test_rows_that_fail_in_every_batch_do_not_go_round_for_ever(tmp_path: Path, dialect: Dialect) -> None:
    """Without a deadline and without another tier batches of nothing but errors end in an error."""
    box = Box.at(tmp_path, batch=QUICK, batch_row_error_rate=1.0)
    with pytest.raises(RequestRejected, match="nothing came of its batches"):
        box.carry_out(dialect=dialect, due_in=None, tiers=(Tier.BATCH,))
    assert box.account.batches_created <= 4
    assert box.account.billed_usd == 0


@BOTH
def test_an_expired_batch_keeps_what_it_finished(tmp_path: Path, dialect: Dialect) -> None:
    """At the end of the window part of the rows is done and paid: it counts, and only the rest is asked again."""
    box = Box.at(tmp_path, stuck_batches=(f"{dialect}:0",), window_s=2 * 3600.0, seed=5)
    process = box.carry_out(dialect=dialect, due_in=None)
    assert answered(box, process) == 20
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


@BOTH
def test_results_that_come_cut_short_are_read_again_before_anything_is_asked_again(
    tmp_path: Path, dialect: Dialect
) -> None:
    """Lines that the counts promise and the file lacks were paid for: the file is read again for some minutes."""
    box = Box.at(tmp_path, batch=QUICK)
    cuts = [1, 2, 3]

    def judge(call: Call) -> Reply | None:
        if not reads_results(call) or not cuts:
            return None
        cuts.pop()
        return Reply(change=lambda body: body[: len(body) // 3])

    box.served = meddling(box.served, judge)
    process = box.carry_out(dialect=dialect)
    assert not cuts
    assert answered(box, process) == 20
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


@BOTH
def test_lines_that_stay_away_are_asked_again(tmp_path: Path, dialect: Dialect) -> None:
    """A file that never holds what the counts promise is not waited for without end."""
    box = Box.at(tmp_path, batch=QUICK)
    box.served = meddling(
        box.served,
        lambda call: (
            Reply(change=lambda body: body[: len(body) // 3])
            if reads_results(call) and box.account.batches_created == 1
            else None
        ),
    )
    process = box.carry_out(dialect=dialect, due_in=6 * HOUR)
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late


@BOTH
def test_doubled_foreign_and_broken_lines_change_nothing(tmp_path: Path, dialect: Dialect) -> None:
    """Whatever else a result file holds, every row has one outcome and is paid for once."""
    box = Box.at(tmp_path, batch=QUICK)

    def mangle(body: bytes) -> bytes:
        lines = body.splitlines(keepends=True)
        foreign = [line.replace(b'"custom_id":"', b'"custom_id":"x') for line in lines[:3]]
        rubbish = [b"{\n", b"[]\n", b"null\n", b"\xff\xfe\n", b'{"custom_id": 7}\n', b"\r\n"]
        return b"\xef\xbb\xbf" + b"".join([*rubbish, *lines, *lines, *foreign, *lines[::-1]])

    box.served = meddling(box.served, lambda call: Reply(change=mangle) if reads_results(call) else None)
    process = box.carry_out(dialect=dialect)
    assert answered(box, process) == 20
    assert paid(box) == box.account.billed_usd
    assert box.account.asked_more_than_once == 0


@BOTH
def test_results_that_are_gone_release_the_rows(tmp_path: Path, dialect: Dialect) -> None:
    """Results that the provider no longer knows are given up after an hour, and not asked for each second."""
    box = Box.at(tmp_path, batch=QUICK)
    reads = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if not reads_results(call):
            return None
        reads["all"] += 1
        return Reply(404, b"{}") if box.account.batches_created == 1 else None

    box.served = meddling(box.served, judge)
    process = box.carry_out(dialect=dialect, due_in=None)
    assert answered(box, process) == 20
    assert 5 < reads["all"] < 40
    assert any("no longer at the provider" in notice for notice in process.notes.notices)


@BOTH
def test_a_batch_that_the_provider_does_not_know_releases_its_rows_in_time(tmp_path: Path, dialect: Dialect) -> None:
    """404 for ever after the create: the rows go live at the switch time."""
    box = Box.at(tmp_path, batch=QUICK)
    prefix = tuple(f"{path}/" for path in CREATES)
    box.served = meddling(box.served, lambda call: Reply(404, b"{}") if call.path.startswith(prefix) else None)
    process = box.carry_out(dialect=dialect)
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late


def test_batches_that_get_lost_one_after_another_are_no_longer_sent(tmp_path: Path) -> None:
    """Without a deadline a provider that loses every batch is paid for three of them at most."""
    box = Box.at(tmp_path, batch=QUICK)
    box.served = meddling(box.served, lambda call: Reply(404, b"{}") if call.path.startswith("/v1/batches/") else None)
    job = {"due_in": None, "tiers": (Tier.BATCH, Tier.STANDARD), "prompts": documents(2)}
    process = box.process("first", now_and_then, **job)
    assert answered(box, process) == 2
    assert box.account.batches_created == 3


def test_a_provider_that_is_down_for_hours_is_waited_for(tmp_path: Path) -> None:
    """502 on every call for three hours while a batch is out: it is harvested after, and nothing is sent again."""
    box = Box.at(tmp_path, batch=SLOW)
    down = (START + timedelta(minutes=10), START + timedelta(hours=3))
    box.served = meddling(box.served, lambda call: Reply(502) if down[0] <= box.clock.now() < down[1] else None)
    process = box.carry_out(due_in=12 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd


def test_a_submission_that_was_left_unknown_is_found_by_whoever_comes_by(tmp_path: Path) -> None:
    """A batch left while nobody knew of it is harvested by a later run, its superseded answers priced."""
    box = Box.at(tmp_path, batch=QUICK)
    lost = losing_replies(box.served, path="/v1/batches", method="POST", times=1)
    box.served = refusing(lost, path="/v1/batches", method="GET", times=10_000)
    process = box.carry_out()
    assert answered(box, process) == 20
    box.served = box.simulation.app

    async def later(process: Process) -> Process:
        await box.clock.sleep_until(box.clock.now() + HOUR)
        return await to_the_end(process)

    for owner, run in (("second", "run-2"), ("third", "run-3")):
        box.process(owner, later, id=run, prompts=[f"Something else for {run}."], tiers=(Tier.STANDARD,), due_in=None)
    [batch] = box.ledger.batches_of("run-1", left=True)
    assert batch.state is BatchState.SETTLED
    assert paid(box, "run-1", "run-2", "run-3") == box.account.billed_usd


@BOTH
@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(minutes=20)])
def test_a_clock_that_was_ahead_hides_no_batch(tmp_path: Path, dialect: Dialect, back: timedelta) -> None:
    """An intent noted an hour ahead of the provider's time: the list is read far enough back to find the batch."""
    box = Box.at(tmp_path, batch=SLOW)
    box.served = losing_replies(
        box.served,
        path="/v1/batches" if dialect is Dialect.OPENAI else "/v1/messages/batches",
        method="POST",
        times=1,
    )
    watch = Watch(box.clock, back)

    async def work(process: Process) -> Process:
        process.runner.enter()
        await process.runner.advance()
        watch.ahead = timedelta(0)
        return await to_the_end(process)

    process = box.process("first", work, dialect=dialect, clock=watch, due_in=20 * HOUR)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert box.account.asked_more_than_once == 0


def test_a_batch_that_ended_unseen_before_the_deadline_is_no_miss(tmp_path: Path) -> None:
    """`on_miss="raise"`: a cancel that comes too late brings the answers, and the step is done."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=3510, sigma=0, stuck_share=0))
    process = box.carry_out(due_in=HOUR, tiers=(Tier.BATCH,), infeasible="best_effort", on_miss="raise")
    assert answered(box, process) == 20


def test_a_planned_batch_is_not_sent_after_its_rows_are_needed_elsewhere(tmp_path: Path) -> None:
    """A batch that was put off until after the switch time is dropped unsent."""
    box = Box.at(tmp_path)
    limited = [True]
    box.served = meddling(
        box.served,
        lambda call: (
            Reply(429, b"{}", headers={"retry-after": "86000"}) if creates(call) and limited and limited.pop() else None
        ),
    )
    process = box.carry_out(due_in=4 * HOUR, tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, process) == 20
    assert box.account.batches_created == 0
    [batch] = box.ledger.batches_of("run-1", left=True)
    assert batch.state is BatchState.DISCARDED


def test_a_stalled_provider_of_others_batches_does_not_make_a_step_late(tmp_path: Path) -> None:
    """Batches of dead runs are looked after when this step is done, or waits."""
    box = Box.at(tmp_path, batch=SLOW)
    for number in range(8):
        box.process(
            f"dead-{number}", until(START + timedelta(minutes=2)), id=f"dead-{number}", prompts=[f"Dead {number}."]
        )
    box.served = meddling(box.served, lambda call: Reply(0) if call.path.startswith("/v1/batches/") else None)
    process = box.carry_out(due_in=timedelta(minutes=5), tiers=(Tier.STANDARD,))
    assert process.done is not None
    assert not process.done.late
    assert process.done.finished_at < START + timedelta(minutes=3)


def test_a_deadline_missed_still_raises(tmp_path: Path) -> None:
    """What a cancel brings is counted; what it does not bring is a miss."""
    box = Box.at(tmp_path, batch=SLOW)
    with pytest.raises(DeadlineMissed):
        box.carry_out(due_in=timedelta(minutes=30), tiers=(Tier.BATCH,), infeasible="best_effort", on_miss="raise")
