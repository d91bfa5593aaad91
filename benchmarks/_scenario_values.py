"""What time is worth in a scenario: the least expected cost of a step and all after it, by the time that is left.

A dynamic programme, backward over the steps. For each step, by the time left until the deadline and by the share of it
that is left to ask:

- *standard* and *priority* from now on: the price, and the expectation of what follows over the law's quantiles.
  Standard tells its pace soon, so what is left goes to priority where that is cheaper than being late.
- *flex*: the up and down of its capacity as a Markov process; in an outage the better of waiting and a sure tier.
- *batch*: left at the instant that is best. What it completes until its cancel is final is kept, and the rest goes on
  wherever that is cheapest. Where progress can be seen, the instant depends on it: a batch that has told of nothing
  yet has at least as much time before it as behind it, and one that tells goes on at its pace.

Being late costs `PENALTY`, so that the chance of it weighs against money. The method is backward induction (Bellman
1957); expectations are sums over fixed quantiles, so nothing is drawn.
"""

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from benchmarks._scenarios import EXPIRES, PRICE, BatchShape, FlexProcess, LiveShape, Scenario, Shape

__all__ = ["PENALTY", "PRIORITY_W", "PRIORITY_Z", "StepValues", "Values"]

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

PENALTY = 20.0
"""In units of the chain's cost. So dear that at the deadline one chance of missing in a hundred is not worth a saving
of a fifth of the chain."""

LEVELS = np.array([0.0, 0.04, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0])
"""Shares of a step at which the value of what is left is known; linear between them."""

_NORMAL = NormalDist()


def _nodes(edges: list[float], last: float) -> tuple[Array, Array]:
    """Return standard normal nodes and weights of the classes between some quantiles; the last node at `last`."""
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    middles[-1] = last
    return np.array([_NORMAL.inv_cdf(middle) for middle in middles]), np.diff(np.array(edges))


# Fine where it is late: what is decided is safe by the tail of the tier that it falls back to.
_Z, _W = _nodes([0, 0.04, 0.15, 0.35, 0.6, 0.8, 0.9, 0.96, 0.985, 0.995, 0.9985, 1], 0.9995)
PRIORITY_Z, PRIORITY_W = _nodes([0, 0.5, 0.9, 0.98, 0.998, 1], 0.9995)

_CANCELS = ((0.16, 0.4), (0.53, 0.3), (0.79, 0.2), (0.98, 0.1))
"""Quantiles of a uniform cancel, and their weights: fine where it is long."""

_MIXES = (0.15, 0.4, 0.65, 0.85)
"""Shares of what is left that standard may do before priority takes over."""

_FUTURES = 48
_LEAVES = 14
"""Instants at which a batch may be left, geometric from now on."""

_KNOWN_LEAVES = np.linspace(0.0, 1.0, 7)[:-1]
"""The same once its end is known: shares of what it still takes."""

_GOLDEN = (math.sqrt(5) - 1) / 2
_NEVER_LATE = 1e-9


class Futures:
    """Batches that stand for all that a law allows: completion times at even quantiles.

    Attributes:
        takes: Completion times, ascending.
        begins: When each begins to get rows done, evenly from then on; spread over the first half of its time.
    """

    def __init__(self, shape: BatchShape) -> None:
        quantiles = (np.arange(_FUTURES) + 0.5) / _FUTURES
        self.takes = np.array([_quantile(shape, float(q)) for q in quantiles])
        self.begins = self.takes * 0.5 * ((np.arange(_FUTURES) * _GOLDEN + 0.31) % 1)

    def share(self, elapsed: Array, which: Places) -> Array:
        """Return the share done after some minutes, of some futures; `elapsed` has them as its first axis."""
        takes = self.takes[which].reshape(-1, *(1 for _ in elapsed.shape[1:]))
        begins = self.begins[which].reshape(takes.shape)
        return np.asarray(np.clip((np.minimum(elapsed, EXPIRES) - begins) / (takes - begins), 0.0, 1.0))


