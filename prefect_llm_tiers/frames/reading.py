"""Rows into requests: which columns a prompt reads, and what became of each row that it was called with."""

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from prefect_llm_tiers.core.requests import Request, canonical_json, request_key
from prefect_llm_tiers.errors import ColumnExists, InputError, MissingColumns
from prefect_llm_tiers.frames.signature import WHOLE_ROW, Reading

__all__ = [
    "UPSTREAM",
    "Fates",
    "Rows",
    "SpoolLike",
    "as_frame",
    "build_requests",
    "check_columns",
    "mean_bytes",
    "shadowed_columns",
]

Rows = pl.DataFrame | pl.LazyFrame | str | Path
"""What a step takes: a frame, a lazy frame (read once), or the path of a Parquet file."""

UPSTREAM = "upstream"
"""Reason of a row that is not asked because the step that fills a column it reads has failed it."""

AT_ONCE = 2048

SAMPLE = 256

MOST_REASONS = 1000
"""Distinct reasons that are kept apart; further ones fall under the last."""


class SpoolLike(Protocol):
    """What requests are handed to."""

    def append(self, requests: Iterable[Request]) -> None:
        """Take requests in row order."""
        ...


@dataclass(slots=True)
class Fates:
    """What became of each row before anything was asked.

    Attributes:
        codes: 0 for a row that is asked, else the number of its reason; shape (rows,).
        samples: Requests a row has.
        reasons: Reasons by number; the first is empty.
        first_rows: By reason, the number of the first such row in the frame, from 0.
    """

    codes: npt.NDArray[np.uint16]
    samples: int
    reasons: list[str] = field(default_factory=lambda: [""])
    first_rows: dict[str, int] = field(default_factory=dict)

    def fail(self, row: int, reason: str) -> None:
        """Note why a row is not asked."""
        if reason not in self.first_rows and len(self.reasons) < MOST_REASONS:
            self.reasons.append(reason)
            self.first_rows[reason] = row
        number = self.reasons.index(reason) if reason in self.first_rows else len(self.reasons) - 1
        self.codes[row] = number

    @property
    def unasked(self) -> int:
        """Rows that are not asked."""
        return int(np.count_nonzero(self.codes))

    def counts(self) -> dict[str, int]:
        """Return how many rows are not asked, by reason."""
        numbers = np.bincount(self.codes, minlength=len(self.reasons)).tolist()
        return {reason: count for reason, count in zip(self.reasons, numbers, strict=True) if reason and count}

    def count(self, reason: str) -> int:
        """Return how many rows are not asked for one reason."""
        return self.counts().get(reason, 0)


def as_frame(rows: Rows) -> pl.DataFrame:
    """Return the rows as a frame; a lazy frame or file is read once, since two reads may differ in order.

    Raises:
        InputError: They are neither a frame nor the path of a Parquet file.
    """
    if isinstance(rows, pl.DataFrame):
        return rows
    if isinstance(rows, pl.LazyFrame):
        return rows.collect()
    if isinstance(rows, str | Path):
        return _read_file(Path(rows), str(rows))
    msg = (
        f"A step takes a polars DataFrame, a LazyFrame or the path of a Parquet file, not {type(rows).__name__}. "
        "Wrap lists of dicts in pl.DataFrame(...), and a pandas frame in pl.from_pandas(...)."
    )
    raise InputError(msg)


def _read_file(path: Path, given: str) -> pl.DataFrame:
    if "://" in given:
        msg = f"{given.partition('://')[0]}:// is no path of this machine. Pass pl.scan_parquet(...) of that URL."
        raise InputError(msg)
    if not path.is_file():
        msg = f"There is no file {given!r} to read rows from. Give the path of a Parquet file, or a frame."
        raise InputError(msg)
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        msg = (
            f"{given!r} cannot be read as Parquet ({type(error).__name__}). Read it with the function that fits its "
            "format, as pl.read_csv, and pass the frame."
        )
        raise InputError(msg) from error


def check_columns(frame: pl.DataFrame, reading: Reading, *, adds: Sequence[str], overwrite: bool, step: str) -> None:
    """Check that a frame has what a step reads and lacks what it adds.

    Raises:
        MissingColumns: It lacks a column.
        ColumnExists: It has a column that the step adds, and `overwrite` is not set.
    """
    missing = [column for column in reading.columns.values() if column not in frame.columns]
    if missing:
        msg = (
            f"Step {step!r} reads {', '.join(map(repr, missing))}, which the frame lacks; it has "
            f"{', '.join(map(repr, frame.columns)) or 'no columns'}. Rename a parameter, or map it with columns=."
        )
        raise MissingColumns(msg)
    existing = [column for column in adds if column in frame.columns]
    if existing and not overwrite:
        msg = (
            f"Step {step!r} adds {', '.join(map(repr, existing))}, which the frame has already. Choose another name "
            "with column=, or pass overwrite=True."
        )
        raise ColumnExists(msg)


