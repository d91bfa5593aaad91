import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import anthropic
import pytest

from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import Box, anthropic_requests

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
SAID: Any = [{"role": "user", "content": "Summarize.\n\nA lock guards a row. It is held until the end."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["api", "howto"]}},
    "required": ["topic"],
    "additionalProperties": False,
}


async def results(box: Box, batch_id: str) -> dict[str, Any]:
    """Return a batch's results by custom_id."""
    stream = await box.anthropic().messages.batches.results(batch_id)
    return {line.custom_id: line.result async for line in stream}


def test_a_message_answers() -> None:
    """A message is made of the document's sentences and names its tier and usage."""
    box = Box()
    message: Any = box.run(
        box.anthropic().messages.create(
            model="claude-haiku-5-5", max_tokens=100, messages=SAID, service_tier="standard_only"
        )
    )
    assert message.content[0].text == "A lock guards a row. It is held until the end."
    assert message.stop_reason == "end_turn"
    assert message.usage.service_tier == "standard"
    assert message.usage.input_tokens == -(-len(SAID[0]["content"]) // 4)


def test_structured_output_follows_its_schema() -> None:
    """output_config.format is met."""
    box = Box()
    message: Any = box.run(
        box.anthropic().messages.create(
            model="claude-sonnet-5-5",
            max_tokens=100,
            messages=SAID,
            output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        )
    )
    assert json.loads(message.content[0].text)["topic"] in {"api", "howto"}


def test_an_answer_is_cut_at_max_tokens() -> None:
    """max_tokens ends a message with that stop reason and that many tokens."""
    box = Box()
    message = box.run(box.anthropic().messages.create(model="claude-haiku-5-5", max_tokens=3, messages=SAID))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_a_refusal_stops_with_refusal() -> None:
    """The model's refusal is a stop reason."""
    box = Box(WorldSettings(refusal_rate=1.0))
    message = box.run(box.anthropic().messages.create(model="claude-haiku-5-5", max_tokens=50, messages=SAID))
    assert message.stop_reason == "refusal"


def test_cached_input_is_counted_beside_the_input() -> None:
    """What was read from the cache is not among input_tokens, and costs a tenth."""
    box = Box(WorldSettings(cached_input_share=0.5))
    long: Any = [{"role": "user", "content": "x" * 4000}]
    message = box.run(box.anthropic().messages.create(model="claude-haiku-5-5", max_tokens=1, messages=long))
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (500, 500)
    line = box.simulation.account().lines[0]
    assert (line.input_tokens, line.cached_input_tokens) == (1000, 500)
    assert line.billed_usd == Decimal("0.0000555")


Call = Callable[[anthropic.AsyncAnthropic], Awaitable[Any]]

BAD_CALLS: dict[str, tuple[Call, int, str]] = {
    "unknown model": (
        lambda c: c.messages.create(model="nope", max_tokens=9, messages=SAID),
        404,
        "not_found_error",
    ),
    "other provider's model": (
        lambda c: c.messages.create(model="gpt-6-luna", max_tokens=9, messages=SAID),
        404,
        "not_found_error",
    ),
    "no messages": (
        lambda c: c.messages.create(model="claude-haiku-5-5", max_tokens=9, messages=[]),
        400,
        "invalid_request_error",
    ),
    "no max_tokens": (
        lambda c: c.post("/v1/messages", cast_to=object, body={"model": "claude-haiku-5-5", "messages": SAID}),
        400,
        "invalid_request_error",
    ),
    "unknown field": (
        lambda c: c.messages.create(model="claude-haiku-5-5", max_tokens=9, messages=SAID, extra_body={"zz": 1}),
        400,
        "invalid_request_error",
    ),
    "unknown tier": (
        lambda c: c.messages.create(
            model="claude-haiku-5-5",
            max_tokens=9,
            messages=SAID,
            service_tier="flex",  # type: ignore[call-overload]
        ),
        400,
        "invalid_request_error",
    ),
    "open schema": (
        lambda c: c.messages.create(
            model="claude-haiku-5-5",
            max_tokens=9,
            messages=SAID,
            output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        ),
        400,
        "invalid_request_error",
    ),
    "unknown batch": (lambda c: c.messages.batches.retrieve("msgbatch_nope"), 404, "not_found_error"),
    "unknown model retrieved": (lambda c: c.models.retrieve("nope"), 404, "not_found_error"),
    "empty batch": (lambda c: c.messages.batches.create(requests=[]), 400, "invalid_request_error"),
    "duplicate custom_id": (
        lambda c: c.messages.batches.create(requests=anthropic_requests(1) * 2),
        400,
        "invalid_request_error",
    ),
    "bad custom_id": (
        lambda c: c.messages.batches.create(requests=[anthropic_requests(1)[0] | {"custom_id": "a b"}]),
        400,
        "invalid_request_error",
    ),
    "unknown batch field": (
        lambda c: c.messages.batches.create(requests=[anthropic_requests(1)[0] | {"method": "POST"}]),
        400,
        "invalid_request_error",
    ),
    "too many requests": (
        lambda c: c.messages.batches.create(requests=anthropic_requests(6)),
        400,
        "invalid_request_error",
    ),
    "too many bytes": (
        lambda c: c.messages.batches.create(requests=anthropic_requests(1, system="x" * 5000)),
        413,
        "request_too_large",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_get_the_real_status_and_type(case: str) -> None:
    """What Anthropic refuses is refused with its status and error type, and costs nothing."""
    call, status, kind = BAD_CALLS[case]
    box = Box(
        WorldSettings(batch_requests={"openai": 5, "anthropic": 5}, batch_bytes={"openai": 5000, "anthropic": 5000})
    )

    async def ask() -> None:
        await call(box.anthropic())

    with pytest.raises(anthropic.APIStatusError) as caught:
        box.run(ask())
    body: Any = caught.value.body
    assert (caught.value.status_code, body["error"]["type"]) == (status, kind)
    assert body["request_id"] == caught.value.response.headers["request-id"]
    assert box.simulation.account().asked == 0


def test_keys_are_checked() -> None:
    """A key that begins with bad and a missing key are 401."""
    box = Box()

    async def ask() -> int:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await box.anthropic("bad-secret").models.list()
        assert "bad-secret" not in str(caught.value)
        reply = await box.http().get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        return reply.status_code

    assert box.run(ask()) == 401


def test_responses_name_the_account() -> None:
    """Every reply carries the organisation and a request id."""
    box = Box(WorldSettings(organization="org-9"))

    async def ask() -> Any:
        raw = await box.anthropic().models.with_raw_response.retrieve("claude-opus-5-5")
        return raw.headers

    headers = box.run(ask())
    assert headers["anthropic-organization-id"] == "org-9"
    assert headers["request-id"].startswith("req_")


def test_models_are_this_dialects() -> None:
    """/v1/models under Anthropic's version header lists Claude only, page by page."""
    box = Box()

    async def ask() -> list[str]:
        return [model.id async for model in box.anthropic().models.list(limit=1)]

    assert set(box.run(ask())) == {"claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"}


def test_the_accounts_own_limit_is_429() -> None:
    """Beyond the limit rate_limit_error carries retry-after."""
    box = Box(WorldSettings(requests_per_minute=1))

    async def ask() -> None:
        client = box.anthropic()
        await client.messages.create(model="claude-haiku-5-5", max_tokens=9, messages=SAID)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(model="claude-haiku-5-5", max_tokens=9, messages=SAID)
        await box.wait(seconds=float(caught.value.response.headers["retry-after"]))
        await client.messages.create(model="claude-haiku-5-5", max_tokens=9, messages=SAID)

    box.run(ask())


def test_a_batch_shows_no_progress_until_it_ends() -> None:
    """Every request counts as processing until the end; then each has its line, in any order."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> dict[str, Any]:
        client = box.anthropic()
        batch = await client.messages.batches.create(requests=anthropic_requests(50))
        for _ in range(59):
            batch = await client.messages.batches.retrieve(batch.id)
            assert batch.processing_status == "in_progress"
            assert (batch.request_counts.processing, batch.request_counts.succeeded) == (50, 0)
            assert batch.results_url is None
            await box.wait(minutes=1)
        with pytest.raises(anthropic.AnthropicError):
            await results(box, batch.id)
        await box.wait(minutes=2)
        batch = await client.messages.batches.retrieve(batch.id)
        assert batch.processing_status == "ended"
        assert batch.request_counts.succeeded == 50
        assert batch.results_url == f"http://simulator/v1/messages/batches/{batch.id}/results"
        return await results(box, batch.id)

    lines = box.run(live())
    assert set(lines) == {f"row-{number}" for number in range(50)}
    assert list(lines) != [f"row-{number}" for number in range(50)]
    assert {line.type for line in lines.values()} == {"succeeded"}
    assert {line.message.usage.service_tier for line in lines.values()} == {"batch"}


def test_params_are_judged_when_they_are_worked_on() -> None:
    """Bad params are errored lines with the endpoint's own words, and unbilled."""
    box = Box(WorldSettings(batch=HOUR))
    faults: list[dict[str, Any]] = [
        {"stream": True},
        {"speed": "fast"},
        {"max_tokens": 0},
        {"model": "nope"},
        {"zz": 1},
        {"messages": []},
    ]
    requests = [
        anthropic_requests(1, **fault)[0] | {"custom_id": f"row-{number}"} for number, fault in enumerate(faults)
    ]

    async def live() -> dict[str, Any]:
        batch = await box.anthropic().messages.batches.create(requests=requests)
        await box.wait(hours=2)
        return await results(box, batch.id)

    lines = box.run(live())
    kinds = [lines[f"row-{number}"].error.error.type for number in range(len(faults))]
    assert kinds == [
        *["invalid_request_error"] * 3,
        "not_found_error",
        *["invalid_request_error"] * 2,
    ]
    assert box.simulation.account().billed_usd == 0


def test_a_cancelled_batch_is_harvested() -> None:
    """Rows go on being done until the cancel is final; the rest is canceled and unbilled."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> dict[str, Any]:
        client = box.anthropic()
        batch = await client.messages.batches.create(requests=anthropic_requests(200))
        await box.wait(minutes=45)
        batch = await client.messages.batches.cancel(batch.id)
        assert batch.processing_status == "canceling"
        assert batch.request_counts.processing == 200
        await box.wait(minutes=11)
        batch = await client.messages.batches.retrieve(batch.id)
        assert batch.processing_status == "ended"
        lines = await results(box, batch.id)
        assert batch.request_counts.succeeded == sum(line.type == "succeeded" for line in lines.values())
        return lines

    kinds = [line.type for line in box.run(live()).values()]
    assert set(kinds) == {"succeeded", "canceled"}
    assert len(kinds) == 200
    assert box.simulation.account().answered == kinds.count("succeeded")


def test_a_stuck_batch_expires() -> None:
    """A batch that is forced to be stuck expires at 24 h with part of its rows; the next is not stuck."""
    law = BatchLaw(median_s=600, sigma=0, stuck_share=0, stuck_s=(48 * 3600.0, 50 * 3600.0))
    box = Box(WorldSettings(batch=law, stuck_batches=("anthropic:0",)))

    async def live() -> list[str]:
        client = box.anthropic()
        stuck = await client.messages.batches.create(requests=anthropic_requests(100))
        quick = await client.messages.batches.create(requests=anthropic_requests(100))
        await box.wait(hours=1)
        assert (await client.messages.batches.retrieve(quick.id)).processing_status == "ended"
        assert (await client.messages.batches.retrieve(stuck.id)).processing_status == "in_progress"
        await box.wait(hours=23)
        assert (await client.messages.batches.retrieve(stuck.id)).request_counts.expired > 0
        return [line.type for line in (await results(box, stuck.id)).values()]

    kinds = box.run(live())
    assert set(kinds) <= {"succeeded", "expired"}
    assert len(kinds) == 100
    assert box.simulation.account().answered == 100 + kinds.count("succeeded")


def test_results_are_kept_for_29_days() -> None:
    """After 29 days a batch is archived and its results are gone."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> Any:
        batch = await box.anthropic().messages.batches.create(requests=anthropic_requests(2))
        await box.wait(days=29, seconds=-1)
        await results(box, batch.id)
        await box.wait(seconds=2)
        return await box.anthropic().messages.batches.retrieve(batch.id)

    batch = box.run(live())
    assert batch.archived_at is not None
    assert batch.results_url is None


def test_only_ended_batches_are_deleted() -> None:
    """Delete is refused while a batch runs; its money stays on the account afterwards."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> None:
        client = box.anthropic()
        batch = await client.messages.batches.create(requests=anthropic_requests(2))
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.batches.delete(batch.id)
        await box.wait(hours=2)
        assert (await client.messages.batches.delete(batch.id)).id == batch.id
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.retrieve(batch.id)

    box.run(live())
    assert box.simulation.account().answered == 2


def test_lists_page_in_both_directions() -> None:
    """after_id walks to older batches, before_id gives the ones right before, limit up to 1,000."""
    box = Box()

    async def walk() -> None:
        client = box.anthropic()
        created = [(await client.messages.batches.create(requests=anthropic_requests(1))).id for _ in range(7)]
        newest_first = created[::-1]
        assert [batch.id async for batch in client.messages.batches.list(limit=3)] == newest_first
        page = await client.messages.batches.list(limit=2, before_id=newest_first[5])
        assert [batch.id for batch in page.data] == newest_first[3:5]
        assert page.has_more
        assert len((await client.messages.batches.list(limit=1000)).data) == 7
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.batches.list(limit=1001)

    box.run(walk())
