"""The plain pieces as Prefect tasks: submitted once, waited for, collected in order."""

import asyncio
import json
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import cloudpickle  # type: ignore[import-untyped]
import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import BaseModel

from prefect_llm_tiers import (
    BatchAnswer,
    BatchCounts,
    BatchTicket,
    ConfigurationError,
    InputChanged,
    InputError,
    LedgerUnusable,
    collect_batch,
    submit_batch,
    wait_for_batch,
)
from prefect_llm_tiers.carrying.whereabouts import provider_of
from prefect_llm_tiers.core.runs import RequestState
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.acceptance.conftest import World
from tests.acceptance.test_calling import this_run
from tests.acceptance.test_showing import MARK, everything_of

PROMPTS = [f"Summarize page {number}: it tells how to open a valve." for number in range(5)]


class Said(BaseModel):
    """What a page says."""

    topic: str


def asking(world: World, **changes: Any) -> dict[str, Any]:
    """Return what most calls here submit with."""
    return world.options(**changes)


def through(world: World, prompts: Any = PROMPTS, **changes: Any) -> tuple[BatchCounts, list[BatchAnswer]]:
    """Submit, wait and collect in a flow run of its own."""

    @flow
    def pieces() -> tuple[BatchCounts, list[BatchAnswer]]:
        ticket = submit_batch(prompts, **asking(world, **changes))
        return wait_for_batch(ticket), collect_batch(ticket)

    return pieces()


def test_answers_come_in_the_order_of_the_prompts(world: World) -> None:
    """One answer a prompt, in order, with its tier, tokens and price; the sum is what the provider bills."""
    counts, answers = through(world)
    assert counts == BatchCounts(answered=5)
    assert counts.done
    assert [f"page {number}" in (answer.text or "") for number, answer in enumerate(answers)] == [True] * 5
    assert {(answer.state, answer.tier, answer.fresh) for answer in answers} == {("answered", "batch", True)}
    assert all(answer.usage is not None for answer in answers)
    assert sum(answer.cost_usd or 0 for answer in answers) == world.account().billed_usd
    assert world.account().batches_created == 1


def test_equal_prompts_are_asked_once(world: World) -> None:
    """Prompts that ask the same share an answer, and each is counted and returned."""
    counts, answers = through(world, ["Say hello.", "Say goodbye.", "Say hello."])
    assert counts == BatchCounts(answered=3)
    assert answers[0] == answers[2] != answers[1]
    assert world.account().asked == 2


def test_a_generator_of_messages(world: World) -> None:
    """Any iterable will do, and a prompt may be a list of messages."""
    prompts = ([{"role": "user", "content": text}] for text in PROMPTS)
    counts, answers = through(world, prompts)
    assert counts.answered == 5
    assert "page 3" in (answers[3].text or "")


def test_answers_as_models(world: World) -> None:
    """With a pydantic model each answer comes parsed, and its text beside it."""
    _, answers = through(world, output=Said)
    assert all(isinstance(answer.parsed, Said) and answer.text for answer in answers)


def test_no_prompts(world: World) -> None:
    """Nothing is asked for nothing."""
    assert through(world, []) == (BatchCounts(), [])
    assert world.account().asked == 0


def test_a_crash_between_submit_and_collect(world: World) -> None:
    """A flow run that died with its batch out is started again as a new one: the batch is joined, and paid once."""

    @flow
    def dies() -> BatchTicket:
        ticket = submit_batch(PROMPTS, **asking(world))
        raise SystemExit(str(ticket.batches))

    with pytest.raises(SystemExit):
        dies()
    counts, answers = through(world)
    assert counts.answered == 5
    assert [answer.fresh for answer in answers] == [False] * 5
    assert world.account().batches_created == 1
    assert world.account().asked == 5


