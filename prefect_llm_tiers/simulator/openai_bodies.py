"""What OpenAI takes as a request and gives as an answer: /v1/responses and /v1/chat/completions."""

from typing import Any

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.answers import Composed
from prefect_llm_tiers.simulator.asked import AskedRequest, body_digest, tokens_of
from prefect_llm_tiers.simulator.openai_errors import DIALECT, check_body, openai_error
from prefect_llm_tiers.simulator.texts import last_user_text, text_size
from prefect_llm_tiers.simulator.world import World

__all__ = ["read_text_request", "render_text_answer"]

_RESPONSES_FIELDS = frozenset(
    (  # noqa: SIM905 - lines of names read better than a column
        "access_programs background context_management conversation image include input instructions "
        "max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls "
        "previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention "
        "reasoning safety_identifier service_tier store stream stream_options temperature text "
        "tool_choice tools top_logprobs top_p truncation user"
    ).split()
)
_CHAT_FIELDS = frozenset(
    (  # noqa: SIM905 - lines of names read better than a column
        "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens "
        "max_tokens messages metadata modalities model moderation n parallel_tool_calls prediction "
        "presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort "
        "response_format safety_identifier seed service_tier stop store stream stream_options "
        "temperature tool_choice tools top_logprobs top_p user verbosity web_search_options"
    ).split()
)


def read_text_request(
    world: World, endpoint: Endpoint, body: Any, *, batched: bool = False, custom_id: str | None = None
) -> AskedRequest:
    """Read a body as the question it asks.

    Args:
        world: Knows the models.
        endpoint: Where it was sent, or its batch line's url.
        body: Decoded JSON.
        batched: Whether it stands in a batch, which knows no tiers and no streams.
        custom_id: Its id in the batch.

    Raises:
        Refused: What the real endpoint would refuse, with its status and body.
    """
    responses = endpoint is Endpoint.RESPONSES
    known = _RESPONSES_FIELDS if responses else _CHAT_FIELDS
    model = check_body(world, endpoint, body, known, ("model", "input" if responses else "messages"))
    if body.get("stream"):
        where = "in a batch" if batched else "by the simulator"
        raise openai_error(400, f"Streaming is not supported {where}.", param="stream", code="unsupported_parameter")
    if body.get("n") not in (None, 1):
        raise openai_error(
            400, "The simulator gives one choice: ask again for more.", param="n", code="unsupported_value"
        )
    limit_name, limit = _limit(body, responses=responses)
    if limit is not None:
        least = 16 if responses else 1
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise openai_error(
                400,
                f"Invalid type for '{limit_name}': expected an integer.",
                param=limit_name,
                code="invalid_type",
            )
        if limit < least:
            raise openai_error(
                400,
                f"Invalid '{limit_name}': integer below minimum value. Expected a value >= {least}, "
                f"but got {limit} instead.",
                param=limit_name,
                code="integer_below_min_value",
            )
    tier = _tier(world, body.get("service_tier"), model.id, batched=batched)
    said = body["input"] if responses else body["messages"]
    if not (isinstance(said, list) or (responses and isinstance(said, str))):
        name = "input" if responses else "messages"
        raise openai_error(400, f"Invalid type for '{name}'.", param=name, code="invalid_type")
    return AskedRequest(
        dialect=DIALECT,
        endpoint=endpoint.value,
        model=model.id,
        tier=tier,
        body=body,
        document=last_user_text(said),
        input_tokens=tokens_of(text_size(said) + text_size(body.get("instructions"))),
        max_output_tokens=limit,
        schema=_schema(body, responses=responses),
        digest=body_digest(endpoint.value, body),
        custom_id=custom_id,
    )


def _limit(body: dict[str, Any], *, responses: bool) -> tuple[str, Any]:
    if responses:
        return "max_output_tokens", body.get("max_output_tokens")
    if body.get("max_completion_tokens") is not None:
        return "max_completion_tokens", body["max_completion_tokens"]
    return "max_tokens", body.get("max_tokens")


def _tier(world: World, asked: Any, model: str, *, batched: bool) -> Tier:
    if batched:
        if asked not in (None, "auto", "default"):
            raise openai_error(
                400,
                "Service tiers are not supported in a batch.",
                param="service_tier",
                code="unsupported_value",
            )
        return Tier.BATCH
    if asked is None:
        return Tier.STANDARD
    known = world.played.tiers
    if not known:
        raise openai_error(
            400,
            "Unrecognized request argument supplied: service_tier",
            param="service_tier",
            code="unknown_parameter",
        )
    tier = known.get(asked) if isinstance(asked, str) else None
    if tier is None:
        supported = ", ".join(f"'{name}'" for name in known)
        raise openai_error(
            400,
            f"Invalid value: '{asked}'. Supported values are: {supported}.",
            param="service_tier",
            code="invalid_value",
        )
    if tier is Tier.FLEX and model in world.settings.without_flex:
        raise openai_error(
            400,
            f"Invalid service_tier argument: flex is not available for model `{model}`.",
            param="service_tier",
            code="unsupported_value",
        )
    return tier


