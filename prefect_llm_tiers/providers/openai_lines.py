"""Lines of OpenAI's output and error files into outcomes. Pure: bytes in, values out."""

import re
from typing import Any, Literal

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.ports import ResultLine
from prefect_llm_tiers.core.requests import KEY_LENGTH, Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.decoding import as_text, decode
from prefect_llm_tiers.providers.error_bodies import clean_code
from prefect_llm_tiers.providers.incoming import Block
from prefect_llm_tiers.providers.meanings import meaning_of
from prefect_llm_tiers.providers.openai_replies import read_reply
from prefect_llm_tiers.providers.outcomes import kind_of_rejection
from prefect_llm_tiers.providers.result_lines import CustomId, Tokens, named_line, read_lines

__all__ = ["read_openai_lines"]

_NULL = msgspec.Raw(b"null")


def read_openai_lines(block: Block, *, endpoint: Endpoint) -> list[ResultLine]:
    """Return what lines of an output or error file say; the rules of `read_lines`.

    Args:
        block: The lines as they came.
        endpoint: The endpoint that the batch asked.
    """

    def patient(line: bytes) -> ResultLine | None:
        return _read_patiently(line, endpoint)

    if endpoint is Endpoint.RESPONSES:
        return read_lines(block, decoder=_RESPONSE_LINE, plain=_plain_response, patient=patient)
    if endpoint is Endpoint.CHAT_COMPLETIONS:
        return read_lines(block, decoder=_COMPLETION_LINE, plain=_plain_completion, patient=patient)
    return read_lines(block, decoder=_LINE, plain=lambda line: _told(line, endpoint), patient=patient)


# The plain answer. Its types are its rules: what is not as they say goes the patient way. An array of which one
# element counts is read into a struct, not a list, because the collector would have to walk each list.


class _InputDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    # Costs more than text.
    audio_tokens: Literal[0] = 0


