"""What an answer becomes: text, or the fields of a pydantic model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from polars.datatypes import DataTypeClass
from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticUserError

from prefect_llm_tiers.errors import SchemaUnsupported

__all__ = ["Output", "Parser", "PlainType", "TextOutput", "output_of"]

_PLAIN: Mapping[str, type[pl.DataType]] = {
    "string": pl.String,
    "integer": pl.Int64,
    "number": pl.Float64,
    "boolean": pl.Boolean,
}
_OF_VALUE: Mapping[type, type[pl.DataType]] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
}

PlainType = DataTypeClass | pl.DataType


class TextOutput:
    """Takes every answer as it is."""

    dtype: PlainType = pl.String

    def accept(self, text: str) -> str | None:
        """Return None for an answer that can be used, else why it cannot; never a part of the answer."""
        return self.read(text)[1]

    def read(self, text: str) -> tuple[Any, str | None]:
        """Return the cell that an answer becomes, or None and why it cannot be one."""
        return text, None

    def series(self, name: str, cells: Sequence[Any], samples: int) -> pl.Series:
        """Return cells as a column; a cell is a list where several samples were asked for."""
        return pl.Series(name, cells, dtype=self.dtype if samples == 1 else pl.List(self.dtype))

    def joined(self, parts: Sequence[pl.Series]) -> pl.Series:
        """Return parts of a column as one."""
        return pl.concat(parts)


class Parser:
    """Reads answers as instances of a pydantic model, and says what does not fit without a word of the answer.

    Raises:
        SchemaUnsupported: The model has no JSON schema.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self._names: set[str] = set()
        for by_alias in (True, False):
            self._names |= set(_field_names(json_schema(model, by_alias=by_alias)))

    def parse(self, text: str) -> tuple[BaseModel | None, str | None]:
        """Return the answer as an instance, or None and the kind and place of what does not fit.

        Validators are the user's: whatever they raise means that this answer is of no use.
        """
        try:
            return self._model.model_validate_json(text), None
        except ValidationError as error:
            first = error.errors(include_input=False, include_context=False, include_url=False)[0]
            return None, f"unparsable: {first['type']}{self.place(first['loc'])}"
        except Exception as error:  # noqa: BLE001 (user code: the reason is recorded, its text may be the answer's)
            return None, f"unparsable: {type(error).__name__} in {self._model.__name__}"

    def accept(self, text: str) -> str | None:
        """Return None for an answer that can be used, else why it cannot."""
        return self.parse(text)[1]

    def place(self, path: Iterable[int | str]) -> str:
        """Return where in the model something is, as ` at items.0.name`; a key that is no field's is left out."""
        # It would be the answer's own words.
        known = [str(part) for part in path if isinstance(part, int) or part in self._names]
        return f" at {'.'.join(known)}" if known else ""


def json_schema(model: type[BaseModel], *, by_alias: bool) -> dict[str, Any]:
    """Return a model's JSON schema as its instances are written out. Raises `SchemaUnsupported`."""
    try:
        return model.model_json_schema(mode="serialization", by_alias=by_alias)
    except PydanticUserError as error:
        msg = (
            f"{model.__name__} has no JSON schema ({error.code}). Use fields of types that JSON can carry, or "
            "declare the field `str` and parse it."
        )
        raise SchemaUnsupported(msg) from None


def _field_names(schema: Any) -> Iterator[str]:
    """Yield the names of all fields that stand in a schema, of whatever depth."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        if isinstance(properties, dict):
            yield from properties
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in inner:
        yield from _field_names(part)


class Output(TextOutput):
    """Reads answers as instances of a pydantic model.

    A cell holds what the model's JSON mode makes of an instance, under the fields' own names: enums and
    literals become their values, dates, decimals and URLs text.

    Raises:
        SchemaUnsupported: A field has no column type.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self._parser = Parser(model)
        schema = json_schema(model, by_alias=False)
        self.dtype = _Columns(schema).of_schema(schema, model.__name__)

    def read(self, text: str) -> tuple[Any, str | None]:
        """Return the answer as a dict, or None and the kind and place of what does not fit."""
        instance, reason = self._parser.parse(text)
        if instance is None:
            return None, reason
        try:
            value = instance.model_dump(mode="json", by_alias=False)
        except Exception as error:  # noqa: BLE001 (a user's serializer: as above)
            return None, f"unparsable: {type(error).__name__} in {self._model.__name__}"
        misfit = _misfit(value, self.dtype, ())
        if misfit is not None:
            return None, f"unparsable: no {misfit[1]}{self._parser.place(misfit[0])}"
        return value, None


