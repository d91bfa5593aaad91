"""Result lines of a batch on their way in, thousands at a time: the path that has to be fast."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple, cast

import orjson
from sqlalchemy import Connection, and_, bindparam, func, select

from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.runs import Recorded
from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.recording import Found, record
from prefect_llm_tiers.ledger.requests import counting, is_counting
from prefect_llm_tiers.ledger.schema import attempts, outcomes, requests

__all__ = ["Harvest", "Packed"]


class Packed(NamedTuple):
    """The rows of a batch that replaces no older answers.

    Two dictionaries of plain numbers rather than one of pairs: the collector has nothing to walk.
    """

    step_run: int
    attempt_of: dict[str, int]
    request_of: dict[str, int]


def _guessed(packed: Packed, outcomes: Sequence[Outcome]) -> Iterator[Found]:
    """Say of each line that its attempt has no outcome yet and its request no answer."""
    step_run, attempt_of, request_of = packed
    for position, outcome in enumerate(outcomes):
        attempt = attempt_of.get(outcome.key)
        if attempt is not None:
            yield position, attempt, request_of[outcome.key], step_run, None, None, None


_GROUPS_OF_A_HARVEST = 100
"""A batch whose lines come in more groups than this is looked up key by key."""

_listed = dialects.key_list()
_ended = outcomes.alias("ended")

# The hot path's only read: a seek in each of four indexes for a line, whatever the ledger holds. The
# outer joins keep the list in front; a planner that led with the attempts would read the whole batch.
_FOUND_LINES = select(
    _listed.c.key,
    attempts.c.id,
    attempts.c.request_id,
    attempts.c.step_run,
    attempts.c.replaces,
    _ended.c.attempt_id,
    counting.c.attempt_id,
).select_from(
    _listed.outerjoin(requests, requests.c.key == _listed.c.value)
    .outerjoin(attempts, and_(attempts.c.request_id == requests.c.id, attempts.c.batch_id == bindparam("batch")))
    .outerjoin(_ended, _ended.c.attempt_id == attempts.c.id)
    .outerjoin(counting, is_counting)
)


class Harvest:
    """What a ledger takes in from batches."""

    _database: Database
    _harvested: dict[int, Packed]

    def record_results(self, batch: Batch, outcomes: Sequence[Outcome], *, at: datetime, stamp: datetime) -> Recorded:
        """Write down result lines of a batch, by key. A fact, with the rules of `record_calls`.

        A second line for an attempt that has its outcome changes nothing.
        """

        def find(connection: Connection) -> Iterable[Found]:
            keys = dialects.keys_argument([line.key for line in outcomes])
            rows = cast("Sequence[Found]", connection.execute(_FOUND_LINES, {"keys": keys, "batch": batch.id}).all())
            # The list comes in its order from SQLite, which makes this one pass; no standard promises it.
            return sorted((row for row in rows if row[1] is not None), key=itemgetter(0))

        packed = self._packed(batch, len(outcomes))
        guess = None if packed is None else _guessed(packed, outcomes)
        return record(self._database, outcomes, find, guess=guess, at=at, stamp=stamp)

    def _packed(self, batch: Batch, lines: int) -> Packed | None:
        """Return the rows of a batch that is being harvested; None where they are not worth reading.

        The rows of a batch never change, so they are read once, in a row, and kept for the groups of
        lines to come. It does not pay where few lines come at a time, nor where the batch asked again
        for answers that grew too old: those have to be looked up anyway.
        """
        packed = self._harvested.get(batch.id)
        if packed is not None or batch.rows > lines * _GROUPS_OF_A_HARVEST:
            return packed
        query = (
            select(
                func.count(attempts.c.replaces),
                func.max(attempts.c.step_run),
                *(dialects.gathered(column) for column in (requests.c.key, attempts.c.id, requests.c.id)),
            )
            .join_from(attempts, requests)
            .where(attempts.c.batch_id == batch.id)
        )
        with self._database.read() as connection:
            replacing, step_run, *gathered = connection.execute(query).one()
        if replacing or step_run is None:
            return None
        keys, attempt_ids, request_ids = map(orjson.loads, gathered)
        packed = Packed(step_run, dict(zip(keys, attempt_ids, strict=True)), dict(zip(keys, request_ids, strict=True)))
        # A process harvests one batch at a time; the next one takes its place.
        self._harvested = {batch.id: packed}
        return packed
