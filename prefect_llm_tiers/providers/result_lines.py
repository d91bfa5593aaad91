"""Result lines in general: most in one pass, each odd one by itself, and none without its id if it bears one.

Most of a batch's results are one kind of line. Where a line has the shape of a plain answer, one typed decoding
reads all that is needed of it; everything else takes the patient way, which looks at each field by itself.
"""

import re
from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import ResultLine
from prefect_llm_tiers.core.requests import KEY_LENGTH, TOKEN_LENGTH, split_custom_id
from prefect_llm_tiers.providers.decoding import MOST_TOKENS, UNREADABLE, values_in
from prefect_llm_tiers.providers.incoming import Block, trimmed

__all__ = ["BROKEN_LINE", "CustomId", "Tokens", "named_line", "read_lines"]

BROKEN_LINE = "broken_line"
"""The reason of a line of which nothing but its id can be read."""

Line = TypeVar("Line")

_ID_LENGTH = KEY_LENGTH + 1 + TOKEN_LENGTH

CustomId = Annotated[str, msgspec.Meta(min_length=_ID_LENGTH, max_length=_ID_LENGTH)]
"""As long as an id of ours."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
"""A number of tokens that can be believed."""

_ID = re.compile(r'"custom_id"\s*:\s*"([^"\\]{1,256})"')


def read_lines(
    block: Block,
    *,
    decoder: msgspec.json.Decoder[Line],
    plain: Callable[[Line], ResultLine | None],
    patient: Callable[[bytes], ResultLine | None],
) -> list[ResultLine]:
    """Return what lines say, whatever their bytes; nothing for a blank one.

    A line that cannot be read keeps its id if that much can be read: its row is to be sent again, and whether it
    was billed is unknown. One without an id, or with one not of this package's making, has no outcome.

    Args:
        block: The lines as they came.
        decoder: Reads a plain answer.
        plain: What that says; None where it takes a closer look.
        patient: What any JSON object says; None for what is no JSON object.
    """
    found = _all_plain(block, decoder, plain)
    if found is not None:
        return found
    found = []
    for line in bytes(block).split(b"\n"):
        try:
            read = plain(decoder.decode(line))
        except UNREADABLE:
            read = None
        if read is None and (text := trimmed(line)):
            read = patient(text)
            if read is None:
                found.extend(_parts(text, patient))
        if read is not None:
            found.append(read)
    return found


def _all_plain(
    block: Block, decoder: msgspec.json.Decoder[Line], plain: Callable[[Line], ResultLine | None]
) -> list[ResultLine] | None:
    """Return what lines say that are all plain; None where one is not."""
    try:
        lines = decoder.decode_lines(block)
    except UNREADABLE:
        return None
    found: list[ResultLine] = []
    add = found.append
    for line in lines:
        read = plain(line)
        if read is None:
            return None
        add(read)
    return found


def _parts(line: bytes, patient: Callable[[bytes], ResultLine | None]) -> Iterable[ResultLine]:
    """Return what the parts of a line say that is no JSON text as a whole."""
    for part in values_in(line):
        if isinstance(part, bytes):
            yield patient(part) or ResultLine(custom_id=None, outcome=None)
        else:
            named = _ID.search(part)
            yield named_line(named.group(1) if named else None, _lost)


def _lost(key: str) -> Outcome:
    return Outcome(key=key, kind=OutcomeKind.RETRY, reason=BROKEN_LINE, billing=Billing.UNKNOWN)


def named_line(custom_id: str | None, outcome_of: Callable[[str], Outcome]) -> ResultLine:
    """Return a line with the outcome of its key; without one if the id is not of our making."""
    parts = split_custom_id(custom_id) if custom_id is not None else None
    return ResultLine(custom_id=custom_id, outcome=None if parts is None else outcome_of(parts[0]))
