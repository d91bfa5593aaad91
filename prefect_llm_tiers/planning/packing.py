"""Packing requests into batches within a provider's limits."""

from collections.abc import Iterable, Iterator

import msgspec

from prefect_llm_tiers.core.ports import BatchLimits

__all__ = ["Chunk", "Sized", "pack"]


class Sized(msgspec.Struct, frozen=True, gc=False):
    """A request's position and the bytes its encoded line takes in an upload."""

    position: int
    line_bytes: int


class Chunk(msgspec.Struct, frozen=True):
    """Requests that go into one batch.

    Attributes:
        positions: Their positions, in order.
        line_bytes: Bytes of the upload.
        too_large: True for a single request that no batch of this provider can hold.
    """

    positions: list[int]
    line_bytes: int
    too_large: bool = False


def pack(requests: Iterable[Sized], limits: BatchLimits) -> Iterator[Chunk]:
    """Yield chunks that keep the order and fill each batch as far as its limits allow.

    A request that is over the limit by itself comes as a chunk of its own, marked `too_large`, and does not
    hold up its neighbours.
    """
    positions: list[int] = []
    held = 0
    for request in requests:
        if request.line_bytes > limits.bytes:
            yield Chunk([request.position], request.line_bytes, too_large=True)
            continue
        if positions and (len(positions) >= limits.requests or held + request.line_bytes > limits.bytes):
            yield Chunk(positions, held)
            positions, held = [], 0
        positions.append(request.position)
        held += request.line_bytes
    if positions:
        yield Chunk(positions, held)
