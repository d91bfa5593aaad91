"""The life of a step run over a real ledger, the real SDKs and a simulated provider."""

from collections import Counter
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from prefect_llm_tiers.core.batches import BatchState
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.runs import Entry, RequestState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.recovery import PROOF_AFTER
from prefect_llm_tiers.engine.reporting import report_of
from prefect_llm_tiers.errors import AccountChanged, DeadlineInfeasible, DeadlineMissed, InputChanged
from prefect_llm_tiers.providers.capabilities import Dialect, capabilities_of
from prefect_llm_tiers.simulator.settings import BatchLaw, FlexOutages, WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation
from tests.unit.engine.box import START, Box, Process, answered, paid, to_the_end, until
from tests.unit.engine.faults import Call, Died, Mortal, Reply, losing_replies, meddling, refusing

BOTH = pytest.mark.parametrize("dialect", list(Dialect))


@BOTH
def test_a_patient_step_runs_in_one_batch_and_pays_what_the_provider_bills(tmp_path: Path, dialect: Dialect) -> None:
    """With time to spare every row is answered by one batch, at the provider's own account."""
    box = Box.at(tmp_path)
    process = box.carry_out(dialect=dialect)
    assert answered(box, process) == 20
    assert box.account.batches_created == 1
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.BATCH]
    assert paid(box) == box.account.billed_usd > 0
    report = report_of(box.ledger, "run-1")
    assert report is not None
    assert not report.late
    assert report.list_usd == 2 * report.paid_usd


@BOTH
def test_a_stuck_batch_is_left_in_time_harvested_and_finished_on_standard(tmp_path: Path, dialect: Dialect) -> None:
    """At the latest safe start the batch is cancelled; its answers count, and only the rest is asked again."""
    box = Box.at(tmp_path, stuck_batches=(f"{dialect}:0",), seed=7)
    process = box.carry_out(dialect=dialect)
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.BATCH, Tier.STANDARD]
    [(_, kept, released)] = process.notes.harvests
    assert kept + released == 20
    assert kept > 0
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


@BOTH
def test_a_second_run_asks_and_pays_for_nothing(tmp_path: Path, dialect: Dialect) -> None:
    """Same key, same answer: a new step run over the same rows finds them all in the ledger."""
    box = Box.at(tmp_path)
    box.carry_out(dialect=dialect)
    before = box.account
    again = box.carry_out("second", dialect=dialect, id="run-2")
    assert answered(box, again) == 20
    assert (box.account.asked, box.account.billed_usd) == (before.asked, before.billed_usd)
    assert box.ledger.spending("run-2") == []


def test_answers_older_than_reuse_for_are_asked_again(tmp_path: Path) -> None:
    """`reuse_for=None` reuses nothing older than the step run itself."""
    box = Box.at(tmp_path)
    box.carry_out()
    before = box.account.answered
    box.carry_out("second", id="run-2", reuse_for=None)
    assert box.account.answered == 2 * before


def test_rows_that_ask_the_same_are_asked_once(tmp_path: Path) -> None:
    """Duplicates share one request."""
    box = Box.at(tmp_path)
    process = box.carry_out(prompts=["The same document."] * 5 + ["Another document."])
    assert box.account.asked == 2
    assert len(process.keys) == 6
    assert answered(box, process) == 6


def test_a_short_deadline_goes_live_at_once(tmp_path: Path) -> None:
    """Where a batch could not be left in time none is sent."""
    box = Box.at(tmp_path)
    process = box.carry_out(due_in=timedelta(minutes=2), tiers=(Tier.BATCH, Tier.STANDARD))
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.STANDARD]
    assert box.account.batches_created == 0
    assert answered(box, process) == 20


def test_a_deadline_that_cannot_be_met_is_said_before_anything_is_paid(tmp_path: Path) -> None:
    """`DeadlineInfeasible` comes with nothing asked."""
    box = Box.at(tmp_path)
    with pytest.raises(DeadlineInfeasible, match="Nothing was sent"):
        box.carry_out(due_in=timedelta(seconds=1))
    assert box.account.asked == 0


