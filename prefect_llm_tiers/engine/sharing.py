"""What other runs are asking for a step run: waited for while its own deadline allows.

Two runs that ask the same thing at the same time pay once. Each asks what nobody asks yet; what another one has out,
in a live call or in a batch that both wait for, is left to it until it is answered, until it is given up, or until
this run must ask all the same to be in time. Then both are priced.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.runs import StepRun
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.planning.deciding import slack_law
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.stopping import latest_start

__all__ = ["Patience", "Sharing"]

FIRST_LOOK = timedelta(seconds=2)
LONGEST_LOOK = timedelta(minutes=1)
LOOK_GROWTH = 1.5


class Patience(msgspec.Struct, frozen=True):
    """How long a step run waits for what others are asking.

    Attributes:
        until: When it stops to; None where that is past, or never comes.
        lasts: Whether it waits now.
    """

    until: datetime | None
    lasts: bool


class Sharing:
    """A step run among the others of its ledger."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        # Only how often this process looks; what it waits for is in the ledger, and looked at anew after a restart.
        self._looks = 0

    def patience(self, plan: Plan, run: StepRun, remaining: int) -> Patience:
        """Return how long others are waited for now.

        Until the latest safe start of the tier that the plan falls back to, over every unanswered request. Without
        a deadline, or without a live tier, as long as they are at it.
        """
        step = plan.step(run.step)
        law = slack_law(step, batch_tried=True)
        if law is None or step.latest_finish is None:
            return Patience(until=None, lasts=True)
        until = latest_start(step.latest_finish, law, remaining, reserve=plan.reserve)
        lasts = self._ports.clock.now() < until
        return Patience(until=until if lasts else None, lasts=lasts)

    def theirs(self, run: StepRun, batches: list[Batch]) -> list[Batch]:
        """Return the batches among some that other runs wait for too."""
        waiting = self._ports.ledger.waiting_for
        return [batch for batch in batches if any(other != run.id for other in waiting(batch.id))]

    def next_look(self) -> datetime:
        """Return when to look again after the calls of others: soon at first, for most are answered in seconds."""
        wait = min(LONGEST_LOOK, FIRST_LOOK * LOOK_GROWTH ** min(self._looks, 16))
        self._looks += 1
        return self._ports.clock.now() + wait

    def moved(self) -> None:
        """Note that there was something else to do than to wait: the next look is soon again."""
        self._looks = 0

    def told(self, run: StepRun, *, calls: int = 0, batches: Sequence[Batch] = ()) -> None:
        """Tell that the deadline leaves no time to wait for others."""
        if calls:
            self._ports.watcher.noticed(
                f"{calls:,} requests of step {run.step!r} are asked although another run has calls out on them: the "
                "deadline leaves no time to wait. What both bring is priced for both."
            )
        for batch in batches:
            self._ports.watcher.noticed(
                f"Batch {batch.id}, which another run waits for too, is left by step {run.step!r}: the deadline leaves "
                "no time to wait. What it still brings and what is asked in its place are both priced."
            )
