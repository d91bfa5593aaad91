"""Random deaths and every fault at once: what a provider took and billed is in the ledger all the same.

Each run is a step run against a simulated provider on which every fault of the simulator may strike, carried out by
real processes that are killed with SIGKILL, at crash points and in the middle of whatever they do, and taken up
again, as the same flow run or as a new one. The provider's account is then held against the ledger, whole.

- `lost_rows`: rows without exactly one outcome at the end. An answer that the provider delivered and the ledger does
  not have shows as a bill that nothing accounts for, and is counted there.
- `double_submissions`: pairs of batches at the provider that carry one row, of which the later is not explained by
  the ledger: it was sent after the attempt in the earlier one had ended there (the batch's end, a cancel, a proof of
  absence, an overdue batch), or it is a copy that the provider made of one submission, which the ledger lists, and
  which was stopped unless it had ended before the cancel could reach it, or carries rows that the first one left
  unanswered and a run waits for.
  Left out of this and the next count, and told as `nameless_copies`: copies at a provider without metadata of which
  not one result line bears a custom_id. What nobody can know no ledger can list.
- `unreconciled_rows`: bills of the provider that no attempt in the ledger accounts for, priced, superseded or listed
  as `billed_unknown`.

What strikes and who dies where is drawn from fixed seeds, so it is the same every time; how far a process comes in
the real time before a kill is not, and the three counts are to be 0 whatever it is.
"""

import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from benchmarks._crash_check import Findings, audit
from benchmarks._crash_task import Asked
from benchmarks._crash_world import Process, World, Worlds, memory
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.crash_points import CRASH_POINTS
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw, FlexOutages, LiveLaw, WorldSettings

__all__ = ["Soaked", "run", "soak"]

RUNS = 200
RUNS_VARIABLE = "SOAK_RUNS"
"""Environment variable for another number of runs."""

AT_ONCE = 3
SPEED = 120.0
MOST_PROCESSES = 40
"""Of one run: a provider on which everything fails may end a run with an error, and whoever runs it runs it again."""

