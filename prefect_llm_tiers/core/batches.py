"""The life of a batch: which states there are, and which may follow which."""

from datetime import datetime
from enum import StrEnum

import msgspec

from prefect_llm_tiers.core.tiers import Tier

__all__ = [
    "ENDED_STATES",
    "LIVE_STATES",
    "TRANSITIONS",
    "Batch",
    "BatchCounts",
    "BatchState",
    "ProviderBatch",
    "ProviderBatchStatus",
]


class BatchState(StrEnum):
    """Where a batch is, as this ledger knows it."""

    PLANNED = "planned"
    """Its rows are chosen; nothing was sent."""
    SUBMITTING = "submitting"
    """The intent to send is committed. After a crash it means *unknown*: sent or not, nobody here can say."""
    IN_PROGRESS = "in_progress"
    """The provider confirmed it."""
    CANCELLING = "cancelling"
    """We asked the provider to stop; it may still finish rows, which are billed."""
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    OVERDUE = "overdue"
    """Still out an hour after its window: its rows are released, it stays watched."""
    SETTLED = "settled"
    """Harvested: every id that was sent has its outcome."""
    DISCARDED = "discarded"
    """Proven never to have reached the provider, or given up before it was sent: its rows are released."""


TRANSITIONS: dict[BatchState, frozenset[BatchState]] = {
    BatchState.PLANNED: frozenset({BatchState.SUBMITTING, BatchState.DISCARDED}),
    # submitting -> planned only when the provider's complete list proved it absent.
    BatchState.SUBMITTING: frozenset(
        {
            BatchState.IN_PROGRESS,
            BatchState.PLANNED,
            BatchState.OVERDUE,
            BatchState.DISCARDED,
        }
    ),
    BatchState.IN_PROGRESS: frozenset(
        {
            BatchState.CANCELLING,
            BatchState.COMPLETED,
            BatchState.FAILED,
            BatchState.EXPIRED,
            BatchState.CANCELLED,
            BatchState.OVERDUE,
        }
    ),
    # A cancel may come too late, so every end can follow it.
    BatchState.CANCELLING: frozenset(
        {
            BatchState.COMPLETED,
            BatchState.FAILED,
            BatchState.EXPIRED,
            BatchState.CANCELLED,
            BatchState.OVERDUE,
        }
    ),
    BatchState.OVERDUE: frozenset(
        {
            BatchState.COMPLETED,
            BatchState.FAILED,
            BatchState.EXPIRED,
            BatchState.CANCELLED,
            BatchState.DISCARDED,
        }
    ),
    BatchState.COMPLETED: frozenset({BatchState.SETTLED}),
    BatchState.FAILED: frozenset({BatchState.SETTLED}),
    BatchState.EXPIRED: frozenset({BatchState.SETTLED}),
    BatchState.CANCELLED: frozenset({BatchState.SETTLED}),
    BatchState.SETTLED: frozenset(),
    BatchState.DISCARDED: frozenset(),
}
"""Which state may follow which; the ledger refuses every other step."""

ENDED_STATES = frozenset({BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED})
"""Ended at the provider, not yet harvested."""

LIVE_STATES = frozenset(BatchState) - {BatchState.SETTLED, BatchState.DISCARDED}
"""States in which somebody still has to look after the batch."""


class ProviderBatchStatus(StrEnum):
    """What a provider says of a batch, in words that fit all of them."""

    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will be done or billed."""
        return self not in (ProviderBatchStatus.IN_PROGRESS, ProviderBatchStatus.CANCELLING)


class BatchCounts(msgspec.Struct, frozen=True, gc=False):
    """Rows of a batch by what the provider says of them."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class ProviderBatch(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a batch, as the provider tells it.

    Attributes:
        id: The provider's id.
        status: Its status, translated.
        counts: Rows so far; Anthropic tells zeros until the end.
        created_at: When the provider took it.
        ended_at: When it ended, None while it runs or where the provider does not say.
        token: The token from the batch's metadata; None where the provider has no metadata.
        input_file_id: The file it was made from; None where the provider has no files.
        error_codes: Codes of a batch that failed as a whole, as `token_limit_exceeded`.
        results_ready: Whether every result file that the counts promise can be read.
    """

    id: str
    status: ProviderBatchStatus
    counts: BatchCounts
    created_at: datetime
    ended_at: datetime | None = None
    token: str | None = None
    input_file_id: str | None = None
    error_codes: tuple[str, ...] = ()
    results_ready: bool = False


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the ledger holds it.

    Attributes:
        id: The ledger's number for it.
        version: Counts its changes; a guarded update names the version it was decided on.
        state: See `BatchState`.
        step_run_id: The step run that packed it; others may be attached.
        provider: Which provider carries it, as `openai` or `groq`.
        account: Organisation and project that own it.
        model: The model all its rows ask.
        endpoint: The path all its rows go to.
        tier: Always `Tier.BATCH` today; kept so that a ledger says what it paid for.
        token: Marks everything that this submission sends.
        submission: How many times it was submitted; a new submission bears a new token.
        rows: Number of requests in it.
        input_file_id: The uploaded file, where the provider has files.
        provider_batch_id: The provider's id, None until it is known.
        counts: The provider's last word on its progress.
        error_codes: Codes of a batch that failed as a whole.
        created_at: When it was planned, on the run's clock.
        submitting_at: When the intent was committed.
        submitted_at: When the provider confirmed it.
        cancel_at: When its cancel was asked for.
        ended_at: When the provider ended it.
        next_poll_at: Not to be looked at before this instant.
        polls: How often it was looked at.
        doubtful: A submission of it was once not confirmed at once, so that the provider may have it more than once.
        copy_of: The batch that this is another copy of, taken by the provider from the same submission or from
            an earlier one that came in late; None for a batch of its own.
        input_tokens: Estimated input tokens of all its requests, by the run that packed it; None: not known.
    """

    id: int
    version: int
    state: BatchState
    step_run_id: str
    provider: str
    account: str
    model: str
    endpoint: str
    tier: Tier = Tier.BATCH
    token: str
    submission: int
    rows: int
    input_file_id: str | None = None
    provider_batch_id: str | None = None
    counts: BatchCounts = BatchCounts()
    error_codes: tuple[str, ...] = ()
    created_at: datetime
    submitting_at: datetime | None = None
    submitted_at: datetime | None = None
    cancel_at: datetime | None = None
    ended_at: datetime | None = None
    next_poll_at: datetime | None = None
    polls: int = 0
    doubtful: bool = False
    copy_of: int | None = None
    input_tokens: int | None = None
