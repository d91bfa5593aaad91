"""Where each request of a step run stands: a byte a request, read from the ledger in groups."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt

from prefect_llm_tiers.core.runs import Lease, RequestState, Standing, StepRun
from prefect_llm_tiers.engine.failures import LOST
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.planning.packing import Over

__all__ = ["Survey"]

AT_ONCE = 5000
ASKED_AT_ONCE = 500
"""Rows that are looked at together just before they are asked: others may have asked some of them meanwhile."""

_STATES = tuple(RequestState)
_CODE = {state: number for number, state in enumerate(_STATES)}
_UNSETTLED = (RequestState.OPEN, RequestState.OUT)


class Survey:
    """The requests of a step run by state, as the ledger last told.

    Attributes:
        permanent: Reasons of failures that asking again would only repeat: the provider's own verdict on a request,
            or a limit that it is over. Calls that were lost and answers of no use are none.
        out_in: Ids of the batches that carry requests of this run.
    """

    def __init__(self, job: Job, ports: Ports) -> None:
        self._job = job
        self._ports = ports
        self._distinct = job.spool.distinct
        self._codes = np.full(len(job.spool), _CODE[RequestState.OPEN], dtype=np.uint8)
        self._claimed = np.zeros(len(job.spool), dtype=np.bool_)
        self._first = True
        self._reasons: dict[str, int] = {}
        self._reason = np.zeros(len(job.spool), dtype=np.uint16)
        self.permanent: set[str] = set()
        self.out_in: set[int] = set()

    def count(self, *states: RequestState) -> int:
        """Return how many distinct requests are in any of some states."""
        return len(self.positions(*states))

    def positions(self, *states: RequestState) -> npt.NDArray[np.int64]:
        """Return the positions of the distinct requests in any of some states, in row order."""
        wanted = [_CODE[state] for state in states]
        return self._distinct[np.isin(self._codes[self._distinct], wanted)]

    def claimed(self) -> npt.NDArray[np.int64]:
        """Return the positions of the distinct requests that are out in live calls of other runs, in row order."""
        return self._distinct[self._claimed[self._distinct]]

    def to_ask(self, run: StepRun, *, share: bool) -> Iterator[int]:
        """Yield the positions of what is open, each looked at again just before its turn.

        Args:
            run: The step run.
            share: Whether rows that other runs have calls out on are left to them. Otherwise they come last, and
                in the other order, so that two runs over the same rows meet in few of them.
        """
        positions = self.positions(RequestState.OPEN)
        if not share:
            positions = np.concatenate([positions, self.claimed()[::-1]])
        now = self._ports.clock.now
        for group in _groups(positions, ASKED_AT_ONCE):
            standing = self._stand(self._job.spool.keys(group), run, now=now() if share else None)
            for position, one in zip(group.tolist(), standing, strict=True):
                if one.state is RequestState.OPEN:
                    yield position

    def rows_failed(self) -> int:
        """Return how many rows failed: those of which any sample did. Rows that ask the same each count."""
        return sum(self.reasons().values())

    def reasons(self) -> Counter[str]:
        """Return how many rows failed, by the reason of each one's first sample that did."""
        first, samples = self._job.spool.first, self._job.samples
        failed = (self._codes[first] == _CODE[RequestState.FAILED]).reshape(-1, samples)
        rows = np.flatnonzero(failed.any(axis=1))
        why = self._reason[first].reshape(-1, samples)[rows, failed[rows].argmax(axis=1)]
        names, counts = list(self._reasons), np.bincount(why, minlength=len(self._reasons))
        return Counter({name: count for name, count in zip(names, counts.tolist(), strict=True) if count})

    def forget(self) -> None:
        """Read everything again at the next refresh: another process decided since."""
        self._first = True
        self.permanent.clear()

    def refresh(self, run: StepRun, lease: Lease) -> None:
        """Read again what was not settled, and fail the requests that have used up their attempts.

        Answers that this process has not seen yet, whoever brought them, are held against the step's current
        output model: those it cannot read are asked again. The first time everything is read.
        """
        now = self._ports.clock.now()
        unsettled = self._distinct if self._first else self.positions(*_UNSETTLED)
        self.out_in = set()
        for group in _groups(unsettled):
            keys = self._job.spool.keys(group)
            standing = self._stand(keys, run, now=now)
            if self._set_aside_unreadable(keys, standing, run, lease):
                standing = self._stand(keys, run, now=now)
            if self._fail_exhausted(keys, standing, run, lease):
                standing = self._stand(keys, run, now=now)
            self._codes[group] = [_CODE[one.state] for one in standing]
            self._claimed[group] = [one.state is RequestState.OUT and one.batch_id is None for one in standing]
            self.out_in.update(one.batch_id for one in standing if one.batch_id is not None)
            self._note_failed(group, standing)
        self._first = False

    def _note_failed(self, group: npt.NDArray[np.int64], standing: list[Standing]) -> None:
        for position, one in zip(group.tolist(), standing, strict=True):
            if one.state is not RequestState.FAILED:
                continue
            reason = one.reason or "unknown"
            self._reason[position] = self._reasons.setdefault(reason, len(self._reasons))
            # A bound that nobody told may be another one tomorrow.
            learned = reason == Over.TOKENS and self._job.enqueued_tokens is None
            if one.tries < self._job.max_attempts and not reason.startswith(LOST) and not learned:
                self.permanent.add(reason)

    def _stand(self, keys: list[str], run: StepRun, *, now: datetime | None) -> list[Standing]:
        return self._ports.ledger.stand(keys, step_run_id=run.id, not_before=self.not_before(run), now=now)

    def not_before(self, run: StepRun) -> datetime:
        """Return how old an answer may be to count for a step run."""
        return run.first_stamp - self._job.reuse_for if self._job.reuse_for is not None else run.first_stamp

    def _set_aside_unreadable(self, keys: list[str], standing: list[Standing], run: StepRun, lease: Lease) -> bool:
        answered = [key for key, one in zip(keys, standing, strict=True) if one.state is RequestState.ANSWERED]
        if not answered:
            return False
        unreadable: dict[str, list[str]] = {}
        for answer in self._ports.ledger.answers(answered, step_run_id=run.id):
            reason = self._job.accept(answer.text or "") if answer is not None else None
            if answer is not None and reason is not None:
                unreadable.setdefault(reason, []).append(answer.key)
        for reason, of_no_use in unreadable.items():
            self._ports.ledger.reopen(of_no_use, run=run, lease=lease, reason=reason)
        return bool(unreadable)

    def _fail_exhausted(self, keys: list[str], standing: list[Standing], run: StepRun, lease: Lease) -> bool:
        exhausted = [
            (key, one.reason or "attempts_exhausted")
            for key, one in zip(keys, standing, strict=True)
            if one.state is RequestState.OPEN and one.tries >= self._job.max_attempts
        ]
        if exhausted:
            self._ports.ledger.fail(exhausted, run=run, lease=lease, stamp=self._ports.clock.wall())
        return bool(exhausted)


def _groups(positions: npt.NDArray[np.int64], size: int = AT_ONCE) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]
