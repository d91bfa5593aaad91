"""OpenAI's endpoints beside text: embeddings, completions, moderations, images and, in batches, edits and videos."""

import base64
import hashlib
import json
import math
import struct
import sys
import zlib
from array import array
from typing import Any

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.answers import Composed
from prefect_llm_tiers.simulator.asked import AskedRequest, body_digest, tokens_of
from prefect_llm_tiers.simulator.openai_errors import DIALECT, check_body, openai_error
from prefect_llm_tiers.simulator.texts import last_user_text
from prefect_llm_tiers.simulator.world import World

__all__ = ["read_other_request", "render_other_answer"]

_FIELDS = {
    Endpoint.EMBEDDINGS: "input model dimensions encoding_format user",
    Endpoint.COMPLETIONS: "model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n "
    "presence_penalty seed stop stream stream_options suffix temperature top_p user",
    Endpoint.MODERATIONS: "input model",
    Endpoint.IMAGES: "prompt model background complexity frame_count frame_duration_ms moderation n "
    "output_compression output_format partial_images quality response_format safety_identifier size stream style svg "
    "reasoning user",
    Endpoint.IMAGE_EDITS: "image images prompt model background complexity frame_count frame_duration_ms "
    "input_fidelity markup mask moderation n output_compression output_format partial_images quality response_format "
    "safety_identifier size stream svg reasoning user",
    Endpoint.VIDEOS: "prompt model input_reference seconds size",
}
_KNOWN = {endpoint: frozenset(names.split()) for endpoint, names in _FIELDS.items()}
_ASKS = {
    Endpoint.EMBEDDINGS: "input",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.MODERATIONS: "input",
    Endpoint.IMAGES: "prompt",
    Endpoint.IMAGE_EDITS: "prompt",
    Endpoint.VIDEOS: "prompt",
}

_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
_MOST_INPUTS = 2048
_LONGEST_INPUT = 8192
_MOST_INPUT_TOKENS = 300_000

_COMPLETION_TOKENS = 16
"""Where a completion is cut that names no limit."""

_IMAGE_TOKENS = {"low": 272, "medium": 1056, "high": 4160, "xhigh": 6240, "max": 8320, "auto": 1056}
_READ_IMAGE_TOKENS = 323
"""Tokens of each image that an edit reads."""

_VIDEO_SECONDS = ("4", "8", "12")


def read_other_request(
    world: World, endpoint: Endpoint, body: dict[str, Any], *, batched: bool, custom_id: str | None
) -> AskedRequest:
    """Read a body as the question it asks. These endpoints have no service tiers beside standard and batch.

    Raises:
        Refused: What the real endpoint would refuse, with its status and body.
    """
    model = check_body(world, endpoint, body, _KNOWN[endpoint], ("model", _ASKS[endpoint]))
    if body.get("stream"):
        where = "in a batch" if batched else "by the simulator"
        raise openai_error(400, f"Streaming is not supported {where}.", param="stream", code="unsupported_parameter")
    inputs, image_tokens, seconds = 1, 0, 0
    limit: int | None = None
    writes: int | None = 0
    match endpoint:
        case Endpoint.EMBEDDINGS:
            texts = _embedded(body["input"])
            _check_dimensions(body, model.id)
            inputs = len(texts)
            sizes = [_input_tokens(text) for text in texts]
            if max(sizes) > _LONGEST_INPUT or sum(sizes) > _MOST_INPUT_TOKENS:
                message = f"This model's maximum context length is {_LONGEST_INPUT} tokens."
                raise openai_error(400, message, param="input")
            read = sum(sizes)
        case Endpoint.COMPLETIONS:
            prompt = body["prompt"]
            if isinstance(prompt, list) and len(prompt) == 1:
                prompt = prompt[0]
            if not isinstance(prompt, str) or body.get("n") not in (None, 1):
                raise openai_error(400, "The simulator completes one prompt once: ask again for more.", param="prompt")
            limit, writes = body.get("max_tokens") or _COMPLETION_TOKENS, None
            read = tokens_of(len(prompt.encode(errors="replace")))
        case Endpoint.MODERATIONS:
            read = sum(tokens_of(len(text.encode(errors="replace"))) for text in _moderated(body["input"]))
        case Endpoint.VIDEOS:
            seconds = _film_seconds(body)
            read = tokens_of(len(_text(body["prompt"]).encode(errors="replace")))
        case _:
            if endpoint is Endpoint.IMAGE_EDITS:
                image_tokens = _READ_IMAGE_TOKENS * _images_read(body)
            read = tokens_of(len(_text(body["prompt"]).encode(errors="replace"))) + image_tokens
            writes = _images_written(body) * _IMAGE_TOKENS[_quality(body)]
    return AskedRequest(
        dialect=DIALECT,
        endpoint=endpoint.value,
        model=model.id,
        tier=Tier.BATCH if batched else Tier.STANDARD,
        body=body,
        document=last_user_text(body[_ASKS[endpoint]]),
        input_tokens=read,
        max_output_tokens=limit,
        schema=None,
        digest=body_digest(endpoint.value, body),
        custom_id=custom_id,
        inputs=inputs,
        image_tokens=image_tokens,
        writes=writes,
        seconds=seconds,
    )


