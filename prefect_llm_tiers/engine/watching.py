"""What the engine tells those who watch: values, never prompts, answers or keys of the provider."""

from datetime import datetime
from decimal import Decimal
from typing import Protocol

import msgspec

from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.plan import Plan

__all__ = ["Progress", "Watcher"]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a step stands.

    Attributes:
        step: Its name.
        rows: Distinct requests of the step.
        answered: With an answer or a refusal.
        failed: Failed for good in this run.
        out: In a batch that may still answer.
        provider_done: Of those, how many the provider says are done; it tells no more while a batch runs.
        tier: The tier the rest is in.
        now: The time.
        deadline: When the step must be done, None without a deadline.
        spent_usd: What this step run has paid for so far.
    """

    step: str
    rows: int
    answered: int
    failed: int
    out: int
    provider_done: int
    tier: Tier | None
    now: datetime
    deadline: datetime | None
    spent_usd: Decimal


class Watcher(Protocol):
    """Somebody who shows what happens. Its methods return soon; what they raise is not caught."""

    def planned(self, plan: Plan) -> None:
        """A plan was made, and nothing was paid yet."""
        ...

    def submitted(self, batch: Batch) -> None:
        """The provider confirmed a batch."""
        ...

    def switched(self, *, step: str, before: Tier | None, after: Tier, at: datetime, reason: str) -> None:
        """The rest of a step goes on in another tier."""
        ...

    def settled(self, batch: Batch, *, kept: int, released: int) -> None:
        """A batch was harvested; `released` of its requests are to be asked again."""
        ...

    def noticed(self, message: str) -> None:
        """Something a person should know, in a sentence."""
        ...

    def progressed(self, progress: Progress) -> None:
        """Something moved."""
        ...
