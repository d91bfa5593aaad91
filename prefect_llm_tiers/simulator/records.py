"""What the provider has of every batch, for whoever wants to prove what was submitted."""

from datetime import datetime

import msgspec

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator import anthropic_batches, openai_batches
from prefect_llm_tiers.simulator.openai_errors import DIALECT as OPENAI
from prefect_llm_tiers.simulator.world import World

__all__ = ["LANDING", "BatchRecord", "records"]

LANDING = "landing"
"""Status of a batch whose creation was sent and lands only later."""


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One batch as the provider has it, whether or not it can be seen.

    Attributes:
        id: Its id.
        dialect: `openai` or `anthropic`.
        model: Of its rows; empty where its file failed validation.
        endpoint: Where its rows go.
        created_at: When it was taken; for one that lands late, when it will be.
        status: As its dialect words it, or `landing`.
        cancelled: Whether a cancel was accepted, whatever came of it.
        rows: How many requests it holds; none where it failed its validation.
        billed_rows: How many of them are billed by now.
        rows_digest: Equal for batches that hold the same bodies, whatever their order and custom_ids.
        metadata: What its sender wrote on it.
    """

    id: str
    dialect: str
    model: str
    endpoint: str
    created_at: datetime
    status: str
    cancelled: bool
    rows: int
    billed_rows: int
    rows_digest: str
    metadata: dict[str, str] | None


def records(world: World) -> list[BatchRecord]:
    """Return a record of every batch, in the order in which they were entered."""
    with world.lock:
        now = world.clock.now()
        found = []
        for batch in world.every_batch():
            if batch.created_at > now:
                status = LANDING
            elif batch.dialect == OPENAI:
                status = openai_batches.status_of(world, batch, now).value
            else:
                status = anthropic_batches.processing_status(batch, now)
            found.append(
                BatchRecord(
                    id=batch.id,
                    dialect=batch.dialect,
                    model=batch.model,
                    endpoint=batch.sheet.get("endpoint", Endpoint.MESSAGES.value),
                    created_at=batch.created_at,
                    status=status,
                    cancelled=batch.life is not None and batch.life.cancel_at is not None,
                    rows=len(batch.rows),
                    billed_rows=batch.completed,
                    rows_digest=batch.digest,
                    metadata=batch.sheet.get("metadata"),
                )
            )
        return found
