"""What a run shows in Prefect: the plan before, progress during, the savings after, and the log of all three.

Nothing here holds a prompt, an answer or a key. Prefect's API is called from a thread of its own: an API that is
slow or down must not hold up calls that are paid for.
"""

import contextlib
import html
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_logger, get_run_logger
from prefect.logging.loggers import LoggingAdapter

from prefect_llm_tiers.carrying.progress import ProgressBar
from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.reporting import StepReport
from prefect_llm_tiers.engine.system import SystemClock
from prefect_llm_tiers.engine.watching import Progress
from prefect_llm_tiers.planning.plan import Plan, show_instant, show_span, show_usd

__all__ = [
    "CallWatcher",
    "RunWatcher",
    "SilentWatcher",
    "artifact_key",
    "plan_markdown",
    "savings_line",
    "savings_markdown",
]

UPDATE_EVERY = timedelta(seconds=1)

MARKED_WITHIN_S = 30.0
"""How long the plan's artifact may take where it is the mark that a step run began."""

LOG_SHARES = (0.25, 0.5, 0.75, 1.0)


class RunWatcher:
    """Shows one step run in Prefect; a `Watcher` of the engine. Use as a context manager.

    Attributes:
        mark: What the plan is marked with, see `remembering`; None outside a flow run.

    Args:
        step: The step's name.
        wall: Real time, to bound how often the API is called; by default the system's.
    """

    def __init__(self, step: str, wall: Callable[[], datetime] | None = None) -> None:
        self.mark: dict[str, str] | None = None
        self._step = step
        self._wall = wall or SystemClock().wall
        self._log = _logger()
        self._bar = ProgressBar(step)
        self._next_update: datetime | None = None
        self._logged = 0
        self._updating: Future[bool] | None = None
        self._progress_id: UUID | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llm-artifacts")
        self._context = copy_context()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._pool.shutdown(wait=True)

    def planned(self, plan: Plan) -> None:
        """Log the plan and make its artifact; where that is a mark, it is there before anything is paid."""
        self._log.info("%s", plan)
        made = self._later(lambda: self._show_plan(plan))
        if self.mark is None:
            return
        with contextlib.suppress(TimeoutError):
            if made.result(timeout=MARKED_WITHIN_S):
                return
        self._log.warning(
            "Prefect does not have the plan of this step. If this run is started again without its ledger, nobody "
            "will notice, and what was paid for is paid for again."
        )

    def submitted(self, batch: Batch) -> None:
        """Log a batch."""
        self._log.info("Batch %d submitted: %s requests to %s.", batch.id, f"{batch.rows:,}", batch.model)

    def switched(self, *, step: str, before: Tier | None, after: Tier, at: datetime, reason: str) -> None:
        """Log a tier."""
        if before is None:
            self._log.info("Starting in %s at %sZ: %s.", after, f"{at:%H:%M}", reason)
        else:
            self._log.info("Switching from %s to %s at %sZ: %s.", before, after, f"{at:%H:%M}", reason)

    def settled(self, batch: Batch, *, kept: int, released: int) -> None:
        """Log a harvest."""
        rest = f"; {released:,} to ask again" if released else ""
        self._log.info("Batch %d settled: %s answers kept%s.", batch.id, f"{kept:,}", rest)

    def noticed(self, message: str) -> None:
        """Log a warning."""
        self._log.warning("%s", message)

    def progressed(self, progress: Progress) -> None:
        """Move the bar, and the artifact at most once a second."""
        self._bar.update(progress)
        share = _share(progress)
        passed = sum(share >= mark for mark in LOG_SHARES)
        if passed > self._logged:
            self._logged = passed
            self._log.info("%s", _progress_line(progress))
        now = self._wall()
        busy = self._updating is not None and not self._updating.done()
        if share < 1 and (busy or (self._next_update is not None and now < self._next_update)):
            return
        self._next_update = now + UPDATE_EVERY
        self._updating = self._later(lambda: self._show_progress(progress, share))

    def finished(self, report: StepReport, *, unasked: Mapping[str, int]) -> None:
        """Log the account and make its artifact, also of a step that ended with an error.

        Args:
            report: What the step run came to.
            unasked: Rows that were not asked, by reason.
        """
        self._log.info("%s", savings_line(report))
        self._later(
            lambda: create_markdown_artifact(
                savings_markdown(report, unasked),
                key=artifact_key("savings", self._step),
                description=f"Savings of step {self._step}",
            )
        )

    def _show_plan(self, plan: Plan) -> None:
        """Make the plan's artifact; not by `create_markdown_artifact`, which takes no metadata."""
        context = TaskRunContext.get()
        run = context.task_run if context is not None else None
        page = ArtifactCreate(
            type="markdown",
            key=artifact_key("plan", self._step),
            description=f"Plan of step {self._step}",
            data=plan_markdown(plan),
            metadata_=self.mark,
            flow_run_id=run.flow_run_id if run is not None else None,
            task_run_id=run.id if run is not None else None,
        )
        with get_client(sync_client=True) as client:
            client.create_artifact(page)

    def _show_progress(self, progress: Progress, share: float) -> None:
        description = _progress_line(progress)
        if self._progress_id is None:
            made = create_progress_artifact(
                100 * share, key=artifact_key("progress", self._step), description=description
            )
            # A coroutine only where a loop runs, and none does in the pool's thread.
            self._progress_id = cast("UUID", made)
        else:
            update_progress_artifact(self._progress_id, 100 * share, description=description)

    def _later(self, work: Callable[[], object]) -> Future[bool]:
        return self._pool.submit(self._context.run, self._attempt, work)

    def _attempt(self, work: Callable[[], object]) -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001 (recorded: a page that cannot be shown must not cost answers)
            self._log.warning("Prefect could not show this step's page (%s); the work goes on.", type(error).__name__)
            return False
        return True


