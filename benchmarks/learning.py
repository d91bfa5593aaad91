"""What a prior six times off costs before and after it was learned better, and how long a fit takes.

Chains of `scenarios.json` are carried out night after night by a planner whose law of batches has its median six times
off, in either direction, while everything else it believes is true. After each night it learns from the batches it has
seen, ended or left. The plan of the ninth night is held against the plan that knows the truth, over the same nights.
"""

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from prefect_llm_tiers.backtesting.replaying import cost_of
from prefect_llm_tiers.backtesting.scenarios import UNITS, Scenario, read_scenarios
from prefect_llm_tiers.backtesting.world import Ending, carry_out
from prefect_llm_tiers.core.observations import ObservedBatch
from prefect_llm_tiers.planning.laws import BatchLaw
from prefect_llm_tiers.planning.learning import learn_batch
from prefect_llm_tiers.planning.making import plan
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.priors import prior_batch
from prefect_llm_tiers.planning.problem import Problem

__all__ = ["JUDGED_OVER", "SCENARIOS", "TEAMS", "prior_off", "run"]

FACTORS = (1 / 6, 6.0)
LEARNED_FROM = 8
TEAMS = 12
"""How often the nights before the ninth are lived through, each time with other luck."""
JUDGED_OVER = 200
"""Nights over which the plan of the ninth is held against the true one."""
FITS = 21
SCENARIOS = Path(__file__).with_name("scenarios.json")


def run() -> dict[str, float]:
    """Return the extra misses and cost of a prior that is off, as fractions, and the milliseconds of a fit."""
    return prior_off(list(read_scenarios([SCENARIOS]))) | {"fit_500_ms": _fit_ms()}


def prior_off(scenarios: Sequence[Scenario], *, teams: int = TEAMS, nights: int = JUDGED_OVER) -> dict[str, float]:
    """Return what a prior six times off costs on the ninth night, over what the truth costs.

    Args:
        scenarios: Chains that may use batch.
        teams: How often it is learned anew.
        nights: Nights over which the plans are compared.

    Returns:
        Fractions, each of the direction in which it is worse: `prior_off_misses`, share of nights missed more than with
        the truth; `prior_off_extra_cost`, mean over the scenarios; and both for a planner that never learns.
    """
    figures: dict[str, float] = {}
    for factor in FACTORS:
        learned, unlearned = zip(*(_compared(scenario, factor, teams, nights) for scenario in scenarios), strict=True)
        for name, found in (("prior_off", learned), ("unlearned", unlearned)):
            misses, cost = (statistics.fmean(column) for column in zip(*found, strict=True))
            for key, value in ((f"{name}_misses", misses), (f"{name}_extra_cost", cost)):
                figures[key] = max(figures.get(key, -math.inf), value)
    return figures


def _compared(scenario: Scenario, factor: float, teams: int, nights: int) -> tuple[tuple[float, float], ...]:
    """Return extra misses and extra cost of the plan that was learned, and of the one that was not."""
    problem = scenario.problem()
    truth = _judged(scenario, plan(problem, infeasible="best_effort"), nights)
    off = _believing(problem, {}, factor)
    never = _judged(scenario, plan(off, infeasible="best_effort"), nights)
    learned = [_judged(scenario, _ninth(scenario, off, team), nights) for team in range(teams)]
    return tuple(
        (missed - truth[0], cost / truth[1] - 1)
        for missed, cost in (tuple(statistics.fmean(column) for column in zip(*learned, strict=True)), never)
    )


def _ninth(scenario: Scenario, off: Problem, team: int) -> Plan:
    """Return the plan of the ninth night, learned from eight."""
    seen: list[ObservedBatch] = []
    for night in range(LEARNED_FROM):
        problem = _learned(off, seen, night)
        luck, flex = scenario.luck(f"team {team}, night {night}")
        endings = carry_out(
            plan(problem, infeasible="best_effort"), problem.steps, luck, flex, ends_s=60 * scenario.deadline
        )
        seen += _observed(problem.now, endings)
    return plan(_learned(off, seen, LEARNED_FROM), infeasible="best_effort")


def _learned(off: Problem, seen: list[ObservedBatch], night: int) -> Problem:
    """Return the problem of a night, with the law of batches that was learned by then."""
    now = off.now + timedelta(days=night)
    laws = {
        law: learn_batch(law, seen, now=now) for law in {step.batch for step in off.steps if step.batch is not None}
    }
    problem = _believing(off, laws)
    return msgspec.structs.replace(problem, now=now, due=off.due + timedelta(days=night) if off.due else None)


def _believing(problem: Problem, laws: Mapping[BatchLaw, BatchLaw], factor: float = 1.0) -> Problem:
    """Return a problem with other laws of batches, or with their medians off by a factor."""

    def believed(law: BatchLaw) -> BatchLaw:
        return laws.get(law) or msgspec.structs.replace(law, median_s=factor * law.median_s)

    return msgspec.structs.replace(
        problem,
        steps=tuple(
            msgspec.structs.replace(step, batch=believed(step.batch)) if step.batch is not None else step
            for step in problem.steps
        ),
    )


def _observed(now: datetime, endings: Mapping[str, Ending]) -> Iterator[ObservedBatch]:
    for ending in endings.values():
        for sent in ending.sent:
            yield ObservedBatch(
                model="m",
                began_at=now + timedelta(seconds=sent.at_s),
                duration=timedelta(seconds=max(sent.lasted_s, 1.0)),
                censored=sent.cut,
                requests=1,
                done=0,
            )


def _judged(scenario: Scenario, made: Plan, nights: int) -> tuple[float, float]:
    """Return the share of nights that a plan misses, and what it costs."""
    problem = scenario.problem()
    missed, cost = 0, 0.0
    for night in range(nights):
        luck, flex = scenario.luck(f"judged, night {night}")
        endings = carry_out(made, problem.steps, luck, flex, ends_s=60 * scenario.deadline)
        missed += any(ending.left > 0 for ending in endings.values())
        cost += float(cost_of(problem.steps, endings)) / UNITS
    return missed / nights, cost / nights


def _fit_ms() -> float:
    """Return the median time of a fit to 500 batches, a third of them cut."""
    now = datetime(2026, 11, 1, tzinfo=UTC)
    seen = [
        ObservedBatch(
            model="m",
            began_at=now - timedelta(hours=5 * number),
            duration=timedelta(minutes=1 + 37 * number % 240),
            censored=number % 3 == 0,
            requests=1000,
            done=0,
        )
        for number in range(500)
    ]
    prior, times = prior_batch(window_s=86_400), []
    for _ in range(FITS):
        began = time.perf_counter()
        learn_batch(prior, seen, now=now)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)
