"""The batch lane: submit once, look now and then, harvest whatever way a batch ends.

Every method takes a batch one step further and leaves it in the ledger as it is then; nothing about a batch
is remembered here between two calls.
"""

from datetime import datetime, timedelta
from typing import assert_never

from prefect_llm_tiers.core.batches import ENDED_STATES, LIVE_STATES, Batch, BatchState, ProviderBatch
from prefect_llm_tiers.core.batches import ProviderBatchStatus as Status
from prefect_llm_tiers.core.ports import CallFailed
from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.engine.harvest import Harvest
from prefect_llm_tiers.engine.heartbeat import LEASE, Heartbeat
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.recovery import Verdict, look_for
from prefect_llm_tiers.engine.submission import Submission
from prefect_llm_tiers.errors import LeaseLost

__all__ = ["FIRST_POLL", "LONGEST_POLL", "BatchLane"]

FIRST_POLL = timedelta(seconds=30)
LONGEST_POLL = timedelta(minutes=5)
CANCEL_POLL = timedelta(seconds=30)
POLL_GROWTH = 1.5

SEND_AGAIN = timedelta(minutes=2)
"""Between two tries to upload a batch to a provider that is down."""

OVERDUE_AFTER = timedelta(hours=1)

RESULTS_GONE_AFTER = timedelta(hours=1)
"""How long the results of an ended batch may be unknown to the provider before they are given up; for
minutes after the end that is known to happen."""


