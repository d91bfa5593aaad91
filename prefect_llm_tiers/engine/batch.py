"""The batch lane: submit once, look now and then, harvest whatever way a batch ends.

Every method takes a batch one step further and leaves it in the ledger as it is then; nothing about a batch
is remembered here between two calls.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import assert_never

from prefect_llm_tiers.core.batches import ENDED_STATES, LIVE_STATES, Batch, BatchState, ProviderBatch
from prefect_llm_tiers.core.batches import ProviderBatchStatus as Status
from prefect_llm_tiers.core.ports import CallFailed
from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.harvest import INCOMPLETE_FOR, Harvest
from prefect_llm_tiers.engine.heartbeat import LEASE, Heartbeat
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.looks import (
    CANCEL_POLL,
    FIRST_POLL,
    LONGEST_POLL,
    SEARCH_AGAIN,
    is_due,
    next_look,
    next_search,
    to_be_searched,
    was_looked_at,
)
from prefect_llm_tiers.engine.recovery import (
    Match,
    Search,
    Verdict,
    limits_of,
    look_for,
    proven_absent_at,
    search,
)
from prefect_llm_tiers.engine.submission import Submission
from prefect_llm_tiers.errors import IllegalTransition, LeaseLost

__all__ = ["FIRST_POLL", "LONGEST_POLL", "BatchLane"]

SEND_AGAIN = timedelta(minutes=2)
"""Between two tries to upload a batch to a provider that is down."""

OVERDUE_AFTER = timedelta(hours=1)

OVERDUE_AGAIN = timedelta(minutes=30)
"""Between two searches for an overdue batch: its rows are released, and each one reads a list and every candidate."""

SEARCHED_AFTER = timedelta(days=1)
"""How long a batch that was never found is searched for beyond its window where the list cannot be read."""

GONE_AFTER = timedelta(hours=1)
"""How long an overdue batch, or the results of an ended one, may be unknown to the provider before they are given
up; for minutes after a start or an end that is known to happen."""


class BatchLane:
    """Looks after batches, of whatever run.

    Args:
        ports: The outside world.
        submission: Sends those that are planned; None where nothing is to be sent.
    """

    def __init__(self, ports: Ports, submission: Submission | None = None) -> None:
        self._ports = ports
        self._submission = submission
        self._harvest = Harvest(ports)
        self._no_list_before: datetime | None = None

    async def tend(self, batch: Batch, *, until: datetime | None = None, at_once: bool = False) -> Batch:
        """Take a batch as far as it goes now.

        Nothing happens before its next look is due, or while another process tends it.

        Args:
            batch: The batch.
            until: When its rows are needed elsewhere: an upload or a harvest that is not over by then is cut.
            at_once: Whether to look now, whenever its next look is due.

        Raises:
            RequestRejected: The provider will never take this batch.
            QuotaExhausted: The account has no credit left.
            CredentialsRejected: The key was refused.
        """
        if not at_once and not is_due(batch, self._ports.clock.now()):
            return batch
        lease = self._acquire(batch)
        if lease is None:
            return batch
        ledger = self._ports.ledger
        async with Heartbeat(self._ports, lease) as heartbeat:
            try:
                before = ledger.batch(batch.id)
                try:
                    after = await self._advance(before, heartbeat, until)
                except IllegalTransition:
                    # Whoever lost the lease may still add what it knows: decided anew, once, on what is there now.
                    after = await self._advance(ledger.batch(batch.id), heartbeat, until)
                limits = limits_of(after, self._ports)
                if to_be_searched(before, after, marked=limits is not None and limits.metadata):
                    await self._search_again(after)
                    after = ledger.batch(batch.id)
            except CallFailed as failure:
                try:
                    return self._unseen(ledger.batch(batch.id), failure, lease)
                except LeaseLost:
                    return ledger.batch(batch.id)
            except LeaseLost:
                # Another process is at it now; the step run is still ours.
                return ledger.batch(batch.id)
            else:
                return after
            finally:
                ledger.release(heartbeat.lease)

    async def cancel(self, batch: Batch, *, until: datetime | None = None) -> Batch:
        """Ask the provider to stop a batch; what it has finished is harvested when the cancel is final.

        Args:
            batch: The batch.
            until: When its rows are needed elsewhere: should it have ended, its harvest is cut then.
        """
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
                return await self._cancel(batch, lease, until) if batch.state is BatchState.IN_PROGRESS else batch
            except CallFailed as failure:
                self._ports.watcher.noticed(
                    f"Batch {batch.id} could not be cancelled ({failure.meaning.reason}); it is tried again."
                )
                return self._postpone(self._ports.ledger.batch(batch.id))
            except (LeaseLost, IllegalTransition):
                return self._ports.ledger.batch(batch.id)
            finally:
                self._ports.ledger.release(heartbeat.lease)

    async def _cancel(self, batch: Batch, lease: Lease, until: datetime | None) -> Batch:
        """Write down that a batch is to stop, then ask for it: whoever looks at it next asks again if it was lost."""
        now, provider_batch_id = self._ports.clock.now(), batch.provider_batch_id
        assert provider_batch_id is not None  # IN_PROGRESS is entered with it
        batch = self._ports.ledger.advance_batch(
            batch, BatchState.CANCELLING, lease=lease, at=now, next_poll_at=now + CANCEL_POLL
        )
        crash_point("batch.cancel.recorded")
        seen = await self._ports.provider.cancel_batch(provider_batch_id)
        crash_point("batch.cancel.sent")
        return await self._seen(batch, seen, lease, until)

    def _acquire(self, batch: Batch) -> Lease | None:
        now = self._ports.clock.now()
        return self._ports.ledger.acquire(f"batch:{batch.id}", owner=self._ports.owner, now=now, until=now + LEASE)

    async def _advance(self, batch: Batch, heartbeat: Heartbeat, until: datetime | None) -> Batch:
        lease = heartbeat.lease
        match batch.state:
            case BatchState.PLANNED:
                return await self._submission.send(batch, heartbeat, until=until) if self._submission else batch
            case BatchState.SUBMITTING:
                return await self._recover(batch, lease, until)
            case BatchState.IN_PROGRESS | BatchState.CANCELLING | BatchState.OVERDUE:
                return await self._look(batch, lease, until)
            case BatchState.COMPLETED | BatchState.FAILED | BatchState.EXPIRED | BatchState.CANCELLED:
                return await self._take(batch, lease, until)
            case BatchState.SETTLED | BatchState.DISCARDED:
                return batch
            case _:
                assert_never(batch.state)

    # Recovery

    async def _recover(self, batch: Batch, lease: Lease, until: datetime | None) -> Batch:
        """Find out what became of a submission that nobody confirmed."""
        ledger, now = self._ports.ledger, self._ports.clock.now()
        if batch.provider_batch_id is not None:
            # Confirmed by a process that had lost the lease by then.
            return ledger.advance_batch(
                batch, BatchState.IN_PROGRESS, lease=lease, at=now, next_poll_at=now, detail="confirmed late"
            )
        batch = ledger.doubt(batch)
        found = await look_for(batch, self._ports)
        crash_point("batch.searched")
        now = self._ports.clock.now()
        match found.verdict:
            case Verdict.FOUND:
                return await self._found(batch, found.matches, lease, until)
            case Verdict.ABSENT:
                # Sent again only where somebody still waits for it.
                after = BatchState.PLANNED if ledger.waiting_for(batch.id) else BatchState.DISCARDED
                batch = ledger.advance_batch(
                    batch, after, lease=lease, at=now, detail="proven absent: listed twice, complete"
                )
                crash_point("batch.absent")
                return batch
            case Verdict.AMBIGUOUS:
                if self._overdue(batch, now):
                    return ledger.advance_batch(
                        batch, BatchState.OVERDUE, lease=lease, at=now, detail="never found, window over"
                    )
                return ledger.note_batch(batch, next_poll_at=found.look_again_at, looked=found.complete)
            case _:
                assert_never(found.verdict)

    async def _found(self, batch: Batch, matches: Sequence[Match], lease: Lease, until: datetime | None) -> Batch:
        """Take the first match for the batch, and every other one for a copy of it."""
        now = self._ports.clock.now()
        first, *others = matches
        batch = self._ports.ledger.advance_batch(
            batch,
            BatchState.IN_PROGRESS,
            lease=lease,
            at=now,
            provider_batch=first.batch,
            next_poll_at=now + FIRST_POLL,
            detail="found after a submission that was not confirmed",
        )
        crash_point("batch.found")
        for match in others:
            await self._keep_copy(batch, match)
        return await self._judge(batch, first.batch, lease, until)

    async def _keep_copy(self, batch: Batch, match: Match) -> None:
        """Write a copy of a batch down, stop it, and take what it finished: it was paid for."""
        copy = self._ports.ledger.note_copy(batch, match.batch, token=match.token, at=self._ports.clock.now())
        crash_point("batch.copy.recorded")
        self._ports.watcher.noticed(
            f"The provider has batch {batch.id} a second time, as batch {copy.id} of this ledger; that one is stopped, "
            "and what it finished is kept and priced."
        )
        await self.tend(copy, at_once=True)

    async def _search_again(self, batch: Batch) -> None:
        """Look whether the provider has a batch once more.

        A create may land late, after it was given up, and something in between may have sent it twice.
        """
        ledger, over = self._ports.ledger, batch.state not in LIVE_STATES
        if self._no_list_before is not None and self._ports.clock.now() < self._no_list_before:
            # A list that stalls is not waited for once with every batch: rows wait for the next one.
            found = Search(matches=(), complete=False)
        else:
            found = await search(batch, self._ports)
            self._no_list_before = self._ports.clock.now() + SEARCH_AGAIN if found.stalled else None
        # One that failed at once ended before a list need show another one of it.
        early = batch.state is BatchState.FAILED and self._ports.clock.now() < proven_absent_at(batch, self._ports)
        if found.matches or early or ((over or batch.state in ENDED_STATES) and not found.complete):
            batch = ledger.doubt(batch)
        for match in found.matches:
            await self._keep_copy(batch, match)
        if over and batch.doubtful:
            ledger.note_batch(batch, next_poll_at=next_search(batch, self._ports.clock.now()), looked=True)

    # Looking

    async def _look(self, batch: Batch, lease: Lease, until: datetime | None) -> Batch:
        if batch.provider_batch_id is None:
            return await self._look_for_overdue(batch, lease, until)
        seen = await self._ports.provider.retrieve_batch(batch.provider_batch_id)
        crash_point("batch.looked")
        return await self._judge(batch, seen, lease, until)

    async def _judge(self, batch: Batch, seen: ProviderBatch, lease: Lease, until: datetime | None) -> Batch:
        """Stop a batch that runs for nobody; else draw the consequences of the look."""
        running = batch.state is BatchState.IN_PROGRESS and seen.status is Status.IN_PROGRESS
        if running and not self._ports.ledger.waiting_for(batch.id):
            # A copy, or one that was left before anybody knew of it: what it goes on doing nobody needs.
            return await self._cancel(batch, lease, until)
        if batch.state is BatchState.CANCELLING and seen.status is Status.IN_PROGRESS:
            with contextlib.suppress(CallFailed):
                seen = await self._ports.provider.cancel_batch(seen.id)
        return await self._seen(batch, seen, lease, until)

    async def _look_for_overdue(self, batch: Batch, lease: Lease, until: datetime | None) -> Batch:
        """Search once more for a batch that was never found, and give it up when nothing can be it any more."""
        ledger = self._ports.ledger
        found = await search(batch, self._ports)
        now = self._ports.clock.now()
        if found.matches:
            first, *others = found.matches
            batch = ledger.note_batch(batch, provider_batch=first.batch)
            for match in others:
                await self._keep_copy(batch, match)
            return await self._seen(batch, first.batch, lease, until) if batch.provider_batch_id else batch
        if found.complete or self._overdue(batch, now - SEARCHED_AFTER):
            if not found.complete:
                # Nothing ever told that it was not taken.
                self._harvest.may_be_billed(batch)
            return ledger.advance_batch(
                batch, BatchState.DISCARDED, lease=lease, at=now, detail="never confirmed and never found"
            )
        return ledger.note_batch(batch, next_poll_at=now + OVERDUE_AGAIN, looked=True)

    async def _seen(self, batch: Batch, seen: ProviderBatch, lease: Lease, until: datetime | None) -> Batch:
        """Draw the consequences of a look at a batch."""
        ledger, now = self._ports.ledger, self._ports.clock.now()
        if batch.state is BatchState.IN_PROGRESS and seen.status in (Status.CANCELLING, Status.CANCELLED):
            # By a process that died right after it asked, or by hand, at the provider's own pages.
            batch = ledger.advance_batch(
                batch, BatchState.CANCELLING, lease=lease, at=now, provider_batch=seen, detail="stopped at the provider"
            )
        if seen.status.ended and (_readable(seen) or now >= (seen.ended_at or now) + INCOMPLETE_FOR):
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
            crash_point("batch.ended")
            return await self._take(batch, lease, until)
        if batch.state is not BatchState.OVERDUE and self._overdue(batch, now):
            batch = ledger.advance_batch(batch, BatchState.OVERDUE, lease=lease, at=now, provider_batch=seen)
            self._ports.watcher.noticed(
                f"Batch {batch.id} is still out an hour after its window; its rows are asked elsewhere."
            )
        return ledger.note_batch(batch, provider_batch=seen, next_poll_at=next_look(batch, now))

    async def _take(self, batch: Batch, lease: Lease, until: datetime | None) -> Batch:
        """Harvest an ended batch, for no longer than its rows can wait."""
        clock = self._ports.clock
        left_s = None if until is None else max((until - clock.now()).total_seconds(), 0.0)
        try:
            async with asyncio.timeout(left_s):
                reading = await self._harvest.read(batch)
        except TimeoutError:
            self._ports.watcher.noticed(
                f"Batch {batch.id} was not read to its end in the time there is; what was read is kept, and the rest "
                "is read later."
            )
            return self._ports.ledger.note_batch(batch, next_poll_at=clock.now())
        if reading is None:
            return self._ports.ledger.batch(batch.id)
        if batch.copy_of is None and batch.submitted_at is not None:
            # Before it is settled: nobody looks after it then, and whoever died in between would not have searched.
            await self._search_again(batch)
        batch = self._harvest.finish(batch, lease, reading)
        if not batch.doubtful:
            return batch
        now = clock.now()
        return self._ports.ledger.note_batch(batch, next_poll_at=next_search(batch, now), looked=True)

    def _overdue(self, batch: Batch, now: datetime) -> bool:
        limits = limits_of(batch, self._ports)
        since = batch.submitted_at or batch.submitting_at
        return limits is not None and since is not None and now >= since + limits.window + OVERDUE_AFTER

    def _unseen(self, batch: Batch, failure: CallFailed, lease: Lease) -> Batch:
        """Draw the consequence of a look that told nothing.

        A batch that nobody can see an hour after its window is overdue like any other; one that the provider says
        for an hour then that it does not know is given up, and so are results that it no longer has. What was
        given up was confirmed once, so that it may be billed.
        """
        ledger, now, reason = self._ports.ledger, self._ports.clock.now(), failure.meaning.reason
        unknown = failure.meaning.kind == "rejected"
        if batch.state in ENDED_STATES and unknown and now >= self._harvest.since(batch) + GONE_AFTER:
            self._ports.watcher.noticed(
                f"The results of batch {batch.id} are no longer at the provider ({reason}); its rows are asked again."
            )
            return self._harvest.give_up(batch, lease)
        # One failure after a day in which nobody looked says nothing: its results may wait there.
        if batch.state in _AT_PROVIDER and self._overdue(batch, now) and was_looked_at(batch, now):
            if batch.state is not BatchState.OVERDUE:
                batch = ledger.advance_batch(batch, BatchState.OVERDUE, lease=lease, at=now, detail=reason)
            elif unknown and now >= self._harvest.since(batch) + GONE_AFTER:
                self._harvest.may_be_billed(batch)
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
        return self._ports.ledger.note_batch(batch, next_poll_at=next_look(batch, now), looked=True)


_AT_PROVIDER = frozenset({BatchState.SUBMITTING, BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.OVERDUE})

_ENDED = {
    Status.COMPLETED: BatchState.COMPLETED,
    Status.FAILED: BatchState.FAILED,
    Status.EXPIRED: BatchState.EXPIRED,
    Status.CANCELLED: BatchState.CANCELLED,
}


def _readable(seen: ProviderBatch) -> bool:
    return seen.results_ready or seen.status is Status.FAILED
