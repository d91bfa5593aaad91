"""A plan without a step run: what would be asked now, and what it would cost. Nothing is sent or written."""

from prefect_llm_tiers.core.runs import RequestState
from prefect_llm_tiers.engine.beliefs import Beliefs
from prefect_llm_tiers.engine.forecast import problem_of
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.planning.making import plan as make_plan
from prefect_llm_tiers.planning.plan import Plan

__all__ = ["preview"]

AT_ONCE = 5000
_OPEN_STATES = (RequestState.OPEN, RequestState.OUT, RequestState.FAILED)


def preview(job: Job, ports: Ports) -> Plan:
    """Return the plan that a step run entered now would make.

    Raises:
        DeadlineInfeasible: No allowed tier can meet the deadline.
    """
    distinct = job.spool.distinct
    not_before = ports.clock.wall() - job.reuse_for if job.reuse_for is not None else ports.clock.wall()
    unsettled: list[int] = []
    for start in range(0, len(distinct), AT_ONCE):
        group = distinct[start : start + AT_ONCE]
        standing = ports.ledger.stand(
            job.spool.keys(group), step_run_id=job.id, not_before=not_before, now=ports.clock.now()
        )
        unsettled.extend(
            position for position, one in zip(group.tolist(), standing, strict=True) if one.state in _OPEN_STATES
        )
    now = ports.clock.now()
    problem = problem_of(
        job,
        Beliefs(ports.ledger, now),
        provider=ports.provider.name,
        now=now,
        remaining=len(unsettled),
        answered=len(distinct) - len(unsettled),
        input_bytes=sum(map(job.spool.length, unsettled)),
    )
    return make_plan(problem, infeasible=job.infeasible if unsettled else "best_effort")
