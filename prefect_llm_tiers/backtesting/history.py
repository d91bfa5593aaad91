"""The past as a ledger tells it: chains that were finished, and nights drawn from what was seen in them."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TypeVar

import msgspec

from prefect_llm_tiers.backtesting.world import FlexDays, StepLuck, flex_days
from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.prices import PUBLISHED_RATIO
from prefect_llm_tiers.core.runs import Spending, StepRun
from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.engine.reporting import report_of
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw
from prefect_llm_tiers.planning.plan import Plan, StepPlan, decode_plan
from prefect_llm_tiers.planning.problem import Problem, StepProblem

__all__ = ["Nights", "PastChain", "PastStep", "read_chains"]

T = TypeVar("T")

FLEX_KNOWN_FOR = timedelta(days=3)
"""For how long outages are drawn: longer than a batch can last."""

_EXPIRES = 1.5
"""A batch that never comes back in its window is taken to need so many windows, so that part of it is done."""

NEVER_ENDED = "a step has not ended"
NO_PLAN = "the plan of a step was not kept, or by another version"
NOT_PRICED = "an answer has no known price"
NOTHING_ASKED = "everything was answered before"


class PastStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step run that is over.

    Attributes:
        name: The step's name, with a number where the flow run called it more than once.
        source: The account and model that it asked.
        requests: Requests that it asked itself; what was answered before costs nothing whatever is decided.
        paid_usd: What it paid.
        list_usd: What the answers that count would have cost on the standard tier.
        entered_at: When it began.
        finished_at: When it ended.
        plan: What was planned for it, and the laws that were believed.
        batches: What it saw of batches.
        lanes: What it saw of live tiers.
        lines: Its account.
    """

    name: str
    source: tuple[str, str, str]
    requests: int
    paid_usd: Decimal
    list_usd: Decimal
    entered_at: datetime
    finished_at: datetime
    plan: StepPlan
    batches: tuple[ObservedBatch, ...]
    lanes: tuple[ObservedLane, ...]
    lines: tuple[Spending, ...]


class PastChain(msgspec.Struct, frozen=True, kw_only=True):
    """The step runs of a flow run that is over.

    Attributes:
        flow_run_id: The flow run.
        steps: In the order in which they began.
        due: When the first plan had the chain due; None without a due time.
        on_time: The chance that was asked for.
        late: Whether a step ended after its deadline.
    """

    flow_run_id: str
    steps: tuple[PastStep, ...]
    due: datetime | None
    on_time: float
    late: bool

    @property
    def started_at(self) -> datetime:
        """When its first step began."""
        return self.steps[0].entered_at

    @property
    def paid_usd(self) -> Decimal:
        """What it paid."""
        return sum((step.paid_usd for step in self.steps), Decimal(0))

    @property
    def list_usd(self) -> Decimal:
        """What it would have paid on the standard tier."""
        return sum((step.list_usd for step in self.steps), Decimal(0))


def read_chains(
    ledger: Ledger, *, since: datetime, until: datetime, step: str | None = None
) -> tuple[list[PastChain], Counter[str]]:
    """Return the chains that began in a period, oldest first, and how many were left out, by reason.

    Args:
        ledger: What happened.
        since: Where the period begins.
        until: Where it ends.
        step: Only chains with a step of this name; None for all.
    """
    runs: dict[str, list[StepRun]] = defaultdict(list)
    for run in ledger.step_runs_between(since, until):
        runs[run.flow_run_id].append(run)
    chains: list[PastChain] = []
    left_out: Counter[str] = Counter()
    for flow_run_id, steps in runs.items():
        if step is not None and all(run.step != step for run in steps):
            continue
        chain = _chain(ledger, flow_run_id, steps, until)
        if isinstance(chain, str):
            left_out[chain] += 1
        else:
            chains.append(chain)
    return chains, left_out