def _quantile(shape: BatchShape, q: float) -> float:
    low, high = 0.0, max(100 * shape.median, shape.stuck[1])
    for _ in range(50):
        middle = (low + high) / 2
        body = _NORMAL.cdf(math.log(middle / shape.median) / shape.sigma)
        tail = min(max((middle - shape.stuck[0]) / (shape.stuck[1] - shape.stuck[0]), 0.0), 1.0)
        if (1 - shape.p_stuck) * body + shape.p_stuck * tail < q:
            low = middle
        else:
            high = middle
    return high


class Values:
    """The values of a scenario's steps.

    Attributes:
        scenario: The chain.
        grid: Minutes left until the deadline, ascending from 0: fine where it is tight.
        tight: Where that ends: beyond it the sure tiers make it whatever their luck.
        steps: By place.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        need = sum(scenario.base + step.standard.median * math.exp(3 * step.standard.sigma) for step in scenario.steps)
        self.tight = min(scenario.deadline, 2 * need + 2 * scenario.cancel[1])
        self.grid = np.unique(
            np.concatenate(
                [np.linspace(0.0, self.tight, 96), np.geomspace(scenario.deadline / 500, scenario.deadline, 64)]
            )
        )
        self._children = _children(scenario)
        self.steps: dict[int, StepValues] = {}
        for number in range(len(scenario.steps) - 1, -1, -1):
            self.steps[number] = StepValues(self, scenario.steps[number], number)

    def after(self, number: int, left: Array, up: int) -> Array:
        """Return what all after a step costs, being late included, by the time left when it is done."""
        total = np.zeros_like(left)
        for child, spare in self._children[number]:
            start = self.steps[child].start[up]
            value = np.interp(left, self.grid, start)
            if spare is not None:
                # Another step is expected to hold it up: this one costs what it holds it up more.
                value = np.maximum(value - np.interp(spare, self.grid, start), 0.0)
            total = total + value
        return np.where(left < 0, PENALTY, total)

    def places(self, left: Array) -> tuple[Places, Array]:
        """Return where times lie on the grid: the place below, and the part of the way to the next."""
        fractional = np.interp(left, self.grid, np.arange(len(self.grid), dtype=np.float64))
        lower = np.minimum(fractional.astype(np.int64), len(self.grid) - 2)
        return lower, fractional - lower


def _children(scenario: Scenario) -> list[list[tuple[int, float | None]]]:
    """Return for each step those that wait for it; with the time left at which another one lets them start.

    A step that several lead to is charged to the one that is expected to be done last.
    """
    place = {step.id: number for number, step in enumerate(scenario.steps)}
    children: list[list[tuple[int, float | None]]] = [[] for _ in scenario.steps]
    done: list[float] = []
    for number, step in enumerate(scenario.steps):
        before = [place[name] for name in step.deps]
        last = max(before, key=done.__getitem__, default=None)
        for one in before:
            children[one].append((number, None if one == last else scenario.deadline - done[last or 0]))
        done.append((0.0 if last is None else done[last]) + _quantile(step.batch, 0.6))
    return children


class StepValues:
    """One step's values. Tables have the shape (levels, grid).

    Attributes:
        tiers: The table of each live tier, entered now, for flex down and up.
        start: The least cost of the whole step and all after it, for flex down and up; shape (2, grid).
    """

    def __init__(self, values: Values, step: Shape, number: int) -> None:
        self._values, self._step, self._number = values, step, number
        self._grid, self._scenario = values.grid, values.scenario
        self._futures = Futures(step.batch)
        low, high = self._scenario.cancel
        self._cancels = [(low + part * (high - low), weight) for part, weight in _CANCELS]
        self.tiers: dict[str, tuple[Array, Array]] = {}
        self._sure_tables()
        process = self._scenario.flex_env
        if self._scenario.has_flex and step.flex is not None and process is not None:
            self._flex_tables(step.flex, process)
        self._rest = tuple(np.minimum.reduce([table[up] for table in self.tiers.values()]) for up in (0, 1))
        self.start = np.stack([np.minimum(self._rest[up][-1], self.in_batch(self._grid, up)[0]) for up in (0, 1)])

    def price(self, tier: str) -> float:
        """Return what the whole step costs in a tier."""
        return PRICE[tier] * self._step.weight

    def after(self, left: Array, up: int, passed: Array) -> Array:
        """Return what everything after this step costs.

        Args:
            left: Time left when it is done.
            up: Whether flex is up now.
            passed: How long it is until then: flex may have changed.
        """
        if not self._scenario.has_flex:
            return self._values.after(self._number, left, 0)
        chance = self._up_after(up, passed)
        return chance * self._values.after(self._number, left, 1) + (1 - chance) * self._values.after(
            self._number, left, 0
        )

    def _rest_after(self, left: Array, share: Array, up: int, passed: Array) -> Array:
        """Return the least cost of a share of the step, and of all after it, with some time left then."""
        if not self._scenario.has_flex:
            return self._between(self._rest[0], left, share)
        chance = self._up_after(up, passed)
        return chance * self._between(self._rest[1], left, share) + (1 - chance) * self._between(
            self._rest[0], left, share
        )

    def _up_after(self, up: int, passed: Array) -> Array:
        """Return the chance that flex is up after some minutes, by the two-state Markov process."""
        process = self._scenario.flex_env
        assert process is not None
        settled = process.up / (process.up + process.down)
        return settled + (up - settled) * np.exp(-passed * (1 / process.up + 1 / process.down))

    # Live tiers

    def _sure_tables(self) -> None:
        shape = (len(LEVELS), len(self._grid))
        tiers = [tier for tier in ("standard", "priority") if tier in self._scenario.tiers]
        self.tiers = {tier: (np.zeros(shape), np.zeros(shape)) for tier in tiers}
        for up in (0, 1):
            for level, share in enumerate(LEVELS.tolist()):
                if "standard" in tiers:
                    self.tiers["standard"][up][level] = self._standard(share, up)
                if "priority" in tiers:
                    takes = self._makespans(self._step.priority, PRIORITY_Z, share)
                    late = self.after(self._grid[None, :] - takes[:, None], up, takes[:, None])
                    self.tiers["priority"][up][level] = self.price("priority") * share + PRIORITY_W @ late

    def _makespans(self, shape: LiveShape, normals: Array, share: float) -> Array:
        base = self._scenario.base if share > 0 else 0.0
        return np.asarray(base + share * shape.median * np.exp(shape.sigma * normals))

    def _standard(self, share: float, up: int) -> Array:
        """Return the cost of standard, whose pace is known soon so that priority may take the rest."""
        takes = self._makespans(self._step.standard, _Z, share)
        best = self.price("standard") * share + self.after(self._grid[None, :] - takes[:, None], up, takes[:, None])
        if share > 0 and "priority" in self._scenario.tiers:
            # Only where it may be late can a dearer tier pay.
            tight = slice(0, int(np.searchsorted(self._grid, self._values.tight)) + 1)
            for mix in _MIXES:
                rest = self._makespans(self._step.priority, PRIORITY_Z, share * (1 - mix))
                before = self._scenario.base + (takes - self._scenario.base) * mix
                passed = before[:, None, None] + rest[None, :, None]
                left = self._grid[None, None, tight] - passed
                paid = share * (self.price("standard") * mix + self.price("priority") * (1 - mix))
                mixed = paid + np.tensordot(PRIORITY_W, self.after(left, up, passed), axes=(0, 1))
                best[:, tight] = np.minimum(best[:, tight], mixed)
        return np.asarray(_W @ best)

    def _flex_tables(self, shape: LiveShape, process: FlexProcess) -> None:
        """Fill in flex: backward over the time left and what is left, while it goes up and down.

        Its own spread is small beside that of the outages, so its time is taken at one quantile, 0.62.
        """
        grid, levels = self._grid, len(LEVELS)
        whole = shape.median * math.exp(0.3 * shape.sigma)
        sure = [np.minimum.reduce([table[up] for table in self.tiers.values()]) for up in (0, 1)]
        down, up = sure[0].copy(), sure[1].copy()
        down[0], up[0] = self._values.after(self._number, grid, 0), self._values.after(self._number, grid, 1)
        steps = whole * np.diff(LEVELS)
        goes, works = -np.expm1(-steps / process.up), self.price("flex") * np.diff(LEVELS)
        # Where on the grid the time left lies once a level is worked off, and half of it.
        full = self._values.places(np.maximum(grid[None, :] - steps[:, None], 0.0))
        half = self._values.places(np.maximum(grid[None, :] - steps[:, None] / 2, 0.0))
        for place in range(1, len(grid)):
            comes = -math.expm1(-(grid[place] - grid[place - 1]) / process.down)
            waited = comes * up[1:, place - 1] + (1 - comes) * down[1:, place - 1]
            down[1:, place] = np.minimum(down[1:, place], waited)
            for level in range(1, levels):
                if grid[place] >= steps[level - 1]:
                    stays = _at(up[level - 1], full, (level - 1, place))
                    fails = _at(down[level], half, (level - 1, place))
                    chance = goes[level - 1]
                    value = works[level - 1] * (1 - chance / 2) + (1 - chance) * stays + chance * fails
                    up[level, place] = min(value, up[level, place])
        # Entered anew, it has its set-up before it.
        entered = np.stack([np.interp(grid - self._scenario.base, grid, row, left=PENALTY) for row in up])
        entered[0] = up[0]
        self.tiers["flex"] = (down, entered)

    def tier_costs(self, left: float, share: float, up: int) -> dict[str, float]:
        """Return the cost of each live tier entered now for a share of the step, and of all after it."""
        return {
            tier: float(self._between(tables[up], np.array(left), np.array(share)))
            for tier, tables in self.tiers.items()
        }

    def _between(self, table: Array, left: Array, share: Array) -> Array:
        left, share = np.broadcast_arrays(left, share)
        lower, part = self._values.places(np.maximum(left, 0.0))
        level = np.clip(np.searchsorted(LEVELS, share, side="right") - 1, 0, len(LEVELS) - 2)
        over = np.clip((share - LEVELS[level]) / (LEVELS[level + 1] - LEVELS[level]), 0.0, 1.0)
        below = table[level, lower] * (1 - part) + table[level, lower + 1] * part
        above = table[level + 1, lower] * (1 - part) + table[level + 1, lower + 1] * part
        return np.where(left < 0, PENALTY, below + over * (above - below))

    # Batch

    def _left_behind(
        self, left: Array, passed: Array, done: Array, over: Array, *, now: Array, share: float, up: int
    ) -> Array:
        """Return the cost of a batch that is left: what it brings until its cancel is final, and the rest.

        Args:
            left: Time left when the cancel is final.
            passed: How long that is from now.
            done: The share of the batch that is done by then.
            over: Time left when the batch completes by itself, where that is before.
            now: Time left now.
            share: The share of the step that it carries.
            up: Whether flex is up now.
        """
        billed = share * self.price("batch")
        rest = billed * done + self._rest_after(left, share * (1 - done), up, passed)
        return np.where(done >= 1, billed + self.after(over, up, now - over), rest)

    def in_batch(self, left: Array, up: int, *, elapsed: float = 0.0, share: float = 1.0) -> tuple[Array, Array]:
        """Return the least cost of a batch that has told of nothing yet, and after how long it is left then.

        Where progress can be seen, a batch that is steady would have begun to tell in the first half of its time, and
        one whose rows come in jumps need not: each is as likely beforehand as the other.

        Args:
            left: Times that may be left, ascending.
            up: Whether flex is up.
            elapsed: How long it has been running.
            share: The share of the step that it carries.
        """
        futures, tells = self._futures, self._scenario.progress_visible
        which = np.flatnonzero(futures.takes > elapsed)
        which = which if len(which) else np.array([_FUTURES - 1])
        takes = np.maximum(futures.takes[which], elapsed + 1 / 60)
        leaves = np.concatenate([[0.0], np.geomspace(max(0.5, 0.01 * left[-1]), max(left[-1], 1.0), _LEAVES)])
        now = left[None, None, :]
        over = now - np.minimum(takes, EXPIRES)[:, None, None] + elapsed
        final = np.broadcast_to(elapsed + leaves[None, :, None], (len(which), len(leaves), 1))
        steady = np.zeros((len(which), len(leaves), len(left)))
        jumping = np.zeros_like(steady)
        for cancel, weight in self._cancels:
            rows, passed = futures.share(final + cancel, which), leaves[None, :, None] + cancel
            steady += weight * self._left_behind(now - passed, passed, rows, over, now=now, share=share, up=up)
            if tells:
                rows = np.floor(rows)
                jumping += weight * self._left_behind(now - passed, passed, rows, over, now=now, share=share, up=up)
        # One that expires leaves a rest.
        rows = np.minimum(EXPIRES / takes, 1.0)[:, None, None]
        done = self._left_behind(over, now - over, rows, over, now=now, share=share, up=up)
        ended = np.minimum(takes, EXPIRES)[:, None, None] <= final
        if not tells:
            means = np.where(ended, done, steady).mean(axis=0)
            return means.min(axis=0), leaves[means.argmin(axis=0)]
        told = self._once_told(left, up, elapsed=elapsed, which=which, over=over, done=done, share=share)
        steady = np.where(futures.begins[which][:, None, None] <= final, told, steady)
        jumping = np.where(ended, done, jumping)
        silent = (futures.begins[which] > elapsed).astype(np.float64)
        before = 1 - np.minimum(elapsed / takes, 1.0)
        # One to four jumps, the last at the end: none has come yet.
        quiet = (1 + before + before**2 + before**3) / 4
        means = (silent @ steady.reshape(len(which), -1) + quiet @ jumping.reshape(len(which), -1)).reshape(
            len(leaves), len(left)
        ) / (silent.sum() + quiet.sum())
        return means.min(axis=0), leaves[means.argmin(axis=0)]

    def _once_told(
        self, left: Array, up: int, *, elapsed: float, which: Places, over: Array, done: Array, share: float
    ) -> Array:
        """Return the cost of batches whose end is known from the moment on at which rows begin to come."""
        takes, begins = self._futures.takes[which][:, None], self._futures.begins[which][:, None]
        at, now = begins + _KNOWN_LEAVES[None, :] * (takes - begins), left[None, None, :]
        cost = np.zeros((len(which), len(_KNOWN_LEAVES), len(left)))
        for cancel, weight in self._cancels:
            rows = self._futures.share((at + cancel)[:, :, None], which)
            passed = (at - elapsed)[:, :, None] + cancel
            cost += weight * self._left_behind(now - passed, passed, rows, over, now=now, share=share, up=up)
        return np.asarray(np.minimum(cost.min(axis=1, keepdims=True), done))

    def at_pace(self, left: float, up: int, *, done: float, rest: float, share: float = 1.0) -> float:
        """Return after how long a batch is best left that does its rest in some minutes; all of them: never."""
        leaves = np.linspace(0.0, 1.0, _LEAVES)[:-1] * rest
        over, cost, now = np.full_like(leaves, left - rest), np.zeros_like(leaves), np.array(left)
        for cancel, weight in self._cancels:
            rows = np.minimum(done + (1 - done) * (leaves + cancel) / max(rest, _NEVER_LATE), 1.0)
            passed = leaves + cancel
            cost += weight * self._left_behind(now - passed, passed, rows, over, now=now, share=share, up=up)
        whole = share * self.price("batch") + float(self.after(over[:1], up, now - over[:1])[0])
        best = int(cost.argmin())
        return rest if whole <= cost[best] + _NEVER_LATE else float(leaves[best])

    def standing_still(self, left: float, up: int, *, elapsed: float, done: float, share: float = 1.0) -> float:
        """Return after how long a batch is best left that has done a share and tells of no more."""
        takes = self._futures.takes[self._futures.takes > elapsed]
        takes = (takes if len(takes) else np.array([1.5 * elapsed]))[:, None]
        leaves = np.concatenate([[0.0], np.geomspace(max(0.5, 0.01 * left), max(left, 1.0), _LEAVES)])[None, :]
        over, cost, now = left - takes + elapsed, np.zeros((len(takes), leaves.shape[1])), np.array(left)
        for cancel, weight in self._cancels:
            rows, passed = np.where(takes <= elapsed + leaves + cancel, 1.0, done), leaves + cancel
            cost += weight * self._left_behind(now - passed, passed, rows, over, now=now, share=share, up=up)
        whole = share * self.price("batch") + self.after(over, up, now - over)
        means = np.where(takes <= elapsed + leaves, whole, cost).mean(axis=0)
        return float(leaves[0, means.argmin()])


def _at(row: Array, places: tuple[Places, Array], where: tuple[int, int]) -> float:
    lower, part = places[0][where], places[1][where]
    return float(row[lower] * (1 - part) + row[lower + 1] * part)
