"""Pydantic models as strict JSON schemas, in each provider's subset.

A strict schema makes the provider write nothing else, which is what lets a million answers become one
column. What the subset leaves out (lengths, patterns, sets) is told to the model in the description and
checked when the answer is read; what it cannot say at all (free keys, untyped values) is refused here, before
anything is paid.
"""

import re
from typing import Any, assert_never

import msgspec
from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from prefect_llm_tiers.errors import SchemaUnsupported
from prefect_llm_tiers.providers.services import Dialect

__all__ = ["OutputSchema", "output_schema"]


class OutputSchema(msgspec.Struct, frozen=True):
    """A model's schema, ready for a request's body.

    Attributes:
        name: The model's name, in the characters that OpenAI allows.
        schema: The strict JSON schema.
    """

    name: str
    schema: dict[str, Any]


_OPENAI_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
# Keywords that OpenAI's strict subset rejects and that only narrow a type.
_OPENAI_NARROWING = frozenset(
    {
        "minLength",
        "maxLength",
        "uniqueItems",
        "minProperties",
        "maxProperties",
        "contentMediaType",
        "contentEncoding",
    }
)
_DROPPED = frozenset({"default", "examples", "example", "discriminator", "deprecated", "readOnly", "writeOnly"})
_INEXPRESSIBLE = frozenset(
    {
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "propertyNames",
    }
)


def output_schema(model: type[BaseModel], dialect: Dialect) -> OutputSchema:
    """Return the strict schema under which a provider writes answers of this model.

    Raises:
        SchemaUnsupported: The model holds a field that a strict schema cannot express; the message names
            the model, the field and the way out.
    """
    try:
        schema = model.model_json_schema()
    except PydanticUserError as error:
        raise SchemaUnsupported(
            f"{model.__name__} has no JSON schema ({error.code}). Use fields of types that JSON can carry."
        ) from error
    _Check(model.__name__, schema, dialect).run()
    match dialect:
        case Dialect.OPENAI:
            strict = _OpenAI(schema).root()
        case Dialect.ANTHROPIC:
            from anthropic import transform_schema

            strict = transform_schema(_inlined_root(schema))
        case _:
            assert_never(dialect)
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", model.__name__)[:64] or "Output"
    return OutputSchema(name=name, schema=strict)


def _resolved(root: dict[str, Any], ref: str) -> dict[str, Any]:
    found: Any = root
    for part in ref.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return dict(found)


