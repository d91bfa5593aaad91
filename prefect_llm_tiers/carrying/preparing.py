"""A step's call made ready for the engine: rows into requests, options into a job, ports opened and closed."""

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_llm_tiers.blocks import load_ledger
from prefect_llm_tiers.carrying.beside import Stop, run_beside
from prefect_llm_tiers.carrying.identity import Call, process_owner
from prefect_llm_tiers.carrying.opened import identify
from prefect_llm_tiers.carrying.withdrawing import withdrawing
from prefect_llm_tiers.chain import ChainValue
from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.core.runs import step_run_id
from prefect_llm_tiers.due import resolved_due
from prefect_llm_tiers.engine.forecast import BYTES_PER_TOKEN
from prefect_llm_tiers.engine.job import Job, LaterStep, Ports
from prefect_llm_tiers.engine.offered import still_offered
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.engine.watching import Watcher
from prefect_llm_tiers.options import Terms, terms_of
from prefect_llm_tiers.settings import keeps_batches

if TYPE_CHECKING:
    import polars as pl

    from prefect_llm_tiers.frames.output import TextOutput
    from prefect_llm_tiers.frames.reading import Fates
    from prefect_llm_tiers.frames.signature import Reading
    from prefect_llm_tiers.providers.schemas import OutputSchema
    from prefect_llm_tiers.step import LLMStep

