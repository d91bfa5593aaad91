"""One night of a chain: what is billed, when it is done, and whose decisions are followed."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.backtesting.replaying import replay_scenario
from prefect_llm_tiers.backtesting.scenarios import read_scenarios
from prefect_llm_tiers.backtesting.world import Ending, FlexDays, Sent, StepLuck, carry_out
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw
from prefect_llm_tiers.planning.making import plan
from prefect_llm_tiers.planning.problem import Problem, StepProblem

NOW = datetime(2026, 11, 21, 22, tzinfo=UTC)
SCENARIOS = Path("benchmarks/scenarios.json")

BATCH = BatchLaw(median_s=1500, sigma=1.2, p_stuck=0.05, stuck_from_s=14_400, stuck_to_s=100_800)
LIVE = {
    Tier.FLEX: LiveLaw(base_s=20, per_request_s=0.24, sigma=0.6, p_down=0.2, down_s=1800),
    Tier.STANDARD: LiveLaw(base_s=10, per_request_s=0.1, sigma=0.35),
    Tier.PRIORITY: LiveLaw(base_s=5, per_request_s=0.05, sigma=0.3),
}
USD = {Tier.BATCH: Decimal(1), Tier.FLEX: Decimal(1), Tier.STANDARD: Decimal(2), Tier.PRIORITY: Decimal(4)}


def step(name: str, tiers: Sequence[Tier], *after: str, requests: int = 5000) -> StepProblem:
    """Return a step; on standard it takes 510 s."""
    return StepProblem(
        name=name,
        requests=requests,
        batch=BATCH if Tier.BATCH in tiers else None,
        live={tier: law for tier, law in LIVE.items() if tier in tiers},
        cost_usd={tier: usd for tier, usd in USD.items() if tier in {*tiers, Tier.STANDARD}},
        after=after,
    )


def luck(
    *, batch_s: float = 1200.0, cancel_s: float = 300.0, pace: Mapping[Tier, float] | None = None, begins: float = 0.0
) -> StepLuck:
    """Return an even luck."""
    return StepLuck(
        batch_s=batch_s, begins=begins, notice_s=0.0, cancel_s=cancel_s, pace=pace or dict.fromkeys(LIVE, 1.0)
    )


def night(
    *steps: StepProblem,
    hours: float | None,
    lucks: Mapping[str, StepLuck] | None = None,
    flex: FlexDays | None = None,
    ends_s: float = math.inf,
) -> dict[str, Ending]:
    """Plan some steps and carry them out."""
    due = NOW + timedelta(hours=hours) if hours is not None else None
    problem = Problem(now=NOW, due=due, on_time=0.99, steps=steps)
    made = plan(problem, infeasible="best_effort")
    given = lucks or {one.name: luck() for one in steps}
    return carry_out(made, steps, given, flex or FlexDays(), ends_s=ends_s)


def test_a_batch_that_comes_back_is_all_there_is() -> None:
    """Done when it ends, all of it billed as batch."""
    assert night(step("a", [Tier.BATCH, Tier.STANDARD]), hours=8)["a"] == Ending(
        1200.0, {Tier.BATCH: 1.0}, 0.0, (Sent(0.0, 1200.0, cut=False),)
    )


def test_a_chain_takes_the_sum_of_its_steps_and_a_fork_the_longest() -> None:
    """A step begins when all that it needs are done."""
    tiers = [Tier.BATCH, Tier.STANDARD]
    steps = step("a", tiers), step("b", tiers, "a"), step("c", tiers, "a"), step("d", tiers, "b", "c")
    lucks = {"a": luck(), "b": luck(batch_s=600.0), "c": luck(batch_s=2400.0), "d": luck(batch_s=60.0)}
    done = {name: ending.done_s for name, ending in night(*steps, hours=24, lucks=lucks).items()}
    assert done == {"a": 1200.0, "b": 1800.0, "c": 3600.0, "d": 3660.0}


def test_a_batch_that_is_left_keeps_what_it_had_done() -> None:
    """What the cancel hands back is not asked again: both tiers together bill everything once, in time."""
    ending = night(step("a", [Tier.BATCH, Tier.STANDARD]), hours=1, lucks={"a": luck(batch_s=4000.0, cancel_s=200.0)})[
        "a"
    ]
    assert ending.billed.keys() == {Tier.BATCH, Tier.STANDARD}
    assert sum(ending.billed.values()) == pytest.approx(1.0)
    assert ending.done_s <= 3600
    (sent,) = ending.sent
    assert sent.cut
    assert sent.lasted_s < 3600 - 200


def test_a_cancel_that_takes_too_long_is_not_waited_for() -> None:
    """The rest starts at the last instant all the same; what the batch had done by then is billed twice."""
    ending = night(step("a", [Tier.BATCH, Tier.STANDARD]), hours=1, lucks={"a": luck(batch_s=6000.0, cancel_s=900.0)})[
        "a"
    ]
    assert sum(ending.billed.values()) > 1.05
    assert ending.done_s <= 3600


def test_a_batch_that_comes_in_jumps_brings_what_came_before_its_cancel() -> None:
    """Nothing at an even pace: what it has done stands still between two jumps."""
    jumpy = StepLuck(
        batch_s=4000.0, begins=0.0, notice_s=0.0, cancel_s=200.0, pace={Tier.STANDARD: 1.0}, jumps=((0.1, 0.3), (1, 1))
    )
    ending = night(step("a", [Tier.BATCH, Tier.STANDARD]), hours=1, lucks={"a": jumpy})["a"]
    assert ending.billed == pytest.approx({Tier.BATCH: 0.3, Tier.STANDARD: 0.7})


def test_flex_works_only_while_it_takes_calls() -> None:
    """An outage in the middle puts the end off by its length."""
    steady = night(step("a", [Tier.FLEX]), hours=None)["a"]
    broken = night(step("a", [Tier.FLEX]), hours=None, flex=FlexDays(True, (300.0, 900.0)))["a"]
    assert broken.done_s == pytest.approx(steady.done_s + 600.0)
    assert broken.billed == pytest.approx({Tier.FLEX: 1.0})


def test_an_expired_batch_brings_what_it_had_done() -> None:
    """After the window the rest goes on elsewhere."""
    ending = night(step("a", [Tier.BATCH, Tier.FLEX]), hours=None, lucks={"a": luck(batch_s=172_800.0)})["a"]
    assert ending.billed[Tier.BATCH] == pytest.approx(0.5)
    assert sum(ending.billed.values()) == pytest.approx(1.0)
    assert ending.done_s > 86_400


def test_a_night_that_ends_leaves_the_rest() -> None:
    """What had no outcome by then is told."""
    ending = night(step("a", [Tier.STANDARD]), hours=1, ends_s=260.0)["a"]
    assert ending.done_s == 260.0
    assert ending.left == pytest.approx(0.5)
    assert ending.billed == pytest.approx({Tier.STANDARD: 0.5})


def test_a_step_with_nothing_to_ask_is_done_at_once() -> None:
    """It takes no time and bills nothing."""
    assert night(step("a", [Tier.STANDARD], requests=0), hours=1)["a"] == Ending(0.0, {}, 0.0)


SECONDS = st.floats(min_value=1, max_value=200_000)


@given(
    batch_s=SECONDS,
    cancel_s=st.floats(min_value=1, max_value=600),
    paces=st.lists(st.floats(min_value=0.3, max_value=3), min_size=3, max_size=3),
    begins=st.floats(min_value=0, max_value=0.5),
    hours=st.floats(min_value=0.3, max_value=12),
    changes=st.lists(SECONDS, max_size=6),
)
def test_every_request_is_answered_and_billed(
    batch_s: float, cancel_s: float, paces: list[float], begins: float, hours: float, changes: list[float]
) -> None:
    """Whatever befalls, everything is done in the end, and billed once where every cancel was waited for."""
    lucky = StepLuck(
        batch_s=batch_s, begins=begins, notice_s=30.0, cancel_s=cancel_s, pace=dict(zip(LIVE, paces, strict=True))
    )
    ending = night(step("a", list(Tier)), hours=hours, lucks={"a": lucky}, flex=FlexDays(True, tuple(sorted(changes))))[
        "a"
    ]
    assert ending.left == 0
    assert sum(ending.billed.values()) >= 1 - 1e-6
    assert 0 < ending.done_s < 500_000


@pytest.mark.parametrize("number", [0, 2, 7])
def test_the_planner_expects_what_happens(number: int) -> None:
    """Over many nights a scenario costs what its plan said, and is late no oftener than it may be."""
    scenario = list(read_scenarios([SCENARIOS]))[number]
    report = replay_scenario(scenario, nights=400, seed=1)
    assert report.missed <= scenario.miss_p + 0.01
    assert report.cost == pytest.approx(report.planned_cost, abs=0.06)


def test_a_scenario_has_the_same_nights_each_time() -> None:
    """Luck is drawn by the seed alone."""
    (scenario, *_) = read_scenarios([SCENARIOS])
    assert scenario.luck("0:7") == scenario.luck("0:7") != scenario.luck("1:7")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "cannot be read"),
        ("[", "holds no list of scenarios"),
        ('{"name": "a"}', "holds no list of scenarios"),
        ('[{"name": "a"}]', "missing required field `deadline`"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path: Path, text: str | None, error: str) -> None:
    """The message names the file, what is wrong with it, and where the form is told."""
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=error):
        list(read_scenarios([path]))
