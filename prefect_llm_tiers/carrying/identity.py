"""Which run a call of a step belongs to, so that a restart of the run finds what the call began."""

import threading
from collections import Counter
from typing import Any

import msgspec
from prefect.context import FlowRunContext, TaskRunContext

from prefect_llm_tiers.chain import ChainValue

__all__ = ["Call", "next_run_key", "process_owner", "run_scope"]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a step, as a plain value that Prefect neither traverses nor shows.

    Attributes:
        scope: The run it belongs to; None outside any, where the call's own task run stands in.
        run_key: Tells it from the other calls of the step in that run.
        constants: Values for the prompt function's parameters.
        chain: What it needs of its chain; None outside one.
        strayed: Whether it is made inside a chain that the step is not a part of.
    """

    scope: str | None
    run_key: str
    constants: dict[str, Any]
    chain: ChainValue | None
    strayed: bool = False


def run_scope() -> str | None:
    """Return the flow run that the caller is in, None outside any.

    Outside a flow there is no run that a restart could find again.
    """
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if task is not None and task.task_run.flow_run_id is not None:
        return str(task.task_run.flow_run_id)
    if flow is not None and flow.flow_run is not None:
        return str(flow.flow_run.id)
    return None


def next_run_key(step: str, given: str | None, *, peek: bool = False) -> str:
    """Return the key of a call within its run: the given one, or the call's number among those of the step.

    Counted anew each time Prefect runs the flow's or the calling task's body again in this process: a retry must
    arrive at the same numbers as the attempt before it. Calls inside different tasks are told apart by the task.

    Args:
        step: The step's name.
        given: The caller's own key.
        peek: Leave the number to the next call.
    """
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    prefix = f"{task.task_run.task_key}-{task.task_run.dynamic_key}/" if task is not None else ""
    if given is not None:
        return prefix + given
    attempts = (
        flow.flow_run.run_count if flow is not None and flow.flow_run is not None else 0,
        task.task_run.run_count if task is not None else 0,
    )
    counter = (run_scope(), attempts, prefix, step)
    with _LOCK:
        number = _CALLS[counter]
        _CALLS[counter] += not peek
    return f"{prefix}{number}"


def process_owner() -> str:
    """Return the name under which this process holds leases.

    Prefect draws a task run's id in the process that runs it, so two processes of one run differ.
    """
    task = TaskRunContext.get()
    return f"task-run:{task.task_run.id}" if task is not None else "preview"


_CALLS: Counter[tuple[str | None, tuple[int, int], str, str]] = Counter()
_LOCK = threading.Lock()
