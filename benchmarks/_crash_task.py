"""What a process that may be killed does: its part in one step run, with the real engine and SDK over HTTP."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._crash_time import START, ClockSpec, SharedClock
from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.ports import CallFailed, Ledger, Provider
from prefect_llm_tiers.core.requests import Endpoint, Request, canonical_json, request_key
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.looks import DOUBTED_FOR
from prefect_llm_tiers.engine.runner import Done, Runner, Waiting
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.engine.watching import Progress
from prefect_llm_tiers.errors import LLMTiersError
from prefect_llm_tiers.ledger import open_ledger
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.priors import LiveRate
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider

__all__ = ["ENDPOINTS", "MODELS", "Asked", "Report", "Task", "carry_out", "requests_of"]

MODELS = {Dialect.OPENAI: "gpt-6-luna", Dialect.ANTHROPIC: "claude-haiku-5-5"}
ENDPOINTS = {Dialect.OPENAI: Endpoint.RESPONSES, Dialect.ANTHROPIC: Endpoint.MESSAGES}

_IDENTIFY_AGAIN = timedelta(seconds=30)
_SWEEP_AGAIN = timedelta(minutes=1)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a step run asks, and how: the same for every process that carries it out.

    Attributes:
        dialect: What the provider speaks.
        rows: How many rows are asked; row n is the same for everybody.
        due_s: Due time in seconds after `START`; None without one.
        tiers: Tiers that may be used; empty for all.
        concurrency: Live calls in flight at most.
        batch_requests: Most requests of a batch; None for the provider's own limit.
        parse: Whether the step asks for JSON, so that an answer which is none is asked again.
        max_failed: Rows that may fail before the step counts as failed.
        on_miss: What a missed deadline does, as `Job` has it.
    """

    dialect: Dialect
    rows: int = 12
    due_s: float | None = 8 * 3600.0
    tiers: tuple[Tier, ...] = ()
    concurrency: int = 4
    batch_requests: int | None = None
    parse: bool = False
    max_failed: int = 0
    on_miss: str = "finish"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One process's part.

    Attributes:
        asked: The step run.
        run: Its id; another one is another flow run's.
        clock: The shared time.
        slot: The process's own in it.
        base_url: The provider.
        ledger: URL or path.
        report: File that tells what came of it; a process that was killed leaves none.
        owner: Name under which it holds leases.
        sweep: Whether it stays until nothing is out at the provider any more.
    """

    asked: Asked
    run: str
    clock: ClockSpec
    slot: int
    base_url: str
    ledger: str
    report: str
    owner: str
    sweep: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says at its end.

    Attributes:
        error: Name of the error that ended it, None where it came to its end.
        failed: Rows that failed.
        reasons: Why, by reason.
        switches: Tiers it went to.
        notices: What it told its watcher.
    """

    error: str | None = None
    failed: int = 0
    reasons: dict[str, int] = {}
    switches: list[Tier]
    notices: list[str]


@dataclass
class _Notes:
    """A watcher that remembers what is worth a look when a case fails."""

    switches: list[Tier] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def planned(self, plan: Plan) -> None:
        """Nothing to keep."""

    def submitted(self, batch: Batch) -> None:
        """Nothing to keep."""

    def settled(self, batch: Batch, *, kept: int, released: int) -> None:
        self.notices.append(f"batch {batch.id} settled as {batch.state}: {kept} kept, {released} released")

    def switched(self, *, step: str, before: Tier | None, after: Tier, at: datetime, reason: str) -> None:
        self.switches.append(after)

    def noticed(self, message: str) -> None:
        self.notices.append(message)

    def progressed(self, progress: Progress) -> None:
        """Nothing to keep."""


def _prompts(rows: int) -> list[str]:
    """Return what is asked about each row."""
    return [f"Document {number}. It tells of things that differ from those in the others." for number in range(rows)]


def requests_of(asked: Asked, account: str) -> list[Request]:
    """Return the requests of a step run, in row order."""
    dialect, parse = asked.dialect, asked.parse
    model, endpoint = MODELS[dialect], ENDPOINTS[dialect]
    made = []
    for prompt in _prompts(asked.rows):
        body: dict[str, Any] = (
            {"model": model, "input": prompt, "max_output_tokens": 200}
            if dialect is Dialect.OPENAI
            else {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 200}
        )
        if parse and dialect is Dialect.OPENAI:
            body["text"] = {"format": {"type": "json_schema", "name": "label", "strict": True, "schema": _SCHEMA}}
        elif parse:
            body["output_config"] = {"format": {"type": "json_schema", "schema": _SCHEMA}}
        encoded = canonical_json(body)
        made.append(Request(key=request_key(account=account, endpoint=endpoint, body=encoded), body=encoded))
    return made


_SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["api", "howto"]}},
    "required": ["topic"],
    "additionalProperties": False,
}


def carry_out(task: dict[str, Any]) -> None:
    """Carry a task out and write its report."""
    told = msgspec.convert(task, Task)
    clock = SharedClock(told.clock, told.slot)
    report = clock.run(_carry_out(told, clock), name=told.owner)
    Path(told.report).write_bytes(msgspec.json.encode(report))
    clock.close()


async def _carry_out(task: Task, clock: SharedClock) -> Report:
    asked = task.asked
    base_url = f"{task.base_url}/v1" if asked.dialect is Dialect.OPENAI else task.base_url
    provider = open_provider(ProviderSpec(dialect=asked.dialect, api_key="simulated", base_url=base_url))
    ledger = open_ledger(task.ledger)
    notes = _Notes()
    try:
        account = await _identify(provider, asked, clock)
        with Spool() as spool:
            spool.append(requests_of(asked, account))
            spool.seal()
            ports = Ports(
                ledger=ledger,
                provider=provider,
                clock=clock,
                chance=random.Random(task.owner),
                watcher=notes,
                owner=task.owner,
            )
            job = _job(task, provider, account, spool)
            outcome = await _to_the_end(Runner(job, ports), clock)
            while task.sweep and (left := _left(ledger, clock.now())):
                looks = [batch.next_poll_at for batch in left if batch.next_poll_at is not None]
                await clock.wait_until(max(min(looks, default=clock.now()), clock.now() + _SWEEP_AGAIN))
                outcome = await _to_the_end(Runner(job, ports), clock)
    except LLMTiersError as error:
        return Report(error=type(error).__name__, switches=notes.switches, notices=[*notes.notices, str(error)])
    finally:
        await provider.aclose()
        ledger.close()
    return Report(failed=outcome.failed, reasons=outcome.reasons, switches=notes.switches, notices=notes.notices)


def _left(ledger: Ledger, now: datetime) -> list[Batch]:
    """Return the batches that somebody still has to look after, those that may come in once more among them."""
    return [*ledger.live_batches(), *ledger.doubted(since=now - DOUBTED_FOR)]


async def _to_the_end(runner: Runner, clock: SharedClock) -> Done:
    runner.enter()
    while isinstance(outcome := await runner.advance(), Waiting):
        await clock.wait_until(outcome.until)
    return outcome


async def _identify(provider: Provider, asked: Asked, clock: SharedClock) -> str:
    """Return the account; a provider that is down for a moment is asked again, as a flow's retry would."""
    while True:
        try:
            return await provider.identify(MODELS[asked.dialect])
        except CallFailed:
            await clock.wait_until(clock.now() + _IDENTIFY_AGAIN)


def _job(task: Task, provider: Provider, account: str, spool: Spool) -> Job:
    asked = task.asked
    model, endpoint = MODELS[asked.dialect], ENDPOINTS[asked.dialect]
    capabilities = provider.capabilities(model, endpoint)
    if asked.batch_requests is not None and capabilities.batch is not None:
        limits = msgspec.structs.replace(capabilities.batch, requests=asked.batch_requests)
        capabilities = msgspec.structs.replace(capabilities, batch=limits)
    return Job(
        id=task.run,
        flow_run_id=f"flow-of-{task.run}",
        step="summary",
        model=model,
        endpoint=endpoint,
        account=account,
        capabilities=capabilities,
        tiers=tuple(tier for tier in Tier if tier in capabilities.tiers and tier in (asked.tiers or tuple(Tier))),
        spool=spool,
        rows=len(spool),
        due=None if asked.due_s is None else START + timedelta(seconds=asked.due_s),
        infeasible="best_effort",
        on_miss=asked.on_miss,
        max_failed=asked.max_failed,
        rate=LiveRate(concurrency=asked.concurrency),
        output_tokens=40.0,
        accept=_accept_json if asked.parse else lambda _: None,
    )


def _accept_json(text: str) -> str | None:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return "not_json"
    return None
