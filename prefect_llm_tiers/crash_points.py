"""Places at which a process may die, by name, so that a test can make it die there.

`crash_point("batch.create.sent")` does nothing unless the environment variable `PREFECT_LLM_TIERS_CRASH_AT`
names that point; then the process kills itself with SIGKILL: no `finally`, no flush, no goodbye.
`batch.create.sent:3` lets it pass twice and dies the third time. `docs/crash-safety.md` says of each point what
a crash there leaves behind and what the next process makes of it.
"""

import os
import signal
from collections import Counter
from collections.abc import Mapping
from typing import Final

__all__ = ["CRASH_AT", "CRASH_POINTS", "crash_point"]

CRASH_AT: Final = "PREFECT_LLM_TIERS_CRASH_AT"
"""Environment variable that names the point to die at."""

CRASH_POINTS: Final[Mapping[str, str]] = {
    "step.entered": "the step run is on record, and no plan",
    "step.planned": "the plan is on record, and nothing was sent",
    "step.switched": "the tier is on record, and nothing was sent in it",
    "batch.planned": "the batch's rows are chosen, and nothing was sent",
    "batch.uploaded": "the file is at the provider, and its id nowhere else",
    "batch.file.recorded": "the file's id is on record, and no batch was asked for",
    "batch.intent": "the intent to submit is committed, and nothing was sent",
    "batch.create.sent": "the provider has answered the create, and nothing of it is on record",
    "batch.confirmed": "the provider's id is on record",
    "batch.looked": "a look at the batch told something that is not on record",
    "batch.ended": "the end is on record, and nothing was harvested",
    "batch.harvest.group": "a part of the result lines is on record",
    "batch.harvested": "every result line is on record, and the batch is not settled",
    "batch.settled": "the batch is settled",
    "batch.searched": "the provider's list was searched for an unconfirmed batch, and the verdict is not on record",
    "batch.found": "an unconfirmed batch was found, and that is on record",
    "batch.absent": "a batch was proven absent, and that is on record",
    "batch.copy.recorded": "a copy of a batch is on record, and its cancel was not asked for",
    "batch.cancel.recorded": "the intent to stop a batch is on record, and the provider was not asked",
    "batch.cancel.sent": "the provider was asked to stop a batch, and what it said is not on record",
    "batch.left": "the run no longer waits for a batch, and its rows were not asked elsewhere",
    "live.intended": "the intent to call is committed, and nothing was sent",
    "live.answered": "the provider has answered a call, and nothing of it is on record",
    "live.recorded": "the answer is on record",
    "step.finished": "the end of the step run is on record",
}
"""Every point, with what is true when a process dies there."""

_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Die here if the environment says so.

    Args:
        name: One of `CRASH_POINTS`.
    """
    wanted = os.environ.get(CRASH_AT)
    if wanted is None:
        return
    point, _, number = wanted.partition(":")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] == int(number or 1):
        os.kill(os.getpid(), signal.SIGKILL)
