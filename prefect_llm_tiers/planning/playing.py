"""Playing a plan through drawn nights: when each step is done, and how much of it ran in which tier.

Each night follows `decide`, side by side with all others: a rule that changes there changes here. The draws are
stratified (each one's sorted values are the same for every plan, only their order is drawn), so that a quantile of
one law is met exactly, and they are drawn once per problem, so that two plans are compared over the same nights.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.deciding import (
    BATCH_LIKELY,
    BATCH_WORTH_TRYING,
    miss_at,
    slack_law,
)
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw, Times, chances_by
from prefect_llm_tiers.planning.plan import Plan, StepPlan
from prefect_llm_tiers.planning.stopping import SETTLE_S

__all__ = ["NIGHTS", "Draws", "Night", "draws_of", "play"]

NIGHTS = 4096
"""Drawn nights; the standard error of a chance of 0.99 is at most 0.0016."""

_SEED = 20_261_121

_MOST_BATCHES = 6
"""Batches of one step that are played; that so many expire one after another has no chance worth a figure."""

Mask = npt.NDArray[np.bool_]


class Draws(msgspec.Struct, frozen=True):
    """The luck of one step in every night. Normals are standard, the others uniform over (0, 1)."""

    batch: Times
    stuck: Times
    stuck_at: Times
    begins: Times
    cancel: Times
    notice: Times
    outage: Times
    outage_length: Times
    flex: Times
    standard: Times
    priority: Times

    def live(self, tier: Tier) -> Times:
        """Return the normal draws of a live tier."""
        return {Tier.FLEX: self.flex, Tier.PRIORITY: self.priority}.get(tier, self.standard)


class Night(msgspec.Struct, frozen=True):
    """One step in every night.

    Attributes:
        starts_s: When its input is ready, in seconds from the plan's making.
        done_s: When it is done.
        shares: The share of its requests that each tier answered.
    """

    starts_s: Times
    done_s: Times
    shares: Mapping[Tier, Times]


def draws_of(steps: int) -> tuple[Draws, ...]:
    """Return the draws of so many steps; a longer chain begins with the same ones."""
    return tuple(_draws(number) for number in range(steps))


@lru_cache(maxsize=64)
def _draws(number: int) -> Draws:
    rng = np.random.default_rng([_SEED, number])
    uniforms = (np.arange(NIGHTS) + 0.5) / NIGHTS
    normals = np.array([NormalDist().inv_cdf(float(q)) for q in uniforms]) if number == 0 else np.sort(_draws(0).batch)
    kinds = {"batch", "flex", "standard", "priority"}
    return Draws(*(rng.permutation(normals if field in kinds else uniforms) for field in Draws.__struct_fields__))


def play(plan: Plan, after: Mapping[str, tuple[str, ...]], draws: tuple[Draws, ...]) -> dict[str, Night]:
    """Return what becomes of each step in every night.

    Args:
        plan: The plan, as far as `decide` reads it.
        after: The names of the steps that each step needs.
        draws: One for each step.
    """
    nights: dict[str, Night] = {}
    for step, luck in zip(plan.steps, draws, strict=True):
        starts = np.zeros(NIGHTS)
        for name in after[step.name]:
            starts = np.maximum(starts, nights[name].done_s)
        nights[step.name] = _Player(plan, step, luck, starts).play()
    return nights


class _Player:
    """Plays one step; instants are seconds from the plan's making."""

    def __init__(self, plan: Plan, step: StepPlan, luck: Draws, starts: Times) -> None:
        self._plan = plan
        self._step = step
        self._luck = luck
        self._starts = starts
        self._laws = dict(step.sure)
        self._clock = starts.copy()
        self._left = np.full(NIGHTS, float(step.requests))
        self._done = starts.copy()
        self._shares = {tier: np.zeros(NIGHTS) for tier in Tier}
        self._finish_s = self._seconds(step.latest_finish)
        self._miss_s = self._seconds(miss_at(plan, step))

    def _seconds(self, instant: datetime | None) -> float:
        return (instant - self._plan.made_at).total_seconds() if instant is not None else np.inf

    def play(self) -> Night:
        step = self._step
        active = np.ones(NIGHTS, dtype=bool)
        if step.requests <= 0:
            active[:] = False
        tried = False
        for number in range(_MOST_BATCHES):
            if not active.any():
                break
            law = slack_law(step, batch_tried=tried)
            starts_by = self._starts_by(law)
            missed = self._clock >= self._miss_s
            waits = active & ~missed & (self._clock < starts_by)
            relied_on = law is None and np.isfinite(self._finish_s)
            cheap = waits & (step.worthwhile or not step.sure or relied_on)
            batch = cheap & self._batch_fits(starts_by, tried=tried)
            if step.batch is not None and not step.sure and step.flex is None:
                batch = active
            flex = cheap & ~batch if step.flex is not None else np.zeros(NIGHTS, dtype=bool)
            if step.flex is not None:
                self._flex(flex, law)
                self._flex(active & missed, None)
                flex |= missed
            self._sure(active & ~batch & ~flex, self._sure_tiers())
            active &= batch
            if step.batch is not None and active.any():
                active = self._batch(active, step.batch, starts_by, number)
            tried = True
        self._done = np.where(active, self._clock, self._done)
        self._shares[Tier.BATCH] += np.where(active, self._left, 0.0)
        if step.requests > 0:
            self._done = self._done + SETTLE_S
        total = max(float(step.requests), 1.0)
        return Night(
            starts_s=self._starts,
            done_s=self._done,
            shares={tier: share / total for tier, share in self._shares.items() if share.any()},
        )

    def _starts_by(self, law: LiveLaw | None) -> Times:
        if law is None or not np.isfinite(self._finish_s):
            return np.full(NIGHTS, np.inf)
        return self._finish_s - law.quantiles(self._plan.reserve, self._left) - SETTLE_S

    def _batch_fits(self, starts_by: Times, *, tried: bool) -> Mask:
        step = self._step
        if step.batch is None:
            return np.zeros(NIGHTS, dtype=bool)
        if not np.isfinite(starts_by).any():
            return np.full(NIGHTS, not tried or step.flex is None)
        slack = starts_by - self._clock
        chance = chances_by(step.batch, np.maximum(slack - step.cancel_s, 0.0))
        if tried:
            return chance >= BATCH_LIKELY
        fits = chance >= BATCH_WORTH_TRYING
        if step.flex is not None:
            fits &= (chance >= BATCH_LIKELY) | (chance >= self._flex_by(slack, step.flex))
        return fits

    def _flex_by(self, slack: Times, law: LiveLaw) -> Times:
        """Return the chance that flex does all of the step in time: nobody has asked yet, so all is left."""
        grid = np.linspace(0.0, max(float(slack.max()), 1.0), 65)
        return np.interp(slack, grid, [law.chance_by(float(point), self._step.requests) for point in grid])

    def _batch(self, nights: Mask, law: BatchLaw, starts_by: Times, number: int) -> Mask:
        """Play a batch; return the nights in which it expired and the step goes on.

        Progress is taken as linear from a random start in the first half, because no provider tells more. The
        cancel takes its time, in which the batch goes on.
        """
        step, luck = self._step, self._luck

        def rolled(draws: Times) -> Times:
            # Another batch has other luck; the arrays are shuffled independently, so shifted ones are as good.
            return np.roll(draws, 997 * number)

        took = law.times(rolled(luck.batch), rolled(luck.stuck), rolled(luck.stuck_at))
        begins = took * 0.5 * rolled(luck.begins)
        if step.sure and np.isfinite(self._finish_s) and not np.isfinite(starts_by).any():
            # Relied on, it is left only when the deadline is missed.
            leave = np.maximum(self._miss_s - self._clock, 0.0)
        else:
            leave = np.maximum(starts_by - step.cancel_s - self._clock, 0.0)
        ends = np.minimum(took, law.window_s)
        stays = nights & (ends <= leave)
        completes = stays & (took <= law.window_s)
        expires = stays & ~completes
        noticed = np.minimum(ends + rolled(luck.notice) * step.poll_s, leave)
        self._shares[Tier.BATCH] += np.where(completes, self._left, 0.0)
        self._done = np.where(completes, self._clock + noticed, self._done)
        # A stuck batch may turn out to have been nothing but slow: what it did in time is kept.
        harvested = np.clip((law.window_s - begins) / np.maximum(took - begins, 1e-9), 0.0, 1.0) * self._left
        self._shares[Tier.BATCH] += np.where(expires, harvested, 0.0)
        leaves = nights & ~stays
        if leaves.any():
            tiers = self._sure_tiers_at(self._clock + leave)
            cancel = (0.05 + 0.95 * rolled(luck.cancel)) * step.cancel_s
            share = np.clip((leave + cancel - begins) / np.maximum(took - begins, 1e-9), 0.0, 1.0)
            self._shares[Tier.BATCH] += np.where(leaves, share * self._left, 0.0)
            self._left = np.where(leaves, self._left * (1 - share), self._left)
            self._clock = np.where(leaves, self._clock + leave + cancel, self._clock)
            self._sure(leaves, tiers)
        self._left = np.where(expires, self._left - harvested, self._left)
        self._clock = np.where(expires, self._clock + noticed, self._clock)
        return expires

    def _flex(self, nights: Mask, law: LiveLaw | None) -> None:
        """Play flex until it is done, or until what is left must go to a sure tier.

        The instant to leave moves on with the work: where the reserve shrinks as fast as time passes, flex
        is never left.

        Args:
            nights: Where flex is entered.
            law: The law that slack is reckoned with; None to stay whatever happens.
        """
        flex, luck = self._step.flex, self._luck
        if flex is None or not nights.any():
            return
        wait = flex.outages(luck.outage, -np.log(luck.outage_length))
        took = flex.times(luck.flex, self._left)
        leave = np.full(NIGHTS, np.inf)
        if law is not None and np.isfinite(self._finish_s) and any(t is not Tier.FLEX for t, _ in self._step.sure):
            slack = self._starts_by(law) - self._clock
            factor, _ = law.stretch(self._plan.reserve)
            # Reserve that a second of flex sets free; slack + freed * (x - wait) = x at the instant to leave.
            freed = factor * law.per_request_s * self._left / np.maximum(took, 1e-9)
            crossing = (slack - freed * wait) / np.maximum(1 - freed, 1e-9)
            leave = np.where(slack <= wait, slack, np.where(freed < 1, crossing, np.inf))
            leave = np.maximum(leave, 0.0)
        finishes = wait + took <= leave
        share = np.where(finishes, 1.0, np.clip((leave - wait) / np.maximum(took, 1e-9), 0.0, 1.0))
        self._shares[Tier.FLEX] += np.where(nights, share * self._left, 0.0)
        self._done = np.where(nights & finishes, self._clock + wait + took, self._done)
        rest = nights & ~finishes
        self._left = np.where(rest, self._left * (1 - share), self._left)
        self._clock = np.where(rest, self._clock + leave, self._clock)
        self._sure(rest, self._sure_tiers())

    def _sure_tiers(self) -> npt.NDArray[np.int64]:
        return self._sure_tiers_at(self._clock)

    def _sure_tiers_at(self, instants: Times) -> npt.NDArray[np.int64]:
        """Return for each night the place of the sure tier that `decide` would name at an instant."""
        laws = [law for _, law in self._step.sure]
        places = np.zeros(NIGHTS, dtype=np.int64)
        if len(laws) < 2 or not np.isfinite(self._finish_s):
            return places
        times = np.stack([law.quantiles(self._plan.reserve, self._left) for law in laws])
        fits = times <= self._finish_s - instants
        places = np.where(fits.any(axis=0), fits.argmax(axis=0), times.argmin(axis=0))
        return np.where(instants >= self._miss_s, 0, places)

    def _sure(self, nights: Mask, places: npt.NDArray[np.int64]) -> None:
        """Play the rest of some nights on the sure tier of each."""
        if not nights.any():
            return
        if not self._step.sure:
            # Nothing but flex is left, and `decide` names it.
            self._flex(nights, None)
            return
        for place, (tier, law) in enumerate(self._step.sure):
            here = nights & (places == place)
            if not here.any():
                continue
            took = law.times(self._luck.live(tier), self._left)
            if tier is Tier.FLEX:
                took = took + law.outages(self._luck.outage, -np.log(self._luck.outage_length))
            stays = here
            if tier is Tier.STANDARD and Tier.PRIORITY in self._laws and np.isfinite(self._finish_s):
                stays = here & ~self._escalate(here, law, took)
            self._shares[tier] += np.where(stays, self._left, 0.0)
            self._done = np.where(stays, self._clock + took, self._done)

    def _escalate(self, nights: Mask, law: LiveLaw, took: Times) -> Mask:
        """Play the nights in which standard turns out too slow and priority takes over; return them."""
        left_s = self._finish_s - self._clock
        pace = law.per_request_s * self._left / np.maximum(took, 1e-9)
        late = (left_s - law.medians(self._left)) / np.maximum(1 - pace, 1e-9)
        at = np.maximum(late, 0.0)
        moves = nights & (pace < 1) & (at < took) & (self._clock + at < self._miss_s)
        if not moves.any():
            return moves
        share = np.where(moves, at / np.maximum(took, 1e-9), 0.0)
        rest = self._left * (1 - share)
        more = self._laws[Tier.PRIORITY].times(self._luck.priority, rest)
        self._shares[Tier.STANDARD] += np.where(moves, self._left - rest, 0.0)
        self._shares[Tier.PRIORITY] += np.where(moves, rest, 0.0)
        self._done = np.where(moves, self._clock + at + more, self._done)
        return moves
