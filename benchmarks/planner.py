"""What the planner's decisions cost, and how often they miss, on ten scenarios of chains with a deadline.

`docs/scenarios.md` tells the scenarios, the rules of their world and the rules that the planner is held against. Every
run is drawn from a fixed seed and played by each of them; costs are in units of the chain's cost if all of it ran on
the standard tier. *Regret* is the mean cost over that of somebody who knows every draw (`_scenario_bound`), less 1;
nobody reaches it. First the world is checked: what the rules and the bound cost here is printed beside the figures of
an earlier exploration over 240 other seeds, with the difference in standard errors of both.

- `mean_regret`, `median_regret`, `worst_regret`: over the scenarios, of the package's planner.
- `share_of_saving`: what it saves against all-standard, as a share of what the bound saves, on average.
- `worst_misses`: misses of the scenario that has most, in `seeds` runs; `worst_misses_stressed`: the same with a
  night that is slow for all batches and flex, with progress that bends, and with standard twice as slow as believed.
- `prior_off_misses`, `prior_off_extra_cost`: what a prior of batches six times off still costs on the ninth night,
  after the planner has learned from eight, over what the truth costs; see `benchmarks.learning`.
- `value_...`: the same of the candidate `_scenario_candidate`, which weighs every wait against what the time is worth.
  It takes a hundred times as long, so that it is stressed over a tenth of the seeds.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import fmean, median, stdev

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks._scenario_bound import bound
from benchmarks._scenario_candidate import ValueOfTime
from benchmarks._scenario_planner import Planner
from benchmarks._scenario_rules import RULES
from benchmarks._scenario_values import Values
from benchmarks._scenario_world import Policy, play
from benchmarks._scenarios import Luck, Scenario, load, luck_of
from benchmarks.learning import JUDGED_OVER, SCENARIOS, TEAMS, prior_off
from prefect_llm_tiers.backtesting.scenarios import read_scenarios

__all__ = ["run"]

SEEDS = 2_000
SEEDS_VARIABLE = "PLANNER_SEEDS"
"""Environment variable for another number of seeds."""

BOUND, PLANNER, CANDIDATE = "bound", "planner", "value of time"

STRESSES: dict[str, Callable[[Scenario, int], Luck]] = {
    "slow night": lambda scenario, seed: luck_of(scenario, seed, load=0.5),
    "bent progress": lambda scenario, seed: luck_of(scenario, seed, bend=0.5),
    "slow standard": lambda scenario, seed: luck_of(scenario, seed, slow=2.0),
}

_REFERENCE_SEEDS = 240
_REFERENCE: dict[str, dict[str, float]] = {
    "A2": {BOUND: 0.558, "latest safe start": 0.569, "uniform progress": 0.569},
    "A3": {BOUND: 0.584, "latest safe start": 0.587, "uniform progress": 0.587},
    "B1": {BOUND: 0.629, "latest safe start": 0.745, "uniform progress": 0.722},
    "B4": {BOUND: 0.533, "latest safe start": 0.570, "uniform progress": 0.551},
    "C2": {BOUND: 0.516, "latest safe start": 0.551, "uniform progress": 0.525},
    "C2h": {BOUND: 0.516, "latest safe start": 0.550, "uniform progress": 0.526},
    "C3": {BOUND: 0.511, "cheapest that fits": 0.730, "latest safe start": 0.527, "uniform progress": 0.535},
    "F2": {BOUND: 0.527, "latest safe start": 0.745, "uniform progress": 0.650},
    "F5": {BOUND: 0.513, "latest safe start": 0.682, "uniform progress": 0.606},
    "G1": {BOUND: 0.558, "latest safe start": 0.631, "uniform progress": 0.631},
}


class Figures(msgspec.Struct, frozen=True):
    """What one policy came to on one scenario.

    Attributes:
        cost: Mean cost.
        error: Its standard error.
        misses: Runs that missed.
    """

    cost: float
    error: float
    misses: int


class Outcome(msgspec.Struct, frozen=True):
    """What every policy came to on one scenario.

    Attributes:
        name: The scenario's, its first word.
        figures: By policy, the bound among them.
        stressed: Share of misses under each stress, by policy.
        seeds: Runs of each.
    """

    name: str
    figures: dict[str, Figures]
    stressed: dict[str, dict[str, float]]
    seeds: int


def run(seeds: int | None = None) -> dict[str, float]:
    """Play every scenario and return the metrics; the table is printed."""
    seeds = seeds or int(os.environ.get(SEEDS_VARIABLE, SEEDS))
    scenarios = load()
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as executor:
        outcomes = list(executor.map(_measure, scenarios, [seeds] * len(scenarios)))
    _show(outcomes)
    metrics = {"seeds": float(seeds), "worst_deviation": _deviation(outcomes)}
    metrics |= _summary(outcomes, PLANNER, "", seeds)
    metrics |= _summary(outcomes, CANDIDATE, "value_", seeds)
    learned = prior_off(list(read_scenarios([SCENARIOS])), teams=min(TEAMS, seeds), nights=min(JUDGED_OVER, seeds))
    return metrics | {name: value for name, value in learned.items() if name.startswith("prior_off")}


def _measure(scenario: Scenario, seeds: int) -> Outcome:
    values, planner = Values(scenario), Planner(scenario)
    policies: dict[str, Callable[[], Policy]] = {name: partial(rule, scenario) for name, rule in RULES.items()}
    policies |= {PLANNER: lambda: planner, CANDIDATE: partial(ValueOfTime, scenario, values)}
    lucks = [luck_of(scenario, seed) for seed in range(seeds)]
    figures = {BOUND: _figures([min(bound(scenario, luck), 1.0) for luck in lucks], 0)}
    for name, policy in policies.items():
        played = [play(scenario, luck, policy()) for luck in lucks]
        figures[name] = _figures([one.cost for one in played], sum(one.missed for one in played))
    stressed: dict[str, dict[str, float]] = {}
    for stress, draw in STRESSES.items():
        stressed[stress] = {}
        for name, runs in ((PLANNER, seeds), (CANDIDATE, max(seeds // 10, 1))):
            missed = [play(scenario, draw(scenario, seed), policies[name]()).missed for seed in range(runs)]
            stressed[stress][name] = fmean(missed)
    return Outcome(scenario.name.split()[0], figures, stressed, seeds)


def _figures(costs: list[float], misses: int) -> Figures:
    return Figures(fmean(costs), stdev(costs) / len(costs) ** 0.5 if len(costs) > 1 else 0.0, misses)


def _deviation(outcomes: list[Outcome]) -> float:
    """Return how far the world is from the earlier one where it is farthest, in standard errors of the difference."""
    return max(
        abs(told.figures[name].cost - figure) / (_error(told, name) or 1.0)
        for told in outcomes
        for name, figure in _REFERENCE[told.name].items()
    )


def _error(told: Outcome, name: str) -> float:
    return told.figures[name].error * math.sqrt(1 + told.seeds / _REFERENCE_SEEDS)


def _summary(outcomes: list[Outcome], policy: str, prefix: str, seeds: int) -> dict[str, float]:
    regrets = [told.figures[policy].cost / told.figures[BOUND].cost - 1 for told in outcomes]
    savings = [(1 - told.figures[policy].cost) / (1 - told.figures[BOUND].cost) for told in outcomes]
    safe = [told.figures[policy].cost - told.figures["latest safe start"].cost for told in outcomes]
    stressed = [shares[policy] for told in outcomes for shares in told.stressed.values()]
    return {
        f"{prefix}mean_regret": fmean(regrets),
        f"{prefix}median_regret": median(regrets),
        f"{prefix}worst_regret": max(regrets),
        f"{prefix}share_of_saving": fmean(savings),
        f"{prefix}worst_over_safe_start": max(safe),
        f"{prefix}worst_misses": float(max(told.figures[policy].misses for told in outcomes)),
        f"{prefix}worst_misses_stressed": seeds * max(stressed),
    }


def _show(outcomes: list[Outcome]) -> None:
    table = Table(title="cost over all-standard, and share of misses", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("scenario")
    names = list(outcomes[0].figures)
    for name in names:
        table.add_column(name, justify="right")
    for told in outcomes:
        cells = []
        for name in names:
            figures, reference = told.figures[name], _REFERENCE[told.name].get(name)
            cell = f"{figures.cost:.3f}"
            cell += f" ({figures.misses})" if figures.misses else ""
            cell += f" [dim]{reference:.3f}[/dim]" if reference is not None else ""
            cells.append(cell)
        table.add_row(told.name, *cells)
    Console(width=160).print(table)
