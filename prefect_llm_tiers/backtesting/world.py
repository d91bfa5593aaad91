"""One night of a chain: its luck is given, its decisions are the planner's.

Nothing is estimated here and nothing is drawn. Each step asks `decide` what to do whenever it said it wants to be
asked, and the night says what comes of it. Instants are seconds from the plan's making.
"""

import math
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta

import msgspec

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.deciding import Decision, State, decide
from prefect_llm_tiers.planning.laws import LiveLaw
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.problem import StepProblem

__all__ = ["Ending", "FlexDays", "Sent", "StepLuck", "carry_out", "flex_days"]

_LEAST_S = 1.0
"""Between two decisions, so that time goes on whatever is decided."""

_DONE = 1e-6


class FlexDays(msgspec.Struct, frozen=True):
    """When flex takes calls.

    Attributes:
        up: Whether it does at the start.
        changes_s: When that changes, in order; after the last it stays as it is.
    """

    up: bool = True
    changes_s: tuple[float, ...] = ()

    def is_up(self, at_s: float) -> bool:
        """Return whether flex takes calls at an instant."""
        return self.up ^ (sum(change <= at_s for change in self.changes_s) % 2 == 1)

    def next_change_s(self, at_s: float) -> float:
        """Return when that changes next."""
        return next((change for change in self.changes_s if change > at_s), math.inf)


def flex_days(chance: random.Random, *, up_s: float, down_s: float, until_s: float) -> FlexDays:
    """Return times up and down that are exponential, as they are at any instant of a process that has no start.

    Args:
        chance: Draws them.
        up_s: Mean time up.
        down_s: Mean time down.
        until_s: For how long they are drawn.
    """
    up = began_up = chance.random() < up_s / (up_s + down_s)
    changes: list[float] = []
    at_s = 0.0
    while at_s < until_s:
        at_s += chance.expovariate(1 / (up_s if up else down_s))
        changes.append(at_s)
        up = not up
    return FlexDays(began_up, tuple(changes))


class StepLuck(msgspec.Struct, frozen=True, kw_only=True):
    """What befalls a step, whatever is decided.

    Attributes:
        batch_s: How long a batch over all of it takes.
        begins: After which share of that its rows begin to be done, at an even pace.
        jumps: Shares of that, and the share of its rows that is done from then on; where there are some, nothing is
            done at an even pace.
        notice_s: How long after its end it is looked at.
        cancel_s: How long a cancel takes.
        pace: What each live tier takes over its law's median.
    """

    batch_s: float
    begins: float
    notice_s: float
    cancel_s: float
    pace: Mapping[Tier, float]
    jumps: tuple[tuple[float, float], ...] = ()

    def share_at(self, elapsed_s: float) -> float:
        """Return the share of a batch that is done so long after it was sent."""
        if self.jumps:
            return max((done for at, done in self.jumps if elapsed_s >= at * self.batch_s), default=0.0)
        began_s = self.begins * self.batch_s
        return min(max((elapsed_s - began_s) / max(self.batch_s - began_s, 1e-9), 0.0), 1.0)


class Sent(msgspec.Struct, frozen=True):
    """A batch that was sent.

    Attributes:
        at_s: When.
        lasted_s: Until it ended, or until it was left.
        cut: Whether it was left, or had expired: then all that is known is "longer than".
    """

    at_s: float
    lasted_s: float
    cut: bool


class Ending(msgspec.Struct, frozen=True):
    """What became of a step.

    Attributes:
        done_s: When it was done, or when the night ended.
        billed: The share of its requests that each tier billed; together more than 1 where some were asked twice.
        left: The share that had no outcome when the night ended.
        sent: Its batches, in order.
    """

    done_s: float
    billed: dict[Tier, float]
    left: float
    sent: tuple[Sent, ...] = ()


def carry_out(
    plan: Plan,
    steps: Sequence[StepProblem],
    luck: Mapping[str, StepLuck],
    flex: FlexDays,
    *,
    ends_s: float = math.inf,
) -> dict[str, Ending]:
    """Return what becomes of each step of a chain.

    Args:
        plan: Whose decisions are followed.
        steps: The chain's steps, each after those that it needs.
        luck: Of each step, by name.
        flex: When flex takes calls.
        ends_s: When the night ends, whatever is left.
    """
    endings: dict[str, Ending] = {}
    for step in steps:
        starts_s = max((endings[name].done_s for name in step.after), default=0.0)
        run = _Run(plan, step, luck[step.name], flex, starts_s=starts_s, ends_s=ends_s)
        endings[step.name] = run.to_the_end()
    return endings


