"""The package's planner as a policy of the scenarios' world."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec

from benchmarks._scenario_world import Move, View
from benchmarks._scenarios import PRICE, FlexProcess, LiveShape, Scenario, Shape
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.deciding import State, decide
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw
from prefect_llm_tiers.planning.making import plan
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.problem import Problem, StepProblem

__all__ = ["REQUESTS", "Planner", "problem_of"]

REQUESTS = 10_000
"""Requests of each step: shares of it become whole numbers."""

START = datetime(2026, 11, 1, tzinfo=UTC)
_MINUTE_S = 60.0


def problem_of(scenario: Scenario) -> Problem:
    """Return a scenario in the planner's terms."""
    return Problem(
        now=START,
        due=START + timedelta(minutes=scenario.deadline),
        on_time=1 - scenario.miss_p,
        steps=tuple(_step(scenario, step) for step in scenario.steps),
    )


def _step(scenario: Scenario, step: Shape) -> StepProblem:
    live = {"flex": step.flex, "standard": step.standard, "priority": step.priority}
    return StepProblem(
        name=step.id,
        requests=REQUESTS,
        batch=BatchLaw(
            median_s=_MINUTE_S * step.batch.median,
            sigma=step.batch.sigma,
            p_stuck=step.batch.p_stuck,
            stuck_from_s=_MINUTE_S * step.batch.stuck[0],
            stuck_to_s=_MINUTE_S * step.batch.stuck[1],
        ),
        live={
            Tier(name): _live(scenario, shape, scenario.flex_env if name == "flex" else None)
            for name, shape in live.items()
            if shape is not None and name in scenario.tiers and (name != "flex" or scenario.has_flex)
        },
        cost_usd={Tier(name): Decimal(repr(PRICE[name] * step.weight)) for name in scenario.tiers},
        after=step.deps,
        cancel_s=_MINUTE_S * scenario.cancel[1],
        poll_s=0.0,
    )


def _live(scenario: Scenario, shape: LiveShape, flex: FlexProcess | None) -> LiveLaw:
    return LiveLaw(
        base_s=_MINUTE_S * scenario.base,
        per_request_s=_MINUTE_S * shape.median / REQUESTS,
        sigma=shape.sigma,
        p_down=flex.down / (flex.up + flex.down) if flex else 0.0,
        down_s=_MINUTE_S * flex.down if flex else 0.0,
    )


class Planner:
    """Plans once, at the start, and asks `decide` from then on."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.plan = plan(problem_of(scenario), infeasible="best_effort")

    def _without_batch(self, name: str) -> Plan:
        steps = (msgspec.structs.replace(step, batch=None) if step.name == name else step for step in self.plan.steps)
        return msgspec.structs.replace(self.plan, steps=tuple(steps))

    def decide(self, view: View) -> Move:
        """Return what `decide` says."""
        state = State(
            now=START + timedelta(minutes=view.now),
            step=self._scenario.steps[view.step].id,
            tier=None if view.tier in (None, "left") else Tier(str(view.tier)),
            remaining=max(round(view.remaining * REQUESTS), 1),
            batch_out=view.batch_out,
            batch_tried=view.batch_tried,
            flex_up=view.flex_up,
        )
        decision = decide(self.plan, state)
        if decision.tier is Tier.BATCH and view.batch_tried and not view.batch_out:
            # A step has one batch in this world; after one that expired the planner would send another.
            decision = decide(self._without_batch(state.step), state)

        def minutes(instant: datetime | None) -> float | None:
            return None if instant is None else (instant - START).total_seconds() / _MINUTE_S

        start_by = minutes(decision.start_by)
        return Move(
            str(decision.tier),
            review_at=minutes(decision.review_at),
            start_by=view.now if start_by is None else start_by,
        )
