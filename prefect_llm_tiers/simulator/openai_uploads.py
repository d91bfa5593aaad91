"""The input file of an OpenAI batch, judged line by line."""

import hashlib
from typing import Any

import msgspec
import orjson

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator.asked import body_digest
from prefect_llm_tiers.simulator.batches import Row, rows_digest
from prefect_llm_tiers.simulator.openai_endpoints import read_request
from prefect_llm_tiers.simulator.openai_errors import DIALECT
from prefect_llm_tiers.simulator.wire import Refused
from prefect_llm_tiers.simulator.world import World

__all__ = ["LineError", "Upload", "judge"]

_LINE_FIELDS = ("custom_id", "method", "url", "body")

_MOST_ERRORS = 100
"""A file with more faults than this reports the first ones only."""


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
    if len(content) > limits.most_bytes(DIALECT):
        most = limits.most_bytes(DIALECT)
        return (
            "",
            [],
            [LineError("file_too_large", f"The batch input file is larger than the limit of {most} bytes.")],
        )
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    if not lines:
        return "", [], [LineError("empty_file", "The batch input file is empty.")]
    if len(lines) > limits.most_requests(DIALECT):
        most = limits.most_requests(DIALECT)
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
    if endpoint is Endpoint.EMBEDDINGS and not errors:
        inputs = sum(row.asked.inputs for row in rows if row.asked is not None)
        if inputs > limits.batch_inputs:
            most = limits.batch_inputs
            message = f"The batch input file contains too many embedding inputs: {inputs}. The limit is {most}."
            errors.append(LineError("too_many_embedding_inputs", message))
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
        return Row(custom_id, body_digest(endpoint.value, body), rejection=(refused.status, refused.body))
    return Row(custom_id, asked.digest, asked=asked)


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """An input file as it was judged.

    Attributes:
        model: The model of its lines; empty where none is known.
        rows: Its requests; they count only where there is no error.
        errors: What is wrong with it.
        digest: Names the bodies in it; for a file with errors, the file.
    """

    model: str
    rows: list[Row]
    errors: list[LineError]
    digest: str


def judge(world: World, endpoint: Endpoint, content: bytes) -> Upload:
    """Judge an input file; the verdict shows when `validating` is over."""
    model, rows, errors = read_lines(world, endpoint, content)
    digest = hashlib.sha256(content).hexdigest() if errors else rows_digest(rows)
    return Upload(model=model, rows=rows, errors=errors, digest=digest)
