"""The example of the design: two steps in a chain, over a real Prefect server and a simulated provider."""

from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import polars as pl
from prefect import flow
from pydantic import BaseModel

from prefect_llm_tiers import Chain, LLMStep, llm_step
from tests.acceptance.conftest import World


class Label(BaseModel):
    """What kind of page it is."""

    topic: Literal["api", "howto", "concept"]
    confidence: float


def two_steps(world: World) -> tuple[LLMStep, LLMStep]:
    """Return the steps of the design's example."""

    @llm_step(**world.options())
    def summary(title: str, body: str) -> str:
        return f"Summarize for an on-call engineer.\n\n# {title}\n{body}"

    @llm_step(**world.options(output=Label, deadline=timedelta(minutes=45)))
    def label(summary: str, audience: str = "engineers") -> str:
        return f"Label this summary for {audience}:\n{summary}"

    return summary, label


def test_two_chained_steps_add_their_columns(world: World, docs: Callable[[int], pl.DataFrame]) -> None:
    """Each step adds its answers and its errors in row order; a pydantic model becomes a struct."""
    summary, label = two_steps(world)

    @flow
    def nightly(frame: pl.DataFrame) -> pl.DataFrame:
        with Chain(summary, label, due=timedelta(hours=6), on_time=0.99):
            return label(summary(frame))

    done = nightly(docs(12))
    assert done.columns == ["title", "body", "summary", "summary_error", "label", "label_error"]
    assert done.schema["label"] == pl.Struct({"topic": pl.String, "confidence": pl.Float64})
    assert done["title"].to_list() == docs(12)["title"].to_list()
    assert done["summary_error"].null_count() == done["label_error"].null_count() == 12
    # The simulated model summarizes by the document's own words.
    assert all(f"{row}th page" in text for row, text in enumerate(done["summary"]))
    assert set(done["label"].struct.field("topic")) <= {"api", "howto", "concept"}


def test_a_second_run_pays_nothing(world: World, docs: Callable[[int], pl.DataFrame]) -> None:
    """A new flow run over the same rows asks nothing; ledger and provider agree on the bill to the last digit."""
    summary, label = two_steps(world)

    @flow
    def nightly(frame: pl.DataFrame) -> pl.DataFrame:
        with Chain(summary, label, due=timedelta(hours=6)):
            return label(summary(frame))

    first = nightly(docs(10))
    paid = world.account()
    assert paid.asked == paid.answered == 20
    assert paid.billed_usd > 0
    assert world.paid_by_ledger() == paid.billed_usd
    second = nightly(docs(10))
    again = world.account()
    assert (again.asked, again.billed_usd, again.asked_more_than_once) == (20, paid.billed_usd, 0)
    assert second.equals(first)
    # More rows: only the new ones are paid for.
    nightly(docs(13))
    assert world.account().asked == 26


def test_the_report_of_a_chain_is_the_bill(world: World, docs: Callable[[int], pl.DataFrame]) -> None:
    """What a chain reports as paid is what the provider bills, and the list price is what standard costs."""
    summary, label = two_steps(world)
    chain = Chain(summary, label, due=timedelta(hours=6))

    @flow
    def nightly(frame: pl.DataFrame) -> pl.DataFrame:
        with chain:
            return label(summary(frame))

    nightly(docs(10))
    reports = chain.report()
    assert [report.step for report in reports] == ["summary", "label"]
    assert sum(report.paid_usd for report in reports) == world.account().billed_usd
    assert all(report.list_usd == 2 * report.paid_usd for report in reports)
    assert not any(report.late for report in reports)
