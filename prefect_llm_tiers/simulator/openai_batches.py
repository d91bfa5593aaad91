"""OpenAI's batches: reading an input file, telling how far a batch is, writing its result files."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, assert_never

import msgspec
import orjson

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator.lives import End
from prefect_llm_tiers.simulator.openai_bodies import DIALECT, read_request, render_answer
from prefect_llm_tiers.simulator.wire import Refused
from prefect_llm_tiers.simulator.world import Batch, Row, World

__all__ = ["BATCH_ENDPOINTS", "Status", "batch_object", "read_lines", "result_lines", "status_of", "submit"]

BATCH_ENDPOINTS = {
    Endpoint.RESPONSES.value: Endpoint.RESPONSES,
    Endpoint.CHAT_COMPLETIONS.value: Endpoint.CHAT_COMPLETIONS,
}
"""Endpoints whose batches this simulator can answer; the real one knows six more."""

_LINE_FIELDS = ("custom_id", "method", "url", "body")

_MOST_ERRORS = 100
"""A file with more faults than this reports the first ones only."""


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


class LineError(msgspec.Struct, frozen=True):
    """Why a batch failed its validation."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


def read_lines(world: World, endpoint: Endpoint, content: bytes) -> tuple[str, list[Row], list[LineError]]:
    """Read an input file.

    Faults of a line's form fail the whole batch; faults of its body only that row, as the endpoint
    itself would have refused it.

    Returns:
        The model, the rows, and the errors; the rows count only where there is no error.
    """
    limits = world.settings
    if len(content) > limits.batch_bytes[DIALECT]:
        most = limits.batch_bytes[DIALECT]
        return (
            "",
            [],
            [LineError("file_too_large", f"The batch input file is larger than the limit of {most} bytes.")],
        )
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    if not lines:
        return "", [], [LineError("empty_file", "The batch input file is empty.")]
    if len(lines) > limits.batch_requests[DIALECT]:
        most = limits.batch_requests[DIALECT]
        message = f"The batch input file contains too many requests: {len(lines)}. The limit is {most}."
        return "", [], [LineError("too_many_tasks", message)]
    rows: list[Row] = []
    errors: list[LineError] = []
    seen: set[str] = set()
    model: str | None = None
    for number, raw in lines:
        line, error = _read_line(number, raw, endpoint)
        if line is None:
            if error is not None:
                errors.append(error)
            continue
        custom_id, body = line["custom_id"], line["body"]
        if custom_id in seen:
            message = f"The custom_id '{custom_id}' for this request is a duplicate of another request."
            errors.append(LineError("duplicate_custom_id", message, number, "custom_id"))
            continue
        seen.add(custom_id)
        if world.model(DIALECT, body.get("model")) is None:
            message = f"The provided model '{body.get('model')}' is not supported by the Batch API."
            errors.append(LineError("model_not_found", message, number, "body.model"))
            continue
        if model is not None and body["model"] != model:
            message = "All requests in a batch must have the same model."
            errors.append(LineError("model_mismatch", message, number, "body.model"))
            continue
        model = body["model"]
        rows.append(_read_row(world, endpoint, custom_id, body))
    return model or "", rows, errors[:_MOST_ERRORS]


def _read_line(number: int, raw: bytes, endpoint: Endpoint) -> tuple[dict[str, Any] | None, LineError | None]:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        line = None
    if not isinstance(line, dict):
        return None, LineError("invalid_json_line", "This line is not parseable as valid JSON.", number)
    for name in _LINE_FIELDS:
        if not line.get(name):
            message = f"Missing required parameter: '{name}'."
            return None, LineError("missing_required_parameter", message, number, name)
    for name in line:
        if name not in _LINE_FIELDS:
            return None, LineError("unknown_parameter", f"Unknown parameter: '{name}'.", number, name)
    if not isinstance(line["custom_id"], str) or len(line["custom_id"]) > 512:
        return None, LineError(
            "invalid_value", "custom_id must be a string of at most 512 characters.", number, "custom_id"
        )
    if line["method"] != "POST":
        return None, LineError("invalid_method", "Invalid method: only 'POST' is supported.", number, "method")
    if line["url"] != endpoint.value:
        message = f"The URL provided for this request does not match the batch endpoint '{endpoint.value}'."
        return None, LineError("url_mismatch", message, number, "url")
    if not isinstance(line["body"], dict):
        return None, LineError("invalid_type", "Invalid type for 'body': expected an object.", number, "body")
    return line, None


