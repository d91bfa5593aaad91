"""Sending a batch: the intent is committed before the call, the confirmation after it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.ports import BatchLine, CallFailed, FailureMeaning
from prefect_llm_tiers.core.requests import Endpoint, custom_id
from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.engine.heartbeat import LEASE
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.errors import CredentialsRejected, LeaseLost, QuotaExhausted, RequestRejected, UnknownModel

__all__ = ["CREATE_TIMEOUT", "Submission"]

CREATE_TIMEOUT = timedelta(seconds=120)
"""How long the provider may take to confirm a batch; a lease that was just renewed outlasts it."""

FILE_LIFE = timedelta(days=30)

LOOK_AFTER = timedelta(seconds=30)
"""From a create to the first look, whether it was confirmed or not."""

LEAST_PAUSE = timedelta(seconds=30)
"""Between two tries to send a batch: each uploads its file again."""

_PAUSE = timedelta(seconds=60)

_NEVER_TAKEN = frozenset({"rejected", "quota", "auth", "tier_unsupported"})


class Submission:
    """Sends the planned batches of a step run."""

    def __init__(self, job: Job, ports: Ports) -> None:
        self._job = job
        self._ports = ports

    async def send(self, batch: Batch, lease: Lease, *, until: datetime | None) -> Batch:
        """Upload, commit the intent, send it once, commit the confirmation.

        Args:
            batch: A planned one.
            lease: The batch's own.
            until: When its rows are needed elsewhere: an upload that is not over by then is dropped.

        Raises:
            RequestRejected: The provider will never take this batch; its rows are released.
            QuotaExhausted: The account has no credit left; its rows are released.
            CredentialsRejected: The key was refused; its rows are released.
            UnknownModel: The model is not offered; its rows are released.
        """
        ledger, clock, provider = self._ports.ledger, self._ports.clock, self._ports.provider
        if not self._can_build(batch):
            return self._not_ours_to_send(batch, lease)
        try:
            async with asyncio.timeout(self._left_s(until)):
                file_id = await provider.upload(
                    self._lines(batch),
                    model=batch.model,
                    endpoint=Endpoint(batch.endpoint),
                    token=batch.token,
                    expires_after=FILE_LIFE,
                )
        except TimeoutError:
            return batch
        except CallFailed as failure:
            if failure.meaning.kind in _NEVER_TAKEN:
                raise self._refused(batch, failure.meaning, lease) from None
            raise
        if until is not None and clock.now() >= until:
            return batch
        # The lease must outlast the call: whoever takes over finds no create under way.
        lease = ledger.renew(lease, until=clock.now() + LEASE)
        batch = ledger.advance_batch(batch, BatchState.SUBMITTING, lease=lease, at=clock.now(), input_file_id=file_id)
        # A crash from here to the confirmation leaves SUBMITTING, which recovery resolves.
        try:
            seen = await provider.create_batch(
                input_file_id=file_id,
                lines=self._lines(batch),
                model=batch.model,
                endpoint=Endpoint(batch.endpoint),
                token=batch.token,
                timeout_s=CREATE_TIMEOUT.total_seconds(),
            )
        except CallFailed as failure:
            return self._not_confirmed(batch, failure.meaning, lease)
        except (CredentialsRejected, UnknownModel) as error:
            # The provider answered that it did not take it.
            self._discard(batch, lease, type(error).__name__)
            raise
        try:
            batch = ledger.advance_batch(
                batch,
                BatchState.IN_PROGRESS,
                lease=lease,
                at=clock.now(),
                provider_batch=seen,
                next_poll_at=clock.now() + LOOK_AFTER,
            )
        except LeaseLost:
            # Whoever took over need not search for what is known: the id is a fact.
            ledger.note_batch(batch, provider_batch=seen)
            raise
        self._ports.watcher.submitted(batch)
        return batch

    def _not_confirmed(self, batch: Batch, meaning: FailureMeaning, lease: Lease) -> Batch:
        """Draw the consequence of a create that was not confirmed."""
        ledger, now = self._ports.ledger, self._ports.clock.now()
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
        return ledger.note_batch(batch, next_poll_at=now + LOOK_AFTER)

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

    def _can_build(self, batch: Batch) -> bool:
        return all(
            position is not None
            for keys in self._ports.ledger.batch_keys(batch.id)
            for position in self._job.spool.positions(keys)
        )

    async def _lines(self, batch: Batch) -> AsyncIterator[BatchLine]:
        spool = self._job.spool
        for keys in self._ports.ledger.batch_keys(batch.id):
            for key, position in zip(keys, spool.positions(keys), strict=True):
                assert position is not None  # `_can_build` has looked
                yield BatchLine(custom_id=custom_id(key, batch.token), body=spool.read(position).body)
