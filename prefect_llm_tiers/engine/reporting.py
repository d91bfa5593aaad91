"""What a step run came to, read from the ledger."""

from datetime import datetime
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.outcomes import OutcomeKind
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.runs import Spending, StepRun, StepRunState

__all__ = ["StepReport", "finished_at", "report_of"]

_SETTLING = (OutcomeKind.ANSWER, OutcomeKind.REFUSAL)


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """The account of one step run.

    Attributes:
        step: The step's name.
        rows: Rows of its frame.
        requests: Distinct requests among them.
        fresh: Requests that this step run's own attempts answered.
        reused: Requests that were answered before, or by others.
        failed: Requests that failed, by reason.
        deadline: When it had to be done; None without a deadline.
        finished_at: When it was; None while it runs.
        lines: Its attempts by tier and outcome.
    """

    step: str
    rows: int
    requests: int
    fresh: int
    reused: int
    failed: dict[str, int]
    deadline: datetime | None
    finished_at: datetime | None
    lines: tuple[Spending, ...]

    @property
    def late(self) -> bool:
        """Whether the deadline was missed."""
        return self.deadline is not None and self.finished_at is not None and self.finished_at > self.deadline

    @property
    def paid_usd(self) -> Decimal:
        """What the attempts with a known price cost."""
        return sum((line.cost_usd for line in self.lines), Decimal(0))

    @property
    def list_usd(self) -> Decimal:
        """What the answers that count would have cost on the standard tier.

        Superseded answers and answers of no use are paid for and are not on the list: list price buys each
        answer once.
        """
        return sum((line.list_usd for line in self.lines if line.outcome in _SETTLING), Decimal(0))

    @property
    def saved_usd(self) -> Decimal:
        """List price less what was paid."""
        return self.list_usd - self.paid_usd

    @property
    def unpriced(self) -> int:
        """Attempts that were billed and whose price is not known."""
        return sum(line.unpriced for line in self.lines)

    @property
    def billed_unknown(self) -> int:
        """Attempts that may have been billed."""
        return sum(line.billed_unknown for line in self.lines)


def finished_at(ledger: Ledger, run: StepRun) -> datetime | None:
    """Return when a step run ended; None while it runs."""
    if run.state is StepRunState.RUNNING:
        return None
    ends = [event.at for event in ledger.events("step_run", run.id) if event.after == run.state]
    return ends[-1] if ends else None


def report_of(ledger: Ledger, step_run_id: str) -> StepReport | None:
    """Return the account of a step run; None if the ledger has none of that id."""
    run = ledger.step_run(step_run_id)
    if run is None:
        return None
    lines = tuple(ledger.spending(step_run_id))
    failed = ledger.failures(step_run_id)
    fresh = sum(line.attempts for line in lines if line.outcome in _SETTLING)
    return StepReport(
        step=run.step,
        rows=run.rows,
        requests=run.requests,
        fresh=fresh,
        reused=run.requests - fresh - sum(failed.values()),
        failed=failed,
        deadline=run.deadline,
        finished_at=finished_at(ledger, run),
        lines=lines,
    )
