"""Anthropic's message batches: taking one, telling of it, and its results."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import orjson

from prefect_llm_tiers.core.requests import CUSTOM_ID, Endpoint
from prefect_llm_tiers.simulator.anthropic_bodies import DIALECT, anthropic_error, read_request, render_answer
from prefect_llm_tiers.simulator.asked import body_digest
from prefect_llm_tiers.simulator.batches import Batch, Row
from prefect_llm_tiers.simulator.lives import End
from prefect_llm_tiers.simulator.spoiling import spoiled
from prefect_llm_tiers.simulator.wire import Refused
from prefect_llm_tiers.simulator.world import World

__all__ = [
    "RESULTS_KEPT",
    "are_readable",
    "batch_object",
    "has_ended",
    "processing_status",
    "read_requests",
    "result_lines",
    "submit",
    "timestamp",
]

RESULTS_KEPT = timedelta(days=29)
"""Results can be read this long after creation."""


def read_requests(world: World, body: Any) -> list[Row]:
    """Read a batch's requests. Their form is judged at once, their params only when they are worked on.

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
    most = world.settings.most_requests(DIALECT)
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
    return rows


def submit(world: World, rows: list[Row], *, digest: str, lands_at: datetime) -> Batch:
    """Take a batch of requests that were read; `digest` names their bodies."""
    model = next((row.asked.model for row in rows if row.asked is not None), "none")
    return world.submit(
        id_prefix="msgbatch_",
        dialect=DIALECT,
        model=model,
        rows=[msgspec.structs.replace(row) for row in rows],  # a gateway may post one body twice
        sheet={},
        digest=digest,
        fate_key=world.fate_key(DIALECT, digest),
        lands_at=lands_at,
    )


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
        asked = read_request(world, params, batched=True, custom_id=custom_id)
    except Refused as refused:
        digest = body_digest(Endpoint.MESSAGES.value, params)
        return Row(custom_id, digest, rejection=(refused.status, refused.body))
    return Row(custom_id, asked.digest, asked=asked)


def has_ended(batch: Batch, now: datetime) -> bool:
    """Tell whether nothing more will be done."""
    return batch.life is not None and now >= batch.life.end[0]


def are_readable(world: World, batch: Batch) -> bool:
    """Tell whether the results of a batch can be read now."""
    now = world.clock.now()
    if batch.life is None or not has_ended(batch, now) or now >= batch.created_at + RESULTS_KEPT:
        return False
    if batch.fate.output_late is None:
        return True
    world.meets("output_late", batch)
    return now >= batch.life.end[0] + batch.fate.output_late


def processing_status(batch: Batch, now: datetime) -> str:
    """Return a batch's status on the wire."""
    if has_ended(batch, now):
        return "ended"
    return "canceling" if batch.life is not None and batch.life.is_cancelling(now) else "in_progress"


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
    cancel_at = life.cancel_at if life is not None and life.is_cancelling(now) else None
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": processing_status(batch, now),
        "request_counts": counts,
        "created_at": timestamp(batch.created_at),
        "expires_at": timestamp(batch.created_at + timedelta(seconds=world.settings.window_s)),
        "ended_at": timestamp(life.end[0]) if ended and life is not None else None,
        "cancel_initiated_at": None if cancel_at is None else timestamp(cancel_at),
        "archived_at": timestamp(archived_at) if archived else None,
        "results_url": f"{base_url}/v1/messages/batches/{batch.id}/results" if are_readable(world, batch) else None,
    }


def result_lines(world: World, batch: Batch) -> Iterator[bytes]:
    """Write the results of an ended batch, in the order in which rows got done."""
    return spoiled(world, batch, "results", _result_lines(world, batch), _anatomy)


def _anatomy(line: dict[str, Any]) -> tuple[dict[str, Any], str]:
    return line["result"], "message"


def _result_lines(world: World, batch: Batch) -> Iterator[tuple[Row, bytes]]:
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
        elif row.refused:
            refused = anthropic_error(400, "messages: the request could not be validated")
            result = {"type": "errored", "error": refused.body}
        else:
            result = {"type": "errored", "error": anthropic_error(500, "Internal server error").body}
        line = {"custom_id": row.custom_id, "result": result}
        yield row, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def timestamp(at: datetime) -> str:
    """Return an instant as Anthropic writes it."""
    return at.isoformat().replace("+00:00", "Z")
