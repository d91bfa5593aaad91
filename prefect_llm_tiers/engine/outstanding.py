"""The batches of a step run: looked after, waited for, left."""

from collections import Counter
from datetime import datetime, timedelta

from prefect_llm_tiers.core.batches import LIVE_STATES, Batch, BatchState
from prefect_llm_tiers.core.runs import Lease, RequestState, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.batch import BatchLane
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.looks import DOUBTED_FOR
from prefect_llm_tiers.engine.standing import AT_ONCE, Survey
from prefect_llm_tiers.engine.submission import Submission
from prefect_llm_tiers.engine.waves import Waves
from prefect_llm_tiers.planning.deciding import State, decide, miss_at
from prefect_llm_tiers.planning.plan import decode_plan

__all__ = ["Outstanding"]

LONGEST_PASS = timedelta(seconds=60)
"""After so long a pass over many batches is broken off, for a decision: a provider that stalls must not take the
time that the rows need elsewhere. What was not looked at is due at the next pass."""

LONGEST_READ = timedelta(minutes=10)
"""How long the results of a batch that this step does not wait for may take to be read."""

_HOLDING = LIVE_STATES - {BatchState.OVERDUE}
"""States in which a batch holds its rows."""


class Outstanding:
    """What a step run has out at the provider, as the ledger tells it at every look."""

    def __init__(self, job: Job, ports: Ports, survey: Survey, waves: Waves) -> None:
        self._job = job
        self._ports = ports
        self._survey = survey
        self._waves = waves
        self._lane = BatchLane(ports, Submission(job, ports))

    def out(self) -> list[Batch]:
        """Return the batches that the run waits for."""
        return [batch for batch in self._ports.ledger.batches_of(self._job.id) if batch.state in _HOLDING]

    def barren(self) -> list[Batch]:
        """Return the run's batches that came to nothing: failed as a whole, lost, or ended without an answer."""
        return [batch for batch in self._ports.ledger.batches_of(self._job.id, left=True) if _came_to_nothing(batch)]

    async def tend(self) -> list[Batch]:
        """Take every batch of the run that was sent as far as it goes; return those that are still out.

        A harvest that is not over when its rows are needed elsewhere is cut: it must not cost the deadline.
        """
        clock = self._ports.clock
        began = clock.now()
        needed_at = self._needed_at()
        for batch in self._ports.ledger.batches_of(self._job.id):
            if batch.state in LIVE_STATES - {BatchState.PLANNED}:
                until = None if needed_at is None else max(needed_at, clock.now() + LONGEST_PASS)
                await self._lane.tend(batch, until=until)
            if clock.now() - began >= LONGEST_PASS:
                break
        return self.out()

    def _needed_at(self) -> datetime | None:
        """Return when the plan on record needs the rows that are out elsewhere; None where nothing hurries."""
        run = self._ports.ledger.step_run(self._job.id)
        if run is None or run.plan is None:
            return None
        plan, now = decode_plan(run.plan), self._ports.clock.now()
        last = miss_at(plan, plan.step(run.step))
        if last is None:
            return None
        limits = self._job.capabilities.batch
        if now >= last:
            # Late is late: what came back and was paid for is read before it is asked again.
            return now + limits.cancel if limits is not None else None
        remaining = self._survey.count(RequestState.OPEN, RequestState.OUT)
        seen = State(
            now=now,
            step=run.step,
            tier=run.tier,
            remaining=max(remaining, 1),
            batch_out=True,
            batch_tried=self._waves.tried(),
        )
        decision = decide(plan, seen)
        return (decision.review_at if decision.tier is Tier.BATCH else decision.start_by) or now

    async def send(self, *, until: datetime | None) -> bool:
        """Send the planned batches that find room and whose time has come; return whether there was one."""
        began, sent = self._ports.clock.now(), False
        for batch in self.out():
            if batch.state is BatchState.PLANNED:
                if self._waves.outgrown(batch):
                    # Chosen before the provider said how little it takes: its rows are chosen anew.
                    sent |= await self._lane.cancel(batch) != batch
                elif self._waves.fits(batch):
                    sent |= await self._lane.tend(batch, until=until) != batch
            if self._ports.clock.now() - began >= LONGEST_PASS:
                break
        return sent

    async def tend_others(self) -> None:
        """Harvest what nobody waits for any more: batches of dead runs, and those that were left.

        Results expire, so whoever comes by takes them, and finds out what became of a submission that nobody
        confirmed. A batch that was not sent is its own run's, which alone can build it.
        """
        ledger, clock = self._ports.ledger, self._ports.clock
        began = clock.now()
        waited_for = {batch.id for batch in ledger.batches_of(self._job.id)}
        # As long as this step has nothing else to do: cut too soon each time, a large file is never read to its end.
        needed_at = self._needed_at()
        longest = began + LONGEST_READ
        until = max(longest if needed_at is None else min(needed_at, longest), began + LONGEST_PASS)
        # Those that are over and may be there a second time stand behind those that are out.
        for batch in (*ledger.live_batches(), *ledger.doubted(since=began - DOUBTED_FOR)):
            ours = (batch.provider, batch.account) == (self._ports.provider.name, self._job.account)
            waited = batch.id in waited_for and batch.state in LIVE_STATES
            if ours and not waited and batch.state is not BatchState.PLANNED:
                await self._lane.tend(batch, until=max(until, clock.now() + LONGEST_PASS))
            if clock.now() - began >= LONGEST_PASS:
                return

    def attach(self, run: StepRun) -> bool:
        """Wait also for batches of other runs that carry requests of this one: they are paid for.

        Returns:
            Whether there were any.
        """
        found = self._survey.out_in - {batch.id for batch in self.out()}
        if not found:
            return False
        carried = self._carried(run)
        for batch_id in sorted(found):
            self._ports.ledger.attach(batch_id, step_run_id=self._job.id)
            self._ports.watcher.noticed(
                f"Waiting for batch {batch_id} of another run, which carries {carried[batch_id]:,} of the requests."
            )
        return True

    def _carried(self, run: StepRun) -> Counter[int]:
        """Count the requests that are out, by the batch that carries them."""
        carried: Counter[int] = Counter()
        out = self._survey.positions(RequestState.OUT)
        for start in range(0, len(out), AT_ONCE):
            keys = self._job.spool.keys(out[start : start + AT_ONCE])
            standing = self._ports.ledger.stand(
                keys, step_run_id=self._job.id, not_before=self._survey.not_before(run), now=None
            )
            carried.update(one.batch_id for one in standing if one.batch_id is not None)
        return carried

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
                self._leave(batch, run, lease)
            elif batch.state in (BatchState.PLANNED, BatchState.IN_PROGRESS):
                await self._lane.cancel(batch, until=max(start_by or began, clock.now() + LONGEST_PASS))
        leaving = {batch.id for batch in batches}
        out = [batch for batch in self.out() if batch.id in leaving]
        if start_by is not None and clock.now() < start_by:
            return out
        for batch in out:
            self._leave(batch, run, lease)
        return []

    def _leave(self, batch: Batch, run: StepRun, lease: Lease) -> None:
        self._ports.ledger.leave(batch.id, run=run, lease=lease, at=self._ports.clock.now())
        crash_point("batch.left")

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
