"""What goes on in a process when it dies at a point, and which points cannot be reached."""

from dataclasses import dataclass

from benchmarks._crash_task import Asked
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings

__all__ = ["REPEATED", "SCENARIOS", "UNREACHABLE", "Scenario"]

ROWS = 12
CALLS_IN_FLIGHT = 4

SOON = BatchLaw(median_s=180.0, sigma=0.0, stuck_share=0.0)
NEVER = BatchLaw(median_s=10.0**7, sigma=0.0, stuck_share=0.0)
"""So slow that no row of a batch is done before its cancel is final."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a process lives through.

    Attributes:
        world: What its provider is like.
        tiers: Tiers that its step may use.
        due_s: When its step is due.
        batch_requests: Most requests of a batch.
        before: The point at which an earlier process of the same run has died; None for the first one.
        answered_by: The tier that answers every row.
        copies: Whether the provider works on a batch twice, and bills both.
    """

    world: WorldSettings
    tiers: tuple[Tier, ...] = ()
    due_s: float | None = 8 * 3600.0
    batch_requests: int | None = None
    before: str | None = None
    answered_by: Tier = Tier.BATCH
    copies: bool = False

    def asked(self, dialect: Dialect) -> Asked:
        """Return what its step run asks."""
        return Asked(
            dialect=dialect,
            rows=ROWS,
            due_s=self.due_s,
            tiers=self.tiers,
            concurrency=CALLS_IN_FLIGHT,
            batch_requests=self.batch_requests,
        )


PLAIN = Scenario(world=WorldSettings(batch=SOON))
"""A batch that is confirmed, ends and is harvested."""

TWO = Scenario(world=WorldSettings(batch=SOON), batch_requests=ROWS // 2)
"""Two batches, of which the second meets the point."""

REPLY_LOST = Scenario(world=WorldSettings(batch=SOON, faults=Faults(only={"create_502_taken": (0,)})))
"""The provider takes a batch, and a gateway says 502."""

REFUSED = Scenario(world=WorldSettings(batch=SOON, faults=Faults(only={"create_502_untaken": (0,)})))
"""A gateway says 502, and the provider knows nothing of it."""

TAKEN_TWICE = Scenario(
    world=WorldSettings(batch=SOON, faults=Faults(only={"create_twice": (0,)})), before="batch.create.sent", copies=True
)
"""The provider takes one create twice, and the process dies before it writes the reply down."""

TAKEN_TWICE_UNSEEN = Scenario(world=WorldSettings(batch=SOON, faults=Faults(only={"create_twice": (0,)})), copies=True)
"""The same, and the reply to one of them is written down as if there were no other."""

TOO_SLOW = Scenario(
    world=WorldSettings(batch=NEVER, cancel_s=(60.0, 60.0)),
    tiers=(Tier.BATCH, Tier.STANDARD),
    due_s=3 * 3600.0,
    answered_by=Tier.STANDARD,
)
"""A batch that does not end in time, and is stopped for the rows' sake."""

SLOW_CANCEL = Scenario(
    world=WorldSettings(batch=NEVER, cancel_s=(5400.0, 5400.0)),
    tiers=(Tier.BATCH, Tier.STANDARD),
    due_s=3 * 3600.0,
    answered_by=Tier.STANDARD,
)
"""The same, and the cancel takes longer than the rows can wait."""

LIVE = Scenario(world=WorldSettings(), tiers=(Tier.STANDARD,), answered_by=Tier.STANDARD)
"""Live calls."""

SCENARIOS: dict[str, Scenario] = {
    "step.entered": PLAIN,
    "step.planned": PLAIN,
    "step.switched": PLAIN,
    "batch.planned": PLAIN,
    "batch.planned:2": TWO,
    "batch.uploaded": PLAIN,
    "batch.file.recorded": PLAIN,
    "batch.intent": PLAIN,
    "batch.intent:2": TWO,
    "batch.create.sent": PLAIN,
    "batch.create.sent:2": TWO,
    "batch.confirmed": PLAIN,
    "batch.looked": PLAIN,
    "batch.ended": PLAIN,
    "batch.harvest.group": PLAIN,
    "batch.harvested": PLAIN,
    "batch.settled": PLAIN,
    "batch.settled:1": TAKEN_TWICE_UNSEEN,
    "batch.settled:2": TWO,
    "batch.searched": REPLY_LOST,
    "batch.found": REPLY_LOST,
    "batch.absent": REFUSED,
    "batch.copy.recorded": TAKEN_TWICE,
    "batch.cancel.sent": TOO_SLOW,
    "batch.cancel.recorded": TOO_SLOW,
    "batch.left": SLOW_CANCEL,
    "live.intended": LIVE,
    "live.answered": LIVE,
    "live.answered:3": LIVE,
    "live.recorded": LIVE,
    "step.finished": PLAIN,
}
"""Every point, `:n` for its n-th passing, with what a process lives through that dies there."""

REPEATED: dict[tuple[str, ...], Scenario] = {
    ("batch.planned", "batch.create.sent"): PLAIN,
    ("batch.intent", "batch.searched", "batch.absent"): PLAIN,
    ("batch.create.sent", "batch.found"): PLAIN,
    ("batch.create.sent", "batch.searched", "batch.found", "batch.looked", "batch.harvest.group"): PLAIN,
    ("batch.ended", "batch.harvested"): PLAIN,
    ("batch.searched", "batch.absent", "batch.create.sent", "batch.found"): REFUSED,
    ("batch.cancel.sent", "batch.harvested", "live.answered"): TOO_SLOW,
    ("live.intended", "live.answered", "live.recorded"): LIVE,
}
"""Points at which one process after the other dies, with what they live through."""

UNREACHABLE: dict[tuple[Dialect, str], str] = {
    (Dialect.ANTHROPIC, "batch.uploaded"): "Anthropic has no files: requests travel in the create itself",
    (Dialect.ANTHROPIC, "batch.file.recorded"): "Anthropic has no files: requests travel in the create itself",
}
"""Points that a provider's batches do not pass, with the reason."""
