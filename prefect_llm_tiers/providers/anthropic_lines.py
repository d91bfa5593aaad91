"""Lines of a message batch's results into outcomes. Pure: bytes in, values out."""

from typing import Any, Literal

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.ports import ResultLine
from prefect_llm_tiers.core.requests import KEY_LENGTH
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.anthropic_replies import read_message
from prefect_llm_tiers.providers.decoding import as_text, decode, decode_any
from prefect_llm_tiers.providers.error_bodies import clean_code
from prefect_llm_tiers.providers.incoming import Block
from prefect_llm_tiers.providers.meanings import meaning_of
from prefect_llm_tiers.providers.outcomes import kind_of_rejection
from prefect_llm_tiers.providers.result_lines import CustomId, Tokens, named_line, read_lines

__all__ = ["read_anthropic_lines"]

_NULL = msgspec.Raw(b"null")

_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The statuses of a live call's errors; a line of a batch names the type alone."""


def read_anthropic_lines(block: Block) -> list[ResultLine]:
    """Return what lines of a batch's results say; the rules of `read_lines`."""
    return read_lines(block, decoder=_PLAIN_LINE, plain=_plain, patient=_read_patiently)


# The plain answer. Its types are its rules: what is not as they say goes the patient way.


class _PlainUsage(msgspec.Struct, gc=False):
    input_tokens: Tokens
    output_tokens: Tokens
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    output_tokens_details: None = None


class _PlainText(msgspec.Struct, gc=False):
    type: Literal["text"]
    text: str


class _OnlyText(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    first: _PlainText


class _PlainMessage(msgspec.Struct, gc=False):
    content: _OnlyText
    stop_reason: Literal["end_turn", "stop_sequence"]
    usage: _PlainUsage
    id: str | None = None


class _PlainResult(msgspec.Struct, gc=False):
    type: Literal["succeeded"]
    message: _PlainMessage


class _PlainLine(msgspec.Struct, gc=False):
    custom_id: CustomId
    result: _PlainResult


_PLAIN_LINE = msgspec.json.Decoder(_PlainLine)

# Looking up a member of an enum costs as much as making the outcome; this is the hot path.
_ANSWER, _BILLED, _BATCH = OutcomeKind.ANSWER, Billing.BILLED, Tier.BATCH


def _plain(line: _PlainLine) -> ResultLine | None:
    custom_id, message = line.custom_id, line.result.message
    text, usage = message.content.first.text, message.usage
    if not text or custom_id[KEY_LENGTH] != "-":
        return None
    cached, cache_written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    return ResultLine(
        custom_id,
        Outcome(
            key=custom_id[:KEY_LENGTH],
            kind=_ANSWER,
            text=text,
            # Anthropic's input leaves out what was read from and written to the cache; ours counts all of it.
            usage=Usage(usage.input_tokens + cached + cache_written, cached, cache_written, usage.output_tokens, 0),
            tier_served=_BATCH,
            billing=_BILLED,
            provider_request_id=message.id or None,
        ),
    )


# Any other line


class _Result(msgspec.Struct):
    type: str | None = None
    message: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL


class _Line(msgspec.Struct):
    custom_id: Any = None
    result: msgspec.Raw = _NULL


_LINE = msgspec.json.Decoder(_Line)
_RESULT = msgspec.json.Decoder(_Result)


def _read_patiently(line: bytes) -> ResultLine | None:
    read = decode(line, _LINE)
    return None if read is None else named_line(as_text(read.custom_id), lambda key: _outcome(read, key=key))


def _outcome(line: _Line, *, key: str) -> Outcome:
    result = decode(line.result, _RESULT)
    if result is None:
        return Outcome(key=key, kind=OutcomeKind.RETRY, reason="no_reply", billing=Billing.UNKNOWN)
    # Only what succeeded is billed.
    match result.type:
        case "succeeded":
            return read_message(result.message, key=key, asked=Tier.BATCH, request_id=None)
        case "errored":
            return _errored(result.error, key=key)
        case "expired":
            return Outcome(key=key, kind=OutcomeKind.RETRY, reason="batch_expired")
        case "canceled":
            return Outcome(key=key, kind=OutcomeKind.RETRY, reason="batch_cancelled")
        case _:
            return Outcome(key=key, kind=OutcomeKind.RETRY, reason="no_reply", billing=Billing.UNKNOWN)


def _errored(error: msgspec.Raw, *, key: str) -> Outcome:
    body = bytes(error)
    value = decode_any(error)
    inner = value.get("error", value) if isinstance(value, dict) else None
    code = clean_code(inner.get("type")) if isinstance(inner, dict) else None
    request_id = as_text(value.get("request_id")) if isinstance(value, dict) else None
    meaning = meaning_of(_STATUS_OF_TYPE.get(code or "", 500), {}, body)
    # A row of a batch that was taken says nothing of the key: it is this row that may not be asked.
    kind = OutcomeKind.FAILURE if meaning.kind == "auth" else kind_of_rejection(meaning) or OutcomeKind.RETRY
    reason = meaning.reason if code is not None else "errored"
    return Outcome(key=key, kind=kind, reason=reason, provider_request_id=request_id)
