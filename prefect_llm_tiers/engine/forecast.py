"""Turns a step run into the planner's terms: how much is left, what it costs in each tier, how long it takes."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.outcomes import Usage
from prefect_llm_tiers.core.prices import PUBLISHED_RATIO, price
from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.engine.batch import LONGEST_POLL
from prefect_llm_tiers.engine.beliefs import Beliefs
from prefect_llm_tiers.engine.job import Job, LaterStep
from prefect_llm_tiers.planning.priors import LiveRate
from prefect_llm_tiers.planning.problem import Problem, StepProblem

__all__ = ["BYTES_PER_TOKEN", "problem_of"]

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of a token in English text; corrected by the usage that comes back."""


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What the price and the laws of a step depend on."""

    name: str
    provider: str
    model: str
    account: str | None
    tiers: tuple[Tier, ...]
    offered: frozenset[Tier]
    after: tuple[str, ...]
    rate: LiveRate
    window: timedelta | None
    cancel: timedelta
    ratios: Mapping[Tier, Decimal] = {}
    free: bool = False
    input_tokens: float
    output_tokens: float
    requests: int
    answered: int
    deadline: datetime | None


def problem_of(
    job: Job, beliefs: Beliefs, *, provider: str, now: datetime, remaining: int, answered: int, input_bytes: int
) -> Problem:
    """Return the planning problem of a step run and of the steps after it.

    Later steps are taken to have as many requests as this one has rows.

    Args:
        job: The step run.
        beliefs: The laws of each tier's latency.
        provider: The price book's provider id.
        now: When the plan is made.
        remaining: Requests still to be asked.
        answered: Requests answered already.
        input_bytes: Bytes of the bodies still to be asked.
    """
    limits = job.capabilities.batch
    input_tokens = input_bytes / BYTES_PER_TOKEN / remaining if remaining else 0.0
    this = _Shape(
        name=job.step,
        provider=provider,
        model=job.model,
        account=job.account,
        tiers=job.tiers,
        offered=job.capabilities.tiers,
        after=(),
        rate=job.rate,
        window=limits.window if limits else None,
        cancel=limits.cancel if limits else timedelta(0),
        ratios=job.capabilities.ratios,
        free=job.capabilities.free,
        input_tokens=input_tokens,
        output_tokens=job.output_tokens,
        requests=remaining,
        answered=answered,
        deadline=job.deadline,
    )
    later = [
        # At another provider it is not known yet who will ask.
        _later_shape(step, job.rows, account=job.account if step.provider == provider else None)
        for step in job.later
    ]
    steps = tuple(_step_problem(shape, beliefs, now) for shape in (this, *later))
    return Problem(
        now=now,
        due=job.due,
        on_time=job.on_time,
        steps=steps,
        min_saving_usd=job.min_saving_usd,
        basis=beliefs.basis,
    )


def _later_shape(step: LaterStep, rows: int, *, account: str | None) -> _Shape:
    return _Shape(
        name=step.name,
        provider=step.provider,
        model=step.model,
        account=account,
        tiers=step.tiers,
        # Those that it may not use are not known here; none is advised that may not be there.
        offered=frozenset(step.tiers),
        after=step.after,
        rate=step.rate,
        window=step.window,
        cancel=step.cancel,
        input_tokens=step.input_tokens,
        output_tokens=step.output_tokens,
        requests=rows,
        answered=0,
        deadline=None,
    )


def _step_problem(shape: _Shape, beliefs: Beliefs, now: datetime) -> StepProblem:
    costs, unpriced = _costs(shape, now)
    asked_of = shape.provider, shape.model, shape.account
    return StepProblem(
        name=shape.name,
        requests=shape.requests,
        answered=shape.answered,
        batch=beliefs.batch(*asked_of, window_s=shape.window.total_seconds())
        if Tier.BATCH in shape.tiers and shape.window is not None
        else None,
        live={
            tier: beliefs.live(
                *asked_of,
                tier,
                step=shape.name,
                rate=shape.rate,
                input_tokens=shape.input_tokens,
                output_tokens=shape.output_tokens,
            )
            for tier in LIVE_TIERS
            if tier in shape.tiers
        },
        offered=shape.offered,
        cost_usd=costs,
        unpriced=unpriced,
        after=shape.after,
        deadline=shape.deadline,
        cancel_s=shape.cancel.total_seconds(),
        poll_s=LONGEST_POLL.total_seconds(),
        estimated_tokens=(shape.input_tokens, shape.output_tokens),
    )


def _costs(shape: _Shape, now: datetime) -> tuple[dict[Tier, Decimal], frozenset[Tier]]:
    """Return what the step costs in each tier, and which of those figures no source prices."""
    if shape.free:
        return dict.fromkeys({*shape.tiers, Tier.STANDARD}, Decimal(0)), frozenset()
    usage = Usage(input_tokens=round(shape.input_tokens), output_tokens=round(shape.output_tokens))
    each = {
        tier: price(usage, provider=shape.provider, model=shape.model, tier=tier, at=now)
        for tier in {*shape.tiers, Tier.STANDARD}
    }
    standard = each[Tier.STANDARD]
    costs: dict[Tier, Decimal] = {}
    unpriced: set[Tier] = set()
    for tier, known in each.items():
        if known is not None:
            costs[tier] = known.usd * shape.requests
            continue
        unpriced.add(tier)
        if standard is not None:
            # The provider publishes what the tier costs over standard; good enough to plan by, and said so.
            costs[tier] = standard.usd * shape.ratios.get(tier, PUBLISHED_RATIO[tier]) * shape.requests
    return costs, frozenset(unpriced)
