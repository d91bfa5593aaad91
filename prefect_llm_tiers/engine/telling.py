"""What a step run tells of its progress: counts and money, never rows."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.runs import RequestState, StepRun
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.standing import Survey
from prefect_llm_tiers.engine.watching import Progress

__all__ = ["Teller"]


class Teller:
    """Tells the watcher where a step run stands."""

    def __init__(self, job: Job, ports: Ports, survey: Survey) -> None:
        self._job = job
        self._ports = ports
        self._survey = survey

    def tell(self, run: StepRun, batches: list[Batch], *, deadline: datetime | None) -> None:
        """Tell where the run stands now."""
        self._ports.watcher.progressed(self._progress(run, batches, deadline))

    def live(self, run: StepRun, *, deadline: datetime | None) -> Callable[[int, Decimal], None]:
        """Return a callback for the live lane: so many more settled, for so many dollars."""
        # Counted once: this is called for every row.
        before = self._progress(run, [], deadline)

        def settled(requests: int, cost_usd: Decimal) -> None:
            self._ports.watcher.progressed(
                msgspec.structs.replace(
                    before,
                    answered=before.answered + requests,
                    spent_usd=before.spent_usd + cost_usd,
                    now=self._ports.clock.now(),
                )
            )

        return settled

    def _progress(self, run: StepRun, batches: list[Batch], deadline: datetime | None) -> Progress:
        survey = self._survey
        spent = sum((line.cost_usd for line in self._ports.ledger.spending(run.id)), Decimal(0))
        return Progress(
            step=run.step,
            rows=len(self._job.spool.distinct),
            answered=survey.count(RequestState.ANSWERED, RequestState.REFUSED),
            failed=survey.count(RequestState.FAILED),
            out=survey.count(RequestState.OUT),
            provider_done=sum(batch.counts.completed for batch in batches),
            tier=run.tier,
            now=self._ports.clock.now(),
            deadline=deadline,
            spent_usd=spent,
        )
