"""What the simulated model answers: readable for text, valid for a schema, the same every time."""

import math
import re
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from prefect_llm_tiers.simulator.asked import AskedRequest, draw, tokens_of
from prefect_llm_tiers.simulator.draws import Draws
from prefect_llm_tiers.simulator.instances import instance_of
from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["Answering", "Composed", "compose", "summary_of"]

Answering = Callable[[AskedRequest], str | dict[str, Any]]
"""A user's own model: takes the question, returns text or an object that is sent as JSON."""

REFUSAL = "I'm sorry, but I can't help with that request."

_SENTENCE = re.compile(r"[^.!?]+[.!?]+(?=\s|$)")
_HEADING = re.compile(r"^\s*(#.*|```.*)$", re.MULTILINE)
_MARKS = re.compile(r"^[>*\-\s]+|[*_`]+", re.MULTILINE)
_LONGEST_SUMMARY = 320


class Composed(msgspec.Struct, frozen=True, gc=False):
    """One answer with its tokens.

    Attributes:
        text: What the model wrote, cut where the limit cut it; empty where it wrote no text.
        refused: The text is a refusal.
        cut: The limit on output tokens ended it.
        input_tokens: All of the input.
        cached_tokens: The part of the input read from the cache.
        output_tokens: Tokens written.
    """

    text: str
    refused: bool
    cut: bool
    input_tokens: int
    cached_tokens: int
    output_tokens: int


def compose(
    asked: AskedRequest,
    settings: WorldSettings,
    draws: Draws,
    *,
    first: bool,
    answering: Answering | None = None,
) -> Composed:
    """Answer a question.

    Args:
        asked: The question.
        settings: The seed, and how much of the input is cached.
        draws: Decides on refusals and broken structure.
        first: Whether this body is asked for the first time; only then does structure break.
        answering: A user's own model, which goes before ours; refusals and cuts still happen. What is no text,
            as an embedding or an image, is never asked of it.
    """
    if asked.writes is not None:
        return Composed(
            "", refused=False, cut=False, input_tokens=asked.input_tokens, cached_tokens=0, output_tokens=asked.writes
        )
    refused = draws.strikes("refusal_rate", asked.digest)
    if refused:
        text = REFUSAL
    else:
        text = _text(asked, settings.seed, answering)
        structured = asked.schema is not None
        if structured and first and draws.strikes("unparsable_rate", asked.digest):
            text = "Here is the JSON you asked for:\n" + text[: max(1, len(text) // 2)]
    encoded = text.encode()
    tokens = tokens_of(len(encoded))
    limit = asked.max_output_tokens
    cut = limit is not None and tokens > limit
    if cut and limit is not None:
        text = encoded[: limit * 4].decode(errors="ignore")
        tokens = limit
    return Composed(
        text=text,
        refused=refused,
        cut=cut,
        input_tokens=asked.input_tokens,
        cached_tokens=math.floor(asked.input_tokens * settings.cached_input_share),
        output_tokens=tokens,
    )


def _text(asked: AskedRequest, seed: int, answering: Answering | None) -> str:
    if answering is not None:
        answer = answering(asked)
        return answer if isinstance(answer, str) else orjson.dumps(answer).decode()
    if asked.schema is not None:
        value = instance_of(asked.schema, draw(seed, "answer", asked.digest))
        return orjson.dumps(value).decode()
    return summary_of(asked.document)


def summary_of(document: str) -> str:
    """Return the first one or two sentences of a prompt's longest paragraph.

    The first line of a prompt tells what to do, so it is passed over where there is more to read.
    """
    _, _, rest = document.strip().partition("\n")
    body = rest.strip() or document
    paragraphs = re.split(r"\n\s*\n", _HEADING.sub("", body))
    longest = max(paragraphs, key=len)
    plain = " ".join(_MARKS.sub("", longest).split())
    plain = plain or " ".join(body.replace("#", "").split())
    if not plain:
        return "The document is empty."
    summary = ""
    for match in _SENTENCE.finditer(plain):
        sentence = match.group().strip()
        if summary and len(summary) + len(sentence) > _LONGEST_SUMMARY:
            break
        summary = f"{summary} {sentence}".strip()
        if len(summary) > 120:
            break
    summary = summary or plain
    if len(summary) > _LONGEST_SUMMARY:
        summary = summary[:_LONGEST_SUMMARY].rsplit(" ", 1)[0].rstrip(",;:") + "."
    return summary
