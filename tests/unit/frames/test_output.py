"""Answers into cells: what fits, what does not, and what is said of it."""

import datetime as dt
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import polars as pl
import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    computed_field,
    create_model,
    field_serializer,
    model_validator,
)

from prefect_llm_tiers import SchemaUnsupported
from prefect_llm_tiers.frames.output import Output, TextOutput, output_of


class Colour(Enum):
    """A text enum."""

    RED = "red"


class Size(IntEnum):
    """A number enum."""

    BIG = 2


class Inner(BaseModel):
    """A model in a model."""

    name: str


@pytest.mark.parametrize(
    ("annotation", "dtype"),
    [
        (str, pl.String),
        (int, pl.Int64),
        (float, pl.Float64),
        (bool, pl.Boolean),
        (int | float, pl.Float64),
        (Optional[int], pl.Int64),  # noqa: UP045 (users write it so)
        (int | None, pl.Int64),
        (Literal["a", "b"], pl.String),
        (Literal[1, 2], pl.Int64),
        (Literal["a", None], pl.String),  # noqa: PYI061 (users write it so)
        (Literal["a"] | None, pl.String),
        (Colour, pl.String),
        (Size, pl.Int64),
        (Decimal, pl.String),
        (dt.datetime, pl.String),
        (dt.timedelta, pl.String),
        (UUID, pl.String),
        (HttpUrl, pl.String),
        (Annotated[int, Field(ge=0)], pl.Int64),
        (list[int], pl.List(pl.Int64)),
        (set[str], pl.List(pl.String)),
        (tuple[int, int], pl.List(pl.Int64)),
        (tuple[str, ...], pl.List(pl.String)),
        (list[list[float]], pl.List(pl.List(pl.Float64))),
        (Inner, pl.Struct({"name": pl.String})),
        (Inner | None, pl.Struct({"name": pl.String})),
        (list[Inner], pl.List(pl.Struct({"name": pl.String}))),
    ],
    ids=str,
)
def test_types_of_fields(annotation: Any, dtype: Any) -> None:
    """Every annotation that answers can be held under has one column type."""
    model = create_model("Model", field=(annotation, ...))
    assert Output(model).dtype == pl.Struct({"field": dtype})


class _Node(BaseModel):
    children: list["_Node"]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


@pytest.mark.parametrize(
    ("annotation", "place"),
    [
        (Any, "field"),
        (dict[str, int], "field"),
        (list, r"field\[\]"),
        (int | str, "field"),
        (Literal[1, "a"], "field"),
        (Inner | int, "field"),
        (tuple[int, str], "field"),
        (_Node, "field.children"),
        (_Open, "field"),
        (object, "field"),
    ],
    ids=str,
)
def test_types_that_no_column_holds(annotation: Any, place: str) -> None:
    """The others are refused with the field and a way out, before anything is asked."""
    model = create_model("Model", field=(annotation, ...))
    with pytest.raises(SchemaUnsupported, match=f"^Model.{place}.* Give the field"):
        Output(model)


class Rich(BaseModel):
    """Aliases, derived fields and the model's own rules."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)
    name: str = Field(alias="fullName")
    count: int
    inner: Inner | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        """Derived."""
        return len(self.name)

    @model_validator(mode="after")
    def _check(self) -> "Rich":
        if self.name == "cause":
            raise KeyError(self.name)
        return self


def test_cells_bear_the_fields_names() -> None:
    """Answers come under aliases and are held under the fields' names, with derived fields beside them."""
    output = Output(Rich)
    value, reason = output.read('{"fullName": "Ada", "count": 3}')
    assert (value, reason) == ({"name": "Ada", "count": 3, "inner": None, "length": 3}, None)
    assert pl.Series([value], dtype=output.dtype)[0] == value


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("secret", "unparsable: json_invalid"),
        ('{"fullName": "a"}', "unparsable: missing at count"),
        ('{"fullName": "a", "count": "secret"}', "unparsable: int_parsing at count"),
        ('{"fullName": "a", "count": 1, "secret": 1}', "unparsable: extra_forbidden"),
        ('{"fullName": "a", "count": 1, "inner": {"name": 7}}', "unparsable: string_type at inner.name"),
        ('{"fullName": "a", "count": 99999999999999999999}', "unparsable: no 64-bit integer at count"),
        ('{"fullName": "cause", "count": 1}', "unparsable: KeyError in Rich"),
        ('{"fullName": "\\ud800", "count": 1}', "unparsable: json_invalid"),
    ],
)
def test_answers_that_do_not_fit(answer: str, reason: str) -> None:
    """The reason names the kind and the place, and never a word of the answer."""
    output = Output(Rich)
    assert output.read(answer) == (None, reason)
    assert output.accept(answer) == reason
    assert "secret" not in reason


def test_a_serializer_that_says_one_thing_and_does_another() -> None:
    """What a user's serializer makes of a field is held against the column, which polars would refuse whole."""

    class Odd(BaseModel):
        size: int

        @field_serializer("size")
        def _as_text(self, size: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 (as users write it)
            return f"{size} cm"

    output = Output(Odd)
    assert output.accept('{"size": 3}') in {None, "unparsable: no 64-bit integer at size"}
    value, reason = output.read('{"size": 3}')
    assert (value is None) == (reason is not None)
    pl.Series([value], dtype=output.dtype)


def test_text_takes_everything() -> None:
    """Without a model any text is an answer."""
    output = output_of(None)
    assert isinstance(output, TextOutput)
    assert (output.read("x"), output.accept(""), output.dtype) == (("x", None), None, pl.String)
