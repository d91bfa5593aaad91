import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import openai
import pytest

from prefect_llm_tiers.simulator.settings import FlexOutages, LiveLaw, WorldSettings
from tests.unit.simulator.box import START, Box

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "enum": ["api", "howto", "concept"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["topic", "confidence"],
    "additionalProperties": False,
}
TEXT_FORMAT: Any = {"format": {"type": "json_schema", "name": "label", "strict": True, "schema": SCHEMA}}
PROMPT = "Summarize for an engineer.\n\n# Locks\nA lock guards a row. It is held until the transaction ends."


def test_a_response_reads_the_prompts_document() -> None:
    """A text answer is made of the document's sentences, and the usage follows from the bytes."""
    box = Box()
    response = box.run(box.openai().responses.create(model="gpt-6-luna", input=PROMPT, service_tier="default"))
    assert response.output_text == "A lock guards a row. It is held until the transaction ends."
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.input_tokens == -(-len(PROMPT) // 4)
    assert response.usage.output_tokens == -(-len(response.output_text) // 4)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("auto", "default"),
        ("default", "default"),
        ("flex", "flex"),
        ("priority", "priority"),
        ("fast", "priority"),
    ],
)
def test_the_response_names_the_tier_served(asked: Any, served: str) -> None:
    """Both endpoints tell the tier that was served, which is what is billed."""
    box = Box()

    async def ask() -> list[str | None]:
        client = box.openai()
        response = await client.responses.create(model="gpt-6-luna", input=PROMPT, service_tier=asked)
        chat = await client.chat.completions.create(
            model="gpt-6-luna", messages=[{"role": "user", "content": PROMPT}], service_tier=asked
        )
        return [response.service_tier, chat.service_tier]

    assert box.run(ask()) == [served, served]


def test_structured_answers_follow_their_schema_and_stay_the_same() -> None:
    """A strict schema is met on both endpoints; the same body gives the same answer, bodies differ."""
    box = Box()

    async def ask() -> list[Any]:
        client = box.openai()
        answers = []
        for page in (*range(12), 0):
            response = await client.responses.create(model="gpt-6-luna", input=f"Label.\nPage {page}", text=TEXT_FORMAT)
            answers.append(json.loads(response.output_text))
        chat = await client.chat.completions.create(
            model="gpt-6-luna",
            messages=[{"role": "user", "content": "Label.\nPage 0"}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "label", "strict": True, "schema": SCHEMA},
            },
        )
        return [*answers, json.loads(chat.choices[0].message.content or "")]

    answers = box.run(ask())
    assert all(answer["topic"] in {"api", "howto", "concept"} for answer in answers)
    assert all(0 <= answer["confidence"] <= 1 for answer in answers)
    assert answers[0] == answers[12]
    assert len({answer["topic"] for answer in answers}) == 3


def test_an_answer_is_cut_at_its_limit() -> None:
    """max_output_tokens ends a response as incomplete and a chat completion with reason length."""
    box = Box()

    async def ask() -> tuple[Any, Any]:
        client = box.openai()
        long = "Repeat.\n" + "word " * 400
        response = await client.responses.create(model="gpt-6-luna", input=long, max_output_tokens=16)
        chat = await client.chat.completions.create(
            model="gpt-6-luna", messages=[{"role": "user", "content": long}], max_completion_tokens=5
        )
        return response, chat

    response, chat = box.run(ask())
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 16
    assert chat.choices[0].finish_reason == "length"
    assert chat.usage.completion_tokens == 5


def test_a_refusal_is_a_refusal_part() -> None:
    """The model's refusal comes as the dialect's refusal and is billed."""
    box = Box(WorldSettings(refusal_rate=1.0))

    async def ask() -> tuple[Any, Any]:
        client = box.openai()
        response = await client.responses.create(model="gpt-6-luna", input=PROMPT)
        chat = await client.chat.completions.create(model="gpt-6-luna", messages=[{"role": "user", "content": PROMPT}])
        return response, chat

    response, chat = box.run(ask())
    assert response.output[0].content[0].type == "refusal"
    assert chat.choices[0].message.content is None
    assert chat.choices[0].message.refusal
    assert box.simulation.account().refusals == 2
    assert box.simulation.account().answered == 2


