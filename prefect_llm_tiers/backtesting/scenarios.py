"""Scenario files: chains with the laws of their world, as plain data. The form is told in `docs/scenarios.md`.

Times are minutes, and costs shares of what the chain costs if every request runs on the standard tier.
"""

import math
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

import msgspec

from prefect_llm_tiers.backtesting.world import FlexDays, StepLuck, flex_days
from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw
from prefect_llm_tiers.planning.problem import Problem, StepProblem

__all__ = ["UNITS", "Scenario", "read_scenarios"]

UNITS = 1000
"""What a chain costs on the standard tier: dollars, so that a plan prints shares in tenths of a per cent."""

_REQUESTS = 10_000
"""How many requests a chain has: scenarios name none, and laws are of whole steps."""

_WINDOW_MIN = 1440.0

_PRICE = {
    Tier.BATCH: Decimal("0.5"),
    Tier.FLEX: Decimal("0.5"),
    Tier.STANDARD: Decimal(1),
    Tier.PRIORITY: Decimal("1.9"),
}

_STARTS = datetime(2026, 11, 1, 22, tzinfo=UTC)


class _Live(msgspec.Struct, frozen=True):
    median: float
    sigma: float


class _Batch(msgspec.Struct, frozen=True):
    median: float
    sigma: float
    p_stuck: float
    stuck: tuple[float, float]
    progress: Literal["linear", "bursty"] = "linear"


class _Flex(msgspec.Struct, frozen=True):
    up: float
    down: float


class _Step(msgspec.Struct, frozen=True):
    id: str
    weight: float
    deps: tuple[str, ...] = ()
    batch: _Batch | None = None
    flex: _Live | None = None
    standard: _Live | None = None
    priority: _Live | None = None

    def live(self, tier: Tier) -> _Live | None:
        """Return the law of a live tier."""
        return {Tier.FLEX: self.flex, Tier.STANDARD: self.standard, Tier.PRIORITY: self.priority}.get(tier)


class Scenario(msgspec.Struct, frozen=True):
    """One chain in a world of its own.

    Attributes:
        name: What to call it.
        deadline: When the last step is due, from the start.
        miss_p: Chance of a miss that is allowed.
        tiers: Tiers that may be used.
        steps: In an order in which each comes after those it needs.
        cancel: Least and greatest time until a cancel is final.
        base: Set-up time of a live tier.
        flex_env: Mean times up and down of flex; None where it is always up.
        rows_readable: `ended`: which rows of a batch are done can be read when it is over.
        progress_visible: Whether the share that is done can be seen before.
    """

    name: str
    deadline: float
    miss_p: float
    tiers: tuple[Tier, ...]
    steps: tuple[_Step, ...]
    cancel: tuple[float, float]
    base: float = 0.0
    flex_env: _Flex | None = None
    rows_readable: Literal["ended"] = "ended"
    progress_visible: bool = True

    def problem(self) -> Problem:
        """Return it as the planner sees it: the laws of the world, which it is told."""
        return Problem(
            now=_STARTS,
            due=_STARTS + timedelta(minutes=self.deadline),
            on_time=1 - self.miss_p,
            steps=tuple(self._step(step) for step in self.steps),
            basis=f"the laws of scenario {self.name}",
        )

    def _step(self, step: _Step) -> StepProblem:
        requests = max(1, round(step.weight * _REQUESTS))
        whole = Decimal(repr(step.weight)) * UNITS
        batch = step.batch if Tier.BATCH in self.tiers else None
        return StepProblem(
            name=step.id,
            requests=requests,
            batch=BatchLaw(
                median_s=60 * batch.median,
                sigma=batch.sigma,
                p_stuck=batch.p_stuck,
                stuck_from_s=60 * batch.stuck[0],
                stuck_to_s=60 * batch.stuck[1],
                window_s=60 * _WINDOW_MIN,
            )
            if batch is not None
            else None,
            live={
                tier: self._live(tier, law, requests)
                for tier in LIVE_TIERS
                if tier in self.tiers and (law := step.live(tier)) is not None
            },
            cost_usd={tier: whole * _PRICE[tier] for tier in {*self.tiers, Tier.STANDARD}},
            after=step.deps,
            cancel_s=60 * self.cancel[1],
            poll_s=0.0,
        )

    def _live(self, tier: Tier, law: _Live, requests: int) -> LiveLaw:
        env = self.flex_env if tier is Tier.FLEX else None
        return LiveLaw(
            base_s=60 * self.base,
            per_request_s=60 * law.median / requests,
            sigma=law.sigma,
            p_down=env.down / (env.up + env.down) if env is not None else 0.0,
            down_s=60 * env.down if env is not None else 0.0,
        )

    def luck(self, seed: str) -> tuple[dict[str, StepLuck], FlexDays]:
        """Return one night's luck; the same for the same seed."""
        # Reproducible draws of a simulated world, not secrets.
        draw = random.Random(f"{self.name}:{seed}")  # noqa: S311
        luck = {step.id: self._luck(step, draw) for step in self.steps}
        return luck, self._flex_days(draw)

    def _luck(self, step: _Step, draw: random.Random) -> StepLuck:
        place, stuck, normal = draw.random(), draw.random(), draw.gauss(0, 1)
        batch = step.batch
        batch_min = math.inf
        if batch is not None:
            body, (first, last) = batch.median * math.exp(batch.sigma * normal), batch.stuck
            batch_min = first + place * (last - first) if stuck < batch.p_stuck else body
        begins, cancel_min = draw.uniform(0, 0.5), draw.uniform(*self.cancel)
        # One to four jumps, the last at the end.
        count = draw.randrange(4)
        instants, shares = (sorted(draw.random() for _ in range(count)) for _ in range(2))
        jumps = (*zip(instants, shares, strict=True), (1.0, 1.0))
        return StepLuck(
            batch_s=60 * batch_min,
            begins=begins,
            jumps=jumps if batch is not None and batch.progress == "bursty" else (),
            notice_s=0.0,
            cancel_s=60 * cancel_min,
            pace={
                tier: math.exp(law.sigma * draw.gauss(0, 1))
                for tier in LIVE_TIERS
                if (law := step.live(tier)) is not None
            },
        )

    def _flex_days(self, draw: random.Random) -> FlexDays:
        if self.flex_env is None:
            return FlexDays()
        return flex_days(draw, up_s=60 * self.flex_env.up, down_s=60 * self.flex_env.down, until_s=60 * self.deadline)


def read_scenarios(paths: Sequence[Path]) -> Iterator[Scenario]:
    """Return the scenarios of some files.

    Raises:
        ConfigurationError: A file cannot be read or holds something else.
    """
    for path in paths:
        try:
            yield from msgspec.json.decode(path.read_bytes(), type=list[Scenario])
        except OSError as error:
            msg = f"{path} cannot be read ({error.strerror}). Give the path of a file of scenarios."
            raise ConfigurationError(msg) from error
        except msgspec.MsgspecError as error:
            msg = f"{path} holds no list of scenarios ({error}). Their form is told in docs/scenarios.md."
            raise ConfigurationError(msg) from error
