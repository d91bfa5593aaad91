"""Embeddings into cells: base64 of 32-bit floats becomes vectors, and nothing else does."""

import base64
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.frames.vectors import VectorOutput

FLOATS = st.floats(width=32, allow_nan=False)


def packed(*numbers: float) -> str:
    """Return a vector as answers hold it."""
    return base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()


def column(output: VectorOutput, texts: list[str | None]) -> pl.Series:
    """Return answers as a column."""
    return output.series("v", [None if text is None else output.read(text)[0] for text in texts], 1)


@given(st.integers(1, 5).flatmap(lambda size: st.lists(st.none() | st.lists(FLOATS, min_size=size, max_size=size))))
def test_vectors_come_back_as_they_were(vectors: list[list[float] | None]) -> None:
    """Each number is the one that was sent, and a row without an answer is a null."""
    texts = [None if vector is None else packed(*vector) for vector in vectors]
    made = column(VectorOutput(), texts)
    assert made.dtype == pl.List(pl.Float32)
    assert made.to_list() == vectors


def test_vectors_of_a_fixed_size_are_an_array() -> None:
    """With `dimensions` the type says how long each is, also where no row has one."""
    output = VectorOutput(2)
    made = column(output, [packed(1, 2), None, packed(3, 4)])
    assert made.dtype == pl.Array(pl.Float32, 2)
    assert made.to_list() == [[1.0, 2.0], None, [3.0, 4.0]]
    assert output.series("v", [], 1).dtype == pl.Array(pl.Float32, 2)
    assert output.series("v", [None], 1).dtype == pl.Array(pl.Float32, 2)


def test_vectors_of_several_lengths() -> None:
    """A host whose vectors differ in length is taken at its word."""
    assert column(VectorOutput(), [packed(1), None, packed(2, 3)]).to_list() == [[1.0], None, [2.0, 3.0]]


@pytest.mark.parametrize("dimensions", [None, 2])
def test_several_inputs_in_one_row_are_a_list_of_vectors(dimensions: int | None) -> None:
    """One such row makes all rows lists, in whichever part of the frame it is."""
    output = VectorOutput(dimensions)
    several = json.dumps([packed(1, 2), packed(3, 4)])
    parts = [column(output, [packed(5, 6), None]), column(output, [several, None, packed(7, 8)])]
    made = output.joined(parts)
    assert made.dtype == pl.List(output.dtype)
    assert [None if row is None else [list(vector) for vector in row] for row in made.to_list()] == [
        [[5.0, 6.0]],
        None,
        [[1.0, 2.0], [3.0, 4.0]],
        None,
        [[7.0, 8.0]],
    ]
    assert output.joined(parts[:1]).dtype == output.dtype


@pytest.mark.parametrize("text", ["", "AAA", "AAAA", "not base64 at all", "[1]", '["AAA"]', "[", '{"a": 1}'])
def test_what_is_no_vector(text: str) -> None:
    """The reason says so, and holds nothing of the answer."""
    output = VectorOutput()
    assert output.read(text) == (None, "unparsable: no vector")
    assert output.accept(text) == "unparsable: no vector"


def test_a_vector_of_another_length_than_asked_for() -> None:
    """What the column's type has no room for fails its row, with both lengths."""
    assert VectorOutput(2).accept(packed(1, 2, 3)) == "unparsable: a vector of 3 dimensions instead of 2"
    assert VectorOutput(3).accept(packed(1, 2, 3)) is None
