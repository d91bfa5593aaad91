"""The single call as a Prefect task: asked once, answered in the cheapest tier allowed, never shown to Prefect."""

import asyncio
import json
import pickle
from datetime import timedelta
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import polars as pl
import pytest
from prefect import flow, task
from prefect.client.schemas.objects import State
from pydantic import BaseModel

from prefect_llm_tiers import (
    AnswerRefused,
    ConfigurationError,
    DeadlineInfeasible,
    InputChanged,
    InputError,
    NoAnswer,
    QuotaExhausted,
    complete,
    llm_step,
)
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import FlexOutages, WorldSettings
from tests.acceptance.conftest import World
from tests.acceptance.test_calling import this_run
from tests.acceptance.test_showing import MARK, everything_of

PROMPT = "Summarize page 4: it tells how to open a valve."

NO_FLEX_NOW = FlexOutages(mean_up_s=1e-6, mean_down_s=1e9)
"""Flex that has no capacity from the start, for years."""


class Said(BaseModel):
    """What a page says, in a shape that no column has."""

    topic: str | list[str]


def in_flow(world: World, prompt: Any = PROMPT, **changes: Any) -> Any:
    """Complete a prompt in a flow run of its own."""

    @flow
    def asks() -> Any:
        return complete(prompt, **world.options(**changes))

    return asks()


def answered(world: World) -> dict[Tier, int]:
    """Return how many calls were answered in each tier."""
    return {line.tier: line.answered for line in world.account().lines if line.answered}


def test_an_answer_is_returned_and_paid_for_once(world: World) -> None:
    """The text comes back; the same prompt in a later run, or as a row of a step, is not asked again."""
    answer = in_flow(world)
    assert "page 4" in answer
    assert in_flow(world) == answer
    step = llm_step(**world.options(), name="summary")(lambda text: text)
    assert step(pl.DataFrame({"text": [PROMPT]}))["summary"].to_list() == [answer]
    assert world.account().asked == 1
    assert world.paid_by_ledger() == world.account().billed_usd > 0


def test_a_step_that_comes_first_answers_a_call(world: World) -> None:
    """The key is the same either way round."""
    step = llm_step(**world.options(tiers=["standard"]), name="summary")(lambda text: text)
    (answer,) = step(pl.DataFrame({"text": [PROMPT]}))["summary"].to_list()
    assert in_flow(world) == answer
    assert world.account().asked == 1


@pytest.mark.parametrize(
    ("outages", "tier"), [(None, Tier.FLEX), (NO_FLEX_NOW, Tier.STANDARD)], ids=["capacity", "none"]
)
def test_flex_then_standard(world: World, outages: FlexOutages | None, tier: Tier) -> None:
    """With capacity it is flex, at half the price; without any, the deadline sends it to standard."""
    world.shaped(WorldSettings(flex_outages=outages))
    assert "page 4" in in_flow(world, tiers=["flex", "standard"], deadline=timedelta(minutes=30))
    assert answered(world) == {tier: 1}
    assert (world.account().capacity_refused > 0) is (outages is not None)
    assert world.paid_by_ledger() == world.account().billed_usd


def test_without_a_deadline_flex_is_not_waited_for_for_ever(world: World) -> None:
    """Where there is no capacity and another tier is allowed, that one is asked, within a quarter of an hour or so."""
    provider = world.shaped(WorldSettings(flex_outages=NO_FLEX_NOW)).provider()
    began = world.account().at
    assert "page 4" in in_flow(world, provider=provider, tiers=["flex", "standard"])
    assert answered(world) == {Tier.STANDARD: 1}
    assert timedelta(0) < world.account().at - began < timedelta(minutes=20)


def test_a_tier_alone(world: World) -> None:
    """One tier is asked in and no other; batch is one of them."""
    assert in_flow(world, PROMPT, tiers=["priority"])
    assert in_flow(world, f"{PROMPT} Again.", tiers="standard")
    assert in_flow(world, f"{PROMPT} And again.", tiers=["batch"])
    assert answered(world) == {Tier.PRIORITY: 1, Tier.STANDARD: 1, Tier.BATCH: 1}


def test_a_deadline_that_no_tier_meets(world: World) -> None:
    """It is an error before anything is asked."""
    with pytest.raises(DeadlineInfeasible):
        in_flow(world, deadline=timedelta(milliseconds=1))
    assert world.account().asked == 0