def test_a_deadline_past_at_first_entry_is_refused(tmp_path: Path) -> None:
    """Nothing is asked, and the error says how late it was."""
    box = Box.at(tmp_path)
    with pytest.raises(DeadlineInfeasible, match="1 h before it was first entered"):
        box.carry_out(due_in=-timedelta(hours=1))
    assert box.account.asked == 0


def test_a_flex_outage_is_waited_out_while_there_is_slack(tmp_path: Path) -> None:
    """Refusals cost nothing; the step finishes on flex or, at the latest safe start, on standard."""
    box = Box.at(tmp_path, flex_outages=FlexOutages(mean_up_s=30, mean_down_s=1800), seed=3)
    process = box.carry_out(prompts=[f"Document {number}." for number in range(300)], tiers=(Tier.FLEX, Tier.STANDARD))
    assert answered(box, process) == 300
    assert box.account.capacity_refused > 0
    assert process.done is not None
    assert not process.done.late
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


def test_server_errors_are_tried_again_and_lose_no_row(tmp_path: Path) -> None:
    """A third of all live calls end in a 500: every row is answered, and paid for once."""
    box = Box.at(tmp_path, error_rate=0.3)
    process = box.carry_out(tiers=(Tier.STANDARD,))
    assert answered(box, process) == 20
    assert box.account.errors > 0
    assert box.account.asked_more_than_once == 0


def test_the_accounts_own_limit_slows_the_lane_and_fails_nothing(tmp_path: Path) -> None:
    """429s of the account's own limit are waited out."""
    box = Box.at(tmp_path, requests_per_minute=60)
    process = box.carry_out(prompts=[f"Document {n}." for n in range(200)], tiers=(Tier.STANDARD,))
    assert box.account.rate_limited > 0
    assert answered(box, process) == 200


def test_a_batch_that_the_provider_took_without_saying_so_is_found_and_not_sent_again(
    tmp_path: Path,
) -> None:
    """A 502 after the commit leaves one batch at the provider, and it is the one that is harvested."""
    box = Box.at(tmp_path)
    box.served = losing_replies(box.served, path="/v1/batches", method="POST", times=1)
    process = box.carry_out()
    assert box.account.batches_created == 1
    assert answered(box, process) == 20
    assert paid(box) == box.account.billed_usd
    assert any("may have been submitted" in notice for notice in process.notes.notices)


def test_a_batch_that_never_reached_the_provider_is_sent_again_after_it_was_proven_absent(tmp_path: Path) -> None:
    """A 502 before the commit: two complete lists, far enough apart, and then one new submission."""
    box = Box.at(tmp_path)
    box.served = refusing(box.served, path="/v1/batches", method="POST", times=1)
    process = box.carry_out()
    assert box.account.batches_created == 1
    assert answered(box, process) == 20
    [number] = process.notes.batches
    batch = box.ledger.batch(number)
    assert batch.submission == 2
    assert batch.submitted_at is not None
    assert batch.submitted_at >= START + PROOF_AFTER


def test_a_list_that_cannot_be_read_proves_nothing(tmp_path: Path) -> None:
    """While the provider's list fails nothing is sent again; at the switch time the rows go live."""
    box = Box.at(tmp_path)
    lost = losing_replies(box.served, path="/v1/batches", method="POST", times=1)
    box.served = refusing(lost, path="/v1/batches", method="GET", times=10_000)
    process = box.carry_out()
    assert box.account.batches_created == 1
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.BATCH, Tier.STANDARD]
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late


