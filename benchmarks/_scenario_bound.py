"""What nobody can beat: the cost of one run for somebody who knows every draw of it.

Relaxed besides: tiers run side by side, a cancel takes no time, and any rows can be taken out of a batch. So no policy
reaches it. Computed backward over the chain on a grid of time; it shares nothing with the planner but the prices.
"""

import numpy as np
import numpy.typing as npt

from benchmarks._scenarios import PRICE, Luck, Scenario

__all__ = ["bound"]

GRID = 400

Costs = npt.NDArray[np.float64]


def bound(scenario: Scenario, luck: Luck) -> float:
    """Return the least cost of a run; infinity where not even every tier at once is done by the deadline.

    Raises:
        ValueError: The steps are no chain.
    """
    for before, step in zip(("", *(step.id for step in scenario.steps)), scenario.steps, strict=False):
        if step.deps != ((before,) if before else ()):
            msg = f"{scenario.name!r} is no chain: {step.id!r} needs {', '.join(step.deps) or 'nothing'}"
            raise ValueError(msg)
    times = np.linspace(0.0, scenario.deadline, GRID + 1)
    up = _up_until(scenario, luck, times)
    later = np.zeros(GRID + 1)
    for number in range(len(scenario.steps) - 1, -1, -1):
        later = _step(scenario, luck, number, times=times, up=up, later=later)
    return float(later[0])


def _step(scenario: Scenario, luck: Luck, number: int, *, times: Costs, up: Costs, later: Costs) -> Costs:
    """Return the least cost of a step and all after it, by the step's start."""
    weight, batch, live = scenario.steps[number].weight, luck.batches[number], luck.live[number]
    in_batch = np.array([batch.share(float(elapsed)) for elapsed in times])
    working = np.maximum(times - scenario.base, 0.0)
    standard, priority = working / live["standard"], np.zeros_like(times)
    if "priority" in scenario.tiers:
        priority = working / live["priority"]
    least = np.full(GRID + 1, np.inf)
    # Off the grid: the very instant at which the batch completes.
    ends = times + batch.takes
    ended = ends <= scenario.deadline
    least[ended] = weight * PRICE["batch"] + np.interp(ends[ended], times, later)
    for start in range(GRID + 1):
        span = slice(0, GRID + 1 - start)
        cheap = in_batch[span]
        if scenario.has_flex:
            cheap = cheap + (up[start:] - up[start]) / live["flex"]
        cheap = np.minimum(cheap, 1.0)
        in_standard = np.minimum(1 - cheap, standard[span])
        rest = 1 - cheap - in_standard
        cost = weight * (PRICE["batch"] * cheap + in_standard + PRICE["priority"] * rest) + later[start:]
        cost[rest > priority[span] + 1e-12] = np.inf
        least[start] = min(least[start], cost.min())
    return least


def _up_until(scenario: Scenario, luck: Luck, times: Costs) -> Costs:
    """Return for how long flex was up by each instant."""
    edges, totals, state = [0.0], [0.0], luck.up
    for flip in (*(flip for flip in luck.flips if flip < scenario.deadline), scenario.deadline):
        totals.append(totals[-1] + (flip - edges[-1] if state else 0.0))
        edges.append(flip)
        state = not state
    return np.interp(times, edges, totals)
