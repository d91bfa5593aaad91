"""The life of a batch: each change of state guarded, with its event, under a lease."""

from datetime import datetime
from typing import Any, assert_never

import orjson
from sqlalchemy import Connection, select, update

from prefect_llm_tiers.core.batches import TRANSITIONS, Batch, BatchState, ProviderBatch
from prefect_llm_tiers.core.requests import derived_token
from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.errors import IllegalTransition
from prefect_llm_tiers.ledger.account import log
from prefect_llm_tiers.ledger.batches import load
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.schema import attempts, batches, outcomes
from prefect_llm_tiers.ledger.setbacks import count_tries

__all__ = ["BatchLife"]

_RELEASING = frozenset({BatchState.OVERDUE, BatchState.DISCARDED, BatchState.SETTLED})
"""States in which no row is waited for any longer."""

_EXCUSED = frozenset({BatchState.EXPIRED, BatchState.FAILED, BatchState.CANCELLED})
"""Ends after which a missing line is not the row's fault."""


def _told(provider_batch: ProviderBatch | None) -> dict[str, Any]:
    """Return the columns for what a provider told of a batch, its id apart."""
    if provider_batch is None:
        return {}
    counts = provider_batch.counts
    told: dict[str, Any] = {"total": counts.total, "completed": counts.completed, "failed": counts.failed}
    if provider_batch.error_codes:
        told["error_codes"] = orjson.dumps(provider_batch.error_codes).decode()
    return told


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
    values = _told(provider_batch)
    if provider_batch is not None:
        values["provider_batch_id"] = provider_batch.id
        # The reply to the create is no look at the batch.
        values["polls"] = batches.c.polls + (state is not BatchState.IN_PROGRESS)
    if input_file_id is not None:
        values["input_file_id"] = input_file_id
    if next_poll_at is not None:
        values["next_poll_at"] = next_poll_at
    match state:
        case BatchState.PLANNED:
            # The uploaded file bears the old token in every line, so it cannot be sent again.
            submission = batch.submission + 1
            values |= {
                "submission": submission,
                "token": derived_token(ledger_id, "batch", batch.id, submission),
                "submitting_at": None,
                "input_file_id": None,
                "provider_batch_id": None,
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
        submission, takes no place: it is kept as an event, for it may have to be cancelled and paid.
        """
        with self._database.write() as connection:
            found = load(connection, batch.id)
            values = _told(provider_batch)
            if looked:
                values["polls"] = batches.c.polls + 1
            if provider_batch is not None:
                values["polls"] = batches.c.polls + 1
                ours = provider_batch.token in (None, found.token)
                if ours and found.provider_batch_id is None:
                    values["provider_batch_id"] = provider_batch.id
                elif provider_batch.id != found.provider_batch_id:
                    # Its counts are another copy's.
                    values = {}
                    log(
                        connection,
                        "batch",
                        batch.id,
                        before=found.state,
                        after=found.state,
                        at=provider_batch.created_at,
                        detail=f"also at the provider as {provider_batch.id}",
                    )
            if input_file_id is not None and input_file_id != found.input_file_id:
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