class _Run:
    """One step while it runs."""

    def __init__(
        self, plan: Plan, step: StepProblem, luck: StepLuck, flex: FlexDays, *, starts_s: float, ends_s: float
    ) -> None:
        self._plan = plan
        self._step = step
        self._luck = luck
        self._flex = flex
        self._ends_s = ends_s
        self._now_s = starts_s
        self._left = 1.0 if step.requests > 0 else 0.0
        self._billed: dict[Tier, float] = {}
        self._batches: list[Sent] = []
        self._tier: Tier | None = None
        self._sent_s: float | None = None
        self._sent = 0.0
        self._tried = False
        # A batch that was left and is not over yet: when its cancel is final, and the share that it then brings.
        self._final_s: float | None = None
        self._ready_s = 0.0

    def to_the_end(self) -> Ending:
        """Carry the step out until it is done or the night ends."""
        while self._left > _DONE and self._now_s < self._ends_s:
            decision = decide(self._plan, self._state())
            if decision.tier is Tier.BATCH:
                self._in_batch(decision)
            else:
                self._live(decision)
        if self._left > _DONE:
            self._now_s = max(self._now_s, self._ends_s)
        elif self._final_s is not None:
            # Done before the cancel was final: what the batch had done by then is billed all the same.
            self._deliver()
        left = self._left if self._left > _DONE else 0.0
        return Ending(done_s=self._now_s, billed=self._billed, left=left, sent=tuple(self._batches))

    def _state(self) -> State:
        return State(
            now=self._plan.made_at + timedelta(seconds=self._now_s),
            step=self._step.name,
            tier=self._tier,
            remaining=max(1, round(self._left * self._step.requests)),
            batch_out=self._sent_s is not None,
            batch_tried=self._tried,
            flex_up=self._flex.is_up(self._now_s),
        )

    def _seconds(self, decision: Decision) -> float:
        """Return when the step wants to be asked again, a moment from now at the earliest."""
        if decision.review_at is None:
            return math.inf
        return max((decision.review_at - self._plan.made_at).total_seconds(), self._now_s + _LEAST_S)

    def _bill(self, tier: Tier, share: float) -> None:
        self._billed[tier] = self._billed.get(tier, 0.0) + share

    # Batch

    def _in_batch(self, decision: Decision) -> None:
        if self._sent_s is None:
            self._sent_s, self._sent, self._tried = self._now_s, self._left, True
            self._tier = Tier.BATCH
        law = self._step.batch
        window_s = law.window_s if law is not None else math.inf
        lasts_s = min(self._luck.batch_s, window_s)
        seen_s = self._sent_s + lasts_s + self._luck.notice_s
        review_s = self._seconds(decision)
        if min(review_s, self._ends_s) < seen_s:
            self._now_s = min(review_s, self._ends_s)
            if self._now_s >= self._ends_s:
                self._note(self._now_s - self._sent_s, cut=True)
                self._harvest(self._ends_s - self._sent_s)
            return
        self._now_s = seen_s
        self._note(lasts_s, cut=lasts_s < self._luck.batch_s)
        self._harvest(lasts_s)

    def _note(self, lasted_s: float, *, cut: bool) -> None:
        assert self._sent_s is not None  # only of a batch that is out there is something to note
        self._batches.append(Sent(self._sent_s, lasted_s, cut))

    def _harvest(self, elapsed_s: float) -> None:
        """Take what a batch had done when it ended."""
        done = self._sent * self._luck.share_at(elapsed_s)
        self._bill(Tier.BATCH, done)
        self._left -= done
        self._sent_s = None

    def _leave(self, decision: Decision) -> None:
        """Ask for a cancel, and wait for it as long as the decision allows."""
        assert self._sent_s is not None  # only a batch that is out is left
        # A cancel may come too late; an end is an end then, and the time that a cancel took tells nothing of any other.
        ends_s = self._sent_s + self._luck.batch_s
        final_s = min(self._now_s + self._luck.cancel_s, ends_s)
        start_by = decision.start_by
        waits_s = (start_by - self._plan.made_at).total_seconds() if start_by is not None else self._now_s
        cut = final_s < ends_s or final_s > waits_s
        self._note(self._now_s - self._sent_s if cut else self._luck.batch_s, cut=cut)
        if final_s <= waits_s:
            elapsed_s = self._luck.batch_s if final_s == ends_s else final_s - self._sent_s
            self._now_s = final_s
            self._harvest(elapsed_s)
            return
        self._now_s = max(self._now_s, waits_s)
        self._final_s = final_s

    def _deliver(self) -> None:
        """Take what a batch that was left had done when its cancel became final, over rows that were asked again."""
        assert self._final_s is not None
        assert self._sent_s is not None
        done = self._luck.share_at(self._final_s - self._sent_s)
        self._bill(Tier.BATCH, done * self._sent)
        # Which rows it had done nobody could know: as large a share of those that are left as of all.
        self._left *= 1 - done
        self._sent_s = self._final_s = None

    # Live

    def _live(self, decision: Decision) -> None:
        if self._sent_s is not None and self._final_s is None:
            self._leave(decision)
            if self._left <= _DONE:
                return
        tier = decision.tier
        law = self._step.live[tier]
        pace = self._luck.pace[tier]
        if tier is not self._tier:
            self._tier = tier
            self._ready_s = self._now_s + pace * law.base_s
        works_from_s = max(self._now_s, self._ready_s)
        until_s = min(self._seconds(decision), self._ends_s, self._final_s or math.inf)
        if tier is Tier.FLEX:
            until_s = min(until_s, self._flex.next_change_s(self._now_s))
        whole_s = self._whole_s(law, pace)
        takes_calls = tier is not Tier.FLEX or self._flex.is_up(self._now_s)
        if takes_calls and works_from_s + self._left * whole_s <= until_s:
            self._bill(tier, self._left)
            self._now_s, self._left = works_from_s + self._left * whole_s, 0.0
            return
        if takes_calls:
            done = min(max(until_s - works_from_s, 0.0) / whole_s, self._left)
            self._bill(tier, done)
            self._left -= done
        self._now_s = until_s
        if self._final_s is not None and self._now_s >= self._final_s:
            self._deliver()

    def _whole_s(self, law: LiveLaw, pace: float) -> float:
        """Return how long all requests of the step take, set-up apart."""
        return max(pace * law.per_request_s * self._step.requests, 1e-9)
