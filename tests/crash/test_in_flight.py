"""Deaths that no point names: in the middle of a call, and beside another process."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from benchmarks._crash_check import audit
from benchmarks._crash_task import Asked
from benchmarks._crash_world import LONGEST_S, Process, World, Worlds
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import WorldSettings
from tests.crash.cases import KILLED, RESUMED_AS, Ledgers
from tests.crash.scenarios import SOON

DIALECTS = pytest.mark.parametrize("dialect", list(Dialect))
LEDGERS = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
RESUMED = pytest.mark.parametrize("run", RESUMED_AS.values(), ids=RESUMED_AS.keys())

FOR_EVER_S = 10.0**6

NewLedger = Callable[[str], str]
MakeWorld = Callable[[WorldSettings], World]

_numbers = count()


@pytest.fixture
def new_ledger(ledgers: Ledgers) -> NewLedger:
    """Make a ledger of a kind."""
    return lambda kind: ledgers(kind, f"in-flight-{next(_numbers)}")


@pytest.fixture
def make_world(worlds: Worlds, tmp_path: Path) -> Iterator[MakeWorld]:
    """Make one world, and end it with the test."""
    made: list[World] = []

    def make(settings: WorldSettings) -> World:
        made.append(worlds.world(tmp_path, settings))
        return made[0]

    yield make
    for world in made:
        world.__exit__()


@DIALECTS
@LEDGERS
@RESUMED
def test_a_batch_whose_create_never_answered_is_found(
    dialect: Dialect, kind: str, run: str, make_world: MakeWorld, new_ledger: NewLedger
) -> None:
    """The provider took it and said nothing, and the client was killed while it waited: it is not sent again."""
    faults = Faults(only={"create_stalls": (0,)}, stall_s=FOR_EVER_S)
    world, asked, ledger = (
        make_world(WorldSettings(batch=SOON, faults=faults)),
        Asked(dialect=dialect),
        new_ledger(kind),
    )
    waiting = world.start(asked, ledger=ledger)
    until(lambda: bool(world.simulation.batches()), waiting)
    kill(waiting)
    assert world.start(asked, ledger=ledger, run=run, sweep=True).report().failed == 0
    all_is_well(world, ledger, asked)


@DIALECTS
@LEDGERS
@RESUMED
def test_a_create_that_lands_after_its_client_died_is_found(
    dialect: Dialect, kind: str, run: str, make_world: MakeWorld, new_ledger: NewLedger
) -> None:
    """No list shows the batch for minutes after the process died, and it is waited for and not sent again."""
    faults = Faults(only={"create_lands_late": (0,)}, create_late_s=(450.0, 450.0))
    world, asked, ledger = (
        make_world(WorldSettings(batch=SOON, faults=faults)),
        Asked(dialect=dialect),
        new_ledger(kind),
    )
    waiting = world.start(asked, ledger=ledger)
    until(lambda: bool(world.simulation.batches()), waiting)
    kill(waiting)
    assert world.start(asked, ledger=ledger, run=run, sweep=True).report().failed == 0
    all_is_well(world, ledger, asked)


@DIALECTS
@LEDGERS
@RESUMED
def test_whoever_waits_beside_a_process_that_is_killed_goes_on(
    dialect: Dialect, kind: str, run: str, make_world: MakeWorld, new_ledger: NewLedger
) -> None:
    """Two processes, of one run or of two that ask the same: one dies in its create, the other pays nothing twice."""
    faults = Faults(only={"create_stalls": (0,)}, stall_s=FOR_EVER_S)
    world, asked, ledger = (
        make_world(WorldSettings(batch=SOON, faults=faults)),
        Asked(dialect=dialect),
        new_ledger(kind),
    )
    first = world.start(asked, ledger=ledger)
    until(lambda: bool(world.simulation.batches()), first)
    second = world.start(asked, ledger=ledger, run=run, sweep=True)
    until(lambda: world.waits(second), second)
    assert not first.over
    kill(first)
    assert second.report().failed == 0
    all_is_well(world, ledger, asked)


@DIALECTS
@LEDGERS
@RESUMED
def test_a_live_call_in_flight_is_listed_and_no_other_row_is_asked_again(
    dialect: Dialect, kind: str, run: str, make_world: MakeWorld, new_ledger: NewLedger
) -> None:
    """One call never came back: it may be on the invoice, and the ledger says so; the answers that came are kept."""
    faults = Faults(only={"live_stalls": (0,)}, stall_s=FOR_EVER_S)
    world, ledger = make_world(WorldSettings(faults=faults)), new_ledger(kind)
    asked = Asked(dialect=dialect, tiers=(Tier.STANDARD,))
    first = world.start(asked, ledger=ledger)
    until(lambda: world.simulation.account().answered >= asked.rows, first)
    until(lambda: audit(world.simulation, ledger, asked).settled == asked.rows - 1, first)
    kill(first)
    assert world.start(asked, ledger=ledger, run=run).report().failed == 0
    found = audit(world.simulation, ledger, asked)
    assert found.faultless, found
    assert found.unknown == 1
    assert world.simulation.account().billed_again <= 1


def until(happened: Callable[[], bool], process: Process) -> None:
    """Return when something has happened while a process works on it.

    Raises:
        AssertionError: It ended before, or it takes too long.
    """
    give_up_at = time.monotonic() + LONGEST_S
    while not happened():
        assert not process.over, "the process ended before it happened"
        assert time.monotonic() < give_up_at, "it did not happen"
        process.let_go(0.005)


def kill(process: Process) -> None:
    """Kill a process, and see it dead."""
    process.kill()
    assert process.wait() == KILLED


def all_is_well(world: World, ledger: str, asked: Asked) -> None:
    """One batch, every row answered, and each answer paid for once."""
    found = audit(world.simulation, ledger, asked)
    assert found.faultless, found
    assert found.batches == 1
    assert found.unknown == 0
    assert found.superseded_usd == 0
    assert found.billed_usd == found.counted_usd
