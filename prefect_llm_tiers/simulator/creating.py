"""The creation of a batch and what may befall it; the same for every dialect."""

from collections.abc import Callable
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

from prefect_llm_tiers.simulator.batches import Batch
from prefect_llm_tiers.simulator.broken import HungUp, bad_gateway, stall
from prefect_llm_tiers.simulator.world import World

__all__ = ["create"]

_FAULTS = (
    "create_502_untaken",
    "create_502_taken",
    "create_stalls",
    "create_lands_late",
    "create_502_lands_late",
    "create_twice",
)


async def create(
    world: World,
    request: Request,
    *,
    key: str,
    take: Callable[[datetime], Batch],
    show: Callable[[Batch], Response],
) -> Response:
    """Take a batch, or lose it, its reply, or both.

    What lands late is entered at once with a time of creation ahead of now, so that it lands whatever
    becomes of the connection it came by.

    Args:
        world: The world.
        request: The call.
        key: What the faults of this call are keyed by; every call needs another one.
        take: Takes the batch at an instant.
        show: Makes the reply that tells of it.

    Raises:
        HungUp: The reply never comes.
        Refused: `take` refused.
    """
    with world.lock:
        now = world.clock.now()
        fault = world.draws.first_of(_FAULTS, key)
        late = fault in ("create_lands_late", "create_502_lands_late")
        if fault == "create_502_untaken":
            return bad_gateway()
        lands_at = now + world.draws.span("create_late_s", key) if late else now
        batch = take(lands_at)
        if fault == "create_twice":
            batch = take(lands_at)
    if fault in ("create_502_taken", "create_502_lands_late"):
        return bad_gateway()
    if fault == "create_stalls":
        await stall(request, world.clock, world.settings.faults.stall_s)
        raise HungUp
    if late:
        await world.clock.sleep_until(lands_at)
    with world.lock:
        world.work(batch)
        return show(batch)
