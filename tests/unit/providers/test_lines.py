"""Lines in pieces, and result lines of any bytes."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.ports import BatchLine, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, custom_id
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers import anthropic_replies, lines, openai_replies
from prefect_llm_tiers.providers.lines import chunks, split_lines, spooled

KEY = "k" * 43
ID = custom_id(KEY, "t" * 20)


async def _pieces(text: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def split(text: bytes, size: int = 7) -> list[bytes | None]:
    """Return the lines of a text that comes in pieces of `size` bytes."""

    async def main() -> list[bytes | None]:
        return [line async for line in split_lines(_pieces(text, size))]

    return asyncio.run(main())


def openai_line(line: bytes | None) -> ResultLine:
    """Read a line of OpenAI's."""
    return openai_replies.read_line(line, endpoint=Endpoint.RESPONSES)


def openai_body(text: str = "yes", **more: Any) -> dict[str, Any]:
    """Return the body of a response."""
    return {
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}],
        "usage": {"input_tokens": 3, "output_tokens": 1},
        **more,
    }


def openai_text(status: Any = 200, body: Any = None, **more: Any) -> bytes:
    """Return a line of OpenAI's."""
    response = {"status_code": status, "request_id": "req_1", "body": openai_body() if body is None else body}
    return orjson.dumps({"id": "x", "custom_id": ID, "response": response, "error": None, **more})


def anthropic_text(**result: Any) -> bytes:
    """Return a line of Anthropic's."""
    return orjson.dumps({"custom_id": ID, "result": result})


def outcome_of(line: ResultLine) -> Outcome:
    """Return the outcome of a line that must be ours."""
    assert line.custom_id == ID
    assert line.outcome is not None
    assert line.outcome.key == KEY
    return line.outcome


# Splitting


@given(
    texts=st.lists(st.text(alphabet=st.characters(exclude_characters="\n\r\t \ufeff", codec="utf-8"), min_size=1)),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\r\n"]),
    size=st.integers(1, 9),
    last=st.booleans(),
    mark=st.booleans(),
)
@example(texts=["a\u2028b\u2029c\x85d\x0be"], end=b"\n", size=2, last=False, mark=True)
def test_a_line_ends_at_a_line_feed_alone(texts: list[str], end: bytes, size: int, last: bool, mark: bool) -> None:
    """However the bytes are cut, the lines come whole, blank ones and byte order marks aside."""
    encoded = [text.encode() for text in texts]
    text = (b"\xef\xbb\xbf" if mark else b"") + end.join(encoded) + (end if last else b"")
    assert split(text, size) == encoded


def test_a_line_beyond_all_bounds_is_one_broken_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that would fill the memory is dropped, and those around it are read."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 20)
    assert split(b"one\n" + b"x" * 21 + b"\ntwo\n" + b"y" * 20 + b"\n" + b"z" * 500) == [
        b"one",
        None,
        b"two",
        b"y" * 20,
        None,
    ]
    assert openai_line(None) == anthropic_replies.read_line(None) == ResultLine(custom_id=None, outcome=None)


@given(bodies=st.lists(st.binary(min_size=1, max_size=30), max_size=5))
def test_lines_are_spooled_as_they_are(bodies: list[bytes]) -> None:
    """The file holds the bytes of each line, with head, separators and tail, and is read whole."""

    async def outgoing() -> AsyncIterator[BatchLine]:
        for body in bodies:
            yield BatchLine(custom_id="x", body=body)

    async def main() -> bytes:
        with await spooled(outgoing(), lambda line: line.body, head=b"[", between=b",", tail=b"]") as file:
            return b"".join([chunk async for chunk in chunks(file)])

    assert asyncio.run(main()) == b"[" + b",".join(bodies) + b"]"


# Any bytes at all


