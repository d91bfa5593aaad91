"""Where each request of a step run stands: a byte a request, read from the ledger in groups."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt

from prefect_llm_tiers.core.runs import Lease, RequestState, Standing, StepRun
from prefect_llm_tiers.engine.job import Job, Ports

__all__ = ["Survey"]

AT_ONCE = 5000

_STATES = tuple(RequestState)
_CODE = {state: number for number, state in enumerate(_STATES)}
_UNSETTLED = (RequestState.OPEN, RequestState.OUT)


class Survey:
    """The requests of a step run by state, as the ledger last told.

    Attributes:
        reasons: Number of failed requests by reason.
        out_in: Ids of the batches that carry requests of this run.
    """

    def __init__(self, job: Job, ports: Ports) -> None:
        self._job = job
        self._ports = ports
        self._distinct = job.spool.distinct
        self._codes = np.full(len(job.spool), _CODE[RequestState.OPEN], dtype=np.uint8)
        self._first = True
        self.reasons: Counter[str] = Counter()
        self.out_in: set[int] = set()

    def count(self, *states: RequestState) -> int:
        """Return how many distinct requests are in any of some states."""
        return len(self.positions(*states))

    def positions(self, *states: RequestState) -> npt.NDArray[np.int64]:
        """Return the positions of the distinct requests in any of some states, in row order."""
        wanted = [_CODE[state] for state in states]
        return self._distinct[np.isin(self._codes[self._distinct], wanted)]

    def rows_failed(self) -> int:
        """Return how many rows failed: those of which any sample did. Rows that ask the same each count."""
        failed = self._codes[self._job.spool.first] == _CODE[RequestState.FAILED]
        return int(failed.reshape(-1, self._job.samples).any(axis=1).sum())

    def forget(self) -> None:
        """Read everything again at the next refresh: another process decided since."""
        self._first = True
        self.reasons.clear()

    def refresh(self, run: StepRun, lease: Lease) -> None:
        """Read again what was not settled, and fail the requests that have used up their attempts.

        Answers that this process has not seen yet, whoever brought them, are held against the step's current
        output model: those it cannot read are asked again. The first time everything is read.
        """
        unsettled = self._distinct if self._first else self.positions(*_UNSETTLED)
        self.out_in = set()
        for group in _groups(unsettled):
            keys = self._job.spool.keys(group)
            standing = self._stand(keys, run)
            if self._set_aside_unreadable(keys, standing, run, lease):
                standing = self._stand(keys, run)
            if self._fail_exhausted(keys, standing, run, lease):
                standing = self._stand(keys, run)
            self._codes[group] = [_CODE[one.state] for one in standing]
            self.out_in.update(one.batch_id for one in standing if one.batch_id is not None)
            self.reasons.update(one.reason or "unknown" for one in standing if one.state is RequestState.FAILED)
        self._first = False

    def _stand(self, keys: list[str], run: StepRun) -> list[Standing]:
        return self._ports.ledger.stand(keys, step_run_id=run.id, not_before=self._not_before(run))

    def _not_before(self, run: StepRun) -> datetime:
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


def _groups(positions: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(positions), AT_ONCE):
        yield positions[start : start + AT_ONCE]
