"""Making a plan: choose the tiers, say what they will cost, and how likely the deadline is kept.

The rule of this module is the *latest safe start* (see `stopping`). What it leaves open is which sure tier the slack
is reckoned with: standard, or priority where that starts later. Both are played through a few thousand drawn nights
(see `playing`), and the cheaper of those that keep the deadline is the plan. The draws are seeded, so a plan is a
function of its problem.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

import msgspec
import numpy as np

from prefect_llm_tiers.core.tiers import SURE_TIERS, Tier
from prefect_llm_tiers.errors import ConfigurationError, DeadlineInfeasible
from prefect_llm_tiers.planning.deciding import State, decide
from prefect_llm_tiers.planning.explaining import infeasible_message
from prefect_llm_tiers.planning.laws import LiveLaw
from prefect_llm_tiers.planning.plan import Leg, Plan, StepPlan
from prefect_llm_tiers.planning.playing import NIGHTS, Draws, Night, draws_of, play
from prefect_llm_tiers.planning.problem import Problem, StepProblem
from prefect_llm_tiers.planning.stopping import (
    fastest_of,
    latest_finishes,
    reserve_of,
    reserved_s,
    shifted,
    sure_of,
)

__all__ = ["plan"]

RULE = "latest safe start"

RESOLVED = 1 - 8 / NIGHTS
"""The greatest chance that counting nights can tell from certainty; beyond it only the laws' quantiles can."""


_ALIKE = Decimal("1.000001")
"""Costs are means of floats: what differs by less is the same, and the earlier candidate is preferred."""


class _Candidate(msgspec.Struct, frozen=True):
    """A way to carry the chain out, with what became of it in every night.

    Attributes:
        plan: As far as `decide` reads it, and the chance.
        nights: By step.
        costs: Expected cost by step.
        guessed: Whether a tier in use has no cost to count.
        provable: Whether the reserves of all steps fit before their deadlines one after another.
    """

    plan: Plan
    nights: Mapping[str, Night]
    costs: Mapping[str, Decimal]
    guessed: bool
    provable: bool

    @property
    def cost_usd(self) -> Decimal:
        """Expected cost of the chain."""
        return sum(self.costs.values(), Decimal(0))

    @property
    def meets(self) -> bool:
        """Whether it is on time with the chance that was asked for."""
        return self.plan.chance >= self.plan.on_time and (self.plan.on_time <= RESOLVED or self.provable)


def plan(problem: Problem, *, infeasible: str = "raise") -> Plan:
    """Return the plan for a chain of steps, or for a single one.

    Args:
        problem: Steps with their laws and prices, and when they must be done.
        infeasible: `raise`, or `best_effort` for the plan that is likeliest to be on time all the same.

    Raises:
        DeadlineInfeasible: No use of the allowed tiers is on time with the chance that was asked for.
        ConfigurationError: A step needs one that is not before it, or may use no tier at all; two bear the same
            name; the chance is none; an instant is naive.
    """
    _check(problem)
    draws = draws_of(len(problem.steps))
    cheapest = {step.name: _cheapest_sure(step) for step in problem.steps}
    fastest = {step.name: fastest_of(step, problem.on_time) for step in problem.steps}
    candidates = [_worthwhile_only(problem, cheapest, draws)]
    if fastest != cheapest and _has_deadline(problem):
        candidates.append(_worthwhile_only(problem, fastest, draws))
    meeting = [candidate for candidate in candidates if candidate.meets]
    if not meeting or _least_cost(meeting).cost_usd > _sure_cost(problem) * _ALIKE:
        # Priority is reserved for, and yet the cheaper tier alone may be likely enough.
        candidates += [
            _candidate(problem, cheapest, draws, worthwhile=worthwhile, only_cheapest=True)
            for worthwhile in (None, frozenset[str]())
        ]
        meeting = [candidate for candidate in candidates if candidate.meets]
    if meeting:
        return _shown(_least_cost(meeting), problem)
    # No slack to wait for a cheap tier: all at once on the fastest, or, where even that is too slow, batch, whose
    # rate pool is its own.
    hurried = _candidate(problem, fastest, draws, worthwhile=frozenset())
    candidates.append(hurried)
    relied_on = {step.name: None if step.batch is not None else fastest[step.name] for step in problem.steps}
    if relied_on != fastest:
        candidates.append(_candidate(problem, relied_on, draws))
    best = next((one for one in candidates if one.meets), None)
    if best is None:
        best = max(candidates, key=lambda one: one.plan.chance)
        if infeasible == "raise":
            raise DeadlineInfeasible(infeasible_message(problem, best.plan, hurried.nights))
    return _shown(best, problem)


