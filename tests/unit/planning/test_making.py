"""Plans: what they cost, which tiers they use, and when there is none."""

from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import ConfigurationError, DeadlineInfeasible
from prefect_llm_tiers.planning.making import plan
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.problem import StepProblem
from prefect_llm_tiers.planning.stopping import SETTLE_S, reserve_of
from tests.unit.planning.worlds import EVERY, LIVE, NOW, PRICE, chain, step

NO_FLEX = (Tier.BATCH, Tier.STANDARD, Tier.PRIORITY)

tier_sets = st.sets(st.sampled_from(EVERY), min_size=1).map(lambda found: tuple(t for t in EVERY if t in found))
hours = st.floats(0.2, 40)


@st.composite
def chains(draw: st.DrawFn, tiers: st.SearchStrategy[tuple[Tier, ...]] = tier_sets) -> tuple[StepProblem, ...]:
    """Return one to four steps, each of which may need any that come before it."""
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    return tuple(
        step(
            name,
            requests=draw(st.integers(0, 20_000)),
            tiers=draw(tiers),
            after=draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else (),
            slower=draw(st.floats(0.5, 8)),
        )
        for place, name in enumerate(names)
    )


def legs(made: Plan) -> list[list[Tier]]:
    """Return the tiers of each step."""
    return [[leg.tier for leg in one.legs] for one in made.steps]


@given(steps=chains(), due=hours, on_time=st.sampled_from([0.5, 0.9, 0.99, 0.9999]))
def test_no_plan_uses_a_tier_that_is_not_allowed(steps: tuple[StepProblem, ...], due: float, on_time: float) -> None:
    """Legs and cost are of allowed tiers only, whatever is asked for."""
    made = plan(chain(*steps, hours=due, on_time=on_time), infeasible="best_effort")
    for one, asked in zip(made.steps, steps, strict=True):
        allowed = {*asked.live} | ({Tier.BATCH} if asked.batch else set())
        assert {leg.tier for leg in one.legs} <= allowed
        assert bool(one.legs) == (asked.requests > 0)
        costs = [asked.cost_usd[tier] for tier in allowed]
        assert min(costs) * Decimal("0.9999") <= one.cost_usd <= max(costs) * Decimal("1.0001")


@given(steps=chains(), due=hours, on_time=st.sampled_from([0.5, 0.9, 0.99]))
def test_a_plan_that_is_made_is_likely_enough(steps: tuple[StepProblem, ...], due: float, on_time: float) -> None:
    """Either the chance is at least the one that was asked for, or nothing is planned."""
    problem = chain(*steps, hours=due, on_time=on_time)
    try:
        made = plan(problem)
    except DeadlineInfeasible:
        assert plan(problem, infeasible="best_effort").chance < on_time
    else:
        assert made.chance >= on_time
        assert plan(problem, infeasible="best_effort") == made


def sets_of(*choices: tuple[Tier, ...]) -> st.SearchStrategy[tuple[Tier, ...]]:
    """Return one of some sets of tiers."""
    return st.sampled_from(choices)


@given(
    steps=chains(sets_of(NO_FLEX, (Tier.BATCH, Tier.STANDARD), (Tier.FLEX, Tier.STANDARD))),
    due=st.floats(0.5, 20),
    more=st.floats(0.01, 10),
)
def test_a_later_due_time_never_costs_more(steps: tuple[StepProblem, ...], due: float, more: float) -> None:
    """Time is worth money and never costs any, within what 4,096 nights can tell."""
    try:
        early = plan(chain(*steps, hours=due))
    except DeadlineInfeasible:
        return
    late = plan(chain(*steps, hours=due + more))
    assert late.cost_usd <= early.cost_usd + early.list_usd * Decimal("0.005")


@given(steps=chains(sets_of(EVERY)), due=st.floats(0.5, 20), more=st.floats(0.01, 10))
def test_a_choice_of_two_cheap_tiers_costs_little(steps: tuple[StepProblem, ...], due: float, more: float) -> None:
    """Batch is preferred to flex once it is likely, though flex may be likelier: for at most 5 % of list price."""
    try:
        early = plan(chain(*steps, hours=due))
    except DeadlineInfeasible:
        return
    late = plan(chain(*steps, hours=due + more))
    assert late.cost_usd <= early.cost_usd + early.list_usd * Decimal("0.05")


