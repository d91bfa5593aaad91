"""The benchmark of parsing: what it measures is the whole work."""

import pytest

from benchmarks import parse


def test_the_whole_work_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file is read to its last row by all ways, each answer with text, usage and price."""
    monkeypatch.setattr(parse, "ROWS", 2500)
    monkeypatch.setattr(parse, "ROUNDS", 1)
    metrics = parse.run()
    assert set(metrics) == {"reconciled_lines_per_s", "msgspec_lines_per_s", "msgspec_ratio", "unkept_ratio"}
    assert all(value > 0 for value in metrics.values())