def _chain(ledger: Ledger, flow_run_id: str, runs: Sequence[StepRun], now: datetime) -> PastChain | str:
    """Return a chain, or why it cannot be replayed."""
    steps: list[PastStep] = []
    named: Counter[str] = Counter()
    first: Plan | None = None
    late = False
    for run in runs:
        report, plan = report_of(ledger, run.id), _plan(run)
        if report is None or report.finished_at is None:
            return NEVER_ENDED
        if plan is None:
            return NO_PLAN
        if report.unpriced:
            return NOT_PRICED
        first = first or plan
        late |= report.late
        named[run.step] += 1
        batches, lanes = ledger.observed_of(run.id, now=now)
        models = [batch.model for batch in batches] + [lane.model for lane in lanes]
        steps.append(
            PastStep(
                name=run.step if named[run.step] == 1 else f"{run.step} #{named[run.step]}",
                source=(run.provider, run.account, models[0] if models else ""),
                requests=report.fresh,
                paid_usd=report.paid_usd,
                list_usd=report.list_usd,
                entered_at=run.entered_at,
                finished_at=report.finished_at,
                plan=plan.step(run.step),
                batches=tuple(batches),
                lanes=tuple(lanes),
                lines=report.lines,
            )
        )
    if first is None or not any(step.requests for step in steps):
        return NOTHING_ASKED
    return PastChain(flow_run_id=flow_run_id, steps=tuple(steps), due=first.due, on_time=first.on_time, late=late)


def _plan(run: StepRun) -> Plan | None:
    try:
        return decode_plan(run.plan) if run.plan is not None else None
    except msgspec.MsgspecError:
        return None


