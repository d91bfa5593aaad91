"""What a provider has a second time: written down as a batch of its own, watched, harvested and priced."""

from datetime import datetime

from sqlalchemy import BigInteger, Connection, func, insert, literal, or_, select, update

from prefect_llm_tiers.core.batches import LIVE_STATES, Batch, BatchState, ProviderBatch
from prefect_llm_tiers.core.requests import derived_token
from prefect_llm_tiers.ledger.account import log
from prefect_llm_tiers.ledger.batches import load, told
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.schema import Instant, attempts, batches

__all__ = ["Copies", "add_copy", "bearing"]


def bearing(connection: Connection, batch: Batch, provider_batch_id: str) -> Batch | None:
    """Return the batch of the same account that bears a provider's id, `batch` itself perhaps; None if none does."""
    query = select(func.min(batches.c.id)).where(
        batches.c.provider_batch_id == provider_batch_id,
        batches.c.provider == batch.provider,
        batches.c.account == batch.account,
    )
    found = connection.execute(query).scalar()
    return None if found is None else load(connection, found)


def add_copy(
    connection: Connection,
    database: Database,
    ledger_id: str,
    batch: Batch,
    provider_batch: ProviderBatch,
    *,
    token: str,
    at: datetime,
) -> Batch:
    """Add a batch for what the provider has beside `batch`, or return the one that bears its id already.

    Args:
        connection: A write transaction.
        database: Whose it is.
        ledger_id: What the tokens are derived from.
        batch: As the ledger holds it now.
        provider_batch: What the provider tells of the copy.
        token: Whose submission it came of.
        at: When it was seen, on the run's clock.
    """
    known = bearing(connection, batch, provider_batch.id)
    if known is not None:
        return known
    copy_id = database.next_id(connection, batches)
    submissions = {derived_token(ledger_id, "batch", batch.id, number): number for number in range(1, batch.submission)}
    step_run = select(batches.c.step_run).where(batches.c.id == batch.id).scalar_subquery()
    values = {
        "id": copy_id,
        "version": 1,
        "state": BatchState.IN_PROGRESS,
        "step_run": step_run,
        "provider": batch.provider,
        "account": batch.account,
        "model": batch.model,
        "endpoint": batch.endpoint,
        "tier": batch.tier,
        "token": token,
        "submission": submissions.get(token, batch.submission),
        "rows": batch.rows,
        "input_tokens": batch.input_tokens,
        "provider_batch_id": provider_batch.id,
        "created_at": at,
        "submitted_at": provider_batch.created_at,
        "polls": 0,
        "doubtful": False,
        "copy_of": batch.copy_of or batch.id,
        "error_codes": "[]",
    }
    if token == batch.token:
        # One submission, so one file and one intent.
        values |= {"input_file_id": batch.input_file_id, "submitting_at": batch.submitting_at}
    connection.execute(insert(batches).values(values | told(provider_batch)))
    first = database.next_id(connection, attempts)
    # Each replaces what the first sending of its row may replace: it was decided on then, and on nothing since.
    connection.execute(
        insert(attempts).from_select(
            ["id", "request_id", "step_run", "batch_id", "tier", "replaces", "began_at"],
            select(
                func.row_number().over(order_by=attempts.c.id) + literal(first - 1, BigInteger),
                attempts.c.request_id,
                attempts.c.step_run,
                literal(copy_id, BigInteger),
                attempts.c.tier,
                attempts.c.replaces,
                literal(at, Instant),
            ).where(attempts.c.batch_id == batch.id),
        )
    )
    log(
        connection,
        "batch",
        copy_id,
        before=None,
        after=BatchState.IN_PROGRESS,
        at=at,
        detail=f"a copy of batch {batch.copy_of or batch.id}, at the provider as {provider_batch.id}",
    )
    return load(connection, copy_id)


class Copies:
    """The batches of a ledger that a provider may have more than once."""

    _database: Database
    _ledger_id: str

    def doubt(self, batch: Batch) -> Batch:
        """Mark a batch as one that the provider may have more than once. A fact, for good.

        It leaves the version as it is: it takes nothing away from what was decided.
        """
        with self._database.write() as connection:
            connection.execute(update(batches).where(batches.c.id == batch.id).values(doubtful=True))
            return load(connection, batch.id)

    def tokens(self, batch: Batch) -> list[str]:
        """Return the tokens of every submission of a batch so far, the first one's first; of a copy its own."""
        with self._database.read() as connection:
            found = load(connection, batch.id)
        if found.copy_of is not None:
            return [found.token]
        numbers = range(1, found.submission + 1)
        return [derived_token(self._ledger_id, "batch", found.id, number) for number in numbers]

    def note_copy(self, batch: Batch, provider_batch: ProviderBatch, *, token: str, at: datetime) -> Batch:
        """Write down that the provider has a batch a second time, and return the copy as a batch of its own.

        It is IN_PROGRESS, bears `token`, carries the same keys with an attempt each, belongs to the same step
        run, which does not wait for it, and names the batch in `copy_of`. A provider id that the ledger knows
        adds nothing: the batch that bears it is returned. A fact, with an event.
        """
        with self._database.write() as connection:
            found = load(connection, batch.id)
            return add_copy(connection, self._database, self._ledger_id, found, provider_batch, token=token, at=at)

    def known_provider_batches(self, *, provider: str, since: datetime) -> set[str]:
        """Return the provider ids of all batches planned at `since` or later, whatever became of them.

        Those that were planned before and sent since are among them: they are in a list read from there too.
        """
        query = select(batches.c.provider_batch_id).where(
            batches.c.provider == provider,
            batches.c.provider_batch_id.is_not(None),
            or_(
                *(
                    instant >= since
                    for instant in (batches.c.created_at, batches.c.submitting_at, batches.c.submitted_at)
                )
            ),
        )
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def doubted(self, *, since: datetime) -> list[Batch]:
        """Return the doubtful batches that are over, planned at `since` or later, oldest first.

        Over is settled or discarded: nobody looks after them any more, and the provider may have one again.
        """
        over = sorted(frozenset(BatchState) - LIVE_STATES)
        query = (
            select(batches.c.id)
            .where(batches.c.doubtful, batches.c.state.in_(over), batches.c.created_at >= since)
            .order_by(batches.c.id)
        )
        with self._database.read() as connection:
            return [load(connection, batch_id) for batch_id in connection.execute(query).scalars().all()]
