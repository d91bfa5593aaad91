"""Scenario files: chains of steps as plain data, and the luck of one run of them.

`docs/scenarios.md` tells the form. Times are minutes; costs are units of the chain's cost if every request ran on the
standard tier.
"""

import bisect
import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

__all__ = ["EXPIRES", "PRICE", "BatchLuck", "BatchShape", "LiveShape", "Luck", "Scenario", "Shape", "load", "luck_of"]

EXPIRES = 1440.0
"""Minutes after which a batch expires."""

_ROUNDING = 1e-9
"""An instant less another one is seldom exactly the time between them."""

PRICE = {"batch": 0.5, "flex": 0.5, "standard": 1.0, "priority": 1.9}

_SCENARIOS = Path(__file__).with_name("scenarios.json")


class LiveShape(msgspec.Struct, frozen=True):
    """The completion law of a whole step on a live tier, set-up apart: log-normal."""

    median: float
    sigma: float


class BatchShape(msgspec.Struct, frozen=True):
    """The completion law of a whole step as a batch: log-normal, or with chance `p_stuck` uniform over `stuck`."""

    median: float
    sigma: float
    p_stuck: float
    stuck: tuple[float, float]
    progress: Literal["linear", "bursty"]


class Shape(msgspec.Struct, frozen=True):
    """One step."""

    id: str
    deps: tuple[str, ...]
    weight: float
    batch: BatchShape
    standard: LiveShape
    priority: LiveShape
    flex: LiveShape | None = None


class FlexProcess(msgspec.Struct, frozen=True):
    """Mean minutes that flex is up and down; the times are exponential, and the process is stationary at the start."""

    up: float
    down: float


class Scenario(msgspec.Struct, frozen=True):
    """A chain, its deadline, and what it may use."""

    name: str
    deadline: float
    miss_p: float
    tiers: tuple[str, ...]
    flex_env: FlexProcess | None
    cancel: tuple[float, float]
    base: float
    steps: tuple[Shape, ...]
    rows_readable: str = "ended"
    progress_visible: bool = True

    @property
    def has_flex(self) -> bool:
        """Whether flex may be used, and there is some."""
        return "flex" in self.tiers and self.flex_env is not None


class BatchLuck(msgspec.Struct, frozen=True):
    """What becomes of one step's batch, in minutes from its submission.

    Attributes:
        takes: When it completes; past `EXPIRES` it expires.
        jumps: Shares of the time at which rows come in, and the share done from then on; empty for a steady one.
        begins: The share of the time at which a steady one begins to tell of rows.
        bend: The power that a steady one's progress is raised to; 1 for a straight line.
        cancel: How long its cancel takes.
    """

    takes: float
    jumps: tuple[tuple[float, ...], tuple[float, ...]] | None
    begins: float
    bend: float
    cancel: float

    def share(self, elapsed: float) -> float:
        """Return the share of its rows that is done after some minutes."""
        x = min(elapsed, EXPIRES) / self.takes
        if x >= 1 - _ROUNDING:
            return 1.0
        if self.jumps is not None:
            before = bisect.bisect_right(self.jumps[0], x)
            return self.jumps[1][before - 1] if before else 0.0
        return float(max(0.0, (x - self.begins) / (1 - self.begins)) ** self.bend)


class Luck(msgspec.Struct, frozen=True):
    """Every draw of one run.

    Attributes:
        batches: By step.
        live: Minutes that the whole step takes on each live tier, by step.
        up: Whether flex is up at the start.
        flips: When that changes.
    """

    batches: tuple[BatchLuck, ...]
    live: tuple[dict[str, float], ...]
    up: bool
    flips: tuple[float, ...]

    def flex_up(self, now: float) -> bool:
        """Return whether flex takes calls."""
        return self.up ^ (bisect.bisect_right(self.flips, now) % 2 == 1)

    def next_flip(self, now: float) -> float:
        """Return when that changes next; infinity where it does not before the end."""
        after = bisect.bisect_right(self.flips, now)
        return self.flips[after] if after < len(self.flips) else math.inf


def load(path: Path = _SCENARIOS) -> list[Scenario]:
    """Return the scenarios of a file. Raises `msgspec.ValidationError`."""
    return msgspec.json.decode(path.read_bytes(), type=list[Scenario])


def luck_of(scenario: Scenario, seed: int, *, load: float = 0.0, bend: float = 0.0, slow: float = 1.0) -> Luck:
    """Draw one run; the same for every policy.

    Args:
        scenario: The chain.
        seed: Which run.
        load: Sigma of a log-normal factor on every batch and flex time of the run.
        bend: Sigma of the log-normal power that steady progress is raised to.
        slow: Factor on the time of the standard tier.
    """
    rng = np.random.default_rng([20_261_201, seed, *scenario.name.encode()])
    factor = math.exp(load * rng.standard_normal())
    batches: list[BatchLuck] = []
    live: list[dict[str, float]] = []
    for step in scenario.steps:
        batches.append(_batch(scenario, step.batch, rng, factor=factor, bend=bend))
        normals = rng.standard_normal(3)
        shapes = {"flex": step.flex, "standard": step.standard, "priority": step.priority}
        factors = {"flex": factor, "standard": slow, "priority": 1.0}
        live.append(
            {
                tier: factors[tier] * shape.median * math.exp(shape.sigma * normal)
                for (tier, shape), normal in zip(shapes.items(), normals, strict=True)
                if shape is not None
            }
        )
    up, flips = True, list[float]()
    if scenario.flex_env is not None:
        means = scenario.flex_env
        up = bool(rng.random() < means.up / (means.up + means.down))
        now, state = 0.0, up
        while now < scenario.deadline:
            now += rng.exponential(means.up if state else means.down)
            flips.append(now)
            state = not state
    return Luck(batches=tuple(batches), live=tuple(live), up=up, flips=tuple(flips))


def _batch(scenario: Scenario, shape: BatchShape, rng: np.random.Generator, *, factor: float, bend: float) -> BatchLuck:
    takes = shape.median * math.exp(shape.sigma * rng.standard_normal())
    luck, place, begins, cancel = rng.random(4)
    if luck < shape.p_stuck:
        takes = shape.stuck[0] + place * (shape.stuck[1] - shape.stuck[0])
    count = int(rng.integers(1, 5))
    times, shares = np.sort(rng.random(3)[: count - 1]), np.sort(rng.random(3)[: count - 1])
    power = math.exp(bend * rng.standard_normal())
    bursty = shape.progress == "bursty"
    return BatchLuck(
        takes=factor * takes,
        jumps=((*times.tolist(), 1.0), (*shares.tolist(), 1.0)) if bursty else None,
        begins=begins / 2,
        bend=power,
        cancel=scenario.cancel[0] + cancel * (scenario.cancel[1] - scenario.cancel[0]),
    )
