"""Bytes of a provider into values, without ever raising on what they say."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

__all__ = ["MOST_TOKENS", "UNREADABLE", "as_text", "decode", "decode_any", "token_count", "values_in"]

T = TypeVar("T")

_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()

UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError, OverflowError)
"""Everything that decoding bytes of any content can raise; ValueError covers broken UTF-8."""

MOST_TOKENS = 1 << 40
_LONGEST_INTEGER = 18


def decode(data: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[T]) -> T | None:
    """Return the value of a JSON text, or None where it cannot be read as one of that type.

    A text that is broken in its characters only (invalid UTF-8, a lone surrogate, a bare control character,
    `NaN`, a number without end) is mended and read all the same, because the answer in it was paid for: U+FFFD
    stands where a character was lost, null where a number was.
    """
    try:
        return decoder.decode(data)
    except UNREADABLE:
        pass
    try:
        return decoder.decode(_sound(_MENDING.decode(_characters(data))))
    except UNREADABLE:
        return None


def values_in(line: bytes) -> Iterator[bytes | str]:
    """Yield the JSON texts that stand one after the other in a line that is none itself, mended.

    Where a line was cut short and the next one follows without a line feed, or two lines lost the one between
    them, this finds what is whole. What is broken is yielded as a `str`, up to where the next may begin.
    """
    text = _characters(line)
    at = 0
    for _ in range(_MOST_VALUES):
        start = at
        while start < len(text) and text[start] in _SPACE:
            start += 1
        if start == len(text):
            return
        try:
            value, at = _MENDING.raw_decode(text, start)
            yield _sound(value)
        except UNREADABLE:
            # The object that bears the second id begins at the last brace before it.
            first = _ID_FIELD.search(text, start)
            second = _ID_FIELD.search(text, first.end()) if first is not None else None
            at = max(text.rfind("{", start + 1, second.start()), start + 1) if second is not None else len(text)
            yield text[start:at]


_MENDING = json.JSONDecoder(
    strict=False, parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)
)
_ID_FIELD = re.compile(r'"custom_id"\s*:')
_SPACE = " \t\r\n\ufeff"
_MOST_VALUES = 16
"""More texts than this in one line are noise."""


def _characters(data: bytes | msgspec.Raw) -> str:
    return bytes(data).decode("utf-8", "replace").strip(_SPACE)


def _sound(value: Any) -> bytes:
    """Return a value's JSON text without what JSON cannot say."""
    # Through UTF-16 a pair of surrogates becomes its character, and a lone one U+FFFD.
    text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return msgspec.json.encode(_without_nan(json.loads(text)))


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
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise ValueError(name)
    return value
