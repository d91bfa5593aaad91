"""What the simulated model answers: readable for text, valid for a schema, the same every time."""

import math
import re
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import orjson

from prefect_llm_tiers.simulator.asked import AskedRequest, draw, tokens_of
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["Answering", "Composed", "compose", "instance_of", "summary_of"]

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
        text: What the model wrote, cut where the limit cut it.
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
    faults: Faults,
    *,
    first: bool,
    answering: Answering | None = None,
) -> Composed:
    """Answer a question.

    Args:
        asked: The question.
        settings: The seed, and how much of the input is cached.
        faults: Decides on refusals and broken structure.
        first: Whether this body is asked for the first time; only then does structure break.
        answering: A user's own model, which goes before ours; refusals and cuts still happen.
    """
    refused = faults.refusal(asked.digest)
    if refused:
        text = REFUSAL
    else:
        text = _text(asked, settings.seed, answering)
        structured = asked.schema is not None
        if structured and first and faults.unparsable(asked.digest):
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


_WORDS = ("steady", "recent", "common", "careful", "direct", "partial", "plain", "shared")

_FORMATS = {
    "date": "2026-03-0{}",
    "date-time": "2026-03-0{}T09:00:00Z",
    "time": "09:0{}:00Z",
    "duration": "PT{}H",
    "email": "reader{}@example.com",
    "hostname": "host{}.example.com",
    "ipv4": "192.0.2.{}",
    "ipv6": "2001:db8::{}",
    "uri": "https://example.com/{}",
    "uuid": "00000000-0000-4000-8000-00000000000{}",
}


def instance_of(schema: dict[str, Any], random: Random) -> Any:
    """Return a value that is valid under a JSON schema of the kind that providers take.

    Covers what strict structured output allows: objects, arrays, enums, constants, strings with formats
    and lengths, numbers with bounds, `anyOf`, `allOf` of one, and references. Every property is given,
    required or not.
    """
    return _instance(schema, schema, random, 0)


def _instance(schema: Any, root: dict[str, Any], random: Random, depth: int) -> Any:
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, random, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return random.choice(schema["enum"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return _instance(_branch(schema[word], random, depth), root, random, depth + 1)
    if "allOf" in schema:
        merged: dict[str, Any] = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            merged |= _resolve(part["$ref"], root) if "$ref" in part else part
        return _instance(merged, root, random, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = random.choice(kind) if depth < _DEEP else ("null" if "null" in kind else kind[0])
    if kind is None:
        kind = "object" if "properties" in schema else "string"
    match kind:
        case "object":
            properties: dict[str, Any] = schema.get("properties", {})
            return {name: _instance(part, root, random, depth + 1) for name, part in properties.items()}
        case "array":
            least = int(schema.get("minItems", 0 if depth > _DEEP else 1))
            most = int(schema.get("maxItems", max(least, 3)))
            count = least if depth > _DEEP else random.randint(least, max(least, min(most, least + 2)))
            return [_instance(schema.get("items", {}), root, random, depth + 1) for _ in range(count)]
        case "integer":
            return _whole(schema, random)
        case "number":
            return _number(schema, random)
        case "boolean":
            return random.random() < 0.5
        case "null":
            return None
        case _:
            return _string(schema, random)


_DEEP = 6
"""Below this many levels a recursive schema is ended as soon as it allows."""


def _resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for part in reference.lstrip("#").strip("/").split("/"):
        if part:
            found = found[part.replace("~1", "/").replace("~0", "~")]
    return found if isinstance(found, dict) else {}


def _branch(branches: list[Any], random: Random, depth: int) -> Any:
    if depth < _DEEP:
        return random.choice(branches)

    def ends(branch: Any) -> bool:
        return isinstance(branch, dict) and "$ref" not in branch and branch.get("type") not in ("object", "array")

    return next((branch for branch in branches if ends(branch)), branches[0])


def _bounds(schema: dict[str, Any], step: float) -> tuple[float, float]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    if low is None:
        low = 0 if high is None or high >= 0 else high - 100
    if high is None:
        high = low + 100
    return low, high


def _whole(schema: dict[str, Any], random: Random) -> int:
    low, high = _bounds(schema, 1)
    step = int(schema.get("multipleOf", 1))
    return random.randint(math.ceil(low / step), math.floor(high / step)) * step


def _number(schema: dict[str, Any], random: Random) -> float:
    low, high = _bounds(schema, 1e-6)
    if "maximum" not in schema and "exclusiveMaximum" not in schema and low == 0:
        high = 1.0
    if step := schema.get("multipleOf"):
        return float(random.randint(math.ceil(low / step), math.floor(high / step)) * step)
    value = round(random.uniform(low, high), 3)
    return min(max(value, low), high)


def _string(schema: dict[str, Any], random: Random) -> str:
    if pattern := _FORMATS.get(schema.get("format", "")):
        return pattern.format(random.randint(1, 9))
    text = " ".join(random.sample(_WORDS, 2))
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    while len(text) < least:
        text += " " + random.choice(_WORDS)
    return text if most is None else text[: int(most)]
