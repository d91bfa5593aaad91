"""Packing requests into batches."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.ports import BatchLimits, BatchLine
from prefect_llm_tiers.core.requests import Endpoint, canonical_json, custom_id, derived_token, request_key
from prefect_llm_tiers.planning.packing import Chunk, Over, Sized, inputs_of, line_bytes, pack
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ASGIApp, ProviderSpec, open_provider
from prefect_llm_tiers.simulator.clock import SimulatedClock
from prefect_llm_tiers.simulator.settings import WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation
from tests.unit.engine.box import ENDPOINTS, MODELS, START, ticking
from tests.unit.engine.faults import Call, Reply, meddling


def limits(requests: int, size: int, inputs: int | None = None) -> BatchLimits:
    """Return limits of so many requests, bytes and embedding inputs."""
    return BatchLimits(
        requests=requests,
        bytes=size,
        inputs=inputs,
        window=timedelta(days=1),
        cancel=timedelta(minutes=10),
        reports_progress=True,
    )


sizes = st.lists(st.integers(1, 120), max_size=80)
bounds = st.builds(limits, st.integers(1, 12), st.integers(20, 400))


def packed(lines: list[int], within: BatchLimits) -> list[Chunk]:
    """Return the chunks of requests with such line sizes, at positions 10, 20, 30 and so on."""
    return list(pack((Sized(10 * (place + 1), size) for place, size in enumerate(lines)), within))


@given(lines=sizes, within=bounds)
def test_every_request_is_packed_exactly_once(lines: list[int], within: BatchLimits) -> None:
    """No position is lost and none is sent twice."""
    positions = [position for chunk in packed(lines, within) for position in chunk.positions]
    assert sorted(positions) == [10 * (place + 1) for place in range(len(lines))]


@given(lines=sizes, within=bounds)
def test_order_is_kept(lines: list[int], within: BatchLimits) -> None:
    """Positions ascend within a chunk, and over the chunks that can be sent."""
    fitting = [chunk for chunk in packed(lines, within) if chunk.over is None]
    positions = [position for chunk in fitting for position in chunk.positions]
    assert positions == sorted(positions)


@given(lines=sizes, within=bounds)
def test_limits_are_kept_and_bytes_are_true(lines: list[int], within: BatchLimits) -> None:
    """A chunk holds at least one request, no more than the limits allow, and says its own size."""
    for chunk in packed(lines, within):
        assert chunk.line_bytes == sum(lines[position // 10 - 1] for position in chunk.positions)
        assert 1 <= len(chunk.positions) <= within.requests
        assert (chunk.over is Over.BYTES) == (chunk.line_bytes > within.bytes)


@given(lines=sizes, within=bounds)
def test_what_no_batch_can_hold_comes_alone(lines: list[int], within: BatchLimits) -> None:
    """Exactly the requests that are over the byte limit by themselves are marked, each in a chunk of its own."""
    marked = [chunk for chunk in packed(lines, within) if chunk.over]
    assert [chunk.positions for chunk in marked] == [
        [10 * (place + 1)] for place, size in enumerate(lines) if size > within.bytes
    ]


@given(lines=sizes, within=bounds)
def test_no_batch_more_than_needed(lines: list[int], within: BatchLimits) -> None:
    """Two neighbouring chunks would not fit into one, so no batch is wasted."""
    fitting = [chunk for chunk in packed(lines, within) if chunk.over is None]
    for chunk, following in pairwise(fitting):
        first = lines[following.positions[0] // 10 - 1]
        full = len(chunk.positions) == within.requests
        assert full or chunk.line_bytes + first > within.bytes


def test_nothing_makes_no_batch() -> None:
    """Without requests there is no chunk, not even an empty one."""
    assert packed([], limits(10, 100)) == []


@st.composite
def crowds(draw: st.DrawFn) -> list[Sized]:
    """Draw requests with sizes, inputs and tokens."""
    each = st.tuples(st.integers(1, 120), st.integers(0, 9), st.integers(0, 60))
    return [Sized(place, *one) for place, one in enumerate(draw(st.lists(each, max_size=60)))]


@given(requests=crowds(), inputs=st.integers(1, 12), most=st.integers(5, 70), room=st.integers(0, 400))
def test_inputs_and_room_are_kept(requests: list[Sized], inputs: int, most: int, room: int) -> None:
    """No batch embeds more than it may, all of them together find room, and what is packed is an unbroken beginning."""
    within = limits(8, 400, inputs)
    chunks = list(pack(requests, within, most_tokens=most, room=room))
    batches = [chunk for chunk in chunks if chunk.over is None]
    assert all(chunk.inputs <= inputs for chunk in batches)
    assert sum(chunk.tokens for chunk in batches) <= room
    for chunk in batches:
        assert chunk.inputs == sum(requests[position].inputs for position in chunk.positions)
        assert chunk.tokens == sum(requests[position].tokens for position in chunk.positions)
    seen = sorted(position for chunk in chunks for position in chunk.positions)
    assert seen == list(range(len(seen)))
    if len(seen) < len(requests):
        # What stopped it would have been too much.
        assert sum(chunk.tokens for chunk in batches) + requests[len(seen)].tokens > room


@given(requests=crowds(), inputs=st.integers(1, 12), most=st.integers(5, 70))
def test_what_is_over_a_limit_comes_alone_and_names_it(requests: list[Sized], inputs: int, most: int) -> None:
    """Exactly the requests that are over a limit by themselves are set apart, with the limit's name."""
    over = {chunk.positions[0]: chunk.over for chunk in pack(requests, limits(8, 100, inputs), most_tokens=most)}
    for position, request in enumerate(requests):
        if request.line_bytes > 100:
            assert over[position] is Over.BYTES
        elif request.inputs > inputs:
            assert over[position] is Over.INPUTS
        elif request.tokens > most:
            assert over[position] is Over.TOKENS
        else:
            assert over.get(position) is None


