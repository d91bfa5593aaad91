"""Where requests stand, and the decisions that put them back or give them up."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
)

from prefect_llm_tiers.core.batches import LIVE_STATES
from prefect_llm_tiers.core.outcomes import OutcomeKind, Usage
from prefect_llm_tiers.core.runs import Answer, Lease, RequestState, Standing, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.database import Database, current
from prefect_llm_tiers.ledger.schema import (
    attachments,
    attempts,
    batches,
    leases,
    micros,
    money,
    outcomes,
    requests,
    setbacks,
    step_runs,
)
from prefect_llm_tiers.ledger.setbacks import forget, mark_failed, set_aside

__all__ = ["Requests", "counting", "floor", "is_counting", "number_of", "number_requests", "out", "out_in", "taken"]

counting = outcomes.alias("counting")
"""The outcome that counts for a request; join it with `is_counting`."""

# The constant is spelled out, or the partial index could not be used; see schema.COUNTS.
is_counting = and_(counting.c.request_id == requests.c.id, counting.c.standing == literal_column("'counts'"))

_ANY_AGE = -(2**63)
_IN_A_CALL = 0
_STATES = {OutcomeKind.ANSWER: RequestState.ANSWERED, OutcomeKind.REFUSAL: RequestState.REFUSED}

_listed = dialects.key_list()
_number = bindparam("number", type_=BigInteger)
# What this step run was sent itself always counts, whatever the wall clock did meanwhile: a run that did not
# believe its own answers would pay for them again and again.
_bought = (
    # One value looked up, rather than whether one exists: PostgreSQL would collect all attempts of the run first.
    select(attempts.c.step_run).where(attempts.c.id == counting.c.attempt_id).scalar_subquery() == _number
)
_fresh = and_(
    or_(counting.c.stamp >= bindparam("floor", type_=BigInteger), _bought),
    # One that this run cannot read is no answer to it, and stays one to every other run.
    counting.c.attempt_id.is_distinct_from(setbacks.c.aside),
)
_own = and_(setbacks.c.step_run == _number, setbacks.c.request_id == requests.c.id)
# A failure that came after the answer that counts; one that an answer came after is over.
_failed = and_(setbacks.c.reason.is_not(None), counting.c.attempt_id.is_not_distinct_from(setbacks.c.despite))


def out_in() -> ColumnElement[int | None]:
    """Return the oldest batch that a request is out in, for the step run bound to `number`; null if in none.

    The rows it is evaluated over must hold `requests`.
    """
    left = select(attachments.c.batch_id).where(
        attachments.c.step_run == _number,
        attachments.c.batch_id == attempts.c.batch_id,
        attachments.c.left_at.is_not(None),
    )
    return (
        select(func.min(attempts.c.batch_id))
        .join(batches, batches.c.id == attempts.c.batch_id)
        .where(
            attempts.c.request_id == requests.c.id,
            attempts.c.closed.is_(None),
            batches.c.state.in_(sorted(LIVE_STATES)),
            ~select(outcomes.c.attempt_id).where(outcomes.c.attempt_id == attempts.c.id).exists(),
            ~left.exists(),
        )
        .correlate(requests)
        .scalar_subquery()
    )


def out() -> ColumnElement[int | None]:
    """Return the batch as `out_in` does, 0 for a live call of another step run, null where it is not out.

    Another run's call counts while that run holds its lease at the instant bound to `now`, as microseconds; for
    null none does. The batch is looked for first: it can be attached to.
    """
    claimed = (
        select(func.min(attempts.c.id))
        .join(step_runs, step_runs.c.number == attempts.c.step_run)
        .join(leases, leases.c.name == literal_column("'step:'", Text).concat(step_runs.c.id))
        .where(
            attempts.c.request_id == requests.c.id,
            attempts.c.batch_id.is_(None),
            attempts.c.closed.is_(None),
            attempts.c.step_run != _number,
            leases.c.owner.is_not(None),
            # As plain numbers: null must stay null.
            type_coerce(leases.c.until, BigInteger) > bindparam("now", type_=BigInteger),
            ~select(outcomes.c.attempt_id).where(outcomes.c.attempt_id == attempts.c.id).exists(),
        )
        .correlate(requests)
        .scalar_subquery()
    )
    return func.coalesce(out_in(), case((claimed.is_not(None), _IN_A_CALL), else_=null()))


_SEEN = (
    _listed.outerjoin(requests, requests.c.key == _listed.c.value)
    .outerjoin(counting, is_counting)
    .outerjoin(setbacks, _own)
)

_STAND = select(
    _listed.c.key,
    case((_fresh, counting.c.kind), else_=null()).label("kind"),
    case((_failed, setbacks.c.reason), else_=null()).label("failed"),
    case((_fresh, null()), (_failed, null()), else_=out()).label("batch_id"),
    func.coalesce(setbacks.c.tries, 0).label("tries"),
    setbacks.c.tried_for,
).select_from(_SEEN)

_TAKEN = select(_listed.c.key).select_from(_SEEN).where(or_(_fresh, out().is_not(None)))

_brought = outcomes.alias("brought")
_sent = attempts.alias("sent")

_ANSWERS = select(
    _listed.c.key,
    _listed.c.value,
    case((_failed, setbacks.c.reason), else_=null()).label("failed"),
    _brought.c.kind,
    _brought.c.text,
    _brought.c.reason,
    _brought.c.tier_served,
    _brought.c.cost_usd,
    (_sent.c.step_run == _number).label("fresh"),
    _brought.c.input_tokens,
    _brought.c.cached_input_tokens,
    _brought.c.cache_write_tokens,
    _brought.c.output_tokens,
    _brought.c.reasoning_tokens,
).select_from(
    _SEEN.outerjoin(
        _brought,
        _brought.c.attempt_id == case((_failed, setbacks.c.attempt_id), else_=counting.c.attempt_id),
    ).outerjoin(_sent, _sent.c.id == _brought.c.attempt_id)
)


def floor(not_before: datetime | None) -> int:
    """Return the least stamp of an answer that is not too old, for the parameter `floor`."""
    return _ANY_AGE if not_before is None else micros(not_before)


def taken(connection: Connection, argument: str, *, number: int, floor: int, now: int | None) -> set[int]:
    """Return the positions of the keys that are not to be asked by a step run: answered, or out.

    Args:
        connection: A write transaction: what this tells is true until it ends.
        argument: The keys as `keys_argument` returns them.
        number: The step run's.
        floor: See `floor`.
        now: When another run's lease must last for its live calls to count, in microseconds; None: none counts.
    """
    values = {"keys": argument, "number": number, "floor": floor, "now": now}
    return set(connection.execute(_TAKEN, values).scalars())


def number_of(connection: Connection, step_run_id: str) -> int:
    """Return a step run's number; 0, which none has, where it was never entered."""
    return connection.execute(select(step_runs.c.number).where(step_runs.c.id == step_run_id)).scalar() or 0


