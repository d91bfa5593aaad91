"""Prompts into request bodies, in the provider's shape and without tier, stream or id.

The body is what a request's key is made of: equal arguments give equal bodies in every process and version.
A change to what is written here makes every question a new one, which is paid for again.
"""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, assert_never

import orjson

from prefect_llm_tiers.core.requests import Endpoint, canonical_json
from prefect_llm_tiers.errors import ConfigurationError, InputError
from prefect_llm_tiers.providers.parts import content_of
from prefect_llm_tiers.providers.schemas import OutputSchema

__all__ = ["LONG_ANSWER_TOKENS", "BodyEncoder", "Prompt", "build_body", "long_answer_note"]

Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A text, messages with `role` and `content`, or a request's body."""

LONG_ANSWER_TOKENS = 21_333
"""Above this many output tokens Anthropic's SDK expects an answer to take over ten minutes."""

_OURS = frozenset({"service_tier", "stream", "background", "custom_id"})
"""Fields that are nobody's to set: the engine writes them, or needs them absent."""

_NOT_OPTIONS = _OURS | {"n", "model"}
"""Fields that are not a step's to set."""

_ONE_ANSWER = frozenset({Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES})
"""Endpoints of whose reply one answer is read; a second one would be paid for and lost."""

_ASKED = {
    Endpoint.RESPONSES: frozenset({"input", "prompt"}),
    Endpoint.CHAT_COMPLETIONS: frozenset({"messages"}),
    Endpoint.MESSAGES: frozenset({"messages"}),
    Endpoint.EMBEDDINGS: frozenset({"input"}),
    Endpoint.COMPLETIONS: frozenset({"prompt"}),
    Endpoint.MODERATIONS: frozenset({"input"}),
    Endpoint.IMAGES: frozenset({"prompt"}),
    Endpoint.IMAGE_EDITS: frozenset({"prompt"}),
    Endpoint.VIDEOS: frozenset({"prompt"}),
}
"""Fields of which a body of one's own has one; a single message in the place of a list has none."""