def _inlined_root(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose root is the object itself, where pydantic makes it a reference to one."""
    if "$ref" not in schema:
        return schema
    siblings = {name: value for name, value in schema.items() if name != "$ref"}
    return {**_resolved(schema, schema["$ref"]), **siblings}


class _Check:
    """Walks a model's schema and refuses what no strict schema can say."""

    def __init__(self, model: str, schema: dict[str, Any], dialect: Dialect) -> None:
        self._model = model
        self._schema = schema
        self._dialect = dialect
        self._open: set[str] = set()
        self._done: set[str] = set()

    def run(self) -> None:
        root = _inlined_root(self._schema)
        if root.get("type") != "object" or "properties" not in root:
            raise SchemaUnsupported(
                f"{self._model} is not an object with named fields, which a strict schema's root must be. "
                "Wrap it: give a model with one field that holds it."
            )
        if "$ref" in self._schema:
            self._open.add(self._schema["$ref"])
        self._visit(root, "")

    def _refuse(self, field: str, fact: str, way_out: str) -> SchemaUnsupported:
        where = f"{self._model}.{field}" if field else self._model
        return SchemaUnsupported(f"{where} {fact}, which a strict schema cannot express. {way_out}")

    def _visit(self, schema: Any, field: str) -> None:
        if not isinstance(schema, dict) or not (schema.keys() - {"title", "description"} - _DROPPED):
            raise self._refuse(
                field,
                "is untyped (Any, object, or a bare list)",
                "Give it a type, or declare it `str` and parse it.",
            )
        ref = schema.get("$ref")
        if isinstance(ref, str):
            self._follow(ref, field)
            return
        for keyword in _INEXPRESSIBLE & schema.keys():
            raise self._refuse(field, f"has a free shape ('{keyword}')", "Name each key as a field of a model.")
        if "prefixItems" in schema:
            raise self._refuse(field, "is a tuple", "Use a model with a named field for each place, or a list.")
        variants = next((schema[word] for word in ("anyOf", "oneOf", "allOf") if word in schema), None)
        if variants is not None:
            for variant in variants:
                self._visit(variant, field)
            return
        kind = schema.get("type")
        if kind == "object":
            self._visit_object(schema, field)
        elif kind == "array":
            self._visit(schema.get("items"), f"{field}[]")
        elif kind is None and "enum" not in schema and "const" not in schema:
            raise self._refuse(field, "has no type", "Give it a type, or declare it `str` and parse it.")

    def _visit_object(self, schema: dict[str, Any], field: str) -> None:
        if schema.get("additionalProperties", False) is not False or "properties" not in schema:
            raise self._refuse(
                field,
                "has keys that are not known beforehand (a dict, or extra='allow')",
                "Name each key as a field of a model, or use a list of models with a key and a value.",
            )
        for name, inner in schema["properties"].items():
            self._visit(inner, f"{field}.{name}" if field else name)

    def _follow(self, ref: str, field: str) -> None:
        if ref in self._open:
            if self._dialect is Dialect.ANTHROPIC:
                raise self._refuse(
                    field,
                    "refers to itself",
                    "Anthropic takes no recursive schemas: bound the depth with models.",
                )
            return
        if ref in self._done:
            return
        self._open.add(ref)
        self._visit(_resolved(self._schema, ref), field)
        self._open.discard(ref)
        self._done.add(ref)


class _OpenAI:
    """Rewrites a checked schema into OpenAI's strict subset.

    Its rules: every property is required, no other may come, no `oneOf`, no default, nothing beside a `$ref`,
    an object at the root. The SDK has such a walk on a private path; it leaves in keywords that the API
    rejects.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema

    def root(self) -> dict[str, Any]:
        strict = self._strict(_inlined_root(self._schema), ())
        definitions = self._schema.get("$defs", {})
        if definitions:
            strict["$defs"] = {name: self._strict(inner, ()) for name, inner in definitions.items()}
        return strict

    def _strict(self, schema: dict[str, Any], opened: tuple[str, ...]) -> dict[str, Any]:
        ref = schema.get("$ref")
        if isinstance(ref, str):
            siblings = {name: value for name, value in schema.items() if name != "$ref" and name not in _DROPPED}
            if not siblings or ref in opened:
                return {"$ref": ref}
            return self._strict({**_resolved(self._schema, ref), **siblings}, (*opened, ref))
        strict: dict[str, Any] = {}
        told: list[str] = []
        for name, value in schema.items():
            if name in _DROPPED or name == "$defs":
                continue
            if name in _OPENAI_NARROWING or _lost(name, value):
                told.append(f"{name}: {value}")
            elif name == "properties":
                strict["properties"] = {key: self._strict(inner, opened) for key, inner in value.items()}
            elif name == "items":
                strict["items"] = self._strict(value, opened)
            elif name in ("anyOf", "oneOf"):
                strict["anyOf"] = [self._strict(variant, opened) for variant in value]
            elif name == "allOf":
                for part in value:
                    strict.update(self._strict(part, opened))
            else:
                strict[name] = value
        if schema.get("type") == "object":
            strict["required"] = list(strict.get("properties", {}))
            strict["additionalProperties"] = False
        if told:
            note = "{" + ", ".join(told) + "}"
            strict["description"] = f"{strict['description']}\n\n{note}" if "description" in strict else note
        return strict


def _lost(name: str, value: object) -> bool:
    """Return whether a keyword's value is one that OpenAI's subset rejects."""
    if name == "format":
        return value not in _OPENAI_FORMATS
    # Its regular expressions know no look-around, which pydantic writes for Decimal.
    return name == "pattern" and isinstance(value, str) and "(?" in value