@BOTH
def test_a_process_that_dies_with_a_batch_out_is_followed_by_one_that_harvests_it(
    tmp_path: Path, dialect: Dialect
) -> None:
    """The same step run in another process goes on from the ledger: one batch, every row answered."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=3600, sigma=0, stuck_share=0))
    first: Process = box.process("first", until(START + timedelta(minutes=30)), dialect=dialect)
    assert first.done is None
    second = box.carry_out("second", dialect=dialect)
    assert answered(box, second) == 20
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd


@BOTH
def test_a_new_run_over_rows_that_are_out_waits_for_the_batch_that_carries_them(
    tmp_path: Path, dialect: Dialect
) -> None:
    """A crashed script started again as a new flow run pays for nothing twice."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=3600, sigma=0, stuck_share=0))
    box.process("first", until(START + timedelta(minutes=30)), dialect=dialect)
    second = box.carry_out("second", dialect=dialect, id="run-2", flow_run_id="flow-2")
    assert answered(box, second) == 20
    assert box.account.batches_created == 1
    assert box.account.asked_more_than_once == 0


def test_a_batch_that_another_run_waits_for_is_left_to_it(tmp_path: Path) -> None:
    """A run with less time leaves a shared batch without cancelling it."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=7200, sigma=0, stuck_share=0))
    box.process("first", until(START + timedelta(minutes=10)), due_in=timedelta(hours=20))
    second = box.carry_out("second", id="run-2", due_in=timedelta(minutes=40), tiers=(Tier.BATCH, Tier.STANDARD))
    assert answered(box, second) == 20
    assert box.account.batches_cancelled == 0
    first = box.carry_out("third", due_in=timedelta(hours=20))
    assert answered(box, first) == 20
    assert box.account.batches_created == 1


def test_other_rows_in_a_re_entered_step_run_are_refused(tmp_path: Path) -> None:
    """`InputChanged` names the counts; nothing is asked."""
    box = Box.at(tmp_path)
    box.process("first", until(START + timedelta(minutes=1)))
    asked = box.account.asked
    with pytest.raises(InputChanged, match="20 requests over 20 rows, and now builds 3 over 3"):
        box.carry_out("second", prompts=["a", "b", "c"])
    assert box.account.asked == asked


def test_other_rows_are_asked_where_that_is_wanted(tmp_path: Path) -> None:
    """With `on_input_change="ask"` what is new is asked and what is old is harvested all the same."""
    box = Box.at(tmp_path)
    prompts = [f"Document {number}." for number in range(10)]
    box.process("first", until(START + timedelta(minutes=1)), prompts=prompts)
    process = box.carry_out("second", prompts=[*prompts, "A new document."], on_input_change="ask")
    assert answered(box, process) == 11
    assert box.account.asked_more_than_once == 0


def test_only_rows_whose_request_really_changed_are_asked_anew(tmp_path: Path) -> None:
    """A prompt function that changed while its batch was out: what it sent is harvested, and paid, all the same."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=3600, sigma=0, stuck_share=0))
    before = [f"Document {number}." for number in range(20)]
    box.process("first", until(START + timedelta(minutes=10)), prompts=before, due_in=None)
    after = ["Another first document.", *before[1:]]
    process = box.carry_out("second", prompts=after, on_input_change="ask", due_in=None)
    assert answered(box, process) == 20
    assert box.account.asked == 21
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


def test_a_refused_entry_changes_nothing_for_the_run(tmp_path: Path) -> None:
    """After `InputChanged` the first entry's rows are still there: entered again as they were, they go on."""
    box = Box.at(tmp_path)
    box.process("first", until(START + timedelta(minutes=1)))
    with pytest.raises(InputChanged):
        box.carry_out("second", prompts=["a", "b", "c"])
    assert answered(box, box.carry_out("third")) == 20
    assert box.account.batches_created == 1


