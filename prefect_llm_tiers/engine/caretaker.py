"""Looking after batches without a step to carry out: for the command line, and for a run that is cancelled."""

import asyncio
from datetime import datetime, timedelta

from prefect_llm_tiers.core.batches import ENDED_STATES, LIVE_STATES, Batch, BatchState
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.runs import StepRun
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.batch import BatchLane
from prefect_llm_tiers.engine.harvest import missing_line
from prefect_llm_tiers.engine.heartbeat import LEASE
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.looks import DOUBTED_FOR
from prefect_llm_tiers.errors import IllegalTransition, LeaseLost

__all__ = ["give_up", "recover", "withdraw"]

WITHDRAW_WITHIN = timedelta(seconds=5)
"""How long a batch may take to be withdrawn: after a SIGTERM a process has seconds."""


async def recover(ports: Ports, *, account: str) -> list[tuple[Batch, Batch]]:
    """Look now at every batch of an account that somebody still has to look after; send nothing.

    What nobody confirmed is searched for, what has ended is harvested, what runs for nobody is stopped, and so is
    every copy. A batch in the hands of another process is left to it, and the watcher is told.

    Args:
        ports: The outside world, with the provider that the account is at.
        account: The account as the provider names it; a list under another one proves nothing.

    Returns:
        Each batch as it was and as it is now, oldest first; copies that turned up are among them.

    Raises:
        CredentialsRejected: The key was refused.
    """
    ledger, clock = ports.ledger, ports.clock
    lane = BatchLane(ports)
    seen: dict[int, tuple[Batch, Batch]] = {}
    over = ledger.doubted(since=clock.now() - DOUBTED_FOR)
    # A copy that turns up is a batch more: gone round until there is nothing new.
    while batches := [
        batch
        for batch in (*ledger.live_batches(), *over)
        if batch.id not in seen and batch.provider == ports.provider.name and account in (None, batch.account)
    ]:
        for batch in batches:
            if batch.id in seen:
                continue
            holder = _holder(ledger, batch, owner=ports.owner, now=clock.now())
            if holder is not None:
                ports.watcher.noticed(f"Batch {batch.id} is left alone: {holder}.")
                seen[batch.id] = batch, batch
                continue
            after = await lane.tend(batch, at_once=True)
            if after.state is BatchState.PLANNED and not ledger.waiting_for(batch.id):
                after = await lane.cancel(after)
            seen[batch.id] = batch, after
    return [seen[number] for number in sorted(seen)]


def give_up(ledger: Ledger, batch_id: int, *, owner: str, now: datetime) -> Batch:
    """Decide that a batch of which nobody knows whether it was taken was not: its rows may be asked again.

    If the provider has it after all, both are paid for: its requests are listed as `billed_unknown`. Should it turn
    up, what it brings counts all the same.

    Args:
        ledger: The ledger that holds it.
        batch_id: Its number.
        owner: Who decides.
        now: The time.

    Raises:
        IllegalTransition: It is known where the batch is, or it is over.
        LeaseLost: A process that is alive is at it.
        LedgerError: There is no such batch.
    """
    batch = ledger.batch(batch_id)
    holder = _holder(ledger, batch, owner=owner, now=now)
    if holder is not None:
        raise LeaseLost(f"Batch {batch_id} was not given up: {holder}. Nothing was changed. Try again after that.")
    lease = ledger.acquire(f"batch:{batch_id}", owner=owner, now=now, until=now + LEASE)
    if lease is None:
        raise LeaseLost(
            f"Batch {batch_id} was not given up: another process took it just now. Nothing was changed. Try again "
            "in a few minutes."
        )
    try:
        batch = ledger.batch(batch_id)
        refusal = _why_not_given_up(batch)
        if refusal is not None:
            raise IllegalTransition(f"Batch {batch_id} was not given up: {refusal}")
        batch = ledger.advance_batch(batch, BatchState.DISCARDED, lease=lease, at=now, detail="given up by hand")
        # Not before: a batch that is found after a crash here must still bring its answers. One that is found later
        # is a copy, with attempts of its own.
        for keys in ledger.batch_keys(batch.id):
            ledger.record_results(batch, [missing_line(key) for key in keys], at=now, stamp=now)
        return batch
    finally:
        ledger.release(lease)


