"""What both dialects need of HTTP."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["Refused", "in_blocks", "json_body", "json_response"]

_BLOCK = 256 * 1024


class Refused(Exception):
    """The provider says no, in its own words.

    Attributes:
        status: HTTP status.
        body: The JSON body, as the dialect words it.
        headers: Headers beside those that every response carries.
    """

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def json_body(request: Request, otherwise: Refused) -> Any:
    """Return the decoded body of a request.

    Raises:
        Refused: `otherwise`; the body is no JSON.
    """
    try:
        return orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise otherwise from error


async def in_blocks(lines: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Stream lines in blocks, because a message for each line costs more than the line."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) > _BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block)
