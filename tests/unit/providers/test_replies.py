"""Live replies into outcomes, and looks at a batch."""

import base64
import struct
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
import pytest

from prefect_llm_tiers.core.batches import BatchCounts, ProviderBatch, ProviderBatchStatus
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers import anthropic_batches, openai_batches
from prefect_llm_tiers.providers.anthropic_replies import read_message
from prefect_llm_tiers.providers.openai_replies import read_reply

SOME = {"input_tokens": 10, "output_tokens": 4}


def response(asked: Tier = Tier.STANDARD, **body: Any) -> Outcome:
    """Read a response."""
    return read_reply(Endpoint.RESPONSES, orjson.dumps(body), key="k", asked=asked, request_id="req_1")


def completion(asked: Tier = Tier.STANDARD, **choice: Any) -> Outcome:
    """Read a chat completion."""
    body = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 4}}
    return read_reply(Endpoint.CHAT_COMPLETIONS, orjson.dumps(body), key="k", asked=asked, request_id=None)


def message(asked: Tier = Tier.STANDARD, **body: Any) -> Outcome:
    """Read a message."""
    return read_message(orjson.dumps({"usage": SOME, **body}), key="k", asked=asked, request_id="req_1")


def said(text: str, **item: Any) -> dict[str, Any]:
    """Return an output item with a text."""
    return {"type": "message", "content": [{"type": "output_text", "text": text}], **item}


def verdict(outcome: Outcome) -> tuple[OutcomeKind, str | None, str | None, Billing]:
    """Return what a row gets of an outcome."""
    return outcome.kind, outcome.reason, outcome.text, outcome.billing


