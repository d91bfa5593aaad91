"""The world of the scenarios: a policy carried through one run, minute by minute as it asks.

Leaving batch cancels it. What it completes until the cancel is final is harvested and billed. The next tier either
waits for that and then runs exactly the rest, or starts at once over every unanswered row, in any order: rows that the
batch had done or still does are billed twice then, and what the final cancel delivers leaves the queue. Leaving a live
tier is immediate and keeps what is done. A run that is unfinished at the deadline is a miss and ends; the rest of it
is charged at 0.5.
"""

import math
from typing import Protocol

import msgspec

from benchmarks._scenarios import EXPIRES, PRICE, Luck, Scenario

__all__ = ["Move", "Played", "Policy", "View", "play"]

LEAST_MINUTES = 1 / 60
"""Between two decisions, whatever the policy asks for."""

_DONE = 1e-9
_CHARGED = 0.5


class View(msgspec.Struct, kw_only=True):
    """What a policy sees of a step, in minutes and shares of the step.

    Attributes:
        now: Since the chain's start.
        step: Its place in the scenario.
        tier: The tier it is in; None before the first.
        remaining: The share without an answer, as far as it can be read.
        elapsed: Minutes in this tier.
        progress: The share done of what this tier began with: of a batch, where its provider tells it.
        batch_out: A batch, running or cancelling, may still answer some rows.
        batch_tried: One was submitted.
        flex_up: Whether flex takes calls.
    """

    now: float
    step: int
    tier: str | None
    remaining: float
    elapsed: float = 0.0
    progress: float | None = None
    batch_out: bool = False
    batch_tried: bool = False
    flex_up: bool = True


class Move(msgspec.Struct, frozen=True):
    """The tier for the rest; when to be asked again at the latest; until when to wait for a batch's cancel."""

    tier: str
    review_at: float | None = None
    start_by: float = math.inf


class Policy(Protocol):
    """Decides for one run of a scenario."""

    def decide(self, view: View) -> Move:
        """Return where the rest of a step should be now."""
        ...


class Played(msgspec.Struct, frozen=True):
    """What a run came to."""

    cost: float
    missed: bool


def play(scenario: Scenario, luck: Luck, policy: Policy) -> Played:
    """Carry a policy through one run, each step as soon as those that it needs are done."""
    done: dict[str, float] = {}
    cost, missed = 0.0, False
    for number, step in enumerate(scenario.steps):
        start = max((done[name] for name in step.deps), default=0.0)
        stay = _Stay(scenario, luck, number, start)
        stay.carry(policy)
        done[step.id] = stay.now if stay.left <= _DONE else math.inf
        cost += step.weight * (stay.paid + _CHARGED * max(stay.left, 0.0))
        missed |= stay.left > _DONE
    return Played(cost, missed)


class _Stay:
    """One step of one run.

    Attributes:
        now: The time.
        left: The share without an answer.
        paid: What was billed, per share of the step.
    """

    def __init__(self, scenario: Scenario, luck: Luck, number: int, start: float) -> None:
        self._scenario, self._luck, self._number = scenario, luck, number
        self._batch, self._live = luck.batches[number], luck.live[number]
        self.now, self.left, self.paid = start, 1.0, 0.0
        self._tier: str | None = None
        self._since, self._began_with = start, 1.0
        self._sent_at: float | None = None
        self._sent_rows = 0.0
        self._final_at: float | None = None
        self._ready_at = 0.0
        """When the live tier that is set up begins to work."""

    def carry(self, policy: Policy) -> None:
        """Go on until the step is done or the deadline has come."""
        deadline = self._scenario.deadline
        while self.left > _DONE and self.now < deadline:
            move = policy.decide(self._view())
            review = deadline if move.review_at is None else max(move.review_at, self.now + LEAST_MINUTES)
            if move.tier == "batch":
                self._wait_in_batch(min(review, deadline))
            elif self._sent_at is not None and self._leaving_waits(move):
                self._settle_cancel_by(min(move.start_by, review, deadline))
            else:
                self._work(move.tier, min(review, deadline))

    def _view(self) -> View:
        progress: float | None = None
        if self._tier == "batch" and self._scenario.progress_visible and self._sent_at is not None:
            progress = self._batch.share(self.now - self._sent_at)
        elif self._tier not in (None, "batch"):
            progress = 1 - self.left / self._began_with
        return View(
            now=self.now,
            step=self._number,
            tier=self._tier,
            remaining=self.left,
            elapsed=self.now - self._since,
            progress=progress,
            batch_out=self._sent_at is not None,
            batch_tried=self._sent_rows > 0,
            flex_up=self._luck.flex_up(self.now) if self._scenario.has_flex else True,
        )

    def _enter(self, tier: str) -> None:
        if tier != self._tier:
            self._tier, self._since, self._began_with = tier, self.now, self.left
            self._ready_at = self.now + self._scenario.base

    def _wait_in_batch(self, until: float) -> None:
        if self._sent_at is None:
            if self._sent_rows:
                raise ValueError("a batch may be submitted once for each step")
            self._enter("batch")
            self._sent_at, self._sent_rows = self.now, self.left
        ends = self._sent_at + min(self._batch.takes, EXPIRES)
        until = min(until, self._flip())
        if ends <= until:
            self.now = ends
            self._harvest(ends)
        else:
            self.now = until

    def _harvest(self, at: float) -> None:
        """Take what the batch has done; rows that were answered beside it were paid for twice."""
        assert self._sent_at is not None
        share = self._batch.share(at - self._sent_at)
        self.paid += PRICE["batch"] * self._sent_rows * share
        self.left *= 1 - share
        self._sent_at = self._final_at = None

    def _leaving_waits(self, move: Move) -> bool:
        assert self._sent_at is not None
        if self._final_at is None:
            self._final_at = self.now + self._batch.cancel
        return self.now < move.start_by

    def _settle_cancel_by(self, until: float) -> None:
        assert self._sent_at is not None
        assert self._final_at is not None
        final = min(self._final_at, self._sent_at + self._batch.takes)
        self.now = min(final, until)
        if self.now >= final:
            self._harvest(final)
            self._tier = "left"

    def _flip(self) -> float:
        return self._luck.next_flip(self.now) + 1e-9 if self._scenario.has_flex else math.inf

    def _work(self, tier: str, until: float) -> None:
        """Work live until something happens: done, a review, a cancel that is final, flex that comes or goes."""
        self._enter(tier)
        takes = self._live[tier]
        until = min(until, self._flip()) if tier == "flex" else until
        final = math.inf
        if self._sent_at is not None and self._final_at is not None:
            final = min(self._final_at, self._sent_at + self._batch.takes)
            until = min(until, final)
        begins = max(self.now, self._ready_at)
        works = tier != "flex" or self._luck.flex_up(self.now)
        ends = begins + self.left * takes if works else math.inf
        self.now, before = min(ends, until), self.left
        if works:
            self.left = max(0.0, before - max(self.now - begins, 0.0) / takes)
            self.paid += PRICE[tier] * (before - self.left)
        if self._sent_at is not None and (self.now >= final or self.left <= _DONE):
            # Answered live first, it delivers what it has all the same, and that is billed.
            self._harvest(final)
