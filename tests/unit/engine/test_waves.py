"""Batches within what a provider lets be enqueued: sent in waves, told the bound or taught it."""

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.planned import MOST_FAILED_BATCHES
from prefect_llm_tiers.engine.waves import met_ceiling
from prefect_llm_tiers.providers.capabilities import Dialect, capabilities_of
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import EMBEDDER, ENDPOINTS, MODELS, START, Box, answered, paid, to_the_end, until
from tests.unit.engine.faults import Call, Reply, meddling

HOUR = timedelta(hours=1)
QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
PATIENT: dict[str, Any] = {"tiers": (Tier.BATCH,), "due_in": None}


def long_documents(number: int, *, tokens: int = 250) -> list[str]:
    """Return prompts of so many tokens each."""
    return [f"Document {n}. ".ljust(4 * tokens, "x") for n in range(number)]


def batches(box: Box, run: str = "run-1") -> list[Batch]:
    """Return all batches of a run."""
    return box.ledger.batches_of(run, left=True)


def refused(box: Box, run: str = "run-1") -> list[Batch]:
    """Return the batches of a run that found no room."""
    return [batch for batch in batches(box, run) if met_ceiling(batch)]


def at_once(all_batches: list[Batch]) -> int:
    """Return the most rows that were at the provider at one time."""
    taken = [batch for batch in all_batches if not met_ceiling(batch)]

    def out(at: datetime) -> int:
        return sum(
            batch.rows
            for batch in taken
            if batch.submitted_at is not None and batch.submitted_at <= at
            if batch.ended_at is None or at < batch.ended_at
        )

    return max(out(batch.submitted_at) for batch in taken if batch.submitted_at is not None)


def test_a_bound_that_is_told_is_never_met(tmp_path: Path) -> None:
    """What finds no room waits for a batch to end; no batch is refused, and every row is asked once."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    process = box.carry_out(prompts=long_documents(40), enqueued_tokens=3000, **PATIENT)
    assert answered(box, process) == 40
    assert refused(box) == []
    assert box.account.batches_created == 4
    assert box.account.asked == 40
    assert paid(box) == box.account.billed_usd


def test_a_bound_that_nobody_told_is_learned(tmp_path: Path) -> None:
    """Each refusal halves what is sent at once, however many there are; then the rows go out in waves."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    process = box.carry_out(prompts=long_documents(100), **PATIENT)
    assert answered(box, process) == 100
    # 25,000 tokens are too many, and so are 12,500 and 6,250.
    assert [batch.rows for batch in refused(box)] == [100, 50, 25]
    assert at_once(batches(box)) * 250 <= 3000
    assert box.account.asked == 100
    assert paid(box) == box.account.billed_usd


def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    """The next process of the run takes the bound from the ledger, and is refused nothing more."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    prompts = long_documents(100)
    box.process("first", until(START + HOUR), prompts=prompts, **PATIENT)
    before = len(refused(box))
    assert before == 3
    process = box.carry_out("second", prompts=prompts, **PATIENT)
    assert answered(box, process) == 100
    assert len(refused(box)) == before
    assert box.account.asked == 100


def test_a_refusal_is_followed_by_a_pause(tmp_path: Path) -> None:
    """With nothing of one's own out there is no telling who has the room: the next try is ten minutes later."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    box.carry_out(prompts=long_documents(20), **PATIENT)
    [first] = refused(box)
    second = batches(box)[1]
    assert first.ended_at is not None
    assert second.submitted_at is not None
    assert timedelta(minutes=10) <= second.submitted_at - first.ended_at <= timedelta(minutes=12)


def test_runs_of_one_account_share_the_room(tmp_path: Path) -> None:
    """What another run of the same ledger has out takes room too; neither is refused."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    prompts = long_documents(40)
    runs = [
        box.start(run, to_the_end, id=run, prompts=part, enqueued_tokens=3000, **PATIENT)
        for run, part in (("run-1", prompts[:20]), ("run-2", prompts[20:]))
    ]
    assert [answered(box, process) for process in box.together(*runs)] == [20, 20]
    both = batches(box, "run-1") + batches(box, "run-2")
    assert not any(map(met_ceiling, both))
    assert at_once(both) * 250 <= 3000


def test_a_wave_that_comes_too_late_goes_live(tmp_path: Path) -> None:
    """At the switch time what found no room yet, and what is out, is finished on a live tier, in time."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=1500, sigma=0, stuck_share=0), enqueued_tokens=3000)
    process = box.carry_out(
        prompts=long_documents(60), enqueued_tokens=3000, tiers=(Tier.BATCH, Tier.STANDARD), due_in=HOUR
    )
    assert answered(box, process) == 60
    assert process.done is not None
    assert not process.done.late
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.BATCH, Tier.STANDARD]
    assert box.account.batches_created >= 2
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