def _check(problem: Problem) -> None:
    if not 0 < problem.on_time < 1:
        msg = f"on_time={problem.on_time:g} is no chance to plan by. Give a number between 0 and 1, as 0.99."
        raise ConfigurationError(msg)
    _check_aware("now", problem.now)
    _check_aware("due", problem.due)
    seen: set[str] = set()
    for step in problem.steps:
        _check_aware(f"the deadline of step {step.name!r}", step.deadline)
        if step.name in seen:
            msg = f"Two steps of the chain are named {step.name!r}. Give each a name of its own."
            raise ConfigurationError(msg)
        missing = [name for name in step.after if name not in seen]
        if missing:
            msg = (
                f"Step {step.name!r} needs {', '.join(map(repr, missing))}, which "
                "does not come before it in the chain. List the steps in the order in which they run."
            )
            raise ConfigurationError(msg)
        if not step.live and step.batch is None:
            msg = (
                f"Step {step.name!r} may use no tier: none of the allowed ones is offered for its model. "
                "Allow one of the tiers that the provider offers in tiers=."
            )
            raise ConfigurationError(msg)
        seen.add(step.name)


def _check_aware(name: str, instant: datetime | None) -> None:
    if instant is not None and instant.tzinfo is None:
        msg = f"{name} is {instant.isoformat()}, without a time zone, so nobody knows when it is. Make it aware."
        raise ConfigurationError(msg)


def _has_deadline(problem: Problem) -> bool:
    return problem.due is not None or any(step.deadline is not None for step in problem.steps)


def _cheapest_sure(step: StepProblem) -> Tier | None:
    return next((tier for tier, _ in sure_of(step)), None)


def _sure_cost(problem: Problem) -> Decimal:
    """Return what all steps cost on the cheapest tier that their deadlines can be trusted to."""
    costs = (step.cost_usd.get(tier, Decimal(0)) for step in problem.steps if (tier := _cheapest_sure(step)))
    return sum(costs, Decimal(0))


def _worthwhile_only(problem: Problem, fallbacks: Mapping[str, Tier | None], draws: tuple[Draws, ...]) -> _Candidate:
    """Return the candidate in which cheap tiers are used where they are expected to save enough.

    A step that gives them up only makes time for the others, so one look at each is enough.
    """
    candidate = _candidate(problem, fallbacks, draws)
    if problem.min_saving_usd <= 0:
        return candidate
    at_once = _candidate(problem, fallbacks, draws, worthwhile=frozenset())
    worthwhile = frozenset(
        name for name, cost in candidate.costs.items() if at_once.costs[name] - cost >= problem.min_saving_usd
    )
    if len(worthwhile) == len(problem.steps):
        return candidate
    return _candidate(problem, fallbacks, draws, worthwhile=worthwhile)


def _least_cost(candidates: list[_Candidate]) -> _Candidate:
    """Return the cheapest candidate, the first of equals.

    Where a tier in use has no figure it would pass for free, and the first candidate is returned.
    """
    if any(one.guessed for one in candidates):
        return candidates[0]
    least = min(one.cost_usd for one in candidates)
    return next(one for one in candidates if one.cost_usd <= least * _ALIKE)


def _candidate(
    problem: Problem,
    fallbacks: Mapping[str, Tier | None],
    draws: tuple[Draws, ...],
    *,
    worthwhile: frozenset[str] | None = None,
    only_cheapest: bool = False,
) -> _Candidate:
    """Play the chain with some fallbacks.

    Args:
        problem: The chain.
        fallbacks: The tier that each step's slack is reckoned with; None where batch is relied on.
        draws: The luck of each step.
        worthwhile: The steps that may use cheap tiers; None for all.
        only_cheapest: Whether each step has but the cheapest of its sure tiers.
    """
    reserve = reserve_of(problem)
    finishes = latest_finishes(problem, fallbacks, reserve=reserve)
    steps = tuple(
        _skeleton(
            step,
            problem,
            finishes[step.name],
            fallback=fallbacks[step.name],
            worthwhile=worthwhile is None or step.name in worthwhile,
            sure=sure_of(step)[: 1 if only_cheapest else None],
        )
        for step in problem.steps
    )
    draft = Plan(
        made_at=problem.now,
        due=problem.due,
        on_time=problem.on_time,
        reserve=reserve,
        chance=1.0,
        rule=RULE,
        basis=problem.basis,
        steps=steps,
    )
    nights = play(draft, {step.name: step.after for step in problem.steps}, draws)
    kept = np.ones(NIGHTS, dtype=bool)
    for step in problem.steps:
        for due in (problem.due, step.deadline):
            # What has nothing left to ask cannot be late.
            if due is not None and step.requests > 0:
                kept &= nights[step.name].done_s <= (due - problem.now).total_seconds()
    return _Candidate(
        plan=msgspec.structs.replace(draft, chance=float(kept.mean())),
        nights=nights,
        costs={step.name: _cost(step, nights[step.name]) for step in problem.steps},
        guessed=any(tier not in step.cost_usd for step in problem.steps for tier in nights[step.name].shares),
        provable=all(
            (finish := finishes[name]) is None or shifted(problem.now, needed_s) <= finish
            for name, needed_s in reserved_s(problem, fallbacks, reserve=reserve).items()
        ),
    )


