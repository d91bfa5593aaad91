"""Chains: which step needs which, and when all of them are due."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import polars as pl
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

from prefect_llm_tiers import Chain, ConfigurationError, LLMStep, by, llm_step
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.acceptance.conftest import World

Docs = Callable[[int], pl.DataFrame]


def steps(world: World, **changes: Any) -> tuple[LLMStep, LLMStep, LLMStep]:
    """Return a step over documents, one over its answers, and one over whole rows."""

    @llm_step(**world.options(**changes))
    def summary(body: str) -> str:
        return f"Summarize.\n\n{body}"

    @llm_step(**world.options(**changes))
    def title_of(summary: str) -> str:
        return f"Give a title.\n\n{summary}"

    @llm_step(**world.options(**changes))
    def check(row: dict[str, Any]) -> str:
        return f"Check.\n\n{row['title_of']}"

    return summary, title_of, check


def later_of(chain: Chain, step: LLMStep) -> list[tuple[str, tuple[str, ...]]]:
    """Return the steps that come after one, with those of them that each needs."""
    value = chain.value_for(step)
    assert value is not None
    return [(outline.name, outline.after) for outline in value.later]


def test_steps_need_those_whose_columns_they_read(world: World) -> None:
    """A step needs those that add what it reads; one that takes whole rows needs all before it."""
    summary, title_of, check = steps(world)
    chain = Chain(summary, title_of, check)
    assert later_of(chain, summary) == [("title_of", ("summary",)), ("check", ("summary", "title_of"))]
    assert later_of(chain, title_of) == [("check", ("title_of",))]
    assert later_of(chain, check) == []


def test_needs_can_be_said(world: World) -> None:
    """`after=` overrides what columns tell, and knows a step's copies by its name."""
    summary, title_of, check = steps(world)
    chain = Chain(summary, title_of, check, after={check.with_options(meta=True): [title_of], title_of: []})
    assert later_of(chain, summary) == []
    assert later_of(chain, title_of) == [("check", ("title_of",))]
    with pytest.raises(ConfigurationError, match="'check', which is not in the chain"):
        Chain(summary, title_of, after={title_of: [check]})
    with pytest.raises(ConfigurationError, match="'check', not in the chain"):
        Chain(summary, title_of, after={check: [title_of]})
    with pytest.raises(ConfigurationError, match="does not come before it"):
        Chain(summary, title_of, after={summary: [title_of]})


def test_chains_that_cannot_be(world: World) -> None:
    """A chain of nothing, of other tasks, with unknown words, or entered twice at once is refused."""
    summary, *_ = steps(world)
    wrong: list[Callable[[], object]] = [
        Chain,
        lambda: Chain(summary.prompt),  # type: ignore[arg-type]
        lambda: Chain(summary, on_miss="cry"),  # type: ignore[arg-type]
        lambda: Chain(summary, infeasible="never"),  # type: ignore[arg-type]
        lambda: Chain(summary, on_time=99),
        lambda: Chain(summary, due=timedelta(0)),
    ]
    for make in wrong:
        with pytest.raises(ConfigurationError):
            make()
    with Chain(summary) as chain, pytest.raises(ConfigurationError, match="entered already"):
        chain.__enter__()


def test_a_time_of_day_counts_from_the_scheduled_start(world: World, docs: Docs) -> None:
    """A run that starts two hours late has two hours less, and not another day."""
    summary, *_ = steps(world)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    passed = now - timedelta(hours=1)

    @flow
    def nightly() -> tuple[datetime | None, datetime | None]:
        late = Chain(summary, due=by(f"{passed:%H:%M}", "UTC"), infeasible="best_effort")
        spanned = Chain(summary, due=timedelta(hours=5))
        return late.plan(docs(1)).due, spanned.plan(docs(1)).due

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(nightly, state=Scheduled(scheduled_time=now - timedelta(hours=2)))
    late, spanned = cast("tuple[datetime, datetime]", run_flow(nightly, flow_run=run))
    assert abs(late - passed) < timedelta(seconds=5)
    # A span counts from when the run began.
    assert abs(spanned - (datetime.now(UTC) + timedelta(hours=5))) < timedelta(minutes=1)
    # Outside a flow both count from now.
    tomorrow = Chain(summary, due=by(f"{passed:%H:%M}", "UTC")).plan(docs(1))
    assert tomorrow.due is not None
    assert abs(tomorrow.due - passed - timedelta(days=1)) < timedelta(seconds=5)


def test_a_chain_leaves_time_for_what_comes_after(world: World, docs: Docs) -> None:
    """With batches stuck, each step switches early enough for the whole chain to be on time."""
    world.shaped(WorldSettings(batch=BatchLaw(median_s=600, sigma=0), stuck_batches=("openai:0", "openai:1")))
    summary, title_of, _ = steps(world, tiers=["batch", "standard"])
    chain = Chain(summary, title_of, due=timedelta(hours=6))

    @flow
    def nightly() -> pl.DataFrame:
        with chain:
            return title_of(summary(docs(4)))

    done = nightly()
    assert done["title_of_error"].null_count() == 4
    reports = chain.report()
    assert [report.late for report in reports] == [False, False]
    assert sum(report.paid_usd for report in reports) == world.account().billed_usd == world.paid_by_ledger()
    assert world.account().asked_more_than_once == 0


def test_a_step_outside_the_chain_has_no_due_time(world: World, docs: Docs) -> None:
    """Inside the block of a chain a step that is not in it runs as it would without."""
    summary, title_of, _ = steps(world)

    @flow
    def nightly() -> None:
        with Chain(summary, due=timedelta(hours=6)) as chain:
            assert summary.plan(docs(1)).due is not None
            assert title_of.plan(docs(1).with_columns(summary=pl.lit("x"))).due is None
            assert chain.report() == []

    nightly()
