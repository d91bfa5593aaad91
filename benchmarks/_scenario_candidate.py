"""A candidate for the planner's next rule: every decision by what time is worth, see `_scenario_values`."""

import math
from itertools import pairwise

import numpy as np

from benchmarks._scenario_values import PENALTY, PRIORITY_W, PRIORITY_Z, StepValues, Values
from benchmarks._scenario_world import Move, View
from benchmarks._scenarios import LiveShape, Scenario

__all__ = ["ValueOfTime"]

LEAST_REVIEW = 0.25
"""Minutes between two looks at least."""

LIVE_REVIEW = 0.02
"""Part of the time left between two looks at a live tier."""

PACE_FROM = 0.02
"""Share of a live tier's work from which its pace is believed."""

_EVEN = 1e-9
_BEGINS = np.array([0.05, 0.15, 0.25, 0.35, 0.45])


class ValueOfTime:
    """Leaves a tier when what it may still save is worth less than the time.

    Args:
        scenario: The chain.
        values: Its values, for many runs; made anew where there are none.
        blind: Whether a batch's progress is left unread.
    """

    def __init__(self, scenario: Scenario, values: Values | None = None, *, blind: bool = False) -> None:
        self._scenario = scenario
        self._values = values or Values(scenario)
        self._blind = blind
        self._seen: list[tuple[float, float]] = []
        """Earlier looks at the batch: minutes since it was sent, share done."""

    def decide(self, view: View) -> Move:
        """Return where the rest of a step should be now."""
        values, left = self._values.steps[view.step], self._scenario.deadline - view.now
        if view.tier in ("standard", "priority"):
            return self._on_sure(values, view, left)
        if view.tier == "batch" and view.batch_out:
            return self._in_batch(values, view, left)
        return self._enter(values, view, left)

    def _enter(self, values: StepValues, view: View, left: float) -> Move:
        """Choose a tier for what is open, at the start, after a batch, or in flex."""
        share, up = view.remaining, int(view.flex_up)
        costs = values.tier_costs(left, share, up)
        if view.tier == "flex" and view.flex_up:
            # Its set-up is behind it.
            costs["flex"] = values.tier_costs(left + self._scenario.base, share, up)["flex"]
        best = min(costs, key=lambda tier: (costs[tier], tier))
        if not view.batch_tried:
            (cost,), (leave,) = values.in_batch(np.array([left]), up, share=share)
            if cost < costs[best] - _EVEN:
                self._seen.clear()
                return Move("batch", review_at=view.now + max(LEAST_REVIEW, 0.3 * float(leave)))
        if "flex" in costs and costs["flex"] <= costs[best] + _EVEN and costs["flex"] < 0.9 * PENALTY:
            # In an outage its cost is never above a sure tier's: equal, there is nothing to wait for.
            others = min((cost for tier, cost in costs.items() if tier != "flex"), default=math.inf)
            if view.flex_up or costs["flex"] < others - _EVEN:
                return Move("flex", review_at=view.now + max(LEAST_REVIEW, 0.03 * left))
            best = min((tier for tier in costs if tier != "flex"), key=lambda tier: costs[tier])
        return Move(best, review_at=view.now + max(LEAST_REVIEW, LIVE_REVIEW * left))

    def _in_batch(self, values: StepValues, view: View, left: float) -> Move:
        again = self._leave_after(values, view, left)
        if again > 0:
            return Move("batch", review_at=view.now + again)
        rest = view.remaining * (1 - (view.progress or 0.0))
        costs = values.tier_costs(left - sum(self._scenario.cancel) / 2, rest, int(view.flex_up))
        tier = min(costs, key=lambda tier: (costs[tier], tier))
        need = min(
            self._scenario.base + rest * shape.median * math.exp(2.6 * shape.sigma)
            for shape in self._sure_shapes(view.step)
        )
        return Move(tier, start_by=view.now + max(left - need - self._later(view), 0.0))

    def _sure_shapes(self, number: int) -> list[LiveShape]:
        step = self._scenario.steps[number]
        return [
            shape
            for tier, shape in (("standard", step.standard), ("priority", step.priority))
            if tier in self._scenario.tiers
        ]

    def _later(self, view: View) -> float:
        return sum(
            min(self._scenario.base + shape.median * math.exp(2.6 * shape.sigma) for shape in self._sure_shapes(number))
            for number in range(view.step + 1, len(self._scenario.steps))
        )

    def _leave_after(self, values: StepValues, view: View, left: float) -> float:
        """Return after how many minutes to look again; 0 to leave now."""
        done, up = (0.0 if self._blind else view.progress or 0.0), int(view.flex_up)
        if done <= 0 or view.progress is None:
            _, (leave,) = values.in_batch(np.array([left]), up, elapsed=view.elapsed, share=view.remaining)
            often = 0.02 * left if view.progress is not None else math.inf
            return max(min(0.3 * float(leave), often), LEAST_REVIEW) if leave > 0 else 0.0
        rest = self._rest(view.elapsed, done)
        self._seen.append((view.elapsed, done))
        if rest is None:
            leave = values.standing_still(left, up, elapsed=view.elapsed, done=done, share=view.remaining)
            return max(min(0.3 * leave, 0.02 * left), LEAST_REVIEW) if leave > 0 else 0.0
        leave = values.at_pace(left, up, done=done, rest=rest, share=view.remaining)
        return max(min(leave, 0.25 * rest, 0.02 * left), LEAST_REVIEW) if leave > 0 else 0.0

    def _rest(self, elapsed: float, done: float) -> float | None:
        """Return what the rest of a batch takes at the pace seen; None where it stands still or comes in jumps."""
        if self._seen and self._seen[-1][0] > elapsed:
            self._seen.clear()
        if not self._seen:
            # It began somewhere in the first half of its time.
            return float(np.mean(elapsed / (_BEGINS + done * (1 - _BEGINS)))) - elapsed
        shares = [share for _, share in self._seen] + [done]
        if any(later <= earlier for earlier, later in pairwise(shares)):
            return None
        # Over the later half of what was seen: a pace that bends is followed.
        at, share = self._seen[len(self._seen) // 2]
        return (1 - done) * (elapsed - at) / (done - share)

    def _on_sure(self, values: StepValues, view: View, left: float) -> Move:
        """Stay, or escalate where the pace that is seen would be late; never back."""
        if view.tier == "priority" or "priority" not in self._scenario.tiers:
            return Move(view.tier or "standard", start_by=view.now)
        step, base, share, up = self._scenario.steps[view.step], self._scenario.base, view.remaining, int(view.flex_up)
        rest = max(base - view.elapsed, 0.0) + share * step.standard.median
        done, worked = view.progress or 0.0, view.elapsed - base
        if done >= PACE_FROM and worked > 0:
            rest = worked * (1 - done) / done
        elif worked > 0:
            # Nothing came back though it should have: at least as slow as that.
            rest = max(rest, worked * (1 - PACE_FROM) / PACE_FROM)
        stays = share * values.price("standard") + float(values.after(np.array([left - rest]), up, np.array([rest]))[0])
        mixes = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])[:, None]
        faster = base + share * (1 - mixes) * step.priority.median * np.exp(step.priority.sigma * PRIORITY_Z)[None, :]
        paid = share * (values.price("standard") * mixes + values.price("priority") * (1 - mixes))[:, 0]
        mixed = paid + values.after(left - rest * mixes - faster, up, rest * mixes + faster) @ PRIORITY_W
        best = int(mixed.argmin())
        often = max(LIVE_REVIEW * left, 0.1 * rest, 1 / 60)
        if mixed[best] < stays - _EVEN:
            if best == 0:
                return Move("priority", start_by=view.now)
            often = min(often, float(mixes[best, 0]) * rest)
        return Move("standard", review_at=view.now + often, start_by=view.now)
