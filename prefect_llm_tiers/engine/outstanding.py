"""The batches of a step run: chosen, looked after, waited for, left."""

from datetime import datetime, timedelta

from prefect_llm_tiers.core.batches import LIVE_STATES, Batch, BatchState
from prefect_llm_tiers.core.runs import Lease, RequestState, StepRun
from prefect_llm_tiers.engine.batch import BatchLane
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.standing import Survey
from prefect_llm_tiers.errors import IllegalTransition
from prefect_llm_tiers.planning.packing import Sized, pack

__all__ = ["Outstanding"]

LINE_OVERHEAD = 200
"""Bytes that a batch line adds to its body: custom_id, method, url, braces."""

LONGEST_PASS = timedelta(seconds=60)
"""After so long a pass over many batches is broken off, for a decision: a provider that stalls must not take the
time that the rows need elsewhere. What was not looked at is due at the next pass."""

_HOLDING = LIVE_STATES - {BatchState.OVERDUE}
"""States in which a batch holds its rows."""


class Outstanding:
    """What a step run has out at the provider, as the ledger tells it at every look."""

    def __init__(self, job: Job, ports: Ports, survey: Survey) -> None:
        self._job = job
        self._ports = ports
        self._survey = survey
        self._lane = BatchLane(job, ports)

    def out(self) -> list[Batch]:
        """Return the batches that the run waits for."""
        return [batch for batch in self._ports.ledger.batches_of(self._job.id) if batch.state in _HOLDING]

    def tried(self) -> bool:
        """Return whether a batch of the run has ended."""
        batches = self._ports.ledger.batches_of(self._job.id, left=True)
        return any(batch.state is BatchState.SETTLED for batch in batches)

    def barren(self) -> list[Batch]:
        """Return the run's batches that came to nothing: failed as a whole, lost, or ended without an answer."""
        return [batch for batch in self._ports.ledger.batches_of(self._job.id, left=True) if _came_to_nothing(batch)]

    async def tend(self) -> list[Batch]:
        """Take every batch of the run that was sent as far as it goes; return those that are still out."""
        began = self._ports.clock.now()
        for batch in self._ports.ledger.batches_of(self._job.id):
            if batch.state in LIVE_STATES - {BatchState.PLANNED}:
                await self._lane.tend(batch)
            if self._ports.clock.now() - began >= LONGEST_PASS:
                break
        return self.out()

    async def send(self, *, until: datetime | None) -> bool:
        """Send the planned batches whose time has come; return whether there was one."""
        began, sent = self._ports.clock.now(), False
        for batch in self.out():
            if batch.state is BatchState.PLANNED:
                sent |= await self._lane.tend(batch, until=until) != batch
            if self._ports.clock.now() - began >= LONGEST_PASS:
                break
        return sent

    async def tend_others(self) -> None:
        """Harvest what nobody waits for any more: batches of dead runs, and those that were left.

        Results expire, so whoever comes by takes them, and finds out what became of a submission that nobody
        confirmed. A batch that was not sent is its own run's, which alone can build it.
        """
        ledger, began = self._ports.ledger, self._ports.clock.now()
        waited_for = {batch.id for batch in ledger.batches_of(self._job.id)}
        for batch in ledger.live_batches():
            ours = (batch.provider, batch.account) == (self._ports.provider.name, self._job.account)
            if ours and batch.id not in waited_for and batch.state is not BatchState.PLANNED:
                await self._lane.tend(batch)
            if self._ports.clock.now() - began >= LONGEST_PASS:
                return

    def attach(self) -> bool:
        """Wait also for batches of other runs that carry requests of this one: they are paid for.

        Returns:
            Whether there were any.
        """
        found = self._survey.out_in - {batch.id for batch in self.out()}
        for batch_id in found:
            self._ports.ledger.attach(batch_id, step_run_id=self._job.id)
        return bool(found)

    def pack(self, run: StepRun, lease: Lease) -> None:
        """Choose the batches that carry what is open; `send` sends them.

        Stops where another run claimed one of the requests since they were looked at: they are looked at again.
        """
        limits, spool, ledger = self._job.capabilities.batch, self._job.spool, self._ports.ledger
        assert limits is not None  # the plan has no batch without limits
        sizes = (
            Sized(position, spool.length(position) + LINE_OVERHEAD)
            for position in self._survey.positions(RequestState.OPEN).tolist()
        )
        for chunk in pack(sizes, limits):
            keys = spool.keys(chunk.positions)
            if chunk.too_large:
                reasons = [(key, "larger_than_a_batch") for key in keys]
                ledger.fail(reasons, run=run, lease=lease, stamp=self._ports.clock.wall())
                continue
            try:
                ledger.plan_batch(
                    keys,
                    run=run,
                    provider=self._ports.provider.name,
                    account=self._job.account,
                    model=self._job.model,
                    endpoint=self._job.endpoint,
                    lease=lease,
                    at=self._ports.clock.now(),
                )
            except IllegalTransition:
                if any(one.batch_id is not None for one in ledger.stand(keys, step_run_id=run.id, not_before=None)):
                    return
                raise

    async def leave(
        self, run: StepRun, batches: list[Batch], *, start_by: datetime | None, lease: Lease
    ) -> list[Batch]:
        """Stop the batches of a run that goes on live; return those to wait for until `start_by`.

        A batch that others wait for is left to them. One that may not have arrived is left at once: its rows
        go live, and if it comes in after all, both are priced. Past `start_by` nothing is waited for.
        """
        ledger, clock = self._ports.ledger, self._ports.clock
        began = clock.now()
        for batch in batches:
            if clock.now() - began >= LONGEST_PASS:
                break
            others = [run_id for run_id in ledger.waiting_for(batch.id) if run_id != run.id]
            if others or batch.state is BatchState.SUBMITTING:
                ledger.leave(batch.id, run=run, lease=lease, at=clock.now())
            elif batch.state in (BatchState.PLANNED, BatchState.IN_PROGRESS):
                await self._lane.cancel(batch)
        out = self.out()
        if start_by is not None and clock.now() < start_by:
            return out
        for batch in out:
            ledger.leave(batch.id, run=run, lease=lease, at=clock.now())
        return []

    async def cancel(self, batches: list[Batch]) -> None:
        """Ask for every batch to be stopped that nobody else waits for."""
        for batch in batches:
            if all(run_id == self._job.id for run_id in self._ports.ledger.waiting_for(batch.id)):
                await self._lane.cancel(batch)


def _came_to_nothing(batch: Batch) -> bool:
    if batch.error_codes or batch.state is BatchState.OVERDUE:
        return True
    over = batch.state in (BatchState.SETTLED, BatchState.DISCARDED)
    return over and batch.submitted_at is not None and batch.cancel_at is None and not batch.counts.completed
