"""What the engine is given for one step run."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.ports import Capabilities, Chance, Clock, Ledger, Provider
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.engine.watching import Watcher
from prefect_llm_tiers.planning.priors import LiveRate

__all__ = ["Job", "LaterStep", "Ports"]


class LaterStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step that runs after this one, as far as the plan needs to know it.

    Attributes:
        name: Its name.
        provider: The price book's provider id.
        model: The model it asks.
        tiers: Tiers it may use, already cut down to what is offered.
        after: Names of the steps it needs.
        rate: How fast its account may go.
        window: Completion window of its batches; None where it has none.
        cancel: The longest that leaving a batch takes.
        input_tokens: Of an average request.
        output_tokens: Of an average answer.
    """

    name: str
    provider: str
    model: str
    tiers: tuple[Tier, ...]
    after: tuple[str, ...]
    rate: LiveRate
    window: timedelta | None
    cancel: timedelta
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The outside world of a step run.

    Attributes:
        ledger: What survives.
        provider: Who answers; bound to the loop that the run lives in.
        clock: Time.
        chance: Randomness, for jitter.
        watcher: Who is told.
        owner: Name under which this process holds leases; another for every process.
    """

    ledger: Ledger
    provider: Provider
    clock: Clock
    chance: Chance
    watcher: Watcher
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One step run to carry out.

    Attributes:
        id: See `core.runs.step_run_id`.
        flow_run_id: The run it belongs to.
        step: The step's name.
        model: The model to ask.
        endpoint: The path to ask.
        account: Organisation and project, from `Provider.identify`.
        capabilities: What the provider offers for the model.
        tiers: Tiers that may be used.
        spool: The requests.
        rows: Rows of the frame, also those that are not asked.
        deadline: The step's own deadline; None without one.
        due: The chain's due time; None without one.
        on_time: Chance of being on time that is asked for.
        infeasible: `raise` or `best_effort`.
        on_miss: `finish` or `raise`.
        on_input_change: `raise` or `ask`.
        samples: Requests that a row has, one after the other in the spool.
        unasked: Rows that failed before they could be asked.
        max_failed: Rows that may fail before the step counts as failed.
        max_attempts: How often a row is asked whose answers are of no use.
        reuse_for: Greatest age of answers that were there before this step run; None reuses none of them.
        min_saving_usd: Least saving for which a cheap tier is used.
        later: Steps that come after.
        rate: How fast the account may go.
        output_tokens: Expected tokens of an answer.
        enqueued_tokens: Input tokens that all unfinished batches of the model may hold together; None: not known.
        accept: Returns None for an answer that can be used, or the reason why not.
    """

    id: str
    flow_run_id: str
    step: str
    model: str
    endpoint: Endpoint
    account: str
    capabilities: Capabilities
    tiers: tuple[Tier, ...]
    spool: Spool
    rows: int
    rate: LiveRate
    accept: Callable[[str], str | None]
    deadline: datetime | None = None
    due: datetime | None = None
    on_time: float = 0.99
    infeasible: str = "raise"
    on_miss: str = "finish"
    on_input_change: str = "raise"
    samples: int = 1
    unasked: int = 0
    max_failed: int = 0
    max_attempts: int = 3
    reuse_for: timedelta | None = timedelta(days=30)
    min_saving_usd: Decimal = Decimal(0)
    later: tuple[LaterStep, ...] = ()
    output_tokens: float = 256.0
    enqueued_tokens: int | None = None
