"""A plan: which tier each step starts in, when it leaves it, and what is expected of that.

A plan is a frozen value that prints itself. It is stored in the ledger as JSON and read by `decide`.
"""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw

__all__ = [
    "Leg",
    "Plan",
    "StepPlan",
    "decode_plan",
    "encode_plan",
    "show_chance",
    "show_instant",
    "show_span",
    "show_usd",
]


WIDEST_NAME = 24
"""Columns that the names of steps are padded to at most; a longer name moves only its own line."""


class Leg(msgspec.Struct, frozen=True):
    """One tier of a step, and the last instant to leave it; None if it is kept to the end."""

    tier: Tier
    until: datetime | None = None


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is planned for one step, if it starts when it is expected to.

    Attributes:
        name: The step.
        requests: Requests to ask.
        answered: Requests answered already.
        legs: The tiers it goes through, in order.
        starts_at: When it is expected to start.
        finish_expected: Mean finish.
        finish_p95: 95th percentile of the finish.
        latest_finish: When it must be done so that everything after it still makes it; None without
            a deadline.
        sure: Laws of the tiers the deadline is trusted to, the cheapest first.
        flex: Law of flex where it may be used.
        batch: Law of batch where it may be used.
        worthwhile: Whether the cheap tiers are expected to save what was asked for at least.
        cancel_s: The longest that leaving batch takes.
        poll_s: How late the end of a batch may be noticed.
        cost_usd: Expected cost.
        list_usd: Cost on the standard tier.
        unpriced: Whether a tier in use has no known price.
        fallback: The tier that the slack is reckoned with; None where batch itself is relied on, because
            none or no other is sure to make it.
        deadline: The step's own deadline, apart from the chain's.
    """

    name: str
    requests: int
    answered: int
    legs: tuple[Leg, ...]
    starts_at: datetime
    finish_expected: datetime
    finish_p95: datetime
    latest_finish: datetime | None
    sure: tuple[tuple[Tier, LiveLaw], ...]
    flex: LiveLaw | None
    batch: BatchLaw | None
    worthwhile: bool
    cancel_s: float
    poll_s: float
    cost_usd: Decimal
    list_usd: Decimal
    unpriced: bool
    fallback: Tier | None = None
    deadline: datetime | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan for a chain of steps.

    Attributes:
        made_at: When it was made.
        due: When the chain must be done; None without a deadline.
        on_time: The chance that was asked for.
        reserve: The chance with which each step's own reserve of time suffices; above `on_time`, so that
            all of them together keep it.
        chance: The chance that is expected.
        rule: The rule that made it.
        basis: What its laws rest on.
        steps: In order.
    """

    made_at: datetime
    due: datetime | None
    on_time: float
    reserve: float
    chance: float
    rule: str
    basis: str
    steps: tuple[StepPlan, ...]

    @property
    def cost_usd(self) -> Decimal:
        """Expected cost of all steps."""
        return sum((step.cost_usd for step in self.steps), Decimal(0))

    @property
    def list_usd(self) -> Decimal:
        """Cost of all steps on the standard tier."""
        return sum((step.list_usd for step in self.steps), Decimal(0))

    @property
    def saving_usd(self) -> Decimal:
        """List price less expected cost."""
        return self.list_usd - self.cost_usd

    @property
    def unpriced(self) -> bool:
        """Whether a tier in use has no known price, so that the sums are not the whole bill."""
        return any(step.unpriced for step in self.steps)

    def step(self, name: str) -> StepPlan:
        """Return the plan of one step. Raises `KeyError`."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def __str__(self) -> str:
        """Return the plan as a person reads it: a line for the chain, one for each step."""
        return "\n".join([self.headline(), *(f"  {line}" for line in self._step_lines())])

    def headline(self) -> str:
        """Return the chain's due time, chance, cost and saving in one line."""
        count = f"{len(self.steps)} step{'s' if len(self.steps) != 1 else ''}"
        parts = [f"Plan for {count}"]
        # A single step's own deadline is what a step without a chain has.
        due = self.due or next((step.deadline for step in self.steps if step.deadline), None)
        if due is None:
            parts.append("no deadline")
        else:
            left = due - self.made_at
            when = f"in {show_span(left)}" if left > timedelta(0) else f"{show_span(-left)} past"
            parts.append(
                f"due {show_instant(due, self.made_at)} ({when}), "
                f"on time with {show_chance(self.chance)} (asked: {100 * self.on_time:g} %)"
            )
        parts.append(self._money())
        return "; ".join(parts)

    def _money(self) -> str:
        if self.list_usd == 0:
            return "no known price" if self.unpriced else "nothing to pay"
        saving = self.saving_usd
        verb = "saves" if saving >= 0 else "costs"
        more = "" if saving >= 0 else " more"
        text = (
            f"{show_usd(self.cost_usd)} expected, {show_usd(self.list_usd)} at list price: {verb} "
            f"{show_usd(abs(saving))}{more} ({100 * abs(saving) / self.list_usd:.0f} %)"
        )
        return f"{text}; some tiers are unpriced, and estimated or left out" if self.unpriced else text

    def _step_lines(self) -> list[str]:
        # A name of another world does not push everybody else's line off the screen.
        width = min(max((len(step.name) for step in self.steps), default=0), WIDEST_NAME)
        lines = []
        for step in self.steps:
            if step.requests == 0:
                lines.append(f"{step.name:{width}}  nothing to ask, {step.answered:,} answered before")
                continue
            waits = step.starts_at - self.made_at >= timedelta(minutes=1)
            starts = f"if it starts at {show_instant(step.starts_at, self.made_at)}: " if waits else ""
            reused = f", {step.answered:,} answered before" if step.answered else ""
            own = self.due is not None and step.deadline not in (None, self.due)
            due = f" (due {show_instant(step.deadline, self.made_at)})" if own and step.deadline else ""
            lines.append(
                f"{step.name:{width}}  {step.requests:,} requests{reused}; {starts}{self.show_legs(step)}{due}; "
                f"done {show_instant(step.finish_expected, self.made_at)} "
                f"(p95 {show_instant(step.finish_p95, self.made_at)}); "
                f"{'unpriced' if step.unpriced else show_usd(step.cost_usd)}"
            )
        return lines

    def show_legs(self, step: StepPlan) -> str:
        """Return a step's tiers and switch times, as "batch until 06:18Z, then standard"."""
        return ", then ".join(
            f"{leg.tier} until {show_instant(leg.until, self.made_at)}" if leg.until else str(leg.tier)
            for leg in step.legs
        )


