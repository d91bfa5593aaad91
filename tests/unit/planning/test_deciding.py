"""The decision: pure, one way, and in time."""

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.tiers import SURE_TIERS, Tier
from prefect_llm_tiers.planning.deciding import Decision, State, decide
from prefect_llm_tiers.planning.making import plan
from prefect_llm_tiers.planning.plan import Plan
from tests.unit.planning.worlds import EVERY, NOW, chain, step

RANK = {Tier.BATCH: 0, Tier.FLEX: 1, Tier.STANDARD: 2, Tier.PRIORITY: 3}
TIER_SETS = [
    EVERY,
    (Tier.BATCH, Tier.STANDARD),
    (Tier.BATCH, Tier.STANDARD, Tier.PRIORITY),
    (Tier.FLEX, Tier.PRIORITY),
    (Tier.BATCH, Tier.FLEX),
    (Tier.BATCH,),
    (Tier.FLEX,),
    (Tier.PRIORITY,),
]
PLANS = [
    plan(chain(step(tiers=tiers, slower=slower), hours=hours), infeasible="best_effort")
    for tiers in TIER_SETS
    for hours in (0.2, 1, 8, 100, None)
    for slower in (1, 20)
]


@st.composite
def seen(draw: st.DrawFn) -> tuple[Plan, State]:
    """Return a plan and a state that can be seen while it is carried out."""
    made = draw(st.sampled_from(PLANS))
    allowed = [leg for leg in Tier if leg in _tiers(made)]
    state = State(
        now=NOW + timedelta(hours=draw(st.floats(0, 120))),
        step="summary",
        tier=draw(st.sampled_from([None, *allowed])),
        remaining=draw(st.integers(1, 5000)),
        batch_out=draw(st.booleans()) and Tier.BATCH in allowed,
        batch_tried=draw(st.booleans()) and Tier.BATCH in allowed,
        flex_up=draw(st.booleans()),
    )
    return made, state


def _tiers(made: Plan) -> set[Tier]:
    summary = made.steps[0]
    tiers = {tier for tier, _ in summary.sure}
    return tiers | ({Tier.FLEX} if summary.flex else set()) | ({Tier.BATCH} if summary.batch else set())


@given(seen())
def test_the_same_state_gives_the_same_decision(case: tuple[Plan, State]) -> None:
    """`decide` is a function: nothing but plan and state counts, and neither is changed."""
    made, state = case
    before = msgspec.json.encode((made, state))
    assert decide(made, state) == decide(made, state)
    assert msgspec.json.encode((made, state)) == before


@given(seen())
def test_no_tier_is_entered_again(case: tuple[Plan, State]) -> None:
    """From a live tier the way leads to faster ones only, above all from a sure one."""
    made, state = case
    tier = decide(made, state).tier
    if state.tier in SURE_TIERS or state.tier is Tier.FLEX:
        assert RANK[tier] >= RANK[state.tier]


@given(seen())
def test_tiers_that_are_not_allowed_are_never_named(case: tuple[Plan, State]) -> None:
    """A decision names only what the plan may use, whatever is seen."""
    made, state = case
    assert decide(made, state).tier in _tiers(made)


@given(seen())
def test_a_review_lies_ahead(case: tuple[Plan, State]) -> None:
    """`review_at` is in the future, so that nobody asks again and again at one instant."""
    made, state = case
    review_at = decide(made, state).review_at
    assert review_at is None or review_at > state.now


@given(seen())
def test_nothing_changes_before_the_review(case: tuple[Plan, State]) -> None:
    """Up to `review_at` the same state gets the same tier: it is enough to ask then."""
    made, state = case
    decision = decide(made, state)
    if decision.review_at is None:
        return
    tier = decision.tier
    # A tier that runs is seen as running, a batch as out.
    running = msgspec.structs.replace(state, tier=tier, batch_out=tier is Tier.BATCH or state.batch_out)
    between = state.now + (decision.review_at - state.now) * 0.5
    assert decide(made, msgspec.structs.replace(running, now=between)).tier is tier


def test_a_batch_is_left_in_time_for_its_cancel() -> None:
    """Leaving is decided one cancel ahead of the latest safe start, and the rest waits no longer than that."""
    made = plan(chain(step(tiers=(Tier.BATCH, Tier.STANDARD)), hours=8))
    start = State(now=NOW, step="summary", tier=None, remaining=5000)
    first = decide(made, start)
    assert (first.tier, first.start_by) == (Tier.BATCH, None)
    assert first.review_at is not None
    out = msgspec.structs.replace(start, now=first.review_at, tier=Tier.BATCH, batch_out=True)
    left = decide(made, out)
    assert left.tier is Tier.STANDARD
    assert left.start_by == first.review_at + timedelta(seconds=600)
    waiting = decide(made, msgspec.structs.replace(out, tier=Tier.STANDARD))
    assert (waiting.tier, waiting.start_by) == (Tier.STANDARD, left.start_by)


def test_a_cancel_is_waited_for_on_flex_too() -> None:
    """On flex, what a batch still delivers is waited for as long as there is time, or it is paid twice."""
    made = plan(chain(step(tiers=(Tier.BATCH, Tier.FLEX)), hours=8))
    first = decide(made, State(now=NOW, step="summary", tier=None, remaining=5000))
    assert first.review_at is not None
    out = State(now=first.review_at, step="summary", tier=Tier.BATCH, remaining=5000, batch_out=True)
    left = decide(made, out)
    again = decide(made, msgspec.structs.replace(out, tier=Tier.FLEX, now=out.now + timedelta(minutes=1)))
    assert left.tier is again.tier is Tier.FLEX
    assert left.start_by == again.start_by == first.review_at + timedelta(seconds=600)