@given(steps=chains(sets_of(NO_FLEX, EVERY)), due=st.floats(0.5, 20))
def test_waiting_never_costs_more_than_the_sure_tier(steps: tuple[StepProblem, ...], due: float) -> None:
    """Where all on standard is on time, the plan costs at most that."""
    standard = tuple(
        msgspec.structs.replace(one, batch=None, live={Tier.STANDARD: LIVE[Tier.STANDARD]}) for one in steps
    )
    allowed = tuple(
        msgspec.structs.replace(one, live={**one.live, Tier.STANDARD: LIVE[Tier.STANDARD]}) for one in steps
    )
    try:
        plain = plan(chain(*standard, hours=due))
    except DeadlineInfeasible:
        return
    assert plan(chain(*allowed, hours=due)).cost_usd <= plain.cost_usd * Decimal("1.005")


def test_the_same_problem_gives_the_same_plan() -> None:
    """A plan is a function of its problem: draws are seeded, and nothing reads a clock."""
    problem = chain(step(), step("label", after=("summary",)))
    assert plan(problem) == plan(problem)


def test_the_latencies_of_a_chain_add_up() -> None:
    """An earlier step must be done so early that a later one still makes it on its sure tier."""
    tiers = (Tier.BATCH, Tier.STANDARD)
    problem = chain(step("summary", tiers=tiers), step("label", tiers=tiers, after=("summary",)), hours=3)
    made = plan(problem)
    need = timedelta(seconds=LIVE[Tier.STANDARD].quantile_s(reserve_of(problem), 5000) + SETTLE_S)
    assert problem.due is not None
    assert made.step("label").latest_finish == problem.due
    assert made.step("summary").latest_finish == problem.due - need
    assert made.step("label").starts_at == made.step("summary").finish_expected


def test_a_join_waits_for_its_slowest_branch() -> None:
    """A step starts when all that it needs is done, and each branch is held to what comes after it."""
    made = plan(
        chain(
            step("quick", requests=10, tiers=(Tier.STANDARD,)),
            step("slow", tiers=(Tier.STANDARD,), slower=4),
            step("join", tiers=(Tier.STANDARD,), after=("quick", "slow")),
            hours=6,
        )
    )
    assert made.step("join").starts_at >= made.step("slow").finish_expected > made.step("quick").finish_expected
    assert made.step("quick").latest_finish == made.step("slow").latest_finish


def test_a_step_deadline_before_the_chains_is_kept() -> None:
    """The tighter bound of a step and its chain counts, and what comes after has the chain's."""
    made = plan(chain(step(deadline_h=0.6), step("label", after=("summary",)), hours=8))
    assert made.step("summary").latest_finish == NOW + timedelta(hours=0.6)
    assert legs(made) == [[Tier.FLEX, Tier.STANDARD], [Tier.BATCH, Tier.STANDARD]]
    with pytest.raises(DeadlineInfeasible, match=r"Due 22:03Z leaves 3 min; .*'summary'"):
        plan(chain(step(deadline_h=0.05), step("label", after=("summary",)), hours=8))


@pytest.mark.parametrize(
    ("tiers", "due", "expected"),
    [
        (EVERY, 8, [Tier.BATCH, Tier.STANDARD]),
        (EVERY, 0.3, [Tier.FLEX, Tier.PRIORITY]),
        (EVERY, None, [Tier.BATCH]),
        (NO_FLEX, 8, [Tier.BATCH, Tier.STANDARD]),
        ((Tier.BATCH,), 30, [Tier.BATCH]),
        ((Tier.FLEX,), 8, [Tier.FLEX]),
        ((Tier.BATCH, Tier.FLEX), 8, [Tier.BATCH, Tier.FLEX]),
        ((Tier.PRIORITY,), 8, [Tier.PRIORITY]),
        ((Tier.STANDARD, Tier.PRIORITY), 8, [Tier.STANDARD]),
    ],
)
def test_tiers_in_order(tiers: tuple[Tier, ...], due: float | None, expected: list[Tier]) -> None:
    """Cheap tiers come first where there is time to leave them, and sure ones take the rest."""
    assert legs(plan(chain(step(tiers=tiers), hours=due, on_time=0.98))) == [expected]


