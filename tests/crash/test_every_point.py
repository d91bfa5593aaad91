from collections.abc import Callable
from decimal import Decimal

import pytest

from prefect_llm_tiers.crash_points import CRASH_POINTS
from prefect_llm_tiers.providers.capabilities import Dialect
from tests.crash.cases import KILLED, Case, Lived, repeated_deaths, single_deaths
from tests.crash.scenarios import CALLS_IN_FLIGHT, UNREACHABLE


@pytest.mark.parametrize("case", [*single_deaths(), *repeated_deaths()], ids=str)
def test_a_process_that_dies_here_costs_nothing_and_loses_nothing(
    case: Case, lived: Callable[[Case], Lived], usual_cost: Callable[[Case], Decimal]
) -> None:
    """Whoever goes on finds every row answered once, one batch per chunk, and a bill as if nobody had died."""
    came = lived(case)
    found = came.findings
    assert came.deaths == (KILLED,) * len(came.deaths)
    assert came.report.failed == 0
    assert found.lost_rows == []
    assert found.double_submissions == []
    assert found.unreconciled == []
    assert found.counted_usd == usual_cost(case)
    assert found.unknown <= CALLS_IN_FLIGHT * sum(point.startswith("live.") for point in case.points)
    assert found.billed_usd - found.counted_usd - found.superseded_usd <= found.dearest_usd * found.unknown
    if case.scenario.copies:
        assert found.superseded_usd <= usual_cost(case)
    else:
        assert came.uncancelled <= 1
        assert found.superseded_usd == 0


def test_every_point_is_reached_or_named_as_out_of_reach() -> None:
    """A point that no case dies at would be a promise that nobody keeps."""
    reached = {(case.dialect, case.points[0].partition(":")[0]) for case in single_deaths()}
    assert reached | set(UNREACHABLE) == {(dialect, point) for dialect in Dialect for point in CRASH_POINTS}
    assert reached.isdisjoint(UNREACHABLE)
    assert all(UNREACHABLE.values())
