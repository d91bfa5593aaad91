"""The demo's documents: real, distinct, the same each time, and free of side effects."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from flows.standard_library import SHORTEST, TITLE_WIDTH, Document, documents, documents_of

CHECKOUT = Path(__file__).parents[2]


def test_there_are_enough_and_each_is_worth_a_summary() -> None:
    """The demo has at least 500 documents of every kind, and none is too short to summarize."""
    found = documents()
    assert len(found) >= 500
    assert {document.kind for document in found} == {"module", "class", "function"}
    assert min(len(document.body) for document in found) >= SHORTEST


def test_no_two_are_the_same() -> None:
    """No document is paid for twice: ids and bodies are distinct."""
    found = documents(None)
    assert len({document.id for document in found}) == len(found)
    assert len({document.body for document in found}) == len(found)


def test_titles_are_one_short_line() -> None:
    """Every title is a line that fits a table, and is not empty."""
    for document in documents(None):
        assert 0 < len(document.title) <= TITLE_WIDTH
        assert len(document.title.splitlines()) == 1


@pytest.mark.parametrize("limit", [0, 1, 7, 500])
def test_a_limit_is_met_and_keeps_the_order(limit: int) -> None:
    """A limit takes exactly so many of all documents, in their order."""
    place = {document.id: position for position, document in enumerate(documents(None))}
    found = documents(limit)
    assert len(found) == limit
    assert all(place[before.id] < place[after.id] for before, after in pairwise(found))


def test_a_limit_beyond_all_of_them_gives_all() -> None:
    """Asking for more than there is, is no error and repeats nothing."""
    assert documents(1_000_000) == documents(None)


def test_a_negative_limit_is_refused() -> None:
    """A limit below zero is a mistake of the caller's, said so with its value."""
    with pytest.raises(ValueError, match="limit is -1"):
        documents(-1)


def test_a_method_is_named_by_its_public_path() -> None:
    """Ids are what a reader would import, not where the standard library hides the code."""
    found = {document.id: document for document in documents(None)}
    assert found["json.JSONEncoder.default"].kind == "function"
    assert found["json.JSONEncoder.default"].title.startswith("Implement this method in a subclass")


def test_every_process_gets_the_same_in_silence() -> None:
    """Neither hash seeds nor earlier imports change the documents; collecting prints and warns nothing."""
    script = (
        "import hashlib; from flows.standard_library import documents\n"
        "print(hashlib.sha256(repr(documents()).encode()).hexdigest())\n"
    )
    outputs = {
        _run(script, PYTHONHASHSEED="1"),
        _run(script, PYTHONHASHSEED="2"),
        _run(f"import asyncio, json, xml.sax, logging.handlers, multiprocessing\n{script}", PYTHONHASHSEED="3"),
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) == 65  # a digest and a line end: nothing else was printed


def test_collecting_starts_and_opens_nothing() -> None:
    """After collecting there is one thread, no child process, and no module that shows itself."""
    script = (
        "import sys, threading, multiprocessing; from flows.standard_library import documents\n"
        "documents()\n"
        "shown = {'antigravity', 'this', 'tkinter', 'turtle', 'readline', 'curses'} & set(sys.modules)\n"
        "print(threading.active_count(), len(multiprocessing.active_children()), sorted(shown))\n"
    )
    assert _run(script) == "1 0 []\n"


def test_a_folder_gives_its_files_by_path(tmp_path: Path) -> None:
    """Every text file below a folder is a document, ordered by path; hidden and blank ones are none."""
    _write(tmp_path, "b.txt", "just text\n")
    _write(tmp_path, "a/z.md", "# Zed\n\nbody\n")
    _write(tmp_path, "a/blank.md", " \n\n")
    _write(tmp_path, "a/picture.png", "not text")
    _write(tmp_path, ".git/description.txt", "hidden")
    _write(tmp_path, "UPPER.MD", "# Upper\n")
    assert documents_of(tmp_path) == [
        Document("UPPER.MD", "page", "Upper", "# Upper"),
        Document("a/z.md", "page", "Zed", "# Zed\n\nbody"),
        Document("b.txt", "page", "b", "just text"),
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        pytest.param("intro\n\n## Second level ##\n", "Second level", id="closed"),
        pytest.param("```sh\n# a comment\n```\n# Real\n", "Real", id="after-code"),
        pytest.param("Setext\n===\n\n# Later\n", "Setext", id="underlined"),
        pytest.param("=====\nOver\n=====\n", "Over", id="overlined"),
        pytest.param("`code` first\n------------\n", "`code` first", id="marked-up"),
        pytest.param("---\n---\n#not a heading\n", "name", id="none"),
        pytest.param(f"# {'long ' * 60}", f"{'long ' * 19}long…", id="long"),
    ],
)
def test_a_title_is_the_first_heading_or_the_name(tmp_path: Path, text: str, title: str) -> None:
    """A page is called what its author called it, and after its file where the author did not."""
    _write(tmp_path, "name.md", text)
    assert [document.title for document in documents_of(tmp_path)] == [title]


def test_a_stray_byte_costs_no_page(tmp_path: Path) -> None:
    """A file that is not UTF-8 throughout is read all the same, the byte marked."""
    (tmp_path / "old.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 au lait")
    assert [document.body for document in documents_of(tmp_path)] == ["caf\N{REPLACEMENT CHARACTER} au lait"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A misspelt folder is no empty one."""
    with pytest.raises(NotADirectoryError, match=r"docz is no folder"):
        documents_of(tmp_path / "docz")


def _write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout
