"""Replies of OpenAI's endpoints that are no conversation: the body itself is the answer. Pure: bytes in, values out."""

import base64
import binascii
import struct
from typing import Any

import msgspec
import orjson

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.providers.decoding import decode, decode_any

__all__ = ["embedding_text", "raw_text"]

_FLOAT_BYTES = 4

_HOLDS = {
    Endpoint.COMPLETIONS: "choices",
    Endpoint.MODERATIONS: "results",
    Endpoint.IMAGES: "data",
    Endpoint.IMAGE_EDITS: "data",
    Endpoint.VIDEOS: "id",
}
"""The field without which a reply of the endpoint holds no answer; some hosts answer 200 with an error in its place."""


class _Embedding(msgspec.Struct):
    embedding: str | list[float]
    index: Any = None


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)


def raw_text(endpoint: Endpoint, body: bytes | msgspec.Raw) -> str | None:
    """Return a reply's body as compact JSON; None where it holds no answer."""
    value = decode_any(body)
    if not isinstance(value, dict) or not value.get(_HOLDS[endpoint]):
        return None
    # A video's job repeats what was asked, and answers are kept where no prompt may be.
    value.pop("prompt", None)
    return orjson.dumps(value).decode()


def embedding_text(body: bytes | msgspec.Raw) -> str | None:
    """Return what a reply embeds, in base64 of little-endian float32; None where it embeds nothing.

    One input gives one such text, several a JSON list of them in the order of the inputs. A reply in decimal
    numbers, from a host that knows no other or because the step asked for it, gives the same.
    """
    reply = decode(body, _EMBEDDINGS)
    if reply is None or not reply.data:
        return None
    places = [item.index for item in reply.data]
    if sorted(place for place in places if isinstance(place, int)) == list(range(len(places))):
        reply.data.sort(key=lambda item: item.index)
    texts = [_packed(item.embedding) for item in reply.data]
    if any(text is None for text in texts):
        return None
    return texts[0] if len(texts) == 1 else orjson.dumps(texts).decode()


def _packed(embedding: str | list[float]) -> str | None:
    """Return a vector in base64; None for one without numbers."""
    if isinstance(embedding, str):
        try:
            size = len(binascii.a2b_base64(embedding, strict_mode=True))
        except ValueError:
            return None
        return embedding if size and size % _FLOAT_BYTES == 0 else None
    try:
        return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode() or None
    except (OverflowError, struct.error):
        return None