def test_a_saving_that_is_too_small_is_left() -> None:
    """`min_saving_usd` is held against the saving that is expected, not against the greatest possible."""
    tiers = (Tier.BATCH, Tier.STANDARD)
    tight = plan(chain(step(tiers=tiers), hours=0.8))
    expected = tight.saving_usd
    assert Decimal(1) < expected < Decimal(4)
    just = plan(chain(step(tiers=tiers), hours=0.8, min_saving_usd=str(expected)))
    more = plan(chain(step(tiers=tiers), hours=0.8, min_saving_usd=str(expected + Decimal("0.01"))))
    assert legs(just) == [[Tier.BATCH, Tier.STANDARD]]
    assert legs(more) == [[Tier.STANDARD]]


def test_each_step_has_to_save_for_itself() -> None:
    """A small step stays off batch beside a large one that is worth it."""
    steps = (step("large"), step("small", requests=50))
    assert legs(plan(chain(*steps, min_saving_usd="0.1"))) == [
        [Tier.BATCH, Tier.STANDARD],
        [Tier.STANDARD],
    ]


def test_flex_at_the_standard_price_is_not_used() -> None:
    """A slower tier that saves nothing is left alone."""
    price = {**PRICE, Tier.FLEX: PRICE[Tier.STANDARD]}
    made = plan(chain(step(tiers=(Tier.FLEX, Tier.STANDARD), price=price)))
    assert legs(made) == [[Tier.STANDARD]]


def test_what_has_no_price_is_planned_and_said() -> None:
    """Without any price the plan is the same, costs no figure, and says unpriced."""
    made = plan(chain(step(price={})))
    assert legs(made) == legs(plan(chain(step())))
    assert made.unpriced
    assert made.cost_usd == made.list_usd == 0
    # Nothing shows that it would save anything.
    assert legs(plan(chain(step(price={}), min_saving_usd="0.01"))) == [[Tier.STANDARD]]


def test_priority_without_a_price_is_not_taken_for_free() -> None:
    """A tier whose cost is unknown does not win by costing nothing."""
    price: dict[Tier, Decimal] = {tier: usd for tier, usd in PRICE.items() if tier is not Tier.PRIORITY}
    made = plan(chain(step(tiers=NO_FLEX, price=price), hours=1))
    assert legs(made) == [[Tier.BATCH, Tier.STANDARD]]


def test_batch_is_relied_on_where_nothing_else_is_fast_enough() -> None:
    """A slow account limit does not make a deadline infeasible that batch is likely enough to keep."""
    slow = step(tiers=(Tier.BATCH, Tier.STANDARD), slower=100)
    made = plan(chain(slow, hours=4, on_time=0.9))
    assert made.steps[0].fallback is None
    assert 0.9 <= made.chance < 0.95
    with pytest.raises(DeadlineInfeasible):
        plan(chain(slow, hours=4, on_time=0.99))


def test_no_requests_are_never_late() -> None:
    """A step without work takes no time and costs nothing, whenever it was due."""
    made = plan(chain(step(requests=0), step("label", requests=0, after=("summary",)), hours=-3))
    assert made.chance == 1
    assert made.cost_usd == 0
    assert legs(made) == [[], []]
    assert {one.finish_expected for one in made.steps} == {NOW}


def test_infeasible_says_the_numbers_and_what_helps() -> None:
    """The message has when it is due, what is off, how long it takes at which pace, and the next action."""
    slow = step("label", tiers=(Tier.STANDARD,), slower=12.5)
    with pytest.raises(DeadlineInfeasible) as caught:
        plan(chain(slow, hours=4))
    assert str(caught.value) == (
        "Due 2026-11-22 02:00Z leaves 4 h; with batch, flex and priority off, 5,000 requests of step 'label' need "
        "4 h 42 min on standard at 40 requests/min to be on time with 99 %; the best that can be done has a chance "
        "of 96.8 %. Nothing was sent. Move the deadline, raise requests_per_minute or max_concurrency, allow tier "
        "'batch' or 'priority', or pass infeasible='best_effort'."
    )


