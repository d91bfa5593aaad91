"""Replies in Anthropic's dialect into outcomes. Pure: bytes in, values out."""

from typing import Any

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.decoding import as_text, decode, token_count

__all__ = ["read_message"]

_TIERS = {"standard": Tier.STANDARD, "priority": Tier.PRIORITY, "batch": Tier.BATCH}


class _Block(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block] | str | None = None
    stop_reason: str | None = None


class _Bill(msgspec.Struct):
    """What a reply costs; read apart from the answer, so that neither is lost with the other."""

    id: Any = None
    usage: Any = None


_MESSAGE = msgspec.json.Decoder(_Message)
_BILL = msgspec.json.Decoder(_Bill)


def read_message(body: bytes | msgspec.Raw, *, key: str, asked: Tier, request_id: str | None) -> Outcome:
    """Return the outcome of a message.

    The tier served is the one that the usage names. Where it names none it is the one asked for: calls ask
    for `standard_only`, and a batch can be served as nothing else.
    """
    bill = decode(body, _BILL)
    raw_usage = bill.usage if bill is not None else None
    usage = _usage(raw_usage)
    message = decode(body, _MESSAGE)
    if message is None or (message.content is None and message.stop_reason is None):
        known = usage is not None
        return Outcome(
            key=key,
            kind=OutcomeKind.RETRY,
            reason="unreadable_reply",
            usage=usage,
            tier_served=_tier(raw_usage, asked),
            billing=Billing.BILLED if known else Billing.UNKNOWN,
            provider_request_id=request_id,
        )
    kind, reason, text = _verdict(message)
    return Outcome(
        key=key,
        kind=kind,
        text=text,
        reason=reason,
        usage=usage,
        tier_served=_tier(raw_usage, asked),
        billing=Billing.BILLED,
        provider_request_id=request_id or (as_text(bill.id) if bill is not None else None),
    )


def _verdict(message: _Message) -> tuple[OutcomeKind, str | None, str | None]:
    if isinstance(message.content, str):
        text, types = message.content or None, set()
    else:
        blocks = message.content or []
        text = "".join(block.text or "" for block in blocks if block.type in ("text", None)) or None
        types = {block.type for block in blocks}
    match message.stop_reason:
        case "refusal":
            return OutcomeKind.REFUSAL, "refusal", text
        case "max_tokens":
            return OutcomeKind.FAILURE, "length", text
        case "model_context_window_exceeded" | "pause_turn":
            return OutcomeKind.FAILURE, message.stop_reason, text
        case "tool_use":
            return OutcomeKind.FAILURE, "tool_call", text
        case _ if text is not None:
            return OutcomeKind.ANSWER, None, text
        case _:
            return OutcomeKind.FAILURE, "tool_call" if "tool_use" in types else "empty", None


def _tier(usage: object, asked: Tier) -> Tier | None:
    if asked is Tier.BATCH:
        return Tier.BATCH
    named = usage.get("service_tier") if isinstance(usage, dict) else None
    if named is None:
        return asked
    return _TIERS.get(named) if isinstance(named, str) else None


def _usage(usage: object) -> Usage | None:
    """Return the tokens of a call; None where they are missing or cannot be true.

    Anthropic's input leaves out what was read from and written to the cache; ours counts all of it.
    """
    if not isinstance(usage, dict) or usage.get("input_tokens") is None or usage.get("output_tokens") is None:
        return None
    details = usage.get("output_tokens_details")
    try:
        cached = token_count(usage, "cache_read_input_tokens")
        written = token_count(usage, "cache_creation_input_tokens")
        tokens = Usage(
            input_tokens=token_count(usage, "input_tokens") + cached + written,
            cached_input_tokens=cached,
            cache_write_tokens=written,
            output_tokens=token_count(usage, "output_tokens"),
            reasoning_tokens=token_count(details, "thinking_tokens") if isinstance(details, dict) else 0,
        )
    except ValueError:
        return None
    return tokens if tokens.reasoning_tokens <= tokens.output_tokens else None
