"""Learning from a planner's own nights, over worlds that it is wrong about."""

import pytest

from benchmarks.learning import SCENARIOS, prior_off
from prefect_llm_tiers.backtesting.scenarios import read_scenarios

CHAINS = {scenario.name.split()[0]: scenario for scenario in read_scenarios([SCENARIOS])}


@pytest.mark.parametrize("name", ["A2", "B1", "C2", "C3", "F2", "G1"])
def test_a_prior_six_times_off_is_overcome_by_the_ninth_night(name: str) -> None:
    """In both directions: no more misses, and at most 2 % more cost than with the truth, over the same nights."""
    found = prior_off([CHAINS[name]], teams=3, nights=60)
    assert found["prior_off_misses"] <= 0
    assert found["prior_off_extra_cost"] <= 0.02
