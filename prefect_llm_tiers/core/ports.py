"""What the engine needs of the world: time, chance, a provider, a ledger, somebody who watches.

Everything that reads a clock, draws a number or leaves the process stands behind one of these. Each has
a contract suite under `tests/contracts/` that every implementation passes.
"""

from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import msgspec

from prefect_llm_tiers.core.batches import Batch, BatchState, ProviderBatch
from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.requests import Endpoint, Request
from prefect_llm_tiers.core.runs import (
    Answer,
    Entry,
    Event,
    Lease,
    Recorded,
    Spending,
    Standing,
    StepRun,
    StepRunState,
)
from prefect_llm_tiers.core.tiers import Tier

__all__ = [
    "BatchLimits",
    "BatchLine",
    "CallFailed",
    "Capabilities",
    "Chance",
    "Clock",
    "EncodedLines",
    "FailureKind",
    "FailureMeaning",
    "Ledger",
    "Provider",
    "ResultLine",
]

T = TypeVar("T")


class Clock(Protocol):
    """Time, and the loops that live in it.

    The clock makes the event loops, so that every timer in them, the SDKs' own included, is in its time.
    """

    def now(self) -> datetime:
        """Return the instant deadlines are measured in: aware, UTC."""
        ...

    def wall(self) -> datetime:
        """Return the instant ages of answers are stamped with: aware, UTC.

        Equal to `now` but where time is simulated: an answer bought in simulated time is as old as
        the real day on which it was bought.
        """
        ...

    async def sleep_until(self, when: datetime) -> None:
        """Return at `when`, at once if it is past. Call only inside `run`."""
        ...

    def run(self, main: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run a coroutine to its end on a loop of this clock, in the calling thread.

        Args:
            main: What to run.
            name: Stable name of the participant; it breaks ties where time is simulated.

        Raises:
            RuntimeError: The calling thread runs an event loop already.
        """
        ...


class Chance(Protocol):
    """Randomness, for jitter. `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number between `a` and `b`."""
        ...


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch of a provider may hold.

    Attributes:
        requests: Most requests.
        bytes: Most bytes of the encoded upload.
        inputs: Most embedding inputs; None where nothing is embedded.
        window: The completion window: when the provider gives up.
        cancel: The longest a cancel takes to become final.
        reports_progress: Whether counts move while the batch runs.
        metadata: Whether a batch bears its token where the list of batches shows it.
    """

    requests: int
    bytes: int
    inputs: int | None = None
    window: timedelta
    cancel: timedelta
    reports_progress: bool
    metadata: bool = True


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider offers for one model and endpoint.

    Attributes:
        tiers: The tiers that may be asked for.
        batch: Limits of a batch; None where there is none.
        flex_timeout: How long a flex call may stay silent.
        live_timeout: How long any other live call may stay silent.
        ratios: What a tier costs over standard, as the provider publishes it; for planning models without a price.
        free: Whether nothing is ever billed.
    """

    tiers: frozenset[Tier]
    batch: BatchLimits | None
    flex_timeout: timedelta = timedelta(seconds=900)
    live_timeout: timedelta = timedelta(seconds=600)
    ratios: Mapping[Tier, Decimal] = {}
    free: bool = False


FailureKind = Literal[
    "capacity",
    "rate_limit",
    "quota",
    "rejected",
    "policy",
    "auth",
    "tier_unsupported",
    "timeout",
    "connection",
    "server",
]


class FailureMeaning(msgspec.Struct, frozen=True, kw_only=True):
    """What an unsuccessful reply means for the one who sent it.

    Attributes:
        kind: `capacity` (the provider is full), `rate_limit` (the account's own), `quota`, `rejected`
            (this request, for ever), `policy` (this request, for what it says), `auth`, `tier_unsupported`,
            `timeout`, `connection`, `server`.
        reason: The provider's code, or ours where it has none.
        retry_after_s: Seconds that the provider asks to wait.
        maybe_billed: The request may have reached the model before the reply was lost.
    """

    kind: FailureKind
    reason: str
    retry_after_s: float | None = None
    maybe_billed: bool = False


class CallFailed(Exception):
    """A call ended without a usable reply; a value inside the engine, never shown to users."""

    def __init__(self, meaning: FailureMeaning) -> None:
        super().__init__(meaning)
        self.meaning = meaning


class BatchLine(msgspec.Struct, frozen=True, gc=False):
    """One request of a batch on its way out."""

    custom_id: str
    body: bytes


@runtime_checkable
class EncodedLines(Protocol):
    """Lines of a batch that can be had encoded, many at a time: at a third of what one after the other takes."""

    def encoded(self, before: bytes, middle: bytes, after: bytes) -> AsyncIterator[bytes]:
        """Yield all lines, some at a time, each as `before`, custom_id, `middle`, body, `after`."""
        ...


class ResultLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a batch's results.

    Attributes:
        custom_id: What the line says it answers; None where it cannot be read.
        outcome: What it means, `key` filled in from the custom_id: of a line that is broken behind its id RETRY,
            billed or not nobody knows. None where the id is missing or not of our making.
    """

    custom_id: str | None
    outcome: Outcome | None


class Provider(Protocol):
    """One account at one provider, over its official SDK with the SDK's retries off.

    Every method that reaches the provider raises `CredentialsRejected` on 401 and 403, `UnknownModel`
    where the model is not offered, and otherwise `CallFailed`, whose meaning tells the rest. None
    retries: that is the engine's, after it has looked at what may have been paid. Prices are not known
    here: outcomes leave with `usage` and `tier_served`, and without `cost_usd`.
    """

    @property
    def name(self) -> str:
        """Who answers, as the ledger and the price book know it: `openai`, `anthropic`, `groq`."""
        ...

    def capabilities(self, model: str, endpoint: Endpoint) -> Capabilities:
        """Return what may be asked of this model."""
        ...

    async def identify(self, model: str) -> str:
        """Return the account as the provider names it, after checking key and model with one free call."""
        ...

    async def call(self, request: Request, *, endpoint: Endpoint, tier: Tier, timeout_s: float) -> Outcome:
        """Ask one request in one tier and return its outcome: answer, refusal or permanent failure.

        A rejected request (400) is an outcome, as are a refusal and an answer cut at its length.
        """
        ...

    async def upload(
        self,
        lines: AsyncIterable[BatchLine],
        *,
        model: str,
        endpoint: Endpoint,
        token: str,
        expires_after: timedelta,
    ) -> str | None:
        """Upload a batch's requests and return the file's id; None where the provider has no files.

        A provider without files keeps the lines for `create_batch`, which must follow.
        """
        ...

    async def create_batch(
        self,
        *,
        input_file_id: str | None,
        lines: AsyncIterable[BatchLine],
        model: str,
        endpoint: Endpoint,
        token: str,
        timeout_s: float,
    ) -> ProviderBatch:
        """Submit a batch once. `lines` is read only where the provider has no files."""
        ...

    async def retrieve_batch(self, batch_id: str) -> ProviderBatch:
        """Look at a batch."""
        ...

    async def cancel_batch(self, batch_id: str) -> ProviderBatch:
        """Ask for a batch to be stopped; an ended one is returned as it is."""
        ...

    def results(self, batch_id: str, *, model: str, endpoint: Endpoint) -> AsyncIterator[ResultLine]:
        """Stream the result lines of an ended batch, one at a time and in any order."""
        ...

    def list_batches(self, *, since: datetime) -> AsyncIterator[ProviderBatch]:
        """Stream the account's batches, newest first, back to those created at `since`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class Ledger(Protocol):
    """What survives. Every method is one transaction, committed when it returns.

    *Decisions* take the lease they are made under and raise `LeaseLost` if it is no longer held, and
    `IllegalTransition` if the version they were decided on is no longer the current one or the
    lifecycle forbids the step; nothing is changed then. *Facts* need no lease: a process that lost
    its own may still write down what came back.

    `stamp` is wall-clock time, for the ages of answers; `at` and `now` are on the run's clock.
    """

    @property
    def ledger_id(self) -> str:
        """The random id drawn when the ledger was made."""
        ...

    # Leases

    def acquire(self, name: str, *, owner: str, now: datetime, until: datetime) -> Lease | None:
        """Take a lease that is free, has ended by `now`, or is `owner`'s already; None if another holds it."""
        ...

    def lease(self, name: str) -> Lease | None:
        """Return who holds a lease, ended or not."""
        ...

    def renew(self, lease: Lease, *, until: datetime) -> Lease:
        """Extend a lease that is still held under the same epoch. Raises `LeaseLost`."""
        ...

    def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens if it was lost."""
        ...

    # Step runs

    def enter(self, entry: Entry, *, stamp: datetime) -> StepRun:
        """Create the step run, or return the stored one with its `entries` counted up.

        The stored row is returned as it is also where the digests differ: what that means is the
        caller's to decide.
        """
        ...

    def step_run(self, run_id: str) -> StepRun | None:
        """Return a step run."""
        ...

    def step_runs_of(self, flow_run_id: str) -> list[StepRun]:
        """Return the step runs of a flow run in the order in which they were first entered."""
        ...

    def step_runs_between(self, since: datetime, until: datetime) -> list[StepRun]:
        """Return the step runs first entered in a period by the wall clock, its end left out, in that order."""
        ...

    def rebase(self, run: StepRun, entry: Entry, *, lease: Lease) -> StepRun:
        """Store a re-entry's digest and counts in the place of the first entry's. A decision."""
        ...

    def record_plan(self, run: StepRun, plan: bytes, *, lease: Lease, at: datetime) -> StepRun:
        """Store a plan; the latest one counts. A decision."""
        ...

    def record_tier(
        self, run: StepRun, tier: Tier, *, lease: Lease, at: datetime, detail: str | None = None
    ) -> StepRun:
        """Store that the run goes on in `tier`; every chunk follows it. A decision, with an event."""
        ...

    def finish(self, run: StepRun, state: StepRunState, *, lease: Lease, at: datetime) -> StepRun:
        """Store the run's end, or reopen a failed one with `RUNNING`. A decision, with an event."""
        ...

    # Requests

    def stand(
        self, keys: Sequence[str], *, step_run_id: str, not_before: datetime | None, now: datetime | None
    ) -> list[Standing]:
        """Tell where each key stands for a step run, in the order of `keys`.

        An answer or refusal stamped before `not_before` does not count (None: any age does). OUT means
        an attempt without outcome in a batch whose state is live and which this step run has not left, or,
        unless `now` is None, a live call of another step run that still holds its lease at `now`.
        FAILED and `tries` count only where they are this step run's own.
        """
        ...

    def answers(self, keys: Sequence[str], *, step_run_id: str) -> list[Answer | None]:
        """Return the outcome that counts for each key, in order; None where there is none.

        Failures are returned only to the step run whose they are.
        """
        ...

    def forget_failures(self, run: StepRun, *, lease: Lease, at: datetime) -> int:
        """Make this step run's failed requests open again with no tries; return how many. A decision."""
        ...

    def reopen(self, keys: Sequence[str], *, run: StepRun, lease: Lease, reason: str) -> int:
        """Set answers aside that this step run's output model cannot read; return how many.

        The attempts that paid for them stay. A decision.
        """
        ...

    def fail(self, failures: Iterable[tuple[str, str]], *, run: StepRun, lease: Lease, stamp: datetime) -> int:
        """Mark open keys as failed for this step run, each with a reason. A decision."""
        ...

    # Calls

    def begin_calls(
        self,
        keys: Sequence[str],
        *,
        run: StepRun,
        tier: Tier,
        lease: Lease,
        at: datetime,
        not_before: datetime | None,
        share: bool = True,
    ) -> list[int | None]:
        """Write down that live calls are about to be sent; return an attempt id for each key. A decision.

        None stands for a key that is not to be asked, because of what happened since the caller looked: it
        was answered (by the rule of `stand`), it is out in a batch that this step run has not left, or,
        unless `share` is false, another step run that holds its lease at `at` has a live call out on it.
        """
        ...

    def record_calls(self, outcomes: Sequence[tuple[int, Outcome]], *, at: datetime, stamp: datetime) -> Recorded:
        """Write down what came of live calls, by attempt id. A fact.

        The first answer of a key stands; a later one is a superseded attempt whose money is counted.
        RETRY leaves the key open and counts a try for the attempt's step run if `counted`; FAILURE fails it for it.
        """
        ...

    def abandon_calls(self, *, run: StepRun, lease: Lease, at: datetime) -> int:
        """Close every live call of a run that has no outcome as `billed_unknown`; return how many.

        Only for one who took the run over: whoever sent them is gone or has lost the lease. A late
        outcome for one of them still counts. A decision.
        """
        ...

    # Batches

    def plan_batch(
        self,
        keys: Sequence[str],
        *,
        run: StepRun,
        provider: str,
        account: str,
        model: str,
        endpoint: str,
        lease: Lease,
        at: datetime,
        input_tokens: int | None = None,
    ) -> Batch:
        """Choose a batch's rows: state PLANNED, an open attempt per key, the run attached. A decision.

        The token is `derived_token(ledger_id, "batch", id, 1)`. A key that is out, as `stand` has it at `at`,
        is an `IllegalTransition`: sending it would pay for it twice. `input_tokens` is what all of it takes of a
        bound on enqueued tokens, as far as the caller can tell.
        """
        ...

    def batch(self, batch_id: int) -> Batch:
        """Return a batch. Raises `LedgerError` if there is none."""
        ...

    def batches_of(self, step_run_id: str, *, left: bool = False) -> list[Batch]:
        """Return the batches a step run made or attached to, oldest first.

        Args:
            step_run_id: The run.
            left: Whether those that it has left are among them.
        """
        ...

    def live_batches(self) -> list[Batch]:
        """Return every batch that somebody still has to look after, oldest first."""
        ...

    def batch_keys(self, batch_id: int) -> Iterator[list[str]]:
        """Stream the keys of a batch in the order they were packed, in chunks of bounded size."""
        ...

    def attach(self, batch_id: int, *, step_run_id: str) -> None:
        """Note that a step run waits for this batch too. A fact."""
        ...

    def waiting_for(self, batch_id: int) -> list[str]:
        """Return the ids of the step runs that wait for a batch: attached, not left, and not at their own end."""
        ...

    def leave(self, batch_id: int, *, run: StepRun, lease: Lease, at: datetime) -> int:
        """Note that a step run no longer waits for a batch; return how many runs still do. A decision."""
        ...

    def advance_batch(
        self,
        batch: Batch,
        state: BatchState,
        *,
        lease: Lease,
        at: datetime,
        input_file_id: str | None = None,
        provider_batch: ProviderBatch | None = None,
        next_poll_at: datetime | None = None,
        detail: str | None = None,
    ) -> Batch:
        """Take a batch to its next state, with an event, under the batch's own lease. A decision.

        SUBMITTING -> PLANNED (proven absent) counts `submission` up and derives a new token. To
        OVERDUE and DISCARDED its open attempts are released: their keys are open again, while a late
        line still counts.
        """
        ...

    def note_batch(
        self,
        batch: Batch,
        *,
        provider_batch: ProviderBatch | None = None,
        input_file_id: str | None = None,
        next_poll_at: datetime | None = None,
        looked: bool = False,
    ) -> Batch:
        """Write down what a look at a batch told, without a change of state. A fact.

        `looked` counts a look that was complete and did not find it; one that did counts by itself. Another
        provider id than the one that is known is a copy and is written down as `note_copy` does.
        """
        ...

    def doubt(self, batch: Batch) -> Batch:
        """Mark a batch as one that the provider may have more than once. A fact, for good."""
        ...

    def tokens(self, batch: Batch) -> list[str]:
        """Return the tokens of every submission of a batch so far, the first one's first."""
        ...

    def note_copy(self, batch: Batch, provider_batch: ProviderBatch, *, token: str, at: datetime) -> Batch:
        """Write down that the provider has a batch a second time, and return the copy as a batch of its own.

        It is IN_PROGRESS, bears `token`, carries the same keys with an attempt each, belongs to the same step
        run, which does not wait for it, and names the batch in `copy_of`. A provider id that the ledger knows
        adds nothing: the batch that bears it is returned. A fact, with an event.
        """
        ...

    def known_provider_batches(self, *, provider: str, since: datetime) -> set[str]:
        """Return the provider ids of all batches planned at `since` or later, whatever became of them."""
        ...

    def doubted(self, *, since: datetime) -> list[Batch]:
        """Return the doubtful batches that are over, planned at `since` or later, oldest first.

        Over is settled or discarded: nobody looks after them any more, and the provider may have one again.
        """
        ...

    def record_results(self, batch: Batch, outcomes: Sequence[Outcome], *, at: datetime, stamp: datetime) -> Recorded:
        """Write down result lines of a batch, by key. A fact, with the rules of `record_calls`.

        A second line for an attempt that has its outcome changes nothing.
        """
        ...

    def settle_batch(self, batch: Batch, *, lease: Lease, at: datetime) -> tuple[Batch, int]:
        """End an ended batch and return how many of its keys had no line. A decision, with an event.

        Those keys are open again, with a try counted unless the batch expired, failed or was cancelled.
        """
        ...

    # Account and history

    def spending(self, step_run_id: str) -> list[Spending]:
        """Return what a step run's attempts came to, one line for each tier and outcome.

        An attempt belongs to the step run that sent it.
        """
        ...

    def failures(self, step_run_id: str) -> dict[str, int]:
        """Return how many requests failed for a step run, by reason."""
        ...

    def observed_batches(
        self, *, provider: str, model: str, account: str | None, now: datetime, limit: int = 500
    ) -> list[ObservedBatch]:
        """Return the newest batches of an account, or of all, that ran or still run, newest first, each once."""
        ...

    def observe_lane(self, lane: ObservedLane, *, step_run_id: str) -> None:
        """Add one visit to what a step run saw of a live tier. A fact."""
        ...

    def observed_lanes(
        self, *, provider: str, model: str, account: str | None, tier: Tier, limit: int = 500
    ) -> list[ObservedLane]:
        """Return what the newest step runs of an account, or of all, saw of a live tier, newest first."""
        ...

    def observed_of(self, step_run_id: str, *, now: datetime) -> tuple[list[ObservedBatch], list[ObservedLane]]:
        """Return what one step run saw: the batches that it made, oldest first, and its live tiers."""
        ...

    def events(self, subject: str, subject_id: str) -> list[Event]:
        """Return what happened to a batch or a step run, in order."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
