"""What Anthropic takes as a request and gives as an answer: /v1/messages."""

from typing import Any

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.answers import Composed
from prefect_llm_tiers.simulator.asked import AskedRequest, body_digest, tokens_of
from prefect_llm_tiers.simulator.texts import last_user_text, text_size
from prefect_llm_tiers.simulator.wire import Refused
from prefect_llm_tiers.simulator.world import World

__all__ = ["DIALECT", "anthropic_error", "read_request", "render_answer"]

DIALECT = "anthropic"

_FIELDS = frozenset(
    (  # noqa: SIM905 - lines of names read better than a column
        "cache_control container diagnostics inference_geo max_tokens messages metadata model "
        "output_config service_tier speed stop_sequences stream system temperature thinking tool_choice "
        "tools top_k top_p"
    ).split()
)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def anthropic_error(status: int, message: str, *, headers: dict[str, str] | None = None) -> Refused:
    """Return Anthropic's way to say no; the request's id is filled in where it is sent."""
    body = {"type": "error", "error": {"type": _KINDS[status], "message": message}, "request_id": None}
    return Refused(status, body, headers or {})


def read_request(world: World, body: Any, *, batched: bool = False, custom_id: str | None = None) -> AskedRequest:
    """Read a body, or the params of a batch's request, as the question it asks.

    Raises:
        Refused: What the real endpoint would refuse, with its status and body.
    """
    if not isinstance(body, dict):
        raise anthropic_error(400, "Input should be a valid dictionary")
    for name in body:
        if name not in _FIELDS:
            raise anthropic_error(400, f"{name}: Extra inputs are not permitted")
    for name in ("model", "messages", "max_tokens"):
        if name not in body:
            raise anthropic_error(400, f"{name}: Field required")
    model = world.model(DIALECT, body["model"])
    if model is None:
        raise anthropic_error(404, f"model: {body['model']}")
    limit = body["max_tokens"]
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise anthropic_error(400, "max_tokens: Input should be a valid integer")
    if limit < 0 or (limit == 0 and batched):
        raise anthropic_error(400, f"max_tokens: Input should be greater than or equal to {1 if batched else 0}")
    if limit > model.max_output_tokens:
        raise anthropic_error(
            400,
            f"max_tokens: {limit} > {model.max_output_tokens}, which is the maximum allowed for {model.id}",
        )
    if body.get("stream"):
        where = "in a Message Batch" if batched else "by the simulator"
        raise anthropic_error(400, f"stream: streaming is not supported {where}")
    if batched and body.get("speed") is not None:
        raise anthropic_error(400, "speed: not supported in a Message Batch")
    if body.get("speed") not in (None, "standard"):
        raise anthropic_error(400, f"speed: '{body['speed']}' is not supported for {model.id}")
    if body.get("service_tier") not in (None, "auto", "standard_only"):
        raise anthropic_error(400, "service_tier: Input should be 'auto' or 'standard_only'")
    _check_messages(body["messages"])
    return AskedRequest(
        dialect=DIALECT,
        endpoint=Endpoint.MESSAGES.value,
        model=model.id,
        tier=Tier.BATCH if batched else Tier.STANDARD,
        body=body,
        document=last_user_text(body["messages"]),
        input_tokens=tokens_of(text_size(body["messages"]) + text_size(body.get("system"))),
        max_output_tokens=limit,
        schema=_schema(body.get("output_config")),
        digest=body_digest(Endpoint.MESSAGES.value, body),
        custom_id=custom_id,
    )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise anthropic_error(400, "messages: Input should be a valid list")
    if not messages:
        raise anthropic_error(400, "messages: at least one message is required")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise anthropic_error(400, f"messages.{number}: Input should be a valid dictionary")
        for name in ("role", "content"):
            if name not in message:
                raise anthropic_error(400, f"messages.{number}.{name}: Field required")
        if message["role"] not in ("user", "assistant", "system"):
            raise anthropic_error(400, f"messages.{number}.role: Input should be 'user' or 'assistant'")
        if not message["content"]:
            raise anthropic_error(400, f"messages.{number}: user messages must have non-empty content")


def _schema(config: Any) -> dict[str, Any] | None:
    form = config.get("format") if isinstance(config, dict) else None
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise anthropic_error(400, "output_config.format.type: Input should be 'json_schema'")
    schema = form.get("schema")
    if not isinstance(schema, dict):
        raise anthropic_error(400, "output_config.format.schema: Field required")
    if fault := _open_object(schema):
        raise anthropic_error(400, f"output_config.format.schema: {fault}")
    return schema


def _open_object(schema: Any) -> str | None:
    if isinstance(schema, list):
        return next((fault for part in schema if (fault := _open_object(part))), None)
    if not isinstance(schema, dict):
        return None
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        return "For 'object' type, 'additionalProperties' must be explicitly set to false"
    parts = [schema.get("items"), schema.get("anyOf"), schema.get("allOf")]
    parts += [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    return _open_object(parts)


def render_answer(world: World, asked: AskedRequest, composed: Composed, *, name: str) -> dict[str, Any]:
    """Return the message of an answer; its id follows from `name`."""
    written = "max_tokens" if composed.cut else "end_turn"
    details = {"type": "refusal", "category": None, "explanation": None} if composed.refused else None
    return {
        "id": world.id_of("msg_", name),
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [{"type": "text", "text": composed.text, "citations": None}] if composed.text else [],
        "stop_reason": "refusal" if composed.refused else written,
        "stop_details": details,
        "stop_sequence": None,
        "usage": {
            # Anthropic counts what was read from the cache beside the input, not within it.
            "input_tokens": composed.input_tokens - composed.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": composed.cached_tokens,
            "output_tokens": composed.output_tokens,
            "service_tier": "batch" if asked.tier is Tier.BATCH else "standard",
        },
    }
