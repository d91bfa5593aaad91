"""Rules that a planner is held against: each is what a team might write in an afternoon."""

import math
from collections.abc import Callable
from statistics import NormalDist

from benchmarks._scenario_world import Move, Policy, View
from benchmarks._scenarios import BatchShape, LiveShape, Scenario, Shape

__all__ = ["RULES", "AllStandard", "BatchAndHope", "CheapestThatFits", "LatestSafeStart", "UniformProgress"]

Q = 0.99
_Z = NormalDist().inv_cdf(Q)


def _makespan(shape: LiveShape, base: float, share: float = 1.0) -> float:
    """Return the minutes within which a share of a step is done on a live tier with chance `Q`."""
    return base + share * shape.median * math.exp(_Z * shape.sigma) if share > 0 else 0.0


class AllStandard:
    """Every request on the standard tier."""

    def __init__(self, scenario: Scenario) -> None:
        pass

    def decide(self, view: View) -> Move:
        """Stay on standard."""
        return Move("standard")


class BatchAndHope:
    """Every request in a batch, to the end."""

    def __init__(self, scenario: Scenario) -> None:
        pass

    def decide(self, view: View) -> Move:
        """Wait; what expired goes to standard."""
        return Move("standard" if view.batch_tried and not view.batch_out else "batch")


class _Chain:
    """What every step of a chain needs on standard at `Q`, and what all that comes after it needs."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        needs = [_makespan(step.standard, scenario.base) for step in scenario.steps]
        self.after = [self._after(step, needs) for step in scenario.steps]

    def _after(self, step: Shape, needs: list[float]) -> float:
        return max(
            (
                needs[number] + self._after(other, needs)
                for number, other in enumerate(self.scenario.steps)
                if step.id in other.deps
            ),
            default=0.0,
        )


class CheapestThatFits(_Chain):
    """For each step the cheapest tier that is done in time with chance `Q`, kept to the end."""

    def decide(self, view: View) -> Move:
        """Decide once, at the step's start."""
        if view.tier is not None:
            return Move(view.tier if view.batch_out or view.tier != "batch" else "standard")
        left = self.scenario.deadline - view.now - self.after[view.step]
        shape = self.scenario.steps[view.step].batch
        return Move("batch" if _batch_by(shape, left) >= Q else "standard")


def _batch_by(shape: BatchShape, minutes: float) -> float:
    if minutes <= 0:
        return 0.0
    body = NormalDist().cdf(math.log(minutes / shape.median) / shape.sigma)
    low, high = shape.stuck
    return (1 - shape.p_stuck) * body + shape.p_stuck * min(max((minutes - low) / (high - low), 0.0), 1.0)


class LatestSafeStart(_Chain):
    """Batch until the last instant at which standard still makes it with chance `Q`, waiting for the cancel.

    What a running batch tells of its progress shortens what standard would have to do.
    """

    def due(self, view: View) -> float:
        """Return when the step must be done."""
        return self.scenario.deadline - self.after[view.step]

    def latest(self, view: View) -> float:
        """Return the last instant at which standard may start, one cancel earlier where a batch must be left first."""
        share = view.remaining * (1 - (view.progress or 0.0)) if view.batch_out else view.remaining
        latest = self.due(view) - _makespan(self.scenario.steps[view.step].standard, self.scenario.base, share)
        return latest - self.scenario.cancel[1] if view.batch_out or not view.batch_tried else latest

    def decide(self, view: View) -> Move:
        """Return batch while there is time."""
        latest = self.latest(view)
        if view.tier in ("standard", "priority") or view.now >= latest or (view.batch_tried and not view.batch_out):
            return Move("standard")
        return Move("batch", review_at=view.now + max((latest - view.now) / 4, 0.25))


class UniformProgress(LatestSafeStart):
    """The same within each step's own part of the time: the straight line from the start to the deadline.

    What falls behind goes to flex while it is up and there is time, else to standard.
    """

    def due(self, view: View) -> float:
        """Return when the straight line has the step done."""
        share = sum(step.weight for step in self.scenario.steps[: view.step + 1])
        return min(self.scenario.deadline * share, super().due(view))

    def decide(self, view: View) -> Move:
        """Return batch while the line is not crossed, then flex while it is up."""
        move = super().decide(view)
        if move.tier == "batch" or view.tier == "standard" or not self.scenario.has_flex:
            return move
        step = self.scenario.steps[view.step]
        latest = LatestSafeStart.due(self, view) - _makespan(step.standard, self.scenario.base, view.remaining)
        if view.flex_up and view.now < latest:
            return Move("flex", review_at=view.now + max((latest - view.now) / 4, 0.25))
        return move


RULES: dict[str, Callable[[Scenario], Policy]] = {
    "all standard": AllStandard,
    "batch and hope": BatchAndHope,
    "cheapest that fits": CheapestThatFits,
    "latest safe start": LatestSafeStart,
    "uniform progress": UniformProgress,
}
