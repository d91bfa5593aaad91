"""One row's call, and the key that makes asking it twice impossible."""

import base64
import hashlib
import hmac
import re
from enum import StrEnum
from typing import Any

import msgspec
import orjson

__all__ = [
    "CUSTOM_ID",
    "KEY_LENGTH",
    "TOKEN_LENGTH",
    "Endpoint",
    "Request",
    "canonical_json",
    "custom_id",
    "derived_token",
    "request_key",
    "split_custom_id",
]

KEY_LENGTH = 43
"""Characters of a key: 32 bytes in unpadded base64url."""

TOKEN_LENGTH = 20
"""Characters of a token; key, hyphen and token fill the 64 that a custom_id may have."""

CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What Anthropic allows as a custom_id; the strictest rule known, kept for every provider."""


class Endpoint(StrEnum):
    """A provider's path, without the host."""

    RESPONSES = "/v1/responses"
    CHAT_COMPLETIONS = "/v1/chat/completions"
    MESSAGES = "/v1/messages"


class Request(msgspec.Struct, frozen=True, gc=False):
    """One call: what is asked, apart from the tier it is asked in.

    Attributes:
        key: Identity of the question, see `request_key`.
        body: Encoded JSON object without tier, stream or custom_id.
    """

    key: str
    body: bytes


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no white space, UTF-8.

    Raises:
        TypeError: The value holds something JSON cannot express, a lone surrogate among it.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def request_key(*, account: str, endpoint: str, body: bytes, sample: int = 0) -> str:
    """Return the SHA-256 of a request's canonical JSON in unpadded base64url.

    Same key, same answer: the tier is not part of it, so a row answered in a batch is not asked again
    live. The account is, so that nobody is handed an answer that another organisation paid for.

    Args:
        account: Organisation and project as the provider names them, never the API key.
        endpoint: The provider's path.
        body: Canonical JSON of the body, from `canonical_json`.
        sample: Number of the sample when the same thing is asked several times.
    """
    # The parts stand in alphabetical order, so that splicing the encoded body in keeps the text canonical.
    head = b'{"account":' + orjson.dumps(account) + b',"body":'
    tail = b',"endpoint":' + orjson.dumps(endpoint) + b',"sample":' + str(sample).encode() + b"}"
    digest = hashlib.sha256(head)
    digest.update(body)
    digest.update(tail)
    return base64.urlsafe_b64encode(digest.digest())[:KEY_LENGTH].decode()


def derived_token(ledger_id: str, *parts: str | int) -> str:
    """Return a 20-character token that only the holder of this ledger would derive.

    Ids are derived, never drawn, so that a process which takes over after a crash arrives at the same
    one. 20 characters of base64url carry 120 bits.
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    digest = hmac.digest(ledger_id.encode(), text, "sha256")
    return base64.urlsafe_b64encode(digest)[:TOKEN_LENGTH].decode()


def custom_id(key: str, token: str) -> str:
    """Return the id under which a batch carries a request: its key and its batch's token."""
    return f"{key}-{token}"


def split_custom_id(text: str) -> tuple[str, str] | None:
    """Return key and token of a custom_id, or None if it cannot be one of ours."""
    if len(text) != KEY_LENGTH + 1 + TOKEN_LENGTH or text[KEY_LENGTH] != "-":
        return None
    return text[:KEY_LENGTH], text[KEY_LENGTH + 1 :]