def test_refusals_alone_do_not_give_batch_up(tmp_path: Path) -> None:
    """A batch that found no room says nothing against batches: after three of them the fourth is sent."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    process = box.carry_out(prompts=long_documents(100), tiers=(Tier.BATCH, Tier.STANDARD), due_in=20 * HOUR)
    assert answered(box, process) == 100
    assert len(refused(box)) == MOST_FAILED_BATCHES
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.BATCH]


def test_a_wave_is_followed_by_the_next_also_where_flex_is_offered(tmp_path: Path) -> None:
    """That one batch is over does not mean that batch was tried: the rows of the next wave were in none."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    process = box.carry_out(prompts=long_documents(40), enqueued_tokens=3000, due_in=None)
    assert answered(box, process) == 40
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.BATCH]


@pytest.mark.parametrize("told", [3000, None])
def test_a_request_that_finds_no_room_ever_goes_live(tmp_path: Path, told: int | None) -> None:
    """It waits until the others are through, and is asked on a live tier then."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    prompts = [*long_documents(20), *long_documents(1, tokens=5000)]
    process = box.carry_out(prompts=prompts, tiers=(Tier.BATCH, Tier.STANDARD), due_in=None, enqueued_tokens=told)
    assert answered(box, process) == 21
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.BATCH, Tier.STANDARD]
    assert box.account.asked_more_than_once == 0
    assert sum(batch.rows for batch in batches(box) if not met_ceiling(batch)) == 20


@pytest.mark.parametrize("told", [3000, None])
def test_a_request_that_finds_no_room_ever_fails_where_there_is_only_batch(tmp_path: Path, told: int | None) -> None:
    """The others are answered; this one fails with the reason, and nothing spins."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    prompts = [*long_documents(20), *long_documents(1, tokens=5000)]
    process = box.carry_out(prompts=prompts, enqueued_tokens=told, **PATIENT)
    assert answered(box, process) == 20
    assert process.done is not None
    assert process.done.reasons == {"more_tokens_than_may_be_enqueued": 1}
    assert box.clock.now() < START + 4 * HOUR
    assert len(process.notes.progress) < 200


def test_room_that_others_take_is_waited_for(tmp_path: Path) -> None:
    """A provider without any room for hours costs no row: each try is half the last, down to one request."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=100)
    process = box.carry_out(prompts=long_documents(8), tiers=(Tier.BATCH, Tier.STANDARD), due_in=6 * HOUR)
    assert answered(box, process) == 8
    assert process.done is not None
    assert not process.done.late
    assert len(refused(box)) <= 4
    assert box.account.asked_more_than_once == 0


def test_a_planned_batch_that_turned_out_too_large_is_chosen_anew(tmp_path: Path) -> None:
    """Batches that were chosen before the bound was known are dropped unsent, and their rows go out smaller."""
    box = Box.at(tmp_path, batch=QUICK, enqueued_tokens=3000)
    offered = capabilities_of(Dialect.OPENAI, MODELS[Dialect.OPENAI], ENDPOINTS[Dialect.OPENAI])
    assert offered.batch is not None
    small = msgspec.structs.replace(offered, batch=msgspec.structs.replace(offered.batch, requests=40))
    uploads = Counter[str]()

    def judge(call: Call) -> Reply | None:
        uploads["all"] += (call.method, call.path) == ("POST", "/v1/files")
        # The first batch is sent; the uploads of the others fail for a while.
        return Reply(503) if call.path == "/v1/files" and 1 < uploads["all"] <= 3 else None

    box.served = meddling(box.served, judge)
    process = box.carry_out(prompts=long_documents(120), capabilities=small, **PATIENT)
    assert answered(box, process) == 120
    assert box.account.asked == 120
    states = Counter(batch.state for batch in batches(box))
    assert states.keys() == {BatchState.SETTLED, BatchState.DISCARDED}


def test_embeddings_are_packed_by_their_inputs(tmp_path: Path) -> None:
    """A request with many inputs fills a batch like many requests; one with more than a batch may hold fails alone."""
    box = Box.at(tmp_path, batch=QUICK)
    offered = capabilities_of(Dialect.OPENAI, EMBEDDER, Endpoint.EMBEDDINGS)
    assert offered.batch is not None
    small = msgspec.structs.replace(offered, batch=msgspec.structs.replace(offered.batch, inputs=10))
    lists: list[Any] = [[f"Text {n}, line {line}." for line in range(4)] for n in range(6)]
    lists += [f"Text {n}, alone." for n in range(3)]
    lists += [[f"Too many, line {line}." for line in range(11)]]
    process = box.carry_out(prompts=lists, endpoint=Endpoint.EMBEDDINGS, capabilities=small, **PATIENT)
    assert answered(box, process) == 9
    assert process.done is not None
    assert process.done.reasons == {"more_inputs_than_a_batch": 1}
    assert [batch.rows for batch in batches(box)] == [2, 2, 4, 1]
    assert box.account.asked == 9
