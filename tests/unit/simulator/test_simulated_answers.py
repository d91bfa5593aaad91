from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.simulator.answers import instance_of, summary_of


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
