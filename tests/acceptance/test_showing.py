"""What a run shows in Prefect, and what never gets there."""

import asyncio
import base64
import json
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogHandler
from pydantic import BaseModel, field_validator

from prefect_llm_tiers import Chain, LLMStep, RowsFailed, llm_step
from prefect_llm_tiers.planning.plan import show_usd
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.acceptance.conftest import World

Docs = Callable[[int], pl.DataFrame]

MARK = "zebra-quartz"
"""Stands in every prompt, and through the simulated model's words in every answer."""


class Echo(BaseModel):
    """Refuses every answer, with the answer in its mouth."""

    text: str

    @field_validator("text")
    @classmethod
    def _refuse(cls, value: str) -> str:
        msg = f"{MARK} {value}"
        raise ValueError(msg)


def marked(world: World, **changes: Any) -> LLMStep:
    """Return a step whose prompts and answers bear the mark."""

    @llm_step(**world.options(**changes))
    def summary(body: str, audience: str = MARK) -> str:
        if "3th" in body:
            msg = f"{MARK}: {body}"
            raise ValueError(msg)
        return f"Summarize for {audience}.\n\n{MARK}: {body}"

    return summary


async def everything_of(flow_run_id: UUID) -> dict[str, Any]:
    """Return all that the Prefect API has of a flow run."""
    await APILogHandler.aflush()
    runs = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    async with get_client() as client:
        return {
            "flow_run": (await client.read_flow_run(flow_run_id)).model_dump(mode="json"),
            "task_runs": [run.model_dump(mode="json") for run in await client.read_task_runs(flow_run_filter=runs)],
            "states": [state.model_dump(mode="json") for state in await client.read_flow_run_states(flow_run_id)],
            "logs": [
                log.model_dump(mode="json")
                for log in await client.read_logs(
                    LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])), limit=200
                )
            ],
            "artifacts": [
                artifact.model_dump(mode="json")
                for artifact in await client.read_artifacts(
                    artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
                )
            ],
        }


def shown(work: Callable[[], object]) -> dict[str, Any]:
    """Run something in a flow, and return all that Prefect's API has of it then."""
    runs: list[UUID] = []

    @flow
    def watched() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        runs.append(context.flow_run.id)
        work()

    watched(return_state=True)
    return asyncio.run(everything_of(runs[0]))


def test_plan_progress_and_savings_are_shown(world: World, docs: Docs) -> None:
    """Each step run leaves three artifacts, whose numbers are those of the bill, and logs what it does."""
    step = marked(world)
    seen = shown(lambda: step(docs(3)))
    artifacts = {one["key"]: one for one in seen["artifacts"]}
    assert set(artifacts) == {
        "llm-tiers-plan-summary",
        "llm-tiers-progress-summary",
        "llm-tiers-savings-summary",
    }
    assert "| summary | 3 |" in artifacts["llm-tiers-plan-summary"]["data"]
    assert float(artifacts["llm-tiers-progress-summary"]["data"]) == 100.0
    savings = artifacts["llm-tiers-savings-summary"]["data"]
    assert f"{show_usd(world.account().billed_usd)} paid" in savings
    assert all(one["task_run_id"] for one in artifacts.values())
    messages = "\n".join(log["message"] for log in seen["logs"])
    for words in ("Plan for 1 step", "Starting in batch", "submitted: 3 requests", "3 answers kept", "saved"):
        assert words in messages


def test_a_switch_is_shown(world: World, docs: Docs) -> None:
    """A batch that is stuck is left in time; log and savings tell both tiers."""
    world.shaped(WorldSettings(batch=BatchLaw(median_s=600, sigma=0), stuck_batches=("openai:0",)))
    step = marked(world, deadline=timedelta(hours=3), tiers=["batch", "standard"])
    seen = shown(lambda: step(docs(3)))
    messages = "\n".join(log["message"] for log in seen["logs"])
    assert "Switching from batch to standard" in messages
    assert "on time" in messages
    [savings] = [one["data"] for one in seen["artifacts"] if "savings" in one["key"]]
    assert "| standard | standard | answer |" in savings


def test_nothing_of_prompts_or_answers_reaches_prefect(world: World, docs: Docs) -> None:
    """Parameters, states, logs and artifacts of good and failed steps hold no word of a prompt or an answer."""
    good = marked(world, max_failed=1, meta=True)
    failing = marked(world, output=Echo, max_attempts=1, tiers=["standard"]).with_options(name="failing")

    def both() -> None:
        done = good(docs(5))
        assert MARK in done["summary"][0]
        state = good.submit(docs(5), audience=f"{MARK}!", return_state=True)
        assert state.is_completed()
        failing(docs(5))

    seen = shown(both)
    assert seen["flow_run"]["state"]["type"] == "FAILED"
    pages = [one for one in seen["artifacts"] if one["key"] is not None]
    assert len(pages) == 9
    # Prefect stores the exception of a failed run; the artifact without a key says where.
    [stored] = [Path(one["data"]["storage_key"]) for one in seen["artifacts"] if one["key"] is None]
    pickled = base64.decodebytes(stored.read_bytes())
    assert isinstance(pickle.loads(pickled), RowsFailed)
    assert MARK.encode() not in pickled
    assert "prompt_error: ValueError" in json.dumps(seen)
    assert MARK not in json.dumps(seen)
    assert "valve" not in json.dumps(seen)


def test_the_error_of_a_step_holds_no_answer(world: World, docs: Docs) -> None:
    """What Prefect stores of a failed run is the exception: counts and places, no words."""
    with pytest.raises(RowsFailed) as raised:
        marked(world, output=Echo, max_attempts=1, max_failed=1)(docs(4))
    error: BaseException | None = raised.value
    while error is not None:
        assert MARK not in f"{error!r}{error.args}"
        error = error.__cause__ or error.__context__


def test_plans_pay_nothing(world: World, docs: Docs) -> None:
    """A step's plan and a chain's price and time the work, say what is answered already, and ask nothing."""
    first = marked(world)
    second = llm_step(**world.options())(lambda summary: f"Title.\n\n{summary}").with_options(name="title_of")
    beside = llm_step(**world.options())(lambda title: f"Colour.\n\n{title}").with_options(name="colour")
    chain = Chain(first, second, beside, due=timedelta(hours=6))
    plan = chain.plan(docs(3))
    assert [(step.name, step.requests) for step in plan.steps] == [("summary", 3), ("title_of", 3), ("colour", 3)]
    assert plan.due is not None
    assert 0 < plan.cost_usd < plan.list_usd
    assert "Plan for 3 steps; due" in str(plan)
    alone = first.plan(docs(3))
    assert (alone.due, [step.name for step in alone.steps]) == (None, ["summary"])
    assert (world.account().asked, world.account().files_uploaded) == (0, 0)

    @flow
    def planned_and_run() -> None:
        with chain:
            assert [step.name for step in first.plan(docs(3)).steps] == ["summary", "title_of"]
            first(docs(3))
            assert first.plan(docs(3)).steps[0].requests == 0
            assert chain.plan(docs(4).tail(2)).steps[0].answered == 1

    planned_and_run()
    assert [report.rows for report in chain.report()] == [3]
    assert world.account().asked == 3
