"""What an embedding's answer becomes: a vector of 32-bit floats, or a list of them."""

import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from prefect_llm_tiers.frames.output import PlainType, TextOutput

__all__ = ["VectorOutput"]

Vector = npt.NDArray[np.float32]

_FLOAT = np.dtype("<f4")
_SEVERAL = msgspec.json.Decoder(list[str])


class VectorOutput(TextOutput):
    """Reads answers as vectors: base64 of little-endian 32-bit floats, or a JSON list of such texts.

    The column is `List(Float32)`, or `Array(Float32, n)` where the step fixes the number of dimensions. A row that
    embeds several inputs has a list of vectors; where any row of a frame has, all rows have.
    """

    def __init__(self, dimensions: int | None = None) -> None:
        """Take the number of dimensions that every vector must have; None for the model's own."""
        self._dimensions = dimensions
        self.dtype: PlainType = pl.List(pl.Float32) if dimensions is None else pl.Array(pl.Float32, dimensions)

    def read(self, text: str) -> tuple["Vector | list[Vector] | None", str | None]:
        """Return the vector or vectors of an answer, or None and why they cannot be read."""
        try:
            if text.startswith("["):
                return [self._vector(one) for one in _SEVERAL.decode(text)], None
            return self._vector(text), None
        except _Misfit as misfit:
            return None, f"unparsable: {misfit}"
        except ValueError:
            return None, "unparsable: no vector"

    def _vector(self, text: str) -> Vector:
        vector = np.frombuffer(binascii.a2b_base64(text, strict_mode=True), dtype=_FLOAT)
        if not len(vector):
            raise ValueError
        if self._dimensions is not None and len(vector) != self._dimensions:
            raise _Misfit(f"a vector of {len(vector)} dimensions instead of {self._dimensions}")
        return vector.astype(np.float32, copy=False)

    def series(self, name: str, cells: Sequence[Any], samples: int) -> pl.Series:
        """Return cells as a column, by way of one array: a float at a time would take a hundred times as long."""
        if any(isinstance(cell, list) for cell in cells):
            return self._of_several(name, cells)
        present = [cell for cell in cells if cell is not None]
        lengths = {len(cell) for cell in present}
        if len(lengths) != 1:
            # None at all, or a host whose vectors differ in length.
            return pl.Series(name, [None if cell is None else cell.tolist() for cell in cells], dtype=self.dtype)
        table = np.zeros((len(cells), lengths.pop()), dtype=np.float32)
        there = np.array([cell is not None for cell in cells])
        table[there] = present
        column = pl.Series(name, table)
        if not there.all():
            column = pl.select(pl.when(pl.lit(pl.Series(there))).then(pl.lit(column)).alias(name)).to_series()
        return column.cast(self.dtype)

    def _of_several(self, name: str, cells: Sequence[Any]) -> pl.Series:
        lists = [cell if cell is None or isinstance(cell, list) else [cell] for cell in cells]
        values = [None if cell is None else [vector.tolist() for vector in cell] for cell in lists]
        return pl.Series(name, values, dtype=pl.List(self.dtype))

    def joined(self, parts: Sequence[pl.Series]) -> pl.Series:
        """Return parts of a column as one; if one part has lists of vectors, all of them have."""
        nested = pl.List(self.dtype)
        if not any(part.dtype == nested for part in parts):
            return pl.concat(parts)
        return pl.concat(
            [
                part if part.dtype == nested else self._of_several(part.name, [_array(cell) for cell in part])
                for part in parts
            ]
        )


class _Misfit(ValueError):
    """A vector that the column has no room for."""


def _array(cell: pl.Series | None) -> Vector | None:
    return None if cell is None else np.array(cell, dtype=np.float32)
