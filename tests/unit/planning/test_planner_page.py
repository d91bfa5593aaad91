"""The example of docs/planner.md, run as it stands there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "planner.md"


@pytest.fixture(scope="module")
def printed() -> str:
    """Return what the page's code prints."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    return out.getvalue()


def test_the_example_prints_what_the_page_shows(printed: str) -> None:
    """The page's code runs against this package and prints the page's own text, to the letter."""
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert printed == shown
