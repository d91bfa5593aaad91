"""What a step run had back without a usable answer: its tries, and its failures."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam

from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.schema import setbacks

__all__ = ["Failed", "Tried", "count_tries", "mark_failed"]

Failed = tuple[int, int, str, int | None, int | None]
"""Step run, request, reason, the attempt that brought the failure, and the attempt whose answer counts
already and does not serve this step run."""

Tried = tuple[int, int, str]
"""Step run, request, and why the attempt was of no use."""

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
