"""The life of a batch: each change of state guarded, with its event, under a lease."""

from datetime import datetime
from typing import assert_never

from sqlalchemy import Connection, select, update

from prefect_llm_tiers.core.batches import LIVE_STATES, TRANSITIONS, Batch, BatchState, ProviderBatch
from prefect_llm_tiers.core.requests import derived_token
from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.errors import IllegalTransition
from prefect_llm_tiers.ledger.account import log
from prefect_llm_tiers.ledger.batches import load, told
from prefect_llm_tiers.ledger.copies import add_copy, bearing
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.schema import attempts, batches, outcomes
from prefect_llm_tiers.ledger.setbacks import count_tries

__all__ = ["BatchLife"]

_RELEASING = frozenset({BatchState.OVERDUE, BatchState.DISCARDED, BatchState.SETTLED})
"""States in which no row is waited for any longer."""

_EXCUSED = frozenset({BatchState.EXPIRED, BatchState.FAILED, BatchState.CANCELLED})
"""Ends after which a missing line is not the row's fault."""


def _release(connection: Connection, batch_id: int, at: datetime, *, tries: bool) -> int:
    """Close a batch's attempts that have no outcome, counting a try for each if told so; return how many."""
    still_open = (
        attempts.c.batch_id == batch_id,
        attempts.c.closed.is_(None),
        ~select(outcomes.c.attempt_id).where(outcomes.c.attempt_id == attempts.c.id).exists(),
    )
    if tries:
        rows = connection.execute(select(attempts.c.step_run, attempts.c.request_id).where(*still_open)).all()
        count_tries(connection, [(row.step_run, row.request_id, "missing_in_results") for row in rows])
    return connection.execute(update(attempts).where(*still_open).values(closed="released", closed_at=at)).rowcount


def _advance(
    connection: Connection,
    ledger_id: str,
    batch: Batch,
    state: BatchState,
    *,
    at: datetime,
    input_file_id: str | None = None,
    provider_batch: ProviderBatch | None = None,
    next_poll_at: datetime | None = None,
    detail: str | None = None,
) -> tuple[Batch, int]:
    """Take a step that the lifecycle allows, by the guarded update; return the rows released as well."""
    values = told(provider_batch)
    if provider_batch is not None:
        _same_batch(connection, batch, provider_batch)
        values["provider_batch_id"] = provider_batch.id
        # The reply to the create is no look at the batch.
        values["polls"] = batches.c.polls + int(state is not BatchState.IN_PROGRESS)
    if input_file_id is not None:
        values["input_file_id"] = input_file_id
    if next_poll_at is not None:
        values["next_poll_at"] = next_poll_at
    match state:
        case BatchState.PLANNED:
            if batch.provider_batch_id is not None:
                raise IllegalTransition(
                    f"Batch {batch.id} is at the provider as {batch.provider_batch_id}, so it cannot be absent there. "
                    "Nothing was changed. Look at it."
                )
            # The uploaded file bears the old token in every line, so it cannot be sent again.
            submission = batch.submission + 1
            values |= {
                "submission": submission,
                "token": derived_token(ledger_id, "batch", batch.id, submission),
                "submitting_at": None,
                "input_file_id": None,
                # Looks for the old submission prove nothing of the new one.
                "polls": 0,
            }
        case BatchState.SUBMITTING:
            values["submitting_at"] = at
        case BatchState.IN_PROGRESS:
            values["submitted_at"] = at
        case BatchState.CANCELLING:
            values["cancel_at"] = at
        case BatchState.COMPLETED | BatchState.FAILED | BatchState.EXPIRED | BatchState.CANCELLED:
            values["ended_at"] = (provider_batch.ended_at if provider_batch else None) or at
        case BatchState.OVERDUE | BatchState.DISCARDED | BatchState.SETTLED:
            pass
        case _:
            assert_never(state)
    allowed = [before for before, after in TRANSITIONS.items() if state in after]
    changed = connection.execute(
        update(batches)
        .where(batches.c.id == batch.id, batches.c.version == batch.version, batches.c.state.in_(allowed))
        .values(state=state, version=batches.c.version + 1, **values)
    ).rowcount
    if not changed:
        raise _refused(load(connection, batch.id), batch, state)
    released = 0
    if state in _RELEASING:
        tries = state is BatchState.SETTLED and batch.state not in _EXCUSED
        released = _release(connection, batch.id, at, tries=tries)
    # The version held, so the state that the caller read is the one that was left.
    log(connection, "batch", batch.id, before=batch.state, after=state, at=at, detail=detail)
    return load(connection, batch.id), released


