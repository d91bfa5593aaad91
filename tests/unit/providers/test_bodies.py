"""Prompts into bodies."""

from typing import Any

import pytest
from pydantic import BaseModel

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.errors import ConfigurationError, InputError
from prefect_llm_tiers.providers.bodies import LONG_ANSWER_TOKENS, build_body, long_answer_note
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.schemas import output_schema


class Label(BaseModel):
    """A structured answer."""

    topic: str


OPENAI_LABEL = output_schema(Label, Dialect.OPENAI)
ANTHROPIC_LABEL = output_schema(Label, Dialect.ANTHROPIC)
TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


def test_responses_have_their_shape() -> None:
    """A text is `input`, the standing instructions are `instructions`, the schema is a text format."""
    body = build_body(Endpoint.RESPONSES, "ask", model="m", max_output_tokens=9, output=OPENAI_LABEL, system="be brief")
    schema = OPENAI_LABEL.schema
    assert body == {
        "model": "m",
        "input": "ask",
        "instructions": "be brief",
        "max_output_tokens": 9,
        "text": {"format": {"type": "json_schema", "name": "Label", "schema": schema, "strict": True}},
    }


def test_chat_completions_have_their_shape() -> None:
    """The standing instructions are the first message, and the bound is the one reasoning models take."""
    body = build_body(
        Endpoint.CHAT_COMPLETIONS,
        TURNS,
        model="m",
        max_output_tokens=9,
        output=OPENAI_LABEL,
        system="be brief",
    )
    named = {"name": "Label", "schema": OPENAI_LABEL.schema, "strict": True}
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, *TURNS],
        "max_completion_tokens": 9,
        "response_format": {"type": "json_schema", "json_schema": named},
    }


def test_messages_have_their_shape() -> None:
    """Leading system messages join the standing instructions, which are a field of their own."""
    prompt = [{"role": "system", "content": "be kind"}, *TURNS]
    body = build_body(
        Endpoint.MESSAGES, prompt, model="m", max_output_tokens=9, output=ANTHROPIC_LABEL, system="be brief"
    )
    assert body == {
        "model": "m",
        "max_tokens": 9,
        "messages": TURNS,
        "system": "be brief\n\nbe kind",
        "output_config": {"format": {"type": "json_schema", "schema": ANTHROPIC_LABEL.schema}},
    }


TALKS = (Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES)
RAW = (Endpoint.COMPLETIONS, Endpoint.MODERATIONS, Endpoint.IMAGES, Endpoint.IMAGE_EDITS, Endpoint.VIDEOS)


@pytest.mark.parametrize("endpoint", TALKS)
def test_the_least_is_said(endpoint: Endpoint) -> None:
    """What was not asked for is not in the body: no tier, no stream, and nothing that is null."""
    body = build_body(endpoint, "ask", model="m", max_output_tokens=5)
    assert len(body) == 3
    assert None not in body.values()


def test_anthropic_needs_a_bound() -> None:
    """A message without a bound on its output cannot be asked; the message names the parameter."""
    with pytest.raises(ConfigurationError, match="max_output_tokens"):
        build_body(Endpoint.MESSAGES, "ask", model="m")


def test_options_go_in_beside_the_schema() -> None:
    """A mapping among the options joins the one that is there, and does not take the schema's place."""
    options = {"temperature": 0, "text": {"verbosity": "low", "format": {"type": "text"}}}
    body = build_body(Endpoint.RESPONSES, "ask", model="m", output=OPENAI_LABEL, options=options)
    assert body["temperature"] == 0
    assert body["text"]["verbosity"] == "low"
    assert body["text"]["format"]["name"] == "Label"


@pytest.mark.parametrize("name", ["service_tier", "stream", "background", "n", "model", "custom_id"])
def test_what_is_the_engines_is_not_an_option(name: str) -> None:
    """Tier, stream, number and model are not set by the way; the message names the field."""
    with pytest.raises(ConfigurationError, match=name):
        build_body(Endpoint.RESPONSES, "ask", model="m", options={name: "x"})


@pytest.mark.parametrize(
    "prompt", [None, 7, b"bytes", [], ["text"], [{"role": "user"}], [{"content": "secret"}], {"role": "user"}]
)
@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_what_is_no_prompt_is_refused_without_being_shown(endpoint: Endpoint, prompt: Any) -> None:
    """Only a text or messages can be asked; the error says what came, and repeats none of it."""
    with pytest.raises(InputError) as caught:
        build_body(endpoint, prompt, model="m", max_output_tokens=5 if endpoint in TALKS else None)
    assert "secret" not in str(caught.value)


def test_embeddings_have_their_shape() -> None:
    """A text is `input`, and the vector comes in base64 unless the step says otherwise."""
    assert build_body(Endpoint.EMBEDDINGS, "ask", model="m") == {
        "model": "m",
        "input": "ask",
        "encoding_format": "base64",
    }
    body = build_body(Endpoint.EMBEDDINGS, "ask", model="m", options={"dimensions": 256, "encoding_format": "float"})
    assert (body["dimensions"], body["encoding_format"]) == (256, "float")


