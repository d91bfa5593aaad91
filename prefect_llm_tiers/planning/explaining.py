"""Why a deadline cannot be met, with the numbers and what would help."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import numpy as np

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.plan import Plan, show_chance, show_instant, show_span
from prefect_llm_tiers.planning.playing import Night
from prefect_llm_tiers.planning.problem import Problem, StepProblem
from prefect_llm_tiers.planning.stopping import fastest_of, reserve_of, reserved_s, sure_of

__all__ = ["infeasible_message"]

_MOST_NAMED = 4

_IN_ORDER = (Tier.BATCH, Tier.FLEX, Tier.STANDARD, Tier.PRIORITY)


def infeasible_message(problem: Problem, best: Plan, hurried: Mapping[str, Night]) -> str:
    """Return the message of `DeadlineInfeasible`.

    Args:
        problem: What was asked for.
        best: The plan that is likeliest to be on time.
        hurried: Nights in which every step goes to its fastest sure tier at once.
    """
    step, due = _tightest(problem, hurried)
    left = due - problem.now
    leaves = f"leaves {show_span(left)}" if left > timedelta(0) else f"is {show_span(-left)} past"
    off = [tier for tier in _IN_ORDER if tier in step.offered and not _allows(step, tier)]
    without = f"with {_joined(off)} off, " if off else ""
    asking = [one for one in problem.steps if one.requests > 0 and one.name in _ancestry(problem, step)]
    need, on_time = _needed(problem, step, left, hurried), f"to be on time with {100 * problem.on_time:g} %"
    if len(asking) == 1:
        needs = f"{step.requests:,} requests of step {step.name!r} need {need} on {_pace(step)} {on_time}"
    else:
        listed = ", ".join(f"{one.name!r} {one.requests:,} requests on {_pace(one)}" for one in asking[-_MOST_NAMED:])
        more = f"{len(asking) - _MOST_NAMED} more before them, " if len(asking) > _MOST_NAMED else ""
        needs = f"the {len(asking)} steps up to {step.name!r} need {need} ({more}{listed}) {on_time}"
    # Flex is slower than either sure tier, so allowing it helps nobody.
    helpful = [repr(str(tier)) for tier in off if tier is not Tier.FLEX]
    allow = f"allow tier {' or '.join(helpful)}, " if helpful else ""
    return (
        f"Due {show_instant(due, problem.now)} {leaves}; {without}{needs}; the best that can be done has a chance of "
        f"{show_chance(best.chance)}. Nothing was sent. Move the deadline, raise requests_per_minute or "
        f"max_concurrency, {allow}or pass infeasible='best_effort'."
    )


def _tightest(problem: Problem, hurried: Mapping[str, Night]) -> tuple[StepProblem, datetime]:
    """Return the step that is on time least often even when everything hurries, and when it is due."""
    tight: list[tuple[float, StepProblem, datetime]] = []
    for step in problem.steps:
        bounds = [bound for bound in (problem.due, step.deadline) if bound is not None]
        if bounds and step.requests > 0:
            due = min(bounds)
            kept = hurried[step.name].done_s <= (due - problem.now).total_seconds()
            tight.append((float(kept.mean()), step, due))
    _, step, due = min(tight, key=lambda entry: entry[0])
    return step, due


def _needed(problem: Problem, step: StepProblem, left: timedelta, hurried: Mapping[str, Night]) -> str:
    needed_s = float(np.quantile(hurried[step.name].done_s, problem.on_time))
    if left <= timedelta(0) or needed_s <= left.total_seconds():
        # A chain that is late already does not hurry; and so near to certainty counted nights prove nothing.
        fastest = {one.name: fastest_of(one, problem.on_time) for one in problem.steps}
        needed_s = reserved_s(problem, fastest, reserve=reserve_of(problem))[step.name]
    return show_span(timedelta(seconds=min(needed_s, 1e12)))


def _ancestry(problem: Problem, step: StepProblem) -> set[str]:
    """Return the names of a step and of all that it needs, directly or not."""
    names = {step.name}
    for one in reversed(problem.steps):
        if one.name in names:
            names.update(one.after)
    return names


def _allows(step: StepProblem, tier: Tier) -> bool:
    return step.batch is not None if tier is Tier.BATCH else tier in step.live


def _pace(step: StepProblem) -> str:
    sure = sure_of(step)
    if not sure:
        return "batch"
    tier, law = min(sure, key=lambda entry: entry[1].median_s(step.requests))
    if law.per_request_s <= 0:
        return str(tier)
    pace = 60 / law.per_request_s
    return f"{tier} at {f'{pace:,.0f}' if pace >= 10 else f'{pace:.2g}'} requests/min"


def _joined(tiers: list[Tier]) -> str:
    names = [str(tier) for tier in tiers]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