class BatchLane:
    """Looks after batches.

    Args:
        job: The step run that the process is here for.
        ports: The outside world.
    """

    def __init__(self, job: Job, ports: Ports) -> None:
        self._job = job
        self._ports = ports
        self._submission = Submission(job, ports)
        self._harvest = Harvest(ports)

    async def tend(self, batch: Batch, *, until: datetime | None = None) -> Batch:
        """Take a batch as far as it goes now.

        Nothing happens before its next look is due, or while another process tends it.

        Args:
            batch: The batch.
            until: When its rows are needed elsewhere, see `Submission.send`.

        Raises:
            RequestRejected: The provider will never take this batch.
            QuotaExhausted: The account has no credit left.
            CredentialsRejected: The key was refused.
        """
        if batch.next_poll_at is not None and batch.next_poll_at > self._ports.clock.now():
            return batch
        lease = self._acquire(batch)
        if lease is None:
            return batch
        async with Heartbeat(self._ports, lease) as heartbeat:
            try:
                return await self._advance(self._ports.ledger.batch(batch.id), lease, until)
            except CallFailed as failure:
                return self._unseen(self._ports.ledger.batch(batch.id), failure, lease)
            except LeaseLost:
                # Another process is at it now; the step run is still ours.
                return self._ports.ledger.batch(batch.id)
            finally:
                self._ports.ledger.release(heartbeat.lease)

    async def cancel(self, batch: Batch) -> Batch:
        """Ask the provider to stop a batch; what it has finished is harvested when the cancel is final."""
        lease = self._acquire(batch)
        if lease is None:
            return batch
        async with Heartbeat(self._ports, lease) as heartbeat:
            try:
                batch = self._ports.ledger.batch(batch.id)
                if batch.state is BatchState.PLANNED:
                    return self._ports.ledger.advance_batch(
                        batch, BatchState.DISCARDED, lease=lease, at=self._ports.clock.now(), detail="left"
                    )
                return await self._cancel(batch, lease) if batch.state is BatchState.IN_PROGRESS else batch
            except CallFailed as failure:
                self._ports.watcher.noticed(
                    f"Batch {batch.id} could not be cancelled ({failure.meaning.reason}); it is tried again."
                )
                return self._postpone(self._ports.ledger.batch(batch.id))
            except LeaseLost:
                return self._ports.ledger.batch(batch.id)
            finally:
                self._ports.ledger.release(heartbeat.lease)

    async def _cancel(self, batch: Batch, lease: Lease) -> Batch:
        ledger, clock = self._ports.ledger, self._ports.clock
        assert batch.provider_batch_id is not None  # IN_PROGRESS is entered with it
        seen = await self._ports.provider.cancel_batch(batch.provider_batch_id)
        batch = ledger.advance_batch(
            batch,
            BatchState.CANCELLING,
            lease=lease,
            at=clock.now(),
            provider_batch=seen,
            next_poll_at=clock.now() + CANCEL_POLL,
        )
        return await self._seen(batch, seen, lease) if seen.status.ended else batch

    def _acquire(self, batch: Batch) -> Lease | None:
        now = self._ports.clock.now()
        return self._ports.ledger.acquire(f"batch:{batch.id}", owner=self._ports.owner, now=now, until=now + LEASE)

    async def _advance(self, batch: Batch, lease: Lease, until: datetime | None) -> Batch:
        match batch.state:
            case BatchState.PLANNED:
                return await self._submission.send(batch, lease, until=until)
            case BatchState.SUBMITTING:
                return await self._recover(batch, lease)
            case BatchState.IN_PROGRESS | BatchState.CANCELLING | BatchState.OVERDUE:
                return await self._look(batch, lease)
            case BatchState.COMPLETED | BatchState.FAILED | BatchState.EXPIRED | BatchState.CANCELLED:
                return await self._harvest.take(batch, lease)
            case BatchState.SETTLED | BatchState.DISCARDED:
                return batch
            case _:
                assert_never(batch.state)

    # Recovery

    async def _recover(self, batch: Batch, lease: Lease) -> Batch:
        """Find out what became of a submission that nobody confirmed."""
        ledger, now = self._ports.ledger, self._ports.clock.now()
        if batch.provider_batch_id is not None:
            # Confirmed by a process that had lost the lease by then.
            return ledger.advance_batch(
                batch, BatchState.IN_PROGRESS, lease=lease, at=now, next_poll_at=now, detail="confirmed late"
            )
        found = await look_for(batch, self._ports)
        now = self._ports.clock.now()
        match found.verdict:
            case Verdict.FOUND:
                assert found.batch is not None  # a batch that was found is there
                return ledger.advance_batch(
                    batch,
                    BatchState.IN_PROGRESS,
                    lease=lease,
                    at=now,
                    provider_batch=found.batch,
                    next_poll_at=now + FIRST_POLL,
                    detail="found after a submission that was not confirmed",
                )
            case Verdict.ABSENT:
                # Sent again only where somebody still waits for it.
                after = BatchState.PLANNED if ledger.waiting_for(batch.id) else BatchState.DISCARDED
                return ledger.advance_batch(
                    batch, after, lease=lease, at=now, detail="proven absent: listed twice, complete"
                )
            case Verdict.AMBIGUOUS:
                if self._overdue(batch, now):
                    return ledger.advance_batch(
                        batch, BatchState.OVERDUE, lease=lease, at=now, detail="never found, window over"
                    )
                return ledger.note_batch(batch, next_poll_at=found.look_again_at, looked=found.complete)
            case _:
                assert_never(found.verdict)

    # Looking

    async def _look(self, batch: Batch, lease: Lease) -> Batch:
        if batch.provider_batch_id is None:
            return self._ports.ledger.advance_batch(
                batch,
                BatchState.DISCARDED,
                lease=lease,
                at=self._ports.clock.now(),
                detail="never confirmed and never found",
            )
        return await self._seen(batch, await self._ports.provider.retrieve_batch(batch.provider_batch_id), lease)

    async def _seen(self, batch: Batch, seen: ProviderBatch, lease: Lease) -> Batch:
        """Draw the consequences of a look at a batch."""
        ledger, now = self._ports.ledger, self._ports.clock.now()
        if seen.status.ended and (seen.results_ready or seen.status is Status.FAILED):
            batch = ledger.advance_batch(
                batch,
                _ENDED[seen.status],
                lease=lease,
                at=now,
                provider_batch=seen,
                # Whoever finds it ended and not harvested harvests it at once.
                next_poll_at=now,
                detail=",".join(seen.error_codes) or None,
            )
            return await self._harvest.take(batch, lease)
        if batch.state is not BatchState.OVERDUE and self._overdue(batch, now):
            batch = ledger.advance_batch(batch, BatchState.OVERDUE, lease=lease, at=now, provider_batch=seen)
            self._ports.watcher.noticed(
                f"Batch {batch.id} is still out an hour after its window; its rows are asked elsewhere."
            )
        return ledger.note_batch(batch, provider_batch=seen, next_poll_at=now + _spacing(batch))

    def _overdue(self, batch: Batch, now: datetime) -> bool:
        limits = self._job.capabilities.batch
        since = batch.submitted_at or batch.submitting_at
        return limits is not None and since is not None and now >= since + limits.window + OVERDUE_AFTER

    def _unseen(self, batch: Batch, failure: CallFailed, lease: Lease) -> Batch:
        """Draw the consequence of a look that told nothing.

        A batch that nobody could see for its whole window and an hour is overdue like any other; one that the
        provider says it does not know then is given up, and so are results that it no longer has.
        """
        ledger, now, reason = self._ports.ledger, self._ports.clock.now(), failure.meaning.reason
        unknown = failure.meaning.kind == "rejected"
        if batch.state in ENDED_STATES and unknown and now >= (batch.ended_at or now) + RESULTS_GONE_AFTER:
            self._ports.watcher.noticed(
                f"The results of batch {batch.id} are no longer at the provider ({reason}); its rows are asked again."
            )
            return self._harvest.settle(batch, lease)
        if batch.state in _AT_PROVIDER and self._overdue(batch, now):
            if batch.state is not BatchState.OVERDUE:
                batch = ledger.advance_batch(batch, BatchState.OVERDUE, lease=lease, at=now, detail=reason)
            if unknown:
                return ledger.advance_batch(batch, BatchState.DISCARDED, lease=lease, at=now, detail=reason)
        self._ports.watcher.noticed(f"Batch {batch.id} could not be looked at ({reason}); it is looked at again.")
        return self._postpone(batch)

    def _postpone(self, batch: Batch) -> Batch:
        """Put the next try off, whatever the batch waits for: a provider that is down is not asked each second."""
        if batch.state not in LIVE_STATES:
            return batch
        now = self._ports.clock.now()
        if batch.state in (BatchState.PLANNED, BatchState.SUBMITTING):
            # Counted, a look that failed would pass for one that was complete and did not find it.
            return self._ports.ledger.note_batch(batch, next_poll_at=now + SEND_AGAIN)
        return self._ports.ledger.note_batch(batch, next_poll_at=now + _spacing(batch), looked=True)


_AT_PROVIDER = frozenset({BatchState.SUBMITTING, BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.OVERDUE})

_ENDED = {
    Status.COMPLETED: BatchState.COMPLETED,
    Status.FAILED: BatchState.FAILED,
    Status.EXPIRED: BatchState.EXPIRED,
    Status.CANCELLED: BatchState.CANCELLED,
}


def _spacing(batch: Batch) -> timedelta:
    """Return the wait until the next look: growing, since an old batch is rarely about to end."""
    if batch.state is BatchState.CANCELLING:
        return CANCEL_POLL
    # Growth is capped before the power is taken: a batch may be looked at for days.
    return min(LONGEST_POLL, FIRST_POLL * POLL_GROWTH ** min(batch.polls, 16))
