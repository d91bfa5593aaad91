"""Endpoints beside text: vectors as columns, and bodies that pass through as they are."""

import json
from collections.abc import Callable
from typing import Any, cast

import polars as pl
import pytest
from prefect import flow
from pydantic import BaseModel

from prefect_llm_tiers import ConfigurationError, LLMStep, RowsFailed, llm_step
from tests.acceptance.conftest import World

Docs = Callable[[int], pl.DataFrame]


def run(step: LLMStep, frame: pl.DataFrame) -> pl.DataFrame:
    """Run a step in a flow of its own."""

    @flow
    def asked() -> Any:
        return step(frame)

    return cast("pl.DataFrame", asked())


def options(world: World, **changes: Any) -> dict[str, Any]:
    """Return what a step at one of these endpoints is made with: nothing bounds its output."""
    return {name: value for name, value in world.options(**changes).items() if name != "max_output_tokens"}


def embedding(world: World, **changes: Any) -> dict[str, Any]:
    """Return what a step that embeds is made with."""
    return options(world, endpoint="embeddings", model="text-embedding-3-small", **changes)


@pytest.mark.parametrize("tier", ["batch", "standard"])
def test_a_frame_is_embedded(world: World, docs: Docs, tier: str) -> None:
    """Every row has its own vector, the same in each tier, and a row with a null has none."""
    step = llm_step(**embedding(world, tiers=[tier], meta=True, max_failed=1, column="vector"))(lambda body: body)
    frame = pl.concat([docs(3), docs(1).with_columns(body=pl.lit(None, dtype=pl.String)), docs(1)])
    done = run(step, frame)
    assert done.schema["vector"] == pl.List(pl.Float32)
    vectors = done["vector"].to_list()
    assert [len(vector) if vector else None for vector in vectors] == [1536, 1536, 1536, None, 1536]
    assert vectors[0] == vectors[4]
    assert vectors[0] != vectors[1]
    assert done["vector_error"].to_list() == [None, None, None, "null in column 'body'", None]
    meta = done["vector_meta"].struct
    assert meta.field("tier").to_list() == [tier, tier, tier, None, tier]
    assert meta.field("output_tokens").drop_nulls().to_list() == [0] * 4
    assert world.account().billed_usd == world.paid_by_ledger() > 0
    assert world.account().asked == 3


def test_both_tiers_give_one_vector_which_is_paid_for_once(world: World, docs: Docs) -> None:
    """What a batch embedded is not embedded again live."""
    step = llm_step(**embedding(world, tiers=["batch"], column="vector"))(lambda body: body)
    first = run(step, docs(2))
    second = run(step.with_options(tiers=["standard"]), docs(2))
    assert first.equals(second)
    assert world.account().asked == 2


@pytest.mark.parametrize("tier", ["batch", "standard"])
def test_a_fixed_number_of_dimensions_is_an_array(world: World, docs: Docs, tier: str) -> None:
    """With `dimensions` the column's type says how long each vector is."""
    step = llm_step(**embedding(world, tiers=[tier], options={"dimensions": 8}, column="vector"))(lambda body: body)
    done = run(step, docs(2))
    assert done.schema["vector"] == pl.Array(pl.Float32, 8)
    assert done["vector"].null_count() == 0


def test_several_inputs_in_one_row(world: World, docs: Docs) -> None:
    """A body with several inputs gives its row a list of vectors, in the order of the inputs."""
    both = llm_step(**embedding(world, options={"dimensions": 4}, column="vectors"))(
        lambda title, body: {"input": [title, body]}
    )
    alone = llm_step(**embedding(world, options={"dimensions": 4}, column="vector"))(lambda title: title)
    done = run(both, docs(2))
    assert done.schema["vectors"] == pl.List(pl.Array(pl.Float32, 4))
    assert [len(row) for row in done["vectors"].to_list()] == [2, 2]
    assert [row[0] for row in done["vectors"].to_list()] == run(alone, docs(2))["vector"].to_list()


class Verdict(BaseModel):
    """One text's moderation."""

    flagged: bool


class Moderation(BaseModel):
    """The reply of the moderations endpoint, as far as it is of use."""

    model: str
    results: list[Verdict]


@pytest.mark.parametrize("tier", ["batch", "standard"])
def test_a_raw_endpoint_passes_bodies_through(world: World, docs: Docs, tier: str) -> None:
    """The prompt function returns the body, and the column is the reply's as JSON or as a model read from it."""
    made = options(world, endpoint="moderations", model="omni-moderation-latest", tiers=[tier], column="said")

    def body(body: str) -> dict[str, Any]:
        return {"input": body}

    plain = run(llm_step(**made)(body), docs(2))
    assert [len(json.loads(text)["results"]) for text in plain["said"]] == [1, 1]
    read = run(llm_step(**made, output=Moderation)(body), docs(2))
    assert read["said"].struct.field("model").to_list() == ["omni-moderation-latest"] * 2
    assert [row[0]["flagged"] for row in read["said"].struct.field("results").to_list()] == [False, False]
    # The model reads what is there: nothing was asked again.
    assert world.account().asked == 2


def test_a_prompt_that_the_endpoint_does_not_take_fails_its_row(world: World, docs: Docs) -> None:
    """A text where a body is due is the row's failure, with what to return, and nothing is asked."""
    step = llm_step(**options(world, endpoint="completions", model="gpt-3.5-turbo-instruct", column="said"))(
        lambda body: body
    )
    with pytest.raises(RowsFailed, match="as a dict"):
        run(step, docs(1))
    assert world.account().asked == 0


def test_what_an_embedding_cannot_be_told(world: World, docs: Docs) -> None:
    """Instructions have no place in an embedding: that is said where the step is declared."""
    with pytest.raises(ConfigurationError, match="no use for system="):
        llm_step(**embedding(world, system="Be brief."))


def test_moderations_are_planned_as_free(world: World, docs: Docs) -> None:
    """Nobody bills them, so the plan says that nothing is to be paid, and not that no price is known."""
    made = options(world, endpoint="moderations", model="omni-moderation-latest", column="said")
    plan = llm_step(**made)(lambda body: {"input": body}).plan(docs(3))
    assert not plan.unpriced
    assert "unpriced" not in str(plan)
    assert plan.cost_usd == plan.list_usd == 0
