import asyncio
import threading
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.simulator.account import Account
from prefect_llm_tiers.simulator.book import MODELS, bill_usd
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from prefect_llm_tiers.simulator.simulation import in_process
from tests.unit.simulator.box import Box, anthropic_requests, openai_lines

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)


def test_the_bill_is_the_usage_at_the_price_of_the_tier_served() -> None:
    """Each lane's line is the sum of the usages that came back, at the published price."""
    box = Box(WorldSettings(batch=HOUR))
    prices = {"default": ("0.1", "0.5"), "flex": ("0.05", "0.25"), "priority": ("0.2", "1")}

    async def ask() -> Decimal:
        client = box.openai()
        due = Decimal(0)
        tiers: tuple[Any, ...] = ("default", "flex", "priority")
        for tier in tiers:
            for number in range(3):
                response = await client.responses.create(
                    model="gpt-6-luna", input=f"Sum up.\nText {number} {tier}.", service_tier=tier
                )
                assert response.usage is not None
                read, written = map(Decimal, prices[tier])
                due += response.usage.input_tokens * read + response.usage.output_tokens * written
        batch = await box.openai_batch(openai_lines(10))
        await box.wait(hours=2)
        batch = await client.batches.retrieve(batch.id)
        assert batch.usage is not None
        due += batch.usage.input_tokens * Decimal("0.05") + batch.usage.output_tokens * Decimal("0.25")
        return due / 1_000_000

    due = box.run(ask())
    account = box.simulation.account()
    assert account.billed_usd == due
    assert {(line.tier, line.lane, line.answered) for line in account.lines} == {
        (Tier.STANDARD, "live", 3),
        (Tier.FLEX, "live", 3),
        (Tier.PRIORITY, "live", 3),
        (Tier.BATCH, "batch", 10),
    }
    assert account.asked_more_than_once == 0


def test_paying_twice_for_one_body_is_seen_across_lanes() -> None:
    """A body billed in a batch and again live, in whatever tier, counts once as asked more than once."""
    box = Box(WorldSettings(batch=HOUR))

    async def ask() -> None:
        batch = await box.openai_batch(openai_lines(3))
        await box.wait(hours=2)
        assert (await box.openai().batches.retrieve(batch.id)).status == "completed"
        for tier in ("default", "flex"):
            await box.openai().responses.create(
                model="gpt-6-luna",
                input="Summarize.\nPage 1 tells how it is done.",
                service_tier=tier,
            )

    box.run(ask())
    assert box.simulation.account().asked_more_than_once == 1


def test_work_nobody_fetched_is_billed() -> None:
    """A batch that nobody looks at again is billed all the same, as time passes."""
    box = Box(WorldSettings(batch=HOUR))

    async def submit() -> None:
        await box.openai_batch(openai_lines(20))
        await box.anthropic().messages.batches.create(requests=anthropic_requests(20))

    box.run(submit())
    assert box.simulation.account().answered == 0
    box.run(box.wait(hours=2))
    assert box.simulation.account().answered == 40


def test_a_client_that_hangs_up_has_paid() -> None:
    """A live call whose client gives up is billed."""
    box = Box()

    async def hang_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await box.openai().responses.create(model="gpt-6-luna", input="x")

    box.run(hang_up())
    assert box.simulation.account().answered == 1


def test_the_account_over_http_is_the_same() -> None:
    """GET /_simulator/account is the struct as JSON, amounts as decimal strings."""
    box = Box()

    async def ask() -> bytes:
        await box.openai().responses.create(model="gpt-6-luna", input="x")
        return (await box.http().get("/_simulator/account")).content

    content = box.run(ask())
    assert msgspec.json.decode(content, type=Account) == box.simulation.account()
    assert isinstance(msgspec.json.decode(content)["billed_usd"], str)


@pytest.mark.parametrize(
    ("model", "tier", "tokens", "usd"),
    [
        ("o3", Tier.FLEX, (1_000_000, 1_000_000, 0), "0.25"),
        ("o3", Tier.BATCH, (1_000_000, 1_000_000, 0), "1"),
        ("gpt-5.6-sol", Tier.PRIORITY, (200_000, 0, 100_000), "5.6"),
        ("gpt-6.1-sol", Tier.STANDARD, (272_000, 0, 0), "0.544"),
        ("gpt-6.1-sol", Tier.STANDARD, (300_000, 0, 100_000), "2.7"),
        ("claude-haiku-5-5", Tier.BATCH, (100_000, 0, 10_000), "0.0075"),
        ("claude-haiku-5-5", Tier.BATCH, (200_000, 0, 10_000), "0.0625"),
        ("claude-opus-5-5", Tier.STANDARD, (100_000, 0, 10_000), "0.6"),
    ],
)
def test_prices_are_the_published_ones(model: str, tier: Tier, tokens: tuple[int, int, int], usd: str) -> None:
    """Hand-reckoned bills, long inputs among them, which cost more from the first token on."""
    read, cached, written = tokens
    bill = bill_usd(MODELS[model], tier, input_tokens=read, cached_tokens=cached, output_tokens=written)
    assert bill == Decimal(usd)


def test_one_name_is_one_world() -> None:
    """Providers that name the same simulation share it from any thread; other settings are refused."""
    settings = WorldSettings(seed=7)
    found = []
    threads = [threading.Thread(target=lambda: found.append(in_process("shared", settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1
    assert in_process("shared") is found[0]
    assert in_process("other") is not found[0]
    with pytest.raises(ConfigurationError, match="other settings"):
        in_process("shared", WorldSettings(seed=8))


def test_ids_differ_between_worlds_and_not_between_runs() -> None:
    """Ids repeat for one seed and start and never meet those of a world that started elsewhere."""

    def file_id(hours: int) -> str:
        box = Box()
        box.run(box.wait(hours=hours))
        late = type(box.simulation)(WorldSettings(), box.clock)
        return late.world.new_id("file-")

    assert file_id(0) == file_id(0)
    assert file_id(0) != file_id(1)
