"""Rows into requests: which columns a prompt reads, and what became of each row that it was called with."""

import inspect
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat, starmap
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from prefect_llm_tiers.core.requests import request_keys
from prefect_llm_tiers.errors import ColumnExists, InputError, MissingColumns
from prefect_llm_tiers.frames.signature import WHOLE_ROW, Reading
from prefect_llm_tiers.providers.bodies import BodyEncoder

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

BYTES_AT_ONCE = 1 << 17
"""About how many bytes of bodies are made before they are handed over."""

LEAST_AT_ONCE, MOST_AT_ONCE = 16, 1024
"""Bounds on the rows that are read together."""

SAMPLE = 256

MOST_REASONS = 1000
"""Distinct reasons that are kept apart; further ones fall under the last."""


class SpoolLike(Protocol):
    """What requests are handed to."""

    def extend(self, keys: bytes, bodies: Sequence[bytes], *, samples: int = 1) -> None:
        """Take requests in row order: bodies, and for each the keys of its samples, end to end."""
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
    encoder: BodyEncoder,
    account: str,
    endpoint: str,
    samples: int,
    spool: SpoolLike,
) -> Fates:
    """Call the prompt function for every row and hand its requests over; return what became of each row.

    A row with a null that the prompt reads is not asked: it fails as `upstream` where the step that should
    have filled it says why it did not. A prompt function that raises fails its row; the reason names the
    exception's type and the line, and never its text, which may hold the row's.

    Args:
        frame: The rows.
        reading: Which columns the prompt function reads.
        prompt: The prompt function.
        encoder: Turns what it returns into the body of a request.
        account: Organisation and project that own what is asked.
        endpoint: The provider's path.
        samples: Requests a row has.
        spool: Takes the requests.

    Raises:
        ConfigurationError: The step's options make no request that the provider takes.
    """
    fates = Fates(codes=np.zeros(frame.height, dtype=np.uint16), samples=samples)
    call, names = _calling(prompt, reading)
    row, rows = 0, LEAST_AT_ONCE
    while row < frame.height:
        part = frame.slice(row, rows)
        asked = _asked(part, reading, fates, start=row)
        if len(asked) < part.height:
            part = part.filter(pl.Series(fates.codes[row : row + part.height] == 0))
        prompts, failed = _prompts(part, call, names, reading)
        for at, error in failed.items():
            fates.fail(asked[at], _failure_of(error, prompt))
        if failed:
            asked = [number for at, number in enumerate(asked) if at not in failed]
        bodies = _bodies(prompts, encoder, fates, asked)
        keys = request_keys(bodies, account=account, endpoint=endpoint, samples=samples)
        spool.extend(keys, bodies, samples=samples)
        row += rows
        mean = sum(map(len, bodies)) // (len(bodies) or 1)
        rows = min(max(BYTES_AT_ONCE // (mean + 1), LEAST_AT_ONCE), MOST_AT_ONCE)
    return fates


def _calling(prompt: Callable[..., Any], reading: Reading) -> tuple[Callable[..., Any], list[str]]:
    """Return what calls the prompt function with one row's values by position, and their parameters in order."""
    parameters = inspect.signature(prompt).parameters
    names = [name for name in parameters if name in reading.columns or (name == WHOLE_ROW and reading.whole_row)]
    by_name = any(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names)
    # A wrapper may take by name alone what its signature, the wrapped function's, has by position.
    plain = isinstance(prompt, FunctionType) and not hasattr(prompt, "__wrapped__")
    if plain and not by_name and list(parameters)[: len(names)] == names:
        fixed = {name: value for name, value in reading.constants.items() if value is not parameters[name].default}
        return partial(prompt, **fixed) if fixed else prompt, names

    def called(*values: Any) -> Any:
        return prompt(**dict(zip(names, values, strict=True)), **reading.constants)

    return called, names


def _prompts(
    part: pl.DataFrame, call: Callable[..., Any], names: Sequence[str], reading: Reading
) -> tuple[list[Any], dict[int, Exception]]:
    """Return the prompts of some rows in order, and by row what was raised in the place of one."""
    # Columns to lists is several times faster than rows to dicts.
    columns = [
        part.get_column(reading.columns[name]).to_list() if name in reading.columns else part.rows(named=True)
        for name in names
    ]
    results = map(call, *columns) if columns else starmap(call, repeat((), part.height))
    prompts: list[Any] = []
    failed: dict[int, Exception] = {}
    while len(prompts) + len(failed) < part.height:
        # What ends the loop below early without being caught.
        raised: Exception = StopIteration()
        try:
            for one in results:
                prompts.append(one)  # noqa: PERF402 (what came before one that raises is kept)
        except Exception as error:  # noqa: BLE001 (user code: its failure is the row's outcome)
            raised = error
        done = len(prompts) + len(failed)
        if done < part.height:
            failed[done] = raised
    return prompts, failed


def _bodies(prompts: Sequence[Any], encoder: BodyEncoder, fates: Fates, asked: Sequence[int]) -> list[bytes]:
    """Return the bodies of prompts, and note why a row has none; a step that is declared wrongly raises."""
    try:
        return encoder.encode_all(prompts)
    except (InputError, TypeError, ValueError):
        # Which of them it was is found one by one.
        pass
    bodies: list[bytes] = []
    for number, prompt in zip(asked, prompts, strict=True):
        try:
            bodies.append(encoder.encode(prompt))
        except InputError as error:
            fates.fail(number, f"prompt_error: {error}")
        except (TypeError, ValueError):
            fates.fail(number, "prompt_error: the prompt holds something that JSON cannot express")
    return bodies


def _asked(part: pl.DataFrame, reading: Reading, fates: Fates, *, start: int) -> Sequence[int]:
    """Return the numbers of the rows without a null where the prompt reads, and note why the others are not asked."""
    unasked: dict[int, str] = {}
    for column in dict.fromkeys(reading.columns.values()):
        values = part.get_column(column)
        if not values.null_count():
            continue
        error = f"{column}_error"
        told = part.get_column(error).is_not_null() if error in part.columns else None
        for number in values.is_null().arg_true().to_list():
            upstream = told is not None and told[number]
            unasked.setdefault(number, UPSTREAM if upstream else f"null in column {column!r}")
    rows = range(start, start + part.height)
    if not unasked:
        return rows
    for number in sorted(unasked):
        fates.fail(start + number, unasked[number])
    return [row for row in rows if row - start not in unasked]


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