HOUR_S = 3600.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is to live through.

    Attributes:
        asked: What it asks.
        world: What its provider is like.
        deaths: For each process that is to be killed, where: a crash point, or seconds after its start.
        renewed: For each process after the first, whether it is of a new flow run.
    """

    asked: Asked
    world: WorldSettings
    deaths: tuple[str | float, ...]
    renewed: tuple[bool, ...]


class Soaked(msgspec.Struct, frozen=True, kw_only=True):
    """What one run came to.

    Attributes:
        number: Which one.
        findings: The audit.
        processes: How many carried it out.
        kills: How many of those died of SIGKILL.
        faults: How often each fault struck.
        errors: How often each error ended a process.
        finished: Whether the last process came to its end.
    """

    number: int
    findings: Findings
    processes: int
    kills: int
    faults: dict[str, int]
    errors: dict[str, int]
    finished: bool


def run(runs: int | None = None) -> dict[str, float]:
    """Soak the engine and return the counts; the first three are to be 0."""
    if runs is None:
        runs = int(os.environ.get(RUNS_VARIABLE, RUNS))
    with tempfile.TemporaryDirectory(prefix="soak-", dir=memory()) as name, Worlds() as worlds:
        soaked = soak(range(runs), worlds, Path(name))
    for one in soaked:
        _tell(one)
    faults = sum((Counter(one.faults) for one in soaked), Counter[str]())
    return {
        "lost_rows": sum(len(one.findings.lost_rows) for one in soaked),
        "double_submissions": sum(len(one.findings.double_submissions) for one in soaked),
        "unreconciled_rows": sum(len(one.findings.unreconciled) for one in soaked),
        "runs": len(soaked),
        "unfinished_runs": sum(not one.finished for one in soaked),
        "processes": sum(one.processes for one in soaked),
        "kills": sum(one.kills for one in soaked),
        "faults": faults.total(),
        "fault_kinds": len(faults),
        "batches": sum(one.findings.batches for one in soaked),
        "nameless_copies": sum(one.findings.nameless for one in soaked),
        "rows": sum(one.findings.settled for one in soaked),
        "billed_unknown": sum(one.findings.unknown for one in soaked),
    }


def soak(numbers: Sequence[int], worlds: Worlds, folder: Path) -> list[Soaked]:
    """Live through the runs of these numbers, some at the same time, and return what each came to."""
    with ThreadPoolExecutor(AT_ONCE) as executor:
        return list(executor.map(lambda number: _live_through(number, worlds, folder), numbers))


def _plan(number: int) -> Plan:
    """Draw what a run is to live through."""
    rng = random.Random(f"soak:{number}")
    dialect = (Dialect.OPENAI, Dialect.ANTHROPIC)[number % 2]
    rows = rng.randint(6, 40)
    due_s = rng.choice((None, 2 * HOUR_S, 4 * HOUR_S, 8 * HOUR_S, 30 * HOUR_S))
    live = [Tier.STANDARD]
    if dialect is Dialect.OPENAI:
        live += rng.sample((Tier.FLEX, Tier.PRIORITY), rng.randint(0, 2))
    kind = rng.choice(("batch", "both", "both", "live"))
    tiers = {"batch": [Tier.BATCH], "both": [Tier.BATCH, *live], "live": live}[kind]
    asked = Asked(
        dialect=dialect,
        rows=rows,
        due_s=due_s,
        tiers=tuple(tiers),
        concurrency=rng.choice((1, 4, 8)),
        batch_requests=rng.choice((None, None, rows // 2, rows // 3)),
        parse=rng.random() < 0.3,
        max_failed=rows,
    )
    world = WorldSettings(
        seed=number,
        batch=BatchLaw(
            median_s=rng.choice((60.0, 600.0, 3600.0)),
            sigma=0.8,
            stuck_share=rng.choice((0.02, 0.4)),
            progress=rng.choice(("linear", "bursty")),
        ),
        live={tier: LiveLaw(base_s=0.5, per_token_s=0.002) for tier in live},
        flex_outages=FlexOutages(mean_up_s=600.0, mean_down_s=120.0) if rng.random() < 0.5 else None,
        # A look every five minutes for a whole day would tell nothing that one for three hours does not.
        window_s=3 * HOUR_S,
        unparsable_rate=0.1 if asked.parse else 0.0,
        refusal_rate=0.03,
        error_rate=0.03,
        batch_row_error_rate=0.03,
        faults=_faults(rng),
    )
    deaths = tuple(
        f"{rng.choice(_POINTS)}:{rng.choice((1, 1, 1, 2, 3))}" if rng.random() < 0.7 else rng.uniform(0.02, 0.6)
        for _ in range(rng.randint(1, 5))
    )
    renewed = tuple(rng.random() < 0.3 for _ in range(MOST_PROCESSES))
    return Plan(asked=asked, world=world, deaths=deaths, renewed=renewed)


_POINTS = (*CRASH_POINTS, *(point for point in CRASH_POINTS if point.startswith(("batch.", "live."))))
"""Those between which something is sent come up more often."""

_AT_CREATION = tuple(name for name in Faults.names() if name.startswith("create_"))


def _faults(rng: random.Random) -> Faults:
    """Return every fault at once: each as rare as it must be for the run to come to an end."""
    rate = rng.choice((0.01, 0.03, 0.06))
    made = Faults.all(rate)
    often = dict.fromkeys(_AT_CREATION, rng.choice((0.03, 0.1, 0.2)))
    # An endless list is read for a real minute, whatever the time in it.
    return msgspec.structs.replace(made, **often, live_quota=0.002, list_endless=rate / 20, stall_s=60.0)


def _live_through(number: int, worlds: Worlds, folder: Path) -> Soaked:
    plan = _plan(number)
    place = folder / str(number)
    place.mkdir()
    ledger = str(place / "ledger.db")
    with worlds.world(place, plan.world, speed=SPEED) as world:
        kills, errors, finished = 0, Counter[str](), False
        deaths = list(plan.deaths)
        run_number, processes = 1, 0
        while not finished and processes < MOST_PROCESSES:
            death = deaths.pop(0) if deaths else None
            run_number += plan.renewed[processes] and processes > 0
            process = _start(world, plan, ledger, f"run-{run_number}", death, last=not deaths)
            processes += 1
            if _ends(process, death) == -signal.SIGKILL:
                kills += 1
                continue
            report = process.report()
            if report.error is not None:
                errors[report.error] += 1
            # One that was to die and came to its end has to die no more.
            finished = report.error is None and not deaths
        return Soaked(
            number=number,
            findings=audit(world.simulation, ledger, plan.asked),
            processes=processes,
            kills=kills,
            faults=world.simulation.account().faults,
            errors=dict(errors),
            finished=finished,
        )


def _start(world: World, plan: Plan, ledger: str, run_id: str, death: str | float | None, *, last: bool) -> Process:
    return world.start(
        plan.asked,
        ledger=ledger,
        run=run_id,
        crash_at=death if isinstance(death, str) else None,
        sweep=last,
    )


def _ends(process: Process, death: str | float | None) -> int:
    """Return how a process ended, killed in the middle of something if that is its death."""
    if isinstance(death, float):
        process.let_go(death)
        if not process.over:
            process.kill()
    return process.wait()


def _tell(one: Soaked) -> None:
    found = one.findings
    for what in (*found.lost_rows, *found.double_submissions, *found.unreconciled):
        print(f"run {one.number}: {what}", file=sys.stderr)
    if not one.finished:
        print(
            f"run {one.number} did not come to its end after {one.processes} processes: {one.errors}", file=sys.stderr
        )
