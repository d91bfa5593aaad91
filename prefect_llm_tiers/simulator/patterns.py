"""Texts that match a regular expression, for answers whose schema asks for one."""

import re
from collections.abc import Sequence
from random import Random
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

__all__ = ["matching"]

_TRIES = 50
_MORE_THAN_LEAST = 4
"""How often beyond its minimum a repetition is made at most."""

_PRINTABLE = [chr(code) for code in range(32, 127)]
_CATEGORIES = {
    codes.CATEGORY_DIGIT: str.isdigit,
    codes.CATEGORY_SPACE: str.isspace,
    codes.CATEGORY_WORD: lambda character: character.isalnum() or character == "_",
    codes.CATEGORY_NOT_DIGIT: lambda character: not character.isdigit(),
    codes.CATEGORY_NOT_SPACE: lambda character: not character.isspace(),
    codes.CATEGORY_NOT_WORD: lambda character: not (character.isalnum() or character == "_"),
}


def matching(pattern: str, random: Random, *, least: int = 0, most: int | None = None) -> str | None:
    """Return a text that matches a pattern and has a length in bounds, or None where none was found.

    Look-arounds are not followed but tried: what they refuse is drawn again.
    """
    try:
        compiled, parsed = re.compile(pattern), parser.parse(pattern)
    except re.error:
        return None
    for _ in range(_TRIES):
        text = _written(parsed, random, {})
        if least <= len(text) <= (len(text) if most is None else most) and compiled.search(text):
            return text
    return None


def _written(parsed: Sequence[Any], random: Random, groups: dict[int, str]) -> str:
    return "".join(_one(code, value, random, groups) for code, value in parsed)


def _one(code: Any, value: Any, random: Random, groups: dict[int, str]) -> str:
    match code:
        case codes.LITERAL:
            return chr(value)
        case codes.NOT_LITERAL:
            return random.choice([character for character in _PRINTABLE if character != chr(value)])
        case codes.ANY:
            return random.choice(_PRINTABLE)
        case codes.IN:
            return random.choice(_members(value) or [""])
        case codes.BRANCH:
            return _written(random.choice(value[1]), random, groups)
        case codes.SUBPATTERN:
            text = _written(value[3], random, groups)
            if value[0] is not None:
                groups[value[0]] = text
            return text
        case codes.GROUPREF:
            return groups.get(value, "")
        case codes.MAX_REPEAT | codes.MIN_REPEAT | codes.POSSESSIVE_REPEAT:
            low, high, part = value
            times = random.randint(low, min(int(high), low + _MORE_THAN_LEAST))
            return "".join(_written(part, random, groups) for _ in range(times))
        case codes.ATOMIC_GROUP:
            return _written(value, random, groups)
        case _:
            return ""  # an anchor or a look-around, which holds no text


def _members(parts: Sequence[Any]) -> list[str]:
    """Return the printable characters of a set."""
    negated = bool(parts) and parts[0][0] is codes.NEGATE
    chosen: set[str] = set()
    for code, value in parts:
        match code:
            case codes.LITERAL:
                chosen.add(chr(value))
            case codes.RANGE:
                chosen.update(map(chr, range(value[0], min(value[1], value[0] + 255) + 1)))
            case codes.CATEGORY:
                chosen.update(filter(_CATEGORIES.get(value, str.isprintable), _PRINTABLE))
            case _:
                pass  # the sign of a negated set
    return sorted(set(_PRINTABLE) - chosen if negated else chosen)