def test_flex_that_is_not_offered_is_learned_for_the_run(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The first call of a run meets the 400; the next go to standard at once, and it is told once."""
    world.shaped(WorldSettings(without_flex=("gpt-6-luna",)))
    options = world.options(tiers=["flex", "standard"])

    @flow
    def asks() -> list[str]:
        return [complete(f"{PROMPT} ({number})", **options) for number in range(4)]

    caplog.set_level("WARNING")
    assert len(asks()) == 4
    assert answered(world) == {Tier.STANDARD: 4}
    told = [record for record in caplog.records if "does not offer flex" in record.getMessage()]
    assert len(told) == 1


def test_an_instance_of_a_model(world: World) -> None:
    """With a pydantic model the answer is one, also in a shape that no column has."""
    assert isinstance(in_flow(world, output=Said), Said)


def test_messages_and_a_system_prompt(world: World) -> None:
    """A prompt may be a list of messages, or a body."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    assert "page 4" in in_flow(world, messages)
    assert "page 4" in in_flow(world, {"input": PROMPT, "temperature": 0})
    assert "page 4" in in_flow(world, PROMPT, system="Be brief.")
    assert world.account().asked == 3


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_both_dialects(world: World, dialect: Any) -> None:
    """Anthropic is asked like OpenAI; it has the standard tier alone."""
    model = {"openai": "gpt-6-luna", "anthropic": "claude-haiku-5-5"}[dialect]
    assert "page 4" in in_flow(world, provider=world.provider(dialect), model=model)


def test_a_refusal_is_an_error_and_is_kept(world: World) -> None:
    """It names what happened and repeats no word of prompt or refusal; asking again pays nothing."""
    world.shaped(WorldSettings(refusal_rate=1.0))
    for _ in range(2):
        with pytest.raises(AnswerRefused, match=r"complete: the request was refused \(refusal\)") as caught:
            in_flow(world, f"{MARK} {PROMPT}", max_output_tokens=150)
        assert MARK not in str(caught.value)
        assert "valve" not in repr(caught.value)
        assert caught.value.reason == "refusal"
    assert world.account().asked == 1


def test_an_answer_that_is_cut_is_an_error(world: World) -> None:
    """The reason names the bound, and what was written of it is paid for."""
    with pytest.raises(NoAnswer, match=r"\(length\)") as caught:
        in_flow(world, [{"role": "user", "content": " ".join([PROMPT] * 9)}], max_output_tokens=16)
    assert pickle.loads(pickle.dumps(caught.value)).reason == "length"
    assert world.paid_by_ledger() == world.account().billed_usd > 0


def test_an_answer_that_does_not_fit_is_asked_again(world: World) -> None:
    """An answer that breaks the schema the first time fits the second; both are paid for and counted."""
    world.shaped(WorldSettings(unparsable_rate=1.0))
    assert isinstance(in_flow(world, output=Said), Said)
    assert world.account().answered == 2
    assert world.paid_by_ledger() == world.account().billed_usd


def test_what_the_provider_rejects_says_what_to_correct(world: World) -> None:
    """The code and the parameter are named, and running again is not advised."""
    with pytest.raises(
        NoAnswer, match=r"\(unknown_parameter: temperatur\).*correct the prompt or the options"
    ) as caught:
        in_flow(world, options={"temperatur": 0})
    assert "Run the flow again" not in str(caught.value)


def test_lost_calls_are_asked_again(world: World) -> None:
    """A reply that was lost on its way costs no answer; what may have been billed is told by the ledger."""
    world.shaped(WorldSettings(faults=Faults(only={"live_reset": (0,), "live_5xx": (1,)})))
    assert "page 4" in in_flow(world, tiers=["standard"])


def test_a_retried_flow_asks_once(world: World) -> None:
    """Prefect's retry of the flow arrives at the same calls; another prompt in the retry is refused."""
    attempts: list[str] = []

    @flow(retries=1)
    def flaky(other: str) -> list[str]:
        attempts.append(complete(PROMPT if not attempts else PROMPT + other, **world.options()))
        if len(attempts) == 1:
            msg = "after the call"
            raise RuntimeError(msg)
        return attempts

    first, second = flaky("")
    assert first == second
    assert world.account().asked == 1
    attempts.clear()
    with pytest.raises(InputChanged):
        flaky(" Another.")


def test_it_is_a_task(world: World) -> None:
    """`.submit`, `.map`, futures as prompts, `wait_for=`, `return_state=` and `.with_options` work."""
    tagged = complete.with_options(name="triage", tags=["calls"], retries=2)
    assert (tagged.name, tagged.tags, tagged.retries) == ("triage", {"calls"}, 2)
    assert (complete.name, complete.tags, complete.retries) == ("complete", set(), 0)
    options = world.options()

    @task
    def written() -> str:
        return f"{PROMPT} It is written by a task."

    @flow
    def beside() -> list[Any]:
        one: Any = tagged.submit(PROMPT, **options)
        many: Any = complete.map([f"Summarize page {page}: a valve." for page in range(3)], **options)
        awaited: Any = complete.submit(written.submit(), **options)
        of_futures: Any = complete.map([written.submit(), written.submit()], **options)
        state = complete(PROMPT, **options, return_state=True, wait_for=[one])
        assert isinstance(state, State)
        assert of_futures.result() == [awaited.result()] * 2
        return [one.result(), state.result(), awaited.result(), *many.result()]

    one, again, awaited, *many = beside()
    assert one == again
    assert "page 4" in awaited
    assert [f"page {page}" in text for page, text in enumerate(many)] == [True] * 3
    assert world.account().asked == 5


def test_the_same_prompt_at_the_same_time_is_asked_once(world: World) -> None:
    """Whoever comes second waits for the call that is out, and all have its answer."""

    @flow
    def asks() -> list[str]:
        texts: list[str] = complete.map([PROMPT] * 4, **world.options(tiers=["standard"])).result()
        return texts

    assert len(set(asks())) == 1
    assert world.account().asked == 1


def test_an_exhausted_quota_stops_at_once(world: World) -> None:
    """Nothing more is asked until somebody pays, and the error says so."""
    world.shaped(WorldSettings(faults=Faults(live_quota=1.0)))
    with pytest.raises(QuotaExhausted, match="no credit left"):
        in_flow(world)
    assert world.account().asked == 1


def test_in_an_async_flow(world: World) -> None:
    """Called as it is, or awaited, several at a time."""
    options = world.options()

    @flow
    async def asks() -> list[str]:
        direct = complete(PROMPT, **options)
        others = [complete.acall(f"Summarize page {page}: a valve.", **options) for page in range(2)]
        return [direct, *await asyncio.gather(*others)]

    direct, *others = asyncio.run(asks())
    assert "page 4" in direct
    assert [f"page {page}" in text for page, text in enumerate(others)] == [True] * 2
    assert world.account().asked == 3


def test_outside_of_a_flow(world: World) -> None:
    """A task may be called without one."""
    assert "page 4" in complete(PROMPT, **world.options())


def test_a_single_prompt_cannot_be_mapped_over(world: World) -> None:
    """A text would be taken for its letters."""
    with pytest.raises(InputError, match="Put a single one into a list"):
        complete.map(PROMPT, **world.options())


def test_it_travels_to_another_process() -> None:
    """Dask and others carry the task by cloudpickle."""
    assert cloudpickle.loads(cloudpickle.dumps(complete)).name == "complete"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (7, "prompt is of type int"),
        ([], "empty list of messages"),
        ([{"role": "user"}], "no mapping with `role` and `content`"),
        ([{"role": "user", "content": object()}], "JSON cannot express"),
        ({"model": "another", "input": "x"}, "another model"),
    ],
)
def test_prompts_that_cannot_be_asked(world: World, prompt: Any, words: str) -> None:
    """A prompt that makes no request is told before anything is sent, in words about a prompt."""
    with pytest.raises(InputError, match=words) as caught:
        in_flow(world, prompt)
    assert "prompt function" not in str(caught.value)
    assert world.account().asked == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tiers": []}, "allows no tier"),
        ({"tiers": ["cheap"]}, "no tier 'cheap'"),
        ({"reuse_for": 30}, "has no unit"),
        ({"deadline": 30}, "deadline= takes a timedelta"),
        ({"model": ""}, "names no model"),
        ({"output": str}, "pydantic model"),
        ({"endpoint": "embeddings"}, "vectors"),
        ({"provider": "nobody"}, "no provider block named 'nobody'"),
    ],
)
def test_options_that_cannot_work(world: World, options: dict[str, Any], words: str) -> None:
    """Each is told with what to write instead."""
    with pytest.raises(ConfigurationError, match=words):
        in_flow(world, **options)


def test_nothing_of_prompt_or_answer_reaches_prefect(world: World) -> None:
    """Parameters, inputs, states, logs and artifacts hold no word of either, whatever way it is called."""
    options = world.options()

    @flow
    def asks() -> tuple[Any, bool]:
        future: Any = complete.submit(f"{MARK}: tell me of valve 1.", **options)
        many: Any = complete.map([f"{MARK}: tell me of valve {number}." for number in range(2, 4)], **options)
        answer = complete([{"role": "user", "content": f"{MARK}: tell me of valve 5."}], **options)
        return this_run(), all(MARK in text for text in [answer, future.result(), *many.result()])

    run, told = asks()
    assert told
    seen = json.dumps(asyncio.run(everything_of(run)))
    assert '"complete"' in seen or "complete-" in seen
    assert MARK not in seen
    assert "valve" not in seen