ANSWER, REFUSAL, FAILURE, RETRY = (
    OutcomeKind.ANSWER,
    OutcomeKind.REFUSAL,
    OutcomeKind.FAILURE,
    OutcomeKind.RETRY,
)
BILLED, UNBILLED, UNKNOWN = Billing.BILLED, Billing.UNBILLED, Billing.UNKNOWN


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"status": "completed", "output": [said("a"), said("b")]}, (ANSWER, None, "ab", BILLED)),
        ({"output": [said("a")]}, (ANSWER, None, "a", BILLED)),
        (
            {
                "status": "completed",
                "output": [said("hm", phase="commentary"), said("a", phase="final_answer")],
            },
            (ANSWER, None, "a", BILLED),
        ),
        (
            {
                "status": "completed",
                "output": [{"type": "reasoning", "content": [{"text": "hm"}]}, said("a")],
            },
            (ANSWER, None, "a", BILLED),
        ),
        (
            {
                "status": "completed",
                "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}],
            },
            (REFUSAL, "refusal", "no", BILLED),
        ),
        (
            {
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "output": [said("a")],
            },
            (FAILURE, "length", "a", BILLED),
        ),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []},
            (REFUSAL, "content_filter", None, BILLED),
        ),
        ({"status": "incomplete", "output": []}, (FAILURE, "incomplete", None, BILLED)),
        (
            {"status": "completed", "output": [{"type": "function_call"}]},
            (FAILURE, "tool_call", None, BILLED),
        ),
        ({"status": "completed", "output": []}, (FAILURE, "empty", None, BILLED)),
        ({"status": "completed", "output": [said("")]}, (FAILURE, "empty", None, BILLED)),
        ({"status": "failed", "error": {"code": "server_error"}}, (RETRY, "server_error", None, UNBILLED)),
        (
            {"status": "failed", "error": {"code": "rate_limit_exceeded"}},
            (RETRY, "rate_limit_exceeded", None, UNBILLED),
        ),
        (
            {"status": "failed", "error": {"code": "invalid_image"}},
            (FAILURE, "invalid_image", None, UNBILLED),
        ),
        ({"status": "failed", "error": {"code": "bio_policy"}}, (REFUSAL, "bio_policy", None, UNBILLED)),
        ({"status": "failed", "error": None}, (FAILURE, "failed", None, UNBILLED)),
        (
            {"status": "failed", "error": {"code": "server_error"}, "usage": SOME},
            (RETRY, "server_error", None, BILLED),
        ),
        ({"status": "queued", "output": []}, (RETRY, "queued", None, UNKNOWN)),
        ({}, (RETRY, "unreadable_reply", None, UNKNOWN)),
    ],
)
def test_each_end_of_a_response_is_an_outcome(body: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """How a response ended decides what its row gets; counted tokens are billed, whatever the end."""
    assert verdict(response(**body)) == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"message": {"content": "a"}, "finish_reason": "stop"}, (ANSWER, None, "a", BILLED)),
        ({"message": {"content": [{"type": "text", "text": "a"}]}}, (ANSWER, None, "a", BILLED)),
        (
            {"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"},
            (REFUSAL, "refusal", "no", BILLED),
        ),
        ({"message": {"content": "a"}, "finish_reason": "length"}, (FAILURE, "length", "a", BILLED)),
        (
            {"message": {"content": ""}, "finish_reason": "content_filter"},
            (REFUSAL, "content_filter", None, BILLED),
        ),
        (
            {"message": {"tool_calls": [{}]}, "finish_reason": "tool_calls"},
            (FAILURE, "tool_call", None, BILLED),
        ),
        ({"message": {"content": ""}, "finish_reason": "stop"}, (FAILURE, "empty", None, BILLED)),
        ({"message": None}, (RETRY, "unreadable_reply", None, BILLED)),
    ],
)
def test_each_end_of_a_chat_completion_is_an_outcome(choice: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """The same ends in the older shape."""
    assert verdict(completion(**choice)) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            (ANSWER, None, "ab", BILLED),
        ),
        (
            {
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}],
                "stop_reason": "end_turn",
            },
            (ANSWER, None, "a", BILLED),
        ),
        (
            {"content": [{"type": "text", "text": "no"}], "stop_reason": "refusal"},
            (REFUSAL, "refusal", "no", BILLED),
        ),
        (
            {"content": [{"type": "text", "text": "a"}], "stop_reason": "max_tokens"},
            (FAILURE, "length", "a", BILLED),
        ),
        (
            {"content": [{"type": "tool_use"}], "stop_reason": "tool_use"},
            (FAILURE, "tool_call", None, BILLED),
        ),
        ({"content": [], "stop_reason": "end_turn"}, (FAILURE, "empty", None, BILLED)),
        ({"content": [], "stop_reason": "pause_turn"}, (FAILURE, "pause_turn", None, BILLED)),
        ({"error": "none of this"}, (RETRY, "unreadable_reply", None, BILLED)),
        ({"error": "none of this", "usage": None}, (RETRY, "unreadable_reply", None, UNKNOWN)),
    ],
)
def test_each_end_of_a_message_is_an_outcome(body: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """The same ends in Anthropic's words."""
    assert verdict(message(**body)) == expected


@pytest.mark.parametrize(
    ("named", "asked", "served"),
    [
        ("default", Tier.PRIORITY, Tier.STANDARD),
        ("flex", Tier.FLEX, Tier.FLEX),
        ("priority", Tier.PRIORITY, Tier.PRIORITY),
        ("fast", Tier.PRIORITY, Tier.PRIORITY),
        (None, Tier.STANDARD, Tier.STANDARD),
        ("auto", Tier.STANDARD, Tier.STANDARD),
        (None, Tier.FLEX, None),
        ("auto", Tier.PRIORITY, None),
        ("scale", Tier.STANDARD, None),
        (7, Tier.STANDARD, None),
        ("default", Tier.BATCH, Tier.BATCH),
    ],
)
def test_the_tier_served_is_what_the_reply_says(named: Any, asked: Tier, served: Tier | None) -> None:
    """A downgrade is seen; a wish that nobody confirmed is left open, so that it is not priced too low."""
    outcome = response(asked, status="completed", output=[said("a")], service_tier=named, usage=SOME)
    assert outcome.tier_served is served


@pytest.mark.parametrize(
    ("named", "asked", "served"),
    [
        ("standard", Tier.STANDARD, Tier.STANDARD),
        ("priority", Tier.STANDARD, Tier.PRIORITY),
        (None, Tier.STANDARD, Tier.STANDARD),
        ("novel", Tier.STANDARD, None),
        ("standard", Tier.BATCH, Tier.BATCH),
    ],
)
def test_anthropics_tier_is_in_its_usage(named: str | None, asked: Tier, served: Tier | None) -> None:
    """The usage names the tier; silence means the one asked for, since calls ask for `standard_only`."""
    outcome = message(asked, content=[{"type": "text", "text": "a"}], usage={**SOME, "service_tier": named})
    assert outcome.tier_served is served


def test_tokens_of_both_dialects_mean_the_same() -> None:
    """Input is all of the input in both: what OpenAI counts in, Anthropic counts beside it."""
    full = Usage(input_tokens=100, cached_input_tokens=60, cache_write_tokens=30, output_tokens=20, reasoning_tokens=5)
    details = {"cached_tokens": 60, "cache_write_tokens": 30}
    openai = response(
        status="completed",
        output=[said("a")],
        usage={
            "input_tokens": 100,
            "input_tokens_details": details,
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 5},
        },
    )
    body = {
        "choices": [{"message": {"content": "a"}}],
        "usage": {
            "prompt_tokens": 100,
            "prompt_tokens_details": details,
            "completion_tokens": 20,
            "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": None},
        },
    }
    chat = read_reply(Endpoint.CHAT_COMPLETIONS, orjson.dumps(body), key="k", asked=Tier.STANDARD, request_id=None)
    anthropic = message(
        content=[{"type": "text", "text": "a"}],
        usage={
            "input_tokens": 10,
            "cache_read_input_tokens": 60,
            "cache_creation_input_tokens": 30,
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 5},
        },
    )
    assert openai.usage == chat.usage == anthropic.usage == full


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "many",
        {"input_tokens": 10},
        {"input_tokens": None, "output_tokens": 4},
        {"input_tokens": -1, "output_tokens": 4},
        {"input_tokens": "10", "output_tokens": 4},
        {"input_tokens": 10.5, "output_tokens": 4},
        {"input_tokens": True, "output_tokens": 4},
        {"input_tokens": 1 << 60, "output_tokens": 4},
        {
            "input_tokens": 10,
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 5, "thinking_tokens": 5},
        },
    ],
)
def test_usage_that_cannot_be_true_is_none(usage: Any) -> None:
    """An answer without believable tokens is kept, billed and unpriced; its usage is not guessed."""
    for outcome in (
        response(status="completed", output=[said("a")], usage=usage),
        message(content=[{"type": "text", "text": "a"}], usage=usage),
    ):
        assert (outcome.kind, outcome.text, outcome.billing) == (ANSWER, "a", BILLED)
        assert outcome.usage is None


