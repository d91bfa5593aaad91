"""The work of `wait_for_batch` and `collect_batch`: what became of a ticket's prompts, as the ledger tells it."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from pydantic import BaseModel

from prefect_llm_tiers.blocks import LedgerDatabase, ProviderBlock
from prefect_llm_tiers.carrying.identity import run_scope
from prefect_llm_tiers.carrying.opened import Opened, run_opened
from prefect_llm_tiers.carrying.whereabouts import ledger_of, provider_of
from prefect_llm_tiers.core.batches import LIVE_STATES, Batch, BatchState
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.runs import Answer, RequestState, Standing, StepRunState
from prefect_llm_tiers.due import Due, check_due, resolved_due
from prefect_llm_tiers.engine.batch import BatchLane
from prefect_llm_tiers.engine.heartbeat import LEASE
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.looks import FIRST_POLL
from prefect_llm_tiers.errors import AccountChanged
from prefect_llm_tiers.tickets import BatchAnswer, BatchCounts, BatchTicket

if TYPE_CHECKING:
    from prefect_llm_tiers.frames.output import TextOutput

__all__ = ["collect", "wait"]

AT_ONCE = 2000
"""Prompts that are looked at together."""

LEAST_WAIT = timedelta(seconds=1)
"""Between two looks, so that time goes on whatever the looks tell."""

_HOLDING = LIVE_STATES - {BatchState.OVERDUE, BatchState.PLANNED}
"""States in which a batch that was submitted holds its rows."""


def wait(
    ticket: BatchTicket,
    *,
    deadline: Due | None,
    provider: ProviderBlock | str | None,
    ledger: LedgerDatabase | str | None,
) -> BatchCounts:
    """Sleep until every batch of a ticket has ended and is harvested, or until the deadline."""
    check_due(deadline, "deadline")
    store = ledger_of(ticket, ledger)
    if not ticket.count:
        return BatchCounts()
    block = provider_of(ticket, provider)

    async def waited(opened: Opened) -> BatchCounts:
        if opened.account != ticket.account:
            msg = (
                f"The batches were submitted under account {ticket.account}, and the block's key belongs to "
                f"{opened.account}, which cannot see them. Put a key of the first account back."
            )
            raise AccountChanged(msg)
        ports, clock = opened.ports, opened.ports.clock
        until = clock.now() + deadline if isinstance(deadline, timedelta) else resolved_due(deadline, clock)
        async with opened.withdrawing():
            await _wait_for_batches(ticket, ports, until)
        counts = _counted(ticket, store)
        _finish(ticket, ports, counts)
        return counts

    return run_opened(
        waited,
        block=block,
        ledger=store,
        model=ticket.model,
        step=ticket.step,
        name=f"wait/{ticket.step_run_id}",
        scope=run_scope(),
        keep_batches=None,
    )


async def _wait_for_batches(ticket: BatchTicket, ports: Ports, until: datetime | None) -> None:
    lane, clock = BatchLane(ports), ports.clock
    while True:
        for batch in _batches(ports.ledger, ticket):
            if batch.state in _HOLDING:
                await lane.tend(batch)
        out = [batch for batch in _batches(ports.ledger, ticket) if batch.state in _HOLDING]
        if not out or (until is not None and clock.now() >= until):
            return
        look = max(min(batch.next_poll_at or clock.now() + FIRST_POLL for batch in out), clock.now() + LEAST_WAIT)
        await clock.sleep_until(look if until is None else min(look, until))


def _finish(ticket: BatchTicket, ports: Ports, counts: BatchCounts) -> None:
    """Put the end of the step run on record; one that lacks answers asks for them when it is entered again."""
    ledger, clock = ports.ledger, ports.clock
    run = ledger.step_run(ticket.step_run_id)
    if run is None or run.state is not StepRunState.RUNNING or not counts.done:
        return
    lease = ledger.acquire(f"step:{run.id}", owner=ports.owner, now=clock.now(), until=clock.now() + LEASE)
    if lease is None:
        # Somebody submits the same again; the end is theirs to tell.
        return
    try:
        good = counts.answered + counts.refused == ticket.count
        ledger.finish(run, StepRunState.COMPLETED if good else StepRunState.FAILED, lease=lease, at=clock.now())
    finally:
        ledger.release(lease)


def collect(
    ticket: BatchTicket, output: type[BaseModel] | None, ledger: LedgerDatabase | str | None
) -> list[BatchAnswer]:
    """Return what the ledger has for every prompt of a ticket, in order."""
    from prefect_llm_tiers.frames.output import output_of

    store = ledger_of(ticket, ledger)
    model = output or ticket.output
    reader = output_of(model)
    answers: list[BatchAnswer] = []
    for keys in _groups(ticket):
        found = store.answers(keys, step_run_id=ticket.step_run_id)
        standing = _standing(store, keys, ticket)
        answers += [_answer(one, stands, model, reader) for one, stands in zip(found, standing, strict=True)]
    return answers


def _answer(found: Answer | None, stands: Standing, model: type[BaseModel] | None, reader: "TextOutput") -> BatchAnswer:
    if found is None:
        return BatchAnswer(state=stands.state, reason=_reason(stands))
    answer = BatchAnswer(
        state=found.state,
        reason=found.reason,
        tier=found.tier_served,
        usage=found.usage,
        cost_usd=found.cost_usd,
        fresh=found.fresh,
    )
    if found.state is RequestState.REFUSED:
        return msgspec.structs.replace(answer, refusal=found.text)
    if found.state is not RequestState.ANSWERED or found.text is None:
        return answer
    reason = reader.accept(found.text)
    parsed = model.model_validate_json(found.text) if model is not None and reason is None else None
    return msgspec.structs.replace(answer, text=found.text, parsed=parsed, reason=reason)


def _reason(stands: Standing) -> str | None:
    match stands.state:
        case RequestState.OUT:
            return "still in a batch"
        case RequestState.OPEN:
            return stands.reason or "its batch ended without an answer to it"
        case _:
            return stands.reason


def _counted(ticket: BatchTicket, ledger: Ledger) -> BatchCounts:
    states: Counter[RequestState] = Counter()
    for keys in _groups(ticket):
        states.update(one.state for one in _standing(ledger, keys, ticket))
    return BatchCounts(
        answered=states[RequestState.ANSWERED],
        refused=states[RequestState.REFUSED],
        failed=states[RequestState.FAILED],
        unanswered=states[RequestState.OPEN],
        out=states[RequestState.OUT],
    )


def _standing(ledger: Ledger, keys: list[str], ticket: BatchTicket) -> list[Standing]:
    # Without the calls of others: the ticket's own batches are what is waited for.
    return ledger.stand(keys, step_run_id=ticket.step_run_id, not_before=None, now=None)


def _groups(ticket: BatchTicket) -> Iterator[list[str]]:
    for start in range(0, ticket.count, AT_ONCE):
        yield ticket.keys(start, min(start + AT_ONCE, ticket.count))


def _batches(ledger: Ledger, ticket: BatchTicket) -> list[Batch]:
    return ledger.batches_of(ticket.step_run_id)
