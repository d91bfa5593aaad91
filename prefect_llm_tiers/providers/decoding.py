"""Bytes of a provider into values, without ever raising on what they say."""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

__all__ = ["as_text", "decode", "decode_any", "token_count"]

T = TypeVar("T")

_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()

_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError, OverflowError)
"""Everything that decoding bytes of any content can raise; ValueError covers broken UTF-8."""

_MOST_TOKENS = 1 << 40


def decode(data: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[T]) -> T | None:
    """Return the value of a JSON text, or None where it cannot be read as one of that type.

    A text that is broken in its characters only (invalid UTF-8, a lone surrogate, `NaN`) is mended and
    read all the same, because the answer in it was paid for: U+FFFD stands where a character was lost.
    """
    try:
        return decoder.decode(data)
    except _UNREADABLE:
        pass
    try:
        value = json.loads(bytes(data).decode("utf-8-sig", "replace"))
        # Through UTF-16 a pair of surrogates becomes its character, and a lone one U+FFFD.
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return decoder.decode(msgspec.json.encode(_without_nan(json.loads(text))))
    except _UNREADABLE:
        return None


def decode_any(data: bytes | msgspec.Raw) -> Any:
    """Return the value of a JSON text, or None where there is none."""
    return decode(data, _ANY)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value


def as_text(value: object) -> str | None:
    """Return the value if it is a string that is not empty."""
    return value if isinstance(value, str) and value else None


def token_count(usage: Mapping[str, Any], name: str) -> int:
    """Return a number of tokens out of a usage object; missing and null are 0.

    Raises:
        ValueError: It is no number of tokens: negative, fractional, a string, or beyond belief.
    """
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        raise ValueError(name)
    return value
