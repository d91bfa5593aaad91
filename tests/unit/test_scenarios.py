"""The scenarios' world and its bound, which the planner is judged by."""

import math

import msgspec
import pytest

from benchmarks._scenario_bound import bound
from benchmarks._scenario_candidate import ValueOfTime
from benchmarks._scenario_planner import Planner
from benchmarks._scenario_rules import RULES
from benchmarks._scenario_values import Values
from benchmarks._scenario_world import Move, View, play
from benchmarks._scenarios import BatchLuck, Luck, Scenario, load, luck_of

SCENARIOS = {scenario.name.split()[0]: scenario for scenario in load()}


class Script:
    """A policy that makes its moves one after another, and the last one for ever."""

    def __init__(self, *moves: Move) -> None:
        self.moves = list(moves)
        self.views: list[View] = []

    def decide(self, view: View) -> Move:
        """Make the next move."""
        self.views.append(view)
        return self.moves.pop(0) if len(self.moves) > 1 else self.moves[0]


def steady(*, takes: float, cancel: float = 4.0) -> Luck:
    """Return the luck of one step: a batch that does its rows evenly from the start, standard in 10 minutes."""
    batch = BatchLuck(takes=takes, jumps=None, begins=0.0, bend=1.0, cancel=cancel)
    return Luck(batches=(batch,), live=({"standard": 10.0, "priority": 5.0, "flex": 20.0},), up=True, flips=(7.0,))


def one_step(**changes: object) -> Scenario:
    """Return a scenario of one step without set-up times."""
    return msgspec.structs.replace(SCENARIOS["A2"], base=0.0, **changes)


def test_a_batch_that_completes_costs_half() -> None:
    """All of it at the price of batch, at the instant at which it ends."""
    script = Script(Move("batch"))
    played = play(one_step(), steady(takes=30.0), script)
    assert (played.cost, played.missed) == (0.5, False)


def test_what_a_cancel_brings_is_not_asked_again() -> None:
    """Left at half and final four minutes later, the rest is what neither had brought."""
    script = Script(Move("batch", review_at=20.0), Move("standard"))
    played = play(one_step(), steady(takes=40.0), script)
    assert played.cost == pytest.approx(0.5 * 0.6 + 1.0 * 0.4)
    assert [view.batch_out for view in script.views] == [False, True, False]
    assert script.views[-1].now == pytest.approx(24.0)


def test_starting_at_once_pays_for_some_rows_twice() -> None:
    """Until the cancel is final live calls go over rows that the batch has done; what it delivers leaves the queue."""
    script = Script(Move("batch", review_at=20.0), Move("standard", start_by=20.0))
    played = play(one_step(), steady(takes=40.0), script)
    live_beside, rest = 0.4, (1 - 0.4) * (1 - 0.6)
    assert played.cost == pytest.approx(0.5 * 0.6 + live_beside + rest)


def test_flex_works_only_while_it_is_up() -> None:
    """An outage adds its length, and costs nothing."""
    scenario = one_step(tiers=("flex", "standard"), flex_env=SCENARIOS["F2"].flex_env)
    luck = msgspec.structs.replace(steady(takes=40.0), flips=(5.0, 25.0))
    script = Script(Move("flex"))
    played = play(scenario, luck, script)
    assert played.cost == pytest.approx(0.5)
    assert script.views[-1].now == pytest.approx(25.0)


def test_a_miss_is_charged_and_told() -> None:
    """What is unfinished at the deadline costs half of list price."""
    played = play(one_step(deadline=5.0), steady(takes=40.0), Script(Move("standard")))
    assert played.cost == pytest.approx(0.5 * 1.0 + 0.5 * 0.5)
    assert played.missed


def test_a_join_starts_when_the_last_of_its_steps_is_done() -> None:
    """Steps side by side take as long as the slower one."""
    first = SCENARIOS["A2"].steps[0]
    steps = tuple(
        msgspec.structs.replace(first, id=name, deps=deps, weight=1 / 3)
        for name, deps in (("left", ()), ("right", ()), ("join", ("left", "right")))
    )
    luck = steady(takes=40.0)
    luck = msgspec.structs.replace(
        luck, batches=3 * luck.batches, live=({"standard": 10.0}, {"standard": 25.0}, {"standard": 5.0})
    )
    script = Script(Move("standard"))
    assert not play(one_step(steps=steps), luck, script).missed
    assert [view.now for view in script.views] == [0.0, 0.0, 25.0]


@pytest.mark.parametrize("name", ["A2", "B1", "C2h", "F2", "G1"])
def test_nobody_beats_the_bound(name: str) -> None:
    """Run by run, no rule that is on time costs less than somebody pays who knows every draw."""
    scenario = SCENARIOS[name]
    values, planner = Values(scenario), Planner(scenario)
    for seed in range(5):
        luck = luck_of(scenario, seed)
        least = bound(scenario, luck)
        policies = [*(rule(scenario) for rule in RULES.values()), planner, ValueOfTime(scenario, values)]
        for played in (play(scenario, luck, policy) for policy in policies):
            # A grid of 400 instants rounds a little up.
            assert played.missed or played.cost >= least - 0.01


def test_the_bound_is_infinite_where_nothing_makes_it() -> None:
    """A deadline before the set-up is over is kept by nobody."""
    scenario = msgspec.structs.replace(SCENARIOS["A2"], deadline=0.1)
    assert math.isinf(bound(scenario, luck_of(scenario, 0)))


@pytest.mark.parametrize("name", ["A2", "B1", "F2"])
def test_the_candidate_is_on_time_and_cheaper_than_the_latest_safe_start(name: str) -> None:
    """Over fifteen runs it misses none, and costs no more than a point beyond the rule of thumb."""
    scenario = SCENARIOS[name]
    values = Values(scenario)
    lucks = [luck_of(scenario, seed) for seed in range(15)]
    weighed = [play(scenario, luck, ValueOfTime(scenario, values)) for luck in lucks]
    safe = [play(scenario, luck, RULES["latest safe start"](scenario)) for luck in lucks]
    assert not any(played.missed for played in weighed)
    assert sum(played.cost for played in weighed) <= sum(played.cost for played in safe) + 0.01 * len(lucks)


def test_the_same_seed_is_the_same_night() -> None:
    """Draws depend on scenario and seed alone."""
    scenario = SCENARIOS["F5"]
    assert luck_of(scenario, 3) == luck_of(scenario, 3)
    assert luck_of(scenario, 3) != luck_of(scenario, 4)