def show_instant(instant: datetime, since: datetime) -> str:
    """Return an instant in UTC, to the minute, with its date if it is another day than `since`."""
    instant, since = instant.astimezone(UTC), since.astimezone(UTC)
    return instant.strftime("%H:%MZ" if instant.date() == since.date() else "%Y-%m-%d %H:%MZ")


def show_span(span: timedelta) -> str:
    """Return a duration in its two largest units, as "7 h 40 min"; a negative one bears a minus sign."""
    seconds = round(abs(span.total_seconds()))
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    largest = next((place for place, (count, _) in enumerate(units) if count), len(units) - 1)
    named = [f"{count:,} {unit}" for count, unit in units[largest : largest + 2] if count]
    sign = "-" if span < timedelta(0) and named else ""
    return sign + (" ".join(named) or "0 s")


def show_usd(amount: Decimal) -> str:
    """Return an amount in dollars: cents where it is a dollar or more, four digits below."""
    sign, size = ("-" if amount < 0 else ""), abs(amount)
    if 0 < size < Decimal("0.0001"):
        # Never $0.0000: it is paid.
        return f"under {sign}$0.0001"
    if size == 0 or round(size, 4) >= 1:
        return f"{sign}${size:,.2f}"
    return f"{sign}${size:.4f}"


def show_chance(chance: float) -> str:
    """Return a chance in per cent, rounded down, and never as certain: 100 % would be a promise."""
    if chance > 0.999:
        return "over 99.9 %"
    if chance < 0.001:
        return "under 0.1 %"
    return f"{math.floor(1000 * chance + 1e-9) / 10:.1f} %"


def encode_plan(plan: Plan) -> bytes:
    """Return the plan as JSON."""
    return msgspec.json.encode(plan)


def decode_plan(data: bytes) -> Plan:
    """Return the plan that `encode_plan` wrote. Raises `msgspec.ValidationError`."""
    return msgspec.json.decode(data, type=Plan)