def test_more_cached_than_read_is_none() -> None:
    """A cached part larger than the whole would make a negative price."""
    usage = {**SOME, "input_tokens_details": {"cached_tokens": 11}}
    assert response(status="completed", output=[said("a")], usage=usage).usage is None


# Batches


def openai_batch(**fields: Any) -> ProviderBatch:
    """Look at a batch of OpenAI's."""
    body = orjson.dumps({"id": "batch_1", "created_at": 1_800_000_000, **fields})
    return openai_batches.provider_batch(msgspec.json.decode(body, type=openai_batches.BatchReply))


def anthropic_batch(**fields: Any) -> ProviderBatch:
    """Look at an ended batch of Anthropic's."""
    body = orjson.dumps({"id": "b", "created_at": "2026-11-20T21:00:00.5Z", "processing_status": "ended", **fields})
    return anthropic_batches.provider_batch(msgspec.json.decode(body, type=anthropic_batches.BatchReply))


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        ("validating", ProviderBatchStatus.IN_PROGRESS),
        ("in_progress", ProviderBatchStatus.IN_PROGRESS),
        ("finalizing", ProviderBatchStatus.IN_PROGRESS),
        ("novel", ProviderBatchStatus.IN_PROGRESS),
        (None, ProviderBatchStatus.IN_PROGRESS),
        ("cancelling", ProviderBatchStatus.CANCELLING),
        ("completed", ProviderBatchStatus.COMPLETED),
        ("failed", ProviderBatchStatus.FAILED),
        ("expired", ProviderBatchStatus.EXPIRED),
        ("cancelled", ProviderBatchStatus.CANCELLED),
    ],
)
def test_openais_statuses_are_translated(wire: str | None, status: ProviderBatchStatus) -> None:
    """A status that nobody knows counts as running, so that the batch is looked at again."""
    assert openai_batch(status=wire).status is status


