"""Real documents without a download: the docstrings of Python's standard library, or a folder of files."""

import contextlib
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Literal

__all__ = ["Document", "Kind", "documents", "documents_of"]

Kind = Literal["module", "class", "function", "page"]

SHORTEST = 120
"""Characters; anything shorter has nothing to summarize."""

TITLE_WIDTH = 100
"""Characters of a title, the ellipsis included."""

SUFFIXES = frozenset({".md", ".rst", ".txt"})
"""Files that `documents_of` reads."""

SKIPPED = frozenset(
    {
        # open a browser, print a poem, draw windows, or are programs rather than libraries
        *("antigravity", "idlelib", "this", "tkinter", "turtle", "turtledemo"),
        # tests and installers
        *("ensurepip", "site", "test", "venv"),
        # take hold of the terminal, or import what does: doctest imports pdb, and that readline from 3.13 on
        *("curses", "doctest", "pdb", "readline", "rlcompleter"),
        # of one platform only
        *("fcntl", "grp", "msilib", "msvcrt", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"),
        *("nt", "ntpath", "winreg", "winsound"),
        # deprecated: some warn at import, and later versions lack them
        *("aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr"),
        *("imp", "lib2to3", "mailcap", "nis", "nntplib", "nturl2path", "ossaudiodev", "pipes", "smtpd"),
        *(
            "sndhdr",
            "spwd",
            "sre_compile",
            "sre_constants",
            "sre_parse",
            "sunau",
            "telnetlib",
            "uu",
            "xdrlib",
        ),
        # a hundred character tables with one and the same page
        "encodings",
    }
)
"""Top-level modules that are neither documents nor safe to import everywhere."""


@dataclass(frozen=True, slots=True)
class Document:
    """One page to be summarized; its fields are the columns of the demo's frame.

    Attributes:
        id: What it documents, as `json.JSONDecoder.decode`, or the file's path below its folder.
        kind: What that is.
        title: Its first line or heading.
        body: Its text, dedented.
    """

    id: str
    kind: Kind
    title: str
    body: str


def documents(limit: int | None = 600) -> list[Document]:
    """Return docstrings of the standard library, the same ones in the same order on every call.

    No two have the same id or the same body, and each has at least `SHORTEST` characters. Which there
    are depends on the version of Python.

    Args:
        limit: How many, spread evenly over the alphabet; None for all (some 2,100 on Python 3.11).

    Raises:
        ValueError: `limit` is negative.
    """
    if limit is not None and limit < 0:
        message = f"limit is {limit}: name how many documents to take, or None for all of them"
        raise ValueError(message)
    every = list(_standard_library())
    if limit is None or limit >= len(every):
        return every
    return [every[position * len(every) // limit] for position in range(limit)]


def documents_of(folder: Path) -> list[Document]:
    """Return the text files below a folder, ordered by their path; hidden and blank ones are left out.

    Raises:
        NotADirectoryError: There is no such folder.
    """
    if not folder.is_dir():
        message = f"{folder} is no folder: name one that holds .md, .rst or .txt files"
        raise NotADirectoryError(message)
    found = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if any(part.startswith(".") for part in place.parts):
            continue
        # A stray byte of another encoding must not cost the other pages their run.
        body = path.read_text(encoding="utf-8-sig", errors="replace").strip()
        if body:
            found.append(Document(place.as_posix(), "page", _shortened(_heading(body) or path.stem), body))
    return found


def _standard_library() -> Iterator[Document]:
    ids: set[str] = set()
    bodies: set[str] = set()
    for module in _modules():
        for name, kind, thing in _documented(module):
            text = thing.__doc__
            if not isinstance(text, str):
                continue
            body = inspect.cleandoc(text).strip()
            # What several modules export bears the name that comes first in the alphabet.
            if len(body) < SHORTEST or name in ids or body in bodies:
                continue
            ids.add(name)
            bodies.add(body)
            yield Document(name, kind, _shortened(body.partition("\n")[0]), body)


def _documented(module: ModuleType) -> Iterator[tuple[str, Kind, object]]:
    """Name a module, its public classes and functions, and those classes' public methods."""
    yield module.__name__, "module", module
    # Only what is there already: asking for more could warn, or load what the module keeps for later.
    members = vars(module)
    exported = members.get("__all__")
    for name in sorted(members if exported is None else exported):
        thing = members.get(name)
        if name.startswith("_") or (exported is None and getattr(thing, "__module__", None) != module.__name__):
            continue
        path = f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            yield path, "class", thing
            for attribute, method in sorted(vars(thing).items(), key=lambda item: item[0]):
                if not attribute.startswith("_") and _is_function(method):
                    yield f"{path}.{attribute}", "function", method
        elif _is_function(thing):
            yield path, "function", thing


def _is_function(thing: object) -> bool:
    return inspect.isroutine(thing) or isinstance(thing, classmethod | staticmethod)


def _modules() -> list[ModuleType]:
    """Import the public modules, in alphabetical order; what they print or warn meanwhile is dropped."""
    with warnings.catch_warnings(), contextlib.ExitStack() as silence:
        warnings.simplefilter("ignore")
        silence.enter_context(contextlib.redirect_stdout(io.StringIO()))
        silence.enter_context(contextlib.redirect_stderr(io.StringIO()))
        return list(_imported(sys.stdlib_module_names - SKIPPED))


def _imported(names: Iterable[str]) -> Iterator[ModuleType]:
    for name in sorted(names):
        leaf = name.rpartition(".")[2]
        if leaf.startswith("_") or leaf in {"test", "tests"}:
            continue
        try:
            module = import_module(name)
        except ImportError:  # of another platform, or of a library that this Python was built without
            continue
        yield module
        if hasattr(module, "__path__"):
            yield from _imported(f"{name}.{child.name}" for child in pkgutil.iter_modules(module.__path__))


def _heading(text: str) -> str | None:
    """Return the first heading of a Markdown or reStructuredText page, or None."""
    fenced = False
    for line, below in pairwise([*text.splitlines(), ""]):
        # A comment in a block of code looks like a heading.
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        if fenced:
            continue
        if marked := re.fullmatch(r" {0,3}#{1,6}\s+(.+?)(?:\s+#+)?\s*", line):
            return marked[1]
        underlined = re.fullmatch(r"(?:={3,}|-{3,}|~{3,}|\*{3,}|\^{3,})\s*", below)
        if underlined and re.match(r"\S*\w", line):
            return line.strip()
    return None


def _shortened(title: str) -> str:
    return textwrap.shorten(title, TITLE_WIDTH, placeholder="…")