def test_structure_breaks_the_first_time_only() -> None:
    """An unparsable answer comes back whole when the same body is asked again."""
    box = Box(WorldSettings(unparsable_rate=1.0))

    async def ask() -> str:
        response = await box.openai().responses.create(model="gpt-6-luna", input=PROMPT, text=TEXT_FORMAT)
        return response.output_text

    with pytest.raises(json.JSONDecodeError):
        json.loads(box.run(ask()))
    assert set(json.loads(box.run(ask()))) == {"topic", "confidence"}


def test_a_users_function_answers() -> None:
    """A function of the user's gets the question and gives text or an object."""
    box = Box(answer=lambda asked: {"topic": asked.document.split()[-1]})
    response = box.run(box.openai().responses.create(model="gpt-6-luna", input="Label this one"))
    assert json.loads(response.output_text) == {"topic": "one"}


def test_latency_is_the_tiers_law() -> None:
    """A call takes base and tokens of its tier in simulated time."""
    settings = WorldSettings(live={"flex": LiveLaw(base_s=40, per_token_s=2, sigma=0)})  # type: ignore[dict-item]
    box = Box(settings)
    response = box.run(box.openai().responses.create(model="gpt-6-luna", input=PROMPT, service_tier="flex"))
    assert response.usage is not None
    assert (box.clock.now() - START).total_seconds() == 40 + 2 * response.usage.output_tokens


Call = Callable[[openai.AsyncOpenAI], Awaitable[Any]]


