"""An engine in a box: real ledger, real SDKs, a simulated provider, simulated time."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.requests import Endpoint, Request, canonical_json, request_key
from prefect_llm_tiers.core.runs import RequestState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.runner import Done, Runner, Waiting
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.engine.watching import Progress
from prefect_llm_tiers.ledger import open_ledger
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.priors import LiveRate
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ASGIApp, ProviderSpec, open_provider
from prefect_llm_tiers.simulator.account import Account
from prefect_llm_tiers.simulator.clock import SimulatedClock
from prefect_llm_tiers.simulator.settings import WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation

START = datetime(2026, 11, 21, 22, tzinfo=UTC)


def ticking() -> Callable[[], datetime]:
    """Return a wall clock that goes on by a second at every look."""
    looks = itertools.count()
    return lambda: START + timedelta(seconds=next(looks))


MODELS = {Dialect.OPENAI: "gpt-6-luna", Dialect.ANTHROPIC: "claude-haiku-5-5"}
EMBEDDER = "text-embedding-3-small"
ENDPOINTS = {Dialect.OPENAI: Endpoint.RESPONSES, Dialect.ANTHROPIC: Endpoint.MESSAGES}

Accept = Callable[[str], str | None]


def any_text(text: str) -> str | None:
    """Take every answer."""
    return None


@dataclass
class Notes:
    """A watcher that remembers."""

    plans: list[Plan] = field(default_factory=list)
    switches: list[tuple[Tier | None, Tier, datetime]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    harvests: list[tuple[int, int, int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    def planned(self, plan: Plan) -> None:
        self.plans.append(plan)

    def submitted(self, batch: Any) -> None:
        self.batches.append(batch.id)

    def switched(self, *, step: str, before: Tier | None, after: Tier, at: datetime, reason: str) -> None:
        self.switches.append((before, after, at))

    def settled(self, batch: Any, *, kept: int, released: int) -> None:
        self.harvests.append((batch.id, kept, released))

    def noticed(self, message: str) -> None:
        self.notices.append(message)

    def progressed(self, progress: Progress) -> None:
        self.progress.append(progress)


@dataclass
class Box:
    """One world and one ledger; `process` plays one process's part in a step run."""

    ledger: Ledger
    settings: WorldSettings = field(default_factory=WorldSettings)
    clock: SimulatedClock = field(default_factory=lambda: SimulatedClock(START, ticking()))
    app: ASGIApp | None = None

    def __post_init__(self) -> None:
        self.simulation = Simulation(self.settings, self.clock)
        self.served: ASGIApp = self.app or self.simulation.app

    @classmethod
    def at(cls, folder: Path, **settings: Any) -> Self:
        """Return a box with a new ledger in a folder."""
        return cls(ledger=open_ledger(folder / "ledger.db"), settings=WorldSettings(**settings))

    @property
    def account(self) -> Account:
        """What the provider counted."""
        return self.simulation.account()

    def process(self, owner: str, work: "Callable[[Process], Awaitable[Any]]", **parameters: Any) -> Any:
        """Run `work` as a process of its own: its own client, spool and runner."""
        return self.clock.run(self.start(owner, work, **parameters), name=owner)

    def together(self, *runs: "Coroutine[Any, Any, Any]") -> list[Any]:
        """Run processes made with `start` at the same time, on one clock."""

        async def main() -> list[Any]:
            return await asyncio.gather(*runs)

        return self.clock.run(main(), name="together")

    async def start(self, owner: str, work: "Callable[[Process], Awaitable[Any]]", **parameters: Any) -> Any:
        """Play one process.

        Args:
            owner: Its name.
            work: What it does.
            **parameters: `dialect`, `endpoint`, `prompts`, `api_key`, `ledger` and `clock` where they are not the
                box's own; everything else goes to the job.
        """
        dialect = parameters.pop("dialect", Dialect.OPENAI)
        spec = ProviderSpec(
            dialect=dialect,
            api_key=parameters.pop("api_key", "simulated"),
            base_url="http://localhost/v1" if dialect is Dialect.OPENAI else "http://localhost",
        )
        provider = open_provider(spec, app=self.served)
        notes = Notes()
        prompts = parameters.pop("prompts", [f"Document {number}. It tells of things." for number in range(20)])
        ledger, clock = parameters.pop("ledger", self.ledger), parameters.pop("clock", self.clock)
        try:
            endpoint = parameters.pop("endpoint", ENDPOINTS[dialect])
            model = EMBEDDER if endpoint is Endpoint.EMBEDDINGS else MODELS[dialect]
            account = await provider.identify(model)
            with Spool() as spool:
                spool.append(_requests(prompts, dialect, account, endpoint))
                spool.seal()
                capabilities = provider.capabilities(model, endpoint)
                job = _job(spool, dialect, account, capabilities, {"model": model, "endpoint": endpoint} | parameters)
                ports = Ports(
                    ledger=ledger, provider=provider, clock=clock, chance=random.Random(0), watcher=notes, owner=owner
                )
                return await work(Process(job=job, ports=ports, notes=notes, runner=Runner(job, ports)))
        finally:
            await provider.aclose()

    def carry_out(self, owner: str = "first", **parameters: Any) -> "Process":
        """Carry a step run out to its end and return the process with its `done`."""
        finished: Process = self.process(owner, to_the_end, **parameters)
        return finished


