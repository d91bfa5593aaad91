"""Taking what an ended batch finished, whatever way it ended."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.reading import Reading

__all__ = ["INCOMPLETE_FOR", "Harvest", "missing_line"]

HARVEST_GROUP = 1000
"""Result lines that are committed together; a crash in between harvests the same lines again, for free."""

INCOMPLETE_FOR = timedelta(minutes=10)
"""How long result files that hold less than the counts promise are read again before the rest is released."""

LOOK_AGAIN = timedelta(minutes=1)

MISSING = "missing_in_results"
"""The reason of a request that the results have no line on."""


def missing_line(key: str, *, counted: bool = False) -> Outcome:
    """Return what becomes of a request whose line never came, and which the invoice may hold all the same."""
    return Outcome(key=key, kind=OutcomeKind.RETRY, reason=MISSING, billing=Billing.UNKNOWN, counted=counted)


class Harvest:
    """Reads result files into the ledger, line by line.

    Every answer is taken as it came: whether a step can use it is judged where the step looks at what it
    has, see `Survey`, since whoever comes by may harvest a batch, and knows nothing of its step.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def take(self, batch: Batch, lease: Lease) -> Batch:
        """Take what an ended batch finished, and release the rest."""
        reading = await self.read(batch)
        return self._ports.ledger.batch(batch.id) if reading is None else self.finish(batch, lease, reading)

    async def read(self, batch: Batch) -> Reading | None:
        """Write down what an ended batch finished; return None where its results are to be read again later.

        Safe to repeat: a line whose attempt has its outcome changes nothing. Cut in the middle, what was read by
        then is on record, and the next one reads the file again.
        """
        ledger, clock = self._ports.ledger, self._ports.clock
        reading = Reading(batch, {batch.token, *ledger.tokens(batch)})
        if batch.provider_batch_id is not None:
            await self._read_all(batch, batch.provider_batch_id, reading)
        if oddities := reading.oddities():
            self._ports.watcher.noticed(f"Of the result lines of batch {batch.id}, {oddities}; they are left aside.")
        came, since = reading.came(batch.counts), self.since(batch)
        if came < batch.counts.completed and clock.now() < since + INCOMPLETE_FOR:
            # What is missing was paid for: asked again too soon, it is paid for twice.
            if clock.now() < since + LOOK_AGAIN:
                # Said at the first reading, and not at each of the next ones.
                self._ports.watcher.noticed(
                    f"The results of batch {batch.id} hold {came:,} of {batch.counts.completed:,} answers; they are "
                    f"read again for up to {INCOMPLETE_FOR // timedelta(minutes=1)} minutes."
                )
            ledger.note_batch(batch, next_poll_at=clock.now() + LOOK_AGAIN)
            return None
        rest = reading.rest()
        for start in range(0, len(rest), HARVEST_GROUP):
            self._record(batch, rest[start : start + HARVEST_GROUP], reading)
        if came < batch.counts.completed:
            # A line that is broken may be that of a row which failed unbilled: it accounts for none that is missing.
            self._list_missing(batch, reading)
        crash_point("batch.harvested")
        return reading

    def finish(self, batch: Batch, lease: Lease, reading: Reading) -> Batch:
        """End a batch that was read: rows without an answer are open again."""
        return self.settle(batch, lease, kept=reading.kept(), failed=reading.failed())

    async def _read_all(self, batch: Batch, provider_batch_id: str, reading: Reading) -> None:
        group: list[Outcome] = []
        results = self._ports.provider.results(provider_batch_id, model=batch.model, endpoint=Endpoint(batch.endpoint))
        try:
            async for line in results:
                outcome = reading.take(line)
                if outcome is None:
                    continue
                group.append(outcome)
                if len(group) >= HARVEST_GROUP:
                    self._record(batch, group, reading)
                    group = []
        finally:
            # Also where the file broke off, or its time is over: what was paid for and came back is kept.
            if group:
                self._record(batch, group, reading)

    def _record(self, batch: Batch, outcomes: Sequence[Outcome], reading: Reading) -> None:
        clock = self._ports.clock
        recorded = self._ports.ledger.record_results(batch, outcomes, at=clock.now(), stamp=clock.wall())
        reading.not_asked(recorded.unknown)
        crash_point("batch.harvest.group")

    def give_up(self, batch: Batch, lease: Lease) -> Batch:
        """End a batch whose results the provider no longer has: what was paid for them, only the invoice knows."""
        if batch.counts.completed:
            self.may_be_billed(batch)
        return self.settle(batch, lease)

    def may_be_billed(self, batch: Batch) -> None:
        """Write down that every request without an outcome may be on the invoice, before the batch is given up."""
        self._list_missing(batch, Reading(batch, ()))

    def _list_missing(self, batch: Batch, reading: Reading) -> None:
        """Write down that the requests without a line may have been billed: by the counts, some of them were."""
        for keys in self._ports.ledger.batch_keys(batch.id):
            # As with every end but this one: what was cut short says nothing of the row.
            counted = batch.state is BatchState.COMPLETED
            missing = [missing_line(key, counted=counted) for key in keys if not reading.names(key)]
            if missing:
                self._record(batch, missing, reading)

    def settle(self, batch: Batch, lease: Lease, *, kept: int = 0, failed: int = 0) -> Batch:
        """End an ended batch: rows without an answer are open again."""
        batch, _ = self._ports.ledger.settle_batch(batch, lease=lease, at=self._ports.clock.now())
        crash_point("batch.settled")
        if failed:
            self._ports.watcher.noticed(
                f"{failed:,} requests of batch {batch.id} failed; the next run asks them again."
            )
        self._ports.watcher.settled(batch, kept=kept, released=batch.rows - kept - failed)
        return batch

    def since(self, batch: Batch) -> datetime:
        """Return when its state was first seen here; the provider's own word on an end may be hours older."""
        events = self._ports.ledger.events("batch", str(batch.id))
        return next((event.at for event in reversed(events) if event.after == batch.state), batch.created_at)