def _schema(body: dict[str, Any], *, responses: bool) -> dict[str, Any] | None:
    where = "text.format" if responses else "response_format"
    config = (body.get("text") or {}).get("format") if responses else body.get("response_format")
    if not isinstance(config, dict) or config.get("type") in (None, "text"):
        return None
    if config["type"] == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    if config["type"] != "json_schema":
        raise openai_error(
            400,
            f"Invalid value: '{config['type']}'. Supported values are: 'json_object', 'json_schema', and 'text'.",
            param=f"{where}.type",
            code="invalid_value",
        )
    holder = config if responses else config.get("json_schema")
    prefix = where if responses else f"{where}.json_schema"
    if not isinstance(holder, dict):
        holder = {}
    for name in ("name", "schema"):
        if not holder.get(name):
            raise openai_error(
                400,
                f"Missing required parameter: '{prefix}.{name}'.",
                param=f"{prefix}.{name}",
                code="missing_required_parameter",
            )
    schema: dict[str, Any] = holder["schema"]
    if holder.get("strict") and (fault := _strict_fault(schema)):
        raise openai_error(
            400,
            f"Invalid schema for response_format '{holder['name']}': {fault}",
            param=where,
            code="invalid_json_schema",
        )
    return schema


def _strict_fault(schema: Any, path: str = "()") -> str | None:
    """Return what strict mode refuses: open objects, and properties that are not required."""
    if isinstance(schema, list):
        return next((fault for part in schema if (fault := _strict_fault(part, path))), None)
    if not isinstance(schema, dict):
        return None
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            return f"In context={path}, 'additionalProperties' is required to be supplied and to be false."
        missing = sorted(set(schema.get("properties", {})) - set(schema.get("required", [])))
        if missing:
            return (
                f"In context={path}, 'required' is required to be supplied and to be an array including "
                f"every key in properties. Missing '{missing[0]}'."
            )
    for word in ("properties", "$defs", "definitions"):
        for name, part in schema.get(word, {}).items():
            if fault := _strict_fault(part, f"('{word}', '{name}')"):
                return fault
    return next((fault for word in ("items", "anyOf") if (fault := _strict_fault(schema.get(word), path))), None)


def render_text_answer(
    world: World, asked: AskedRequest, composed: Composed, *, created: int, name: str
) -> dict[str, Any]:
    """Return the response body of an answer; its ids follow from `name`."""
    if asked.endpoint == Endpoint.RESPONSES:
        return _response(world, asked, composed, created, name)
    return _chat_completion(world, asked, composed, created, name)


def _response(world: World, asked: AskedRequest, composed: Composed, created: int, name: str) -> dict[str, Any]:
    status = "incomplete" if composed.cut else "completed"
    part: dict[str, Any] = (
        {"type": "refusal", "refusal": composed.text}
        if composed.refused
        else {"type": "output_text", "text": composed.text, "annotations": [], "logprobs": []}
    )
    body = asked.body
    return {
        "id": world.id_of("resp_", name),
        "object": "response",
        "created_at": created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if composed.cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": asked.max_output_tokens,
        "metadata": body.get("metadata") or {},
        "model": asked.model,
        "output": [
            {
                "id": world.id_of("msg_", name),
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": [part],
            }
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": world.played.served.get(asked.tier),
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": composed.input_tokens,
            "input_tokens_details": {"cached_tokens": composed.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": composed.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": composed.input_tokens + composed.output_tokens,
        },
    }


def _chat_completion(world: World, asked: AskedRequest, composed: Composed, created: int, name: str) -> dict[str, Any]:
    return {
        "id": world.id_of("chatcmpl-", name),
        "object": "chat.completion",
        "created": created,
        "model": asked.model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None if composed.refused else composed.text,
                    "refusal": composed.text if composed.refused else None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "length" if composed.cut else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": composed.input_tokens,
            "completion_tokens": composed.output_tokens,
            "total_tokens": composed.input_tokens + composed.output_tokens,
            "prompt_tokens_details": {"cached_tokens": composed.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": world.played.served.get(asked.tier),
        "system_fingerprint": None,
    }
