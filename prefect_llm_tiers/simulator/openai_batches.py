"""OpenAI's batches: taking one, telling how far it is, writing its result files."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, assert_never

import msgspec
import orjson

from prefect_llm_tiers.simulator.batches import Batch, Row
from prefect_llm_tiers.simulator.lives import End
from prefect_llm_tiers.simulator.openai_endpoints import render_answer
from prefect_llm_tiers.simulator.openai_errors import DIALECT, openai_error, server_error
from prefect_llm_tiers.simulator.openai_uploads import LineError, Upload
from prefect_llm_tiers.simulator.spoiling import spoiled
from prefect_llm_tiers.simulator.world import World

__all__ = ["Status", "batch_object", "result_lines", "status_of", "submit"]


class Status(StrEnum):
    """A batch's status on the wire."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


def submit(world: World, upload: Upload, sheet: dict[str, Any], *, lands_at: datetime) -> Batch:
    """Take a batch of a file that was judged.

    Args:
        world: The world.
        upload: The file.
        sheet: Its `endpoint`, `input_file_id`, `metadata` and `output_expires_s`.
        lands_at: When it is taken.
    """
    rows = [msgspec.structs.replace(row) for row in upload.rows]  # a gateway may post one file twice
    errors = upload.errors
    with world.lock:
        key = world.fate_key(DIALECT, upload.digest)
        if not errors:
            errors = [error for error in (_over_ceiling(world, upload, key), _misjudged(world, key)) if error][:1]
        sheet = {
            **sheet,
            "model": upload.model or None,
            "errors": [msgspec.structs.asdict(error) for error in errors],
        }
        if errors:
            return world.submit_failed(
                id_prefix="batch_",
                dialect=DIALECT,
                digest=upload.digest,
                sheet=sheet,
                fate_key=key,
                lands_at=lands_at,
            )
        sheet["output_file_id"] = world.new_id("file-")
        sheet["error_file_id"] = world.new_id("file-")
        return world.submit(
            id_prefix="batch_",
            dialect=DIALECT,
            model=upload.model,
            rows=rows,
            sheet=sheet,
            digest=upload.digest,
            fate_key=key,
            lands_at=lands_at,
        )


def _over_ceiling(world: World, upload: Upload, key: str) -> LineError | None:
    """Return why no more input tokens may wait, where that is so or a fault says so."""
    tokens = sum(row.asked.input_tokens for row in upload.rows if row.asked is not None)
    ceiling = world.settings.enqueued_tokens
    over = ceiling is not None and world.enqueued_tokens(DIALECT, upload.model) + tokens > ceiling
    if not over and world.draws.strikes("token_limit", key):
        over, ceiling = True, ceiling or tokens
    if not over:
        return None
    message = (
        f"Enqueued token limit reached for {upload.model} in organization {world.settings.organization}. "
        f"Limit: {ceiling} enqueued tokens. Please try again once some in_progress batches have been completed."
    )
    return LineError("token_limit_exceeded", message)


def _misjudged(world: World, key: str) -> LineError | None:
    if not world.draws.strikes("validation_fails", key):
        return None
    return LineError("invalid_json_line", "This line is not parseable as valid JSON.", 1)


def status_of(world: World, batch: Batch, now: datetime) -> Status:
    """Return where a batch is."""
    settings = world.settings
    if now < batch.created_at + timedelta(seconds=settings.validation_s):
        cancelled_early = batch.life is not None and batch.life.is_cancelling(now)
        if not cancelled_early:
            return Status.VALIDATING
    if batch.life is None:
        return Status.FAILED
    end_at, end = batch.life.end
    if now < end_at:
        return Status.CANCELLING if batch.life.is_cancelling(now) else Status.IN_PROGRESS
    if now < end_at + _finalizing(world, batch):
        return Status.CANCELLING if end is End.CANCELLED else Status.FINALIZING
    match end:
        case End.DONE:
            return Status.COMPLETED
        case End.EXPIRED:
            return Status.EXPIRED
        case End.CANCELLED:
            return Status.CANCELLED
        case _ as never:
            assert_never(never)


def _finalizing(world: World, batch: Batch) -> timedelta:
    return timedelta(seconds=world.settings.finalizing_s) + (batch.fate.finalizing or timedelta(0))


