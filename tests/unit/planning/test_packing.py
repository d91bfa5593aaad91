"""Packing requests into batches."""

from datetime import timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.ports import BatchLimits
from prefect_llm_tiers.planning.packing import Chunk, Sized, pack


def limits(requests: int, size: int) -> BatchLimits:
    """Return limits of so many requests and bytes."""
    return BatchLimits(
        requests=requests,
        bytes=size,
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
    fitting = [chunk for chunk in packed(lines, within) if not chunk.too_large]
    positions = [position for chunk in fitting for position in chunk.positions]
    assert positions == sorted(positions)


@given(lines=sizes, within=bounds)
def test_limits_are_kept_and_bytes_are_true(lines: list[int], within: BatchLimits) -> None:
    """A chunk holds at least one request, no more than the limits allow, and says its own size."""
    for chunk in packed(lines, within):
        assert chunk.line_bytes == sum(lines[position // 10 - 1] for position in chunk.positions)
        assert 1 <= len(chunk.positions) <= within.requests
        assert chunk.too_large == (chunk.line_bytes > within.bytes)


@given(lines=sizes, within=bounds)
def test_what_no_batch_can_hold_comes_alone(lines: list[int], within: BatchLimits) -> None:
    """Exactly the requests that are over the byte limit by themselves are marked, each in a chunk of its own."""
    marked = [chunk for chunk in packed(lines, within) if chunk.too_large]
    assert [chunk.positions for chunk in marked] == [
        [10 * (place + 1)] for place, size in enumerate(lines) if size > within.bytes
    ]


@given(lines=sizes, within=bounds)
def test_no_batch_more_than_needed(lines: list[int], within: BatchLimits) -> None:
    """Two neighbouring chunks would not fit into one, so no batch is wasted."""
    fitting = [chunk for chunk in packed(lines, within) if not chunk.too_large]
    for chunk, following in pairwise(fitting):
        first = lines[following.positions[0] // 10 - 1]
        full = len(chunk.positions) == within.requests
        assert full or chunk.line_bytes + first > within.bytes


def test_nothing_makes_no_batch() -> None:
    """Without requests there is no chunk, not even an empty one."""
    assert packed([], limits(10, 100)) == []
