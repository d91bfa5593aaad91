"""What to do now: a pure function of the plan and of what is seen.

The interface for every simulator and every engine: give the state as plain values, get the tier in which the
rest of the step should be now, and when to ask again.

Example:
    >>> decision = decide(plan, State(now=now, step="summary", tier=None, remaining=600))
    >>> decision.tier, decision.review_at
"""

from datetime import datetime

import msgspec

from prefect_llm_tiers.core.tiers import SURE_TIERS, Tier
from prefect_llm_tiers.planning.laws import LiveLaw
from prefect_llm_tiers.planning.plan import Plan, StepPlan
from prefect_llm_tiers.planning.stopping import latest_start, shifted

__all__ = [
    "BATCH_LIKELY",
    "BATCH_WORTH_TRYING",
    "Decision",
    "State",
    "decide",
    "miss_at",
    "slack_law",
]

BATCH_WORTH_TRYING = 0.001
"""Least chance of completing in time for which a batch is submitted: one that is left brings what it has done, and
what it has not costs nothing. Were it higher, whoever believes batches too slow would never see that they are not."""

BATCH_LIKELY = 0.8
"""Chance from which a batch is taken before flex at the same price, and taken once more after one that expired.

Below it the likelier of the two is taken. Above it batch is: it has a rate pool of its own and is waited for without
holding a connection, and how long flex refuses is known of no provider."""