PIECES = st.sampled_from(
    [
        openai_text(),
        openai_text(0),
        anthropic_text(type="succeeded", message={"content": [{"type": "text", "text": "yes"}]}),
        anthropic_text(type="expired"),
        b"\xff\xfe",
        b"\xe2\x80\xa8",
        b"null",
        b"{}",
        b"[" * 2000,
        b'{"custom_id":"\\ud800"}',
    ]
)


@given(text=st.lists(st.binary(max_size=20) | PIECES, max_size=6).map(b"\n".join))
def test_no_bytes_break_a_parser(text: bytes) -> None:
    """Whatever comes, each line that is not blank yields exactly one result line."""
    found = split(text, 50)
    for read in (openai_line, anthropic_replies.read_line):
        assert all(isinstance(read(line), ResultLine) for line in found)
    blank = [
        line for line in text.split(b"\n") if not line.strip(b" \t\r").removeprefix(b"\xef\xbb\xbf").strip(b" \t\r")
    ]
    assert len(found) == len(text.split(b"\n")) - len(blank)


ODD: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data())
def test_no_odd_value_anywhere_breaks_a_parser(data: st.DataObject) -> None:
    """A line in which any one value is of any other type still yields an outcome for its id."""
    full_openai = json.loads(openai_text(body=openai_body(service_tier="flex", error=None)))
    message = {
        "id": "msg",
        "content": [{"type": "text", "text": "yes"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1, "service_tier": "batch"},
    }
    full_anthropic = json.loads(anthropic_text(type="succeeded", message=message))
    for line, read in ((full_openai, openai_line), (full_anthropic, anthropic_replies.read_line)):
        places = list(_places(line))
        holder, name = data.draw(st.sampled_from([place for place in places if place[1] != "custom_id"]))
        holder[name] = data.draw(ODD)
        found = read(json.dumps(line).encode("utf-8", "surrogatepass"))
        assert found.custom_id == ID
        assert found.outcome is not None
        assert (found.outcome.reason is None) == (found.outcome.kind is OutcomeKind.ANSWER)


def _places(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return [(value, key) for key in value] + [place for item in value.values() for place in _places(item)]
    if isinstance(value, list):
        return [(value, at) for at in range(len(value))] + [place for item in value for place in _places(item)]
    return []


# What lines mean


@pytest.mark.parametrize(
    ("line", "kind", "reason", "billing"),
    [
        (openai_text(), OutcomeKind.ANSWER, None, Billing.BILLED),
        (openai_text(0), OutcomeKind.RETRY, "no_status", Billing.UNKNOWN),
        (openai_text("200"), OutcomeKind.RETRY, "no_reply", Billing.UNKNOWN),
        (
            openai_text(429, {"error": {"code": "rate_limit_exceeded"}}),
            OutcomeKind.RETRY,
            "rate_limit_exceeded",
            Billing.UNBILLED,
        ),
        (
            openai_text(500, {"error": {"type": "server_error"}}),
            OutcomeKind.RETRY,
            "server_error",
            Billing.UNBILLED,
        ),
        (openai_text(503, "busy"), OutcomeKind.RETRY, "service_unavailable", Billing.UNBILLED),
        (
            openai_text(400, {"error": {"code": "context_length_exceeded"}}),
            OutcomeKind.FAILURE,
            "context_length_exceeded",
            Billing.UNBILLED,
        ),
        (
            openai_text(404, {"error": {"code": "model_not_found"}}),
            OutcomeKind.FAILURE,
            "model_not_found",
            Billing.UNBILLED,
        ),
        (
            openai_text(400, {"error": {"code": "content_policy_violation"}}),
            OutcomeKind.REFUSAL,
            "content_policy_violation",
            Billing.UNBILLED,
        ),
        (openai_text(200, "text"), OutcomeKind.RETRY, "unreadable_reply", Billing.UNKNOWN),
        (openai_text(200, {}), OutcomeKind.RETRY, "unreadable_reply", Billing.UNKNOWN),
        (
            orjson.dumps({"custom_id": ID, "response": {"status_code": 200, "body": None}}),
            OutcomeKind.RETRY,
            "unreadable_reply",
            Billing.UNKNOWN,
        ),
        (
            orjson.dumps({"custom_id": ID, "response": None, "error": {"code": "batch_expired"}}),
            OutcomeKind.RETRY,
            "batch_expired",
            Billing.UNBILLED,
        ),
        (orjson.dumps({"custom_id": ID}), OutcomeKind.RETRY, "no_reply", Billing.UNKNOWN),
    ],
)
def test_each_openai_line_has_its_outcome(line: bytes, kind: OutcomeKind, reason: str | None, billing: Billing) -> None:
    """Status and code of the line decide; what may have been billed in vain is unknown."""
    outcome = outcome_of(openai_line(line))
    assert (outcome.kind, outcome.reason, outcome.billing) == (kind, reason, billing)


@pytest.mark.parametrize(
    ("line", "kind", "reason", "billing"),
    [
        (anthropic_text(type="expired"), OutcomeKind.RETRY, "batch_expired", Billing.UNBILLED),
        (anthropic_text(type="canceled"), OutcomeKind.RETRY, "batch_cancelled", Billing.UNBILLED),
        (anthropic_text(type="novel"), OutcomeKind.RETRY, "no_reply", Billing.UNKNOWN),
        (
            anthropic_text(type="succeeded", message=None),
            OutcomeKind.RETRY,
            "unreadable_reply",
            Billing.UNKNOWN,
        ),
        (
            anthropic_text(type="errored", error={"type": "error", "error": {"type": "invalid_request_error"}}),
            OutcomeKind.FAILURE,
            "invalid_request_error",
            Billing.UNBILLED,
        ),
        (
            anthropic_text(type="errored", error={"type": "overloaded_error", "message": "x"}),
            OutcomeKind.RETRY,
            "overloaded_error",
            Billing.UNBILLED,
        ),
        (
            anthropic_text(type="errored", error={"type": "error", "error": {"type": "api_error"}}),
            OutcomeKind.RETRY,
            "api_error",
            Billing.UNBILLED,
        ),
        (anthropic_text(type="errored", error=None), OutcomeKind.RETRY, "errored", Billing.UNBILLED),
    ],
)
def test_each_anthropic_line_has_its_outcome(line: bytes, kind: OutcomeKind, reason: str, billing: Billing) -> None:
    """The type of the line decides; only what succeeded is billed."""
    outcome = outcome_of(anthropic_replies.read_line(line))
    assert (outcome.kind, outcome.reason, outcome.billing) == (kind, reason, billing)


@pytest.mark.parametrize("broken", [b"\xff", b"\\ud83d", b"\\ud83d\\ud83d"])
def test_a_broken_character_does_not_cost_the_answer(broken: bytes) -> None:
    """An answer with a character that cannot be read is kept, with U+FFFD in its place: it was paid for."""
    line = openai_text(body=openai_body("before after")).replace(b"before after", b"before " + broken + b" after")
    outcome = outcome_of(openai_line(line))
    assert outcome.kind is OutcomeKind.ANSWER
    assert outcome.text is not None
    assert outcome.text.replace("\ufffd", "") == "before  after"
    assert outcome.text.encode()
    assert outcome.usage == Usage(input_tokens=3, output_tokens=1)
    assert outcome.tier_served is Tier.BATCH


def test_a_stranger_has_an_id_and_no_outcome() -> None:
    """A line whose id is not of our making names it, and nothing is recorded under a key it has not."""
    line = openai_text().replace(ID.encode(), b"request-7")
    assert openai_line(line) == ResultLine(custom_id="request-7", outcome=None)
    line = anthropic_text(type="expired").replace(ID.encode(), b"request-7")
    assert anthropic_replies.read_line(line) == ResultLine(custom_id="request-7", outcome=None)
