"""Batches: rows chosen, intent, confirmation, end; each change guarded, each with its event."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    Connection,
    Row,
    Select,
    func,
    insert,
    select,
)

from prefect_llm_tiers.core.batches import (
    LIVE_STATES,
    Batch,
    BatchCounts,
    BatchState,
    ProviderBatch,
)
from prefect_llm_tiers.core.requests import derived_token
from prefect_llm_tiers.core.runs import Lease, StepRun, StepRunState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import IllegalTransition, LedgerError
from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.account import log
from prefect_llm_tiers.ledger.calls import add_attempts
from prefect_llm_tiers.ledger.database import Database, current
from prefect_llm_tiers.ledger.requests import number_of, out
from prefect_llm_tiers.ledger.schema import attachments, attempts, batches, micros, requests, step_runs
from prefect_llm_tiers.ledger.texts import encodable

__all__ = ["Batches", "load", "told"]

_KEYS_AT_ONCE = 5_000

_STORED: Select[Any] = select(batches, step_runs.c.id.label("step_run_id")).join(
    step_runs, step_runs.c.number == batches.c.step_run
)

_listed = dialects.key_list()


def _batch(row: Row[Any]) -> Batch:
    return Batch(
        id=row.id,
        version=row.version,
        state=BatchState(row.state),
        step_run_id=row.step_run_id,
        provider=row.provider,
        account=row.account,
        model=row.model,
        endpoint=row.endpoint,
        tier=Tier(row.tier),
        token=row.token,
        submission=row.submission,
        rows=row.rows,
        input_file_id=row.input_file_id,
        provider_batch_id=row.provider_batch_id,
        counts=BatchCounts(row.total, row.completed, row.failed),
        error_codes=tuple(orjson.loads(row.error_codes)),
        created_at=row.created_at,
        submitting_at=row.submitting_at,
        submitted_at=row.submitted_at,
        cancel_at=row.cancel_at,
        ended_at=row.ended_at,
        next_poll_at=row.next_poll_at,
        polls=row.polls,
        doubtful=row.doubtful,
        copy_of=row.copy_of,
        input_tokens=row.input_tokens,
    )


def load(connection: Connection, batch_id: int) -> Batch:
    """Return a batch; raise `LedgerError` where there is none."""
    row = connection.execute(_STORED.where(batches.c.id == batch_id)).one_or_none()
    if row is None:
        raise LedgerError(f"This ledger holds no batch {batch_id}; look at the one it was planned in.")
    return _batch(row)


def told(provider_batch: ProviderBatch | None) -> dict[str, Any]:
    """Return the columns for what a provider told of a batch, its id apart."""
    if provider_batch is None:
        return {}
    counts = provider_batch.counts
    columns: dict[str, Any] = {"total": counts.total, "completed": counts.completed, "failed": counts.failed}
    if provider_batch.error_codes:
        columns["error_codes"] = orjson.dumps([encodable(code) for code in provider_batch.error_codes]).decode()
    return columns


class Batches:
    """The batches of a ledger."""

    _database: Database
    _ledger_id: str

    def plan_batch(
        self,
        keys: Sequence[str],
        *,
        run: StepRun,
        provider: str,
        account: str,
        model: str,
        endpoint: str,
        lease: Lease,
        at: datetime,
        input_tokens: int | None = None,
    ) -> Batch:
        """Choose a batch's rows: state PLANNED, an open attempt per key, the run attached. A decision.

        Raises:
            IllegalTransition: Besides the usual: a key is out in a batch that this run has not left, or in a
                live call of another run that is alive. Sending it would pay for it twice.
            LedgerError: No keys, or one of them twice, for which a provider refuses a whole batch.
        """
        if not keys or len(set(keys)) != len(keys):
            raise LedgerError(
                f"A batch of {len(keys)} keys, {len(set(keys))} of them distinct, cannot be sent: it needs "
                "at least one, and none twice. Ask every key once."
            )
        where = out()
        claimed = (
            select(func.count(), func.max(where))
            .select_from(_listed.join(requests, requests.c.key == _listed.c.value))
            .where(where.is_not(None))
        )
        with self._database.decide(lease) as connection:
            number = current(connection, run, StepRunState.RUNNING)
            taken, by = connection.execute(
                claimed, {"keys": dialects.keys_argument(keys), "number": number, "now": micros(at)}
            ).one()
            if taken:
                carried = f"batch {by} among those that carry them" if by else "in live calls of another run"
                raise IllegalTransition(
                    f"{taken} of {len(keys)} keys are out already, {carried}. Nothing was planned. Look again "
                    "where they stand, and attach to that batch, leave it, or wait for the calls."
                )
            batch_id = self._database.next_id(connection, batches)
            connection.execute(
                insert(batches).values(
                    id=batch_id,
                    version=1,
                    state=BatchState.PLANNED,
                    step_run=number,
                    provider=provider,
                    account=account,
                    model=model,
                    endpoint=endpoint,
                    tier=Tier.BATCH,
                    token=derived_token(self._ledger_id, "batch", batch_id, 1),
                    submission=1,
                    rows=len(keys),
                    total=0,
                    completed=0,
                    failed=0,
                    error_codes="[]",
                    created_at=at,
                    polls=0,
                    doubtful=False,
                    input_tokens=input_tokens,
                )
            )
            add_attempts(
                connection,
                self._database,
                keys,
                step_run=number,
                first_stamp=run.first_stamp,
                batch_id=batch_id,
                tier=Tier.BATCH,
                at=at,
            )
            connection.execute(insert(attachments).values(step_run=number, batch_id=batch_id))
            log(connection, "batch", batch_id, before=None, after=BatchState.PLANNED, at=at)
            return load(connection, batch_id)

    def batch(self, batch_id: int) -> Batch:
        """Return a batch. Raises `LedgerError` if there is none."""
        with self._database.read() as connection:
            return load(connection, batch_id)

    def batches_of(self, step_run_id: str, *, left: bool = False) -> list[Batch]:
        """Return the batches a step run made or attached to, oldest first.

        Args:
            step_run_id: The run.
            left: Whether those that it has left are among them.
        """
        with self._database.read() as connection:
            mine = attachments.c.step_run == number_of(connection, step_run_id)
            query = _STORED.join(attachments, attachments.c.batch_id == batches.c.id).where(mine)
            if not left:
                query = query.where(attachments.c.left_at.is_(None))
            return [_batch(row) for row in connection.execute(query.order_by(batches.c.id))]

    def live_batches(self) -> list[Batch]:
        """Return every batch that somebody still has to look after, oldest first."""
        query = _STORED.where(batches.c.state.in_(sorted(LIVE_STATES))).order_by(batches.c.id)
        with self._database.read() as connection:
            return [_batch(row) for row in connection.execute(query)]

    def batch_keys(self, batch_id: int) -> Iterator[list[str]]:
        """Stream the keys of a batch in the order they were packed, in chunks of bounded size.

        Each chunk is a transaction of its own; the rows of a batch never change.
        """
        last = 0
        while True:
            query = (
                select(attempts.c.id, requests.c.key)
                .join(requests, requests.c.id == attempts.c.request_id)
                .where(attempts.c.batch_id == batch_id, attempts.c.id > last)
                .order_by(attempts.c.id)
                .limit(_KEYS_AT_ONCE)
            )
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            last = rows[-1].id
            yield [row.key for row in rows]

    def attach(self, batch_id: int, *, step_run_id: str) -> None:
        """Note that a step run waits for this batch too. A fact.

        One that has left it stays gone: that was a decision, and this may be a process that lost its lease.
        """
        with self._database.write() as connection:
            load(connection, batch_id)
            number = number_of(connection, step_run_id)
            if not number:
                raise LedgerError(f"This ledger knows no step run {step_run_id!r}; enter it before attaching.")
            connection.execute(
                dialects.upsert(connection, attachments)
                .values(step_run=number, batch_id=batch_id)
                .on_conflict_do_nothing()
            )

    def waiting_for(self, batch_id: int) -> list[str]:
        """Return the ids of the step runs that wait for a batch: attached, not left, and not at their own end."""
        query = (
            select(step_runs.c.id)
            .join(attachments, attachments.c.step_run == step_runs.c.number)
            .where(
                attachments.c.batch_id == batch_id,
                attachments.c.left_at.is_(None),
                step_runs.c.state == StepRunState.RUNNING,
            )
            .order_by(step_runs.c.number)
        )
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def leave(self, batch_id: int, *, run: StepRun, lease: Lease, at: datetime) -> int:
        """Note that a step run no longer waits for a batch; return how many runs still do. A decision."""
        with self._database.decide(lease) as connection:
            number = current(connection, run)
            load(connection, batch_id)
            gone = dialects.upsert(connection, attachments).values(step_run=number, batch_id=batch_id, left_at=at)
            connection.execute(
                gone.on_conflict_do_update(
                    index_elements=[attachments.c.step_run, attachments.c.batch_id],
                    set_={"left_at": func.coalesce(attachments.c.left_at, gone.excluded.left_at)},
                )
            )
            return connection.execute(
                select(func.count())
                .select_from(attachments)
                .where(attachments.c.batch_id == batch_id, attachments.c.left_at.is_(None))
            ).scalar_one()