@BOTH
def test_another_account_under_the_same_block_is_refused(tmp_path: Path, dialect: Dialect) -> None:
    """What is out belongs to the first account: nothing is sent under the second, and the first one goes on."""
    box = Box.at(tmp_path, organization="org-a")
    box.process("first", until(START + timedelta(minutes=1)), dialect=dialect)
    other = Simulation(WorldSettings(organization="org-b"), box.clock)
    first, box.served = box.served, other.app
    with pytest.raises(AccountChanged, match=r"account org-a.* now belongs to org-b.*nothing was sent"):
        box.carry_out("second", dialect=dialect, api_key="another-organisations")
    assert (other.account().asked, other.account().batches_created) == (0, 0)
    box.served = first
    # A rotated key of the same account is no other account.
    third = box.carry_out("third", dialect=dialect, api_key="a-new-one")
    assert answered(box, third) == 20
    assert box.account.batches_created == 1


def test_a_run_of_an_older_ledger_names_no_account_and_goes_on(tmp_path: Path) -> None:
    """Only an account that was written down can differ."""
    box = Box.at(tmp_path)

    async def work(process: Process) -> Process:
        spool = process.job.spool
        entry = Entry(
            id="run-1",
            flow_run_id="flow-1",
            step="summary",
            key_digest=spool.digest,
            requests=20,
            rows=20,
            provider="",
            account="",
            deadline=None,
            entered_at=START,
        )
        box.ledger.enter(entry, stamp=box.clock.wall())
        return await to_the_end(process)

    assert answered(box, box.process("first", work)) == 20


def test_a_request_that_no_batch_holds_fails_alone(tmp_path: Path) -> None:
    """It fails with the limit's name, the others go out, and asking it again would only repeat that."""
    box = Box.at(tmp_path)
    offered = capabilities_of(Dialect.OPENAI, "gpt-6-luna", Endpoint.RESPONSES)
    assert offered.batch is not None
    small = msgspec.structs.replace(offered, batch=msgspec.structs.replace(offered.batch, bytes=3000))
    prompts = ["One.", "A long one. " + "x" * 3000, "Another one."]
    process = box.carry_out(prompts=prompts, capabilities=small, tiers=(Tier.BATCH,), due_in=None)
    assert answered(box, process) == 2
    assert process.done is not None
    assert process.done.reasons == {"larger_than_a_batch": 1}
    assert process.done.permanent == {"larger_than_a_batch"}


def test_answers_of_no_use_are_asked_again_and_then_fail_the_row(tmp_path: Path) -> None:
    """`max_attempts` answers are paid for; then the row fails with the reason, and the others stand."""
    box = Box.at(tmp_path)
    stubborn: list[str] = []

    def picky(text: str) -> str | None:
        if "Document 7" in text:
            stubborn.append(text)
            return "unparsable: test"
        return None

    process = box.carry_out(accept=picky, max_attempts=3)
    assert answered(box, process) == 19
    assert len(stubborn) == 3
    assert process.done is not None
    assert process.done.failed == 1
    assert process.done.reasons == {"unparsable: test": 1}
    assert paid(box) == box.account.billed_usd


def test_a_run_keeps_an_answer_that_another_run_cannot_read(tmp_path: Path) -> None:
    """A run that is entered again after its end asks nothing, whatever another run made of its answers since."""
    box = Box.at(tmp_path)
    finished = box.carry_out()
    assert answered(box, finished) == 20

    def never(text: str) -> str | None:
        return "unparsable: test"

    other = box.carry_out("second", id="run-2", accept=never, max_attempts=2, max_failed=20)
    assert other.done is not None
    assert other.done.failed == 20
    asked, billed = box.account.asked, box.account.billed_again
    assert billed == 2 * 20
    replayed = box.carry_out("third")
    assert answered(box, replayed) == 20
    assert box.account.asked == asked


def test_answers_of_no_use_to_one_run_are_read_by_the_next(tmp_path: Path) -> None:
    """A parser that was mended reads what was paid for before, and asks nothing."""
    box = Box.at(tmp_path)

    def never(text: str) -> str | None:
        return "unparsable: test"

    box.carry_out(accept=never, max_attempts=1, max_failed=20, tiers=(Tier.BATCH,), infeasible="best_effort")
    asked = box.account.asked
    mended = box.carry_out("second", id="run-2")
    assert answered(box, mended) == 20
    assert box.account.asked == asked