def number_requests(connection: Connection, keys: Sequence[str]) -> str:
    """Give every key that was never asked a number; return the keys as the argument of `key_list`."""
    argument = dialects.keys_argument(keys)
    # SQLite reads INSERT ... SELECT ... ON CONFLICT as a join unless the SELECT has a WHERE.
    unseen = select(_listed.c.value).where(_listed.c.value.is_not(None))
    connection.execute(
        dialects.upsert(connection, requests).from_select(["key"], unseen).on_conflict_do_nothing(),
        {"keys": argument},
    )
    return argument


def _failures(connection: Connection, number: int) -> dict[str, int]:
    """Return how many failures of a step run hold, by reason; an answer that came since ended the others."""
    query = (
        select(setbacks.c.reason, func.count())
        .select_from(setbacks.join(requests, requests.c.id == setbacks.c.request_id).outerjoin(counting, is_counting))
        .where(setbacks.c.step_run == number, _failed)
        .group_by(setbacks.c.reason)
        .order_by(setbacks.c.reason)
    )
    return {reason: count for reason, count in connection.execute(query)}  # noqa: C416 - rows, not pairs


class Requests:
    """The requests of a ledger."""

    _database: Database

    def stand(
        self, keys: Sequence[str], *, step_run_id: str, not_before: datetime | None, now: datetime | None
    ) -> list[Standing]:
        """Tell where each key stands for a step run, in the order of `keys`.

        An answer that counts and is not too old comes first, then this run's own failure, then a batch
        that may still answer, then, unless `now` is None, a live call of another run that is alive then.
        """
        with self._database.read() as connection:
            rows = connection.execute(
                _STAND,
                {
                    "keys": dialects.keys_argument(keys),
                    "number": number_of(connection, step_run_id),
                    "floor": floor(not_before),
                    "now": None if now is None else micros(now),
                },
            ).all()
        # Thousands of rows stand in a handful of ways; each way is one shared frozen value.
        ways: dict[Any, Standing] = {}
        standings: list[Standing] = [Standing(RequestState.OPEN)] * len(keys)
        for position, *way in rows:
            kind, failed, batch_id, tries, tried_for = way
            standing = ways.get(name := tuple(way))
            if standing is None:
                if kind is not None:
                    standing = Standing(_STATES[OutcomeKind(kind)], tries=tries)
                elif failed is not None:
                    standing = Standing(RequestState.FAILED, tries=tries, reason=failed)
                elif batch_id is not None:
                    standing = Standing(RequestState.OUT, batch_id=batch_id or None, tries=tries)
                else:
                    standing = Standing(RequestState.OPEN, tries=tries, reason=tried_for)
                ways[name] = standing
            standings[position] = standing
        return standings

    def answers(self, keys: Sequence[str], *, step_run_id: str) -> list[Answer | None]:
        """Return the outcome that counts for each key, in order; None where there is none.

        Failures are returned only to the step run whose they are.
        """
        with self._database.read() as connection:
            rows = connection.execute(
                _ANSWERS,
                {"keys": dialects.keys_argument(keys), "number": number_of(connection, step_run_id)},
            ).all()
        found: list[Answer | None] = [None] * len(keys)
        for position, key, failed, kind, text, reason, tier, cost, fresh, *tokens in rows:
            if kind is None and failed is None:
                continue
            found[position] = Answer(
                key=key,
                state=RequestState.FAILED if failed is not None else _STATES[OutcomeKind(kind)],
                text=None if failed is not None else text,
                reason=failed if failed is not None else reason,
                tier_served=None if tier is None else Tier(tier),
                usage=None if tokens[0] is None else Usage(*tokens),
                cost_usd=money(cost),
                fresh=bool(fresh),
            )
        return found

    def failures(self, step_run_id: str) -> dict[str, int]:
        """Return how many requests failed for a step run, by reason."""
        with self._database.read() as connection:
            return _failures(connection, number_of(connection, step_run_id))

    def forget_failures(self, run: StepRun, *, lease: Lease, at: datetime) -> int:
        """Make this step run's failed requests open again with no tries; return how many. A decision."""
        with self._database.decide(lease) as connection:
            number = current(connection, run)
            forgotten = sum(_failures(connection, number).values())
            forget(connection, number)
            return forgotten

    def reopen(self, keys: Sequence[str], *, run: StepRun, lease: Lease, reason: str) -> int:
        """Set answers aside that this step run's output model cannot read; return how many. A decision.

        They stay as they are for every other run, whose model may be another. A try is counted for each that came
        since this run entered: what was there before has cost it nothing.
        """
        answered = (
            select(
                counting.c.request_id,
                counting.c.attempt_id,
                case((or_(counting.c.stamp >= run.first_stamp, _bought), 1), else_=0).label("tries"),
            )
            .distinct()
            .select_from(_SEEN)
            .where(counting.c.kind == OutcomeKind.ANSWER, counting.c.attempt_id.is_distinct_from(setbacks.c.aside))
        )
        with self._database.decide(lease) as connection:
            number = current(connection, run)
            rows = connection.execute(answered, {"keys": dialects.keys_argument(keys), "number": number}).all()
            set_aside(connection, [(number, *row, reason) for row in rows])
            return len(rows)

    def fail(self, failures: Iterable[tuple[str, str]], *, run: StepRun, lease: Lease, stamp: datetime) -> int:
        """Mark open keys as failed for this step run, each with a reason. A decision.

        A key that is out in a batch, has failed already, or was answered since the run first entered is
        not open and stays as it is. Returns how many were marked.
        """
        reasons: dict[str, str] = {}
        for key, reason in failures:
            reasons.setdefault(key, reason)
        keys = list(reasons)
        to_fail = select(_listed.c.key, requests.c.id, counting.c.attempt_id).select_from(_SEEN)
        with self._database.decide(lease) as connection:
            number = current(connection, run)
            rows = connection.execute(
                to_fail.where(
                    # An answer older than the run may have been judged too old by the caller; one that
                    # arrived since was paid for and counts for every run.
                    or_(counting.c.attempt_id.is_(None), ~_fresh),
                    ~_failed,
                    out_in().is_(None),
                ),
                {
                    "keys": number_requests(connection, keys),
                    "number": number,
                    "floor": micros(run.first_stamp),
                },
            ).all()
            mark_failed(
                connection,
                [(number, row.id, reasons[keys[row.key]], None, row.attempt_id) for row in rows],
                stamp,
            )
            return len(rows)
