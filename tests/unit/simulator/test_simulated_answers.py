import json
import re
from decimal import Decimal
from random import Random
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.schemas import output_schema
from prefect_llm_tiers.simulator.answers import summary_of
from prefect_llm_tiers.simulator.instances import instance_of
from prefect_llm_tiers.simulator.patterns import matching


def is_valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Judge a value by a schema, written apart from what makes values."""
    if "$ref" in schema:
        return is_valid(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(is_valid(value, part, root) for part in schema["anyOf"])
    match schema["type"]:
        case "object":
            return (
                isinstance(value, dict)
                and set(value) == set(schema["properties"])
                and all(is_valid(value[name], part, root) for name, part in schema["properties"].items())
            )
        case "array":
            fits = isinstance(value, list) and len(value) >= schema.get("minItems", 0)
            return fits and all(is_valid(each, schema["items"], root) for each in value)
        case "integer" | "number" as kind:
            right = isinstance(value, int if kind == "integer" else (int, float))
            low, high = schema.get("minimum", float("-inf")), schema.get("maximum", float("inf"))
            return right and not isinstance(value, bool) and low <= value <= high
        case "string":
            return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**6)
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None


def bounded(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return schemas of numbers with one bound, two, or none."""
    whole = st.integers(-1000, 1000)
    low = st.fixed_dictionaries({"type": st.just(kind)}, optional={"minimum": whole})
    high = st.fixed_dictionaries({"type": st.just(kind)}, optional={"maximum": whole})
    both = st.tuples(whole, st.integers(0, 50)).map(
        lambda pair: {"type": kind, "minimum": pair[0], "maximum": pair[0] + pair[1]}
    )
    return low | high | both


NAMES = st.text("abcdef", min_size=1, max_size=4)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": "string"}),
    st.tuples(st.integers(0, 40), st.integers(0, 40)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": sum(pair)}
    ),
    bounded("integer"),
    bounded("number"),
    st.lists(NAMES, min_size=1, max_size=4).map(lambda names: {"type": "string", "enum": names}),
    NAMES.map(lambda name: {"const": name}),
    st.just({"$ref": "#/$defs/Leaf"}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda part: st.one_of(
        st.dictionaries(NAMES, part, max_size=4).map(
            lambda parts: {"type": "object", "properties": parts, "required": [*parts]}
        ),
        st.tuples(part, st.integers(0, 4)).map(lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1]}),
        st.lists(part, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
    ),
    max_leaves=12,
)


@given(SCHEMAS, st.integers(0, 5))
def test_an_instance_is_valid_under_its_schema(schema: dict[str, Any], seed: int) -> None:
    """Whatever the schema, the answer obeys it, and the same draw gives the same answer."""
    root = schema | {"$defs": {"Leaf": {"type": "integer", "minimum": 3, "maximum": 4}}}
    value = instance_of(root, Random(seed))
    assert is_valid(value, root, root)
    assert value == instance_of(root, Random(seed))


def test_a_schema_that_refers_to_itself_ends() -> None:
    """Recursive references give a finite answer."""
    tree = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
            "next": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
        },
    }
    root = {"$ref": "#/$defs/Tree", "$defs": {"Tree": tree}}
    assert all(is_valid(instance_of(root, Random(seed)), root, root) for seed in range(20))


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$",  # pydantic's, for Decimal
        r"^[A-Z]{2}-\d{3,5}$",
        r"^(?:red|green|blue)$",
        r"^[^\s@]+@[^\s@]+\.[a-z]{2,}$",
        r"(\w)x\1",
        r"^\d{4}-(0[1-9]|1[0-2])$",
        r"^.{3}$",
        r"^(?=.*\d)[a-z0-9]{8}$",
        r"end$",
    ],
)
def test_a_text_matches_its_pattern(pattern: str) -> None:
    """A string whose schema names a pattern matches it, each time another one where there are several."""
    schema = {"type": "string", "pattern": pattern}
    values = {instance_of(schema, Random(seed)) for seed in range(30)}
    assert all(re.search(pattern, value) for value in values)
    assert len(values) > 1 or pattern == "end$"


def test_a_pattern_that_nothing_matches_is_passed_over() -> None:
    """Contradictions, broken expressions and lengths out of reach end in no text, not in a loop."""
    assert matching("^(?=a)b$", Random(1)) is None
    assert matching("(", Random(1)) is None
    assert matching("^a{3}$", Random(1), least=5) is None
    assert isinstance(instance_of({"type": "string", "pattern": "("}, Random(1)), str)


class Invoice(BaseModel):
    """Fields that a provider's strict schema says only in part."""

    total: Decimal
    tax: Annotated[Decimal, Field(max_digits=6, decimal_places=2)]
    discount: Annotated[Decimal, Field(gt=5, le=6)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3,5}$")]
    note: Annotated[str, Field(min_length=30, max_length=40)]
    pages: Annotated[int, Field(ge=40, le=50)]
    lines: Annotated[list[int], Field(min_length=2, max_length=3)]


@pytest.mark.parametrize("dialect", list(Dialect))
def test_answers_parse_into_the_model_that_asked(dialect: Dialect) -> None:
    """Decimals, patterns and bounds hold, those that the schema can only tell in a description too."""
    schema = output_schema(Invoice, dialect).schema
    for seed in range(200):
        Invoice.model_validate_json(json.dumps(instance_of(schema, Random(seed))))


@pytest.mark.parametrize(
    ("document", "summary"),
    [
        (
            "Summarize.\n\n# Locks\n\nShort one.\n\nA lock guards a row. It is held on.",
            "A lock guards a row. It is held on.",
        ),
        ("Only an instruction", "Only an instruction"),
        ("Sum up.\n* **Bold** words in a list. Done.", "Bold words in a list. Done."),
        ("Sum up.\n# Only a heading", "Only a heading"),
        ("", "The document is empty."),
    ],
)
def test_a_summary_is_the_documents_own_sentences(document: str, summary: str) -> None:
    """The longest paragraph speaks, without marks, headings and the instruction."""
    assert summary_of(document) == summary


@given(st.text())
def test_a_summary_is_short_and_never_empty(document: str) -> None:
    """Any document gives one line of text."""
    summary = summary_of(document)
    assert summary
    assert len(summary) <= 330
    assert "\n" not in summary
