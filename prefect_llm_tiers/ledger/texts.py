"""Texts as a database can keep them: what a provider said comes back as it was, whatever is in it.

PostgreSQL keeps no NUL in a text. There NUL is written as an escape and a digit, and an escape in the text as
two of them; nearly every text has neither and is kept as it is. SQLite keeps both.

Half of a surrogate pair is no character and fits no encoding; each is replaced by a question mark.
"""

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.types import Text, TypeDecorator

__all__ = ["Words", "encodable", "for_postgresql", "from_postgresql"]

_ESCAPE = "\x10"
_TO_ESCAPE = re.compile("[\x00\x10]")
_ESCAPED = re.compile("\x10([0\x10])")


def encodable(text: str) -> str:
    """Return a text that UTF-8 can carry, with a question mark for each half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def for_postgresql(text: str) -> str:
    """Return a text as PostgreSQL can keep it; `from_postgresql` gives it back."""
    if _TO_ESCAPE.search(text) is None:
        return text
    return _TO_ESCAPE.sub(lambda found: _ESCAPE + ("0" if found[0] == "\x00" else _ESCAPE), text)


def from_postgresql(text: str) -> str:
    """Return the text that `for_postgresql` was given."""
    if _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda found: "\x00" if found[1] == "0" else _ESCAPE, text)


class Words(TypeDecorator[str]):
    """A text that somebody else wrote: an answer, a reason, an id."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        value = encodable(value)
        return for_postgresql(value) if dialect.name == "postgresql" else value

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], Any] | None:
        """Return nothing where a text is given back as it is: a function would be called for every value."""
        return super().result_processor(dialect, coltype) if dialect.name == "postgresql" else None

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else from_postgresql(value)