def _skeleton(
    step: StepProblem,
    problem: Problem,
    latest_finish: datetime | None,
    *,
    fallback: Tier | None,
    worthwhile: bool,
    sure: tuple[tuple[Tier, LiveLaw], ...],
) -> StepPlan:
    """Return what the rule needs of a step; the expectations are filled in later."""
    return StepPlan(
        name=step.name,
        requests=max(step.requests, 0),
        answered=step.answered,
        legs=(),
        starts_at=problem.now,
        finish_expected=problem.now,
        finish_p95=problem.now,
        latest_finish=latest_finish,
        sure=sure,
        flex=step.live.get(Tier.FLEX) if _is_cheaper(step, Tier.FLEX) else None,
        batch=step.batch if _is_cheaper(step, Tier.BATCH) else None,
        worthwhile=worthwhile,
        cancel_s=step.cancel_s,
        poll_s=step.poll_s,
        cost_usd=Decimal(0),
        list_usd=step.cost_usd.get(Tier.STANDARD) or max(step.cost_usd.values(), default=Decimal(0)),
        unpriced=bool(step.unpriced),
        fallback=fallback,
        deadline=step.deadline,
    )


def _is_cheaper(step: StepProblem, tier: Tier) -> bool:
    """Return whether a tier costs less than the sure tier would; without prices it is taken to."""
    sure = next((other for other in SURE_TIERS if other in step.live), None)
    if sure is None or step.requests <= 0 or tier not in step.cost_usd or sure not in step.cost_usd:
        return True
    # Some providers sell flex at the standard price.
    return step.cost_usd[tier] < step.cost_usd[sure]


def _cost(step: StepProblem, night: Night) -> Decimal:
    parts = (
        step.cost_usd.get(tier, Decimal(0)) * Decimal(repr(float(share.mean()))) for tier, share in night.shares.items()
    )
    return sum(parts, Decimal(0))


def _shown(candidate: _Candidate, problem: Problem) -> Plan:
    """Fill in when each step is expected to be done, in which tiers, and for how much."""
    steps: list[StepPlan] = []
    for step, asked in zip(candidate.plan.steps, problem.steps, strict=True):
        night = candidate.nights[step.name]
        starts_at = shifted(problem.now, float(night.starts_s.mean()))
        steps.append(
            msgspec.structs.replace(
                step,
                starts_at=starts_at,
                legs=_legs(candidate.plan, step, starts_at),
                finish_expected=shifted(problem.now, float(night.done_s.mean())),
                finish_p95=shifted(problem.now, float(np.quantile(night.done_s, 0.95))),
                cost_usd=candidate.costs[step.name],
                unpriced=any(tier in asked.unpriced or tier not in asked.cost_usd for tier in night.shares),
            )
        )
    return msgspec.structs.replace(candidate.plan, steps=tuple(steps))


def _legs(draft: Plan, step: StepPlan, starts_at: datetime) -> tuple[Leg, ...]:
    """Return the tiers of a step that starts at `starts_at` and finds no luck in the cheap ones."""
    if step.requests == 0:
        return ()
    legs: list[Leg] = []
    state = State(now=starts_at, step=step.name, tier=None, remaining=step.requests)
    while True:
        decision = decide(draft, state)
        tier = decision.tier
        if legs and legs[-1].tier is tier:
            legs[-1] = Leg(tier)
            return tuple(legs)
        if tier in SURE_TIERS or decision.review_at is None:
            return (*legs, Leg(tier))
        legs.append(Leg(tier, decision.review_at))
        state = msgspec.structs.replace(
            state,
            now=decision.review_at,
            tier=tier,
            batch_out=tier is Tier.BATCH,
            batch_tried=tier is Tier.BATCH,
        )
