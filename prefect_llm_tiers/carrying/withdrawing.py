"""What a run that is being cancelled does with its batches before it ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prefect_llm_tiers.carrying.beside import Stop
from prefect_llm_tiers.core.batches import LIVE_STATES
from prefect_llm_tiers.engine.caretaker import withdraw
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.errors import LLMTiersError

__all__ = ["withdrawing"]

WITHDRAW_WITHIN_S = 15.0
"""Prefect kills a run 30 s after it has asked it to end."""


@contextlib.asynccontextmanager
async def withdrawing(stop: Stop, ports: Ports, *, flow_run_id: str | None, account: str) -> AsyncIterator[None]:
    """Cancel the batches that a run alone waits for, if it ends early and was told to.

    What they finish by then is harvested by whoever looks next: another run over this ledger, or
    `prefect-llm-tiers recover`. What cannot be done in time is left to `prefect-llm-tiers cancel`.
    """
    try:
        yield
    except asyncio.CancelledError:
        if flow_run_id is not None:
            if stop.withdraws:
                await _withdraw(ports, flow_run_id, account)
            else:
                _tell_left(ports, flow_run_id)
        raise


def _tell_left(ports: Ports, flow_run_id: str) -> None:
    out = {
        batch.id
        for run in ports.ledger.step_runs_of(flow_run_id)
        for batch in ports.ledger.batches_of(run.id)
        if batch.state in LIVE_STATES
    }
    if out:
        ports.watcher.noticed(
            f"The process was told to end; its batches ({', '.join(map(str, sorted(out)))}) stay out. A run that is "
            f"started again takes them up; `prefect-llm-tiers cancel {flow_run_id}` stops them."
        )


async def _withdraw(ports: Ports, flow_run_id: str, account: str) -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
    try:
        async with asyncio.timeout(WITHDRAW_WITHIN_S):
            batches = await withdraw(ports, flow_run_id=flow_run_id, keep=False, account=account)
    except (TimeoutError, LLMTiersError) as error:
        ports.watcher.noticed(
            f"The batches of this run could not all be cancelled ({type(error).__name__}). Run `prefect-llm-tiers "
            f"cancel {flow_run_id}`."
        )
        return
    if batches:
        numbers = ", ".join(str(batch.id) for batch in batches)
        ports.watcher.noticed(
            f"The run is being cancelled, and with it batches that it alone waited for ({numbers}). What they finish "
            "by then is paid for, and kept by the next run or by `prefect-llm-tiers recover`."
        )
