"""How an outcome enters the ledger: the first answer stands, every bill is kept, a retry counts."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import astuple
from sqlalchemy import Connection, bindparam, case, select, update

from prefect_llm_tiers.core.outcomes import Outcome, OutcomeKind
from prefect_llm_tiers.core.runs import Recorded
from prefect_llm_tiers.ledger.database import Contradiction, Database
from prefect_llm_tiers.ledger.schema import attempts, micros, outcomes
from prefect_llm_tiers.ledger.setbacks import Failed, Tried, count_tries, mark_failed
from prefect_llm_tiers.ledger.texts import encodable

__all__ = ["Found", "record"]

Found = tuple[int, int, int, int, int | None, int | None, int | None]
"""What must be known of an outcome's attempt: the outcome's position, attempt, request, step run, the
attempt it may replace, itself again if it has its outcome already, the attempt that counts now."""

# A run never finds an answer of its own too old, so one that it replaces is one that it could not read.
_REPLACE = (
    update(outcomes)
    .where(outcomes.c.attempt_id == bindparam("attempt"))
    .values(
        standing=case(
            (
                select(attempts.c.step_run).where(attempts.c.id == outcomes.c.attempt_id).scalar_subquery()
                == bindparam("by"),
                "aside",
            ),
            else_="replaced",
        )
    )
)

_NO_TOKENS = (None, None, None, None, None)
_TEXTS = ("text", "reason", "price_source", "provider_request_id")


def record(
    database: Database,
    given: Sequence[Outcome],
    find: Callable[[Connection], Iterable[Found]],
    *,
    guess: Iterable[Found] | None = None,
    at: datetime,
    stamp: datetime,
) -> Recorded:
    """Write down outcomes in one transaction: the rules of `Ledger.record_calls`, for batches and live calls.

    Args:
        database: Where to.
        given: The outcomes.
        find: Reads what is known of their attempts, in the order of the outcomes, those that are known.
        guess: The same, as if no attempt had its outcome and no request its answer. Nearly every line of
            a batch is so, and the unique indexes of `outcomes` refuse the group where one is not.
        at: When they came, on the run's clock.
        stamp: Wall-clock instant, for the age of the answers.
    """
    if not given:
        return Recorded()
    # A failure enters no unique index, so a wrong guess about one would go unseen.
    if guess is not None and all(outcome.kind is not OutcomeKind.FAILURE for outcome in given):
        try:
            with database.write() as connection:
                return _record(connection, database, given, guess, at=at, stamp=stamp)
        except (Contradiction, UnicodeEncodeError):
            # Rolled back; what is there must be read first.
            pass
    try:
        with database.write() as connection:
            return _record(connection, database, given, find(connection), at=at, stamp=stamp)
    except UnicodeEncodeError:
        # Rolled back: one text that no encoding can carry must not cost the answers beside it.
        readable = [_encodable(outcome) for outcome in given]
    with database.write() as connection:
        return _record(connection, database, readable, find(connection), at=at, stamp=stamp)


def _encodable(outcome: Outcome) -> Outcome:
    """Return an outcome whose texts UTF-8 can carry, which half of a surrogate pair is not."""
    texts = {name: getattr(outcome, name) for name in _TEXTS}
    return msgspec.structs.replace(
        outcome, **{name: encodable(text) for name, text in texts.items() if text is not None}
    )


def _kept(outcome: Outcome, kept: Callable[[str], str]) -> Outcome:
    """Return an outcome with its texts as the database keeps them."""
    for name in _TEXTS:
        text = getattr(outcome, name)
        if text is not None and (written := kept(text)) is not text:
            outcome = msgspec.structs.replace(outcome, **{name: written})
    return outcome


def _record(
    connection: Connection,
    database: Database,
    given: Sequence[Outcome],
    found: Iterable[Found],
    *,
    at: datetime,
    stamp: datetime,
) -> Recorded:
    # Each lookup of a member costs as much as the rest of the test; this loop runs for every answer.
    answer, refusal = OutcomeKind.ANSWER, OutcomeKind.REFUSAL
    failure, retry = OutcomeKind.FAILURE, OutcomeKind.RETRY
    came, kept = (micros(at), micros(stamp)), database.kept
    known = settled = superseded = 0
    rows: list[tuple[Any, ...]] = []
    replaced: list[tuple[int, int]] = []
    tried: list[Tried] = []
    failed: list[Failed] = []
    now_ended: set[int] = set()
    now_counting: dict[int, int] = {}
    for position, attempt, request, step_run, replaces, ended, counted in found:
        known += 1
        if ended is not None or attempt in now_ended:
            continue
        now_ended.add(attempt)
        outcome = given[position]
        counts = now_counting.get(request, counted)
        free = counts is None or counts == replaces
        standing = None
        kind = outcome.kind
        if kind is answer or kind is refusal:
            standing = "counts" if free else "superseded"
            if free:
                now_counting[request] = attempt
                if counts is not None:
                    replaced.append((counts, step_run))
        elif kind is failure:
            if free:
                failed.append((step_run, request, outcome.reason or "unknown", attempt, counts))
        elif outcome.counted:
            tried.append((step_run, request, outcome.reason or "unknown"))
        if kind is not retry:
            settled += free
            superseded += not free
        rows.append((attempt, request, standing, *_told(outcome if kept is None else _kept(outcome, kept)), *came))
    if replaced:
        # Before the new ones come: at no instant may two outcomes of a request count.
        connection.execute(_REPLACE, [dict(zip(("attempt", "by"), one, strict=True)) for one in replaced])
    if rows:
        database.append(connection, outcomes, rows)
    mark_failed(connection, failed, stamp)
    count_tries(connection, tried)
    return Recorded(settled=settled, superseded=superseded, unknown=len(given) - known)


def _told(outcome: Outcome) -> tuple[Any, ...]:
    """Return an outcome's columns as the driver takes them, from `kind` to `provider_request_id`."""
    cost, list_cost, usage, served = outcome.cost_usd, outcome.list_usd, outcome.usage, outcome.tier_served
    # Plain str, not the enum: the driver takes the slow way of adapters for any subclass.
    return (
        str(outcome.kind),
        outcome.text,
        outcome.reason,
        None if served is None else str(served),
        str(outcome.billing),
        *(_NO_TOKENS if usage is None else astuple(usage)),
        None if cost is None else str(cost),
        None if list_cost is None else str(list_cost),
        outcome.price_source,
        outcome.provider_request_id,
    )
