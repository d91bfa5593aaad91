"""Prompts into request bodies, in the provider's shape and without tier, stream or id.

The body is what a request's key is made of: equal arguments give equal bodies in every process and version.
A change to what is written here makes every question a new one, which is paid for again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.errors import ConfigurationError, InputError
from prefect_llm_tiers.providers.schemas import OutputSchema

__all__ = ["LONG_ANSWER_TOKENS", "Prompt", "build_body", "long_answer_note"]

Prompt = str | Sequence[Mapping[str, Any]]
"""What a prompt function returns: a text, or messages with `role` and `content`."""

LONG_ANSWER_TOKENS = 21_333
"""Above this many output tokens Anthropic's SDK expects an answer to take over ten minutes."""

_OURS = frozenset({"service_tier", "stream", "background", "n", "custom_id", "model"})
"""Fields that are not a step's to set: the engine writes them, or needs them absent."""

_SYSTEM_ROLES = ("system", "developer")


def build_body(
    endpoint: Endpoint,
    prompt: Prompt,
    *,
    model: str,
    max_output_tokens: int | None = None,
    output: OutputSchema | None = None,
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the body of a request.

    Args:
        endpoint: Whose shape it takes.
        prompt: What is asked.
        model: The model.
        max_output_tokens: Bound on the answer, reasoning included; Anthropic requires one.
        output: Schema of the answer, from `output_schema`.
        system: Standing instructions, ahead of the prompt.
        options: Further fields of the provider's, as `temperature`, put in last.

    Raises:
        ConfigurationError: A field is missing, or is not the step's to set.
        InputError: The prompt is neither a text nor messages.
    """
    messages = _messages(prompt)
    extra = dict(options or {})
    if taken := sorted(_OURS & extra.keys()):
        raise ConfigurationError(
            f"The options {taken} are not a step's to set: the plan chooses the tier, and answers are not "
            "streamed or multiplied. Leave them out; use `samples` to ask the same thing several times."
        )
    body: dict[str, Any] = {"model": model}
    match endpoint:
        case Endpoint.RESPONSES:
            body["input"] = prompt if isinstance(prompt, str) else messages
            if system is not None:
                body["instructions"] = system
            if max_output_tokens is not None:
                body["max_output_tokens"] = max_output_tokens
            if output is not None:
                form = {"type": "json_schema", "name": output.name, "schema": output.schema, "strict": True}
                body["text"] = {"format": form}
        case Endpoint.CHAT_COMPLETIONS:
            head = [{"role": "system", "content": system}] if system is not None else []
            body["messages"] = head + messages
            if max_output_tokens is not None:
                # `max_tokens` is refused by the models that reason.
                body["max_completion_tokens"] = max_output_tokens
            if output is not None:
                named = {"name": output.name, "schema": output.schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": named}
        case Endpoint.MESSAGES:
            if max_output_tokens is None:
                raise ConfigurationError(
                    "Anthropic answers no request without a bound on its output. Set the step's `max_output_tokens`."
                )
            body["max_tokens"] = max_output_tokens
            standing, body["messages"] = _without_system(messages)
            if text := "\n\n".join(([system] if system is not None else []) + standing):
                body["system"] = text
            if output is not None:
                body["output_config"] = {"format": {"type": "json_schema", "schema": output.schema}}
        case _:
            assert_never(endpoint)
    return _merged(body, extra)


def _messages(prompt: object) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise InputError(
            f"The prompt function returned {type(prompt).__name__}. Return a str, or a list of messages with "
            "`role` and `content`."
        )
    if not prompt:
        raise InputError("The prompt function returned an empty list of messages. Return at least one.")
    messages: list[dict[str, Any]] = []
    for position, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(
                f"Message {position} of the prompt is no mapping with `role` and `content`. Return each "
                "message as {'role': ..., 'content': ...}."
            )
        messages.append(dict(message))
    return messages


def _without_system(messages: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Split off the leading system messages, which Anthropic takes as a field of its own."""
    standing: list[str] = []
    rest = messages
    while rest and rest[0]["role"] in _SYSTEM_ROLES and isinstance(rest[0]["content"], str):
        standing.append(rest[0]["content"])
        rest = rest[1:]
    for message in rest:
        if message["role"] in _SYSTEM_ROLES:
            raise InputError(
                "Anthropic takes system messages as text, ahead of all others. Move them to the front, or use `system`."
            )
    if not rest:
        raise InputError("The prompt holds system messages alone. Add a message with the role 'user'.")
    return standing, rest


def _merged(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Put the options in; a mapping joins one that is there, so that `text.verbosity` keeps `text.format`."""
    for name, value in extra.items():
        there = body.get(name)
        if isinstance(there, dict) and isinstance(value, Mapping):
            body[name] = {**value, **there}
        else:
            body[name] = value
    return body


def long_answer_note(endpoint: Endpoint, max_output_tokens: int) -> str | None:
    """Return what to say of a bound so high that a live call may outlast its connection; None if it is not.

    Anthropic's SDK refuses such a call unless it streams. This package asks all the same, because in a batch
    there is no connection to outlast.
    """
    if endpoint is not Endpoint.MESSAGES or max_output_tokens <= LONG_ANSWER_TOKENS:
        return None
    return (
        f"max_output_tokens={max_output_tokens} is above {LONG_ANSWER_TOKENS}: a live answer may take over "
        "ten minutes and be cut by the network after it was paid for. Prefer the batch tier, or lower "
        "the bound."
    )