def test_a_flex_outage_is_waited_out_while_there_is_time() -> None:
    """A tier that is down for now is not given up for a dearer one hours ahead of need."""
    made = plan(chain(step(tiers=(Tier.FLEX, Tier.STANDARD)), hours=8))
    down = State(now=NOW, step="summary", tier=None, remaining=5000, flex_up=False)
    decision = decide(made, down)
    assert decision.tier is Tier.FLEX
    assert decision.review_at is not None
    too_late = msgspec.structs.replace(down, tier=Tier.FLEX, now=decision.review_at)
    assert decide(made, too_late).tier is Tier.STANDARD


def test_a_slow_standard_tier_goes_to_priority_once() -> None:
    """Standard that would be late on an ordinary night is left for priority, and priority is kept."""
    made = plan(chain(step(tiers=(Tier.STANDARD, Tier.PRIORITY)), hours=1))
    start = decide(made, State(now=NOW, step="summary", tier=None, remaining=5000))
    assert start.tier is Tier.STANDARD
    behind = State(now=NOW + timedelta(minutes=52), step="summary", tier=Tier.STANDARD, remaining=4800)
    assert decide(made, behind) == Decision(tier=Tier.PRIORITY, reason="standard is too slow for what is left")
    caught_up = msgspec.structs.replace(behind, tier=Tier.PRIORITY, remaining=1)
    assert decide(made, caught_up).tier is Tier.PRIORITY


def test_a_late_step_hurries_as_long_as_its_chain_can_be_saved() -> None:
    """A step that overruns its own share goes to the fastest tier while the chain's due time is ahead."""
    tiers = (Tier.STANDARD, Tier.PRIORITY)
    made = plan(chain(step("summary", tiers=tiers), step("label", tiers=tiers, after=("summary",)), hours=1.2))
    summary = made.step("summary")
    assert summary.latest_finish is not None
    over = State(now=summary.latest_finish + timedelta(minutes=1), step="summary", tier=Tier.STANDARD, remaining=500)
    assert decide(made, over).tier is Tier.PRIORITY
    assert decide(made, msgspec.structs.replace(over, tier=None)).tier is Tier.PRIORITY


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        (EVERY, Tier.FLEX),
        ((Tier.BATCH, Tier.STANDARD, Tier.PRIORITY), Tier.STANDARD),
        ((Tier.BATCH,), Tier.BATCH),
    ],
)
def test_what_is_late_is_finished_cheaply(tiers: tuple[Tier, ...], expected: Tier) -> None:
    """Past the deadline the rest goes to the cheapest live tier: there is nothing left to hurry for."""
    made = plan(chain(step(tiers=tiers), hours=1), infeasible="best_effort")
    late = State(now=NOW + timedelta(hours=2), step="summary", tier=None, remaining=100)
    assert decide(made, late).tier is expected
    out = msgspec.structs.replace(late, tier=Tier.BATCH, batch_out=Tier.BATCH in tiers)
    assert decide(made, out).tier is expected


@pytest.mark.parametrize("tier", [Tier.BATCH, Tier.FLEX, Tier.STANDARD, Tier.PRIORITY])
def test_a_late_step_waits_for_a_cancel_up_to_one_instant(tier: Tier) -> None:
    """What a batch still delivers is worth one cancel's time past the deadline, an instant that does not move."""
    made = plan(chain(step(), hours=1))
    assert made.due is not None
    late = State(now=made.due, step="summary", tier=tier, remaining=100, batch_out=True)
    for minutes in (0, 5, 600):
        decision = decide(made, msgspec.structs.replace(late, now=made.due + timedelta(minutes=minutes)))
        assert decision.start_by == made.due + timedelta(minutes=10)


def test_a_tier_that_turns_out_not_to_be_offered_is_left() -> None:
    """A plan that lost a sure tier while running goes on with what it still has, the only way back."""
    made = plan(chain(step(tiers=(Tier.BATCH, Tier.STANDARD, Tier.PRIORITY)), hours=8))
    lost = msgspec.structs.replace(made.steps[0], sure=made.steps[0].sure[1:])
    state = State(now=NOW, step="summary", tier=Tier.STANDARD, remaining=10)
    assert decide(msgspec.structs.replace(made, steps=(lost,)), state).tier is Tier.PRIORITY
    all_lost = msgspec.structs.replace(lost, sure=())
    assert decide(msgspec.structs.replace(made, steps=(all_lost,)), state).tier is Tier.BATCH


def test_without_a_deadline_patience_is_free() -> None:
    """Nothing that is not due ever leaves a cheap tier."""
    made = plan(chain(step(), hours=None))
    for now in (NOW, NOW + timedelta(days=400)):
        assert decide(made, State(now=now, step="summary", tier=None, remaining=9)).tier is Tier.BATCH
        out = State(now=now, step="summary", tier=Tier.BATCH, remaining=9, batch_out=True)
        decision = decide(made, out)
        assert decision.reason
        assert msgspec.structs.replace(decision, reason="") == Decision(tier=Tier.BATCH)


def test_a_step_that_is_not_in_the_plan() -> None:
    """Asking for another step is a mistake of the caller's."""
    with pytest.raises(KeyError, match="label"):
        decide(PLANS[0], State(now=NOW, step="label", tier=None, remaining=1))
