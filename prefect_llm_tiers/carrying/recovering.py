"""Looking after batches from the command line: which stored provider they belong to, and what became of each."""

import os
import random
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from prefect_llm_tiers.artifacts import SilentWatcher
from prefect_llm_tiers.blocks import ProviderBlock, SimulatedProvider, load_provider, stored_providers
from prefect_llm_tiers.carrying.beside import run_beside
from prefect_llm_tiers.carrying.opened import identify
from prefect_llm_tiers.core.batches import LIVE_STATES, Batch, BatchState
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.engine.caretaker import give_up, recover, withdraw
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.looks import DOUBTED_FOR
from prefect_llm_tiers.engine.system import SystemClock
from prefect_llm_tiers.errors import LedgerError, LLMTiersError

__all__ = ["Found", "cancel_runs", "give_up_batch", "look_again"]

Say = Callable[[str], None]
"""Tells a person something, in a sentence."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at one batch told.

    Attributes:
        batch: Its number in the ledger.
        step: The step it was made for.
        provider: Which one, as `openai` or `groq`.
        account: Organisation and project that own it.
        before: Its state before the look.
        after: Its state now.
        rows: Requests that it carries.
        since: When it was planned.
        next: What happens next.
        open: What keeps it from being resolved: `unknown` (nobody can say whether the provider has it), or
            `no_provider` (no stored block has a key of its account); None for one that is in order.
    """

    batch: int
    step: str
    provider: str
    account: str
    before: str
    after: str
    rows: int
    since: datetime
    next: str
    open: Literal["unknown", "no_provider"] | None = None


