"""What a plan is asked for: steps with their laws and prices, and when they must be done."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.tiers import SURE_TIERS, Tier
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw

__all__ = ["PRIORS", "Problem", "StepProblem"]

PRIORS = "priors; nothing was learned yet"
"""What laws rest on before anything was observed."""


class StepProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a chain, as the planner sees it.

    Attributes:
        name: The step's name.
        requests: How many are still to be asked.
        answered: How many are answered already, and cost nothing.
        batch: Law of a batch over all of them; None where batch may not be used.
        live: Law of each live tier that may be used.
        offered: Tiers that the provider offers for the model, whether they may be used or not.
        cost_usd: What all requests cost in each tier; a tier without a price is absent.
        unpriced: Tiers whose cost is planned by the provider's published ratio, or not at all.
        after: Names of the steps it needs.
        deadline: Its own deadline, apart from the chain's.
        cancel_s: The longest that leaving batch takes.
        poll_s: How late the end of a batch may be noticed.
        estimated_tokens: Tokens in and out of an average request that the cost was planned with.
    """

    name: str
    requests: int
    answered: int = 0
    batch: BatchLaw | None = None
    live: Mapping[Tier, LiveLaw]
    offered: frozenset[Tier] = frozenset(Tier)
    cost_usd: Mapping[Tier, Decimal]
    unpriced: frozenset[Tier] = frozenset()
    after: tuple[str, ...] = ()
    deadline: datetime | None = None
    cancel_s: float = 600.0
    poll_s: float = 60.0
    estimated_tokens: tuple[float, float] = (0.0, 0.0)

    @property
    def sure_tiers(self) -> tuple[Tier, ...]:
        """Tiers that a deadline can be trusted to, the cheapest first.

        Where neither standard nor priority may be used, the most reliable tier that may stands in.
        """
        sure = tuple(tier for tier in SURE_TIERS if tier in self.live)
        return sure or tuple(self.live)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A chain of steps, or a single one, and what it must keep.

    Attributes:
        now: When the plan is made.
        due: When the last step must be done; None without a deadline.
        on_time: Chance of being on time that is asked for.
        steps: In an order in which every step comes after those it needs.
        min_saving_usd: Batch and flex are used only where they are expected to save at least this much.
        basis: What the laws rest on, in plain words.
    """

    now: datetime
    due: datetime | None
    on_time: float
    steps: tuple[StepProblem, ...]
    min_saving_usd: Decimal = Decimal(0)
    basis: str = PRIORS