def _read_row(world: World, endpoint: Endpoint, custom_id: str, body: dict[str, Any]) -> Row:
    try:
        asked = read_request(world, endpoint, body, batched=True, custom_id=custom_id)
    except Refused as refused:
        return Row(custom_id, rejection=(refused.status, refused.body))
    return Row(custom_id, asked=asked)


def submit(
    world: World,
    endpoint: Endpoint,
    content: bytes,
    *,
    file_id: str,
    metadata: dict[str, str] | None,
    output_expires_s: int | None,
) -> Batch:
    """Take a batch. Its file is judged now; the verdict shows when `validating` is over."""
    model, rows, errors = read_lines(world, endpoint, content)
    with world.lock:
        ceiling = world.settings.enqueued_tokens
        if not errors and ceiling is not None:
            tokens = sum(row.asked.input_tokens for row in rows if row.asked is not None)
            if world.enqueued_tokens(DIALECT, model) + tokens > ceiling:
                message = (
                    f"Enqueued token limit reached for {model} in organization "
                    f"{world.settings.organization}. Limit: {ceiling} enqueued tokens. "
                    "Please try again once some in_progress batches have "
                    "been completed."
                )
                errors = [LineError("token_limit_exceeded", message)]
        sheet: dict[str, Any] = {
            "endpoint": endpoint.value,
            "input_file_id": file_id,
            "metadata": metadata,
            "output_expires_s": output_expires_s,
            "model": model or None,
            "errors": [msgspec.structs.asdict(error) for error in errors],
        }
        if errors:
            return world.submit_failed(id_prefix="batch_", dialect=DIALECT, sheet=sheet)
        sheet["output_file_id"] = world.new_id("file-")
        sheet["error_file_id"] = world.new_id("file-")
        return world.submit(id_prefix="batch_", dialect=DIALECT, model=model, rows=rows, sheet=sheet)


def status_of(world: World, batch: Batch, now: datetime) -> Status:
    """Return where a batch is."""
    settings = world.settings
    if now < batch.created_at + timedelta(seconds=settings.validation_s):
        cancelled_early = batch.life is not None and batch.life.cancel_at is not None
        if not cancelled_early:
            return Status.VALIDATING
    if batch.life is None:
        return Status.FAILED
    end_at, end = batch.life.end
    if now < end_at:
        return Status.IN_PROGRESS if batch.life.cancel_at is None else Status.CANCELLING
    if now < end_at + timedelta(seconds=settings.finalizing_s):
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
        times["cancelling_at"] = batch.life.cancel_at
        end_at, end = batch.life.end
        final_at = end_at + timedelta(seconds=settings.finalizing_s)
        if now >= end_at and end is not End.CANCELLED:
            times["finalizing_at"] = end_at
        if ended:
            times[f"{status.value}_at"] = final_at
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
        "output_file_id": sheet["output_file_id"] if ended and batch.completed else None,
        "error_file_id": sheet["error_file_id"] if ended and (batch.failed or undone) else None,
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
        else:
            message = "The server had an error while processing your request. Sorry about that!"
            fault = {"message": message, "type": "server_error", "param": None, "code": None}
            line["response"] = _reply(world, name, 500, {"error": fault})
        yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _reply(world: World, name: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": world.id_of("req_", name), "body": body}


def _unix(at: datetime) -> int:
    return int(at.timestamp())