@pytest.mark.parametrize(
    ("fields", "ready"),
    [
        ({"status": "in_progress", "request_counts": {"total": 2, "completed": 0, "failed": 0}}, False),
        ({"status": "completed", "request_counts": {"total": 2, "completed": 2, "failed": 0}}, False),
        (
            {
                "status": "completed",
                "output_file_id": "f",
                "request_counts": {"total": 2, "completed": 2, "failed": 0},
            },
            True,
        ),
        (
            {
                "status": "completed",
                "error_file_id": "f",
                "request_counts": {"total": 2, "completed": 0, "failed": 2},
            },
            True,
        ),
        ({"status": "failed"}, True),
        ({"status": "expired", "request_counts": {"total": 2, "completed": 1, "failed": 0}}, False),
    ],
)
def test_results_are_ready_when_their_file_is_named(fields: dict[str, Any], ready: bool) -> None:
    """A batch may be completed for a poll or two before its output file is named."""
    assert openai_batch(**fields).results_ready is ready


def test_a_batch_that_failed_says_why() -> None:
    """The codes of a failed batch come once each, in order; what is no code is dropped."""
    errors = {
        "data": [
            {"code": "token_limit_exceeded"},
            {"code": "token_limit_exceeded"},
            {"code": "my prompt"},
            None,
        ]
    }
    seen = openai_batch(status="failed", errors=errors, failed_at=1_800_000_060)
    assert seen.error_codes == ("token_limit_exceeded",)
    assert seen.ended_at == datetime.fromtimestamp(1_800_000_060, tz=UTC)


@pytest.mark.parametrize("odd", [None, [], "x", 7, {"total": -1}, {"data": 7}, {"llm_tiers_token": 7}])
def test_odd_fields_of_a_batch_are_passed_over(odd: Any) -> None:
    """Counts, metadata and errors of an odd shape count as missing: the batch itself is still seen."""
    seen = openai_batch(status="completed", request_counts=odd, metadata=odd, errors=odd)
    assert (seen.counts, seen.token, seen.error_codes) == (BatchCounts(), None, ())


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({"succeeded": 3}, ProviderBatchStatus.COMPLETED),
        ({"errored": 3}, ProviderBatchStatus.COMPLETED),
        ({"succeeded": 2, "expired": 1}, ProviderBatchStatus.EXPIRED),
        ({"succeeded": 2, "canceled": 1}, ProviderBatchStatus.CANCELLED),
        (None, ProviderBatchStatus.COMPLETED),
    ],
)
def test_how_an_anthropic_batch_ended_is_in_its_counts(counts: Any, status: ProviderBatchStatus) -> None:
    """Anthropic knows one end; cancelled and expired rows tell which it was."""
    seen = anthropic_batch(request_counts=counts)
    assert seen.status is status
    assert seen.counts.total == (3 if counts else 0)
    assert seen.created_at == datetime(2026, 11, 20, 21, 0, 0, 500_000, tzinfo=UTC)
    assert not seen.results_ready
    assert anthropic_batch(request_counts=counts, results_url="https://x").results_ready


# Endpoints whose answer is the reply itself


def raw(endpoint: Endpoint, **body: Any) -> Outcome:
    """Read a reply of an endpoint."""
    return read_reply(
        endpoint, orjson.dumps(body, option=orjson.OPT_INDENT_2), key="k", asked=Tier.BATCH, request_id=None
    )