def render_other_answer(
    world: World, asked: AskedRequest, composed: Composed, *, created: int, name: str
) -> dict[str, Any]:
    """Return the response body of an answer; its ids follow from `name`."""
    match asked.endpoint:
        case Endpoint.EMBEDDINGS:
            return _embeddings(asked)
        case Endpoint.COMPLETIONS:
            return _completion(world, asked, composed, created, name)
        case Endpoint.MODERATIONS:
            results = [_moderation(text) for text in _moderated(asked.body["input"])]
            return {"id": world.id_of("modr-", name), "model": asked.model, "results": results}
        case Endpoint.VIDEOS:
            return _video(world, asked, created, name)
        case _:
            return _images(asked, composed, created)


# Embeddings


def _embedded(given: Any) -> list[Any]:
    """Return what is embedded, one vector each: texts, or lists of token ids."""
    if isinstance(given, list) and given and isinstance(given[0], int):
        texts: list[Any] = [given]
    else:
        texts = given if isinstance(given, list) else [given]
    if len(texts) > _MOST_INPUTS:
        message = f"Invalid 'input': array too long. Expected at most {_MOST_INPUTS} items, but got {len(texts)}."
        raise openai_error(400, message, param="input", code="array_above_max_length")
    for text in texts:
        tokens = isinstance(text, list) and all(isinstance(token, int) for token in text)
        if not text or not (isinstance(text, str) or tokens):
            raise openai_error(400, "Invalid 'input': expected texts that are not empty.", param="input")
    return texts


def _input_tokens(text: Any) -> int:
    return tokens_of(len(text.encode(errors="replace"))) if isinstance(text, str) else len(text)


def _check_dimensions(body: dict[str, Any], model: str) -> None:
    most = _DIMENSIONS[model]
    wanted = body.get("dimensions")
    if wanted is not None:
        if model == "text-embedding-ada-002":
            raise openai_error(400, "This model does not support specifying dimensions.", param="dimensions")
        if not isinstance(wanted, int) or not 1 <= wanted <= most:
            message = f"Invalid 'dimensions': expected an integer from 1 to {most}."
            raise openai_error(400, message, param="dimensions", code="invalid_value")
    if body.get("encoding_format") not in (None, "float", "base64"):
        message = f"Invalid value: '{body['encoding_format']}'. Supported values are: 'float' and 'base64'."
        raise openai_error(400, message, param="encoding_format", code="invalid_value")


def _vector(text: Any, dimensions: int) -> "array[float]":
    """Return the unit vector of a text, as 32-bit numbers.

    Fewer dimensions are the first ones of more, made a unit vector again, as the real models have it.
    """
    seed = text if isinstance(text, str) else json.dumps(text)
    drawn = hashlib.shake_256(seed.encode(errors="replace")).digest(4 * dimensions)
    raw = struct.unpack(f"<{dimensions}i", drawn)
    length = math.hypot(*raw) or 1.0
    return array("f", [value / length for value in raw])


def _embeddings(asked: AskedRequest) -> dict[str, Any]:
    dimensions = asked.body.get("dimensions") or _DIMENSIONS[asked.model]
    encoded = asked.body.get("encoding_format") == "base64"
    data = []
    for index, text in enumerate(_embedded(asked.body["input"])):
        vector = _vector(text, dimensions)
        if encoded and sys.byteorder == "big":
            vector.byteswap()
        shown: Any = base64.b64encode(vector.tobytes()).decode() if encoded else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": asked.input_tokens, "total_tokens": asked.input_tokens}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}


# Completions and moderations


