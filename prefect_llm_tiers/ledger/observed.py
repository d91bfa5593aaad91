"""What was seen of latencies: batches as their own rows tell it, live tiers as their lanes wrote it down."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, String, and_, cast, func, or_, select, true

from prefect_llm_tiers.core.batches import BatchState
from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.requests import number_of
from prefect_llm_tiers.ledger.schema import batches, events, lanes, step_runs

__all__ = ["Observed"]

_MICROSECOND = timedelta(microseconds=1)
_LEAST = timedelta(seconds=1)

_OUT = (BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.OVERDUE)

_given_up_at = (
    select(func.max(events.c.at))
    .where(
        events.c.subject == "batch",
        events.c.subject_id == cast(batches.c.id, String),
        events.c.after == BatchState.DISCARDED,
    )
    .scalar_subquery()
)

# The intent is what a step waits from. A batch that was found again long after a crash would seem short by
# its confirmation. One that failed its validation never ran, and a copy was stopped because it is one.
_OBSERVED: Select[Any] = select(
    func.coalesce(batches.c.submitting_at, batches.c.submitted_at).label("began_at"),
    batches.c.model,
    batches.c.cancel_at,
    batches.c.ended_at,
    batches.c.rows,
    batches.c.total,
    batches.c.completed,
    batches.c.failed,
    _given_up_at.label("given_up_at"),
).where(
    batches.c.copy_of.is_(None),
    batches.c.submitted_at.is_not(None),
    or_(
        batches.c.state.in_(_OUT),
        and_(batches.c.ended_at.is_(None), batches.c.state == BatchState.DISCARDED),
        and_(batches.c.ended_at.is_not(None), batches.c.total > 0),
    ),
)

_ENTERED: Select[Any] = select(lanes, step_runs.c.step).join(step_runs, step_runs.c.number == lanes.c.step_run)


class Observed:
    """The latencies that a ledger has seen."""

    _database: Database

    def observed_batches(
        self, *, provider: str, model: str, account: str | None, now: datetime, limit: int = 500
    ) -> list[ObservedBatch]:
        """Return the newest batches of an account, or of all, that ran or still run, newest first, each once.

        Nothing is written down for it: a batch's own row says when it was sent and how it ended.
        """
        query = (
            _OBSERVED.where(batches.c.provider == provider, batches.c.model == model)
            .where(true() if account is None else batches.c.account == account)
            .order_by(batches.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_batch(row, now) for row in connection.execute(query)]

    def observe_lane(self, lane: ObservedLane, *, step_run_id: str) -> None:
        """Add one visit to what a step run saw of a live tier. A fact."""
        with self._database.write() as connection:
            number = number_of(connection, step_run_id)
            new = dialects.upsert(connection, lanes).values(
                step_run=number,
                tier=lane.tier,
                model=lane.model,
                began_at=lane.began_at,
                visits=lane.visits,
                requests=lane.requests,
                busy_us=lane.busy // _MICROSECOND,
                concurrency=lane.concurrency,
                spacing_us=lane.spacing // _MICROSECOND,
                latency_us=lane.requests * (lane.latency // _MICROSECOND),
                output_tokens=round(lane.requests * lane.output_tokens),
                found_down=lane.found_down,
                down_us=lane.down // _MICROSECOND,
                recoveries=lane.recoveries,
            )
            sums = ("visits", "requests", "busy_us", "latency_us", "output_tokens", "down_us", "recoveries")
            connection.execute(
                new.on_conflict_do_update(
                    index_elements=[lanes.c.step_run, lanes.c.tier],
                    set_={name: lanes.c[name] + new.excluded[name] for name in sums}
                    | {name: new.excluded[name] for name in ("concurrency", "spacing_us")},
                )
            )

    def observed_lanes(
        self, *, provider: str, model: str, account: str | None, tier: Tier, limit: int = 500
    ) -> list[ObservedLane]:
        """Return what the newest step runs of an account, or of all, saw of a live tier, newest first."""
        query = (
            _ENTERED.where(step_runs.c.provider == provider, lanes.c.model == model, lanes.c.tier == tier)
            .where(true() if account is None else step_runs.c.account == account)
            .order_by(lanes.c.began_at.desc(), lanes.c.step_run.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_lane(row) for row in connection.execute(query)]

    def observed_of(self, step_run_id: str, *, now: datetime) -> tuple[list[ObservedBatch], list[ObservedLane]]:
        """Return what one step run saw: the batches that it made, oldest first, and its live tiers."""
        with self._database.read() as connection:
            number = number_of(connection, step_run_id)
            made = connection.execute(_OBSERVED.where(batches.c.step_run == number).order_by(batches.c.id)).all()
            entered = connection.execute(
                _ENTERED.where(lanes.c.step_run == number).order_by(lanes.c.began_at, lanes.c.tier)
            ).all()
        return [_batch(row, now) for row in made], [_lane(row) for row in entered]


def _batch(row: Row[Any], now: datetime) -> ObservedBatch:
    # A cancel may come too late: a batch with an outcome for every row took as long as it took.
    whole = row.ended_at is not None and row.completed + row.failed >= row.total
    until = row.ended_at if whole else row.cancel_at or row.ended_at or row.given_up_at or now
    return ObservedBatch(
        model=row.model,
        began_at=row.began_at,
        # The provider's clock and ours may differ by more than a short batch takes.
        duration=max(until - row.began_at, _LEAST),
        censored=not whole,
        requests=row.rows,
        done=row.completed + row.failed,
    )


def _lane(row: Row[Any]) -> ObservedLane:
    requests = max(row.requests, 1)
    return ObservedLane(
        step=row.step,
        tier=Tier(row.tier),
        model=row.model,
        began_at=row.began_at,
        visits=row.visits,
        requests=row.requests,
        busy=row.busy_us * _MICROSECOND,
        concurrency=row.concurrency,
        spacing=row.spacing_us * _MICROSECOND,
        latency=row.latency_us * _MICROSECOND / requests,
        output_tokens=row.output_tokens / requests,
        found_down=row.found_down,
        down=row.down_us * _MICROSECOND,
        recoveries=row.recoveries,
    )
