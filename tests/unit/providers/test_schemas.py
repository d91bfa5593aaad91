"""Pydantic models as strict schemas."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Optional

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel

from prefect_llm_tiers.errors import SchemaUnsupported
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.schemas import output_schema

each = pytest.mark.parametrize("dialect", list(Dialect))


class Colour(Enum):
    """A closed list."""

    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    """One of two."""

    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9)


class Dog(BaseModel):
    """The other."""

    kind: Literal["dog"]
    name: Annotated[str, Field(min_length=1, max_length=20, pattern="^[A-Z]")]


class Rich(BaseModel):
    """Everything that a strict schema can say."""

    title: str = Field(description="What it is called")
    day: date
    price: Decimal
    colour: Colour = Field(Colour.RED, description="Of the cover")
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    first: Cat = Field(description="A cat with words beside its reference")
    tags: set[str] = Field(default_factory=set)
    note: Optional[str] = None  # noqa: UP045 - users write it so


class Node(BaseModel):
    """Refers to itself."""

    name: str
    children: list["Node"]


def parts(schema: Any) -> list[dict[str, Any]]:
    """Return a schema and all schemas in it."""
    if isinstance(schema, list):
        return [part for item in schema for part in parts(item)]
    if not isinstance(schema, dict):
        return []
    inner = [part for key, value in schema.items() if key in ("items", "anyOf", "allOf") for part in parts(value)]
    named = [part for key in ("properties", "$defs") for value in schema.get(key, {}).values() for part in parts(value)]
    return [schema, *inner, *named]


@each
def test_objects_are_closed(dialect: Dialect) -> None:
    """No object of the schema takes keys that are not named."""
    objects = [part for part in parts(output_schema(Rich, dialect).schema) if part.get("type") == "object"]
    assert len(objects) >= 3
    assert all(part["additionalProperties"] is False for part in objects)


def test_openai_gets_its_subset() -> None:
    """Every property is required, and what the subset rejects is gone, told in the description instead."""
    schema = output_schema(Rich, Dialect.OPENAI).schema
    for part in parts(schema):
        assert not {"oneOf", "allOf", "default", "discriminator", "uniqueItems", "minLength"} & part.keys()
        assert "(?" not in part.get("pattern", "")
        if "$ref" in part:
            assert part.keys() == {"$ref"}
        if part.get("type") == "object":
            assert part["required"] == list(part["properties"])
    assert schema["type"] == "object"
    assert "uniqueItems" in schema["properties"]["tags"]["description"]
    assert schema["properties"]["first"]["description"] == "A cat with words beside its reference"
    assert schema["properties"]["first"]["properties"].keys() == {"kind", "lives"}
    assert schema["$defs"]["Dog"]["properties"]["name"]["pattern"] == "^[A-Z]"


@each
def test_what_the_schema_allows_the_model_reads(dialect: Dialect) -> None:
    """A value that fills every property of the strict schema validates against the model."""
    schema = output_schema(Rich, dialect).schema
    value = {
        "title": "x",
        "day": "2026-11-20",
        "price": "1.5",
        "colour": "blue",
        "pet": {"kind": "dog", "name": "Rex"},
        "first": {"kind": "cat", "lives": 3},
        "tags": ["a"],
        "note": None,
    }
    assert schema["properties"].keys() == value.keys()
    assert Rich.model_validate_json(orjson.dumps(value))


@each
def test_the_same_model_gives_the_same_bytes(dialect: Dialect) -> None:
    """A schema is part of the request's key: it does not vary from call to call."""
    assert orjson.dumps(output_schema(Rich, dialect).schema) == orjson.dumps(output_schema(Rich, dialect).schema)


def test_a_recursive_model_has_an_object_at_its_root() -> None:
    """Pydantic makes the root of a recursive model a reference; OpenAI takes an object there alone."""
    schema = output_schema(Node, Dialect.OPENAI).schema
    assert schema["type"] == "object"
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert schema["$defs"]["Node"]["required"] == ["name", "children"]


def test_a_recursive_model_is_refused_where_it_is_not_taken() -> None:
    """Anthropic takes no recursive schemas; the message names the field."""
    with pytest.raises(SchemaUnsupported, match=r"Node\.children\[\] refers to itself"):
        output_schema(Node, Dialect.ANTHROPIC)


def test_a_generic_models_name_is_one_that_openai_takes() -> None:
    """The schema's name has letters, digits, hyphens and underscores only, at most 64."""

    class Page(BaseModel):
        items: list[int]

    Page.__name__ = "Page[int, 'é']" + "x" * 80
    name = output_schema(Page, Dialect.OPENAI).name
    assert name.startswith("Page_int")
    assert len(name) == 64
    assert name.isascii()


class Inner(BaseModel):
    """Holds the culprit."""

    extra: dict[str, Any]


class Free(BaseModel):
    """A dict two levels down."""

    inner: list[Inner]


class Mapped(BaseModel):
    """A dict with typed values is free all the same."""

    counts: dict[str, int]


class Anything(BaseModel):
    """Untyped."""

    value: Any


class MaybeAnything(BaseModel):
    """Untyped, or nothing."""

    value: Any | None = None


class Described(BaseModel):
    """Untyped, with words."""

    value: Any = Field(None, description="whatever", examples=[1])


class Bare(BaseModel):
    """A list of anything."""

    values: list  # type: ignore[type-arg] # users write it so


class Pair(BaseModel):
    """A tuple."""

    pair: tuple[int, str]


class Open(BaseModel):
    """Takes more keys than it names."""

    model_config = ConfigDict(extra="allow")
    name: str


class Listed(RootModel[list[int]]):
    """No object at its root."""


class Called(BaseModel):
    """What JSON cannot carry."""

    call: Callable[[int], int]


@each
@pytest.mark.parametrize(
    ("model", "where"),
    [
        (Free, r"Free\.inner\[\]\.extra"),
        (Mapped, r"Mapped\.counts"),
        (Anything, r"Anything\.value"),
        (MaybeAnything, r"MaybeAnything\.value"),
        (Described, r"Described\.value"),
        (Bare, r"Bare\.values\[\]"),
        (Pair, r"Pair\.pair"),
        (Open, r"Open has keys"),
        (Listed, r"Listed is not an object"),
        (Called, r"Called has no JSON schema"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_way_out(dialect: Dialect, model: type[BaseModel], where: str) -> None:
    """The error names the model, the field and what to write instead, before anything is paid."""
    with pytest.raises(SchemaUnsupported, match=where) as caught:
        output_schema(model, dialect)
    assert any(word in str(caught.value) for word in ("Name each", "Give it", "Use ", "Wrap it"))
