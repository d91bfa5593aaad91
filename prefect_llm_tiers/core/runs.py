"""A step run: one call of one step in one flow run, and where each of its requests stands."""

import hashlib
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

import msgspec

from prefect_llm_tiers.core.outcomes import Usage
from prefect_llm_tiers.core.tiers import Tier

__all__ = [
    "Answer",
    "Entry",
    "Event",
    "Lease",
    "Recorded",
    "RequestState",
    "Spending",
    "Standing",
    "StepRun",
    "StepRunState",
    "step_run_id",
]


def step_run_id(flow_run_id: str, step: str, run_key: str) -> str:
    """Return the id under which every process of one run finds the same step run.

    Args:
        flow_run_id: Prefect's flow run id, or another name for the run that survives a restart.
        step: Name of the step.
        run_key: The caller's key, or the call's ordinal among the calls of this step in the run.
    """
    return hashlib.sha256(f"{flow_run_id}\x1f{step}\x1f{run_key}".encode()).hexdigest()[:32]


class StepRunState(StrEnum):
    """Where a step run is."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    """More rows failed than allowed; the next entry asks those again."""


class RequestState(StrEnum):
    """Where a request stands, seen from one step run."""

    OPEN = "open"
    """To be asked."""
    OUT = "out"
    """In a batch, or in a live call of another run, that may still answer."""
    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"
    """Failed for this step run; another one asks it again."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a process brings when it enters a step run.

    Attributes:
        id: See `step_run_id`.
        flow_run_id: The run it belongs to.
        step: Name of the step.
        key_digest: SHA-256 over the keys in row order.
        requests: Number of distinct keys.
        rows: Number of rows.
        provider: Which provider answers, as `openai` or `groq`.
        account: Organisation and project that own what is asked.
        deadline: Aware instant by which every row must be settled; None without one.
        entered_at: Now, on the run's clock.
    """

    id: str
    flow_run_id: str
    step: str
    key_digest: str
    requests: int
    rows: int
    provider: str
    account: str
    deadline: datetime | None
    entered_at: datetime


class StepRun(msgspec.Struct, frozen=True, kw_only=True):
    """A step run as the ledger holds it; what its first entry stored binds every later one.

    Attributes:
        version: Counts its changes; a guarded update names the version it was decided on.
        first_stamp: Wall-clock instant of the first entry, against which ages of answers are measured.
        plan: The encoded plan, None until one was recorded.
        tier: The tier the run is in; None until one was chosen.
        tier_since: When it entered that tier.
        entries: How many times it was entered.
    """

    id: str
    version: int
    flow_run_id: str
    step: str
    key_digest: str
    requests: int
    rows: int
    provider: str
    account: str
    deadline: datetime | None
    entered_at: datetime
    first_stamp: datetime
    state: StepRunState
    plan: bytes | None = None
    tier: Tier | None = None
    tier_since: datetime | None = None
    entries: int = 1


class Standing(msgspec.Struct, frozen=True, gc=False):
    """Where one request stands, seen from one step run.

    Attributes:
        state: See `RequestState`.
        batch_id: The batch it is out in; None where it is out in a live call of another run.
        tries: How often this step run had it back without a usable answer.
        reason: Why it failed; of an open one, why the last try was of no use.
    """

    state: RequestState
    batch_id: int | None = None
    tries: int = 0
    reason: str | None = None


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The outcome that counts for a request, with the attempt that brought it.

    Attributes:
        text: The answer or the refusal as the model wrote it; None for a failure.
        fresh: True if this step run's own attempt brought it, False if it was paid for before.
    """

    key: str
    state: RequestState
    text: str | None
    reason: str | None
    tier_served: Tier | None
    usage: Usage | None
    cost_usd: Decimal | None
    fresh: bool


class Recorded(msgspec.Struct, frozen=True):
    """What a write of outcomes changed.

    Attributes:
        settled: Requests that got the outcome that counts.
        superseded: Outcomes for requests that had one already; their money is counted all the same.
        unknown: Outcomes that belong to no attempt this ledger knows; kept out.
    """

    settled: int = 0
    superseded: int = 0
    unknown: int = 0


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a step run's account: its attempts of one kind.

    Attributes:
        tier_asked: The tier the attempts were sent in.
        tier_served: The tier the provider served; None where nothing was served.
        outcome: An `OutcomeKind`, `superseded`, `open` (sent, nothing back yet), or `released` (its
            batch ended without a word on it).
        attempts: How many.
        billed: How many of them are on the invoice.
        billed_unknown: How many may be.
        unpriced: How many were billed and have no known price.
        usage: Sum of tokens.
        cost_usd: What the priced ones cost.
        list_usd: What the same tokens cost on the standard tier.
    """

    tier_asked: Tier
    tier_served: Tier | None
    outcome: str
    attempts: int
    billed: int
    billed_unknown: int
    unpriced: int
    usage: Usage
    cost_usd: Decimal
    list_usd: Decimal


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to decide about one thing, until an instant.

    Attributes:
        name: What it is for, as `step:ab12` or `batch:7`.
        owner: Who holds it.
        epoch: Counts its holders; a taken-over lease has another epoch.
        until: When it ends unless renewed.
    """

    name: str
    owner: str
    epoch: int
    until: datetime


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change of state, as the ledger logged it in the transaction that made it."""

    sequence: int
    subject: str
    subject_id: str
    before: str | None
    after: str
    at: datetime
    detail: str | None = None
