"""Looks at a message batch in Anthropic's dialect. Pure: the reply's fields in, values out."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from prefect_llm_tiers.core.batches import BatchCounts, ProviderBatch, ProviderBatchStatus
from prefect_llm_tiers.providers.decoding import decode_any, token_count

__all__ = ["BatchPage", "BatchReply", "provider_batch"]

_NULL = msgspec.Raw(b"null")
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


class BatchReply(msgspec.Struct):
    """A message batch as Anthropic tells it."""

    id: str
    created_at: datetime
    processing_status: str | None = None
    ended_at: datetime | None = None
    cancel_initiated_at: datetime | None = None
    results_url: str | None = None
    request_counts: msgspec.Raw = _NULL


class BatchPage(msgspec.Struct):
    """One page of the list of message batches, newest first."""

    data: list[BatchReply]
    has_more: bool | None = None


def provider_batch(batch: BatchReply) -> ProviderBatch:
    """Return one look at a batch.

    Anthropic knows one end, `ended`; what it was is read from the counts. They stand at zero, all but
    `processing`, until then.
    """
    raw = decode_any(batch.request_counts)
    counts: dict[str, Any] = raw if isinstance(raw, dict) else {}
    try:
        number = {name: token_count(counts, name) for name in _COUNTS}
    except ValueError:
        number = dict.fromkeys(_COUNTS, 0)
    match batch.processing_status:
        case "canceling":
            status = ProviderBatchStatus.CANCELLING
        case "ended" if number["canceled"] > 0:
            status = ProviderBatchStatus.CANCELLED
        case "ended" if number["expired"] > 0:
            status = ProviderBatchStatus.EXPIRED
        case "ended":
            status = ProviderBatchStatus.COMPLETED
        case _:
            status = ProviderBatchStatus.IN_PROGRESS
    return ProviderBatch(
        id=batch.id,
        status=status,
        counts=BatchCounts(total=sum(number.values()), completed=number["succeeded"], failed=number["errored"]),
        created_at=_aware(batch.created_at),
        ended_at=_aware(batch.ended_at) if batch.ended_at is not None and status.ended else None,
        results_ready=status.ended and bool(batch.results_url),
    )


def _aware(at: datetime) -> datetime:
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
