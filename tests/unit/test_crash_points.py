import re
from pathlib import Path

import pytest

import prefect_llm_tiers
from prefect_llm_tiers.crash_points import CRASH_AT, CRASH_POINTS, crash_point

PACKAGE = Path(prefect_llm_tiers.__file__).parent
DOCS = Path(__file__).parents[2] / "docs" / "crash-safety.md"

_CALL = re.compile(r'\bcrash_point\(\s*"([^"]*)"\s*\)')
_ROW = re.compile(r"^\| `([a-z.]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def called() -> set[str]:
    """Return the names that the package's code dies at."""
    modules = (path for path in PACKAGE.rglob("*.py") if path.name != "crash_points.py")
    return {name for path in modules for name in _CALL.findall(path.read_text(encoding="utf-8"))}


def test_every_point_is_somewhere_in_the_code_and_no_call_names_another() -> None:
    """A point that nobody passes proves nothing; one that is not listed cannot be died at on purpose."""
    assert called() == set(CRASH_POINTS)


def test_the_page_tells_of_every_point_what_it_leaves_and_what_follows() -> None:
    """The page lists exactly the points there are, in their order."""
    rows = _ROW.findall(DOCS.read_text(encoding="utf-8"))
    assert [name for name, *_ in rows] == list(CRASH_POINTS)


def test_nothing_dies_unless_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable, or where it names another point, a point is passed."""
    monkeypatch.delenv(CRASH_AT, raising=False)
    crash_point("batch.intent")
    monkeypatch.setenv(CRASH_AT, "batch.uploaded")
    crash_point("batch.intent")
    monkeypatch.setenv(CRASH_AT, "batch.intent:1000")
    crash_point("batch.intent")