class _OutputDetails(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: Tokens = 0
    audio_tokens: Literal[0] = 0


_NO_INPUT_DETAILS = _InputDetails()
_NO_OUTPUT_DETAILS = _OutputDetails()


class _ResponseUsage(msgspec.Struct, gc=False):
    input_tokens: Tokens
    output_tokens: Tokens
    input_tokens_details: _InputDetails = _NO_INPUT_DETAILS
    output_tokens_details: _OutputDetails = _NO_OUTPUT_DETAILS


class _OutputText(msgspec.Struct, gc=False):
    type: Literal["output_text"]
    text: str


class _OnlyText(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    first: _OutputText


class _PlainItem(msgspec.Struct, gc=False):
    type: Literal["reasoning", "message"]
    content: _OnlyText | None = None


class _PlainOutput(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    first: _PlainItem
    second: _PlainItem | None = None


class _PlainResponse(msgspec.Struct, gc=False):
    status: Literal["completed"]
    output: _PlainOutput
    usage: _ResponseUsage


class _ResponseReply(msgspec.Struct, gc=False):
    status_code: Literal[200]
    body: _PlainResponse
    request_id: str | None = None


class _ResponseLine(msgspec.Struct, gc=False):
    custom_id: CustomId
    response: _ResponseReply


_RESPONSE_LINE = msgspec.json.Decoder(_ResponseLine)


def _plain_response(line: _ResponseLine) -> ResultLine | None:
    reply = line.response
    body = reply.body
    item, second = body.output.first, body.output.second
    if second is not None:
        # A model that thinks puts that first.
        if item.type != "reasoning":
            return None
        item = second
    if item.type != "message" or item.content is None:
        return None
    usage, details = body.usage, body.usage.input_tokens_details
    read, cached, cache_written = usage.input_tokens, details.cached_tokens, details.cache_write_tokens
    written, reasoning = usage.output_tokens, usage.output_tokens_details.reasoning_tokens
    custom_id, text = line.custom_id, item.content.first.text
    if not text or cached + cache_written > read or reasoning > written or custom_id[KEY_LENGTH] != "-":
        return None
    # Written out here and for completions: one call less for every line of a file.
    outcome = Outcome(
        key=custom_id[:KEY_LENGTH],
        kind=_ANSWER,
        text=text,
        usage=Usage(read, cached, cache_written, written, reasoning),
        tier_served=_BATCH,
        billing=_BILLED,
        provider_request_id=reply.request_id or None,
    )
    return ResultLine(custom_id, outcome)


class _CompletionUsage(msgspec.Struct, gc=False):
    prompt_tokens: Tokens
    completion_tokens: Tokens
    prompt_tokens_details: _InputDetails = _NO_INPUT_DETAILS
    completion_tokens_details: _OutputDetails = _NO_OUTPUT_DETAILS


class _PlainMessage(msgspec.Struct, gc=False):
    content: str
    refusal: None = None


class _PlainChoice(msgspec.Struct, gc=False):
    message: _PlainMessage
    finish_reason: Literal["stop"]


class _FirstChoice(msgspec.Struct, array_like=True, gc=False):
    first: _PlainChoice


class _PlainCompletion(msgspec.Struct, gc=False):
    choices: _FirstChoice
    usage: _CompletionUsage


class _CompletionReply(msgspec.Struct, gc=False):
    status_code: Literal[200]
    body: _PlainCompletion
    request_id: str | None = None


class _CompletionLine(msgspec.Struct, gc=False):
    custom_id: CustomId
    response: _CompletionReply


_COMPLETION_LINE = msgspec.json.Decoder(_CompletionLine)


def _plain_completion(line: _CompletionLine) -> ResultLine | None:
    reply = line.response
    usage, details = reply.body.usage, reply.body.usage.prompt_tokens_details
    read, cached, cache_written = usage.prompt_tokens, details.cached_tokens, details.cache_write_tokens
    written, reasoning = usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens
    custom_id, text = line.custom_id, reply.body.choices.first.message.content
    if not text or cached + cache_written > read or reasoning > written or custom_id[KEY_LENGTH] != "-":
        return None
    outcome = Outcome(
        key=custom_id[:KEY_LENGTH],
        kind=_ANSWER,
        text=text,
        usage=Usage(read, cached, cache_written, written, reasoning),
        tier_served=_BATCH,
        billing=_BILLED,
        provider_request_id=reply.request_id or None,
    )
    return ResultLine(custom_id, outcome)


# Looking up a member of an enum costs as much as making the outcome; this is the hot path.
_ANSWER, _BILLED, _BATCH = OutcomeKind.ANSWER, Billing.BILLED, Tier.BATCH


# Any other line


class _LineReply(msgspec.Struct):
    status_code: Any = None
    request_id: Any = None
    body: msgspec.Raw = _NULL


class _Line(msgspec.Struct):
    custom_id: Any = None
    response: msgspec.Raw = _NULL
    error: Any = None


_LINE = msgspec.json.Decoder(_Line)
_LINE_REPLY = msgspec.json.Decoder(_LineReply)


def _read_patiently(line: bytes, endpoint: Endpoint) -> ResultLine | None:
    read = decode(line, _LINE)
    return None if read is None else _told(read, endpoint)


def _told(line: _Line, endpoint: Endpoint) -> ResultLine:
    return named_line(as_text(line.custom_id), lambda key: _outcome(line, key=key, endpoint=endpoint))


def _outcome(line: _Line, *, key: str, endpoint: Endpoint) -> Outcome:
    reply = decode(line.response, _LINE_REPLY)
    status = _status(reply.status_code) if reply is not None else None
    if reply is None or status is None:
        code = clean_code(line.error.get("code")) if isinstance(line.error, dict) else None
        # Without a reply nothing was done: the batch expired or was cancelled before this row's turn.
        billing = Billing.UNBILLED if code is not None else Billing.UNKNOWN
        return Outcome(key=key, kind=OutcomeKind.RETRY, reason=code or "no_reply", billing=billing)
    request_id = as_text(reply.request_id)
    if 200 <= status <= 299:
        return read_reply(endpoint, reply.body, key=key, asked=Tier.BATCH, request_id=request_id)
    if not 300 <= status <= 599:
        # Lines with status 0 have been seen beside counts that call every row completed.
        return Outcome(
            key=key,
            kind=OutcomeKind.RETRY,
            reason="no_status",
            billing=Billing.UNKNOWN,
            provider_request_id=request_id,
        )
    meaning = meaning_of(status, {}, bytes(reply.body))
    # A row of a batch that was taken says nothing of the key: it is this row that may not be asked.
    kind = OutcomeKind.FAILURE if meaning.kind == "auth" else kind_of_rejection(meaning) or OutcomeKind.RETRY
    return Outcome(key=key, kind=kind, reason=meaning.reason, provider_request_id=request_id)


def _status(value: object) -> int | None:
    """Return a status, also one that came as `200.0` or `"200"`: an answer beside it was paid for."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_DIGITS = re.compile(r"[0-9]{1,3}")