def test_infeasible_advises_no_tier_that_is_not_offered() -> None:
    """What the provider does not offer for the model is neither called off nor advised."""
    slow = msgspec.structs.replace(
        step("label", tiers=(Tier.STANDARD,), slower=12.5), offered=frozenset({Tier.STANDARD, Tier.BATCH})
    )
    with pytest.raises(DeadlineInfeasible) as caught:
        plan(chain(slow, hours=4))
    assert "with batch off, 5,000 requests" in str(caught.value)
    assert "allow tier 'batch', or pass" in str(caught.value)


def test_infeasible_chains_name_their_steps() -> None:
    """A chain that takes too long together says which steps make up the time."""
    tiers = (Tier.STANDARD, Tier.PRIORITY)
    steps = (step("summary", tiers=tiers, slower=20), step("label", tiers=tiers, after=("summary",)))
    with pytest.raises(DeadlineInfeasible, match=r"the 2 steps up to 'label' need .*'summary' 5,000 requests on prio"):
        plan(chain(*steps, hours=2.5))


def test_a_due_time_that_is_past_is_infeasible() -> None:
    """What was due before it began is an error with the distance, or a plan with no chance."""
    with pytest.raises(DeadlineInfeasible, match="Due 20:00Z is 2 h past; 5,000 requests"):
        plan(chain(step(), hours=-2))
    made = plan(chain(step(), hours=-2), infeasible="best_effort")
    assert made.chance == 0
    assert legs(made) == [[Tier.FLEX]]


@pytest.mark.parametrize("due", [24 * 365 * 60, 24 * 365 * 7000])
def test_a_due_time_far_away(due: float) -> None:
    """Decades of slack are as good as none, up to the end of the calendar."""
    made = plan(chain(step(tiers=NO_FLEX), hours=due))
    assert made.steps[0].legs[0].tier is Tier.BATCH
    assert made.saving_usd == made.list_usd / 2
    assert str(made)


def test_a_step_that_outlasts_the_calendar_is_infeasible() -> None:
    """A makespan of ages is an infeasible deadline, and no overflow."""
    with pytest.raises(DeadlineInfeasible, match="requests/min"):
        plan(chain(step(tiers=(Tier.STANDARD,), slower=1e12), hours=8))


def test_near_certainty_rests_on_the_laws_and_not_on_counting() -> None:
    """A chance that 4,096 nights cannot resolve is granted only where the reserves fit one after another."""
    standard = (Tier.STANDARD,)
    need_s = LIVE[Tier.STANDARD].quantile_s(1 - 1e-6 / 2, 5000) + SETTLE_S
    assert plan(chain(step(tiers=standard), hours=(need_s + 60) / 3600, on_time=1 - 1e-6)).chance == 1
    with pytest.raises(DeadlineInfeasible):
        plan(chain(step(tiers=standard), hours=(need_s - 60) / 3600, on_time=1 - 1e-6))


@pytest.mark.parametrize(
    ("problem", "fact"),
    [
        (chain(step(), on_time=1.0), "on_time=1"),
        (chain(step(), on_time=0.0), "on_time=0"),
        (chain(step(), step()), "Two steps .* 'summary'"),
        (chain(step("a", after=("b",)), step("b", after=("a",))), "'a' needs 'b'"),
        (chain(step(tiers=())), "no tier"),
        (msgspec.structs.replace(chain(step()), due=datetime(2026, 11, 22)), "without a time zone"),  # noqa: DTZ001
    ],
)
def test_what_cannot_be_planned(problem: object, fact: str) -> None:
    """A problem that makes no sense is refused with the fact, not planned."""
    with pytest.raises(ConfigurationError, match=fact):
        plan(problem)  # type: ignore[arg-type]
