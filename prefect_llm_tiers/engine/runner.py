"""Carries a step run out, one restartable `advance` after another.

All that waits is in the ledger: a process may die between any two lines here, and the next one that enters the
step run goes on from what was committed.
"""

from datetime import datetime, timedelta

import msgspec

from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.runs import Entry, Lease, RequestState, StepRun, StepRunState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.batch import FIRST_POLL
from prefect_llm_tiers.engine.entering import enter
from prefect_llm_tiers.engine.heartbeat import LEASE, Heartbeat
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.live import LiveLane
from prefect_llm_tiers.engine.outstanding import Outstanding
from prefect_llm_tiers.engine.planned import StoredPlan
from prefect_llm_tiers.engine.reporting import finished_at
from prefect_llm_tiers.engine.sharing import Patience, Sharing
from prefect_llm_tiers.engine.standing import Survey
from prefect_llm_tiers.engine.telling import Teller
from prefect_llm_tiers.engine.throttle import Throttle
from prefect_llm_tiers.engine.waves import Waves
from prefect_llm_tiers.errors import DeadlineMissed, LeaseLost
from prefect_llm_tiers.planning.deciding import Decision, State, decide
from prefect_llm_tiers.planning.packing import Over
from prefect_llm_tiers.planning.plan import Plan

__all__ = ["Done", "Runner", "Waiting"]

LEAST_WAIT = timedelta(seconds=1)
"""Between two looks, so that time goes on whatever the looks tell."""

DRAIN = timedelta(seconds=10)
"""How long calls in flight may still come in when a tier is looked at again or left: cut, they are asked again and
may be paid for twice."""


