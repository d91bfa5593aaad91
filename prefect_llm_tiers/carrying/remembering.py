"""Whether a run that enters a step began it before, in a ledger that is not at hand.

A pod that is started anew may have a new disk, and an empty ledger would pay for everything again. So every plan
is marked in Prefect with the step run and the ledger it is kept in, before anything is paid; and a step run that
the ledger does not know asks for that mark first.
"""

from prefect_llm_tiers.artifacts import RunWatcher, artifact_key
from prefect_llm_tiers.carrying.api import marks_of
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.watching import Watcher
from prefect_llm_tiers.errors import RunForgotten

__all__ = ["begin", "check_remembered", "mark_of"]

_STEP_RUN, _LEDGER = "llm_tiers_step_run", "llm_tiers_ledger"


def mark_of(ledger: Ledger, step_run_id: str) -> dict[str, str]:
    """Return what a plan is marked with: names, no secret and nothing of the rows."""
    return {_STEP_RUN: step_run_id, _LEDGER: ledger.ledger_id}


def begin(watcher: RunWatcher, ports: Ports, *, step_run_id: str, step: str, flow_run_id: str | None) -> None:
    """Begin a step run, or go on with one: refuse it where it was forgotten, and have its plan marked.

    Outside a flow run nothing can be restarted, and nothing is asked.

    Raises:
        RunForgotten: See `check_remembered`.
    """
    if flow_run_id is None:
        return
    check_remembered(ports.ledger, step_run_id=step_run_id, step=step, flow_run_id=flow_run_id, watcher=watcher)
    watcher.mark = mark_of(ports.ledger, step_run_id)


def check_remembered(ledger: Ledger, *, step_run_id: str, step: str, flow_run_id: str, watcher: Watcher) -> None:
    """Refuse to begin a step run that Prefect says has begun already.

    Where Prefect's API cannot be asked, a run of which the ledger knows other steps goes on, and any other one is
    refused: nothing tells it from a run that began elsewhere.

    Raises:
        RunForgotten: It began before and this ledger has no record of it, or nobody can say.
    """
    if ledger.step_run(step_run_id) is not None:
        return
    try:
        marks = marks_of(flow_run_id, artifact_key("plan", step))
    except Exception as error:
        if ledger.step_runs_of(flow_run_id):
            watcher.noticed(
                f"Prefect could not be asked whether step {step!r} began before ({type(error).__name__}). The ledger "
                "knows earlier steps of this run, so it goes on."
            )
            return
        msg = (
            f"Prefect could not be asked whether step {step!r} of this flow run began before "
            f"({type(error).__name__}), and the ledger knows nothing of the run. Nothing was sent: if it did begin, "
            "in another ledger, everything would be paid for again. Run the flow again when Prefect's API answers."
        )
        raise RunForgotten(msg) from error
    for mark in marks:
        if mark.get(_STEP_RUN) == step_run_id:
            raise RunForgotten(_forgotten(step, began_in=mark.get(_LEDGER, "?"), here=ledger.ledger_id))


def _forgotten(step: str, *, began_in: str, here: str) -> str:
    if began_in == here:
        cause = f"ledger {here[:8]} has lost its record of it, as one does that was put back from an old copy"
    else:
        cause = f"ledger {began_in[:8]} has it, and the one at hand is {here[:8]}, as on a new disk in a pod"
    return (
        f"Step {step!r} of this flow run began before, and there is no record of it: {cause}. Nothing was sent, for "
        "what is out or answered would be paid for again. Put the ledger back, or keep it where every machine reaches "
        "it: LedgerDatabase(url='postgresql+psycopg://...'). To pay again on purpose, start a new flow run."
    )