def test_a_retried_flow_submits_once(world: World) -> None:
    """Prefect's retry of the flow arrives at the same batch; other prompts in the retry are refused."""
    attempts: list[BatchTicket] = []

    @flow(retries=1)
    def flaky(other: str) -> list[BatchAnswer]:
        prompts = [*PROMPTS, other] if attempts else PROMPTS
        ticket = submit_batch(prompts, **asking(world))
        attempts.append(ticket)
        if len(attempts) == 1:
            msg = "after the submission"
            raise RuntimeError(msg)
        wait_for_batch(ticket)
        return collect_batch(ticket)

    with pytest.raises(InputChanged):
        flaky("Another.")
    attempts.clear()

    @flow(retries=1)
    def steady() -> list[BatchAnswer]:
        ticket = submit_batch(PROMPTS, **asking(world))
        attempts.append(ticket)
        if len(attempts) == 1:
            msg = "after the submission"
            raise RuntimeError(msg)
        wait_for_batch(ticket)
        return collect_batch(ticket)

    assert len(steady()) == 5
    assert attempts[0] == attempts[1]
    assert world.account().batches_created == 1


def test_what_expired_is_asked_again_alone(world: World) -> None:
    """Rows of an expired batch have a reason; the same prompts submitted again ask only those."""
    law = BatchLaw(median_s=600.0, sigma=0.0, stuck_share=0.0, stuck_s=(30 * 3600.0, 30 * 3600.0))
    world.shaped(WorldSettings(batch=law, stuck_batches=("openai:0",)))
    counts, answers = through(world, [f"Say {number}." for number in range(40)])
    assert counts.done
    assert 0 < counts.unanswered < 40
    assert counts.answered + counts.unanswered == 40
    missing = [answer for answer in answers if answer.state is RequestState.OPEN]
    assert len(missing) == counts.unanswered
    assert all(answer.text is None and answer.reason for answer in missing)
    again, _ = through(world, [f"Say {number}." for number in range(40)])
    assert again == BatchCounts(answered=40)
    assert world.account().batches_created == 2
    assert world.account().asked == 40 + counts.unanswered


def test_a_deadline_stops_the_waiting_and_nothing_else(world: World) -> None:
    """At the deadline the counts tell what is out; a later wait for the same ticket brings it in."""

    @flow
    def impatient() -> tuple[BatchCounts, list[BatchAnswer], BatchCounts]:
        ticket = submit_batch(PROMPTS, **asking(world))
        early = wait_for_batch(ticket, deadline=timedelta(minutes=2))
        return early, collect_batch(ticket), wait_for_batch(ticket)

    early, answers, late = impatient()
    assert (early, early.done) == (BatchCounts(out=5), False)
    assert [answer.reason for answer in answers] == ["still in a batch"] * 5
    assert late == BatchCounts(answered=5)
    assert world.account().batches_created == 1


def test_they_are_tasks(world: World) -> None:
    """`.submit`, `wait_for=`, `return_state=` and `.with_options` work; each call is a batch of its own prompts."""
    tagged = submit_batch.with_options(name="nightly-batch", tags=["night"], retries=2)
    assert (tagged.name, tagged.tags, tagged.retries) == ("nightly-batch", {"night"}, 2)
    assert (submit_batch.name, submit_batch.tags, submit_batch.retries) == ("submit_batch", set(), 0)

    @flow
    def beside() -> list[list[BatchAnswer]]:
        one: Any = tagged.submit(PROMPTS[:2], **asking(world))
        other = submit_batch(PROMPTS[2:], **asking(world), return_state=True, wait_for=[one])
        assert isinstance(other, State)
        counted = wait_for_batch.submit(one)
        collected: Any = cast("Any", collect_batch).submit(one, wait_for=[counted])
        wait_for_batch(other)
        return [collected.result(), collect_batch(other)]

    first, second = beside()
    assert ["page 0" in (first[0].text or ""), "page 4" in (second[2].text or "")] == [True, True]
    assert world.account().asked == 5
    with pytest.raises(TypeError, match="with all of them"):
        submit_batch.map(PROMPTS)


def test_in_an_async_flow(world: World) -> None:
    """They may be called in an async flow too."""

    @flow
    async def pieces() -> BatchCounts:
        return wait_for_batch(submit_batch(PROMPTS, **asking(world)))

    assert asyncio.run(pieces()).answered == 5


