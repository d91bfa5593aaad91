"""What a live call meets instead of its answer; the same for every dialect but for the words of a refusal."""

from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from prefect_llm_tiers.simulator.broken import HungUp, bad_gateway, stall
from prefect_llm_tiers.simulator.live_calls import Struck
from prefect_llm_tiers.simulator.wire import Refused
from prefect_llm_tiers.simulator.world import World

__all__ = ["Refusal", "reply_to_struck"]

Refusal = Callable[[str, int, float], Refused]
"""Words a refusal: the fault's name, the HTTP status it has, the seconds after which to come again."""

_STATUSES = {
    "live_limited": 429,
    "live_quota": 429,
    "live_capacity": 429,
    "live_529": 529,
    "live_498": 498,
}
_BROKEN_STATUSES = (500, 502, 503, 504)


async def reply_to_struck(
    world: World, request: Request, struck: Struck, *, answer: dict[str, Any] | None, refusal: Refusal
) -> Response:
    """Return what a struck call gets.

    Args:
        world: The world.
        request: The call.
        struck: The fault.
        answer: The body that it would have had; None where nothing was billed.
        refusal: Words what the dialect refuses.

    Raises:
        Refused: The fault is one that the dialect has words for.
        HungUp: Nothing comes.
    """
    fraction = world.draws.fraction(struck.fault, struck.key, "how")
    match struck.fault:
        case "live_stalls":
            await stall(request, world.clock, world.settings.faults.stall_s)
            raise HungUp
        case "live_reset":
            raise HungUp
        case "live_502_billed":
            return bad_gateway()
        case "live_malformed":
            return _malformed(orjson.dumps(answer), fraction)
        case "live_5xx":
            status = _BROKEN_STATUSES[int(fraction * len(_BROKEN_STATUSES))]
            if status == 502:
                return bad_gateway()
            raise refusal(struck.fault, status, 0.0)
        case fault:
            raise refusal(fault, _STATUSES[fault], round(0.5 + 30 * fraction, 3))


def _malformed(body: bytes, fraction: float) -> Response:
    """Return a reply that says 200 and holds something else than an answer."""
    bodies = (
        body[: len(body) // 2],
        b"",
        b"null",
        b"[]",
        b'{"ok": true}',
        b"\xff\xfe" + body,
        b"<html><body>Sign in to the network</body></html>",
        body.replace(b'"output":[', b'"output":[7,').replace(b'"content":[', b'"content":[7,'),
    )
    return Response(bodies[int(fraction * len(bodies))], 200, media_type="application/json")
