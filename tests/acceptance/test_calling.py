"""A step is a Prefect task: every way to call one, and what Prefect gets to see of it."""

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import cloudpickle  # type: ignore[import-untyped]
import polars as pl
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture

from prefect_llm_tiers import Chain, ConfigurationError, LLMStep, RowsFailed, llm_step
from tests.acceptance.conftest import World

Docs = Callable[[int], pl.DataFrame]


def asking(world: World, **changes: Any) -> LLMStep:
    """Return a step that asks for a summary of `body`."""

    @llm_step(**world.options(**changes))
    def summary(body: str, audience: str = "engineers") -> str:
        """Ask for a summary."""
        return f"Summarize for {audience}.\n\n{body}"

    return summary


def this_run() -> UUID:
    """Return the id of the flow run that calls."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


def test_branches_run_beside_each_other(world: World, docs: Docs) -> None:
    """Two submitted steps return futures of frames; a step takes another's future and `wait_for`."""
    summary = asking(world)
    title = llm_step(**world.options())(lambda summary: f"Give a title.\n\n{summary}").with_options(
        name="title", column="title_of"
    )

    @flow
    def branches(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        one = summary.submit(frame.head(4))
        other = summary.submit(frame.tail(4), wait_for=[one])
        assert isinstance(one, PrefectFuture)
        return title(one), title.submit(other).result()

    first, second = branches(docs(8))
    assert first["title_of_error"].null_count() == second["title_of_error"].null_count() == 4
    assert "0th page" in first["title_of"][0]
    assert "7th page" in second["title_of"][3]
    assert world.account().asked == 16


def test_options_make_another_step(world: World, docs: Docs) -> None:
    """`.with_options` takes the step's own options and Prefect's, and leaves the original as it was."""
    summary = asking(world)
    other = summary.with_options(
        name="brief", retries=2, tags=["night"], model="gpt-6.1-sol", tiers=["standard"], meta=True
    )
    assert isinstance(other, LLMStep)
    assert (other.name, other.retries, other.tags) == ("brief", 2, {"night"})
    assert (summary.name, summary.retries, summary.tags) == ("summary", 0, set())
    assert (summary.options.model, summary.options.tiers, summary.options.meta) == ("gpt-6-luna", None, False)
    assert (other.persist_result, other.cache_policy) == (summary.persist_result, summary.cache_policy)

    @flow
    def both(frame: pl.DataFrame) -> pl.DataFrame:
        return summary(other(frame))

    done = both(docs(3))
    assert done.columns == [
        "title",
        "body",
        "brief",
        "brief_error",
        "brief_meta",
        "summary",
        "summary_error",
    ]
    assert done["brief_meta"].struct.field("tier").to_list() == ["standard"] * 3
    assert {line.model: line.asked for line in world.account().lines} == {"gpt-6-luna": 3, "gpt-6.1-sol": 3}


def test_an_unknown_option_names_the_way_out(world: World) -> None:
    """What neither the step nor Prefect takes is refused, with the place for the provider's own fields."""
    with pytest.raises(ConfigurationError, match=r"temperature=.*options="):
        asking(world, temperature=0)
    with pytest.raises(ConfigurationError, match="colour="):
        asking(world).with_options(colour="red")


def test_a_state_instead_of_a_frame(world: World, docs: Docs) -> None:
    """`return_state=True` gives Prefect's state, by calling as by submitting."""
    summary = asking(world)

    @flow
    def states(frame: pl.DataFrame) -> list[pl.DataFrame]:
        called = summary(frame, return_state=True)
        submitted = summary.submit(frame, return_state=True)
        assert isinstance(called, State)
        assert called.is_completed()
        return [called.result(), submitted.result()]

    frames = states(docs(2))
    assert frames[0].equals(frames[1])
    assert world.account().asked == 2


def test_async_flows(world: World, docs: Docs) -> None:
    """In an async flow `acall` leaves the loop free, and a plain call and `.submit` work too."""
    summary = asking(world)

    @flow
    async def several(frame: pl.DataFrame) -> list[pl.DataFrame]:
        ticks = 0

        async def ticking() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        beside = asyncio.create_task(ticking())
        awaited = await asyncio.gather(summary.acall(frame.head(2)), summary.acall(frame.tail(2)))
        beside.cancel()
        assert ticks > 1
        return [*awaited, summary(frame), summary.submit(frame).result()]

    done = asyncio.run(several(docs(4)))
    assert [frame.height for frame in done] == [2, 2, 4, 4]
    assert done[2].equals(done[3])
    assert world.account().asked == 4


def test_a_step_inside_a_task(world: World, docs: Docs) -> None:
    """A step may be called from another task; calls in two tasks of one run are told apart."""
    summary = asking(world)

    @task
    def half(frame: pl.DataFrame) -> pl.DataFrame:
        return summary(frame)

    @flow
    def halves(frame: pl.DataFrame) -> pl.DataFrame:
        parts = [half.submit(frame.head(3)), half.submit(frame.tail(3))]
        return pl.concat([part.result() for part in parts])

    done = halves(docs(6))
    assert ["0th page" in done["summary"][0], "5th page" in done["summary"][5]] == [True, True]


def test_a_step_outside_a_flow(world: World, docs: Docs) -> None:
    """A step runs by itself; a second call pays nothing."""
    summary = asking(world)
    assert summary(docs(2)).equals(summary(docs(2)))
    assert world.account().asked == 2


def test_a_step_called_twice_in_a_flow(world: World, docs: Docs) -> None:
    """Each call of a step is a step run of its own, so other rows at the second are no change of the first."""
    summary = asking(world)

    @flow
    def twice(frame: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([summary(frame.head(2)), summary(frame.tail(3))])

    assert twice(docs(5)).height == 5
    assert world.account().asked == 5


def test_a_flow_that_is_retried_pays_nothing_twice(world: World, docs: Docs) -> None:
    """Prefect's retry of a flow runs its body again: the steps arrive at the same step runs and ask nothing."""
    summary = asking(world)
    attempts: list[int] = []
    deadlines = Chain(summary, due=timedelta(hours=2))

    @flow(retries=1)
    def flaky(frame: pl.DataFrame) -> pl.DataFrame:
        with deadlines:
            done = summary(frame)
        attempts.append(done.height)
        if len(attempts) == 1:
            msg = "after the step"
            raise RuntimeError(msg)
        return done

    flaky(docs(3))
    assert attempts == [3, 3]
    assert world.account().asked == 3
    # One step run, entered twice: a second one would have been reported beside it.
    assert len(deadlines.report()) == 1


def test_failed_rows_are_asked_again_by_a_retry_of_the_step(world: World, docs: Docs) -> None:
    """`retries=` on a step enters the same step run again; rows whose prompt can be built by then are asked."""
    broken = [True]

    @llm_step(**world.options(), retries=1)
    def summary(body: str) -> str:
        if broken[0] and "1th" in body:
            broken[0] = False
            msg = "not yet"
            raise ValueError(msg)
        return f"Summarize.\n\n{body}"

    changed = summary.with_options(on_input_change="ask")

    @flow
    def retried(frame: pl.DataFrame) -> pl.DataFrame:
        return changed(frame)

    assert retried(docs(3))["summary_error"].null_count() == 3
    assert world.account().asked == 3


def test_a_step_travels_by_cloudpickle(world: World, docs: Docs) -> None:
    """A step that was pickled and read again is a step with the same options, and works."""
    summary = asking(world)
    copied = cloudpickle.loads(cloudpickle.dumps(summary))
    assert isinstance(copied, LLMStep)
    assert (copied.name, copied.task_key, copied.options) == (summary.name, summary.task_key, summary.options)

    assert copied(docs(2)).equals(summary(docs(2)))
    assert world.account().asked == 2


def test_prefect_sees_no_rows(world: World, docs: Docs) -> None:
    """A task run's inputs name task runs and nothing else: no row is hashed, stored or sent."""
    summary = asking(world)
    runs: list[UUID] = []

    @flow
    def seen(frame: pl.DataFrame) -> pl.DataFrame:
        runs.append(this_run())
        first = summary.submit(frame)
        return summary.with_options(name="again")(first, audience="managers")

    seen(docs(2))
    inputs = sorted(asyncio.run(task_inputs(runs[0])), key=str)
    assert [set(one) for one in inputs] == [{"rows", "call"}] * 2
    told = [each for one in inputs for name in one for each in one[name]]
    assert [each["input_type"] for each in told] == ["task_run"]


async def task_inputs(flow_run_id: UUID) -> list[dict[str, list[dict[str, Any]]]]:
    """Return the inputs of a flow run's task runs."""
    async with get_client() as client:
        runs = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    return [run.model_dump(mode="json")["task_inputs"] for run in runs]


def test_mapping_is_refused(world: World, docs: Docs) -> None:
    """`.map` over a frame would call the step once a column: a TypeError points to `.submit`."""
    with pytest.raises(TypeError, match=r"summary\.submit\(frame\)"):
        asking(world).map(docs(2))


def test_what_a_call_takes_is_what_help_shows(world: World) -> None:
    """A step's signature is rows, the constants of the prompt function, and Prefect's two keywords."""
    assert list(inspect.signature(asking(world)).parameters) == [
        "rows",
        "audience",
        "return_state",
        "wait_for",
    ]


def test_prompts_can_be_tested_alone(world: World) -> None:
    """`.prompt` is the function itself; `.fn`, which Prefect's tasks have, says where to look instead."""
    summary = asking(world)
    assert summary.prompt(body="A valve.") == "Summarize for engineers.\n\nA valve."
    with pytest.raises(ConfigurationError, match=r"\.prompt"):
        summary.fn(pl.DataFrame({"body": ["A valve."]}))


def test_lazy_frames_and_files(world: World, docs: Docs, tmp_path: Path) -> None:
    """A LazyFrame and the path of a Parquet file are rows as a frame is."""
    path = tmp_path / "docs.parquet"
    docs(3).write_parquet(path)
    summary = asking(world)

    @flow
    def all_kinds() -> list[pl.DataFrame]:
        return [summary(path), summary(str(path)), summary(pl.scan_parquet(path))]

    first, *others = all_kinds()
    assert first.columns == ["title", "body", "summary", "summary_error"]
    assert all(frame.equals(first) for frame in others)
    assert world.account().asked == 3


def test_dask_carries_a_step_to_another_process(world: World, docs: Docs) -> None:
    """On a Dask worker, another process, a step works as it does here and its errors come back whole.

    The simulated world is the worker's own; what they share is the ledger, so that afterwards nothing is asked.
    """
    from distributed import LocalCluster
    from prefect_dask.task_runners import DaskTaskRunner

    summary = asking(world)
    # Any: both packages leave their classes untyped.
    cluster_of: Any = LocalCluster
    with cluster_of(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        runner: Any = DaskTaskRunner(address=cluster.scheduler_address)

        @flow(task_runner=runner)
        def on_dask(frame: pl.DataFrame) -> tuple[pl.DataFrame, str]:
            with Chain(summary, due=timedelta(hours=8)):
                done = summary.submit(frame)
            failed = summary.submit(frame.with_columns(body=pl.lit(None, dtype=pl.String)))
            with pytest.raises(RowsFailed) as raised:
                failed.result()
            assert (raised.value.failed, raised.value.reasons) == (3, {"null in column 'body'": 3})
            return done.result(), str(raised.value)

        there, message = on_dask(docs(3))
    assert "3 of 3 rows of step 'summary' failed" in message
    assert world.paid_by_ledger() > 0
    assert summary(docs(3)).equals(there)
    assert world.account().asked == 0