_REVIEW_SHARE = 0.02
"""Part of the time left that passes at least between two looks at a running tier: each look drains its lane."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of one step while it runs.

    Attributes:
        now: The time.
        step: The step's name.
        tier: The tier it is in; None before the first.
        remaining: Requests without an outcome.
        batch_out: Whether a batch may still answer some of them.
        batch_tried: Whether a batch was used already.
        flex_up: Whether flex takes calls, as far as is known.
    """

    now: datetime
    step: str
    tier: Tier | None
    remaining: int
    batch_out: bool = False
    batch_tried: bool = False
    flex_up: bool = True


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rest of a step should be now.

    Attributes:
        tier: The tier for what remains.
        review_at: When to decide again at the latest; None: only when something happens.
        start_by: Where a batch is left: the last instant to wait for its cancel before the rest starts all
            the same, over every unanswered row. None: the rest need not wait at all.
        reason: Why, for the log.
    """

    tier: Tier
    review_at: datetime | None = None
    start_by: datetime | None = None
    reason: str = ""


def decide(plan: Plan, state: State) -> Decision:
    """Return the tier for what remains of a step.

    Goes one way: batch, flex, standard, priority. A step that has left a tier never comes back to it, and a batch
    is followed by another one only where it expired and the next is likely to be in time.

    Raises:
        KeyError: The plan has no such step.
    """
    step = plan.step(state.step)
    if state.tier in SURE_TIERS:
        return _on_sure(plan, step, state)
    if state.batch_out and state.tier is not Tier.FLEX:
        return _in_batch(plan, step, state)
    start_by = _start_by(plan, step, state)
    if _missed(plan, step, state) or (start_by is not None and state.now >= start_by):
        return _too_late_to_wait(plan, step, state)
    return _cheapest(plan, step, state, start_by)


def slack_law(step: StepPlan, *, batch_tried: bool) -> LiveLaw | None:
    """Return the law that a step's slack is reckoned with; None while batch is all there is, or is relied on.

    A tier that turned out not to be offered is gone from the plan; then it is the fastest that is left.
    """
    if step.fallback is None and step.batch is not None and not batch_tried:
        return None
    laws = dict(step.sure)
    if step.fallback is not None and step.fallback in laws:
        return laws[step.fallback]
    return min(laws.values(), key=lambda law: law.median_s(step.requests), default=step.flex)


def miss_at(plan: Plan, step: StepPlan) -> datetime | None:
    """Return the instant after which no deadline is left that this step could still help to keep."""
    return max((bound for bound in (plan.due, step.deadline) if bound is not None), default=None)


def _missed(plan: Plan, step: StepPlan, state: State) -> bool:
    last = miss_at(plan, step)
    return last is not None and state.now >= last


def _start_by(plan: Plan, step: StepPlan, state: State) -> datetime | None:
    # A step whose first batch is settled while a second is still out goes on waiting for it.
    tried = (state.batch_tried and not state.batch_out) or state.tier is Tier.FLEX
    law = slack_law(step, batch_tried=tried)
    return None if law is None else _latest_start(plan, step, state, law)


def _latest_start(plan: Plan, step: StepPlan, state: State, law: LiveLaw) -> datetime | None:
    if step.latest_finish is None:
        return None
    return latest_start(step.latest_finish, law, state.remaining, reserve=plan.reserve)


def _wait_for_cancel(plan: Plan, step: StepPlan, state: State, law: LiveLaw) -> datetime | None:
    """Return until when a cancel that is under way may be waited for; None where no batch is out."""
    last = miss_at(plan, step)
    if not state.batch_out or last is None:
        return None
    if state.now >= last:
        # Late is late: what the batch still delivers is worth one cancel's time, from a fixed instant.
        return shifted(last, step.cancel_s)
    return _latest_start(plan, step, state, law)


def _on_sure(plan: Plan, step: StepPlan, state: State) -> Decision:
    """Stay, or escalate when the tier would be late even on an ordinary night; before that it is noise."""
    laws = dict(step.sure)
    tier, reason = (Tier.PRIORITY if state.tier is Tier.PRIORITY else Tier.STANDARD), ""
    if tier not in laws:
        # The provider does not offer it after all; the only way back to a cheaper tier.
        tier = _sure_tier(plan, step, state)
        reason = f"{state.tier} is not offered"
    law = laws.get(tier)
    waited = _wait_for_cancel(plan, step, state, law) if law is not None else None
    if (
        tier is not Tier.STANDARD
        or Tier.PRIORITY not in laws
        or law is None
        or step.latest_finish is None
        or _missed(plan, step, state)
    ):
        return Decision(tier=tier, start_by=waited, reason=reason)
    latest = shifted(step.latest_finish, -law.median_s(state.remaining))
    if state.now > latest:
        waited = _wait_for_cancel(plan, step, state, laws[Tier.PRIORITY])
        return Decision(tier=Tier.PRIORITY, start_by=waited, reason="standard is too slow for what is left")
    # Asked again just past that instant, and not again and again while it moves on with the work.
    left_s = (step.latest_finish - state.now).total_seconds()
    review_at = max(shifted(latest, 1.0), shifted(state.now, max(_REVIEW_SHARE * left_s, 1.0)))
    return Decision(tier=tier, review_at=review_at, start_by=waited, reason=reason)


_OUT = "a batch carries these requests already"
"""Said where a run begins by waiting for what another one has sent."""


def _in_batch(plan: Plan, step: StepPlan, state: State) -> Decision:
    if not step.sure and step.flex is None:
        return Decision(tier=Tier.BATCH, reason=_OUT)
    if _missed(plan, step, state):
        return _too_late_to_wait(plan, step, state)
    start_by = _start_by(plan, step, state)
    if start_by is None:
        return Decision(tier=Tier.BATCH, review_at=miss_at(plan, step), reason=_OUT)
    leave_at = shifted(start_by, -step.cancel_s)
    if state.now < leave_at:
        return Decision(tier=Tier.BATCH, review_at=leave_at, reason=_OUT)
    reason = "the last instant at which leaving batch still meets the deadline"
    tier = _sure_tier(plan, step, state)
    law = dict(step.sure).get(tier)
    waited = _wait_for_cancel(plan, step, state, law) if law is not None else start_by
    return Decision(tier=tier, start_by=waited, reason=reason)


def _too_late_to_wait(plan: Plan, step: StepPlan, state: State) -> Decision:
    if not _missed(plan, step, state):
        return Decision(tier=_sure_tier(plan, step, state), reason="no time is left to wait for a cheaper tier")
    on_flex = step.flex is not None and (state.flex_up or state.tier is Tier.FLEX)
    tier = Tier.FLEX if on_flex else _sure_tier(plan, step, state)
    last = miss_at(plan, step)
    return Decision(
        tier=tier,
        start_by=shifted(last, step.cancel_s) if state.batch_out and last is not None else None,
        reason="the deadline has passed: finish on the cheapest live tier",
    )


def _cheapest(plan: Plan, step: StepPlan, state: State, start_by: datetime | None) -> Decision:
    """Return the cheapest tier there is time for: batch first, then flex, then the cheapest sure one."""
    relied_on = step.latest_finish is not None and start_by is None
    if step.worthwhile or not step.sure or relied_on:
        if _batch_fits(step, state, start_by):
            leave_at = shifted(start_by, -step.cancel_s) if start_by is not None else miss_at(plan, step)
            return Decision(tier=Tier.BATCH, review_at=leave_at, reason="cheaper, and time to leave it")
        # An outage that is shorter than the slack is waited for; the lane probes until `start_by`.
        if step.flex is not None:
            return Decision(
                tier=Tier.FLEX,
                review_at=start_by if any(tier is not Tier.FLEX for tier, _ in step.sure) else None,
                start_by=start_by if state.batch_out else None,
                reason="cheaper, and time to leave it",
            )
    return Decision(tier=_sure_tier(plan, step, state), reason="no cheaper tier is worth it here")


def _batch_fits(step: StepPlan, state: State, start_by: datetime | None) -> bool:
    if step.batch is None or state.tier is Tier.FLEX:
        return False
    if not step.sure and step.flex is None:
        return True
    if start_by is None:
        # Nothing hurries: only what a first batch left over goes to flex if it can.
        return not state.batch_tried or step.flex is None
    slack_s = (start_by - state.now).total_seconds()
    chance = step.batch.chance_by(slack_s - step.cancel_s)
    if state.batch_tried or chance >= BATCH_LIKELY:
        return chance >= BATCH_LIKELY
    if chance < BATCH_WORTH_TRYING:
        return False
    if step.flex is None or not state.flex_up:
        return True
    return chance >= step.flex.chance_by(slack_s, state.remaining)


def _sure_tier(plan: Plan, step: StepPlan, state: State) -> Tier:
    """Return the cheapest sure tier that makes it with the plan's reserve, else the fastest."""
    if not step.sure:
        return Tier.FLEX if step.flex is not None else Tier.BATCH
    if step.latest_finish is not None and not _missed(plan, step, state):
        left_s = (step.latest_finish - state.now).total_seconds()
        for tier, law in step.sure:
            if law.quantile_s(plan.reserve, state.remaining) <= left_s:
                return tier
        return min(step.sure, key=lambda entry: entry[1].quantile_s(plan.reserve, state.remaining))[0]
    return step.sure[0][0]
