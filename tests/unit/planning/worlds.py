"""Problems to plan, and a world to carry a plan out in that shares no line with the planner's own."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import exp

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.deciding import State, decide
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.problem import Problem, StepProblem

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
EVERY = tuple(Tier)

BATCH = BatchLaw(median_s=1500, sigma=1.2, p_stuck=0.05, stuck_from_s=14_400, stuck_to_s=100_800)
LIVE = {
    Tier.FLEX: LiveLaw(base_s=20, per_request_s=0.24, sigma=0.6, p_down=0.2, down_s=1800),
    Tier.STANDARD: LiveLaw(base_s=12, per_request_s=0.12, sigma=0.35),
    Tier.PRIORITY: LiveLaw(base_s=8, per_request_s=0.06, sigma=0.3),
}
PRICE = {
    Tier.BATCH: Decimal("0.001"),
    Tier.FLEX: Decimal("0.001"),
    Tier.STANDARD: Decimal("0.002"),
    Tier.PRIORITY: Decimal("0.004"),
}


def step(
    name: str = "summary",
    *,
    requests: int = 5000,
    tiers: Sequence[Tier] = EVERY,
    after: Sequence[str] = (),
    deadline_h: float | None = None,
    slower: float = 1.0,
    price: Mapping[Tier, Decimal] = PRICE,
    live: Mapping[Tier, LiveLaw] = LIVE,
) -> StepProblem:
    """Return a step; `slower` stretches every live tier's throughput."""
    return StepProblem(
        name=name,
        requests=requests,
        batch=BATCH if Tier.BATCH in tiers else None,
        live={
            tier: LiveLaw(
                base_s=law.base_s,
                per_request_s=slower * law.per_request_s,
                sigma=law.sigma,
                p_down=law.p_down,
                down_s=law.down_s,
            )
            for tier, law in live.items()
            if tier in tiers
        },
        cost_usd={tier: usd * requests for tier, usd in price.items() if tier in {*tiers, Tier.STANDARD}},
        after=tuple(after),
        deadline=None if deadline_h is None else NOW + timedelta(hours=deadline_h),
        poll_s=300,
    )


def chain(*steps: StepProblem, hours: float | None = 8, on_time: float = 0.99, min_saving_usd: str = "0") -> Problem:
    """Return the problem of some steps that are due in so many hours."""
    return Problem(
        now=NOW,
        due=None if hours is None else NOW + timedelta(hours=hours),
        on_time=on_time,
        steps=steps,
        min_saving_usd=Decimal(min_saving_usd),
    )


@dataclass
class Result:
    """What became of one night."""

    late: bool
    cost_usd: float
    tiers: list[list[Tier]]


def night(plan: Plan, problem: Problem, seed: int) -> Result:
    """Carry a plan out in a world drawn from the laws, asking `decide` as an engine would."""
    done: dict[str, float] = {}
    late, cost, tiers = False, 0.0, []
    for asked in problem.steps:
        begins = max((done[name] for name in asked.after), default=0.0)
        ends, shares, path = _step_night(plan, asked, begins, random.Random(f"{seed}:{asked.name}"))
        done[asked.name] = ends
        tiers.append(path)
        cost += sum(share * float(asked.cost_usd[tier]) for tier, share in shares.items() if share)
        if asked.requests:
            late |= any(ends > (due - problem.now).total_seconds() for due in (problem.due, asked.deadline) if due)
    return Result(late=late, cost_usd=cost, tiers=tiers)


def _step_night(
    plan: Plan, asked: StepProblem, begins: float, luck: random.Random
) -> tuple[float, dict[Tier, float], list[Tier]]:
    now, left, tier, tried = begins, float(asked.requests), None, False
    shares: dict[Tier, float] = dict.fromkeys(Tier, 0.0)
    path: list[Tier] = []
    total = max(float(asked.requests), 1.0)
    # The luck of a visit: the instant at which it takes calls, and the seconds that one request takes.
    ready, pace = 0.0, 0.0
    while left > 1e-6:
        state = State(
            now=plan.made_at + timedelta(seconds=now),
            step=asked.name,
            tier=tier,
            remaining=max(1, round(left)),
            batch_tried=tried,
        )
        decision = decide(plan, state)
        if decision.tier is Tier.BATCH:
            tried = True
            path.append(Tier.BATCH)
            now, left, tier = _batch_night(plan, asked, now, left, luck, shares)
            continue
        if decision.tier is not tier or not pace:
            tier = decision.tier
            path.append(tier)
            law = asked.live[tier]
            down = luck.random() < law.p_down
            ready = now + (luck.expovariate(1 / law.down_s) if down else 0.0)
            pace = (law.base_s / left + law.per_request_s) * exp(law.sigma * luck.gauss(0, 1))
        review = _seconds(plan, decision.review_at)
        finish = max(now, ready) + left * pace
        until = min(finish, max(review, now + 1.0))
        worked = max(until - max(now, ready), 0.0) / pace
        shares[tier] += min(worked, left) / total
        left, now = left - worked, until
    return now, shares, path


def _batch_night(
    plan: Plan, asked: StepProblem, now: float, left: float, luck: random.Random, shares: dict[Tier, float]
) -> tuple[float, float, Tier]:
    """Submit a batch, look at it now and then, and leave it when `decide` says so."""
    law = asked.batch
    assert law is not None
    stuck = luck.random() < law.p_stuck
    took = luck.uniform(law.stuck_from_s, law.stuck_to_s) if stuck else law.median_s * exp(law.sigma * luck.gauss(0, 1))
    starts = took * luck.uniform(0, 0.5)
    submitted, total = now, float(asked.requests)

    def share_at(instant: float) -> float:
        return min(max((instant - submitted - starts) / (took - starts), 0.0), 1.0)

    while True:
        state = State(
            now=plan.made_at + timedelta(seconds=now),
            step=asked.name,
            tier=Tier.BATCH,
            remaining=max(1, round(left)),
            batch_out=True,
            batch_tried=now > submitted,
        )
        decision = decide(plan, state)
        if decision.tier is not Tier.BATCH:
            break
        look = now + luck.uniform(0.5, 1.0) * asked.poll_s
        now = max(min(look, _seconds(plan, decision.review_at)), now + 1.0)
        if min(took, law.window_s) <= now - submitted:
            share = 1.0 if took <= law.window_s else share_at(submitted + law.window_s)
            shares[Tier.BATCH] += share * left / total
            return now, left * (1 - share), Tier.BATCH
    final = now + luck.uniform(0.05, 1.0) * asked.cancel_s
    assert final <= _seconds(plan, decision.start_by) + 1.0
    share = share_at(final)
    shares[Tier.BATCH] += share * left / total
    return final, left * (1 - share), decision.tier


def _seconds(plan: Plan, instant: datetime | None) -> float:
    return float("inf") if instant is None else (instant - plan.made_at).total_seconds()