_MARK = "\x02prompt\x03"
"""Stands for the prompt where a body is encoded around it."""

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

    A prompt that is a mapping is the body itself: it goes as it is, and what it leaves out is filled in from the
    other arguments. Completions, moderations, images and videos take nothing else.

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
        InputError: The prompt is none that this endpoint takes.
    """
    extra = dict(options or {})
    if taken := sorted(_NOT_OPTIONS & extra.keys()):
        raise ConfigurationError(
            f"The options {taken} are not a step's to set: the plan chooses the tier, and answers are not "
            "streamed or multiplied. Leave them out; use `samples` to ask the same thing several times."
        )
    if isinstance(prompt, Mapping):
        own = _own_body(endpoint, prompt, model=model, system=system)
        settings = _settings(endpoint, max_output_tokens=max_output_tokens, output=output, system=system)
        return _complete(endpoint, {"model": model, **_merged(settings, extra), **own})
    messages = _messages(prompt, endpoint)
    body: dict[str, Any] = {"model": model}
    body |= _settings(endpoint, max_output_tokens=max_output_tokens, output=output, system=system)
    match endpoint:
        case Endpoint.RESPONSES:
            body["input"] = prompt if isinstance(prompt, str) else messages
        case Endpoint.CHAT_COMPLETIONS:
            head = [{"role": "system", "content": system}] if system is not None else []
            body["messages"] = head + messages
        case Endpoint.MESSAGES:
            standing, body["messages"] = _without_system(messages)
            if instructions := _instructions(([system] if system is not None else []) + standing):
                body["system"] = instructions
        case Endpoint.EMBEDDINGS:
            if not isinstance(prompt, str):
                raise InputError(
                    "The prompt of an embedding is a list of messages. It is the text, or the request's body as a dict "
                    "whose `input` is a list of texts."
                )
            body["input"] = prompt
        case Endpoint.COMPLETIONS | Endpoint.MODERATIONS | Endpoint.IMAGES | Endpoint.IMAGE_EDITS | Endpoint.VIDEOS:
            raise InputError(
                f"The prompt is of type {type(prompt).__name__}. At {endpoint} it is the request's body as a dict, as "
                "{'prompt': ...}; the model is filled in."
            )
        case _:
            assert_never(endpoint)
    return _complete(endpoint, _merged(body, extra))


def _settings(
    endpoint: Endpoint, *, max_output_tokens: int | None, output: OutputSchema | None, system: str | None
) -> dict[str, Any]:
    """Return the fields that a step sets for every row, apart from the prompt and its options."""
    settings: dict[str, Any] = {}
    match endpoint:
        case Endpoint.RESPONSES:
            if system is not None:
                settings["instructions"] = system
            if max_output_tokens is not None:
                settings["max_output_tokens"] = max_output_tokens
            if output is not None:
                form = {"type": "json_schema", "name": output.name, "schema": output.schema, "strict": True}
                settings["text"] = {"format": form}
        case Endpoint.CHAT_COMPLETIONS:
            if max_output_tokens is not None:
                # `max_tokens` is refused by the models that reason.
                settings["max_completion_tokens"] = max_output_tokens
            if output is not None:
                named = {"name": output.name, "schema": output.schema, "strict": True}
                settings["response_format"] = {"type": "json_schema", "json_schema": named}
        case Endpoint.MESSAGES:
            if max_output_tokens is not None:
                settings["max_tokens"] = max_output_tokens
            if system is not None:
                settings["system"] = system
            if output is not None:
                settings["output_config"] = {"format": {"type": "json_schema", "schema": output.schema}}
        case (
            Endpoint.EMBEDDINGS
            | Endpoint.COMPLETIONS
            | Endpoint.MODERATIONS
            | Endpoint.IMAGES
            | Endpoint.IMAGE_EDITS
            | Endpoint.VIDEOS
        ):
            given = {"max_output_tokens": max_output_tokens, "output": output, "system": system}
            if idle := [name for name, value in given.items() if value is not None]:
                raise ConfigurationError(
                    f"A request to {endpoint} has no place for {', '.join(idle)}. Leave them out, or put the "
                    "endpoint's own fields into `options`, or into a prompt that is the body."
                )
            if endpoint is Endpoint.EMBEDDINGS:
                # A third of the bytes of a list of decimal numbers.
                settings["encoding_format"] = "base64"
        case _:
            assert_never(endpoint)
    return settings


def _own_body(endpoint: Endpoint, body: Mapping[str, Any], *, model: str, system: str | None) -> dict[str, Any]:
    """Return a prompt that is a body, after looking for what it must not say."""
    own = dict(body)
    forbidden = _OURS | {"n"} if endpoint in _ONE_ANSWER else _OURS
    if taken := sorted(forbidden & own.keys()):
        raise InputError(
            f"The prompt is a body that sets {', '.join(taken)}: the plan chooses the tier, and answers are not "
            "streamed or multiplied. Leave them out."
        )
    asked = _ASKED[endpoint]
    if not asked & own.keys():
        raise InputError(
            f"The prompt is a dict without {' or '.join(map(repr, sorted(asked)))}. A dict is the body of a request to "
            f"{endpoint}; one message goes as a list that holds it."
        )
    if own.get("model", model) != model:
        raise InputError(
            "The prompt is a body that names another model than the one that is asked. Leave `model` out of it; rows "
            "for several models are filtered, and their answers concatenated."
        )
    if endpoint is Endpoint.CHAT_COMPLETIONS and system is not None:
        raise InputError(
            "The prompt is a body with its own `messages`, so `system` has no place. Put it into the messages, or "
            "leave it out."
        )
    return own


def _complete(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    if endpoint is Endpoint.MESSAGES and body.get("max_tokens") is None:
        raise ConfigurationError(
            "Anthropic answers no request without a bound on its output. Set the step's `max_output_tokens`."
        )
    return body


class BodyEncoder:
    """Turns prompts into the canonical JSON of their bodies: what `build_body` says, all but the prompt done once.

    Two texts make bodies that differ in one JSON string alone. So a body is encoded once around a mark, and
    each text is put in the mark's place: at half of the time, and to the byte the same.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        model: str,
        max_output_tokens: int | None = None,
        output: OutputSchema | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Encode the body around the mark; for the arguments see `build_body`.

        Raises:
            ConfigurationError: A field is missing, or is not the step's to set.
        """
        self._build = partial(
            build_body,
            endpoint,
            model=model,
            max_output_tokens=max_output_tokens,
            output=output,
            system=system,
            options=options,
        )
        self._around: tuple[bytes, bytes] | None = None
        # An endpoint that takes no text has nothing to splice one into.
        with contextlib.suppress(InputError):
            parts = canonical_json(self._build(_MARK)).split(canonical_json(_MARK))
            # More than two: the options hold the mark. One: they put something else in the prompt's place.
            if len(parts) == 2:
                self._around = parts[0], parts[1]

    def encode(self, prompt: Any) -> bytes:
        """Return the body of one prompt.

        Raises:
            InputError: The prompt is none that this endpoint takes.
            TypeError: It holds something that JSON cannot express.
            ConfigurationError: A field is missing.
        """
        return canonical_json(self._build(prompt))

    def encode_all(self, prompts: Sequence[Any]) -> list[bytes]:
        """Return the bodies of many prompts, or raise what `encode` raises for one of them."""
        if self._around is None or set(map(type, prompts)) != {str}:
            return [self.encode(prompt) for prompt in prompts]
        (before, after), dumps, join = self._around, orjson.dumps, b"".join
        return [join((before, dumps(prompt), after)) for prompt in prompts]


def _messages(prompt: object, endpoint: Endpoint) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise InputError(
            f"The prompt is of type {type(prompt).__name__}. Give a str, a list of messages with `role` and "
            "`content`, or the request's body as a dict."
        )
    if not prompt:
        raise InputError("The prompt is an empty list of messages. Give at least one.")
    messages: list[dict[str, Any]] = []
    for position, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(
                f"Message {position} of the prompt is no mapping with `role` and `content`. Give each message as "
                "{'role': ..., 'content': ...}."
            )
        messages.append({**message, "content": content_of(message, endpoint)})
    return messages


def _instructions(standing: list[Any]) -> str | list[Any]:
    """Return system messages as Anthropic takes them: one text, or blocks where one is made of blocks."""
    if all(isinstance(content, str) for content in standing):
        return "\n\n".join(standing)
    # A block may carry `cache_control`, which a joined text would lose.
    return [
        block
        for content in standing
        for block in ([{"type": "text", "text": content}] if isinstance(content, str) else content)
    ]


def _without_system(messages: list[dict[str, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Split off the leading system messages, which Anthropic takes as a field of its own."""
    standing: list[Any] = []
    rest = messages
    while rest and rest[0]["role"] in _SYSTEM_ROLES and isinstance(rest[0]["content"], str | list):
        standing.append(rest[0]["content"])
        rest = rest[1:]
    for message in rest:
        if message["role"] in _SYSTEM_ROLES:
            raise InputError(
                "Anthropic takes system messages ahead of all others. Move them to the front, or use `system`."
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
