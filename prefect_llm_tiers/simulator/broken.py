"""Replies that break on their way: a gateway's page, a connection that is reset, one that stays silent."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import httpx2
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prefect_llm_tiers.core.ports import Clock

__all__ = ["ABORT", "BrokenReply", "HungUp", "bad_gateway", "stall"]

ABORT = "prefect_llm_tiers.abort"
"""Where a server puts the function that resets a connection, in the ASGI scope."""


class HungUp(Exception):
    """The connection is reset before a reply came."""


class BrokenReply(Response):
    """A reply of which only this much comes; then the connection is reset.

    Args:
        content: What still comes, headers included; None for nothing at all.
        length: The length that the headers promise.
        media_type: Its media type.
        silence: What passes between the last byte and the reset; None for nothing.
    """

    def __init__(
        self,
        content: bytes | None = None,
        *,
        length: int = 0,
        media_type: str | None = None,
        silence: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(content, 200, {"content-length": str(length)}, media_type=media_type)
        self._nothing = content is None
        self._silence = silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes, and break off."""
        if not self._nothing:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if self._silence is not None:
            await self._silence()
        abort = scope.get(ABORT)
        if abort is None:
            # In one process with its client: its transport hands on the exception that a network would raise.
            raise httpx2.ReadError("The simulated connection was reset.")
        abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def bad_gateway() -> Response:
    """Return what a gateway says that had no reply from the provider behind it."""
    page = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>502 Bad Gateway</body>\r\n</html>\r\n"
    return Response(page, 502, media_type="text/html")


async def stall(request: Request, clock: Clock, seconds: float) -> None:
    """Say nothing until the client hangs up, or for this many seconds."""
    left = asyncio.ensure_future(_disconnected(request))
    silence = asyncio.ensure_future(clock.sleep_until(clock.now() + timedelta(seconds=seconds)))
    try:
        await asyncio.wait((left, silence), return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        silence.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
