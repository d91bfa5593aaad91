"""What a step run had back without a usable answer: its tries, and its failures."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, null, update

from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.schema import setbacks

__all__ = ["Failed", "SetAside", "Tried", "count_tries", "forget", "mark_failed", "set_aside"]

Failed = tuple[int, int, str, int | None, int | None]
"""Step run, request, reason, the attempt that brought the failure, and the attempt whose answer counts
already and does not serve this step run."""

Tried = tuple[int, int, str]
"""Step run, request, and why the attempt was of no use."""

SetAside = tuple[int, int, int, int, str]
"""Step run, request, the attempt whose answer is of no use, 1 if that was a try and else 0, and why."""

_IDENTITY = [setbacks.c.step_run, setbacks.c.request_id]
_FAILURE = ("reason", "attempt_id", "despite", "stamp")


def count_tries(connection: Connection, tried: Sequence[Tried]) -> None:
    """Count a try for each of these, and keep why the last one was of no use."""
    if not tried:
        return
    wanted = dialects.upsert(connection, setbacks).values(
        step_run=bindparam("step_run"), request_id=bindparam("request_id"), tries=1, tried_for=bindparam("tried_for")
    )
    counted = wanted.on_conflict_do_update(
        index_elements=_IDENTITY,
        set_={"tries": setbacks.c.tries + wanted.excluded.tries, "tried_for": wanted.excluded.tried_for},
    )
    connection.execute(counted, [dict(zip(("step_run", "request_id", "tried_for"), one, strict=True)) for one in tried])


def mark_failed(connection: Connection, failed: Sequence[Failed], stamp: datetime) -> None:
    """Write down failures."""
    if not failed:
        return
    names = ("step_run", "request_id", *_FAILURE)
    wanted = dialects.upsert(connection, setbacks).values({name: bindparam(name) for name in names} | {"tries": 0})
    marked = wanted.on_conflict_do_update(
        index_elements=_IDENTITY, set_={name: wanted.excluded[name] for name in _FAILURE}
    )
    connection.execute(marked, [dict(zip(names, (*one, stamp), strict=True)) for one in failed])


def set_aside(connection: Connection, answers: Sequence[SetAside]) -> None:
    """Write down that answers are none to a step run, and count the tries that brought them."""
    if not answers:
        return
    names = ("step_run", "request_id", "aside", "tries", "tried_for")
    wanted = dialects.upsert(connection, setbacks).values({name: bindparam(name) for name in names})
    noted = wanted.on_conflict_do_update(
        index_elements=_IDENTITY,
        set_={
            "aside": wanted.excluded.aside,
            "tries": setbacks.c.tries + wanted.excluded.tries,
            "tried_for": wanted.excluded.tried_for,
        },
    )
    connection.execute(noted, [dict(zip(names, one, strict=True)) for one in answers])


def forget(connection: Connection, step_run: int) -> None:
    """Forget a step run's failures and the tries that led to them; what it cannot read stays unreadable."""
    failed = (setbacks.c.step_run == step_run, setbacks.c.reason.is_not(None))
    connection.execute(delete(setbacks).where(*failed, setbacks.c.aside.is_(None)))
    connection.execute(
        update(setbacks).where(*failed).values(tries=0, **dict.fromkeys(("tried_for", *_FAILURE), null()))
    )
