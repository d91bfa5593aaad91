"""Prompts into bodies."""

import base64
from typing import Any

import pytest
from pydantic import BaseModel

from prefect_llm_tiers.core.images import Image
from prefect_llm_tiers.core.requests import Endpoint, canonical_json
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
    ],
)
def test_system_messages_that_anthropic_cannot_take_are_refused(prompt: list[dict[str, Any]]) -> None:
    """A system message alone or in the middle is an error, and not silently dropped."""
    with pytest.raises(InputError, match="system"):
        build_body(Endpoint.MESSAGES, prompt, model="m", max_output_tokens=5)


def test_a_very_long_answer_is_remarked_on() -> None:
    """Above the bound at which the SDK itself refuses a live call, the user is told; never below it."""
    assert long_answer_note(Endpoint.MESSAGES, LONG_ANSWER_TOKENS) is None
    assert str(LONG_ANSWER_TOKENS + 1) in (long_answer_note(Endpoint.MESSAGES, LONG_ANSWER_TOKENS + 1) or "")
    assert long_answer_note(Endpoint.RESPONSES, 100_000) is None


def test_system_messages_in_blocks_keep_them() -> None:
    """A block that marks the end of what is cached stays a block, ahead of all else and in its place."""
    cached = {"type": "text", "text": "The handbook.", "cache_control": {"type": "ephemeral"}}
    prompt: list[dict[str, Any]] = [
        {"role": "system", "content": [cached]},
        {"role": "system", "content": "Be brief."},
        USER,
    ]
    body = build_body(Endpoint.MESSAGES, prompt, model="m", max_output_tokens=5, system="You label.")
    assert body["system"] == [{"type": "text", "text": "You label."}, cached, {"type": "text", "text": "Be brief."}]
    assert body["messages"] == [USER]


USER: dict[str, Any] = {"role": "user", "content": "a"}

PNG = b"\x89PNG\r\n\x1a\n-and-the-rest"
JPEG = b"\xff\xd8\xff-and-the-rest"
ON_THE_WEB = "https://example.com/valve.png"
AS_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        (
            Endpoint.RESPONSES,
            [
                {"type": "input_text", "text": "What is wrong?"},
                {"type": "input_image", "image_url": ON_THE_WEB, "detail": "low"},
                {"type": "input_image", "image_url": AS_URL},
                {"type": "input_text", "text": "Be brief."},
            ],
        ),
        (
            Endpoint.CHAT_COMPLETIONS,
            [
                {"type": "text", "text": "What is wrong?"},
                {"type": "image_url", "image_url": {"url": ON_THE_WEB, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": AS_URL}},
                {"type": "text", "text": "Be brief."},
            ],
        ),
        (
            Endpoint.MESSAGES,
            [
                {"type": "text", "text": "What is wrong?"},
                {"type": "image", "source": {"type": "url", "url": ON_THE_WEB}},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
                },
                {"type": "text", "text": "Be brief."},
            ],
        ),
    ],
)
def test_images_go_in_their_places(endpoint: Endpoint, parts: list[dict[str, Any]]) -> None:
    """By URL or by bytes, in the dialect's own shape, and in the order in which they were given."""
    content = ["What is wrong?", Image(url=ON_THE_WEB, detail="low"), PNG, "Be brief."]
    body = build_body(endpoint, [{"role": "user", "content": content}], model="m", max_output_tokens=5)
    [said] = body["input" if endpoint is Endpoint.RESPONSES else "messages"]
    assert said == {"role": "user", "content": parts}
    again = build_body(endpoint, [{"role": "user", "content": list(content)}], model="m", max_output_tokens=5)
    assert canonical_json(again) == canonical_json(body)


def test_the_order_of_messages_is_kept() -> None:
    """What many prompts begin with stays first, so that a provider's cache finds it."""
    prompt: list[dict[str, Any]] = [
        {"role": "system", "content": "The handbook."},
        {"role": "user", "content": ["An example.", "And another."]},
        {"role": "assistant", "content": ["Its answer."]},
        {"role": "user", "content": "The question."},
    ]
    chat = build_body(Endpoint.CHAT_COMPLETIONS, prompt, model="m", system="You label.")
    assert [message["role"] for message in chat["messages"]] == ["system", "system", "user", "assistant", "user"]
    assert chat["messages"][0]["content"] == "You label."
    responses = build_body(Endpoint.RESPONSES, prompt, model="m")
    assert [part["type"] for message in responses["input"][1:3] for part in message["content"]] == [
        "input_text",
        "input_text",
        "output_text",
    ]


@pytest.mark.parametrize(
    ("data", "kind"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (b"GIF89a..", "image/gif"), (b"RIFF....WEBPVP8 ", "image/webp")],
)
def test_an_image_tells_its_kind(data: bytes, kind: str) -> None:
    """The first bytes tell; what is said goes before."""
    assert Image(data=data).kind() == kind
    assert Image(data=data, media_type="image/x").kind() == "image/x"
    assert "PNG" not in repr(Image(data=data))


@pytest.mark.parametrize("fields", [{}, {"url": ON_THE_WEB, "data": PNG}, {"data": b"%PDF-1.7"}, {"data": b""}])
def test_what_is_no_image_is_refused(fields: dict[str, Any]) -> None:
    """Neither, both, or bytes of another kind are told at once."""
    with pytest.raises(InputError, match="Image"):
        Image(**fields)


def test_a_part_of_another_type_is_refused() -> None:
    """A number in a message's content is told by its place."""
    with pytest.raises(InputError, match="Part 1 of a message's content is of type int"):
        build_body(Endpoint.RESPONSES, [{"role": "user", "content": ["a", 7]}], model="m")
