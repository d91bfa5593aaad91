"""A case: a process killed at a point, and another that goes on."""

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from benchmarks._crash_check import Findings, audit
from benchmarks._crash_task import Asked, Report
from benchmarks._crash_world import Worlds
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.settings import WorldSettings
from tests.crash.scenarios import REPEATED, ROWS, SCENARIOS, SOON, UNREACHABLE, Scenario

__all__ = ["KILLED", "Case", "Ledgers", "Lived", "live_through", "repeated_deaths", "single_deaths", "undisturbed"]

Ledgers = Callable[[str, str], str]
"""Makes a ledger of a kind, `sqlite` or `postgresql`, and returns where it is."""

KILLED = -signal.SIGKILL
RESUMED_AS = {"same-run": "run-1", "new-run": "run-2"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A process that dies at a point.

    Attributes:
        points: Where, `:n` for its n-th passing; each further one is where the next process dies.
        dialect: What its provider speaks.
        ledger: Kind of its ledger.
        resumed: Whether the next process is of the same flow run or of a new one.
    """

    points: tuple[str, ...]
    dialect: Dialect
    ledger: str
    resumed: str

    @property
    def scenario(self) -> Scenario:
        """What it lives through."""
        return SCENARIOS[self.points[0]] if len(self.points) == 1 else REPEATED[self.points]

    def __str__(self) -> str:
        return f"{'-then-'.join(self.points)}-{self.dialect}-{self.ledger}-{self.resumed}"


@dataclass(frozen=True, kw_only=True)
class Lived:
    """What a case came to.

    Attributes:
        deaths: How each process ended that was to die.
        report: What the one that went on says.
        findings: The audit.
        uncancelled: How many batches with the same rows were not stopped, at most.
    """

    deaths: tuple[int, ...]
    report: Report
    findings: Findings
    uncancelled: int


def single_deaths() -> list[Case]:
    """Return every case in which one process dies."""
    return [
        Case(points=(point,), dialect=dialect, ledger=ledger, resumed=resumed)
        for point in SCENARIOS
        for dialect in Dialect
        for ledger in ("sqlite", "postgresql")
        for resumed in RESUMED_AS
        if (dialect, point.partition(":")[0]) not in UNREACHABLE
    ]


def repeated_deaths() -> list[Case]:
    """Return the cases in which those that go on die as well."""
    return [
        Case(points=points, dialect=dialect, ledger=ledger, resumed=resumed)
        for points in REPEATED
        for dialect in Dialect
        for ledger, resumed in zip(("sqlite", "postgresql"), RESUMED_AS, strict=True)
    ]


def live_through(case: Case, worlds: Worlds, ledger: str, folder: Path) -> Lived:
    """Let a process die, and another go on until nothing is out any more; hold the books against each other."""
    scenario = case.scenario
    asked = scenario.asked(case.dialect)
    with worlds.world(folder, scenario.world) as world:
        first, *others = case.points
        if scenario.before is not None:
            first, *others = (scenario.before, first, *others)
        deaths = (
            world.start(asked, ledger=ledger, crash_at=first).wait(),
            *(
                world.start(asked, ledger=ledger, run=RESUMED_AS[case.resumed], crash_at=point).wait()
                for point in others
            ),
        )
        report = world.start(asked, ledger=ledger, run=RESUMED_AS[case.resumed], sweep=True).report()
        uncancelled = Counter(batch.rows_digest for batch in world.simulation.batches() if not batch.cancelled)
        return Lived(
            deaths=deaths,
            report=report,
            findings=audit(world.simulation, ledger, asked),
            uncancelled=max(uncancelled.values(), default=0),
        )


def undisturbed(dialect: Dialect, tier: Tier, worlds: Worlds, ledger: str, folder: Path) -> Decimal:
    """Return what the rows cost in a tier where nobody dies and nothing goes wrong."""
    asked = Asked(dialect=dialect, rows=ROWS, tiers=(tier,))
    with worlds.world(folder, WorldSettings(batch=SOON)) as world:
        world.start(asked, ledger=ledger).report()
        return world.billed_usd()
