"""What is asked of Prefect's API about a run, each question bounded in time.

An API that is slow or down holds nothing up for longer than that; what not knowing means is the asker's to say.
"""

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import CancelledRun, TerminationSignal

__all__ = ["CancelledRun", "TerminationSignal", "flow_runs_within", "is_at_work", "is_being_cancelled", "marks_of"]

T = TypeVar("T")

ANSWER_WITHIN_S = 5.0
"""For a question at the end of a run: Prefect kills a cancelled run 30 s after it has asked it to end."""

MARKS_WITHIN_S = 60.0
"""For the question at the start of a step: Prefect's client tries again, with growing pauses, in this time."""

_PAGE = 200
"""As many artifacts as Prefect's API gives at a time."""

_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)


def is_being_cancelled(flow_run_id: str) -> bool:
    """Return whether a flow run, or one that it is a part of, is being cancelled; False where nobody can say.

    A process is asked to end in the same way when its pod is evicted: only the run's state tells the two apart.
    """

    def look() -> bool:
        with get_client(sync_client=True) as client:
            run: FlowRun | None = client.read_flow_run(UUID(flow_run_id))
            while run is not None:
                if run.state_type in _CANCELLED:
                    return True
                parent = client.read_task_run(run.parent_task_run_id) if run.parent_task_run_id else None
                run = client.read_flow_run(parent.flow_run_id) if parent and parent.flow_run_id else None
        return False

    try:
        return _within(ANSWER_WITHIN_S, look)
    except Exception:  # noqa: BLE001 (recorded by what it returns: what was paid for is kept where nobody can say)
        return False


def is_at_work(flow_run_id: str) -> bool:
    """Return whether Prefect has a flow run as running; False where nobody can say."""

    def look() -> bool:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(flow_run_id)).state_type is StateType.RUNNING

    try:
        return _within(ANSWER_WITHIN_S, look)
    except Exception:  # noqa: BLE001 (recorded by what it returns: the ledger needs no API)
        return False


def marks_of(flow_run_id: str, key: str) -> list[dict[str, str]]:
    """Return the metadata of a flow run's artifacts of one key, newest first.

    Raises:
        Exception: Prefect's API did not answer, in whatever words its client has for that.
    """

    def look() -> list[dict[str, str]]:
        wanted = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]), key=ArtifactFilterKey(any_=[key])
        )
        marks: list[dict[str, str]] = []
        with get_client(sync_client=True) as client:
            # A run may make a call for each of many prompts, each with a mark of its own.
            while page := client.read_artifacts(artifact_filter=wanted, limit=_PAGE, offset=len(marks)):
                marks += [artifact.metadata_ or {} for artifact in page]
                if len(page) < _PAGE:
                    break
        return marks

    return _within(MARKS_WITHIN_S, look)


def flow_runs_within(flow_run_id: str) -> list[str]:
    """Return a flow run and those that it called, as far as the API tells in time."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

    def look() -> list[str]:
        found, open_ = [], [UUID(flow_run_id)]
        with get_client(sync_client=True) as client:
            while open_:
                found += open_
                children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=open_))
                open_ = [run.id for run in client.read_flow_runs(flow_run_filter=children)]
        return [str(run_id) for run_id in found]

    try:
        return _within(ANSWER_WITHIN_S, look)
    except Exception:  # noqa: BLE001 (recorded by what it returns: the run itself needs no API)
        return [flow_run_id]


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Return or raise what `work` does, if it does within a time. Raises `TimeoutError`."""
    context, ended = copy_context(), threading.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(context.run(work))
        except BaseException as error:  # noqa: BLE001 (raised again in the calling thread)
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="llm-api", daemon=True).start()
    ended.wait(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        msg = f"Prefect's API did not answer within {seconds:g} s."
        raise TimeoutError(msg)
    return outcome[0]