class CallWatcher(RunWatcher):
    """Shows a single call: its plan, which marks that it began, and what it came to, in the log.

    A page of its progress and another of its savings would tell no more.
    """

    def progressed(self, progress: Progress) -> None:
        """Say nothing: it is done or it is not."""

    def finished(self, report: StepReport, *, unasked: Mapping[str, int]) -> None:
        """Log the account."""
        self._log.info("%s", savings_line(report))


class SilentWatcher:
    """Watches and says nothing; a `Watcher` of the engine."""

    def planned(self, plan: Plan) -> None:
        """Say nothing."""

    def submitted(self, batch: Batch) -> None:
        """Say nothing."""

    def switched(self, *, step: str, before: Tier | None, after: Tier, at: datetime, reason: str) -> None:
        """Say nothing."""

    def settled(self, batch: Batch, *, kept: int, released: int) -> None:
        """Say nothing."""

    def noticed(self, message: str) -> None:
        """Say nothing."""

    def progressed(self, progress: Progress) -> None:
        """Say nothing."""


def _logger() -> "LoggingAdapter | Any":
    if TaskRunContext.get() is not None or FlowRunContext.get() is not None:
        return get_run_logger()
    return get_logger("llm_tiers")


def artifact_key(kind: str, step: str) -> str:
    """Return the key of a step's artifact: lower case letters, digits and dashes are all that Prefect takes."""
    return f"llm-tiers-{kind}-{re.sub(r'[^a-z0-9]+', '-', step.lower()).strip('-') or 'step'}"


def _share(progress: Progress) -> float:
    if not progress.rows:
        return 1.0
    return min((progress.answered + progress.failed + min(progress.provider_done, progress.out)) / progress.rows, 1.0)


def _progress_line(progress: Progress) -> str:
    parts = [f"{progress.answered:,} of {progress.rows:,} answered"]
    if progress.out:
        done = f", {progress.provider_done:,} of them done" if progress.provider_done else ""
        parts.append(f"{progress.out:,} in a batch{done}")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    parts.append(f"{show_usd(progress.spent_usd)} spent")
    if progress.deadline is not None:
        left = progress.deadline - progress.now
        parts.append(f"{show_span(left)} left" if left > timedelta(0) else f"{show_span(-left)} late")
    return "; ".join(parts)


def savings_line(report: StepReport) -> str:
    """Return a step's account in one line."""
    if not report.lines:
        if report.finished_at is None:
            return "Nothing asked, nothing paid."
        return f"{report.reused:,} of {report.requests:,} requests were answered before: nothing asked, nothing paid."
    paid, listed = show_usd(report.paid_usd), show_usd(report.list_usd)
    # Answers of no use are paid for, and list price buys each answer once.
    verb = "saved" if report.saved_usd >= 0 else "lost"
    parts = [f"{paid} paid, {listed} at list price: {verb} {show_usd(abs(report.saved_usd))}"]
    if report.reused and report.finished_at is not None:
        parts.append(f"{report.reused:,} answered before")
    if report.unpriced:
        parts.append(f"{report.unpriced:,} attempts unpriced")
    if report.billed_unknown:
        parts.append(f"{report.billed_unknown:,} attempts perhaps billed")
    if report.finished_at is None:
        parts.append("not finished")
    elif report.deadline is not None:
        parts.append("late" if report.late else "on time")
    return "; ".join(parts)


def plan_markdown(plan: Plan) -> str:
    """Return the plan as a Markdown page."""
    lines = [
        f"**{_escaped(plan.headline())}**",
        "",
        "| step | requests | answered before | tiers | starts | done | p95 | expected | list price |",
        "|---|---:|---:|---|---|---|---|---:|---:|",
    ]
    for step in plan.steps:
        instants = (step.starts_at, step.finish_expected, step.finish_p95)
        shown = " | ".join(show_instant(instant, plan.made_at) for instant in instants)
        price = "unpriced" if step.unpriced else show_usd(step.cost_usd)
        lines.append(
            f"| {_escaped(step.name)} | {step.requests:,} | {step.answered:,} | {plan.show_legs(step) or '-'} | "
            f"{shown} | {price} | {show_usd(step.list_usd)} |"
        )
    lines += ["", f"Rule: {plan.rule}. Laws: {plan.basis}. Times are UTC."]
    return "\n".join(lines)


def savings_markdown(report: StepReport, unasked: Mapping[str, int]) -> str:
    """Return what a step run came to as a Markdown page."""
    lines = [
        f"**{_escaped(report.step)}**: {_escaped(savings_line(report))}",
        "",
        "| tier asked | tier served | outcome | attempts | tokens in | tokens out | paid | list price |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for line in report.lines:
        paid = f"{show_usd(line.cost_usd)}" + (f" + {line.unpriced:,} unpriced" if line.unpriced else "")
        lines.append(
            f"| {line.tier_asked} | {line.tier_served or '-'} | {line.outcome} | {line.attempts:,} | "
            f"{line.usage.input_tokens:,} | {line.usage.output_tokens:,} | {paid} | {show_usd(line.list_usd)} |"
        )
    for heading, counts in (("Failed", report.failed), ("Not asked", unasked)):
        if counts:
            reasons = ", ".join(f"{count:,} {_escaped(reason)}" for reason, count in counts.items())
            lines += ["", f"{heading}: {reasons}"]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|")