def batch_object(world: World, batch: Batch) -> dict[str, Any]:
    """Return a batch as the wire tells it; `batch` must be fresh from the world."""
    now = world.clock.now()
    status = status_of(world, batch, now)
    sheet = batch.sheet
    settings = world.settings
    validated_at = batch.created_at + timedelta(seconds=settings.validation_s)
    failed = status is Status.FAILED
    times: dict[str, datetime | None] = dict.fromkeys(
        (
            "in_progress_at",
            "finalizing_at",
            "completed_at",
            "expired_at",
            "cancelling_at",
            "cancelled_at",
            "failed_at",
        )
    )
    ended = status in (Status.COMPLETED, Status.EXPIRED, Status.CANCELLED)
    if failed:
        times["failed_at"] = validated_at
    elif batch.life is not None and status is not Status.VALIDATING:
        times["in_progress_at"] = validated_at
        times["cancelling_at"] = batch.life.cancel_at if batch.life.is_cancelling(now) else None
        end_at, end = batch.life.end
        final_at = end_at + _finalizing(world, batch)
        if now >= end_at and end is not End.CANCELLED:
            times["finalizing_at"] = end_at
        if ended:
            times[f"{status.value}_at"] = final_at
        if now >= end_at + timedelta(seconds=settings.finalizing_s) and batch.fate.finalizing is not None:
            world.meets("long_finalizing", batch)
    readable = ended
    if ended and batch.fate.output_late is not None and batch.life is not None:
        world.meets("output_late", batch)
        readable = now >= batch.life.end[0] + _finalizing(world, batch) + batch.fate.output_late
    undone = len(batch.rows) - batch.worked
    shown = status is not Status.VALIDATING
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": sheet["endpoint"],
        "model": sheet["model"],
        "errors": {"object": "list", "data": sheet["errors"]} if failed else None,
        "input_file_id": sheet["input_file_id"],
        "completion_window": "24h",
        "status": status.value,
        "output_file_id": sheet["output_file_id"] if readable and batch.completed else None,
        "error_file_id": sheet["error_file_id"] if readable and (batch.failed or undone) else None,
        "created_at": _unix(batch.created_at),
        "expires_at": _unix(batch.created_at + timedelta(seconds=settings.window_s)),
        **{name: None if at is None else _unix(at) for name, at in times.items()},
        "request_counts": {
            "total": len(batch.rows) if shown else 0,
            "completed": batch.completed if shown else 0,
            "failed": batch.failed if shown else 0,
        },
        "usage": _usage(batch) if ended else None,
        "metadata": sheet["metadata"],
    }


def _usage(batch: Batch) -> dict[str, Any]:
    answers = [row.composed for row in batch.rows if row.composed is not None]
    read = sum(answer.input_tokens for answer in answers)
    written = sum(answer.output_tokens for answer in answers)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in answers)},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def result_lines(world: World, batch: Batch, *, errors: bool) -> Iterator[bytes]:
    """Write a result file of an ended batch, in the order in which rows got done.

    Args:
        world: Makes the ids.
        batch: The batch; it must have ended.
        errors: Whether to write the error file, which holds every line but the answered ones.
    """
    lines = _result_lines(world, batch, errors=errors)
    return spoiled(world, batch, "errors" if errors else "output", lines, _anatomy)


def _anatomy(line: dict[str, Any]) -> tuple[dict[str, Any], str]:
    return line["response"] or {}, "body"


def _result_lines(world: World, batch: Batch, *, errors: bool) -> Iterator[tuple[Row, bytes]]:
    if batch.life is None:
        return
    end_at, end = batch.life.end
    created = _unix(end_at)
    if end is End.CANCELLED:
        unfinished = ("batch_cancelled", "This request was not executed before the batch was cancelled.")
    else:
        unfinished = (
            "batch_expired",
            "This request could not be executed before the completion window expired.",
        )
    for row in batch.rows:
        if (row.composed is None) is not errors:
            continue
        name = f"{batch.id}:{row.custom_id}"
        line: dict[str, Any] = {
            "id": world.id_of("batch_req_", name),
            "custom_id": row.custom_id,
            "response": None,
            "error": None,
        }
        if not row.done:
            line["error"] = {"code": unfinished[0], "message": unfinished[1]}
        elif row.asked is not None and row.composed is not None:
            answer = render_answer(world, row.asked, row.composed, created=created, name=name)
            line["response"] = _reply(world, name, 200, answer)
        elif row.rejection is not None:
            line["response"] = _reply(world, name, *row.rejection)
        elif row.refused:
            message = "Invalid value for 'input': the request could not be validated."
            line["response"] = _reply(world, name, 400, openai_error(400, message, param="input").body)
        else:
            line["response"] = _reply(world, name, 500, server_error().body)
        yield row, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _reply(world: World, name: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": world.id_of("req_", name), "body": body}


def _unix(at: datetime) -> int:
    return int(at.timestamp())
