"""One question as the world sees it, whichever dialect carried it, and the draws keyed by it."""

import hashlib
import math
from random import Random
from typing import Any

import msgspec

from prefect_llm_tiers.core.requests import canonical_json
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["AskedRequest", "body_digest", "chance", "draw", "tokens_of"]

_HOW_NOT_WHAT = ("service_tier", "stream")


class AskedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What somebody asked.

    Attributes:
        dialect: `openai` or `anthropic`.
        endpoint: The path it came by, or that its batch names.
        model: The model asked.
        tier: The tier that will be served.
        body: The body as it came.
        document: The text of the last message of the user.
        input_tokens: Tokens of all text in the body.
        max_output_tokens: Where the answer is cut; None without a limit.
        schema: JSON schema that the answer must follow; None for text.
        digest: Names endpoint and body apart from the tier; equal questions have equal digests.
        custom_id: Its id in a batch; None for a live call.
        inputs: How many texts it has embedded.
        image_tokens: The part of the input that images are.
        writes: Tokens that its answer has, where it is no text; None where it is.
        seconds: Length of the film it asks for.
    """

    dialect: str
    endpoint: str
    model: str
    tier: Tier
    body: dict[str, Any]
    document: str
    input_tokens: int
    max_output_tokens: int | None
    schema: dict[str, Any] | None
    digest: str
    custom_id: str | None = None
    inputs: int = 1
    image_tokens: int = 0
    writes: int | None = None
    seconds: int = 0


def body_digest(endpoint: str, body: dict[str, Any]) -> str:
    """Return the SHA-256 that names a question, apart from the tier it is asked in."""
    what = {name: value for name, value in body.items() if name not in _HOW_NOT_WHAT}
    return hashlib.sha256(endpoint.encode() + b"\n" + canonical_json(what)).hexdigest()


def tokens_of(size: int) -> int:
    """Return the tokens of so many UTF-8 bytes: four make one, as in English text."""
    return max(1, math.ceil(size / 4))


def draw(seed: int, *key: object) -> Random:
    """Return the generator of one draw: the same for the same key, whenever it is made."""
    return Random(f"{seed}:{':'.join(map(str, key))}")


def chance(seed: int, probability: float, *key: object) -> bool:
    """Return whether something of this probability happens for this key."""
    return probability > 0 and draw(seed, *key).random() < probability
