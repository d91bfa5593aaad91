"""The body that creates an OpenAI batch."""

from typing import Any

import msgspec

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator.openai_endpoints import BATCH_ENDPOINTS
from prefect_llm_tiers.simulator.openai_errors import openai_error

__all__ = ["Creation", "read_creation"]


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """What a creation asks for."""

    input_file_id: str
    endpoint: Endpoint
    metadata: dict[str, str] | None
    output_expires_s: int | None


def read_creation(body: dict[str, Any]) -> Creation:
    """Read the body of a creation.

    Raises:
        Refused: A field is unknown, missing or out of its range.
    """
    known = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
    for name in body:
        if name not in known:
            raise openai_error(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    for name in known[:3]:
        if not body.get(name):
            raise openai_error(
                400,
                f"Missing required parameter: '{name}'.",
                param=name,
                code="missing_required_parameter",
            )
    endpoint = BATCH_ENDPOINTS.get(body["endpoint"])
    if endpoint is None:
        supported = " and ".join(f"'{name}'" for name in BATCH_ENDPOINTS)
        raise openai_error(
            400,
            f"Invalid value: '{body['endpoint']}'. Supported values are: {supported}.",
            param="endpoint",
            code="invalid_value",
        )
    if body["completion_window"] != "24h":
        raise openai_error(
            400,
            f"Invalid value: '{body['completion_window']}'. Value must be '24h'.",
            param="completion_window",
            code="invalid_value",
        )
    return Creation(
        input_file_id=str(body["input_file_id"]),
        endpoint=endpoint,
        metadata=_metadata(body.get("metadata")),
        output_expires_s=_output_expiry(body.get("output_expires_after")),
    )


def _output_expiry(value: Any) -> int | None:
    if value is None:
        return None
    seconds = value.get("seconds") if isinstance(value, dict) else None
    if (
        not isinstance(value, dict)
        or value.get("anchor") != "created_at"
        or not isinstance(seconds, int)
        or not 3600 <= seconds <= 2_592_000
    ):
        raise openai_error(
            400,
            "Invalid 'output_expires_after': expected anchor 'created_at' and 3600 to 2592000 seconds.",
            param="output_expires_after",
            code="invalid_value",
        )
    return seconds


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    fits = isinstance(value, dict) and len(value) <= 16
    if not fits or not all(
        isinstance(text, str) and len(name) <= 64 and len(text) <= 512 for name, text in value.items()
    ):
        raise openai_error(
            400,
            "Invalid 'metadata': at most 16 pairs of strings, keys up to 64 and values up to 512 characters.",
            param="metadata",
            code="invalid_value",
        )
    return dict(value)
