"""Taking what an ended batch finished, whatever way it ended."""

from datetime import datetime, timedelta

import msgspec

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.requests import Endpoint, split_custom_id
from prefect_llm_tiers.core.runs import Lease, Observation
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.pricing import priced

__all__ = ["Harvest"]

HARVEST_GROUP = 1000
"""Result lines that are committed together; a crash in between harvests the same lines again, for free."""


INCOMPLETE_FOR = timedelta(minutes=10)
"""How long result files that hold less than the counts promise are read again before the rest is released."""

LOOK_AGAIN = timedelta(minutes=1)


class Harvest:
    """Reads result files into the ledger, line by line.

    Every answer is taken as it came: whether a step can use it is judged where the step looks at what it
    has, see `Survey`, since whoever comes by may harvest a batch, and knows nothing of its step.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def take(self, batch: Batch, lease: Lease) -> Batch:
        """Take what an ended batch finished, and release the rest.

        Safe to repeat: a line whose attempt has its outcome changes nothing.
        """
        ledger, clock = self._ports.ledger, self._ports.clock
        kept = unknown = 0
        billed: set[str] = set()
        if batch.provider_batch_id is not None and batch.state is not BatchState.FAILED:
            group: list[Outcome] = []
            results = self._ports.provider.results(
                batch.provider_batch_id, model=batch.model, endpoint=Endpoint(batch.endpoint)
            )
            async for line in results:
                outcome = self._read(batch, line.custom_id, line.outcome)
                if outcome is None:
                    unknown += 1
                    continue
                if outcome.billing is not Billing.UNBILLED:
                    billed.add(outcome.key)
                group.append(outcome)
                if len(group) >= HARVEST_GROUP:
                    kept += ledger.record_results(batch, group, at=clock.now(), stamp=clock.wall()).settled
                    group = []
            kept += ledger.record_results(batch, group, at=clock.now(), stamp=clock.wall()).settled
        if unknown:
            self._ports.watcher.noticed(
                f"Batch {batch.id} came with {unknown:,} result lines that answer none of its requests; left aside."
            )
        if len(billed) < batch.counts.completed and clock.now() < self._ended(batch) + INCOMPLETE_FOR:
            # What is missing was paid for: asked again too soon, it is paid for twice.
            self._ports.watcher.noticed(
                f"The results of batch {batch.id} hold {len(billed):,} of {batch.counts.completed:,} answers; they "
                "are read again."
            )
            return ledger.note_batch(batch, next_poll_at=clock.now() + LOOK_AGAIN)
        return self.settle(batch, lease, kept=kept)

    def settle(self, batch: Batch, lease: Lease, *, kept: int = 0) -> Batch:
        """End an ended batch: rows without an answer are open again."""
        batch, _ = self._ports.ledger.settle_batch(batch, lease=lease, at=self._ports.clock.now())
        self._observe(batch)
        self._ports.watcher.settled(batch, kept=kept, released=batch.rows - kept)
        return batch

    def _ended(self, batch: Batch) -> datetime:
        """Return when its end was first seen here; the provider's own word may be hours older."""
        events = self._ports.ledger.events("batch", str(batch.id))
        return next((event.at for event in reversed(events) if event.after == batch.state), batch.created_at)

    def _read(self, batch: Batch, line_id: str | None, outcome: Outcome | None) -> Outcome | None:
        """Return a line's outcome with its price; None for a line that is not this batch's."""
        parts = split_custom_id(line_id) if line_id is not None else None
        if parts is None or outcome is None or parts[1] != batch.token:
            return None
        outcome = msgspec.structs.replace(outcome, key=parts[0])
        if outcome.kind is OutcomeKind.RETRY and outcome.billing is not Billing.BILLED:
            return msgspec.structs.replace(outcome, counted=False)
        return priced(
            outcome,
            provider=batch.provider,
            model=batch.model,
            tier_asked=Tier.BATCH,
            at=batch.submitted_at or batch.created_at,
        )

    def _observe(self, batch: Batch) -> None:
        """Tell the laws how long it took; a batch that was cut short says only "longer than"."""
        if batch.submitted_at is None or batch.ended_at is None or not batch.counts.total:
            # One that failed its validation never ran, and says nothing of how long it would have taken.
            return
        self._ports.ledger.observe(
            [
                Observation(
                    provider=batch.provider,
                    model=batch.model,
                    tier=Tier.BATCH,
                    requests=batch.rows,
                    # The provider's clock and ours may differ by more than a short batch takes.
                    duration=max(batch.ended_at - batch.submitted_at, _LEAST),
                    censored=batch.cancel_at is not None or batch.counts.completed < batch.counts.total,
                    at=self._ports.clock.now(),
                )
            ]
        )


_LEAST = timedelta(seconds=1)