def _same_batch(connection: Connection, batch: Batch, provider_batch: ProviderBatch) -> None:
    """Make sure that a step is decided on what this batch is at the provider, and not another one."""
    known = bearing(connection, batch, provider_batch.id)
    if known is not None and known.id != batch.id:
        raise IllegalTransition(
            f"{provider_batch.id} is batch {known.id} of this ledger already, and cannot be batch {batch.id} as well. "
            "Nothing was changed. Read both again."
        )
    if batch.provider_batch_id not in (None, provider_batch.id):
        raise IllegalTransition(
            f"Batch {batch.id} is at the provider as {batch.provider_batch_id}; {provider_batch.id} is another one. "
            "Nothing was changed. Note it as a copy."
        )


def _refused(found: Batch, decided_on: Batch, state: BatchState) -> IllegalTransition:
    if found.version != decided_on.version:
        return IllegalTransition(
            f"Batch {found.id} is at version {found.version} ({found.state}); {state} was decided on version "
            f"{decided_on.version} ({decided_on.state}). Nothing was changed. Read it again and decide anew."
        )
    after = ", ".join(sorted(TRANSITIONS[found.state])) or "nothing"
    return IllegalTransition(
        f"Batch {found.id} is {found.state}, which {after} may follow, and not {state}. Nothing was changed. "
        "Read it again and take one of these."
    )


class BatchLife:
    """What becomes of the batches of a ledger."""

    _database: Database
    _ledger_id: str

    def advance_batch(
        self,
        batch: Batch,
        state: BatchState,
        *,
        lease: Lease,
        at: datetime,
        input_file_id: str | None = None,
        provider_batch: ProviderBatch | None = None,
        next_poll_at: datetime | None = None,
        detail: str | None = None,
    ) -> Batch:
        """Take a batch to its next state, with an event, under the batch's own lease. A decision.

        SUBMITTING -> PLANNED (proven absent) counts `submission` up, derives a new token and forgets the
        uploaded file. To OVERDUE and DISCARDED its open attempts are released: their keys are open again,
        while a late line still counts. To SETTLED it does what `settle_batch` does.
        """
        with self._database.decide(lease) as connection:
            return _advance(
                connection,
                self._ledger_id,
                batch,
                state,
                at=at,
                input_file_id=input_file_id,
                provider_batch=provider_batch,
                next_poll_at=next_poll_at,
                detail=detail,
            )[0]

    def note_batch(
        self,
        batch: Batch,
        *,
        provider_batch: ProviderBatch | None = None,
        input_file_id: str | None = None,
        next_poll_at: datetime | None = None,
        looked: bool = False,
    ) -> Batch:
        """Write down what a look at a batch told, without a change of state. A fact.

        Progress leaves the version as it is. A provider or file id that was not known counts it up, so
        that no decision made without it goes through. A second provider id, or one of an earlier
        submission, is a copy: it becomes a batch of its own, and this one stays as it is.
        """
        with self._database.write() as connection:
            found = load(connection, batch.id)
            values = told(provider_batch)
            if looked:
                values["polls"] = batches.c.polls + 1
            if provider_batch is not None:
                values["polls"] = batches.c.polls + 1
                # A provider without tokens told of the submission that the caller knows of.
                token = provider_batch.token or batch.token
                known = bearing(connection, found, provider_batch.id)
                # Nobody looks after a discarded batch any more; what turns up of it after all is looked after.
                live = found.state in LIVE_STATES
                if known is None and found.provider_batch_id is None and token == found.token and live:
                    values["provider_batch_id"] = provider_batch.id
                elif known is None or known.id != found.id:
                    # Its counts are the copy's.
                    values = {}
                    seen_at = provider_batch.created_at
                    add_copy(
                        connection, self._database, self._ledger_id, found, provider_batch, token=token, at=seen_at
                    )
            # A file bears one submission's token in every line; it is of no use to another.
            if input_file_id not in (None, found.input_file_id) and batch.token == found.token:
                values["input_file_id"] = input_file_id
            if next_poll_at is not None:
                values["next_poll_at"] = next_poll_at
            if "provider_batch_id" in values or "input_file_id" in values:
                values["version"] = batches.c.version + 1
            if values:
                connection.execute(update(batches).where(batches.c.id == batch.id).values(**values))
            return load(connection, batch.id)

    def settle_batch(self, batch: Batch, *, lease: Lease, at: datetime) -> tuple[Batch, int]:
        """End an ended batch: keys without a line are open again; return how many. A decision, with an event.

        A try is counted for each, unless the batch expired, failed or was cancelled.
        """
        with self._database.decide(lease) as connection:
            return _advance(connection, self._ledger_id, batch, BatchState.SETTLED, at=at)