def test_a_ticket_is_plain(world: World) -> None:
    """A ticket pickles, and holds neither prompts nor answers nor a key; read back, it finds the same answers."""
    ticket = submit_batch([MARK, *PROMPTS], **asking(world))
    wait_for_batch(ticket)
    for copied in (pickle.loads(pickle.dumps(ticket)), cloudpickle.loads(cloudpickle.dumps(ticket))):
        assert copied == ticket
        assert len(collect_batch(copied)) == 6
    pickled = pickle.dumps(ticket)
    assert MARK.encode() not in pickled
    assert b"valve" not in pickled
    assert "valve" not in repr(ticket)
    assert "6 prompts to gpt-6-luna" in repr(ticket)


def test_a_ticket_elsewhere(world: World, tmp_path: Path) -> None:
    """Where a ticket's provider has no name, or the ledger is another one, that is said with what to do."""
    import msgspec

    ticket = submit_batch(PROMPTS, **asking(world))
    elsewhere = msgspec.structs.replace(ticket, step_run_id="0" * 32)
    with pytest.raises(ConfigurationError, match=r"never saved.*Pass provider="):
        provider_of(elsewhere, None)
    with pytest.raises(LedgerUnusable, match="knows nothing of these prompts"):
        collect_batch(ticket, ledger=str(tmp_path / "another.db"))


def test_a_saved_block_is_found_by_its_name(world: World) -> None:
    """The ticket of a saved block names it, so that any process can wait for it."""
    provider = world.provider()
    provider.save("ticketed")
    ticket = submit_batch(PROMPTS, **asking(world, provider=provider))
    assert ticket.provider == "simulated-llm-provider/ticketed"
    assert wait_for_batch(ticket, provider=ticket.provider).answered == 5


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("Say hello.", "not str. Put a single prompt into a list"),
        (["Say hello.", 7], r"Prompt 1 \(from 0\)"),
        (["Say hello.", [{"role": "user", "content": object()}]], r"Prompt 1 .* JSON cannot express"),
    ],
)
def test_prompts_that_cannot_be_asked(world: World, prompts: Any, words: str) -> None:
    """A prompt that makes no request is named by its number, before anything is sent."""
    with pytest.raises(InputError, match=words) as caught:
        submit_batch(prompts, **asking(world))
    assert "prompt function" not in str(caught.value)
    assert world.account().files_uploaded == 0


def test_an_option_that_there_is_not(world: World) -> None:
    """The plain pieces take what they say and no more; a model without a batch tier is refused."""
    with pytest.raises(ConfigurationError, match=r"reuse_for=30 has no unit.*timedelta\(days=30\)"):
        submit_batch(PROMPTS, **asking(world, reuse_for=30))
    with pytest.raises(TypeError, match="deadline"):
        submit_batch(PROMPTS, **asking(world), deadline=timedelta(hours=1))  # type: ignore[call-arg]


def test_nothing_of_prompts_or_answers_reaches_prefect(world: World) -> None:
    """Parameters, inputs, states, logs and artifacts of all three hold no word of a prompt or an answer."""
    prompts = [f"{MARK}: tell me of valve {number}." for number in range(3)]

    @flow
    def pieces() -> tuple[Any, bool]:
        future: Any = submit_batch.submit(prompts, **asking(world))
        wait_for_batch(future)
        answers = collect_batch(future)
        return this_run(), MARK in (answers[0].text or "")

    run, told = pieces()
    assert told
    seen = json.dumps(asyncio.run(everything_of(run)))
    assert "nightly" not in seen
    assert "submit_batch" in seen
    assert MARK not in seen
    assert "valve" not in seen


@pytest.mark.parametrize("given", [None, "ticket", 3])
def test_what_is_no_ticket_is_refused(given: Any) -> None:
    """Anything but what submit_batch returned is told by its kind, with what to pass."""
    for piece in (wait_for_batch, collect_batch):
        with pytest.raises(InputError, match=f"A BatchTicket is needed here, not {type(given).__name__}"):
            cast("Any", piece)(given)
