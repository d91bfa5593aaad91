"""What proves that nothing was submitted or paid twice."""

from decimal import Decimal
from typing import Any

import msgspec
import openai
import pytest

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator.account import Billed
from prefect_llm_tiers.simulator.asked import body_digest
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.records import BatchRecord
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import Box, anthropic_requests, openai_lines

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)


def question(number: int) -> dict[str, Any]:
    """Return the body of one of `openai_lines`."""
    return {"model": "gpt-6-luna", "input": f"Summarize.\nPage {number} tells how it is done."}


async def busy(box: Box) -> None:
    """Pay in every lane: two batches of the same rows, a cancelled one, live calls, another dialect."""
    client = box.openai()
    await box.openai_batch(openai_lines(5))
    await box.openai_batch(openai_lines(5))
    cancelled = await box.openai_batch(openai_lines(7))
    await client.batches.cancel(cancelled.id)
    await client.responses.create(**question(1), service_tier="flex")
    await client.responses.create(**question(99))
    await box.anthropic().messages.batches.create(requests=anthropic_requests(3))
    await box.wait(hours=2)


def test_every_bill_is_found_by_its_body_and_they_add_up() -> None:
    """The bills of all bodies come to the account's, to the last digit, and say where each was billed."""
    box = Box(WorldSettings(batch=HOUR))
    box.run(busy(box))
    billed, account = box.simulation.billed(), box.simulation.account()
    assert sum((bill.usd for bill in billed.values()), Decimal(0)) == account.billed_usd > 0
    assert sum(bill.times for bill in billed.values()) == account.answered == 5 + 5 + 2 + 3
    assert sum(bill.times - 1 for bill in billed.values()) == account.billed_again == 6
    assert account.asked_more_than_once == 5
    bill = billed[body_digest(Endpoint.RESPONSES, question(1))]
    first, second, *_ = box.simulation.batches()
    assert sorted(bill.where) == sorted((first.id, second.id, "live"))
    assert bill.times == 3


def test_batches_that_carry_the_same_bodies_have_one_digest() -> None:
    """Neither order nor custom_ids tell bodies apart; another body does."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> None:
        lines = openai_lines(4).splitlines(keepends=True)
        renamed = [line.replace(b'"row-', b'"other-') for line in reversed(lines)]
        await box.openai_batch(b"".join(lines))
        await box.openai_batch(b"".join(renamed))
        await box.openai_batch(b"".join(lines[:3]))

    box.run(live())
    same, again, other = (record.rows_digest for record in box.simulation.batches())
    assert same == again != other


def test_a_record_tells_what_became_of_a_batch() -> None:
    """Status in the dialect's words, a cancel, rows and billed rows, and the sender's own metadata."""
    box = Box(WorldSettings(batch=HOUR))
    box.run(busy(box))
    first, _, cancelled, anthropic = box.simulation.batches()
    assert (first.status, first.cancelled, first.rows, first.billed_rows) == ("completed", False, 5, 5)
    assert (first.dialect, first.model, first.endpoint) == ("openai", "gpt-6-luna", "/v1/responses")
    assert first.metadata == {"token": "t-1"}
    assert (cancelled.status, cancelled.cancelled, cancelled.billed_rows) == ("cancelled", True, 0)
    assert (anthropic.status, anthropic.endpoint, anthropic.metadata) == ("ended", "/v1/messages", None)


def test_batches_that_nobody_can_see_are_on_record() -> None:
    """Hidden, lost, failed and deleted batches are listed all the same."""
    faults = Faults(only={"batch_hidden": (0,), "create_502_taken": (1,)}, batch_hidden_s=(9e9, 9e9))
    box = Box(WorldSettings(batch=HOUR, faults=faults))

    async def live() -> None:
        await box.openai_batch(openai_lines(1))
        with pytest.raises(openai.InternalServerError):
            await box.openai_batch(openai_lines(2))
        await box.openai_batch(b"{nonsense\n")
        deleted = await box.anthropic().messages.batches.create(requests=anthropic_requests(3))
        await box.wait(hours=2)
        await box.anthropic().messages.batches.delete(deleted.id)

    box.run(live())
    assert [(record.rows, record.status) for record in box.simulation.batches()] == [
        (1, "completed"),
        (2, "completed"),
        (0, "failed"),
        (3, "ended"),
    ]


def test_the_evidence_over_http_is_the_same() -> None:
    """GET /_simulator/batches and /_simulator/billed are the structs as JSON, amounts as decimal strings."""
    box = Box(WorldSettings(batch=HOUR))
    box.run(busy(box))

    async def fetch() -> tuple[bytes, bytes]:
        http = box.http()
        return (await http.get("/_simulator/batches")).content, (await http.get("/_simulator/billed")).content

    batches, billed = box.run(fetch())
    assert msgspec.json.decode(batches, type=list[BatchRecord]) == box.simulation.batches()
    assert msgspec.json.decode(billed, type=dict[str, Billed]) == box.simulation.billed()
    assert isinstance(next(iter(msgspec.json.decode(billed).values()))["usd"], str)
