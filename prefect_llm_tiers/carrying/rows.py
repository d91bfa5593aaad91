"""Carries one call of a step out, from its rows to its columns."""

from collections import Counter
from typing import TYPE_CHECKING

from prefect_llm_tiers.artifacts import RunWatcher
from prefect_llm_tiers.carrying.identity import Call
from prefect_llm_tiers.carrying.preparing import Prepared, checked_reading, run_prepared
from prefect_llm_tiers.carrying.remembering import begin
from prefect_llm_tiers.carrying.waiting import wait_until_done
from prefect_llm_tiers.engine.reporting import report_of
from prefect_llm_tiers.engine.runner import Done, Runner
from prefect_llm_tiers.errors import RowsFailed

if TYPE_CHECKING:
    import polars as pl

    from prefect_llm_tiers.frames.reading import Rows
    from prefect_llm_tiers.step import LLMStep

__all__ = ["carry_out"]


def carry_out(step: "LLMStep", rows: "Rows", call: Call) -> "pl.DataFrame":
    """Ask about every row and return the frame with the step's columns; runs inside the step's task run.

    Raises:
        LLMTiersError: See `errors`.
    """
    from prefect_llm_tiers.frames.columns import empty_columns
    from prefect_llm_tiers.frames.reading import as_frame

    options = step.options
    frame = as_frame(rows)
    if not frame.height:
        checked_reading(step, frame, call)
        return empty_columns(frame, step.column, output=options.reader(), samples=options.samples, meta=options.meta)
    with RunWatcher(step.name) as watcher:

        async def done(prepared: Prepared) -> "pl.DataFrame":
            begin(watcher, prepared.ports, step_run_id=prepared.job.id, step=step.name, flow_run_id=call.scope)
            runner = Runner(prepared.job, prepared.ports)
            runner.enter()
            try:
                outcome = await wait_until_done(runner, prepared.ports.clock)
            finally:
                # Also where the step ends with an error: what was paid by then is told.
                report = report_of(prepared.ports.ledger, prepared.job.id)
                if report is not None:
                    watcher.finished(report, unasked=prepared.fates.counts())
            _check_failures(step, prepared, outcome)
            return _with_columns(step, frame, prepared)

        return run_prepared(step, frame, call, done, watcher)


def _with_columns(step: "LLMStep", frame: "pl.DataFrame", prepared: Prepared) -> "pl.DataFrame":
    from prefect_llm_tiers.frames.columns import add_columns

    job, ledger = prepared.job, prepared.ports.ledger
    return add_columns(
        frame,
        step.column,
        fates=prepared.fates,
        first=job.spool.first,
        fetch=lambda positions: ledger.answers(job.spool.keys(positions), step_run_id=job.id),
        output=prepared.output,
        meta=step.options.meta,
    )


def _check_failures(step: "LLMStep", prepared: Prepared, done: Done) -> None:
    """Raise if more rows failed than may; what came back is in the ledger by now."""
    from prefect_llm_tiers.frames.reading import UPSTREAM

    allowed = step.options.max_failed
    if done.failed <= allowed:
        return
    unasked = {reason: count for reason, count in prepared.fates.counts().items() if reason != UPSTREAM}
    reasons = Counter(done.reasons)
    reasons.update(unasked)
    first = prepared.fates.first_rows
    told = ", ".join(
        f"{count:,} {reason}" + (f", first in row {first[reason]:,}" if reason in first else "")
        for reason, count in reasons.most_common(5)
    )
    msg = (
        f"{done.failed:,} of {prepared.job.rows:,} rows of step {step.name!r} failed ({told}); max_failed={allowed} "
        f"allows fewer. Every answer that came back is kept. {_advice(reasons, lasting={*done.permanent, *unasked})} "
        "Or raise max_failed to go on without them."
    )
    raise RowsFailed(msg, failed=done.failed, total=prepared.job.rows, reasons=reasons)


def _advice(reasons: Counter[str], *, lasting: set[str]) -> str:
    """Return what to do about rows that failed; `lasting` reasons would only be met again."""
    again = "Run the flow again to ask the failed rows again"
    met_again = [reason for reason, _ in reasons.most_common() if reason in lasting]
    if not met_again:
        return f"{again}."
    if len(met_again) == len(reasons):
        return (
            "Asking the same again gives the same: correct the prompt, the rows, the options or the model first, as "
            "the reason says."
        )
    named = ", ".join(met_again[:_MOST_NAMED])
    return f"{again}; those that failed for {named} fail the same way until what the reason names is corrected."


_MOST_NAMED = 3
