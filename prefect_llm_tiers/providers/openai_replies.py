"""Replies in OpenAI's dialect into outcomes. Pure: bytes in, values out.

Every field that is not needed to tell an answer from the rest may be missing, null or of an odd type:
many hosts speak this dialect, each with gaps of its own.
"""

from typing import Any, assert_never

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.decoding import as_text, decode, token_count
from prefect_llm_tiers.providers.error_bodies import clean_code
from prefect_llm_tiers.providers.meanings import POLICY_CODES
from prefect_llm_tiers.providers.raw_replies import embedding_text, raw_text

__all__ = ["UNREADABLE_REPLY", "read_reply"]

UNREADABLE_REPLY = "unreadable_reply"
"""The reason of a reply that holds no answer, and no word on why."""

_TRANSIENT = frozenset({"server_error", "rate_limit_exceeded", "vector_store_timeout"})
"""Codes of a response that failed for no fault of the request."""

_TIERS = {
    "default": Tier.STANDARD,
    "flex": Tier.FLEX,
    "priority": Tier.PRIORITY,
    # The newer name of priority.
    "fast": Tier.PRIORITY,
    # Groq's name of standard.
    "on_demand": Tier.STANDARD,
}


class _Part(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str | None = None
    phase: str | None = None
    # A string where a host writes the short form of a message; other items may hold anything.
    content: list[_Part] | str | None = None

    def parts(self) -> list[_Part]:
        return [_Part(text=self.content)] if isinstance(self.content, str) else self.content or []


class _Cause(msgspec.Struct, gc=False):
    code: Any = None
    reason: Any = None


class _Response(msgspec.Struct):
    status: str | None = None
    output: list[_Item] | None = None
    error: _Cause | None = None
    incomplete_details: _Cause | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None


class _Bill(msgspec.Struct):
    """What a reply costs; read apart from the answer, so that neither is lost with the other."""

    usage: Any = None
    service_tier: Any = None


_RESPONSE = msgspec.json.Decoder(_Response)
_COMPLETION = msgspec.json.Decoder(_Completion)
_BILL = msgspec.json.Decoder(_Bill)


class _Verdict(msgspec.Struct, frozen=True, gc=False):
    """What a reply means for the row, apart from its price."""

    kind: OutcomeKind
    reason: str | None = None
    text: str | None = None
    billing: Billing = Billing.BILLED


_UNREADABLE = _Verdict(OutcomeKind.RETRY, UNREADABLE_REPLY, billing=Billing.UNKNOWN)


def read_reply(
    endpoint: Endpoint, body: bytes | msgspec.Raw, *, key: str, asked: Tier, request_id: str | None
) -> Outcome:
    """Return the outcome of a 2xx reply.

    The tier served is the one the reply names. A reply that names none (many hosts do not) was served on
    the standard tier if that was asked for; otherwise nobody can say whether the wish was heard, and the
    tier is left open, so that the cost is listed as unpriced and not as too little. In a batch it is batch.

    RETRY is what cannot be read, and what failed for no fault of the request.
    """
    bill = decode(body, _BILL)
    usage = _usage(bill.usage, endpoint) if bill is not None else None
    verdict = _verdict(endpoint, body)
    # Whatever else the reply says: tokens that were counted are on the invoice.
    billing = Billing.BILLED if usage is not None and usage != Usage() else verdict.billing
    served = _tier(bill.service_tier if bill is not None else None, asked)
    return Outcome(
        key=key,
        kind=verdict.kind,
        text=verdict.text,
        reason=verdict.reason,
        usage=usage,
        tier_served=served if billing is not Billing.UNBILLED else None,
        billing=billing,
        provider_request_id=request_id,
    )


def _verdict(endpoint: Endpoint, body: bytes | msgspec.Raw) -> _Verdict:
    match endpoint:
        case Endpoint.RESPONSES:
            response = decode(body, _RESPONSE)
            return _UNREADABLE if response is None else _response_verdict(response)
        case Endpoint.CHAT_COMPLETIONS:
            completion = decode(body, _COMPLETION)
            return _UNREADABLE if completion is None else _completion_verdict(completion)
        case Endpoint.EMBEDDINGS:
            return _whole(embedding_text(body))
        case Endpoint.VIDEOS:
            return _job_verdict(body)
        case Endpoint.COMPLETIONS | Endpoint.IMAGES | Endpoint.IMAGE_EDITS:
            return _whole(raw_text(endpoint, body))
        case Endpoint.MODERATIONS:
            # Free of charge, whatever it says.
            return msgspec.structs.replace(_whole(raw_text(endpoint, body)), billing=Billing.UNBILLED)
        case Endpoint.MESSAGES:
            raise ValueError(f"{endpoint} is no endpoint of the OpenAI dialect.")
        case _:
            assert_never(endpoint)


def _whole(text: str | None) -> _Verdict:
    return _UNREADABLE if text is None else _Verdict(OutcomeKind.ANSWER, None, text)


def _job_verdict(body: bytes | msgspec.Raw) -> _Verdict:
    """Return the verdict on a reply that is a job, as a video is: it may have failed after it was taken."""
    job = decode(body, _RESPONSE)
    if job is not None and job.status == "failed":
        return _failed(job)
    return _whole(raw_text(Endpoint.VIDEOS, body))


def _failed(job: _Response) -> _Verdict:
    code = clean_code(job.error.code) if job.error is not None else None
    if code in _TRANSIENT:
        return _Verdict(OutcomeKind.RETRY, code, billing=Billing.UNBILLED)
    if code in POLICY_CODES:
        return _Verdict(OutcomeKind.REFUSAL, code, billing=Billing.UNBILLED)
    return _Verdict(OutcomeKind.FAILURE, code or "failed", billing=Billing.UNBILLED)


def _response_verdict(response: _Response) -> _Verdict:
    if response.output is None and response.status is None:
        return _UNREADABLE
    items = response.output or []
    messages = [item for item in items if item.type in ("message", None)]
    # Models that think aloud mark it as commentary; only what they mark as final is the answer then.
    final = [item for item in messages if item.phase == "final_answer"]
    parts = [part for item in final or messages for part in item.parts()]
    text = "".join(part.text or "" for part in parts if part.type in ("output_text", "text", None)) or None
    refusal = "".join(part.refusal or "" for part in parts if part.type == "refusal") or None
    match response.status:
        case "failed":
            return _failed(response)
        case "incomplete":
            cause = clean_code(response.incomplete_details.reason) if response.incomplete_details else None
            return _cut(cause, text)
        case "queued" | "in_progress" | "cancelled":
            return _Verdict(OutcomeKind.RETRY, response.status, billing=Billing.UNKNOWN)
        case _:
            called = any((item.type or "").endswith("_call") for item in items)
            return _complete(text, refusal, called=called)


def _completion_verdict(completion: _Completion) -> _Verdict:
    choice = next(iter(completion.choices or []), None)
    message = choice.message if choice is not None else None
    if choice is None or message is None:
        # Some hosts answer 200 with an error in the place of the choices.
        return _UNREADABLE
    if isinstance(message.content, list):
        text = "".join(part.text or "" for part in message.content) or None
    else:
        text = as_text(message.content)
    match choice.finish_reason:
        case "length":
            return _cut("max_output_tokens", text)
        case "content_filter":
            return _cut("content_filter", text)
        case _:
            called = bool(message.tool_calls) or bool(message.function_call)
            return _complete(text, as_text(message.refusal), called=called)


def _cut(cause: str | None, text: str | None) -> _Verdict:
    """Return the verdict on an answer that stopped early; what was written of it is kept, being paid for."""
    if cause == "content_filter":
        return _Verdict(OutcomeKind.REFUSAL, "content_filter", text)
    if cause == "max_output_tokens":
        return _Verdict(OutcomeKind.FAILURE, "length", text)
    return _Verdict(OutcomeKind.FAILURE, cause or "incomplete", text)


def _complete(text: str | None, refusal: str | None, *, called: bool) -> _Verdict:
    if refusal is not None:
        return _Verdict(OutcomeKind.REFUSAL, "refusal", refusal)
    if text is not None:
        return _Verdict(OutcomeKind.ANSWER, None, text)
    return _Verdict(OutcomeKind.FAILURE, "tool_call" if called else "empty")


def _tier(named: object, asked: Tier) -> Tier | None:
    if asked is Tier.BATCH:
        return Tier.BATCH
    tier = _TIERS.get(named) if isinstance(named, str) else None
    if tier is None and named in (None, "auto") and asked is Tier.STANDARD:
        return Tier.STANDARD
    return tier


def _usage(usage: object, endpoint: Endpoint) -> Usage | None:
    """Return the tokens of a call; None where they are missing or cannot be true, or have a price of their own.

    OpenAI's input includes what was cached and what was written to the cache, as ours does. Sound, and images that
    are counted apart, cost more than text: in the place of a `Usage` of text they would be priced wrongly.
    """
    if not isinstance(usage, dict):
        return None
    chat = "prompt_tokens" in usage
    names = ("prompt_tokens", "completion_tokens") if chat else ("input_tokens", "output_tokens")
    # An embedding puts nothing out.
    needed = names[:1] if endpoint is Endpoint.EMBEDDINGS else names
    if any(usage.get(name) is None for name in needed):
        return None
    into = usage.get(f"{names[0]}_details")
    out = usage.get(f"{names[1]}_details")
    into, out = into if isinstance(into, dict) else {}, out if isinstance(out, dict) else {}
    try:
        tokens = Usage(
            input_tokens=token_count(usage, names[0]),
            cached_input_tokens=token_count(into, "cached_tokens"),
            cache_write_tokens=token_count(into, "cache_write_tokens"),
            output_tokens=token_count(usage, names[1]),
            reasoning_tokens=token_count(out, "reasoning_tokens"),
        )
        apart = token_count(into, "audio_tokens") + token_count(out, "audio_tokens")
        if endpoint in _IMAGE_ENDPOINTS:
            # What an image endpoint puts out has the one price for output.
            apart += token_count(into, "image_tokens")
    except ValueError:
        return None
    parts_fit = tokens.cached_input_tokens + tokens.cache_write_tokens <= tokens.input_tokens
    return tokens if parts_fit and tokens.reasoning_tokens <= tokens.output_tokens and not apart else None


_IMAGE_ENDPOINTS = frozenset({Endpoint.IMAGES, Endpoint.IMAGE_EDITS})