@pytest.mark.parametrize(
    ("given_input", "inputs"),
    [
        ("one text", 1),
        (["a", "b", "c"], 3),
        ([], 1),
        ([17, 4, 99], 1),
        ([[17, 4], [99]], 2),
        (None, 1),
    ],
)
def test_inputs_are_counted_as_the_provider_counts_them(given_input: object, inputs: int) -> None:
    """A list of texts or of token lists has an input each; a text, or one text in tokens, is one."""
    body = canonical_json({"model": "m", "input": given_input})
    assert inputs_of(body, Endpoint.EMBEDDINGS) == inputs


def test_only_what_is_embedded_has_inputs() -> None:
    """The messages of a response are no inputs, and a body without any counts once."""
    assert inputs_of(canonical_json({"input": [{"role": "user", "content": "x"}] * 3}), Endpoint.RESPONSES) == 1
    assert inputs_of(canonical_json({"model": "m"}), Endpoint.EMBEDDINGS) == 1


TEXTS = ["plain", 'quotes " and \\ and \n and \t', "caf\u00e9 \u2028 \U0001f642 \u6f22", "\x00\x1f", "x" * 5000]


@pytest.mark.parametrize("rows", [1, len(TEXTS)])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_an_upload_is_no_larger_than_was_reckoned(dialect: Dialect, rows: int) -> None:
    """The bytes that an adapter sends are those of `line_bytes`: exactly in one dialect, no more in the other."""
    clock = SimulatedClock(START, ticking())
    sent: list[bytes] = []

    def judge(call: Call) -> Reply | None:
        if call.method == "POST" and call.path in ("/v1/files", "/v1/messages/batches"):
            sent.append(call.body)
        return None

    app: ASGIApp = meddling(Simulation(WorldSettings(), clock).app, judge)
    model, endpoint = MODELS[dialect], ENDPOINTS[dialect]
    bodies = [_body(dialect, text) for text in TEXTS[:rows]]
    token = derived_token("ledger", "batch", 1, 1)

    async def lines() -> AsyncIterator[BatchLine]:
        for body in bodies:
            key = request_key(account="a", endpoint=endpoint, body=body)
            yield BatchLine(custom_id=custom_id(key, token), body=body)

    async def send() -> None:
        base = "http://localhost/v1" if dialect is Dialect.OPENAI else "http://localhost"
        provider = open_provider(ProviderSpec(dialect=dialect, api_key="simulated", base_url=base), app=app)
        file = await provider.upload(lines(), model=model, endpoint=endpoint, token=token, expires_after=timedelta(1))
        if file is None:
            await provider.create_batch(
                input_file_id=None, lines=lines(), model=model, endpoint=endpoint, token=token, timeout_s=60.0
            )
        await provider.aclose()

    clock.run(send(), name="upload")
    [upload] = sent
    reckoned = sum(line_bytes(len(body), endpoint) for body in bodies)
    if dialect is Dialect.OPENAI:
        found = re.search(rb'\r\n\r\n(\{"custom_id".*\}\n)\r\n--', upload, re.DOTALL)
        assert found is not None
        assert len(found[1]) == reckoned
    else:
        assert upload.startswith(b'{"requests":[')
        assert len(upload) <= reckoned


def _body(dialect: Dialect, text: str) -> bytes:
    if dialect is Dialect.OPENAI:
        return canonical_json({"model": MODELS[dialect], "input": text})
    return canonical_json({"model": MODELS[dialect], "max_tokens": 9, "messages": [{"role": "user", "content": text}]})