def shadowed_columns(frame: pl.DataFrame, reading: Reading, *, given: Iterable[str]) -> list[str]:
    """Return the columns that a prompt function does not read because a default of the same name stands in.

    Args:
        frame: The rows.
        reading: What the function reads.
        given: Parameters that the call set on purpose.
    """
    return sorted(set(reading.constants) & set(frame.columns) - set(given) - set(reading.columns.values()))


def mean_bytes(frame: pl.DataFrame, columns: Sequence[str]) -> float:
    """Return the mean number of UTF-8 bytes of a row in some columns, from its first rows.

    Columns that the frame lacks count nothing.
    """
    present = [column for column in columns if column in frame.columns]
    sample = frame.select(present).head(SAMPLE)
    if not present or not sample.height:
        return 0.0
    total = sum(len(str(value).encode()) for row in sample.rows() for value in row if value is not None)
    return total / sample.height


def build_requests(
    frame: pl.DataFrame,
    reading: Reading,
    *,
    prompt: Callable[..., Any],
    body: Callable[[Any], Mapping[str, Any]],
    account: str,
    endpoint: str,
    samples: int,
    spool: SpoolLike,
) -> Fates:
    """Call the prompt function for every row and hand its requests over; return what became of each row.

    A row with a null that the prompt reads is not asked: it fails as `upstream` where the step that should
    have filled it says why it did not. A prompt function that raises fails its row; the reason names the
    exception's type and the line, and never its text, which may hold the row's.

    Raises:
        ConfigurationError: The step's options make no request that the provider takes.
    """
    fates = Fates(codes=np.zeros(frame.height, dtype=np.uint16), samples=samples)
    row = 0
    for chunk in _chunks(frame, reading):
        requests: list[Request] = []
        for arguments, null in chunk:
            encoded, reason = (None, null) if null is not None else _encoded(prompt, arguments, body)
            if encoded is None:
                fates.fail(row, reason or "prompt_error")
            else:
                requests.extend(
                    Request(
                        key=request_key(account=account, endpoint=endpoint, body=encoded, sample=sample),
                        body=encoded,
                    )
                    for sample in range(samples)
                )
            row += 1
        spool.append(requests)
    return fates


def _encoded(
    prompt: Callable[..., Any], arguments: Mapping[str, Any], body: Callable[[Any], Mapping[str, Any]]
) -> tuple[bytes | None, str | None]:
    """Return a row's encoded body, or None and why there is none.

    A step that is declared wrongly raises: that is no row's fault.
    """
    try:
        asked = prompt(**arguments)
    except Exception as error:  # noqa: BLE001 (user code: its failure is the row's outcome)
        return None, _failure_of(error, prompt)
    try:
        return canonical_json(body(asked)), None
    except InputError as error:
        return None, f"prompt_error: {error}"
    except (TypeError, ValueError):
        return None, "prompt_error: the prompt holds something that JSON cannot express"


def _chunks(frame: pl.DataFrame, reading: Reading) -> Iterator[list[tuple[dict[str, Any], str | None]]]:
    """Yield the arguments of each row, with the reason why it is not asked."""
    errors = {column: f"{column}_error" for column in reading.columns.values() if f"{column}_error" in frame.columns}
    wanted = list(dict.fromkeys([*reading.columns.values(), *errors.values()]))
    # Slices of the whole frame: a selection of no columns, as of a function of constants alone, has no rows.
    for part in frame.iter_slices(AT_ONCE):
        # Columns to lists is several times faster than rows to dicts.
        lists = {column: part.get_column(column).to_list() for column in wanted}
        whole = part.rows(named=True) if reading.whole_row else None
        chunk: list[tuple[dict[str, Any], str | None]] = []
        for number in range(part.height):
            arguments = dict(reading.constants)
            null: str | None = None
            for name, column in reading.columns.items():
                value = arguments[name] = lists[column][number]
                if value is None and null is None:
                    error = errors.get(column)
                    told = error is not None and lists[error][number] is not None
                    null = UPSTREAM if told else f"null in column {column!r}"
            if whole is not None:
                arguments[WHOLE_ROW] = whole[number]
            chunk.append((arguments, null))
        yield chunk


def _failure_of(error: Exception, prompt: Callable[..., Any]) -> str:
    """Return type and line of an exception of the prompt function, without its text."""
    code = getattr(inspect.unwrap(prompt), "__code__", None)
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if code is not None and frame.f_code.co_filename == code.co_filename
    ]
    where = f" at line {lines[-1]}" if lines else ""
    return f"prompt_error: {type(error).__name__}{where}"
