"""Attempts and what came of them: the way of every answer into the ledger."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Connection,
    Text,
    and_,
    bindparam,
    case,
    cast,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)

from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.runs import Lease, Recorded, StepRun, StepRunState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.database import Database, current
from prefect_llm_tiers.ledger.recording import Found, record
from prefect_llm_tiers.ledger.requests import counting, floor, is_counting, number_requests, taken
from prefect_llm_tiers.ledger.schema import Instant, attempts, leases, micros, outcomes, requests, setbacks, step_runs

__all__ = ["Calls", "add_attempts"]

_listed = dialects.key_list()

_ended = outcomes.alias("ended")

_FOUND_CALLS = (
    select(
        _listed.c.key,
        attempts.c.id,
        attempts.c.request_id,
        attempts.c.step_run,
        attempts.c.replaces,
        _ended.c.attempt_id,
        counting.c.attempt_id,
        requests.c.key,
    )
    .select_from(
        _listed.join(attempts, attempts.c.id == cast(_listed.c.value, BigInteger))
        .join(requests, requests.c.id == attempts.c.request_id)
        .outerjoin(_ended, _ended.c.attempt_id == attempts.c.id)
        .outerjoin(counting, is_counting)
    )
    .order_by(_listed.c.key)
)

_no_outcome = ~select(outcomes.c.attempt_id).where(outcomes.c.attempt_id == attempts.c.id).exists()

# The lease of a step run is the sign of life of whoever makes its calls.
_FORSAKEN = (
    select(attempts.c.id)
    .select_from(
        _listed.join(requests, requests.c.key == _listed.c.value)
        .join(attempts, attempts.c.request_id == requests.c.id)
        .join(step_runs, step_runs.c.number == attempts.c.step_run)
        .outerjoin(
            leases,
            and_(
                leases.c.name == literal_column("'step:'", Text).concat(step_runs.c.id),
                leases.c.owner.is_not(None),
                leases.c.until > bindparam("at", type_=Instant),
            ),
        )
    )
    .where(
        attempts.c.batch_id.is_(None),
        attempts.c.closed.is_(None),
        attempts.c.step_run != bindparam("number", type_=BigInteger),
        leases.c.name.is_(None),
        _no_outcome,
    )
)


def add_attempts(
    connection: Connection,
    database: Database,
    keys: Sequence[str],
    *,
    step_run: int,
    first_stamp: datetime,
    batch_id: int | None,
    tier: Tier,
    at: datetime,
) -> int:
    """Add an open attempt for each key, in their order, and return the first's id; the others follow it.

    An answer that was there before the step run first entered, `first_stamp`, is being asked again because
    it is too old, and will be replaced, as one is that the run cannot read. One that arrived since can be too old
    for nobody in this run: it came between the caller's look and this write, and stands.

    A live call that another run has out on one of the keys, and whose lease has ended, is closed: that run may
    never be entered again, and what it may have been billed for must be listed.
    """
    argument = number_requests(connection, keys)
    forsaken = connection.execute(_FORSAKEN, {"keys": argument, "number": step_run, "at": at}).scalars().all()
    if forsaken:
        connection.execute(update(attempts).where(attempts.c.id.in_(forsaken)).values(closed="abandoned", closed_at=at))
    first = database.next_id(connection, attempts)
    rows = select(
        _listed.c.key + literal(first, BigInteger),
        requests.c.id,
        literal(step_run, BigInteger),
        literal(batch_id, BigInteger),
        literal(str(tier)),
        case(
            (or_(counting.c.stamp < first_stamp, counting.c.attempt_id == setbacks.c.aside), counting.c.attempt_id),
            else_=null(),
        ),
        literal(at, Instant),
    ).select_from(
        _listed.join(requests, requests.c.key == _listed.c.value)
        .outerjoin(counting, is_counting)
        .outerjoin(setbacks, and_(setbacks.c.step_run == step_run, setbacks.c.request_id == requests.c.id))
    )
    connection.execute(
        insert(attempts).from_select(
            ["id", "request_id", "step_run", "batch_id", "tier", "replaces", "began_at"], rows
        ),
        {"keys": argument},
    )
    return first


class Calls:
    """The live calls of a ledger."""

    _database: Database

    def begin_calls(
        self,
        keys: Sequence[str],
        *,
        run: StepRun,
        tier: Tier,
        lease: Lease,
        at: datetime,
        not_before: datetime | None,
        share: bool = True,
    ) -> list[int | None]:
        """Write down that live calls are about to be sent; return an attempt id for each key. A decision.

        None stands for a key that is not to be asked, because of what happened since the caller looked: it
        was answered, it is out in a batch, or another run that is alive has a live call out on it and
        `share` is true. The look and the write are one transaction, so of two runs that race for a key one
        sends it.
        """
        with self._database.decide(lease) as connection:
            number = current(connection, run, StepRunState.RUNNING)
            not_asked = taken(
                connection,
                dialects.keys_argument(keys),
                number=number,
                floor=floor(not_before),
                now=micros(at) if share else None,
            )
            asked = [key for position, key in enumerate(keys) if position not in not_asked]
            first = add_attempts(
                connection,
                self._database,
                asked,
                step_run=number,
                first_stamp=run.first_stamp,
                batch_id=None,
                tier=tier,
                at=at,
            )
        ids = iter(range(first, first + len(asked)))
        return [None if position in not_asked else next(ids) for position in range(len(keys))]

    def record_calls(self, outcomes: Sequence[tuple[int, Outcome]], *, at: datetime, stamp: datetime) -> Recorded:
        """Write down what came of live calls, by attempt id. A fact.

        The first answer of a key stands; a later one is a superseded attempt whose money is counted.
        RETRY leaves the key open and counts a try for the attempt's step run if `counted`; FAILURE fails
        it for that step run.
        An attempt that has its outcome keeps it: telling it twice changes nothing.
        """
        numbers = dialects.keys_argument([str(attempt) for attempt, _ in outcomes])

        def find(connection: Connection) -> Iterable[Found]:
            for *found, key in connection.execute(_FOUND_CALLS, {"keys": numbers}).all():
                if outcomes[found[0]][1].key == key:
                    yield tuple(found)

        return record(self._database, [outcome for _, outcome in outcomes], find, at=at, stamp=stamp)

    def abandon_calls(self, *, run: StepRun, lease: Lease, at: datetime) -> int:
        """Close every live call of a run that has no outcome as `billed_unknown`; return how many.

        No try is counted: nothing came back. A late outcome for one of them still counts. A decision.
        """
        with self._database.decide(lease) as connection:
            number = current(connection, run)
            return connection.execute(
                update(attempts)
                .where(
                    attempts.c.step_run == number,
                    attempts.c.batch_id.is_(None),
                    attempts.c.closed.is_(None),
                    _no_outcome,
                )
                .values(closed="abandoned", closed_at=at)
            ).rowcount
