"""Results on their way to the client, whole or broken off; the same for every dialect."""

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from prefect_llm_tiers.simulator.batches import Batch
from prefect_llm_tiers.simulator.broken import BrokenReply, stall
from prefect_llm_tiers.simulator.wire import Refused, in_blocks
from prefect_llm_tiers.simulator.world import World

__all__ = ["download"]

_FAULTS = ("download_500", "download_reset", "download_stalls")


def download(
    world: World,
    request: Request,
    batch: Batch,
    lines: Iterator[bytes],
    *,
    file: str,
    media_type: str,
    otherwise: Refused,
) -> Response:
    """Send a result file.

    Args:
        world: The world.
        request: The call.
        batch: Whose results.
        lines: The file.
        file: Its name among the batch's, which keys the draws.
        media_type: Its media type.
        otherwise: How the dialect words a 500.

    Raises:
        Refused: `otherwise`.
    """
    with world.lock:
        key = batch.fate.key
        number = batch.look(f"download:{file}")
        fault = world.draws.first_of(_FAULTS, key, file, number)
        if fault is None:
            return StreamingResponse(in_blocks(lines), media_type=media_type)
        if fault == "download_500":
            raise otherwise
        content = b"".join(lines)
        comes = int(len(content) * world.draws.fraction("download", key, file, number))
    return BrokenReply(
        content[:comes],
        length=len(content),
        media_type=media_type,
        silence=(
            (lambda: stall(request, world.clock, world.settings.faults.stall_s)) if fault == "download_stalls" else None
        ),
    )