BAD_CALLS: dict[str, tuple[Call, int, str | None]] = {
    "unknown model": (lambda c: c.responses.create(model="nope", input="x"), 404, "model_not_found"),
    "other provider's model": (
        lambda c: c.responses.create(model="claude-haiku-5-5", input="x"),
        404,
        "model_not_found",
    ),
    "no model": (lambda c: c.responses.create(input="x"), 400, "missing_required_parameter"),
    "no input": (lambda c: c.responses.create(model="gpt-6-luna"), 400, "missing_required_parameter"),
    "no messages": (
        lambda c: c.chat.completions.create(model="gpt-6-luna", messages=[]),
        400,
        "missing_required_parameter",
    ),
    "unknown field": (
        lambda c: c.responses.create(model="gpt-6-luna", input="x", extra_body={"a": 1}),
        400,
        "unknown_parameter",
    ),
    "tiny limit": (
        lambda c: c.responses.create(model="gpt-6-luna", input="x", max_output_tokens=3),
        400,
        "integer_below_min_value",
    ),
    "unknown tier": (
        lambda c: c.responses.create(model="gpt-6-luna", input="x", service_tier="ultrafast"),
        400,
        "invalid_value",
    ),
    "flex not offered": (
        lambda c: c.responses.create(model="gpt-6.1-sol", input="x", service_tier="flex"),
        400,
        "unsupported_value",
    ),
    "open schema in strict mode": (
        lambda c: c.responses.create(
            model="gpt-6-luna",
            input="x",
            text={"format": {"type": "json_schema", "name": "n", "strict": True, "schema": {"type": "object"}}},
        ),
        400,
        "invalid_json_schema",
    ),
    "model that does not answer": (
        lambda c: c.responses.create(model="text-embedding-3-small", input="x"),
        400,
        None,
    ),
    "unknown model retrieved": (lambda c: c.models.retrieve("nope"), 404, "model_not_found"),
    "unknown batch": (lambda c: c.batches.retrieve("batch_nope"), 404, None),
    "unknown file": (lambda c: c.files.retrieve("file-nope"), 404, None),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_get_the_real_status_and_code(case: str) -> None:
    """What OpenAI refuses is refused with its status and error code, and costs nothing."""
    call, status, code = BAD_CALLS[case]
    box = Box(WorldSettings(without_flex=("gpt-6.1-sol",)))

    async def ask() -> None:
        await call(box.openai())

    with pytest.raises(openai.APIStatusError) as caught:
        box.run(ask())
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert box.simulation.account().asked == 0


def test_keys_are_checked() -> None:
    """A key that begins with bad and a missing key are 401; the body never repeats the key."""
    box = Box()

    async def ask() -> str:
        with pytest.raises(openai.AuthenticationError) as caught:
            await box.openai("bad-secret").models.list()
        assert caught.value.code == "invalid_api_key"
        missing = await box.http().get("/v1/models")
        assert missing.status_code == 401
        return str(caught.value)

    assert "bad-secret" not in box.run(ask())


def test_responses_name_the_account() -> None:
    """Every reply, errors among them, carries organisation, project and request id."""
    box = Box(WorldSettings(organization="org-1", project="proj_1"))

    async def ask() -> list[Any]:
        client = box.openai()
        good = await client.models.with_raw_response.retrieve("gpt-6-luna")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("nope")
        return [good.headers, caught.value.response.headers]

    for headers in box.run(ask()):
        assert headers["openai-organization"] == "org-1"
        assert headers["openai-project"] == "proj_1"
        assert headers["x-request-id"].startswith("req_")


def test_models_tell_their_end() -> None:
    """GET /v1/models lists this dialect's models with their shutdown dates."""
    box = Box()

    async def ask() -> dict[str, str | None]:
        return {model.id: model.shutdown_date async for model in box.openai().models.list()}

    dates = box.run(ask())
    assert dates["o3"] == "2026-12-11"
    assert dates["gpt-6-luna"] is None
    assert not any(name.startswith("claude") for name in dates)
    assert box.simulation.account().models_calls == 1


def test_a_model_past_its_end_can_be_gone() -> None:
    """With enforce_shutdown a retired model is unknown."""
    box = Box(WorldSettings(enforce_shutdown=True))
    with pytest.raises(openai.NotFoundError):
        box.run(box.openai().responses.create(model="o4-mini", input="x"))


def test_flex_without_capacity_is_429_and_free() -> None:
    """A capacity miss says resource_unavailable, costs neither time nor money, and passes."""
    box = Box(WorldSettings(flex_outages=FlexOutages(mean_up_s=60, mean_down_s=60)))
    client = box.openai()

    async def ask() -> tuple[int, list[tuple[str | None, timedelta]]]:
        up = 0
        refused: list[tuple[str | None, timedelta]] = []
        for minute in range(200):
            await box.clock.sleep_until(START + timedelta(hours=1, minutes=minute))
            before = box.clock.now()
            try:
                await client.responses.create(model="gpt-6-luna", input=f"x{minute}", service_tier="flex")
                up += 1
            except openai.RateLimitError as error:
                refused.append((error.code, box.clock.now() - before))
        return up, refused

    up, refused = box.run(ask())
    assert set(refused) == {("resource_unavailable", timedelta(0))}
    account = box.simulation.account()
    assert (account.answered, account.capacity_refused) == (up, len(refused))
    assert 60 < up < 140


def test_the_accounts_own_limit_says_when_to_come_back() -> None:
    """Beyond the limit a 429 carries retry-after, and after it the call is taken."""
    box = Box(WorldSettings(requests_per_minute=3, live={"standard": LiveLaw(base_s=0, per_token_s=0)}))  # type: ignore[dict-item]
    client = box.openai()

    async def ask() -> None:
        for left in (2, 1, 0):
            raw = await client.responses.with_raw_response.create(model="gpt-6-luna", input="x")
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model="gpt-6-luna", input="x")
        assert caught.value.code == "rate_limit_exceeded"
        await box.wait(seconds=float(caught.value.response.headers["retry-after"]))
        await client.responses.create(model="gpt-6-luna", input="x")

    box.run(ask())
    assert box.simulation.account().rate_limited == 1


def test_tokens_are_limited_too() -> None:
    """A minute's tokens count input and the output that was allowed."""
    box = Box(WorldSettings(tokens_per_minute=1000))
    client = box.openai()

    async def ask() -> None:
        await client.responses.create(model="gpt-6-luna", input="x", max_output_tokens=900)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model="gpt-6-luna", input="x", max_output_tokens=900)
        assert caught.value.type == "tokens"

    box.run(ask())


def test_server_errors_cost_nothing() -> None:
    """A 500 is drawn for each try and unbilled."""
    box = Box(WorldSettings(error_rate=1.0))
    with pytest.raises(openai.InternalServerError):
        box.run(box.openai().responses.create(model="gpt-6-luna", input="x"))
    account = box.simulation.account()
    assert (account.asked, account.answered, account.errors, account.billed_usd) == (1, 0, 1, Decimal(0))
