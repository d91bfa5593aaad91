"""Hosts that speak OpenAI's protocol and offer other tiers, end to end over the real SDK."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from prefect import flow

from prefect_llm_tiers import ConfigurationError, complete, llm_step
from prefect_llm_tiers.core.outcomes import Usage
from prefect_llm_tiers.core.prices import price
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.acceptance.conftest import World

Docs = Callable[[int], pl.DataFrame]

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
OSS = "openai/gpt-oss-20b"
STEADY = BatchLaw(median_s=600.0, sigma=0.0, stuck_share=0.0)


def summary(title: str, body: str) -> str:
    """Ask for a summary."""
    return f"Summarize {title}.\n{body}"


def summarized(world: World, rows: pl.DataFrame, **changes: Any) -> pl.DataFrame:
    """Summarize rows in a flow run of its own."""
    step = llm_step(**world.options(**changes), meta=True)(summary)

    @flow
    def night() -> pl.DataFrame:
        return step(rows)

    return night()


def answered(world: World) -> dict[tuple[Tier, str], int]:
    """Return how many requests were answered, by tier and lane."""
    return {(line.tier, line.lane): line.answered for line in world.account().lines if line.answered}


def test_a_server_of_ones_own_is_asked_on_standard_alone(world: World, docs: Docs) -> None:
    """Llama on vLLM: no other tier, no batch and no `service_tier`, which it refuses; unpriced, and never free."""
    world.shaped(WorldSettings(service="vllm"))
    frame = summarized(world, docs(6), model=LLAMA)
    assert frame["summary_error"].null_count() == 6
    assert answered(world) == {(Tier.STANDARD, "live"): 6}
    assert world.account().asked == 6
    assert frame["summary_meta"].struct.field("tier").to_list() == ["standard"] * 6
    assert frame["summary_meta"].struct.field("cost_usd").null_count() == 6


def test_a_server_of_ones_own_has_no_batches(world: World, docs: Docs) -> None:
    """A tier that the service lacks is refused before anything is asked, with those it has."""
    world.shaped(WorldSettings(service="vllm"))
    with pytest.raises(ConfigurationError, match=r"may use batch, flex;.*offered in standard"):
        summarized(world, docs(1), model=LLAMA, tiers=["batch", "flex"])
    assert world.account().asked == 0


def test_a_model_that_a_server_does_not_have(world: World, docs: Docs) -> None:
    """Its list of models tells, as it has no page for each."""
    world.shaped(WorldSettings(service="vllm"))
    with pytest.raises(ConfigurationError, match="does not offer the model 'meta-llama/Llama-9'"):
        summarized(world, docs(1), model="meta-llama/Llama-9")


def test_flex_at_groq(world: World) -> None:
    """Its 498 is capacity, and is waited out; what it serves as flex costs what standard costs."""
    world.shaped(WorldSettings(service="groq", faults=Faults(only={"live_498": (0,)})))
    options = world.options(model=OSS, tiers=["flex"])
    assert "page 4" in complete("Summarize page 4: a valve.", **options)
    assert answered(world) == {(Tier.FLEX, "live"): 1}
    assert world.account().capacity_refused == 1
    assert world.paid_by_ledger() == world.account().billed_usd > 0


def test_flex_that_saves_nothing_is_not_waited_for(world: World) -> None:
    """Where flex costs what standard costs, the plan takes the tier that is sure; Groq calls it `on_demand`."""
    world.shaped(WorldSettings(service="groq"))
    options = world.options(model=OSS, tiers=["flex", "standard"], deadline=timedelta(minutes=30))
    assert "page 4" in complete("Summarize page 4: a valve.", **options)
    assert answered(world) == {(Tier.STANDARD, "live"): 1}
    assert world.paid_by_ledger() == world.account().billed_usd > 0


def test_a_batch_at_groq(world: World, docs: Docs) -> None:
    """Batches are like OpenAI's, at half the price."""
    world.shaped(WorldSettings(service="groq", batch=STEADY))
    summarized(world, docs(4), model=OSS, tiers=["batch"])
    assert answered(world) == {(Tier.BATCH, "batch"): 4}
    assert world.paid_by_ledger() == world.account().billed_usd > 0


def test_what_a_service_charges_is_its_own_price() -> None:
    """A model whose weights are published has the price of whoever serves it, and no price where nobody tells."""
    usage, at = Usage(input_tokens=1000, output_tokens=1000), datetime(2026, 11, 1, tzinfo=UTC)

    def of(provider: str, model: str, tier: Tier) -> Any:
        found = price(usage, provider=provider, model=model, tier=tier, at=at)
        return found.usd if found is not None else None

    assert of("groq", OSS, Tier.STANDARD) == of("groq", OSS, Tier.FLEX) == 2 * of("groq", OSS, Tier.BATCH)
    assert of("openai", "gpt-oss-20b", Tier.STANDARD) is None
    assert of("vllm", LLAMA, Tier.STANDARD) is None
    assert of("deepinfra", LLAMA, Tier.STANDARD) is None
    assert of("doubleword", OSS, Tier.STANDARD) is not None
    assert of("doubleword", OSS, Tier.BATCH) is None
