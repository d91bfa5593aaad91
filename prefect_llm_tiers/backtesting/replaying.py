"""Replays: scenarios, and a ledger's own past under other due times, summed up."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

import msgspec

from prefect_llm_tiers.backtesting.history import Nights, PastChain
from prefect_llm_tiers.backtesting.scenarios import UNITS, Scenario
from prefect_llm_tiers.backtesting.world import Ending, carry_out
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.making import plan as make_plan
from prefect_llm_tiers.planning.problem import StepProblem

__all__ = [
    "ASSUMED",
    "DueOption",
    "HistoryReport",
    "Replayed",
    "ScenarioReport",
    "cost_of",
    "replay_history",
    "replay_scenario",
]

ASSUMED = (
    "Each chain is planned for the instant at which it began, by the laws that were believed that night.",
    "Its luck is one night of the period, for all of its steps: first its own night, then others drawn by chance.",
    "A batch that was cut lasts longer, by the law that was believed; so do tiers of which nothing was seen.",
    "A step asks what it asked then, and needs the steps that had ended when it began.",
    "Deadlines of single steps are left out.",
    "A tier costs over list price what it cost in the period, or what the provider publishes.",
    "A batch works at an even pace from a start in the first half of its time.",
    "Flex outages follow the law that was believed.",
)
"""What the replay of a ledger's past takes for granted."""


class DueOption(msgspec.Struct, frozen=True):
    """A due time to try.

    Attributes:
        name: What to call it.
        of: Returns it for a chain; None where the chain has none.
    """

    name: str
    of: Callable[[PastChain], datetime | None]


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What the past would have come to with another due time; money is for all chains, once each.

    Attributes:
        due: The due time.
        chains: How many were replayed.
        cost_usd: What they would have cost, on average over the draws.
        list_usd: What they would have cost on the standard tier.
        saved: The share of that which is saved.
        missed: The share of nights that would have been late.
        short: Chains for which no plan reached the chance that was asked for.
    """

    due: str
    chains: int
    cost_usd: Decimal
    list_usd: Decimal
    saved: float
    missed: float
    short: int


class HistoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger's past, as it was and as it would have been.

    Attributes:
        since: Where the period begins.
        until: Where it ends.
        chains: Chains that began in it and could be replayed.
        left_out: Chains that could not, by reason.
        paid_usd: What they paid.
        list_usd: What they would have paid on the standard tier.
        late: How many of them were late.
        draws: Nights that were drawn for each chain and due time.
        due: What each due time would have come to.
        assumed: What that takes for granted.
    """

    since: datetime
    until: datetime
    chains: int
    left_out: Mapping[str, int]
    paid_usd: Decimal
    list_usd: Decimal
    late: int
    draws: int
    due: tuple[Replayed, ...]
    assumed: tuple[str, ...] = ASSUMED


class ScenarioReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario comes to.

    Attributes:
        scenario: Its name.
        nights: How many were drawn.
        cost: Mean cost over that of all requests on the standard tier.
        missed: The share of nights that were late.
        allowed: The share that may be.
        planned_cost: What the plan expected.
        planned_chance: The chance of being on time that the plan told.
    """

    scenario: str
    nights: int
    cost: float
    missed: float
    allowed: float
    planned_cost: float
    planned_chance: float


def replay_scenario(scenario: Scenario, *, nights: int, seed: int) -> ScenarioReport:
    """Return what a scenario comes to over so many nights.

    What is left at the deadline makes a miss, ends the night, and is charged at the price of batch.
    """
    problem = scenario.problem()
    plan = make_plan(problem, infeasible="best_effort")
    missed, spent = 0, Decimal(0)
    for night in range(nights):
        luck, flex = scenario.luck(f"{seed}:{night}")
        endings = carry_out(plan, problem.steps, luck, flex, ends_s=60 * scenario.deadline)
        missed += any(ending.left > 0 for ending in endings.values())
        spent += cost_of(problem.steps, endings)
    return ScenarioReport(
        scenario=scenario.name,
        nights=nights,
        cost=float(spent) / nights / UNITS,
        missed=missed / nights,
        allowed=scenario.miss_p,
        planned_cost=float(plan.cost_usd) / UNITS,
        planned_chance=plan.chance,
    )


def replay_history(
    chains: Sequence[PastChain],
    dues: Sequence[DueOption],
    *,
    since: datetime,
    until: datetime,
    left_out: Mapping[str, int],
    draws: int,
    seed: int,
) -> HistoryReport:
    """Return what the chains of a period came to, and what they would have with other due times.

    Args:
        chains: What happened.
        dues: The due times to try.
        since: Where the period begins.
        until: Where it ends.
        left_out: Chains that could not be read, by reason.
        draws: Nights for each chain and due time.
        seed: Another one draws other nights.
    """
    nights = Nights(chains, seed)
    return HistoryReport(
        since=since,
        until=until,
        chains=len(chains),
        left_out=dict(sorted(left_out.items())),
        paid_usd=sum((chain.paid_usd for chain in chains), Decimal(0)),
        list_usd=sum((chain.list_usd for chain in chains), Decimal(0)),
        late=sum(chain.late for chain in chains),
        draws=draws,
        due=tuple(_replayed(option, chains, nights, draws) for option in dues),
    )


def _replayed(option: DueOption, chains: Sequence[PastChain], nights: Nights, draws: int) -> Replayed:
    cost = at_list = Decimal(0)
    count: Counter[str] = Counter()
    for chain in chains:
        due = option.of(chain)
        if due is None:
            continue
        problem = nights.problem(chain, due)
        plan = make_plan(problem, infeasible="best_effort")
        due_s = (due - chain.started_at).total_seconds()
        count["chains"] += 1
        count["short"] += plan.chance < plan.on_time
        at_list += chain.list_usd
        for draw in range(draws):
            luck, flex = nights.luck(chain, problem, draw)
            endings = carry_out(plan, problem.steps, luck, flex)
            count["late"] += any(ending.done_s > due_s for ending in endings.values())
            cost += cost_of(problem.steps, endings) / draws
    return Replayed(
        due=option.name,
        chains=count["chains"],
        cost_usd=round(cost, 6),
        list_usd=at_list,
        saved=float(1 - cost / at_list) if at_list else 0.0,
        missed=count["late"] / (count["chains"] * draws) if count["chains"] else 0.0,
        short=count["short"],
    )


def cost_of(steps: Sequence[StepProblem], endings: Mapping[str, Ending]) -> Decimal:
    """Return what a night billed; what was left is charged at the price of batch."""
    cost = Decimal(0)
    for step in steps:
        ending = endings[step.name]
        for tier, share in ending.billed.items():
            cost += step.cost_usd.get(tier, Decimal(0)) * Decimal(repr(share))
        if ending.left:
            cost += step.cost_usd.get(Tier.BATCH, Decimal(0)) * Decimal(repr(ending.left))
    return cost
