"""The plan of a step run: made once, stored, and cut down to what turns out to be there."""

import dataclasses
from collections.abc import Callable

import msgspec

from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.runs import Lease, RequestState, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.beliefs import Beliefs
from prefect_llm_tiers.engine.forecast import problem_of
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.offered import learn_unsupported
from prefect_llm_tiers.engine.standing import Survey
from prefect_llm_tiers.engine.waves import met_ceiling
from prefect_llm_tiers.errors import RequestRejected
from prefect_llm_tiers.planning.making import plan as make_plan
from prefect_llm_tiers.planning.plan import Plan, StepPlan, decode_plan, encode_plan

__all__ = ["StoredPlan"]

MOST_FAILED_BATCHES = 3
"""Batches that may come to nothing before the step stops sending any."""


class StoredPlan:
    """A step run's plan, as the ledger holds it."""

    def __init__(self, job: Job, ports: Ports) -> None:
        self._job = job
        self._ports = ports

    def read(self, run: StepRun, survey: Survey, *, lease: Lease) -> tuple[StepRun, Plan]:
        """Return the plan that the first entry stored, or make and store it before anything is paid.

        Raises:
            DeadlineInfeasible: No allowed tier can meet the deadline.
        """
        job, ports = self._job, self._ports
        unsettled = survey.positions(RequestState.OPEN, RequestState.OUT)
        stored = decode_plan(run.plan) if run.plan is not None else None
        # A plan made when nothing was left to ask knows nothing of what a later entry brings.
        if stored is not None and (stored.step(run.step).requests or not len(unsettled)):
            return run, stored
        now = ports.clock.now()
        problem = problem_of(
            # The first entry's: a span that counts from "now" must not start again after a crash.
            dataclasses.replace(job, deadline=run.deadline),
            Beliefs(ports.ledger, now),
            provider=ports.provider.name,
            now=now,
            remaining=len(unsettled),
            answered=len(job.spool.distinct) - len(unsettled),
            input_bytes=job.spool.body_bytes(unsettled),
        )
        plan = make_plan(problem, infeasible=job.infeasible if len(unsettled) else "best_effort")
        ports.watcher.planned(plan)
        run = self._store(run, plan, lease)
        crash_point("step.planned")
        return run, plan

    def without_batch(self, run: StepRun, plan: Plan, failed: list[Batch], *, lease: Lease) -> tuple[StepRun, Plan]:
        """Give batch up when one after another comes to nothing: failed as a whole, lost, or without an answer.

        Raises:
            RequestRejected: No other tier is allowed.
        """
        # One that found no room is sent again in a smaller wave.
        failed = [batch for batch in failed if not met_ceiling(batch)]
        if len(failed) < MOST_FAILED_BATCHES or plan.step(run.step).batch is None:
            return run, plan
        codes = sorted({code for batch in failed for code in batch.error_codes}) or ["no answers"]
        self._ports.watcher.noticed(
            f"{len(failed)} batches of step {run.step!r} came to nothing ({', '.join(codes)}); no more are sent."
        )
        return self._restrict(run, plan, lambda step: msgspec.structs.replace(step, batch=None), lease)

    def without_room(self, run: StepRun, plan: Plan, *, lease: Lease) -> bool:
        """Give batch up for requests that are more than may be enqueued; return whether another tier takes them."""
        step = plan.step(run.step)
        if not step.sure and step.flex is None:
            return False
        self._ports.watcher.noticed(
            f"The requests of step {run.step!r} that are left are each more than the provider lets be enqueued; they "
            "are asked live."
        )
        self._restrict(run, plan, lambda step: msgspec.structs.replace(step, batch=None), lease)
        return True

    def without_tier(self, run: StepRun, plan: Plan, tier: Tier, *, lease: Lease) -> tuple[StepRun, Plan]:
        """Give a live tier up that the provider does not offer for the model after all.

        Raises:
            RequestRejected: No other tier is allowed.
        """
        job = self._job
        news = learn_unsupported(
            tier, flow_run_id=job.flow_run_id, account=job.account, model=job.model, endpoint=job.endpoint
        )
        if news:
            self._ports.watcher.noticed(
                f"The provider does not offer {tier} for model {job.model!r}; it is not asked for again in this run."
            )

        def restrict(step: StepPlan) -> StepPlan:
            sure = tuple((name, law) for name, law in step.sure if name is not tier)
            return msgspec.structs.replace(step, sure=sure, flex=None if tier is Tier.FLEX else step.flex)

        return self._restrict(run, plan, restrict, lease)

    def _restrict(
        self, run: StepRun, plan: Plan, restrict: Callable[[StepPlan], StepPlan], lease: Lease
    ) -> tuple[StepRun, Plan]:
        steps = tuple(restrict(step) if step.name == run.step else step for step in plan.steps)
        plan = msgspec.structs.replace(plan, steps=steps)
        step = plan.step(run.step)
        if not step.sure and step.flex is None and step.batch is None:
            msg = (
                f"No tier is left for step {run.step!r} and model {self._job.model!r}: the provider does not offer "
                "those allowed, or nothing came of its batches. Answers that came back are kept. Allow another tier "
                "in tiers=, then run the flow again."
            )
            raise RequestRejected(msg)
        return self._store(run, plan, lease), plan

    def _store(self, run: StepRun, plan: Plan, lease: Lease) -> StepRun:
        return self._ports.ledger.record_plan(run, encode_plan(plan), lease=lease, at=self._ports.clock.now())