FLOATS = [0.5, -1.0]
PACKED = base64.b64encode(struct.pack("<2f", *FLOATS)).decode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([{"index": 0, "embedding": PACKED}], PACKED),
        ([{"index": 0, "embedding": FLOATS}], PACKED),
        ([{"embedding": PACKED}], PACKED),
        ([{"index": 1, "embedding": "AACAPw=="}, {"index": 0, "embedding": PACKED}], f'["{PACKED}","AACAPw=="]'),
        ([{"index": 7, "embedding": PACKED}, {"index": 7, "embedding": FLOATS}], f'["{PACKED}","{PACKED}"]'),
        ([], None),
        ([{"index": 0, "embedding": ""}], None),
        ([{"index": 0, "embedding": []}], None),
        ([{"index": 0, "embedding": "AAA="}], None),
        ([{"index": 0, "embedding": "no base64"}], None),
        ([{"index": 0, "embedding": [1e300]}], None),
        ([{"index": 0, "embedding": [None]}], None),
        ([{"index": 0}], None),
        (None, None),
    ],
)
def test_an_embedding_is_base64_whichever_way_it_came(data: Any, text: str | None) -> None:
    """One input gives one text, several a list in their order; what is no vector is no answer, and was billed."""
    outcome = raw(Endpoint.EMBEDDINGS, data=data, usage={"prompt_tokens": 8, "total_tokens": 8})
    assert outcome.text == text
    assert outcome.kind is (RETRY if text is None else ANSWER)
    assert outcome.billing is BILLED
    assert outcome.usage == Usage(input_tokens=8)
    assert outcome.tier_served is Tier.BATCH


def test_a_moderation_is_free() -> None:
    """It has no usage and no bill, and is no row that waits for a price."""
    outcome = raw(Endpoint.MODERATIONS, id="modr-1", results=[{"flagged": False}])
    assert outcome.text == '{"id":"modr-1","results":[{"flagged":false}]}'
    assert (outcome.kind, outcome.billing, outcome.usage, outcome.tier_served) == (ANSWER, UNBILLED, None, None)


def test_images_in_the_input_leave_the_call_unpriced() -> None:
    """They cost more than text; a usage that holds text alone is kept."""
    usage = {"input_tokens": 50, "output_tokens": 90, "output_tokens_details": {"image_tokens": 90}}
    text_only = usage | {"input_tokens_details": {"text_tokens": 50, "image_tokens": 0}}
    with_image = usage | {"input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}
    data = [{"b64_json": "AAAA"}]
    assert raw(Endpoint.IMAGES, data=data, usage=text_only).usage == Usage(input_tokens=50, output_tokens=90)
    for endpoint in (Endpoint.IMAGES, Endpoint.IMAGE_EDITS):
        outcome = raw(endpoint, data=data, usage=with_image)
        assert (outcome.kind, outcome.usage, outcome.billing) == (ANSWER, None, BILLED)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"id": "v", "status": "completed", "prompt": "secret"}, (ANSWER, None, BILLED)),
        ({"id": "v", "status": "failed", "error": {"code": "server_error"}}, (RETRY, "server_error", UNBILLED)),
        (
            {"id": "v", "status": "failed", "error": {"code": "moderation_blocked"}},
            (REFUSAL, "moderation_blocked", UNBILLED),
        ),
        ({"id": "v", "status": "failed", "error": {"code": "no_space"}}, (FAILURE, "no_space", UNBILLED)),
        ({"error": {"code": "x"}}, (RETRY, "unreadable_reply", UNKNOWN)),
    ],
)
def test_a_video_is_a_job_that_may_have_failed(body: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """A job that failed is no answer; one that is done is kept without the prompt that it repeats."""
    outcome = raw(Endpoint.VIDEOS, **body)
    assert (outcome.kind, outcome.reason, outcome.billing) == expected
    assert "secret" not in (outcome.text or "")


@pytest.mark.parametrize(
    "endpoint", [Endpoint.EMBEDDINGS, Endpoint.COMPLETIONS, Endpoint.MODERATIONS, Endpoint.IMAGES, Endpoint.IMAGE_EDITS]
)
@pytest.mark.parametrize("body", [{}, {"error": {"message": "x"}}, {"data": None, "choices": 0, "results": []}])
def test_a_reply_without_its_content_is_no_answer(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Hosts that answer 200 with an error in the place of the content are asked again."""
    outcome = raw(endpoint, **body)
    assert (outcome.kind, outcome.reason, outcome.text) == (RETRY, "unreadable_reply", None)
