"""A batch as the world keeps it: its rows, its life, and the faults it was born with."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from prefect_llm_tiers.simulator.answers import Composed
from prefect_llm_tiers.simulator.asked import AskedRequest
from prefect_llm_tiers.simulator.draws import Draws
from prefect_llm_tiers.simulator.lives import BatchLife

__all__ = ["Batch", "Fate", "Row", "Spoils", "draw_fate", "rows_digest"]


class Row(msgspec.Struct, gc=False):
    """One request of a batch.

    Attributes:
        custom_id: The sender's name for it.
        digest: Names its body, valid or not.
        asked: The question; None for a row whose body is invalid.
        first: Whether its body was new to the world when the batch came.
        rejection: Status and body that an invalid row ends in.
        composed: The answer, once it is done.
        failed: It ended in the provider's own error.
        refused: The provider called it invalid, which it is not.
        done: It was worked on; everything else about it is final.
    """

    custom_id: str
    digest: str
    asked: AskedRequest | None = None
    first: bool = False
    rejection: tuple[int, dict[str, Any]] | None = None
    composed: Composed | None = None
    failed: bool = False
    refused: bool = False
    done: bool = False


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """The faults that a batch is born with.

    Attributes:
        key: What its draws are keyed by: the dialect, its rows, and how often the same rows came before.
        listed_from: When lists begin to show it.
        found_from: When it begins to be found by its id.
        expires: It is stuck beyond its window.
        no_output: Every row of it fails.
        finalizing: How long it is `finalizing` beyond the usual; None for no longer.
        output_late: How long after its end its results cannot be found; None for at once.
    """

    key: str
    listed_from: datetime
    found_from: datetime
    expires: bool = False
    no_output: bool = False
    finalizing: timedelta | None = None
    output_late: timedelta | None = None


class Spoils(msgspec.Struct, frozen=True, kw_only=True):
    """The faults of one result file.

    Attributes:
        lines: The fault of each line that has one, by custom_id.
        whole: Faults of the file as a whole.
    """

    lines: dict[str, str]
    whole: tuple[str, ...]


class Batch(msgspec.Struct, kw_only=True):
    """A batch that a dialect submitted.

    Attributes:
        id: Its id on the wire.
        dialect: Whose it is.
        key: What its life is keyed by: dialect, model, and its number among those.
        model: The model of its first row.
        created_at: When it was taken; ahead of now for one that lands late.
        life: When it does what; None for one that failed its validation.
        fate: See `Fate`.
        digest: Names the bodies of its rows, whatever their order.
        rows: In the order in which they get done.
        worked: How many of them have been worked on and billed.
        forgotten: It was deleted.
        looks: How often it was asked for what, for the keys of draws.
        met: Faults of its fate that showed.
        spoils: The faults of its result files, by file, as far as they were written.
        sheet: What the dialect wants to remember of it.
    """

    id: str
    dialect: str
    key: str
    model: str
    created_at: datetime
    life: BatchLife | None
    fate: Fate
    digest: str
    rows: list[Row]
    worked: int = 0
    completed: int = 0
    failed: int = 0
    forgotten: bool = False
    looks: Counter[str] = msgspec.field(default_factory=Counter)
    met: set[str] = msgspec.field(default_factory=set)
    spoils: dict[str, Spoils] = msgspec.field(default_factory=dict)
    sheet: dict[str, Any] = msgspec.field(default_factory=dict)

    def look(self, what: str) -> int:
        """Return how often the batch was asked for this before, and count it."""
        number = self.looks[what]
        self.looks[what] += 1
        return number


def rows_digest(rows: Sequence[Row]) -> str:
    """Return what names the bodies of rows, whatever their order and their custom_ids."""
    return hashlib.sha256("\n".join(sorted(row.digest for row in rows)).encode()).hexdigest()


def draw_fate(draws: Draws, key: str, created_at: datetime) -> Fate:
    """Draw the faults that a batch is born with; those that show at once are counted."""
    listed = found = created_at
    if draws.strikes("batch_hidden", key):
        listed = found = created_at + draws.span("batch_hidden_s", key)
    if draws.strikes("batch_404", key):
        found = max(found, created_at + draws.span("batch_404_s", key))
    if draws.strikes("list_lag", key):
        listed = max(listed, created_at + draws.span("list_lag_s", key))
    return Fate(
        key=key,
        listed_from=listed,
        found_from=found,
        expires=draws.happens("batch_expires", key),
        no_output=draws.happens("no_output", key),
        finalizing=draws.span("long_finalizing_s", key) if draws.happens("long_finalizing", key) else None,
        output_late=draws.span("output_late_s", key) if draws.happens("output_late", key) else None,
    )
