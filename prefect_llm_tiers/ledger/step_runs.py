"""Step runs: what the first entry stored, and the decisions that every process of the run follows."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from prefect_llm_tiers.core.runs import Entry, Lease, StepRun, StepRunState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import IllegalTransition
from prefect_llm_tiers.ledger.account import log
from prefect_llm_tiers.ledger.database import Database, current
from prefect_llm_tiers.ledger.schema import step_runs

__all__ = ["StepRuns"]

_ENDS = (StepRunState.COMPLETED, StepRunState.FAILED)
_ANY = tuple(StepRunState)
_RUNNING = (StepRunState.RUNNING,)

_STORED = select(*(column for column in step_runs.c if column.name not in ("number", "planned_at")))


def _load(connection: Connection, run_id: str) -> StepRun | None:
    row = connection.execute(_STORED.where(step_runs.c.id == run_id)).one_or_none()
    return None if row is None else _step_run(row)


def _step_run(row: Row[Any]) -> StepRun:
    fields: dict[str, Any] = dict(row._mapping)
    fields["state"] = StepRunState(row.state)
    fields["tier"] = None if row.tier is None else Tier(row.tier)
    return StepRun(**fields)


def _change(connection: Connection, run: StepRun, allowed: tuple[StepRunState, ...], **values: Any) -> StepRun:
    """Change a step run by the guarded update: it is as it was decided on, or nothing happens."""
    guard = (step_runs.c.id == run.id, step_runs.c.version == run.version, step_runs.c.state.in_(allowed))
    changed = connection.execute(
        update(step_runs).where(*guard).values(version=step_runs.c.version + 1, **values)
    ).rowcount
    if not changed:
        current(connection, run, *allowed)
    stored = _load(connection, run.id)
    if not changed or stored is None:
        raise IllegalTransition(f"Step run {run.id} could not be changed at version {run.version}. Read it again.")
    return stored


class StepRuns:
    """The step runs of a ledger."""

    _database: Database

    def enter(self, entry: Entry, *, stamp: datetime) -> StepRun:
        """Create the step run, or return the stored one with its `entries` counted up.

        An entry is no decision and leaves the version as it is, so that a second process of the run
        that looks in, and waits, spoils nothing for the first.
        """
        with self._database.write() as connection:
            known = connection.execute(
                update(step_runs).where(step_runs.c.id == entry.id).values(entries=step_runs.c.entries + 1)
            ).rowcount
            if not known:
                connection.execute(
                    insert(step_runs).values(
                        id=entry.id,
                        version=1,
                        flow_run_id=entry.flow_run_id,
                        step=entry.step,
                        key_digest=entry.key_digest,
                        requests=entry.requests,
                        rows=entry.rows,
                        provider=entry.provider,
                        account=entry.account,
                        deadline=entry.deadline,
                        entered_at=entry.entered_at,
                        first_stamp=stamp,
                        state=StepRunState.RUNNING,
                        entries=1,
                    )
                )
                log(
                    connection,
                    "step_run",
                    entry.id,
                    before=None,
                    after=StepRunState.RUNNING,
                    at=entry.entered_at,
                )
            stored = _load(connection, entry.id)
        assert stored is not None, "written in this transaction"
        return stored

    def step_run(self, run_id: str) -> StepRun | None:
        """Return a step run."""
        with self._database.read() as connection:
            return _load(connection, run_id)

    def step_runs_of(self, flow_run_id: str) -> list[StepRun]:
        """Return the step runs of a flow run in the order in which they were first entered."""
        query = _STORED.where(step_runs.c.flow_run_id == flow_run_id).order_by(step_runs.c.number)
        with self._database.read() as connection:
            return [_step_run(row) for row in connection.execute(query)]

    def step_runs_between(self, since: datetime, until: datetime) -> list[StepRun]:
        """Return the step runs first entered in a period by the wall clock, its end left out, in that order."""
        stamp = step_runs.c.first_stamp
        query = _STORED.where(stamp >= since, stamp < until).order_by(step_runs.c.number)
        with self._database.read() as connection:
            return [_step_run(row) for row in connection.execute(query)]

    def rebase(self, run: StepRun, entry: Entry, *, lease: Lease) -> StepRun:
        """Store a re-entry's digest and counts in the place of the first entry's. A decision.

        Deadline and first stamp stay: the run is as old as it was, and is due when it was.
        """
        with self._database.decide(lease) as connection:
            return _change(connection, run, _ANY, key_digest=entry.key_digest, requests=entry.requests, rows=entry.rows)

    def record_plan(self, run: StepRun, plan: bytes, *, lease: Lease, at: datetime) -> StepRun:
        """Store a plan; the latest one counts. A decision."""
        with self._database.decide(lease) as connection:
            return _change(connection, run, _ANY, plan=plan, planned_at=at)

    def record_tier(
        self, run: StepRun, tier: Tier, *, lease: Lease, at: datetime, detail: str | None = None
    ) -> StepRun:
        """Store that the run goes on in `tier`; every chunk follows it. A decision, with an event."""
        with self._database.decide(lease) as connection:
            stored = _change(connection, run, _RUNNING, tier=tier, tier_since=at)
            # The version held, so the tier that the caller read is the one that was stored.
            log(connection, "step_run", run.id, before=run.tier, after=tier, at=at, detail=detail)
            return stored

    def finish(self, run: StepRun, state: StepRunState, *, lease: Lease, at: datetime) -> StepRun:
        """Store the run's end, or reopen an ended one with `RUNNING`. A decision, with an event."""
        with self._database.decide(lease) as connection:
            stored = _change(connection, run, _ENDS if state is StepRunState.RUNNING else _RUNNING, state=state)
            log(connection, "step_run", run.id, before=run.state, after=state, at=at)
            return stored