def output_of(model: type[BaseModel] | None) -> TextOutput:
    """Return the reader of a step's answers.

    Raises:
        SchemaUnsupported: A field has no column type.
    """
    return TextOutput() if model is None else Output(model)


class _Columns:
    """Turns a model's JSON schema, as it is written out, into polars types."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._open: list[str] = []

    def of_schema(self, schema: dict[str, Any], where: str) -> PlainType:
        """Return the type of a schema; `where` is the path of the field, for the error."""
        if (ref := schema.get("$ref")) is not None:
            return self._of_reference(ref, where)
        if "const" in schema:
            return _of_values([schema["const"]], where)
        if "enum" in schema:
            return _of_values(schema["enum"], where)
        for word in ("anyOf", "oneOf", "allOf"):
            if word in schema:
                variants = [one for one in schema[word] if one.get("type") != "null"]
                return _common([self.of_schema(one, where) for one in variants], where)
        match schema.get("type"):
            case "array":
                return pl.List(self._of_items(schema, where))
            case "object" if schema.get("properties") and not schema.get("additionalProperties"):
                return pl.Struct(
                    {name: self.of_schema(inner, f"{where}.{name}") for name, inner in schema["properties"].items()}
                )
            case str() as kind if kind in _PLAIN:
                return _PLAIN[kind]
            case _:
                raise _unsupported(where, "has no single shape")

    def _of_reference(self, ref: str, where: str) -> PlainType:
        if ref in self._open:
            raise _unsupported(where, "refers to itself")
        found: Any = self._root
        for part in ref.removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        self._open.append(ref)
        try:
            return self.of_schema(found, where)
        finally:
            self._open.pop()

    def _of_items(self, schema: dict[str, Any], where: str) -> PlainType:
        places = schema.get("prefixItems") or [schema.get("items")]
        if not all(isinstance(place, dict) for place in places):
            raise _unsupported(f"{where}[]", "is untyped")
        return _common([self.of_schema(place, f"{where}[]") for place in places], where)


def _of_values(values: list[Any], where: str) -> PlainType:
    return _common([_OF_VALUE.get(type(value)) for value in values if value is not None], where)


def _common(found: list[PlainType | None], where: str) -> PlainType:
    kinds = {kind for kind in found if kind is not None}
    if kinds == {pl.Int64, pl.Float64}:
        return pl.Float64
    if len(kinds) != 1 or None in found:
        raise _unsupported(where, "may be of several kinds")
    return kinds.pop()


def _unsupported(where: str, fact: str) -> SchemaUnsupported:
    return SchemaUnsupported(
        f"{where} {fact}, and a column's cells are all of one type. Give the field one plain type, a list of one, or a "
        "model of its own with named fields."
    )


def _misfit(value: Any, dtype: PlainType, path: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], str] | None:
    """Return where a value cannot stand in its column, and what would; None where all of it can.

    JSON's whole numbers have no bound and a user's serializer may return anything, while polars would refuse
    the whole column, in words that repeat the value.
    """
    if value is None:
        return None
    if isinstance(dtype, pl.Struct):
        if not isinstance(value, dict):
            return path, "object"
        parts = [((*path, field.name), value.get(field.name), field.dtype) for field in dtype.fields]
        return next((found for place, one, kind in parts if (found := _misfit(one, kind, place))), None)
    if isinstance(dtype, pl.List):
        if not isinstance(value, list):
            return path, "list"
        items = enumerate(value)
        return next((found for at, one in items if (found := _misfit(one, dtype.inner, (*path, at)))), None)
    fits = {
        pl.String: isinstance(value, str),
        pl.Boolean: isinstance(value, bool),
        pl.Int64: isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
        pl.Float64: isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 1024),
    }
    names = {pl.String: "text", pl.Boolean: "boolean", pl.Int64: "64-bit integer", pl.Float64: "number"}
    kind = next(kind for kind in fits if dtype == kind)
    return None if fits[kind] else (path, names[kind])
