"""The benchmarks' command line, which others read by its last line."""

import json

import pytest

from benchmarks import imports, names
from benchmarks.__main__ import main


def test_the_last_line_is_the_metrics(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark ends with one line of JSON that names it, and exits 0."""
    monkeypatch.setattr(imports, "_ROUNDS", 1)
    assert main(["import"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["bench"] == "import"
    assert told["metrics"]["heavy_modules"] == 0.0


@pytest.mark.parametrize("arguments", [["imports"], ["nope"], ["import", "import"]])
def test_an_unknown_name_gets_the_list(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is no benchmark's name exits 2 and is answered with all names."""
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert all(name in told.err for name in names())
