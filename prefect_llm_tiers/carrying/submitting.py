"""The work of `submit_batch`, over the same engine and ledger as a step's."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from prefect_llm_tiers.blocks import load_ledger
from prefect_llm_tiers.carrying.identity import process_owner
from prefect_llm_tiers.carrying.opened import Opened, run_opened
from prefect_llm_tiers.carrying.remembering import begin
from prefect_llm_tiers.carrying.whereabouts import ledger_name, provider_name, remember
from prefect_llm_tiers.core.batches import BatchState
from prefect_llm_tiers.core.requests import request_keys
from prefect_llm_tiers.core.runs import RequestState, step_run_id
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.runner import Done, Runner
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.errors import InputError
from prefect_llm_tiers.options import StepOptions, Terms, terms_of
from prefect_llm_tiers.tickets import BatchTicket

__all__ = ["Asked", "submit"]

AT_ONCE = 2000
"""Prompts that are looked at together."""

_UNSENT = (BatchState.PLANNED, BatchState.SUBMITTING)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a call of `submit_batch` was told, as a plain value that Prefect neither traverses nor shows.

    Attributes:
        scope: The run it belongs to; None outside any.
        run_key: Tells it from the other calls in that run.
        step: The task's name.
        options: What is asked and whom.
    """

    scope: str | None
    run_key: str
    step: str
    options: StepOptions


def submit(prompts: Iterable[Any], asked: Asked) -> BatchTicket:
    """Submit what no batch carries yet, and return when the provider has confirmed all of it."""
    options = asked.options
    terms = terms_of(options, asked.step)

    async def submitted(opened: Opened) -> BatchTicket:
        with Spool() as spool:
            requests = _fill(spool, prompts, options, terms, opened.account)
            job = _job(asked, terms, spool, opened.account)
            batches: tuple[int, ...] = ()
            if len(spool):
                watcher = opened.watcher
                begin(watcher, opened.ports, step_run_id=job.id, step=asked.step, flow_run_id=asked.scope)
                async with opened.withdrawing():
                    await _send(job, opened.ports)
                batches = tuple(batch.id for batch in opened.ports.ledger.batches_of(job.id))
            remember(job.id, options.provider, options.ledger)
            return BatchTicket(
                step_run_id=job.id,
                batches=batches,
                count=job.rows,
                provider=provider_name(options.provider),
                ledger=ledger_name(options.ledger),
                ledger_id=opened.ports.ledger.ledger_id,
                account=job.account,
                model=job.model,
                output=options.output,
                flow_run_id=asked.scope,
                step=asked.step,
                requests=requests,
            )

    return run_opened(
        submitted,
        block=terms.block,
        ledger=load_ledger(options.ledger),
        model=options.model,
        step=asked.step,
        name=f"{asked.step}/{asked.run_key}",
        scope=asked.scope,
        keep_batches=options.keep_batches,
    )


def _fill(spool: Spool, prompts: Iterable[Any], options: StepOptions, terms: Terms, account: str) -> bytes:
    """Hand the requests over in the order of the prompts, and return their keys, end to end."""
    from prefect_llm_tiers.providers.bodies import BodyEncoder

    encoder = BodyEncoder(
        terms.endpoint,
        model=options.model,
        max_output_tokens=options.max_output_tokens,
        output=terms.schema(options.output),
        system=options.system,
        options=options.options,
    )
    numbered = enumerate(_iterated(prompts))
    parts: list[bytes] = []
    while group := list(islice(numbered, AT_ONCE)):
        bodies = [_encoded(encoder.encode, number, prompt) for number, prompt in group]
        keys = request_keys(bodies, account=account, endpoint=terms.endpoint)
        spool.extend(keys, bodies)
        parts.append(keys)
    spool.seal()
    return b"".join(parts)


def _iterated(prompts: Iterable[Any]) -> Iterator[Any]:
    # A text alone would be taken for its letters, and a mapping for its keys.
    if isinstance(prompts, str | bytes | dict) or not isinstance(prompts, Iterable):
        msg = (
            f"submit_batch takes a sequence of prompts, not {type(prompts).__name__}. Put a single prompt into a "
            "list; for the rows of a frame pass frame['column'], or use a step."
        )
        raise InputError(msg)
    return iter(prompts)


def _encoded(encode: Callable[[Any], bytes], number: int, prompt: Any) -> bytes:
    try:
        return encode(prompt)
    except InputError as error:
        msg = f"Prompt {number} (from 0) cannot be asked. {error} Nothing was sent."
        raise InputError(msg) from None
    except (TypeError, ValueError) as error:
        cause = f"holds something that JSON cannot express ({type(error).__name__})"
        msg = f"Prompt {number} (from 0) {cause}. Nothing was sent. Correct or leave out that prompt."
        raise InputError(msg) from None


def _job(asked: Asked, terms: Terms, spool: Spool, account: str) -> Job:
    options = asked.options
    scope = asked.scope or process_owner()
    return Job(
        id=step_run_id(scope, asked.step, asked.run_key),
        flow_run_id=scope,
        step=asked.step,
        model=options.model,
        endpoint=terms.endpoint,
        account=account,
        capabilities=terms.capabilities,
        tiers=terms.tiers,
        spool=spool,
        rows=len(spool),
        rate=terms.block.rate(),
        enqueued_tokens=terms.block.most_enqueued,
        accept=options.reader().accept,
        infeasible="best_effort",
        on_input_change=options.on_input_change,
        max_attempts=options.max_attempts,
        reuse_for=options.reuse_for,
        output_tokens=options.output_tokens,
    )


async def _send(job: Job, ports: Ports) -> None:
    """Advance until every request is answered, failed, or in a batch that the provider has confirmed.

    One that nobody confirmed is waited for: only here are the prompts to send it again if it never arrived.
    """
    runner = Runner(job, ports)
    runner.enter()
    while True:
        outcome = await runner.advance()
        if isinstance(outcome, Done) or _all_out(job, ports):
            return
        await ports.clock.sleep_until(outcome.until)


def _all_out(job: Job, ports: Ports) -> bool:
    ledger = ports.ledger
    if any(batch.state in _UNSENT for batch in ledger.batches_of(job.id)):
        return False
    positions = job.spool.distinct
    for start in range(0, len(positions), AT_ONCE):
        keys = job.spool.keys(positions[start : start + AT_ONCE])
        for one in ledger.stand(keys, step_run_id=job.id, not_before=None, now=ports.clock.now()):
            if one.state is RequestState.OPEN or (one.state is RequestState.OUT and one.batch_id is None):
                return False
    return True
