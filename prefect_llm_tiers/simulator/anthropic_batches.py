"""Anthropic's message batches: taking one, telling of it, and its results."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import orjson

from prefect_llm_tiers.core.requests import CUSTOM_ID
from prefect_llm_tiers.simulator.anthropic_bodies import DIALECT, anthropic_error, read_request, render_answer
from prefect_llm_tiers.simulator.lives import End
from prefect_llm_tiers.simulator.wire import Refused
from prefect_llm_tiers.simulator.world import Batch, Row, World

__all__ = ["RESULTS_KEPT", "batch_object", "has_ended", "result_lines", "submit", "timestamp"]

RESULTS_KEPT = timedelta(days=29)
"""Results can be read this long after creation."""


def submit(world: World, body: Any) -> Batch:
    """Take a batch. The form of its requests is judged at once, their params only when they are worked on.

    Raises:
        Refused: Too many requests, a bad or repeated custom_id, an unknown field.
    """
    if not isinstance(body, dict):
        raise anthropic_error(400, "Input should be a valid dictionary")
    for name in body:
        if name != "requests":
            raise anthropic_error(400, f"{name}: Extra inputs are not permitted")
    requests = body.get("requests")
    if not isinstance(requests, list):
        raise anthropic_error(400, "requests: Field required")
    if not requests:
        raise anthropic_error(400, "requests: List should have at least 1 item after validation, not 0")
    most = world.settings.batch_requests[DIALECT]
    if len(requests) > most:
        raise anthropic_error(
            400, f"requests: List should have at most {most} items after validation, not {len(requests)}"
        )
    rows: list[Row] = []
    seen: set[str] = set()
    for number, request in enumerate(requests):
        _check_form(number, request)
        if request["custom_id"] in seen:
            raise anthropic_error(400, f"requests.{number}.custom_id: Duplicate custom_id '{request['custom_id']}'")
        seen.add(request["custom_id"])
        rows.append(_read_row(world, request["custom_id"], request["params"]))
    model = next((row.asked.model for row in rows if row.asked is not None), "none")
    return world.submit(id_prefix="msgbatch_", dialect=DIALECT, model=model, rows=rows, sheet={})


def _check_form(number: int, request: Any) -> None:
    if not isinstance(request, dict):
        raise anthropic_error(400, f"requests.{number}: Input should be a valid dictionary")
    for name in ("custom_id", "params"):
        if name not in request:
            raise anthropic_error(400, f"requests.{number}.{name}: Field required")
    for name in request:
        if name not in ("custom_id", "params"):
            raise anthropic_error(400, f"requests.{number}.{name}: Extra inputs are not permitted")
    custom_id = request["custom_id"]
    if not isinstance(custom_id, str) or not CUSTOM_ID.fullmatch(custom_id):
        raise anthropic_error(
            400, f"requests.{number}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
        )
    if not isinstance(request["params"], dict):
        raise anthropic_error(400, f"requests.{number}.params: Input should be a valid dictionary")


def _read_row(world: World, custom_id: str, params: dict[str, Any]) -> Row:
    try:
        return Row(custom_id, asked=read_request(world, params, batched=True, custom_id=custom_id))
    except Refused as refused:
        return Row(custom_id, rejection=(refused.status, refused.body))


def has_ended(batch: Batch, now: datetime) -> bool:
    """Tell whether nothing more will be done."""
    return batch.life is not None and now >= batch.life.end[0]


def batch_object(world: World, batch: Batch, base_url: str) -> dict[str, Any]:
    """Return a batch as the wire tells it; `batch` must be fresh from the world.

    Every request counts as `processing` until the whole batch has ended: Anthropic shows no progress.
    """
    now = world.clock.now()
    life = batch.life
    ended = has_ended(batch, now)
    total = len(batch.rows)
    counts = {"processing": total, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    if ended and life is not None:
        undone = total - batch.worked
        cancelled = life.end[1] is End.CANCELLED
        counts = {
            "processing": 0,
            "succeeded": batch.completed,
            "errored": batch.failed,
            "canceled": undone if cancelled else 0,
            "expired": 0 if cancelled else undone,
        }
    archived_at = batch.created_at + RESULTS_KEPT
    archived = now >= archived_at
    cancel_at = None if life is None else life.cancel_at
    running = "in_progress" if cancel_at is None else "canceling"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if ended else running,
        "request_counts": counts,
        "created_at": timestamp(batch.created_at),
        "expires_at": timestamp(batch.created_at + timedelta(seconds=world.settings.window_s)),
        "ended_at": timestamp(life.end[0]) if ended and life is not None else None,
        "cancel_initiated_at": None if cancel_at is None else timestamp(cancel_at),
        "archived_at": timestamp(archived_at) if archived else None,
        "results_url": f"{base_url}/v1/messages/batches/{batch.id}/results" if ended and not archived else None,
    }


def result_lines(world: World, batch: Batch) -> Iterator[bytes]:
    """Write the results of an ended batch, in the order in which rows got done."""
    cancelled = batch.life is not None and batch.life.end[1] is End.CANCELLED
    for row in batch.rows:
        name = f"{batch.id}:{row.custom_id}"
        result: dict[str, Any]
        if not row.done:
            result = {"type": "canceled" if cancelled else "expired"}
        elif row.asked is not None and row.composed is not None:
            result = {
                "type": "succeeded",
                "message": render_answer(world, row.asked, row.composed, name=name),
            }
        elif row.rejection is not None:
            result = {"type": "errored", "error": row.rejection[1]}
        else:
            result = {"type": "errored", "error": anthropic_error(500, "Internal server error").body}
        line = {"custom_id": row.custom_id, "result": result}
        yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def timestamp(at: datetime) -> str:
    """Return an instant as Anthropic writes it."""
    return at.isoformat().replace("+00:00", "Z")