class Waiting(msgspec.Struct, frozen=True):
    """Nothing can be done before an instant."""

    until: datetime
    reason: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Every request of the step run has its outcome.

    Attributes:
        finished_at: When the last one came in, on the run's clock.
        late: Whether that was past the deadline.
        failed: Rows that failed, those among them that were never asked.
        reasons: Rows that were asked and failed, by reason.
        permanent: Those of the reasons for which the provider would refuse the same request again.
    """

    finished_at: datetime
    late: bool
    failed: int
    reasons: dict[str, int]
    permanent: frozenset[str] = frozenset()


class Runner:
    """One process's part in a step run.

    `enter` first, then `advance` until it returns `Done`; whoever calls waits in between as it likes.
    """

    def __init__(self, job: Job, ports: Ports) -> None:
        self._job = job
        self._ports = ports
        self._survey = Survey(job, ports)
        self._waves = Waves(job, ports, self._survey)
        self._outstanding = Outstanding(job, ports, self._survey, self._waves)
        self._plan = StoredPlan(job, ports)
        self._sharing = Sharing(ports)
        self._teller = Teller(job, ports, self._survey)
        self._throttles: dict[Tier, Throttle] = {}
        self._entry: Entry | None = None
        self._deadline: datetime | None = None
        self._epoch: int | None = None
        self._asks_failed_again = False

    def enter(self) -> StepRun:
        """Find or make the step run, and hold what it was first entered with against what is here now.

        Raises:
            DeadlineInfeasible: The deadline is past at the first entry.
            AccountChanged: The key belongs to another account than that of the first entry.
            InputChanged: The requests are not those of the first entry, and `on_input_change` is `raise`.
        """
        self._entry, run = enter(self._job, self._ports)
        # The first entry's deadline binds: a span that counts from "now" must not start again after a crash.
        self._deadline = run.deadline
        self._asks_failed_again = run.state is StepRunState.FAILED
        return run

    async def advance(self) -> Done | Waiting:
        """Do all that can be done now.

        Raises:
            DeadlineInfeasible: No plan can meet the deadline; nothing was paid.
            DeadlineMissed: The deadline passed and `on_miss` is `raise`.
            RequestRejected: The provider will never take what this step sends, or no tier is left.
            QuotaExhausted: The account has no credit left.
            CredentialsRejected: The key was refused.
        """
        ledger, now = self._ports.ledger, self._ports.clock.now()
        name = f"step:{self._job.id}"
        lease = ledger.acquire(name, owner=self._ports.owner, now=now, until=now + LEASE)
        if lease is None:
            return self._wait_for_another(name)
        async with Heartbeat(self._ports, lease) as heartbeat:
            try:
                run, self._epoch = self._take_up(lease), None
                outcome = await self._go_on(run, lease)
            except LeaseLost:
                # What came back is written down; whoever took over decides now.
                return self._wait_for_another(name)
            else:
                # Only an advance that ended well leaves nothing behind that the next has to take up.
                self._epoch = lease.epoch
                return outcome
            finally:
                ledger.release(heartbeat.lease)

    def _wait_for_another(self, name: str) -> Waiting:
        holder, now = self._ports.ledger.lease(name), self._ports.clock.now()
        # Never longer than a lease lasts: where the clock was set back its end is an hour off.
        until = min(max(holder.until if holder else now, now + LEAST_WAIT), now + LEASE)
        return Waiting(until, "another process carries this step out")

    def _take_up(self, lease: Lease) -> StepRun:
        """Return the step run, in this process's hands.

        Whoever held it before is gone or has lost the lease, so calls without an outcome are nobody's. The
        lease's epoch tells whether anybody held it since this process did.
        """
        ledger, now = self._ports.ledger, self._ports.clock.now()
        run = self._current()
        if self._epoch is not None and lease.epoch <= self._epoch + 1:
            return run
        self._survey.forget()
        abandoned = ledger.abandon_calls(run=run, lease=lease, at=now)
        if abandoned:
            self._ports.watcher.noticed(
                f"{abandoned:,} calls of step {run.step!r} were in flight when an earlier process ended; they are "
                "listed as billed_unknown and asked again."
            )
        if self._entry is not None and run.key_digest != self._entry.key_digest:
            run = ledger.rebase(run, self._entry, lease=lease)
        if run.state is StepRunState.FAILED and self._asks_failed_again:
            ledger.forget_failures(run, lease=lease, at=now)
            run = ledger.finish(self._current(), StepRunState.RUNNING, lease=lease, at=now)
        # Those that fail from now on, whoever asked them, failed within this entry.
        self._asks_failed_again = False
        return run

    def _current(self) -> StepRun:
        run = self._ports.ledger.step_run(self._job.id)
        assert run is not None  # `enter` made it, and nothing deletes step runs
        return run

    async def _go_on(self, run: StepRun, lease: Lease) -> Done | Waiting:
        ports = self._ports
        while True:
            batches = await self._outstanding.tend()
            run = self._current()
            self._survey.refresh(run, lease)
            if self._outstanding.attach(run):
                continue
            run, plan = self._plan.read(run, self._survey, lease=lease)
            self._teller.tell(run, batches, deadline=self._deadline)
            remaining = self._survey.count(RequestState.OPEN, RequestState.OUT)
            if not remaining:
                return await self._finish(run, batches, lease)
            if run.state is not StepRunState.RUNNING:
                run = ports.ledger.finish(run, StepRunState.RUNNING, lease=lease, at=ports.clock.now())
            if self._missed():
                # A cancel that came too late brings the answers instead.
                await self._outstanding.cancel(batches)
                self._survey.refresh(run, lease)
                if remaining := self._survey.count(RequestState.OPEN, RequestState.OUT):
                    raise self._missed_error(remaining)
                return await self._finish(run, [], lease)
            run, plan = self._plan.without_batch(run, plan, self._outstanding.barren(), lease=lease)
            decision = decide(plan, self._state(run, remaining, batches))
            patience = self._sharing.patience(plan, run, remaining)
            only_theirs = not batches and not self._survey.count(RequestState.OPEN)
            if only_theirs and (patience.lasts or decision.tier is Tier.BATCH):
                # Nothing is asked in another tier for what others are asking already.
                return self._wait([], patience.until, "other runs ask what is left")
            run = self._switch(run, decision, lease)
            if decision.tier is Tier.BATCH:
                waiting = await self._go_on_in_batch(run, plan, decision, lease)
            else:
                waiting = await self._go_on_live(run, plan, decision, patience, batches=batches, lease=lease)
            if waiting is not None:
                return waiting

    async def _go_on_in_batch(self, run: StepRun, plan: Plan, decision: Decision, lease: Lease) -> Waiting | None:
        """Send in batches what is open; return None where there is something to look at again."""
        outstanding = self._outstanding
        held = None
        if self._survey.count(RequestState.OPEN):
            packed = self._waves.pack(run, lease)
            if packed.refused and not (packed.planned or packed.held_until or outstanding.out()):
                # All that is left is more than a batch may enqueue: another tier takes it, or nothing does.
                if not self._plan.without_room(run, plan, lease=lease):
                    self._waves.fail(packed.refused, Over.TOKENS, run, lease)
                return None
            if packed.again:
                return None
            held = packed.held_until
        if await outstanding.send(until=self._bound(decision.review_at)):
            return None
        await outstanding.tend_others()
        out = outstanding.out()
        if self._survey.out_in - {batch.id for batch in out}:
            # Another process settled one since the rows were looked at: nothing would wake this one for it.
            return None
        return self._wait(out, decision.review_at, "a batch is out", held)

    async def _go_on_live(
        self, run: StepRun, plan: Plan, decision: Decision, patience: Patience, *, batches: list[Batch], lease: Lease
    ) -> Waiting | None:
        """Ask live what is open; return None where there is something to look at again."""
        theirs = self._sharing.theirs(run, batches)
        if theirs and not patience.lasts:
            self._sharing.told(run, batches=theirs)
            theirs = []
        leaving = [batch for batch in batches if batch not in theirs]
        cancelling = await self._outstanding.leave(run, leaving, start_by=decision.start_by, lease=lease)
        if cancelling:
            return self._wait(cancelling, decision.start_by, "a cancel is not final yet")
        self._survey.refresh(run, lease)
        claimed = len(self._survey.claimed())
        unclaimed = bool(self._survey.count(RequestState.OPEN))
        if not unclaimed and (patience.lasts or not claimed):
            if not self._survey.count(RequestState.OUT):
                return None
            await self._outstanding.tend_others()
            return self._wait(theirs, patience.until, "other runs ask what is left")
        # What nobody asks comes first, however late it is: two runs in a hurry share the work and do not double it.
        share = patience.lasts or unclaimed
        if not share:
            self._sharing.told(run, calls=claimed)
        until = self._bound(decision.review_at, patience.until if theirs else None)
        if await self._ask_live(run, decision.tier, lease, until=until, share=share):
            self._plan.without_tier(self._current(), plan, decision.tier, lease=lease)
        return None

    def _wait(self, batches: list[Batch], review_at: datetime | None, reason: str, *others: datetime | None) -> Waiting:
        now = self._ports.clock.now()
        # One that has no next look is in the hands of another process.
        looks = [batch.next_poll_at or now + FIRST_POLL for batch in batches]
        if len(self._survey.claimed()):
            looks.append(self._sharing.next_look())
        bounds = [*looks, *(bound for bound in (review_at, self._raise_at(), *others) if bound is not None)]
        return Waiting(max(min(bounds, default=now + FIRST_POLL), now + LEAST_WAIT), reason)

    def _bound(self, *instants: datetime | None) -> datetime | None:
        """Return when to decide again at the latest, None: only when something happens."""
        bounds = [bound for bound in (*instants, self._raise_at()) if bound is not None]
        return max(min(bounds), self._ports.clock.now() + LEAST_WAIT) if bounds else None

    def _state(self, run: StepRun, remaining: int, batches: list[Batch]) -> State:
        return State(
            now=self._ports.clock.now(),
            step=run.step,
            tier=run.tier,
            remaining=remaining,
            batch_out=bool(batches),
            batch_tried=self._waves.tried(),
        )

    def _switch(self, run: StepRun, decision: Decision, lease: Lease) -> StepRun:
        """Record the tier before anything follows from it: the first record binds every process."""
        if run.tier is decision.tier:
            return run
        now, before = self._ports.clock.now(), run.tier
        run = self._ports.ledger.record_tier(run, decision.tier, lease=lease, at=now, detail=decision.reason)
        crash_point("step.switched")
        self._ports.watcher.switched(step=run.step, before=before, after=decision.tier, at=now, reason=decision.reason)
        return run

    async def _ask_live(self, run: StepRun, tier: Tier, lease: Lease, *, until: datetime | None, share: bool) -> bool:
        """Ask what is open in a live tier; return whether the provider turned out not to offer it."""
        self._sharing.moved()
        throttle = self._throttles.setdefault(
            tier,
            Throttle(
                self._ports.clock,
                ceiling=self._job.rate.concurrency,
                requests_per_minute=self._job.rate.requests_per_minute,
            ),
        )
        raise_at = self._raise_at()
        cut_at = until + DRAIN if until is not None else None
        lane = LiveLane(
            self._job,
            self._ports,
            run=run,
            tier=tier,
            lease=lease,
            throttle=throttle,
            until=until,
            cut_at=min(cut_at, raise_at) if cut_at is not None and raise_at is not None else cut_at,
            not_before=self._survey.not_before(run),
            share=share,
            settled=self._teller.live(run, deadline=self._deadline),
        )
        return (await lane.run(self._survey.to_ask(run, share=share))).tier_unsupported

    # Deadline and end

    def _raise_at(self) -> datetime | None:
        """Return the instant at which a missed deadline ends the step, None where it does not."""
        return self._deadline if self._job.on_miss == "raise" else None

    def _missed(self) -> bool:
        raise_at = self._raise_at()
        return raise_at is not None and self._ports.clock.now() >= raise_at

    def _missed_error(self, remaining: int) -> DeadlineMissed:
        return DeadlineMissed(
            f"Step {self._job.step!r} was due at {self._deadline:%Y-%m-%d %H:%M}Z and {remaining:,} of "
            f"{len(self._job.spool.distinct):,} requests are unanswered. What came back is kept, and batches that are "
            "out were cancelled and are harvested by the next run. Pass on_miss='finish' to go on past the deadline."
        )

    async def _finish(self, run: StepRun, batches: list[Batch], lease: Lease) -> Done:
        failed = self._survey.rows_failed() + self._job.unasked
        state = StepRunState.FAILED if failed > self._job.max_failed else StepRunState.COMPLETED
        ledger, now = self._ports.ledger, self._ports.clock.now()
        if run.state is not state:
            if run.state is not StepRunState.RUNNING:
                # It ended otherwise under another `max_failed`; the ledger knows no way from one end to the other.
                run = ledger.finish(run, StepRunState.RUNNING, lease=lease, at=now)
            run = ledger.finish(run, state, lease=lease, at=now)
            crash_point("step.finished")
        # After the end is on record: what is done for others does not make this step late. A batch that is out
        # carries only what was answered elsewhere meanwhile.
        await self._outstanding.cancel(batches)
        await self._outstanding.tend_others()
        # A replay of a run that was finished in time is not late.
        ended = finished_at(self._ports.ledger, run) or self._ports.clock.now()
        return Done(
            finished_at=ended,
            late=self._deadline is not None and ended > self._deadline,
            failed=failed,
            reasons=dict(self._survey.reasons()),
            permanent=frozenset(self._survey.permanent),
        )