class Nights:
    """Problems and luck for chains of the past, from what was seen in all of them.

    A night's luck is drawn as a block: one night of the period is chosen, and each step takes a batch, and a pace of
    each live tier, from what that night saw of its account and model, or, where it saw none, from all nights. What was
    never seen at all is drawn from the law that was believed. So a night that was slow for everybody stays one.

    Args:
        chains: What was seen.
        seed: Another one draws other nights.
    """

    def __init__(self, chains: Sequence[PastChain], seed: int) -> None:
        self._seed = seed
        self._batches: dict[tuple[str, ...], list[tuple[int, ObservedBatch]]] = defaultdict(list)
        self._paces: dict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
        self._ratios: dict[tuple[str, ...], list[tuple[Decimal, Decimal]]] = defaultdict(list)
        self._number = {chain.flow_run_id: number for number, chain in enumerate(chains)}
        for number, chain in enumerate(chains):
            for step in chain.steps:
                self._add(number, step)

    def _add(self, night: int, step: PastStep) -> None:
        self._batches[step.source] += [(night, batch) for batch in step.batches]
        for lane in step.lanes:
            law = _live_laws(step.plan).get(lane.tier)
            if law is not None:
                pace = lane.busy.total_seconds() / law.median_s(max(lane.requests, 1))
                self._paces[*step.source, lane.tier].append((night, pace))
        for line in step.lines:
            if line.tier_served is not None and line.list_usd:
                self._ratios[*step.source, line.tier_served].append((line.cost_usd, line.list_usd))

    def problem(self, chain: PastChain, due: datetime) -> Problem:
        """Return a chain's problem as it would have stood at its start with another due time."""
        return Problem(
            now=chain.started_at,
            due=due,
            on_time=chain.on_time,
            steps=tuple(self._step(step, chain) for step in chain.steps),
            basis="the beliefs of that night",
        )

    def _step(self, step: PastStep, chain: PastChain) -> StepProblem:
        live = _live_laws(step.plan)
        cheap = step.plan.worthwhile or not step.plan.sure
        if not cheap:
            live.pop(Tier.FLEX, None)
        tiers = {*live, Tier.STANDARD, *([Tier.BATCH] if step.plan.batch is not None else [])}
        return StepProblem(
            name=step.name,
            requests=step.requests,
            batch=step.plan.batch if cheap else None,
            live=live,
            cost_usd={tier: step.list_usd * self._ratio(step, tier) for tier in tiers},
            # What had ended when it began is what it may have waited for; the ledger does not say more.
            after=tuple(
                other.name for other in chain.steps if other.name != step.name and other.finished_at <= step.entered_at
            ),
            cancel_s=step.plan.cancel_s,
            poll_s=step.plan.poll_s,
        )

    def _ratio(self, step: PastStep, tier: Tier) -> Decimal:
        """Return what a tier costs over list price: as it was paid, or as the provider publishes it."""
        paid = self._ratios.get((*step.source, tier))
        if not paid or tier is Tier.STANDARD:
            return PUBLISHED_RATIO[tier]
        return sum((cost for cost, _ in paid), Decimal(0)) / sum((at_list for _, at_list in paid), Decimal(0))

    def luck(self, chain: PastChain, problem: Problem, draw: int) -> tuple[dict[str, StepLuck], FlexDays]:
        """Return one night's luck: that of its own night for draw 0, then of nights chosen by chance."""
        # Reproducible draws of nights, not secrets.
        chance = random.Random(f"{self._seed}:{chain.flow_run_id}:{draw}")  # noqa: S311
        own = self._number[chain.flow_run_id]
        night = own if draw == 0 else chance.randrange(len(self._number))
        asked = {step.name: step for step in problem.steps}
        luck = {step.name: self._step_luck(step, asked[step.name], night, chance) for step in chain.steps}
        return luck, _flex_days(problem, chance)

    def _step_luck(self, step: PastStep, asked: StepProblem, night: int, chance: random.Random) -> StepLuck:
        return StepLuck(
            batch_s=self._batch_s(step, asked.batch, night, chance),
            begins=chance.uniform(0, 0.5),
            notice_s=chance.uniform(0, asked.poll_s),
            cancel_s=chance.uniform(0.05, 1) * asked.cancel_s,
            pace={
                tier: _one_of(self._paces.get((*step.source, tier)), night, chance)
                or math.exp(asked.live[tier].sigma * chance.gauss(0, 1))
                for tier in LIVE_TIERS
                if tier in asked.live
            },
        )

    def _batch_s(self, step: PastStep, law: BatchLaw | None, night: int, chance: random.Random) -> float:
        if law is None:
            return math.inf
        seen = _one_of(self._batches.get(step.source), night, chance)
        place = chance.random()
        if seen is not None and not seen.censored:
            return seen.duration.total_seconds()
        # Longer than it was seen to last: how much longer, the law that was believed says.
        known = law.chance_by(seen.duration.total_seconds()) if seen is not None else 0.0
        chance_by = known + place * (1 - known)
        if chance_by >= law.chance_by(law.window_s):
            return _EXPIRES * law.window_s
        return law.quantile_s(chance_by)


def _live_laws(plan: StepPlan) -> dict[Tier, LiveLaw]:
    """Return the laws of live tiers that were believed of a step."""
    return dict(plan.sure) | ({Tier.FLEX: plan.flex} if plan.flex is not None else {})


def _one_of(seen: Sequence[tuple[int, T]] | None, night: int, chance: random.Random) -> T | None:
    """Return one of the things that a night saw, or else one of any night's; None where there is none."""
    if not seen:
        return None
    return chance.choice([one for number, one in seen if number == night] or [one for _, one in seen])


def _flex_days(problem: Problem, chance: random.Random) -> FlexDays:
    """Return when flex takes calls, by the law that was believed of its outages."""
    law = next((step.live[Tier.FLEX] for step in problem.steps if Tier.FLEX in step.live), None)
    if law is None or not 0 < law.p_down < 1:
        return FlexDays()
    return flex_days(
        chance,
        up_s=law.down_s * (1 - law.p_down) / law.p_down,
        down_s=law.down_s,
        until_s=FLEX_KNOWN_FOR.total_seconds(),
    )