def _completion(world: World, asked: AskedRequest, composed: Composed, created: int, name: str) -> dict[str, Any]:
    finish = "length" if composed.cut else "stop"
    return {
        "id": world.id_of("cmpl-", name),
        "object": "text_completion",
        "created": created,
        "model": asked.model,
        "choices": [{"text": composed.text, "index": 0, "logprobs": None, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": composed.input_tokens,
            "completion_tokens": composed.output_tokens,
            "total_tokens": composed.input_tokens + composed.output_tokens,
            "prompt_tokens_details": {"cached_tokens": composed.cached_tokens},
        },
    }


_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
_VIOLENT = ("kill", "murder", "attack")


def _moderated(given: Any) -> list[str]:
    """Return the texts that are judged, one result each; parts of several kinds are judged together."""
    if isinstance(given, list) and given and isinstance(given[0], dict):
        return [last_user_text([{"role": "user", "content": given}])]
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise openai_error(400, "Invalid type for 'input'.", param="input", code="invalid_type")
    return texts


def _moderation(text: str) -> dict[str, Any]:
    drawn = hashlib.sha256(text.encode(errors="replace")).digest()
    scores = {category: drawn[number] / 10_000 for number, category in enumerate(_CATEGORIES)}
    if any(word in text.lower() for word in _VIOLENT):
        scores["violence"] += 0.9
    return {
        "flagged": scores["violence"] > 0.5,
        "categories": {category: score > 0.5 for category, score in scores.items()},
        "category_scores": scores,
        "category_applied_input_types": {category: ["text"] for category in _CATEGORIES},
    }


# Images and films


def _text(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise openai_error(400, "Invalid type for 'prompt': expected a string.", param="prompt", code="invalid_type")
    return prompt


def _quality(body: dict[str, Any]) -> str:
    quality = body.get("quality") or "auto"
    if quality not in _IMAGE_TOKENS:
        message = f"Invalid value: '{quality}'. Supported values are: {', '.join(map(repr, _IMAGE_TOKENS))}."
        raise openai_error(400, message, param="quality", code="invalid_value")
    return str(quality)


def _images_written(body: dict[str, Any]) -> int:
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= 10:
        raise openai_error(400, "Invalid 'n': expected an integer from 1 to 10.", param="n", code="invalid_value")
    return count


def _images_read(body: dict[str, Any]) -> int:
    images = body.get("images") or body.get("image")
    if not images:
        raise openai_error(
            400, "Missing required parameter: 'images'.", param="images", code="missing_required_parameter"
        )
    return len(images) if isinstance(images, list) else 1


def _film_seconds(body: dict[str, Any]) -> int:
    seconds = str(body.get("seconds") or _VIDEO_SECONDS[0])
    if seconds not in _VIDEO_SECONDS:
        message = f"Invalid value: '{seconds}'. Supported values are: {', '.join(map(repr, _VIDEO_SECONDS))}."
        raise openai_error(400, message, param="seconds", code="invalid_value")
    return int(seconds)


def _images(asked: AskedRequest, composed: Composed, created: int) -> dict[str, Any]:
    body = asked.body
    count = _images_written(body)
    pictures = [_picture(f"{asked.digest}:{number}") for number in range(count)]
    written = composed.output_tokens
    return {
        "created": created,
        "background": body.get("background") if body.get("background") == "transparent" else "opaque",
        "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures],
        "output_format": "png",
        "quality": "medium" if _quality(body) == "auto" else _quality(body),
        "size": "1024x1024" if body.get("size") in (None, "auto") else body["size"],
        "usage": {
            "input_tokens": composed.input_tokens,
            "input_tokens_details": {
                "text_tokens": composed.input_tokens - asked.image_tokens,
                "image_tokens": asked.image_tokens,
            },
            "output_tokens": written,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": written},
            "total_tokens": composed.input_tokens + written,
        },
    }


def _picture(name: str) -> bytes:
    """Return a PNG of one pixel, its colour drawn from a name."""
    colour = hashlib.sha256(name.encode()).digest()[:3]

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00" + colour)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", pixels) + part(b"IEND", b"")


def _video(world: World, asked: AskedRequest, created: int, name: str) -> dict[str, Any]:
    return {
        "id": world.id_of("video_", name),
        "object": "video",
        "created_at": created,
        "completed_at": created,
        "expires_at": created + 24 * 3600,
        "status": "completed",
        "progress": 100,
        "model": asked.model,
        "prompt": asked.body["prompt"],
        "seconds": str(asked.seconds),
        "size": asked.body.get("size") or "720x1280",
        "remixed_from_video_id": None,
        "error": None,
    }