def test_a_row_whose_samples_fail_is_one_failed_row(tmp_path: Path) -> None:
    """`max_failed` counts rows, however many of a row's samples are of no use."""
    box = Box.at(tmp_path)

    def picky(text: str) -> str | None:
        return "unparsable: test" if "Document 4." in text or "Document 5." in text else None

    process = box.carry_out(samples=2, accept=picky, max_attempts=1, max_failed=1)
    assert process.done is not None
    assert process.done.failed == 1
    assert process.done.reasons == {"unparsable: test": 1}
    assert process.done.permanent == frozenset()


def test_failures_stick_within_a_step_run_that_passed_and_are_asked_again_after_one_that_failed(
    tmp_path: Path,
) -> None:
    """An entry after `RowsFailed` asks the failed rows again; one after a tolerated failure does not."""
    box = Box.at(tmp_path)

    def never(text: str) -> str | None:
        return "unparsable: test"

    box.carry_out(accept=never, max_attempts=1, max_failed=20)
    asked = box.account.asked
    box.carry_out("second", accept=never, max_attempts=1, max_failed=20)
    assert box.account.asked == asked

    box.carry_out("third", id="run-2", accept=never, max_attempts=1)
    once = box.account.asked
    recovered = box.carry_out("fourth", id="run-2")
    assert box.account.asked == once + 20
    assert answered(box, recovered) == 20


def test_rows_that_failed_are_not_asked_again_by_the_next_process_of_a_run_that_died(tmp_path: Path) -> None:
    """A failure of a step run sticks while the run goes on, whoever carries it out; the next run asks again."""
    box = Box.at(tmp_path)
    judged = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if b"Document 3." not in call.body:
            return None
        judged["all"] += 1
        return Reply(400, b'{"error": {"code": "invalid_value", "message": "no"}}')

    box.served = meddling(box.served, judge)
    mortal = Mortal(box.ledger, at=40, after=True)
    prompts = [f"Document {n}. It tells of things." for n in range(200)]
    with pytest.raises(Died):
        box.process("first", to_the_end, prompts=prompts, tiers=(Tier.STANDARD,), ledger=mortal)
    assert judged["all"] == 1
    assert 0 < box.account.answered < 199
    for owner in ("second", "third"):
        # Each begins when the lease of the one before has ended.
        process = box.carry_out(owner, prompts=prompts, tiers=(Tier.STANDARD,), max_failed=1)
        assert answered(box, process) == 199
        assert process.done is not None
        assert process.done.reasons == {"invalid_value": 1}
        assert process.done.permanent == {"invalid_value"}
        assert judged["all"] == 1
    box.carry_out("fourth", id="run-2", prompts=prompts, tiers=(Tier.STANDARD,), max_failed=1)
    assert judged["all"] == 2


def test_reasons_count_rows_and_not_requests(tmp_path: Path) -> None:
    """Rows that ask the same each count, as they do in `failed`."""
    box = Box.at(tmp_path)

    def never(text: str) -> str | None:
        return "unparsable: test"

    process = box.carry_out(prompts=["The same."] * 4 + ["Another."], accept=never, max_attempts=1, max_failed=5)
    assert process.done is not None
    assert process.done.failed == 5
    assert process.done.reasons == {"unparsable: test": 5}


def test_one_process_at_a_time_decides(tmp_path: Path) -> None:
    """While another process holds the step run, `advance` waits and sends nothing."""
    box = Box.at(tmp_path)

    async def work(process: Process) -> Process:
        process.runner.enter()
        now = box.clock.now()
        lease = box.ledger.acquire("step:run-1", owner="other", now=now, until=now + timedelta(minutes=3))
        assert lease is not None
        waiting = await process.runner.advance()
        assert waiting.until == now + timedelta(minutes=3)  # type: ignore[union-attr]
        assert box.account.asked == 0
        box.ledger.release(lease)
        return await to_the_end(process)

    process = box.process("first", work)
    assert answered(box, process) == 20