class _Teller(SilentWatcher):
    """Says what a person should know, and nothing else."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def noticed(self, message: str) -> None:
        """Say it."""
        self._say(message)


def look_again(ledger: Ledger, providers: Sequence[str], say: Say) -> list[Found]:
    """Look at every batch that is out or unknown, with whatever stored provider its account belongs to.

    Args:
        ledger: The ledger.
        providers: Names of provider blocks; none: all that are stored are tried.
        say: Told what a person should know.

    Raises:
        LLMTiersError: A provider that was named cannot be used.
    """
    looked: dict[int, tuple[Batch, Batch]] = {}
    held: dict[int, datetime] = {}

    async def look(ports: Ports, account: str) -> None:
        for before, after in await recover(ports, account=account):
            looked[before.id] = before, after
            lease = ledger.lease(f"batch:{after.id}")
            if lease is not None and lease.until > ports.clock.now() and after.state in LIVE_STATES:
                held[after.id] = lease.until

    live = ledger.live_batches()
    doubted = ledger.doubted(since=SystemClock().now() - DOUBTED_FOR)
    _with_providers(ledger, [*live, *doubted], providers, look, say)
    found = [
        _found(ledger, before, after, held_until=held.get(after.id))
        for before, after in looked.values()
        # One that was over and still is was looked for again, and there is nothing to tell of it.
        if before.state in LIVE_STATES or after.state is not before.state
    ]
    found += [_found(ledger, batch, batch, reached=False) for batch in live if batch.id not in looked]
    return sorted(found, key=lambda one: one.batch)


def cancel_runs(
    ledger: Ledger, flow_run_ids: Sequence[str], providers: Sequence[str], say: Say, *, keep: bool
) -> list[Found]:
    """Let go of the batches of flow runs that were cancelled; see `caretaker.withdraw`.

    Raises:
        LedgerError: The ledger knows none of the runs.
        LLMTiersError: A provider that was named cannot be used.
    """
    runs = [run for flow_run_id in flow_run_ids for run in ledger.step_runs_of(flow_run_id)]
    if not runs:
        msg = (
            f"This ledger knows no step of flow run {flow_run_ids[0]}. Give the run's id as the Prefect UI shows it, "
            "and the ledger of its steps with --ledger."
        )
        raise LedgerError(msg)
    out = {batch.id: batch for run in runs for batch in ledger.batches_of(run.id) if batch.state in LIVE_STATES}
    reached: set[tuple[str, str]] = set()

    async def let_go(ports: Ports, account: str) -> None:
        reached.add((ports.provider.name, account))
        for flow_run_id in dict.fromkeys(run.flow_run_id for run in runs):
            await withdraw(ports, flow_run_id=flow_run_id, keep=keep, account=account)

    _with_providers(ledger, list(out.values()), providers, let_go, say)
    return [
        _found(ledger, batch, ledger.batch(number), reached=(batch.provider, batch.account) in reached)
        for number, batch in sorted(out.items())
    ]


def give_up_batch(ledger: Ledger, batch_id: int, provider: str | None) -> Found:
    """Decide that a batch of which nobody knows was not taken; see `caretaker.give_up`.

    Args:
        ledger: The ledger.
        batch_id: The batch.
        provider: Block of the provider whose clock counts; by default real time.
    """
    clock = load_provider(provider).clock() if provider is not None else SystemClock()
    before = ledger.batch(batch_id)
    return _found(ledger, before, give_up(ledger, batch_id, owner=_owner(), now=clock.now()))


# Providers


def _with_providers(
    ledger: Ledger,
    batches: Sequence[Batch],
    names: Sequence[str],
    work: Callable[[Ports, str], Coroutine[Any, Any, None]],
    say: Say,
) -> None:
    """Do some work once for each account that batches belong to, with the first block that has a key of it."""
    wanted = {(batch.provider, batch.account) for batch in batches}
    models = {batch.provider: batch.model for batch in batches}
    for name, block in _blocks(names, say) if wanted else ():
        known_as = block.answering().known_as
        if not any(provider == known_as for provider, _ in wanted):
            continue
        try:
            account = _run(ledger, block, models[known_as], wanted=wanted, work=work, say=say)
        except LLMTiersError as error:
            if names:
                raise
            say(f"{name}: {error}")
            continue
        wanted.discard((known_as, account))


def _run(
    ledger: Ledger,
    block: ProviderBlock,
    model: str,
    *,
    wanted: set[tuple[str, str]],
    work: Callable[[Ports, str], Coroutine[Any, Any, None]],
    say: Say,
) -> str:
    clock = block.clock()

    async def main() -> str:
        provider = block.open()
        try:
            account = await identify(provider, model, at=block.host)
            if (provider.name, account) in wanted:
                ports = Ports(
                    ledger=ledger,
                    provider=provider,
                    clock=clock,
                    chance=random.Random(account),  # noqa: S311 (jitter, not a secret)
                    watcher=_Teller(say),
                    owner=_owner(),
                )
                await work(ports, account)
            return account
        finally:
            await provider.aclose()

    return run_beside(lambda _: clock.run(main(), name="recover"), flow_run_id=None, keep=True)


def _blocks(names: Sequence[str], say: Say) -> Iterator[tuple[str, ProviderBlock]]:
    for name in names or stored_providers():
        try:
            block = load_provider(name)
        except LLMTiersError as error:
            if names:
                raise
            say(str(error))
            continue
        if isinstance(block, SimulatedProvider) and not block.base_url:
            # Its world lives in the process that made it; the one that would be made here has seen nothing.
            if names:
                say(f"{name} is simulated inside another process and cannot be asked from here.")
            continue
        yield name, block


def _owner() -> str:
    """Return the name under which this process holds leases."""
    return f"command:{socket.gethostname()}:{os.getpid()}"


# Telling


def _found(
    ledger: Ledger, before: Batch, after: Batch, *, reached: bool = True, held_until: datetime | None = None
) -> Found:
    run = ledger.step_run(after.step_run_id)
    if not reached:
        told = f"no stored provider block has a key of {after.account or 'its account'}: save one, or pass --provider"
    else:
        told = _next(after)
    if held_until is not None:
        # One that died keeps its lease until that ends.
        told = f"in the hands of another process, or of one that died: run this again after {held_until:%H:%M:%SZ}"
    unknown = after.state is BatchState.SUBMITTING and after.provider_batch_id is None
    return Found(
        batch=after.id,
        step=run.step if run is not None else "?",
        provider=after.provider,
        account=after.account,
        before=before.state,
        after=after.state,
        rows=after.rows,
        since=after.created_at,
        next=told,
        open="no_provider" if not reached else "unknown" if unknown else None,
    )


def _next(batch: Batch) -> str:
    """Return what happens next with a batch."""
    match batch.state:
        case BatchState.PLANNED:
            return "not sent; its flow sends it when it is run again, or drops it"
        case BatchState.SUBMITTING:
            looks = f"looked for again from {batch.next_poll_at:%H:%MZ} on; " if batch.next_poll_at else ""
            return f"may have been taken: {looks}released an hour after its window, or with --give-up {batch.id}"
        case BatchState.IN_PROGRESS:
            return "runs at the provider; its flow takes the answers"
        case BatchState.CANCELLING:
            return "a cancel takes up to 10 min; then this command takes what it finished"
        case BatchState.COMPLETED | BatchState.FAILED | BatchState.EXPIRED | BatchState.CANCELLED:
            return "ended; its results cannot be read yet: run this command again"
        case BatchState.OVERDUE:
            return "overdue; its rows are asked elsewhere, and what it still brings is kept"
        case BatchState.SETTLED:
            return "harvested; nothing is left to do"
        case BatchState.DISCARDED:
            return "not waited for any longer; its flow asks its rows again when it is run again"
