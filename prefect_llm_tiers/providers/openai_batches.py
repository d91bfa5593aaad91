"""Looks at a batch in OpenAI's dialect. Pure: the reply's fields in, values out."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from prefect_llm_tiers.core.batches import BatchCounts, ProviderBatch, ProviderBatchStatus
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.providers.decoding import as_text, decode_any, token_count
from prefect_llm_tiers.providers.error_bodies import clean_code
from prefect_llm_tiers.providers.lines import LineForm

__all__ = ["METADATA_NAME", "BatchPage", "BatchReply", "line_form", "provider_batch"]

METADATA_NAME = "llm_tiers_token"
"""The pair of a batch's metadata that carries its token."""

_NULL = msgspec.Raw(b"null")


class BatchReply(msgspec.Struct):
    """A batch as OpenAI tells it."""

    id: str
    created_at: int | float
    status: str | None = None
    completed_at: Any = None
    failed_at: Any = None
    expired_at: Any = None
    cancelled_at: Any = None
    input_file_id: Any = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: msgspec.Raw = _NULL
    metadata: msgspec.Raw = _NULL
    errors: msgspec.Raw = _NULL


class BatchPage(msgspec.Struct):
    """One page of the list of batches, newest first."""

    data: list[BatchReply]
    has_more: bool | None = None


_STATUSES = {
    "cancelling": ProviderBatchStatus.CANCELLING,
    "completed": ProviderBatchStatus.COMPLETED,
    "failed": ProviderBatchStatus.FAILED,
    "expired": ProviderBatchStatus.EXPIRED,
    "cancelled": ProviderBatchStatus.CANCELLED,
}


def line_form(endpoint: Endpoint) -> LineForm:
    """Return the form of a batch's lines, each of which says what to post where."""
    url = endpoint.value.encode()
    return LineForm(b'{"custom_id":"', b'","method":"POST","url":"' + url + b'","body":', b"}\n")


def provider_batch(batch: BatchReply) -> ProviderBatch:
    """Return one look at a batch.

    A status that nobody knows counts as running, so that the batch is looked at again. `results_ready` is
    false while the counts tell of finished rows and the output file is not named yet: a batch may be
    `completed` for a poll or two before it is.

    Raises:
        ValueError: The creation time is none.
    """
    # validating, in_progress, finalizing
    status = _STATUSES.get(batch.status or "", ProviderBatchStatus.IN_PROGRESS)
    counts = _counts(decode_any(batch.request_counts))
    metadata = decode_any(batch.metadata)
    errors = decode_any(batch.errors)
    listed = errors.get("data") if isinstance(errors, dict) else None
    told = listed if isinstance(listed, list) else []
    codes = [clean_code(error.get("code")) for error in told if isinstance(error, dict)]
    ended = (batch.completed_at, batch.failed_at, batch.expired_at, batch.cancelled_at)
    return ProviderBatch(
        id=batch.id,
        status=status,
        counts=counts,
        created_at=_instant(batch.created_at),
        ended_at=next((_instant(at) for at in ended if isinstance(at, int | float) and status.ended), None),
        token=as_text(metadata.get(METADATA_NAME)) if isinstance(metadata, dict) else None,
        input_file_id=as_text(batch.input_file_id),
        error_codes=tuple(dict.fromkeys(code for code in codes if code)),
        results_ready=status.ended and (counts.completed == 0 or bool(batch.output_file_id)),
    )


def _instant(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, tz=UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(f"No instant: {seconds!r}") from error


def _counts(counts: object) -> BatchCounts:
    if not isinstance(counts, dict):
        return BatchCounts()
    try:
        return BatchCounts(
            total=token_count(counts, "total"),
            completed=token_count(counts, "completed"),
            failed=token_count(counts, "failed"),
        )
    except ValueError:
        return BatchCounts()
