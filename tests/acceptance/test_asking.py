"""What a step can be told: which columns it reads, how it asks, and what it adds."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, cast

import polars as pl
import pytest
from prefect import flow
from pydantic import BaseModel, Field

from prefect_llm_tiers import ConfigurationError, LLMStep, llm_step
from prefect_llm_tiers.simulator.settings import WorldSettings
from tests.acceptance.conftest import CALM, Dialect, World

Docs = Callable[[int], pl.DataFrame]


def run(step: LLMStep, frame: pl.DataFrame, **constants: Any) -> pl.DataFrame:
    """Run a step in a flow of its own."""

    @flow
    def asked() -> Any:
        return step(frame, **constants)

    return cast("pl.DataFrame", asked())


def test_parameters_with_defaults_are_constants(world: World, docs: Docs, caplog: pytest.LogCaptureFixture) -> None:
    """A constant has its default or what the call sets; a column of its name is not read, and that is said."""

    @llm_step(**world.options())
    def label(body: str, audience: str = "engineers") -> str:
        return f"Label for {audience}.\n\nFor {audience}: {body}"

    frame = docs(2).with_columns(audience=pl.lit("column"))
    assert "For engineers" in run(label, frame)["label"][0]
    assert "does not read the column 'audience'" in caplog.text
    caplog.clear()
    assert "For support" in run(label, frame, audience="support")["label"][0]
    mapped = label.with_options(columns={"audience": "audience"})
    assert "For column" in run(mapped, frame)["label"][0]
    assert "does not read" not in caplog.text
    assert world.account().asked == 6
    with pytest.raises(ConfigurationError, match="no parameter 'audiance'; it has 'body', 'audience'"):
        run(label, frame, audiance="support")


def test_columns_whose_names_are_no_identifiers(world: World, docs: Docs) -> None:
    """`columns=` maps a parameter to a column of any name; a wrong parameter is told when the step is declared."""
    step = llm_step(**world.options(columns={"body": "Page Body"}, column="done"))(lambda body: f"Sum.\n\n{body}")
    done = run(step, docs(2).rename({"body": "Page Body"}))
    assert "1th page" in done["done"][1]
    with pytest.raises(ConfigurationError, match="'text'"):
        step.with_options(columns={"text": "Page Body"})


def test_a_prompt_function_may_take_the_whole_row(world: World, docs: Docs) -> None:
    """A parameter `row` receives every column of the row, nulls among them."""

    @llm_step(**world.options())
    def summary(row: dict[str, Any]) -> str:
        return f"Summarize.\n\n{sorted(row)} {row['title']} {row['empty']}"

    done = run(summary, docs(2).with_columns(empty=pl.lit(None, dtype=pl.Int64)))
    assert done["summary"].to_list() == [f"['body', 'empty', 'title'] Page {row} None" for row in range(2)]


def test_a_prompt_function_of_constants_alone(world: World, docs: Docs) -> None:
    """A prompt that reads no column asks one question for all rows, once."""
    step = llm_step(**world.options(column="fact"))(lambda topic="valves": f"Tell a fact.\n\nAbout {topic}.")
    assert run(step, docs(3))["fact"].to_list() == ["About valves."] * 3
    assert world.account().asked == 1


@pytest.mark.parametrize("kind", ["async", "stars", "generator"])
def test_prompt_functions_that_cannot_be_steps(world: World, kind: str) -> None:
    """A function whose parameters or kind do not fit is refused when it is declared."""

    async def later(body: str) -> str:
        return body

    def starred(*bodies: str) -> str:
        return bodies[0]

    def yielding(body: str) -> Any:
        yield body

    functions: dict[str, Any] = {"async": later, "stars": starred, "generator": yielding}
    with pytest.raises(ConfigurationError, match="The prompt function of step"):
        llm_step(**world.options())(functions[kind])


def test_samples(world: World, docs: Docs) -> None:
    """`samples=n` asks the same thing n times; the cells are lists, of the answers and of their meta."""
    step = llm_step(**world.options(samples=3, meta=True, column="said"))(lambda body: f"Sum.\n\n{body}")
    done = run(step, docs(2))
    assert done.schema["said"] == pl.List(pl.String)
    assert done["said"].list.len().to_list() == done["said_meta"].list.len().to_list() == [3, 3]
    assert world.account().asked == 6
    # One more sample of each is one more question of each.
    run(step.with_options(samples=4), docs(2))
    assert world.account().asked == 8


def test_meta(world: World, docs: Docs) -> None:
    """`NAME_meta` tells tier, price and tokens of each row, and the prices add up to the bill."""
    step = llm_step(**world.options(meta=True, tiers=["standard"], column="said"))(lambda body: f"Sum.\n\n{body}")
    first, second = run(step, docs(3)), run(step, docs(3))
    meta = first["said_meta"].struct
    assert meta.field("tier").to_list() == ["standard"] * 3
    account = world.account()
    assert sum(meta.field("cost_usd").to_list(), Decimal(0)) == account.billed_usd
    assert meta.field("input_tokens").sum() == account.input_tokens
    assert meta.field("output_tokens").sum() == account.output_tokens
    assert meta.field("reused").to_list() == [False] * 3
    assert second["said_meta"].struct.field("reused").to_list() == [True] * 3


def test_two_rows_with_one_prompt_are_asked_once(world: World, docs: Docs) -> None:
    """Rows that ask the same thing share one request and its answer."""
    step = llm_step(**world.options(column="said"))(lambda body: f"Sum.\n\n{body}")
    frame = pl.concat([docs(2), docs(2)])
    done = run(step, frame)["said"].to_list()
    assert done[:2] == done[2:]
    assert world.account().asked == 2


@pytest.mark.parametrize(
    ("dialect", "model", "endpoint"),
    [
        ("openai", "gpt-6-luna", "responses"),
        ("openai", "gpt-6-luna", "chat/completions"),
        ("openai", "gpt-6-luna", "/v1/chat/completions"),
        ("anthropic", "claude-haiku-5-5", "messages"),
    ],
)
@pytest.mark.parametrize("tier", ["batch", "standard"])
def test_endpoints(world: World, docs: Docs, dialect: Dialect, model: str, endpoint: str, tier: str) -> None:
    """Text with standing instructions and messages goes by every endpoint, in batches and live."""
    options = world.options(provider=world.provider(dialect), model=model, endpoint=endpoint, tiers=[tier])

    @llm_step(**options, system="You are brief.", meta=True)
    def summary(body: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": f"Summarize.\n\n{body}"},
        ]

    done = run(summary, docs(2))
    assert "1th page" in done["summary"][1]
    assert done["summary_meta"].struct.field("tier").to_list() == [tier] * 2
    assert world.account().billed_usd == world.paid_by_ledger() > 0


@pytest.mark.parametrize("tier", ["flex", "priority"])
def test_tiers(world: World, docs: Docs, tier: str) -> None:
    """A step keeps to the tiers it may use, and what is paid is the price of the tier that served."""
    step = llm_step(**world.options(tiers=[tier], column="said"))(lambda body: f"Sum.\n\n{body}")
    run(step, docs(2))
    [line] = world.account().lines
    assert (line.tier, line.answered, line.billed_usd) == (tier, 2, world.paid_by_ledger())


def test_a_priority_call_that_is_interactive_uses_no_batch(world: World, docs: Docs) -> None:
    """`interactive=True` rules batch out, however cheap it would be."""
    step = llm_step(**world.options(interactive=True, column="said"))(lambda body: f"Sum.\n\n{body}")
    run(step, docs(2))
    assert world.account().batches_created == 0
    with pytest.raises(ConfigurationError, match="interactive=True"):
        run(step.with_options(tiers=["batch"]), docs(2))


class Level(IntEnum):
    """How hard it is."""

    EASY = 1
    HARD = 2


class Kind(Enum):
    """What it is."""

    PAGE = "page"
    BOOK = "book"


class Author(BaseModel):
    """Who wrote it."""

    name: str = Field(alias="fullName")
    born: dt.date | None


class Rich(BaseModel):
    """What models are made of."""

    stars: Literal[1, 2, 3]
    level: Level
    kind: Kind
    maybe: Literal["yes", "no"] | None
    score: Annotated[float, Field(ge=0, le=1)]
    author: Author
    tags: list[str]
    others: list[Author] | None
    seen: dt.datetime
    sure: bool


@pytest.mark.parametrize(("dialect", "model"), [("openai", "gpt-6-luna"), ("anthropic", "claude-haiku-5-5")])
def test_rich_models(world: World, docs: Docs, dialect: Dialect, model: str) -> None:
    """Literals, enums, nested and optional models, lists and dates become typed columns under the fields' names."""
    author = pl.Struct({"name": pl.String, "born": pl.String})
    step = llm_step(**world.options(provider=world.provider(dialect), model=model, output=Rich, column="said"))(
        lambda body: f"Tell.\n\n{body}"
    )
    done = run(step, docs(20))
    assert done.schema["said"] == pl.Struct(
        {
            "stars": pl.Int64,
            "level": pl.Int64,
            "kind": pl.String,
            "maybe": pl.String,
            "score": pl.Float64,
            "author": author,
            "tags": pl.List(pl.String),
            "others": pl.List(author),
            "seen": pl.String,
            "sure": pl.Boolean,
        }
    )
    assert done["said_error"].null_count() == 20
    assert done["said"].struct.field("author").struct.field("name").null_count() == 0
    assert set(done["said"].struct.field("level")) <= {1, 2}


