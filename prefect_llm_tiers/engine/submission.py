"""Sending a batch: the intent is committed before the call, the confirmation after it."""

import asyncio
from datetime import datetime, timedelta
from functools import partial

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.ports import CallFailed, FailureMeaning
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.heartbeat import Heartbeat
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.outgoing import OutgoingLines
from prefect_llm_tiers.errors import (
    CredentialsRejected,
    IllegalTransition,
    LeaseLost,
    QuotaExhausted,
    RequestRejected,
    UnknownModel,
)
from prefect_llm_tiers.planning.packing import line_bytes

__all__ = ["CREATE_TIMEOUT", "Submission", "create_timeout"]

CREATE_TIMEOUT = timedelta(seconds=120)
"""How long the provider may take to confirm a batch whose requests it has in a file."""

SLOWEST_LINK = 1_000_000
"""Bytes a second that a create which carries its requests is given time for: 256 MB in six minutes."""

LEASE_MARGIN = timedelta(seconds=60)
"""By how much the lease outlasts the create: whoever takes over finds none under way."""

FILE_LIFE = timedelta(days=30)

LOOK_AFTER = timedelta(seconds=30)
"""From a create to the first look, whether it was confirmed or not."""

LEAST_PAUSE = timedelta(seconds=30)
"""Between two tries to send a batch: each uploads its file again."""

_PAUSE = timedelta(seconds=60)

_NEVER_TAKEN = frozenset({"rejected", "policy", "quota", "auth", "tier_unsupported"})


def create_timeout(body_bytes: int) -> timedelta:
    """Return how long the provider may take to confirm a batch whose create carries so many bytes."""
    return CREATE_TIMEOUT + timedelta(seconds=body_bytes / SLOWEST_LINK)