@dataclass
class Process:
    """One process's part in a step run."""

    job: Job
    ports: Ports
    notes: Notes
    runner: Runner
    done: Done | None = None
    standing: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


async def to_the_end(process: Process) -> Process:
    """Enter the step run and advance it until it is done."""
    process.runner.enter()
    while isinstance(outcome := await process.runner.advance(), Waiting):
        await process.ports.clock.sleep_until(outcome.until)
    process.done = outcome
    process.keys = process.job.spool.keys(process.job.spool.first)
    return process


async def now_and_then(process: Process) -> Process:
    """Do the same with half an hour between two steps at least, as a run that is woken up by a schedule."""
    process.runner.enter()
    clock = process.ports.clock
    while isinstance(outcome := await process.runner.advance(), Waiting):
        await clock.sleep_until(max(outcome.until, clock.now() + timedelta(minutes=30)))
    process.done = outcome
    process.keys = process.job.spool.keys(process.job.spool.first)
    return process


def until(instant: datetime) -> Callable[[Process], Awaitable[Process]]:
    """Advance a step run until an instant, and drop it there."""

    async def work(process: Process) -> Process:
        process.runner.enter()
        clock = process.ports.clock
        while isinstance(outcome := await process.runner.advance(), Waiting):
            if outcome.until >= instant:
                await clock.sleep_until(instant)
                return process
            await clock.sleep_until(outcome.until)
        process.done = outcome
        return process

    return work


def _requests(prompts: Sequence[Any], dialect: Dialect, account: str, endpoint: Endpoint) -> list[Request]:
    requests = []
    for prompt in prompts:
        if endpoint is Endpoint.EMBEDDINGS:
            body = {"model": EMBEDDER, "input": prompt}
        elif dialect is Dialect.OPENAI:
            body = {"model": MODELS[dialect], "input": prompt, "max_output_tokens": 200}
        else:
            body = {
                "model": MODELS[dialect],
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": 200,
            }
        encoded = canonical_json(body)
        key = request_key(account=account, endpoint=endpoint, body=encoded)
        requests.append(Request(key=key, body=encoded))
    return requests


def _job(spool: Spool, dialect: Dialect, account: str, capabilities: Any, changes: dict[str, Any]) -> Job:
    due_in = changes.pop("due_in", timedelta(hours=8))
    job = Job(
        id="run-1",
        flow_run_id="flow-1",
        step="summary",
        model=MODELS[dialect],
        endpoint=ENDPOINTS[dialect],
        account=account,
        capabilities=capabilities,
        tiers=tuple(tier for tier in Tier if tier in capabilities.tiers),
        spool=spool,
        rows=len(spool),
        due=START + due_in if due_in is not None else None,
        rate=LiveRate(concurrency=16),
        output_tokens=40.0,
        accept=any_text,
    )
    return replace(job, **changes)


def answered(box: Box, process: Process) -> int:
    """Return how many requests have an answer."""
    answers = box.ledger.answers(process.keys, step_run_id=process.job.id)
    return sum(answer is not None and answer.state is RequestState.ANSWERED for answer in answers)


def paid(box: Box, *runs: str) -> Decimal:
    """Return what step runs paid by the ledger."""
    return sum((line.cost_usd for run in runs or ("run-1",) for line in box.ledger.spending(run)), Decimal(0))


def unknown(box: Box) -> int:
    """Return how many attempts may have been billed."""
    return sum(line.billed_unknown for line in box.ledger.spending("run-1"))


def open_attempts(box: Box) -> int:
    """Return how many attempts nobody has said anything of."""
    return sum(line.attempts for line in box.ledger.spending("run-1") if line.outcome == "open")


def documents(number: int) -> list[str]:
    """Return prompts."""
    return [f"Document {n}. It tells of things." for n in range(number)]
