"""When to leave a tier: the latest safe start.

A cheap tier may be waited for until the last instant at which the sure tier, started then, still makes the
deadline with the chance that was asked for, after the time that leaving takes. Over a chain the sure times of
later steps are kept free: a step must be done so early that everything after it could run on its sure tier.

The chance to be late that is allowed, `1 - on_time`, is shared out: with n steps to ask, each may outrun what is
reserved for it with chance `(1 - on_time) / (n + 1)`. By Boole's inequality at least one of them does with chance
below `1 - on_time`, however they are joined. The share that is left over is for the plans that later steps make when
they start, which share out the whole of it once more.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.laws import LiveLaw
from prefect_llm_tiers.planning.problem import Problem, StepProblem

__all__ = [
    "SETTLE_S",
    "fastest_of",
    "latest_finishes",
    "latest_start",
    "reserve_of",
    "reserved_s",
    "shifted",
    "sure_of",
]

SETTLE_S = 30.0
"""Reserve for what surrounds a step's calls: reading results, writing the ledger, starting the next step."""

_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9999, 12, 30, tzinfo=UTC)


def shifted(instant: datetime, seconds: float) -> datetime:
    """Return the instant that many seconds later, kept within the calendar: laws know no end of time."""
    if seconds > (_LAST - instant).total_seconds():
        return _LAST
    if seconds < (_FIRST - instant).total_seconds():
        return _FIRST
    return instant + timedelta(seconds=seconds)


def reserve_of(problem: Problem) -> float:
    """Return the chance with which each step's reserve is to suffice; see the module."""
    asking = sum(step.requests > 0 for step in problem.steps)
    return 1 - (1 - problem.on_time) / (asking + 1)


def latest_start(latest_finish: datetime, law: LiveLaw, requests: float, *, reserve: float) -> datetime:
    """Return the last instant at which a tier may start on `requests` and still make it.

    Args:
        latest_finish: When they must be done.
        law: The tier's.
        requests: How many.
        reserve: The chance with which its time is to suffice.

    Returns:
        An aware instant; one already past means that there is no slack.
    """
    if requests <= 0:
        return latest_finish
    return shifted(latest_finish, -(law.quantile_s(reserve, requests) + SETTLE_S))


def latest_finishes(
    problem: Problem, fallbacks: Mapping[str, Tier | None], *, reserve: float
) -> dict[str, datetime | None]:
    """Return for each step when it must be done; None where nothing after it has a deadline.

    Computed backward: a step must be done by its own deadline, by the chain's, and early enough for each
    step that needs it, on the tier that this one falls back to.

    Args:
        problem: The steps.
        fallbacks: The tier that each step's slack is reckoned with; None where batch is relied on.
        reserve: The chance with which each step's time is to suffice.
    """
    finishes: dict[str, datetime | None] = {}
    for step in reversed(problem.steps):
        bounds = [bound for bound in (problem.due, step.deadline) if bound is not None]
        for later in problem.steps:
            finish = finishes.get(later.name)
            if step.name in later.after and finish is not None:
                bounds.append(shifted(finish, -_need_s(later, fallbacks[later.name], reserve)))
        finishes[step.name] = min(bounds, default=None)
    return finishes


def reserved_s(problem: Problem, fallbacks: Mapping[str, Tier | None], *, reserve: float) -> dict[str, float]:
    """Return for each step after how many seconds it is done if every step takes all of its reserve."""
    done: dict[str, float] = {}
    for step in problem.steps:
        start = max((done[name] for name in step.after), default=0.0)
        done[step.name] = start + _need_s(step, fallbacks[step.name], reserve)
    return done


def _need_s(step: StepProblem, fallback: Tier | None, reserve: float) -> float:
    if step.requests <= 0:
        return 0.0
    if fallback is not None:
        return step.live[fallback].quantile_s(reserve, step.requests) + SETTLE_S
    return (step.batch.quantile_s(reserve) if step.batch is not None else 0.0) + SETTLE_S


def sure_of(step: StepProblem) -> tuple[tuple[Tier, LiveLaw], ...]:
    """Return the tiers a step's deadline is trusted to, with their laws, the cheapest first."""
    return tuple((tier, step.live[tier]) for tier in step.sure_tiers)


def fastest_of(step: StepProblem, on_time: float) -> Tier | None:
    """Return the sure tier that is done first with chance `on_time`; None where there is none."""
    ranked = sorted(sure_of(step), key=lambda entry: entry[1].quantile_s(on_time, step.requests))
    return ranked[0][0] if ranked else None