@pytest.mark.parametrize(
    ("endpoint", "own", "filled"),
    [
        (Endpoint.EMBEDDINGS, {"input": ["a", "b"]}, {"encoding_format": "base64"}),
        (Endpoint.EMBEDDINGS, {"input": "a", "encoding_format": "float"}, {}),
        (Endpoint.COMPLETIONS, {"prompt": "a", "n": 2}, {}),
        (Endpoint.MODERATIONS, {"input": ["a", "b"]}, {}),
        (Endpoint.IMAGES, {"prompt": "a", "n": 2, "size": "1024x1024"}, {}),
        (Endpoint.IMAGE_EDITS, {"prompt": "a", "images": [{"file_id": "file-1"}]}, {}),
        (Endpoint.VIDEOS, {"prompt": "a", "seconds": "4"}, {}),
        (Endpoint.RESPONSES, {"input": "a", "tools": []}, {}),
        (Endpoint.CHAT_COMPLETIONS, {"messages": TURNS, "logprobs": True}, {}),
    ],
)
def test_a_dict_is_the_body_itself(endpoint: Endpoint, own: dict[str, Any], filled: dict[str, Any]) -> None:
    """What the prompt function returns as a dict is sent as it is, with the model filled in."""
    before = dict(own)
    assert build_body(endpoint, own, model="m") == {"model": "m", **own, **filled}
    assert build_body(endpoint, {**own, "model": "m"}, model="m") == {"model": "m", **own, **filled}
    assert own == before


def test_a_body_of_ones_own_goes_before_the_step() -> None:
    """What the step sets holds for the fields that the row leaves out."""
    settings: dict[str, Any] = {"model": "m", "max_output_tokens": 9, "system": "be brief", "options": {"top_p": 1}}
    assert build_body(Endpoint.RESPONSES, {"input": "a", "instructions": "be kind"}, **settings) == {
        "model": "m",
        "input": "a",
        "instructions": "be kind",
        "max_output_tokens": 9,
        "top_p": 1,
    }
    assert build_body(Endpoint.MESSAGES, {"messages": TURNS, "max_tokens": 3}, **settings) == {
        "model": "m",
        "messages": TURNS,
        "max_tokens": 3,
        "system": "be brief",
        "top_p": 1,
    }
    with pytest.raises(InputError, match="system"):
        build_body(Endpoint.CHAT_COMPLETIONS, {"messages": TURNS}, **settings)


@pytest.mark.parametrize("name", ["service_tier", "stream", "background", "custom_id"])
@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_body_of_ones_own_leaves_the_engine_its_fields(endpoint: Endpoint, name: str) -> None:
    """Tier, stream and id are no row's to set either; the message names the field and shows no value."""
    own = {"input": "secret", "messages": TURNS, "prompt": "secret", name: "secret"}
    with pytest.raises(InputError, match=name) as caught:
        build_body(endpoint, own, model="m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES])
def test_a_body_of_ones_own_asks_for_one_answer(endpoint: Endpoint) -> None:
    """Of a conversation one answer is read; `n` would pay for more."""
    with pytest.raises(InputError, match="sets n"):
        build_body(endpoint, {"input": "a", "messages": TURNS, "n": 2}, model="m")


def test_a_row_cannot_choose_its_model() -> None:
    """A step asks one model; a body that names another is refused, since batch and price are the step's."""
    with pytest.raises(InputError, match="another model"):
        build_body(Endpoint.IMAGES, {"prompt": "a", "model": "other"}, model="m")


@pytest.mark.parametrize("endpoint", RAW)
@pytest.mark.parametrize("prompt", ["text", TURNS])
def test_a_raw_endpoint_takes_a_body_alone(endpoint: Endpoint, prompt: Any) -> None:
    """A text or messages have no one place in these bodies; the message says what to return."""
    with pytest.raises(InputError, match="as a dict"):
        build_body(endpoint, prompt, model="m")


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, *RAW])
@pytest.mark.parametrize("settings", [{"max_output_tokens": 5}, {"system": "x"}, {"output": OPENAI_LABEL}])
def test_what_an_endpoint_has_no_place_for_is_refused(endpoint: Endpoint, settings: dict[str, Any]) -> None:
    """A setting that would silently do nothing is an error that names it."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        build_body(endpoint, {"input": "a", "prompt": "a"}, model="m", **settings)


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "system", "content": "alone"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}],
        [
            {"role": "system", "content": [{"type": "text", "text": "parts"}]},
            {"role": "user", "content": "a"},
        ],
    ],
)
def test_system_messages_that_anthropic_cannot_take_are_refused(prompt: list[dict[str, Any]]) -> None:
    """A system message alone, in the middle or in parts is an error, and not silently dropped."""
    with pytest.raises(InputError, match="system"):
        build_body(Endpoint.MESSAGES, prompt, model="m", max_output_tokens=5)


def test_a_very_long_answer_is_remarked_on() -> None:
    """Above the bound at which the SDK itself refuses a live call, the user is told; never below it."""
    assert long_answer_note(Endpoint.MESSAGES, LONG_ANSWER_TOKENS) is None
    assert str(LONG_ANSWER_TOKENS + 1) in (long_answer_note(Endpoint.MESSAGES, LONG_ANSWER_TOKENS + 1) or "")
    assert long_answer_note(Endpoint.RESPONSES, 100_000) is None