def test_what_is_told_of_a_step_is_checked(world: World) -> None:
    """Values that cannot work are refused where they are given, by name."""
    wrong: list[tuple[str, Any]] = [
        ("samples", 0),
        ("max_attempts", 0),
        ("max_failed", -1),
        ("max_concurrency", 0),
        ("on_time", 1.0),
        ("infeasible", "ignore"),
        ("on_miss", "cry"),
        ("tiers", ["cheap"]),
        ("model", ""),
        ("output", dict),
        ("reuse_for", dt.timedelta(0)),
        ("deadline", dt.timedelta(0)),
        ("deadline", "tomorrow"),
    ]
    for name, value in wrong:
        with pytest.raises(ConfigurationError, match=r"\.$") as raised:
            llm_step(**world.options(**{name: value}))
        assert name in str(raised.value) or "tier" in str(raised.value)


def test_old_answers_are_not_reused_when_told_so(world: World, docs: Docs) -> None:
    """`reuse_for=None` asks anew in every run, and each run pays for its own answers only."""
    world.shaped(WorldSettings(batch=CALM.batch))
    step = llm_step(**world.options(reuse_for=None, column="said"))(lambda body: f"Sum.\n\n{body}")
    run(step, docs(2))
    run(step, docs(2))
    assert world.account().asked == 4
    assert world.paid_by_ledger() == world.account().billed_usd