async def withdraw(ports: Ports, *, flow_run_id: str, keep: bool, account: str | None = None) -> list[Batch]:
    """Let go of the batches of a flow run that was cancelled; return them as they are then.

    What was not sent is discarded. What is out is stopped unless another run waits for it, and harvested by whoever
    comes by, who asks again where the provider did not take the cancel; the run itself, should it be entered again,
    waits for what it brings. What may be out, unconfirmed, is searched for by whoever comes by.

    Args:
        ports: The outside world.
        flow_run_id: The run.
        keep: Leave what is out at the provider: the next run over the same rows takes it up.
        account: Whose key the provider was opened with; batches of other accounts cannot be seen with it.
            None where there is one account alone.
    """
    lane = BatchLane(ports)
    runs = ports.ledger.step_runs_of(flow_run_id)
    found = {
        batch.id: batch
        for run in runs
        for batch in ports.ledger.batches_of(run.id)
        if batch.state in LIVE_STATES - ENDED_STATES
        and batch.provider == ports.provider.name
        and account in (None, batch.account)
    }
    return list(await asyncio.gather(*(_withdraw(ports, lane, batch, runs, keep=keep) for batch in found.values())))


async def _withdraw(ports: Ports, lane: BatchLane, batch: Batch, runs: list[StepRun], *, keep: bool) -> Batch:
    ledger = ports.ledger
    ours = {run.id: run for run in runs}
    waiting = set(ledger.waiting_for(batch.id))
    # What was not sent can be sent by its own run alone, whoever waits for it.
    unsent = batch.state is BatchState.PLANNED and batch.step_run_id in ours
    if keep and not unsent:
        return batch
    if waiting - set(ours) and not unsent:
        for run_id in waiting & set(ours):
            _leave(ports, batch, ours[run_id])
        return ledger.batch(batch.id)
    try:
        async with asyncio.timeout(WITHDRAW_WITHIN.total_seconds()):
            if batch.state is BatchState.SUBMITTING:
                # Where the provider shows tokens it may be found at once, and can be stopped.
                batch = await lane.tend(batch, at_once=True)
            after = await lane.cancel(batch)
    except TimeoutError:
        after = ledger.batch(batch.id)
        if after.state is BatchState.CANCELLING:
            ports.watcher.noticed(
                f"Batch {batch.id} could not be stopped yet: the provider does not answer. Whoever looks at it next "
                "asks again. Run `prefect-llm-tiers recover` to do so now."
            )
    if after.state in (BatchState.PLANNED, BatchState.SUBMITTING, BatchState.IN_PROGRESS):
        holder = _holder(ledger, after, owner=ports.owner, now=ports.clock.now())
        ports.watcher.noticed(
            f"Batch {batch.id} could not be stopped ({holder or 'the provider did not confirm it'}). What it brings is "
            "kept. Run `prefect-llm-tiers recover` to see what became of it."
        )
    return after


def _leave(ports: Ports, batch: Batch, run: StepRun) -> None:
    """Note that a run does not wait for a batch any more, so that the last of the others may stop it."""
    ledger, now = ports.ledger, ports.clock.now()
    lease = ledger.acquire(f"step:{run.id}", owner=ports.owner, now=now, until=now + LEASE)
    if lease is None:
        # The process that is being stopped holds it still; then it stays on the list of those who wait.
        return
    try:
        ledger.leave(batch.id, run=run, lease=lease, at=now)
        crash_point("batch.left")
    except (LeaseLost, IllegalTransition):
        return
    finally:
        ledger.release(lease)


def _holder(ledger: Ledger, batch: Batch, *, owner: str, now: datetime) -> str | None:
    """Return who is at a batch now, in words; None if nobody is."""
    lease = ledger.lease(f"batch:{batch.id}")
    if lease is None or lease.owner == owner or lease.until <= now:
        return None
    return f"another process ({lease.owner}) is at it until {lease.until:%Y-%m-%d %H:%M:%S}Z at the latest"


def _why_not_given_up(batch: Batch) -> str | None:
    """Return why a batch cannot be given up and what to do instead; None if it can."""
    known = batch.provider_batch_id
    match batch.state:
        case BatchState.SUBMITTING if known is not None:
            return (
                f"the provider has it as {known}. Nothing was changed. Run `prefect-llm-tiers recover` to take it up."
            )
        case BatchState.SUBMITTING | BatchState.OVERDUE:
            return None
        case BatchState.PLANNED:
            return (
                "it is planned, and nothing of it was sent. Nothing was changed. Run its flow again, which sends it "
                "or drops it."
            )
        case BatchState.IN_PROGRESS | BatchState.CANCELLING:
            return (
                f"it is {batch.state}, at the provider as {known}, and is billed. Nothing was changed. Cancel the run "
                "that waits for it, or wait; an hour after its window its rows are released."
            )
        case BatchState.COMPLETED | BatchState.FAILED | BatchState.EXPIRED | BatchState.CANCELLED:
            return (
                f"it has ended ({batch.state}) and waits to be read. Nothing was changed. Run `prefect-llm-tiers "
                "recover` to take what it finished."
            )
        case BatchState.SETTLED | BatchState.DISCARDED:
            return f"it is {batch.state}, which is its end. There is nothing to do."
