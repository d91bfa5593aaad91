"""Values that are valid under a JSON schema of the kind that providers take."""

import math
import re
from random import Random
from typing import Any

from prefect_llm_tiers.simulator.patterns import matching

__all__ = ["instance_of"]

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

    Covers what strict structured output allows: objects, arrays, enums, constants, strings with formats,
    patterns and lengths, numbers with bounds, `anyOf`, `allOf` of one, and references. Every property is given,
    required or not. What a schema cannot say strictly and therefore tells at the end of a description, as
    `{minimum: 3, pattern: ^[a-z]+$}`, is heeded as a good model would.
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
            branch = _branch(schema[word], random, depth)
            number = next((part for part in schema[word] if _is_number(part)), None)
            if number is not None and _is_plain_text(branch):
                # A text beside a number is another way to write the number, as pydantic has it for Decimal.
                return str(_instance(number, root, random, depth + 1))
            return _instance(branch, root, random, depth + 1)
    if "allOf" in schema:
        merged: dict[str, Any] = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            merged |= _resolve(part["$ref"], root) if "$ref" in part else part
        return _instance(merged, root, random, depth + 1)
    schema = _told(schema)
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


def _is_number(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") in ("number", "integer") and "enum" not in schema


def _is_plain_text(schema: Any) -> bool:
    narrowing = {"enum", "const", "format", "pattern", "minLength", "maxLength", "description"}
    return isinstance(schema, dict) and schema.get("type") == "string" and not narrowing & schema.keys()


_TOLD = re.compile(
    r"(?:^\{|, )(minimum|maximum|exclusiveMinimum|exclusiveMaximum|multipleOf|minLength|maxLength|minItems|maxItems"
    r"|pattern|format): "
)
_NUMERIC = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


def _told(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with the bounds that the last line of its description tells."""
    lines = str(schema.get("description") or "").splitlines()
    if not lines or not (lines[-1].startswith("{") and lines[-1].endswith("}")):
        return schema
    parts = _TOLD.split(lines[-1][:-1])
    told: dict[str, Any] = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if name in ("pattern", "format"):
            told[name] = text
        elif _NUMERIC.fullmatch(text):
            told[name] = float(text) if "." in text or "e" in text.lower() else int(text)
    return told | schema


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
    # Few digits, as people write numbers: a Decimal of two places takes them.
    digits = 2 if high - low >= 0.1 else 2 - math.floor(math.log10(high - low)) if high > low else 15
    value = round(random.uniform(low, high), digits)
    return min(max(value, low), high)


def _string(schema: dict[str, Any], random: Random) -> str:
    if pattern := _FORMATS.get(schema.get("format", "")):
        return pattern.format(random.randint(1, 9))
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    if (asked := schema.get("pattern")) is not None:
        text = matching(str(asked), random, least=least, most=None if most is None else int(most))
        if text is not None:
            return text
    text = " ".join(random.sample(_WORDS, 2))
    while len(text) < least:
        text += " " + random.choice(_WORDS)
    return text if most is None else text[: int(most)]