class Submission:
    """Sends the planned batches of a step run."""

    def __init__(self, job: Job, ports: Ports) -> None:
        self._job = job
        self._ports = ports

    async def send(self, batch: Batch, heartbeat: Heartbeat, *, until: datetime | None) -> Batch:
        """Upload, commit the intent, send it once, commit the confirmation.

        A file that an earlier process uploaded for this submission and wrote down is used again.

        Args:
            batch: A planned one.
            heartbeat: Keeps the batch's own lease.
            until: When its rows are needed elsewhere: an upload that is not over by then is dropped.

        Raises:
            RequestRejected: The provider will never take this batch; its rows are released.
            QuotaExhausted: The account has no credit left; its rows are released.
            CredentialsRejected: The key was refused; its rows are released.
            UnknownModel: The model is not offered; its rows are released.
        """
        ledger, clock, provider = self._ports.ledger, self._ports.clock, self._ports.provider
        carried = self._bytes(batch)
        if carried is None:
            return self._not_ours_to_send(batch, heartbeat.lease)
        # Of the current token: whoever gives a batch a new one forgets the file in the same transaction.
        used_again = batch.input_file_id is not None
        if not used_again:
            try:
                async with asyncio.timeout(self._left_s(until)):
                    batch = await self._upload(batch, heartbeat.lease)
            except TimeoutError:
                return batch
        if until is not None and clock.now() >= until:
            return batch
        timeout = self._timeout(0 if batch.input_file_id is not None else carried, until)
        lease = heartbeat.outlast(timeout + LEASE_MARGIN)
        batch = ledger.advance_batch(batch, BatchState.SUBMITTING, lease=lease, at=clock.now())
        # A crash from here to the confirmation leaves SUBMITTING, which recovery resolves.
        crash_point("batch.intent")
        try:
            seen = await provider.create_batch(
                input_file_id=batch.input_file_id,
                lines=self._lines(batch),
                model=batch.model,
                endpoint=Endpoint(batch.endpoint),
                token=batch.token,
                timeout_s=timeout.total_seconds(),
            )
        except CallFailed as failure:
            return self._not_confirmed(batch, failure.meaning, lease, used_again=used_again)
        except (CredentialsRejected, UnknownModel) as error:
            # The provider answered that it did not take it.
            self._discard(batch, lease, type(error).__name__)
            raise
        crash_point("batch.create.sent")
        try:
            batch = ledger.advance_batch(
                batch,
                BatchState.IN_PROGRESS,
                lease=lease,
                at=clock.now(),
                provider_batch=seen,
                next_poll_at=clock.now() + LOOK_AFTER,
            )
        except (LeaseLost, IllegalTransition):
            # Whoever took over need not search for what is known: the id is a fact.
            ledger.note_batch(batch, provider_batch=seen)
            raise
        crash_point("batch.confirmed")
        self._ports.watcher.submitted(batch)
        return batch

    async def _upload(self, batch: Batch, lease: Lease) -> Batch:
        """Upload the requests and write the file's id down; without files nothing happens here."""
        try:
            file_id = await self._ports.provider.upload(
                self._lines(batch),
                model=batch.model,
                endpoint=Endpoint(batch.endpoint),
                token=batch.token,
                expires_after=FILE_LIFE,
            )
        except CallFailed as failure:
            if failure.meaning.kind in _NEVER_TAKEN:
                raise self._refused(batch, failure.meaning, lease) from None
            raise
        if file_id is None:
            return batch
        crash_point("batch.uploaded")
        batch = self._ports.ledger.note_batch(batch, input_file_id=file_id)
        crash_point("batch.file.recorded")
        return batch

    def _timeout(self, carried: int, until: datetime | None) -> timedelta:
        """Return how long the create may take: by its bytes, and hardly past the instant its rows are needed."""
        timeout = create_timeout(carried)
        if until is None:
            return timeout
        return min(timeout, max(CREATE_TIMEOUT, until - self._ports.clock.now()))

    def _not_confirmed(self, batch: Batch, meaning: FailureMeaning, lease: Lease, *, used_again: bool) -> Batch:
        """Draw the consequence of a create that was not confirmed."""
        ledger, now = self._ports.ledger, self._ports.clock.now()
        if meaning.kind == "rejected" and used_again:
            # It was not taken, perhaps because the file is gone; with a new one it is taken or refused for good.
            detail = f"refused with the file on record ({meaning.reason}); uploaded anew"
            return ledger.advance_batch(batch, BatchState.PLANNED, lease=lease, at=now, next_poll_at=now, detail=detail)
        if meaning.kind in _NEVER_TAKEN:
            raise self._refused(batch, meaning, lease)
        if meaning.kind in ("rate_limit", "capacity") and not meaning.maybe_billed:
            # Refused at the door, so it was not taken; the same rows go out again under a new token.
            wait = timedelta(seconds=meaning.retry_after_s) if meaning.retry_after_s else _PAUSE
            return ledger.advance_batch(
                batch,
                BatchState.PLANNED,
                lease=lease,
                at=now,
                next_poll_at=now + max(wait, LEAST_PAUSE),
                detail=meaning.reason,
            )
        # 5xx, a gateway's 503 among them, timeout, lost connection: it may have been taken all the same.
        self._ports.watcher.noticed(
            f"Batch {batch.id} may have been submitted: the provider did not confirm it ({meaning.reason}). It is "
            "looked for before anything is sent again."
        )
        return ledger.note_batch(ledger.doubt(batch), next_poll_at=now + LOOK_AFTER)

    def _refused(self, batch: Batch, meaning: FailureMeaning, lease: Lease) -> RequestRejected | QuotaExhausted:
        """Release the rows of a batch that it is useless to send again, and return the error that says so."""
        self._discard(batch, lease, f"rejected: {meaning.reason}")
        fact = (
            f"The provider did not take batch {batch.id} of step {self._job.step!r} with {batch.rows:,} requests "
            f"({meaning.reason}). Nothing was paid for it."
        )
        if meaning.kind == "quota":
            return QuotaExhausted(f"{fact} The account has no credit left. Add credit, then run the flow again.")
        return RequestRejected(f"{fact} Correct the step, or leave 'batch' out of tiers=, then run the flow again.")

    def _discard(self, batch: Batch, lease: Lease, detail: str) -> Batch:
        return self._ports.ledger.advance_batch(
            batch, BatchState.DISCARDED, lease=lease, at=self._ports.clock.now(), detail=detail
        )

    def _not_ours_to_send(self, batch: Batch, lease: Lease) -> Batch:
        """Leave a batch whose rows are not all here to its own run if that is alive, else release them."""
        ledger, now = self._ports.ledger, self._ports.clock.now()
        holder = ledger.lease(f"step:{batch.step_run_id}")
        alive = holder is not None and holder.until > now and batch.step_run_id != self._job.id
        if alive:
            return ledger.note_batch(batch, next_poll_at=now + LOOK_AFTER)
        return self._discard(batch, lease, "its rows changed before it was sent")

    def _left_s(self, until: datetime | None) -> float | None:
        return None if until is None else max((until - self._ports.clock.now()).total_seconds(), 0.0)

    def _bytes(self, batch: Batch) -> int | None:
        """Return the bytes of a batch's lines, about; None where not all of its rows are here."""
        total = 0
        for keys in self._ports.ledger.batch_keys(batch.id):
            for position in self._job.spool.positions(keys):
                if position is None:
                    return None
                total += line_bytes(self._job.spool.length(position), batch.endpoint)
        return total

    def _lines(self, batch: Batch) -> OutgoingLines:
        # All of its rows are there: `_bytes` has looked.
        groups = partial(self._ports.ledger.batch_keys, batch.id)
        return OutgoingLines(self._job.spool, groups, token=batch.token)