__all__ = ["Prepared", "Work", "checked_reading", "run_prepared"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A call that is ready to be carried out.

    Attributes:
        job: What is to be done.
        ports: With whom.
        fates: What became of each row before anything was asked.
        output: Reads the answers.
    """

    job: Job
    ports: Ports
    fates: "Fates"
    output: "TextOutput"


Work = Callable[[Prepared], Coroutine[Any, Any, T]]


def checked_reading(step: "LLMStep", frame: "pl.DataFrame", call: Call) -> "Reading":
    """Return what the step reads, held against the frame it is given.

    Raises:
        InputError: A column is missing, or stands where the step would put its own.
        ConfigurationError: The call sets what the prompt function does not take.
    """
    from prefect_llm_tiers.frames.reading import check_columns

    reading = step.reading(call.constants)
    check_columns(frame, reading, adds=step.adds, overwrite=step.options.overwrite, step=step.name)
    return reading


def run_prepared(step: "LLMStep", frame: "pl.DataFrame", call: Call, work: Work[T], watcher: Watcher) -> T:
    """Build the requests of a call and run `work` over them, on the provider's clock.

    Raises:
        LLMTiersError: See `errors`; nothing was asked if the step is declared wrongly.
    """
    reading = checked_reading(step, frame, call)
    terms = terms_of(step.options, step.name)
    output, schema = step.options.reader(), terms.schema(step.options.output)
    ledger, clock = load_ledger(step.options.ledger), terms.block.clock()
    _tell_of_shadows(step, frame, reading, call, watcher)
    if call.strayed:
        watcher.noticed(
            f"Step {step.name!r} is called inside a chain that it is not a part of: the chain's due time does not bind "
            "it. Name it in Chain(...), or call it outside."
        )

    async def main(stop: Stop) -> T:
        stop.bind()
        provider = terms.block.open()
        try:
            account = await identify(provider, step.options.model, at=terms.block.host)
            with Spool() as spool:
                fates = _build(step, frame, reading, spool, terms=terms, account=account, schema=schema)
                spool.seal()
                _tell_of_fates(step, fates, watcher)
                job = _job(
                    step,
                    call,
                    frame,
                    terms=terms,
                    account=account,
                    spool=spool,
                    fates=fates,
                    output=output,
                    clock=clock,
                )
                ports = Ports(
                    ledger=ledger,
                    provider=provider,
                    clock=clock,
                    # Jitter, not a secret; seeded, so that a run can be played again.
                    chance=random.Random(job.id),  # noqa: S311
                    watcher=watcher,
                    owner=process_owner(),
                )
                async with withdrawing(stop, ports, flow_run_id=call.scope, account=account):
                    return await work(Prepared(job=job, ports=ports, fates=fates, output=output))
        finally:
            await provider.aclose()

    return run_beside(
        lambda stop: clock.run(main(stop), name=f"{step.name}/{call.run_key}"),
        flow_run_id=call.scope,
        keep=keeps_batches(step.options.keep_batches),
    )


def _tell_of_shadows(step: "LLMStep", frame: "pl.DataFrame", reading: "Reading", call: Call, watcher: Watcher) -> None:
    from prefect_llm_tiers.frames.reading import shadowed_columns

    for column in shadowed_columns(frame, reading, given=call.constants):
        watcher.noticed(
            f"Step {step.name!r} does not read the column {column!r}: the parameter of that name has a default, which "
            f"makes it a constant. Pass columns={{{column!r}: {column!r}}} to read the column, or set the constant in "
            "the call."
        )


def _tell_of_fates(step: "LLMStep", fates: "Fates", watcher: Watcher) -> None:
    for reason, count in fates.counts().items():
        rows = "1 row" if count == 1 else f"{count:,} rows"
        watcher.noticed(
            f"{rows} of step {step.name!r} not asked: {reason} (first: row {fates.first_rows[reason]:,}, from 0)."
        )


def _build(
    step: "LLMStep",
    frame: "pl.DataFrame",
    reading: "Reading",
    spool: Spool,
    *,
    terms: Terms,
    account: str,
    schema: "OutputSchema | None",
) -> "Fates":
    from prefect_llm_tiers.frames.reading import build_requests
    from prefect_llm_tiers.providers.bodies import BodyEncoder

    options = step.options
    return build_requests(
        frame,
        reading,
        prompt=step.prompt,
        encoder=BodyEncoder(
            terms.endpoint,
            model=options.model,
            max_output_tokens=options.max_output_tokens,
            output=schema,
            system=options.system,
            options=options.options,
        ),
        account=account,
        endpoint=terms.endpoint,
        samples=options.samples,
        spool=spool,
    )


def _job(
    step: "LLMStep",
    call: Call,
    frame: "pl.DataFrame",
    *,
    terms: Terms,
    account: str,
    spool: Spool,
    fates: "Fates",
    output: "TextOutput",
    clock: Clock,
) -> Job:
    from prefect_llm_tiers.frames.reading import UPSTREAM

    options, chain = step.options, call.chain
    scope = call.scope or process_owner()
    deadline = options.deadline
    return Job(
        id=step_run_id(scope, step.name, call.run_key),
        flow_run_id=scope,
        step=step.name,
        model=options.model,
        endpoint=terms.endpoint,
        account=account,
        capabilities=terms.capabilities,
        tiers=still_offered(
            terms.tiers, flow_run_id=scope, account=account, model=options.model, endpoint=terms.endpoint
        ),
        spool=spool,
        rows=frame.height,
        # A span counts from now: the moment the step's input is ready.
        deadline=clock.now() + deadline if isinstance(deadline, timedelta) else resolved_due(deadline, clock),
        due=chain.due if chain is not None else None,
        on_time=_first(chain.on_time if chain else None, options.on_time),
        infeasible=_first(chain.infeasible if chain else None, options.infeasible),
        on_miss=_first(chain.on_miss if chain else None, options.on_miss),
        on_input_change=options.on_input_change,
        samples=options.samples,
        # A row that an earlier step failed is that step's to answer for.
        unasked=fates.unasked - fates.count(UPSTREAM),
        max_failed=options.max_failed,
        max_attempts=options.max_attempts,
        reuse_for=options.reuse_for,
        min_saving_usd=_first(chain.min_saving_usd if chain else None, options.min_saving_usd),
        later=_later_steps(chain, frame, {step.column: options.output_tokens}) if chain else (),
        rate=terms.block.rate(options.max_concurrency),
        output_tokens=options.output_tokens,
        enqueued_tokens=terms.block.most_enqueued,
        accept=output.accept,
    )


def _later_steps(chain: ChainValue, frame: "pl.DataFrame", expected: dict[str, float]) -> tuple[LaterStep, ...]:
    """Size the other steps: columns that are there by a sample, those still to come by what is expected."""
    from prefect_llm_tiers.frames.reading import mean_bytes

    tokens = dict(expected)
    later: list[LaterStep] = []
    for outline in chain.later:
        reads = outline.reads if outline.reads is not None else (*frame.columns, *tokens)
        known = [column for column in reads if column not in tokens]
        input_tokens = mean_bytes(frame, known) / BYTES_PER_TOKEN
        input_tokens += sum(tokens[column] for column in dict.fromkeys(reads) if column in tokens)
        tokens[outline.adds] = outline.output_tokens
        later.append(
            LaterStep(
                name=outline.name,
                provider=outline.provider,
                model=outline.model,
                tiers=outline.tiers,
                after=outline.after,
                rate=outline.rate,
                window=outline.window,
                cancel=outline.cancel,
                input_tokens=input_tokens,
                output_tokens=outline.output_tokens,
            )
        )
    return tuple(later)


def _first(first: T | None, second: T) -> T:
    return first if first is not None else second
