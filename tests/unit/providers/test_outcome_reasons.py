"""What a reply that came means for its row, over both SDKs: each reason of docs/errors.md, from a real call."""

import asyncio
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.requests import Endpoint, Request
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.frames.output import output_of
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider

PROSE = "the marmalade ledger"


class Label(BaseModel):
    """A structured answer."""

    topic: str


def chat(text: str | None = None, *, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """Return a chat completion."""
    return {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
        "service_tier": "default",
    }


def response(*content: dict[str, Any], status: str = "completed", reason: str | None = None) -> dict[str, Any]:
    """Return a response."""
    return {
        "status": status,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": [{"type": "message", "content": list(content)}],
        "usage": {"input_tokens": 9, "output_tokens": 3},
        "service_tier": "default",
    }


def message(text: str | None = None, *, stop: str = "end_turn", kind: str = "text") -> dict[str, Any]:
    """Return a message of Anthropic's."""
    return {
        "content": [{"type": kind, "text": text}] if text is not None or kind != "text" else [],
        "stop_reason": stop,
        "usage": {"input_tokens": 9, "output_tokens": 3, "service_tier": "standard"},
    }


CHAT, RESPONSES, MESSAGES = Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES

OUTCOMES: list[tuple[str, str, list[tuple[Endpoint, dict[str, Any]]]]] = [
    (
        "refusal",
        "refusal",
        [
            (CHAT, chat(refusal=PROSE)),
            (RESPONSES, response({"type": "refusal", "refusal": PROSE})),
            (MESSAGES, message(PROSE, stop="refusal")),
        ],
    ),
    (
        "content_filter",
        "refusal",
        [
            (CHAT, chat(PROSE, finish="content_filter")),
            (RESPONSES, response({"type": "output_text", "text": PROSE}, status="incomplete", reason="content_filter")),
        ],
    ),
    (
        "length",
        "failure",
        [
            (CHAT, chat(PROSE, finish="length")),
            (
                RESPONSES,
                response({"type": "output_text", "text": PROSE}, status="incomplete", reason="max_output_tokens"),
            ),
            (MESSAGES, message(PROSE, stop="max_tokens")),
        ],
    ),
    ("model_context_window_exceeded", "failure", [(MESSAGES, message(PROSE, stop="model_context_window_exceeded"))]),
    (
        "tool_call",
        "failure",
        [
            (CHAT, chat(finish="tool_calls", tool_calls=[{"type": "function"}])),
            (MESSAGES, message(stop="tool_use", kind="tool_use")),
        ],
    ),
    ("empty", "failure", [(CHAT, chat("")), (RESPONSES, response()), (MESSAGES, message())]),
    ("incomplete", "failure", [(RESPONSES, response(status="incomplete"))]),
    (
        "unparsable: json_invalid",
        "asked again",
        [(CHAT, chat('{"topic": "val')), (MESSAGES, message('{"topic": "val'))],
    ),
    ("unparsable: missing at topic", "asked again", [(CHAT, chat('{"theme": "valves"}'))]),
    ("unreadable_reply", "asked again", [(CHAT, {"ok": True}), (RESPONSES, {"ok": True}), (MESSAGES, {"ok": True})]),
]

KINDS = {"refusal": OutcomeKind.REFUSAL, "failure": OutcomeKind.FAILURE, "asked again": OutcomeKind.RETRY}


def called(endpoint: Endpoint, body: dict[str, Any]) -> Outcome:
    """Return the outcome of one call that is answered with a body, through the dialect's own SDK."""
    dialect = Dialect.ANTHROPIC if endpoint is MESSAGES else Dialect.OPENAI

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(body)})

    async def main() -> Outcome:
        provider = open_provider(ProviderSpec(dialect=dialect, api_key="sk-1"), app=app)
        try:
            request = Request(key="k" * 43, body=b'{"model":"m"}')
            return await provider.call(request, endpoint=endpoint, tier=Tier.STANDARD, timeout_s=10.0)
        finally:
            await provider.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("reason", "outcome", "endpoint", "body"),
    [(reason, outcome, endpoint, body) for reason, outcome, replies in OUTCOMES for endpoint, body in replies],
)
def test_a_reply_has_one_outcome_and_a_reason(
    reason: str, outcome: str, endpoint: Endpoint, body: dict[str, Any]
) -> None:
    """What came is an answer, a refusal, a failure or asked again, and its reason repeats none of its words."""
    came = called(endpoint, body)
    kind, told = came.kind, came.reason
    if kind is OutcomeKind.ANSWER:
        # A text that came is judged by the step's model, and asked again where it does not fit.
        kind, told = OutcomeKind.RETRY, output_of(Label).accept(came.text or "")
    assert (kind, told) == (KINDS[outcome], reason)
    assert came.billing is (Billing.UNKNOWN if reason == "unreadable_reply" else Billing.BILLED)


def test_what_was_written_before_a_cut_is_kept() -> None:
    """An answer that was cut, and the words of a refusal, were paid for and are kept."""
    for endpoint, body in [pair for _, _, replies in OUTCOMES[:3] for pair in replies]:
        assert called(endpoint, body).text == PROSE
