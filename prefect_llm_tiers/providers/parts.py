"""The parts of a message's content, in each endpoint's own shape: texts and images, in the order in which they came.

The order is the caller's: what many prompts begin with is read from the provider's cache only where it stands first.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_llm_tiers.core.images import Image
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.errors import InputError

__all__ = ["content_of"]


def content_of(message: Mapping[str, Any], endpoint: Endpoint) -> Any:
    """Return a message's content as an endpoint takes it.

    A text stays one. In a list, a text, an `Image` or the bytes of one become parts; a mapping is a part of the
    provider's own and goes as it is.

    Raises:
        InputError: A part is something else.
    """
    content = message["content"]
    if isinstance(content, bytes | Image):
        content = [content]
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    return [_part(part, endpoint, role=message["role"], number=number) for number, part in enumerate(content)]


def _part(part: object, endpoint: Endpoint, *, role: object, number: int) -> Any:
    if isinstance(part, Mapping):
        return dict(part)
    if isinstance(part, str):
        if endpoint is Endpoint.RESPONSES:
            return {"type": "output_text" if role == "assistant" else "input_text", "text": part}
        return {"type": "text", "text": part}
    if isinstance(part, bytes):
        part = Image(data=part)
    if isinstance(part, Image):
        return _image(part, endpoint)
    raise InputError(
        f"Part {number} of a message's content is of type {type(part).__name__}. A part is a text, an Image, the bytes "
        "of an image, or a part of the provider's own as a dict."
    )


def _image(image: Image, endpoint: Endpoint) -> dict[str, Any]:
    detail = {"detail": image.detail} if image.detail is not None else {}
    match endpoint:
        case Endpoint.RESPONSES:
            return {"type": "input_image", "image_url": _url(image), **detail}
        case Endpoint.MESSAGES if image.data is not None:
            source = {"type": "base64", "media_type": image.kind(), "data": _base64(image.data)}
            return {"type": "image", "source": source}
        case Endpoint.MESSAGES:
            return {"type": "image", "source": {"type": "url", "url": image.url}}
        case _:
            return {"type": "image_url", "image_url": {"url": _url(image), **detail}}


def _url(image: Image) -> str | None:
    return image.url if image.data is None else f"data:{image.kind()};base64,{_base64(image.data)}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
