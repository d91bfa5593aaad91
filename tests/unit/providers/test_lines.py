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
from prefect_llm_tiers.providers import incoming
from prefect_llm_tiers.providers.anthropic_lines import read_anthropic_lines
from prefect_llm_tiers.providers.incoming import line_blocks, trimmed
from prefect_llm_tiers.providers.lines import LineForm, chunks, spooled
from prefect_llm_tiers.providers.openai_lines import read_openai_lines

KEY = "k" * 43
ID = custom_id(KEY, "t" * 20)


async def _pieces(text: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def split(text: bytes, size: int = 7) -> list[bytes]:
    """Return the lines of a text that comes in pieces of `size` bytes."""

    async def main() -> list[bytes]:
        return [
            line
            async for block in line_blocks(_pieces(text, size))
            for line in bytes(block).removesuffix(b"\n").split(b"\n")
        ]

    return asyncio.run(main())


def openai_line(line: bytes) -> ResultLine:
    """Read a line of OpenAI's."""
    (found,) = read_openai_lines(line, endpoint=Endpoint.RESPONSES)
    return found


def anthropic_line(line: bytes) -> ResultLine:
    """Read a line of Anthropic's."""
    (found,) = read_anthropic_lines(line)
    return found


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
    assert [line for line in map(trimmed, split(text, size)) if line] == encoded


@pytest.mark.parametrize("size", [1, 7, 19, 20, 21, 1000])
def test_of_a_line_beyond_all_bounds_the_beginning_comes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that would fill the memory is cut, and those around it are read."""
    monkeypatch.setattr(incoming, "MAX_LINE_BYTES", 20)
    monkeypatch.setattr(incoming, "_SLICE_BYTES", 8)
    monkeypatch.setattr(incoming, "_HEAD_BYTES", 5)
    found = split(b"one\n" + b"x" * 21 + b"\ntwo\n" + b"y" * 20 + b"\n" + b"z" * 500, size)
    assert found == [b"one", b"x" * 5, b"two", b"y" * 20, b"z" * 5]


@given(bodies=st.lists(st.binary(min_size=1, max_size=30), max_size=5))
def test_lines_are_spooled_as_they_are(bodies: list[bytes]) -> None:
    """The file holds the bytes of each line, with head, separators and tail, and is read whole."""

    async def outgoing() -> AsyncIterator[BatchLine]:
        for body in bodies:
            yield BatchLine(custom_id="", body=body)

    async def main() -> bytes:
        with await spooled(outgoing(), LineForm(b"", b"", b""), head=b"[", between=b",", tail=b"]") as file:
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
    """Whatever comes, each line that is not blank is told of, and a blank one is not."""
    for line in split(text, 50):
        for found in (read_openai_lines(line, endpoint=Endpoint.RESPONSES), read_anthropic_lines(line)):
            assert bool(found) == bool(trimmed(line))
            assert all(isinstance(read, ResultLine) for read in found)


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
    for line, read in ((full_openai, openai_line), (full_anthropic, anthropic_line)):
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
        (openai_text("200"), OutcomeKind.ANSWER, None, Billing.BILLED),
        (openai_text(200.0), OutcomeKind.ANSWER, None, Billing.BILLED),
        (openai_text("two hundred"), OutcomeKind.RETRY, "no_reply", Billing.UNKNOWN),
        (openai_text(True), OutcomeKind.RETRY, "no_reply", Billing.UNKNOWN),
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
        # A policy without a code of its own, and an organization that is not verified: of this row alone.
        (
            openai_text(
                400, {"error": {"code": "400", "message": "The prompt triggered the content management policy."}}
            ),
            OutcomeKind.REFUSAL,
            "content_filter",
            Billing.UNBILLED,
        ),
        (
            openai_text(403, {"error": {"message": "Your organization must be verified to use the model `o3`."}}),
            OutcomeKind.FAILURE,
            "organization_unverified",
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
        (
            anthropic_text(
                type="errored",
                error={"type": "invalid_request_error", "message": "Output blocked by content filtering policy"},
            ),
            OutcomeKind.REFUSAL,
            "content_filter",
            Billing.UNBILLED,
        ),
        (anthropic_text(type="errored", error=None), OutcomeKind.RETRY, "errored", Billing.UNBILLED),
    ],
)
def test_each_anthropic_line_has_its_outcome(line: bytes, kind: OutcomeKind, reason: str, billing: Billing) -> None:
    """The type of the line decides; only what succeeded is billed."""
    outcome = outcome_of(anthropic_line(line))
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
    assert anthropic_line(line) == ResultLine(custom_id="request-7", outcome=None)


# Lines that are broken in part


OTHER_ID = custom_id("o" * 43, "t" * 20)
CUT = openai_text()[:150]
ANTHROPIC_ANSWER = anthropic_text(
    type="succeeded",
    message={"content": [{"type": "text", "text": "yes"}], "usage": {"input_tokens": 3, "output_tokens": 1}},
)


def kinds(found: list[ResultLine]) -> list[tuple[str | None, OutcomeKind | None, str | None]]:
    """Return what lines say in short."""
    return [
        (line.custom_id, line.outcome.kind if line.outcome else None, line.outcome.reason if line.outcome else None)
        for line in found
    ]


@pytest.mark.parametrize(
    "broken",
    [
        CUT,
        openai_text()[:-1],
        b'{"id":"x","custom_id": "' + ID.encode() + b'"',
        b'{"custom_id":"' + ID.encode() + b'","deep":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"custom_id":"' + ID.encode() + b'","result":<html>}',
        b'\xef\xbb\xbf{"custom_id":"' + ID.encode() + b'",\xff\xff}',
    ],
)
def test_a_broken_line_keeps_its_id(broken: bytes) -> None:
    """Of a line that breaks off behind its id the row is known: it is sent again, and may have been billed."""
    for line in (openai_line(broken), anthropic_line(broken)):
        outcome = outcome_of(line)
        assert (outcome.kind, outcome.reason, outcome.billing) == (OutcomeKind.RETRY, "broken_line", Billing.UNKNOWN)


def test_lines_that_lost_the_feed_between_them_are_both_read() -> None:
    """Two lines in one, or the rest of one and the next, give what each of them says."""
    other = openai_text().replace(ID.encode(), OTHER_ID.encode())
    answer, broken = OutcomeKind.ANSWER, OutcomeKind.RETRY
    for between in (b"", b" ", b"\xef\xbb\xbf"):
        found = read_openai_lines(openai_text() + between + other, endpoint=Endpoint.RESPONSES)
        assert kinds(found) == [(ID, answer, None), (OTHER_ID, answer, None)]
    found = read_openai_lines(CUT + other, endpoint=Endpoint.RESPONSES)
    assert kinds(found) == [(ID, broken, "broken_line"), (OTHER_ID, answer, None)]
    found = read_openai_lines(other + CUT, endpoint=Endpoint.RESPONSES)
    assert kinds(found) == [(OTHER_ID, answer, None), (ID, broken, "broken_line")]
    found = read_anthropic_lines(ANTHROPIC_ANSWER + anthropic_text(type="expired"))
    assert kinds(found) == [(ID, answer, None), (ID, broken, "batch_expired")]


@pytest.mark.parametrize(
    "text", ['an "id": \\"custom_id\\":\\"x\\"', '{"custom_id":"' + OTHER_ID + '"}', "a\u2028b\u2029c"]
)
def test_an_answer_cannot_pass_for_a_line(text: str) -> None:
    """An answer that looks like a line, or that holds what other tools take for line ends, is one answer."""
    line = openai_text(body=openai_body(text))
    assert outcome_of(openai_line(line)).text == text
    assert outcome_of(openai_line(line.replace(b'"status"', b'"\xff":NaN,"status"'))).text == text
    cut = openai_line(line[:-1])
    assert (cut.custom_id, outcome_of(cut).kind) == (ID, OutcomeKind.RETRY)


USAGES: tuple[Any, ...] = (
    {"input_tokens": -3, "output_tokens": 1},
    {"input_tokens": 3, "output_tokens": 1e30},
    {"input_tokens": 3, "output_tokens": 1.5},
    {"input_tokens": "3", "output_tokens": 1},
    {"input_tokens": True, "output_tokens": 1},
    {"input_tokens": 10**30, "output_tokens": 1},
    {"input_tokens": 3},
    {"input_tokens": None, "output_tokens": 1},
    {},
    [],
    "many",
    7,
    None,
)


@pytest.mark.parametrize("usage", USAGES, ids=repr)
def test_a_usage_that_cannot_be_believed_is_unknown(usage: Any) -> None:
    """The answer stands, and nobody puts a price on it."""
    message = {"content": [{"type": "text", "text": "yes"}], "stop_reason": "end_turn", "usage": usage}
    texts = (json.dumps({"type": "succeeded", "message": message}), json.dumps(openai_body(usage=usage)))
    anthropic = f'{{"custom_id":"{ID}","result":{texts[0]}}}'
    openai = f'{{"custom_id":"{ID}","response":{{"status_code":200,"body":{texts[1]}}}}}'
    for line in (anthropic_line(anthropic.encode()), openai_line(openai.encode())):
        outcome = outcome_of(line)
        assert (outcome.kind, outcome.text, outcome.billing) == (OutcomeKind.ANSWER, "yes", Billing.BILLED)
        assert outcome.usage is None


def test_a_number_without_end_does_not_cost_the_answer() -> None:
    """A usage of five thousand digits is unknown like any other that nobody believes."""
    line = openai_text().replace(b'"input_tokens":3', b'"input_tokens":' + b"3" * 5000)
    outcome = outcome_of(openai_line(line))
    assert (outcome.kind, outcome.text, outcome.usage) == (OutcomeKind.ANSWER, "yes", None)


PLAIN_VALUES = st.none() | st.sampled_from(
    [
        0,
        1,
        5,
        -1,
        "completed",
        "incomplete",
        "message",
        "reasoning",
        "output_text",
        "text",
        "stop",
        "length",
        "",
        "a",
        [],
    ]
)


@given(data=st.data())
def test_the_fast_way_says_what_the_patient_way_says(data: st.DataObject) -> None:
    """A line read with others, in one typed pass, has the outcome that it has when each field is looked at."""
    usage = {
        "input_tokens": 9,
        "output_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1, "audio_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    chat = {
        "choices": [{"message": {"content": "yes", "refusal": None}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
        },
    }
    thought: dict[str, Any] = {"type": "reasoning", "content": None, "summary": []}
    response = openai_body(usage=usage, service_tier="default", error=None)
    response["output"] = data.draw(st.sampled_from([[], [thought]])) + response["output"]
    message = {
        "id": "msg",
        "content": [{"type": "text", "text": "yes"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 2, "service_tier": "batch"},
    }
    reads: list[tuple[bytes, Any]] = [
        (openai_text(body=response), lambda text: read_openai_lines(text, endpoint=Endpoint.RESPONSES)),
        (openai_text(body=chat), lambda text: read_openai_lines(text, endpoint=Endpoint.CHAT_COMPLETIONS)),
        (anthropic_text(type="succeeded", message=message), read_anthropic_lines),
    ]
    for text, read in reads:
        line = json.loads(text)
        places = [place for place in _places(line) if place[1] != "custom_id"]
        for _ in range(data.draw(st.integers(0, 2))):
            holder, name = data.draw(st.sampled_from(places))
            holder[name] = data.draw(PLAIN_VALUES)
        encoded = orjson.dumps(line)
        # A byte that no JSON has, in a field that nobody reads, sends the line the patient way.
        patient = encoded.replace(b"{", b'{"\xff":NaN,', 1)
        assert read(encoded + b"\n" + encoded) == read(patient) * 2
