"""A ledger's own past under other due times: what it would have cost, and how often it would have been late."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from prefect_llm_tiers.backtesting.history import NEVER_ENDED, NOTHING_ASKED, Nights, PastChain, read_chains
from prefect_llm_tiers.backtesting.replaying import DueOption, HistoryReport, Replayed, replay_history
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import START, Box, paid, until

HOUR = timedelta(hours=1)
SINCE, UNTIL = START - 24 * HOUR, START + 24 * HOUR
"""The wall clock of a box ticks by seconds, whatever its runs live through."""

NIGHTS = 4


def evenings(box: Box, *, nights: int = NIGHTS, tiers: Sequence[Tier] = (Tier.BATCH, Tier.STANDARD)) -> None:
    """Carry a chain of two steps out on some evenings, each due eight hours after its start."""
    for night in range(nights):
        evening = START + night * 24 * HOUR
        box.clock.run(box.clock.sleep_until(evening), name=f"evening-{night}")
        for name in ("summary", "label"):
            box.carry_out(
                f"{name}-{night}",
                id=f"{name}-{night}",
                step=name,
                flow_run_id=f"flow-{night}",
                tiers=tiers,
                due=evening + 8 * HOUR,
                prompts=[f"{name} of night {night}: {n}" for n in range(20)],
            )


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A ledger with some nights in which every batch took an hour."""
    box = Box.at(tmp_path_factory.mktemp("past"), batch=BatchLaw(median_s=3600, sigma=0.0, stuck_share=0))
    evenings(box)
    return box


@pytest.fixture(scope="module")
def chains(box: Box) -> list[PastChain]:
    """The chains of these nights."""
    chains, left_out = read_chains(box.ledger, since=SINCE, until=UNTIL)
    assert not left_out
    return chains


def after(hours: float) -> DueOption:
    """So many hours after each chain's start."""
    return DueOption(f"{hours} h", lambda chain: chain.started_at + hours * HOUR)


def replayed(chains: Sequence[PastChain], *dues: DueOption, draws: int = 5) -> list[Replayed]:
    """What some due times would have come to."""
    return list(report(chains, *dues, draws=draws).due)


def report(chains: Sequence[PastChain], *dues: DueOption, draws: int = 5) -> HistoryReport:
    """The whole of it."""
    return replay_history(chains, dues, since=SINCE, until=UNTIL, left_out={}, draws=draws, seed=0)


def test_the_past_is_read_as_it_was(box: Box, chains: list[PastChain]) -> None:
    """Steps, requests, money and due times are those of the ledger; a step needs what had ended when it began."""
    assert len(chains) == NIGHTS
    for night, chain in enumerate(chains):
        assert [step.name for step in chain.steps] == ["summary", "label"]
        assert [step.requests for step in chain.steps] == [20, 20]
        assert chain.due == START + (24 * night + 8) * HOUR
        assert chain.paid_usd == paid(box, f"summary-{night}", f"label-{night}")
        assert not chain.late
    problem = Nights(chains, 0).problem(chains[0], START + 8 * HOUR)
    assert [step.after for step in problem.steps] == [(), ("summary",)]


def test_the_due_time_that_it_had_costs_what_was_paid(chains: list[PastChain]) -> None:
    """Where every night was alike, the replay of what was done is what was done."""
    whole = report(chains, DueOption("as it was", lambda chain: chain.due))
    assert whole.paid_usd == sum(chain.paid_usd for chain in chains)
    (as_it_was,) = whole.due
    assert as_it_was.cost_usd == pytest.approx(whole.paid_usd)
    assert (as_it_was.missed, as_it_was.short, as_it_was.chains) == (0.0, 0, NIGHTS)
    assert as_it_was.list_usd == whole.list_usd > whole.paid_usd


def test_less_time_costs_more(chains: list[PastChain]) -> None:
    """From nearly list price, where no batch has the time to come back, to half of it."""
    soon, later, latest = replayed(chains, after(0.5), after(1.6), after(12))
    assert soon.cost_usd > Decimal("0.9") * soon.list_usd
    assert soon.cost_usd > later.cost_usd > latest.cost_usd
    assert latest.saved == pytest.approx(0.5)
    assert soon.missed == later.missed == latest.missed == 0.0


def test_a_due_time_that_nothing_makes_is_late_and_said_to_be(chains: list[PastChain]) -> None:
    """No plan reaches the chance that was asked for, and no night is on time."""
    (soonest,) = replayed(chains, after(0.001))
    assert (soonest.missed, soonest.short) == (1.0, NIGHTS)


def test_chains_without_a_due_time_are_not_tried(chains: list[PastChain]) -> None:
    """Nobody can say what half an hour later would be."""
    (none,) = replayed(chains, DueOption("as it was", lambda chain: None))
    assert (none.chains, none.cost_usd, none.missed) == (0, Decimal(0), 0.0)


def test_the_same_seed_draws_the_same_nights(chains: list[PastChain]) -> None:
    """A figure can be looked at again."""
    nights, again, others = Nights(chains, 3), Nights(chains, 3), Nights(chains, 4)
    problem = nights.problem(chains[1], START + 30 * HOUR)
    drawn = [each.luck(chains[1], problem, 2) for each in (nights, again, others)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_batch_that_was_left_lasts_longer_in_every_replay(tmp_path: Path) -> None:
    """A cut is "longer than": no night brings it back before the time at which it was left."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=36_000, sigma=0.0, stuck_share=0))
    evenings(box, nights=1)
    chains, _ = read_chains(box.ledger, since=SINCE, until=UNTIL)
    nights = Nights(chains, 0)
    problem = nights.problem(chains[0], START + 8 * HOUR)
    (cut,) = chains[0].steps[0].batches
    assert cut.censored
    for draw in range(50):
        luck, _ = nights.luck(chains[0], problem, draw)
        assert luck["summary"].batch_s >= cut.duration.total_seconds()


def test_what_cannot_be_replayed_is_counted(tmp_path: Path) -> None:
    """A run that is not over, and one that asked nothing, are left out by name."""
    box = Box.at(tmp_path)
    box.carry_out("whole", id="whole", flow_run_id="whole")
    box.carry_out("again", id="again", flow_run_id="again")
    prompts = ["another one"]
    box.process("cut", until(START + HOUR), id="cut", flow_run_id="cut", prompts=prompts, due_in=None)
    chains, left_out = read_chains(box.ledger, since=SINCE, until=UNTIL)
    assert [chain.flow_run_id for chain in chains] == ["whole"]
    assert left_out == {NEVER_ENDED: 1, NOTHING_ASKED: 1}
    assert read_chains(box.ledger, since=UNTIL, until=UNTIL + HOUR) == ([], {})
    assert read_chains(box.ledger, since=SINCE, until=UNTIL, step="label") == ([], {})


def test_reading_writes_nothing(box: Box) -> None:
    """Two looks at a ledger see the same."""
    looks: list[datetime] = [UNTIL, UNTIL]
    first, second = (read_chains(box.ledger, since=SINCE, until=look) for look in looks)
    assert first == second
