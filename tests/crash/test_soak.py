from pathlib import Path

from benchmarks._crash_world import Worlds
from benchmarks.soak import soak

RUNS = 10


def test_random_deaths_and_every_fault_at_once_lose_nothing(worlds: Worlds, place: Path) -> None:
    """The first runs of the soak: whatever strikes and whoever dies, the provider's account and the ledger agree."""
    soaked = soak(range(RUNS), worlds, place)
    found = [one.findings for one in soaked]
    assert [one.lost_rows for one in found] == [[]] * RUNS
    assert [one.double_submissions for one in found] == [[]] * RUNS
    assert [one.unreconciled for one in found] == [[]] * RUNS
    assert all(one.finished for one in soaked)
    assert sum(one.kills for one in soaked) >= RUNS // 2
    assert len({name for one in soaked for name in one.faults}) >= 2 * RUNS
