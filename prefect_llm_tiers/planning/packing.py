"""Packing requests into batches within a provider's limits."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from prefect_llm_tiers.core.ports import BatchLimits
from prefect_llm_tiers.core.requests import KEY_LENGTH, TOKEN_LENGTH, Endpoint

__all__ = ["Chunk", "Over", "Sized", "inputs_of", "line_bytes", "pack"]

_AROUND_BODY = len(b'{"custom_id":"","method":"POST","url":"","body":}\n') + KEY_LENGTH + len(b"-") + TOKEN_LENGTH


class Over(StrEnum):
    """The limit that a single request is over; also the reason why it fails."""

    BYTES = "larger_than_a_batch"
    INPUTS = "more_inputs_than_a_batch"
    TOKENS = "more_tokens_than_may_be_enqueued"


class Sized(msgspec.Struct, frozen=True, gc=False):
    """A request's position and what it takes of a batch.

    Attributes:
        position: Where it stands.
        line_bytes: Bytes of its encoded line, see `line_bytes`.
        inputs: Embedding inputs.
        tokens: Estimated input tokens.
    """

    position: int
    line_bytes: int
    inputs: int = 1
    tokens: int = 0


class Chunk(msgspec.Struct, frozen=True):
    """Requests that go into one batch.

    Attributes:
        positions: Their positions, in order.
        line_bytes: Bytes of the upload.
        inputs: Embedding inputs.
        tokens: Estimated input tokens.
        over: The limit that a single request is over, which no batch can hold therefore; None for a batch.
    """

    positions: list[int]
    line_bytes: int
    inputs: int = 0
    tokens: int = 0
    over: Over | None = None


class _Inputs(msgspec.Struct):
    input: Any = None


_INPUTS = msgspec.json.Decoder(_Inputs)


def line_bytes(body_bytes: int, endpoint: str) -> int:
    r"""Return the bytes that a request takes in an upload, given those of its encoded body.

    Exact for the OpenAI dialect, `{"custom_id":"...","method":"POST","url":"...","body":...}\n`: the body goes in
    as it is, and neither a custom_id nor a path has a character that JSON would escape. Anthropic's
    `{"custom_id":"...","params":...},` with the frame around all of them is shorter.
    """
    return _AROUND_BODY + len(endpoint) + body_bytes


def inputs_of(body: bytes, endpoint: str) -> int:
    """Return how many inputs a body embeds: the length of a list of texts or of token lists; otherwise 1."""
    if endpoint != Endpoint.EMBEDDINGS:
        return 1
    try:
        given = _INPUTS.decode(body).input
    except msgspec.DecodeError:
        return 1
    if not isinstance(given, list) or all(isinstance(one, int) for one in given):
        # A list of numbers is one text, in tokens.
        return 1
    return len(given)


def pack(
    requests: Iterable[Sized], limits: BatchLimits, *, most_tokens: int | None = None, room: int | None = None
) -> Iterator[Chunk]:
    """Yield chunks that keep the order and fill each batch as far as its limits allow.

    A request that is over a limit by itself comes as a chunk of its own, `over` naming the limit, and does not
    hold up its neighbours. What comes after the room is used up is left for another time.

    Args:
        requests: What to pack.
        limits: Of one batch.
        most_tokens: Tokens that all batches together may ever hold; None: any number.
        room: Tokens that all chunks together may hold now; None: any number.
    """
    held: list[Sized] = []
    size = inputs = tokens = 0
    left = room
    for request in requests:
        over = _over(request, limits, most_tokens)
        if over is not None:
            yield Chunk([request.position], request.line_bytes, request.inputs, request.tokens, over)
            continue
        if left is not None and request.tokens > left:
            break
        full = (
            len(held) >= limits.requests
            or size + request.line_bytes > limits.bytes
            or (limits.inputs is not None and inputs + request.inputs > limits.inputs)
        )
        if held and full:
            yield Chunk([one.position for one in held], size, inputs, tokens)
            held, size, inputs, tokens = [], 0, 0, 0
        held.append(request)
        size, inputs, tokens = size + request.line_bytes, inputs + request.inputs, tokens + request.tokens
        left = None if left is None else left - request.tokens
    if held:
        yield Chunk([one.position for one in held], size, inputs, tokens)


def _over(request: Sized, limits: BatchLimits, most_tokens: int | None) -> Over | None:
    if request.line_bytes > limits.bytes:
        return Over.BYTES
    if limits.inputs is not None and request.inputs > limits.inputs:
        return Over.INPUTS
    if most_tokens is not None and request.tokens > most_tokens:
        return Over.TOKENS
    return None