def test_calls_of_a_dead_process_are_listed_and_asked_again(tmp_path: Path) -> None:
    """An attempt without an outcome is `billed_unknown`, and its row is answered by the next process."""
    box = Box.at(tmp_path)

    async def die(process: Process) -> None:
        run = process.runner.enter()
        now = box.clock.now()
        lease = box.ledger.acquire("step:run-1", owner="first", now=now, until=now + timedelta(minutes=5))
        assert lease is not None
        keys = process.job.spool.keys([0, 1, 2])
        box.ledger.begin_calls(keys, run=run, tier=Tier.STANDARD, lease=lease, at=now, not_before=None)

    box.process("first", die)
    second = box.carry_out("second", tiers=(Tier.STANDARD,))
    assert answered(box, second) == 20
    report = report_of(box.ledger, "run-1")
    assert report is not None
    assert report.billed_unknown == 3


def test_a_missed_deadline_is_finished_and_marked_late(tmp_path: Path) -> None:
    """By default a step that is late delivers all the same."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=7200, sigma=0, stuck_share=0))
    process = box.carry_out(due_in=timedelta(minutes=30), tiers=(Tier.BATCH,), infeasible="best_effort")
    assert answered(box, process) == 20
    assert process.done is not None
    assert process.done.late


def test_a_missed_deadline_raises_where_that_is_wanted(tmp_path: Path) -> None:
    """With `on_miss="raise"` the batch is cancelled at the deadline, and the next run harvests it."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=7200, sigma=0, stuck_share=0))
    with pytest.raises(DeadlineMissed, match="20 of 20 requests are unanswered"):
        box.carry_out(due_in=timedelta(minutes=30), tiers=(Tier.BATCH,), infeasible="best_effort", on_miss="raise")
    assert box.account.batches_cancelled == 1
    assert box.clock.now() == START + timedelta(minutes=30)


def test_refused_rows_are_kept_like_answers(tmp_path: Path) -> None:
    """A refusal was paid for: it is an outcome, and a second run does not ask again."""
    box = Box.at(tmp_path, refusal_rate=1.0)
    process = box.carry_out(tiers=(Tier.STANDARD,))
    answers = box.ledger.answers(process.keys, step_run_id="run-1")
    assert {answer.state for answer in answers if answer} == {RequestState.REFUSED}
    asked = box.account.asked
    box.carry_out("second", id="run-2", tiers=(Tier.STANDARD,))
    assert box.account.asked == asked


def test_every_batch_ends_settled_with_its_life_on_record(tmp_path: Path) -> None:
    """The ledger tells each change of state, in order."""
    box = Box.at(tmp_path)
    process = box.carry_out()
    [number] = process.notes.batches
    assert box.ledger.batch(number).state is BatchState.SETTLED
    assert [event.after for event in box.ledger.events("batch", str(number))] == [
        BatchState.PLANNED,
        BatchState.SUBMITTING,
        BatchState.IN_PROGRESS,
        BatchState.COMPLETED,
        BatchState.SETTLED,
    ]


def test_a_flood_of_identical_worlds_gives_identical_results(tmp_path: Path) -> None:
    """The same step run over the same world ends at the same instant for the same money."""
    results = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        box = Box.at(folder, flex_outages=FlexOutages(mean_up_s=120, mean_down_s=300), error_rate=0.1)
        box.carry_out(prompts=[f"Document {n}." for n in range(100)], tiers=(Tier.FLEX, Tier.STANDARD))
        results.append((box.clock.now(), paid(box), box.account.asked))
    assert results[0] == results[1] == results[2]
