"""Which open requests go into batches now: within a batch's limits, and within what the provider lets be enqueued.

A provider may bound the input tokens of all unfinished batches of a model. Told or learned, the bound is kept by
sending in waves: what finds no room stays open until a batch has ended, or until its time has come to go live.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cached_property

import msgspec

from prefect_llm_tiers.core.batches import ENDED_STATES, Batch, BatchState
from prefect_llm_tiers.core.runs import Lease, RequestState, StepRun
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.forecast import BYTES_PER_TOKEN
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.standing import Survey
from prefect_llm_tiers.errors import IllegalTransition
from prefect_llm_tiers.planning.packing import Chunk, Over, Sized, inputs_of, line_bytes, pack

__all__ = ["Packed", "Waves", "met_ceiling"]

TOKEN_LIMIT = "token_limit_exceeded"  # noqa: S105 - the provider's code, no secret

ROOM_AFTER = timedelta(minutes=10)
"""After a batch that found no room: the next try, unless another batch of the model ends before."""

ROOM_LOOK = timedelta(minutes=2)
"""Between two looks for room that other runs' batches take."""

_AT_PROVIDER = frozenset({BatchState.SUBMITTING, BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.OVERDUE})
"""States in which a batch takes room; one that nobody confirmed may."""


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the open requests came to.

    Attributes:
        planned: Batches that were chosen.
        again: Whether requests failed, or another run claimed some since they were looked at.
        held_until: When to look for room again; None where nothing is held back.
        refused: Positions of requests that alone are more than may ever be enqueued.
    """

    planned: int = 0
    again: bool = False
    held_until: datetime | None = None
    refused: tuple[int, ...] = ()


def met_ceiling(batch: Batch) -> bool:
    """Return whether a batch failed because too much was enqueued: it says nothing of its requests."""
    return TOKEN_LIMIT in batch.error_codes


class _Look:
    """The batches that bear on how much room there is, each kind read once for a question, and if it is needed.

    Attributes:
        own: The run's, those that it has left among them.
    """

    def __init__(self, job: Job, ports: Ports) -> None:
        self._ports = ports
        self._ours = (ports.provider.name, job.account, job.model)
        self.own = ports.ledger.batches_of(job.id, left=True)

    @cached_property
    def live(self) -> list[Batch]:
        """The account's of the model that are not settled, other runs' among them."""
        live = self._ports.ledger.live_batches()
        return [batch for batch in live if (batch.provider, batch.account, batch.model) == self._ours]


class Waves:
    """Chooses the batches of a step run."""

    def __init__(self, job: Job, ports: Ports, survey: Survey) -> None:
        self._job = job
        self._ports = ports
        self._survey = survey
        # The keys of a batch never change, nor does the instant of its end.
        self._tokens: dict[int, int] = {}
        self._ends: dict[int, datetime] = {}

    def tried(self) -> bool:
        """Return whether a batch of the run has ended and left something over.

        One that found no room was not tried, and one of several waves leaves the others to be tried.
        """
        look = self._look()
        settled = [batch for batch in look.own if batch.state is BatchState.SETTLED and not met_ceiling(batch)]
        if self._ceiling(look) is None:
            return bool(settled)
        return any(batch.counts.completed < batch.rows for batch in settled)

    def _ceiling(self, look: _Look) -> int | None:
        """Return how many input tokens may be enqueued at once; None where nothing is known of a bound.

        What the provider refused teaches half of what was enqueued then, again and again.
        """
        known = [self._enqueued_at_failure(batch, look) // 2 for batch in look.own if met_ceiling(batch)]
        if self._job.enqueued_tokens is not None:
            known.append(self._job.enqueued_tokens)
        return min(known, default=None)

    def pack(self, run: StepRun, lease: Lease) -> Packed:
        """Choose the batches that carry what is open and finds room; `Outstanding.send` sends them.

        Stops where another run claimed one of the requests since they were looked at: they are looked at again.
        """
        limits, look = self._job.capabilities.batch, self._look()
        assert limits is not None  # the plan has no batch without limits
        ceiling, paused_until = self._ceiling(look), self._paused_until(look)
        if paused_until is not None:
            return Packed(held_until=paused_until)
        room = None if ceiling is None else ceiling - self._enqueued(look) - self._planned(look)
        looked_at = handled = planned = 0
        failed, passed_over, refused = False, False, list[int]()

        def requests() -> Iterator[Sized]:
            nonlocal looked_at, passed_over
            for position in self._survey.to_ask(run, share=True):
                looked_at += 1
                yield self._sized(position)
            passed_over = looked_at < self._survey.count(RequestState.OPEN)

        for chunk in pack(requests(), limits, most_tokens=ceiling, room=room):
            handled += len(chunk.positions)
            match chunk.over:
                case None:
                    if not self._plan(chunk, run, lease):
                        return Packed(planned=planned, again=True)
                    planned += 1
                case Over.TOKENS:
                    refused += chunk.positions
                case Over.BYTES | Over.INPUTS:
                    self.fail(chunk.positions, chunk.over, run, lease)
                    failed = True
        # The first that found no room was looked at, and not handled.
        held = handled < looked_at
        return Packed(
            planned=planned,
            # What another run took since it was looked at is waited for only where the run has seen it.
            again=failed or passed_over,
            held_until=self._ports.clock.now() + ROOM_LOOK if held and not self._all_waited_for(look) else None,
            refused=tuple(refused),
        )

    def fits(self, batch: Batch) -> bool:
        """Return whether there is room to send a planned batch now."""
        look = self._look()
        ceiling = self._ceiling(look)
        if ceiling is None:
            return True
        return self._paused_until(look) is None and self._enqueued(look) + self._tokens_of(batch) <= ceiling

    def outgrown(self, batch: Batch) -> bool:
        """Return whether a planned batch of the run's own is larger than what is known now to find room ever."""
        ceiling = self._ceiling(self._look())
        return batch.step_run_id == self._job.id and ceiling is not None and self._tokens_of(batch) > ceiling

    def fail(self, positions: list[int] | tuple[int, ...], reason: Over, run: StepRun, lease: Lease) -> None:
        """Fail requests that no batch can hold."""
        keys = self._job.spool.keys(positions)
        failures = [(key, str(reason)) for key in keys]
        self._ports.ledger.fail(failures, run=run, lease=lease, stamp=self._ports.clock.wall())

    def _plan(self, chunk: Chunk, run: StepRun, lease: Lease) -> bool:
        ledger, now = self._ports.ledger, self._ports.clock.now()
        keys = self._job.spool.keys(chunk.positions)
        try:
            ledger.plan_batch(
                keys,
                run=run,
                provider=self._ports.provider.name,
                account=self._job.account,
                model=self._job.model,
                endpoint=self._job.endpoint,
                lease=lease,
                at=now,
                input_tokens=chunk.tokens,
            )
        except IllegalTransition:
            standing = ledger.stand(keys, step_run_id=run.id, not_before=None, now=now)
            if any(one.state is RequestState.OUT for one in standing):
                return False
            raise
        crash_point("batch.planned")
        return True

    def _sized(self, position: int) -> Sized:
        job = self._job
        length = job.spool.length(position)
        counted = job.capabilities.batch is not None and job.capabilities.batch.inputs is not None
        return Sized(
            position,
            line_bytes(length, job.endpoint),
            inputs_of(job.spool.read(position).body, job.endpoint) if counted else 1,
            _tokens(length),
        )

    # What is enqueued

    def _look(self) -> _Look:
        return _Look(self._job, self._ports)

    def _enqueued(self, look: _Look) -> int:
        return sum(self._tokens_of(batch) for batch in look.live if batch.state in _AT_PROVIDER)

    def _planned(self, look: _Look) -> int:
        own = self._job.id
        planned = (batch for batch in look.live if batch.state is BatchState.PLANNED and batch.step_run_id == own)
        return sum(map(self._tokens_of, planned))

    def _all_waited_for(self, look: _Look) -> bool:
        """Return whether all that takes room is looked at anyway, because the run waits for it."""
        waited_for = {batch.id for batch in self._ports.ledger.batches_of(self._job.id)}
        taking = [batch for batch in look.live if batch.state in _AT_PROVIDER]
        return bool(taking) and all(
            batch.id in waited_for and batch.state is not BatchState.OVERDUE for batch in taking
        )

    def _enqueued_at_failure(self, failed: Batch, look: _Look) -> int:
        """Return what was enqueued when a batch found no room, itself included, as far as the ledger tells."""
        others = {batch.id: batch for batch in (*look.own, *look.live) if batch.id != failed.id}
        together = (batch for batch in others.values() if not met_ceiling(batch) and _overlap(batch, failed))
        return self._tokens_of(failed) + sum(map(self._tokens_of, together))

    def _tokens_of(self, batch: Batch) -> int:
        """Return a batch's estimated input tokens.

        Of one that an older version packed, those of its requests that are here, and of the others as many as of
        these on average.
        """
        if batch.input_tokens is not None:
            return batch.input_tokens
        known = self._tokens.get(batch.id)
        if known is None:
            spool, elsewhere, known = self._job.spool, 0, 0
            for keys in self._ports.ledger.batch_keys(batch.id):
                for position in spool.positions(keys):
                    if position is None:
                        elsewhere += 1
                    else:
                        known += _tokens(spool.length(position))
            if elsewhere:
                distinct = spool.distinct
                known += elsewhere * _tokens(spool.body_bytes(distinct)) // max(len(distinct), 1)
            self._tokens[batch.id] = known
        return known

    def _paused_until(self, look: _Look) -> datetime | None:
        """Return until when nothing is sent after a batch that found no room; None where something may be."""
        refusals = [batch for batch in look.own if met_ceiling(batch)]
        if not refusals:
            return None
        last = max(self._ended(batch) for batch in refusals)
        until = last + ROOM_AFTER
        if self._ports.clock.now() >= until:
            return None
        ended = (batch for batch in (*look.own, *look.live) if _has_ended(batch) and not met_ceiling(batch))
        return None if any(self._ended(batch) > last for batch in ended) else until

    def _ended(self, batch: Batch) -> datetime:
        """Return when a batch's end was seen here: the provider's own word is on another clock."""
        known = self._ends.get(batch.id)
        if known is None:
            events = self._ports.ledger.events("batch", str(batch.id))
            known = self._ends[batch.id] = next(
                (event.at for event in events if event.after in ENDED_STATES), batch.created_at
            )
        return known


def _has_ended(batch: Batch) -> bool:
    return batch.state in ENDED_STATES or batch.state is BatchState.SETTLED


def _overlap(batch: Batch, failed: Batch) -> bool:
    """Return whether a batch was at the provider when another one was refused."""
    if batch.submitting_at is None or failed.ended_at is None or batch.submitting_at >= failed.ended_at:
        return False
    return batch.ended_at is None or failed.submitting_at is None or batch.ended_at > failed.submitting_at


def _tokens(size: int) -> int:
    return -(-size // int(BYTES_PER_TOKEN))
