"""Outcomes into columns, in row order."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from prefect_llm_tiers.core.runs import Answer, RequestState
from prefect_llm_tiers.frames.output import TextOutput
from prefect_llm_tiers.frames.reading import Fates

__all__ = ["add_columns", "empty_columns"]

META = pl.Struct(
    {
        "tier": pl.String,
        "cost_usd": pl.Decimal(38, 12),
        "input_tokens": pl.Int64,
        "output_tokens": pl.Int64,
        "reused": pl.Boolean,
    }
)
"""Type of the `_meta` column: the tier that served the row, its price, its tokens, and whether the answer was
there before this step run."""

AT_ONCE = 4096

Fetch = Callable[[npt.NDArray[np.int64]], Sequence[Answer | None]]
"""Answers at some positions of the spool, in their order."""


def empty_columns(frame: pl.DataFrame, column: str, *, output: TextOutput, samples: int, meta: bool) -> pl.DataFrame:
    """Return a frame without rows with the columns that the step adds."""
    added = [output.series(column, [], samples), pl.Series(f"{column}_error", [], dtype=pl.String)]
    if meta:
        added.append(pl.Series(f"{column}_meta", [], dtype=_meta_dtype(samples)))
    return frame.with_columns(added)


def add_columns(
    frame: pl.DataFrame,
    column: str,
    *,
    fates: Fates,
    first: npt.NDArray[np.int64],
    fetch: Fetch,
    output: TextOutput,
    meta: bool,
) -> pl.DataFrame:
    """Return the frame with each row's outcome: a value, or a null and the reason in `NAME_error`.

    Args:
        frame: The rows that were asked.
        column: Name of the column.
        fates: What became of each row before it was asked.
        first: For each request in row order the position that stands for it; shape (requests,).
        fetch: Reads answers.
        output: Reads an answer's text.
        meta: Whether to add `NAME_meta`.
    """
    samples = fates.samples
    values: list[pl.Series] = []
    errors: list[pl.Series] = []
    metas: list[pl.Series] = []
    position = 0
    for start in range(0, frame.height, AT_ONCE):
        codes = fates.codes[start : start + AT_ONCE]
        asked = int(np.count_nonzero(codes == 0)) * samples
        answers = iter(fetch(first[position : position + asked]))
        position += asked
        rows = [
            _Row.failed(fates.reasons[code]) if code else _Row.of([next(answers) for _ in range(samples)], output)
            for code in codes.tolist()
        ]
        values.append(output.series(column, [row.value(samples) for row in rows], samples))
        errors.append(pl.Series(f"{column}_error", [row.error for row in rows], dtype=pl.String))
        if meta:
            metas.append(pl.Series(f"{column}_meta", [row.meta(samples) for row in rows], dtype=_meta_dtype(samples)))
    if not values:
        return empty_columns(frame, column, output=output, samples=samples, meta=meta)
    return frame.with_columns([output.joined(values), *(pl.concat(part) for part in (errors, metas) if part)])


def _meta_dtype(samples: int) -> Any:
    return META if samples == 1 else pl.List(META)


class _Row:
    """A row's outcome on its way into the columns."""

    __slots__ = ("_metas", "_values", "error")

    def __init__(self, values: list[Any], metas: list[dict[str, Any] | None], error: str | None) -> None:
        self._values = values
        self._metas = metas
        self.error = error

    @classmethod
    def failed(cls, reason: str) -> "_Row":
        """Return a row that was not asked."""
        return cls([], [], reason)

    @classmethod
    def of(cls, answers: Sequence[Answer | None], output: TextOutput) -> "_Row":
        """Return a row with its answers; of several errors the first is named."""
        read = [_read(answer, output) for answer in answers]
        error = next((reason for _, reason in read if reason is not None), None)
        return cls([value for value, _ in read], [_meta(answer) for answer in answers], error)

    def value(self, samples: int) -> Any:
        """Return the cell: one value, or a list of samples."""
        if not self._values:
            return None
        return self._values[0] if samples == 1 else self._values

    def meta(self, samples: int) -> Any:
        """Return the cell of `NAME_meta`."""
        if not self._metas:
            return None
        return self._metas[0] if samples == 1 else self._metas


def _read(answer: Answer | None, output: TextOutput) -> tuple[Any, str | None]:
    if answer is None:
        return None, "no outcome"
    match answer.state:
        case RequestState.ANSWERED:
            return output.read(answer.text or "")
        case RequestState.REFUSED:
            return None, f"refusal: {answer.text}" if answer.text else "refusal"
        case _:
            return None, answer.reason or "failed"


def _meta(answer: Answer | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    return {
        "tier": str(answer.tier_served) if answer.tier_served else None,
        "cost_usd": answer.cost_usd,
        "input_tokens": answer.usage.input_tokens if answer.usage else None,
        "output_tokens": answer.usage.output_tokens if answer.usage else None,
        "reused": not answer.fresh,
    }
