"""Plans held against a world that is played by other code, night by night through `decide`."""

from math import sqrt
from statistics import fmean, pstdev

import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.making import plan
from prefect_llm_tiers.planning.problem import Problem
from tests.unit.planning.worlds import Result, chain, night, step

NIGHTS = 600

BATCH_STANDARD = (Tier.BATCH, Tier.STANDARD)
NO_FLEX = (Tier.BATCH, Tier.STANDARD, Tier.PRIORITY)
FLEX_STANDARD = (Tier.FLEX, Tier.STANDARD)

PROBLEMS = {
    "one step, a night": chain(step(), hours=8),
    "one step, an hour, no flex": chain(step(tiers=NO_FLEX), hours=1),
    "one step, barely time for a batch": chain(step(tiers=BATCH_STANDARD), hours=0.7),
    "one step, flex likelier than batch": chain(step(), hours=0.6),
    "flex and standard": chain(step(tiers=FLEX_STANDARD), hours=0.8),
    "two steps": chain(
        step("summary", tiers=BATCH_STANDARD), step("label", tiers=BATCH_STANDARD, after=("summary",)), hours=2
    ),
    "fork and join": chain(
        step("summary", tiers=BATCH_STANDARD),
        step("left", tiers=BATCH_STANDARD, after=("summary",)),
        step("right", tiers=BATCH_STANDARD, after=("summary",)),
        step("join", tiers=NO_FLEX, after=("left", "right")),
        hours=3,
    ),
    "standard too slow, priority makes it": chain(step(tiers=NO_FLEX, slower=20), hours=4.5),
    "no batch, no flex, standard too slow": chain(step(tiers=(Tier.STANDARD, Tier.PRIORITY), slower=20), hours=5),
    "batch only": chain(step(tiers=(Tier.BATCH,)), hours=8, on_time=0.9),
    "flex only": chain(step(tiers=(Tier.FLEX,)), hours=2, on_time=0.95),
    "batch relied on": chain(step(tiers=BATCH_STANDARD, slower=100), hours=4, on_time=0.9),
    "beyond the window": chain(step(tiers=BATCH_STANDARD), hours=30),
    "a step due before its chain": chain(step("summary", deadline_h=0.5), step("label", after=("summary",)), hours=8),
}


@pytest.fixture(scope="module", params=PROBLEMS, ids=str)
def played(request: pytest.FixtureRequest) -> tuple[Problem, list[Result]]:
    """Return a problem, and what became of its plan in every night."""
    problem = PROBLEMS[request.param]
    made = plan(problem)
    return problem, [night(made, problem, seed) for seed in range(NIGHTS)]


def test_the_deadline_is_kept_as_often_as_asked(played: tuple[Problem, list[Result]]) -> None:
    """Carried out by `decide`, a plan is late no oftener than `1 - on_time`, up to sampling error."""
    problem, results = played
    late = fmean(result.late for result in results)
    allowed = 1 - problem.on_time
    assert late <= allowed + 2 * sqrt(allowed * (1 - allowed) / NIGHTS)


def test_the_chance_is_honest(played: tuple[Problem, list[Result]]) -> None:
    """The share of nights on time is the plan's `chance`, up to sampling error."""
    problem, results = played
    made = plan(problem)
    assert made.chance >= problem.on_time
    kept = fmean(not result.late for result in results)
    noise = sqrt(max(made.chance * (1 - made.chance), 0.001) / NIGHTS)
    # A plan also reserves what surrounds the calls of a step, which this world does not have.
    assert -3 * noise <= kept - made.chance <= 4 * noise


def test_the_cost_is_honest(played: tuple[Problem, list[Result]]) -> None:
    """The mean cost of the nights is the plan's `cost_usd`, up to sampling error."""
    problem, results = played
    made = plan(problem)
    costs = [result.cost_usd for result in results]
    error = pstdev(costs) / sqrt(NIGHTS) + 0.003 * float(made.list_usd)
    assert abs(fmean(costs) - float(made.cost_usd)) <= 3 * error


def test_no_night_goes_back_to_a_cheaper_tier(played: tuple[Problem, list[Result]]) -> None:
    """Tiers are entered in the order batch, flex, standard, priority; only a batch may follow its like."""
    rank = {Tier.BATCH: 0, Tier.FLEX: 1, Tier.STANDARD: 2, Tier.PRIORITY: 3}
    _, results = played
    for result in results:
        for tiers in result.tiers:
            ranks = [rank[tier] for tier in tiers]
            assert ranks == sorted(ranks)
            assert len(tiers) - len(set(tiers)) == max(tiers.count(Tier.BATCH) - 1, 0)


def test_priority_is_planned_where_standard_is_too_slow() -> None:
    """A deadline that only priority can keep is kept by priority, and the plan says what that costs."""
    made = plan(PROBLEMS["no batch, no flex, standard too slow"])
    assert [leg.tier for leg in made.steps[0].legs] == [Tier.PRIORITY]
    assert made.cost_usd == 2 * made.list_usd
    assert made.chance >= 0.99
