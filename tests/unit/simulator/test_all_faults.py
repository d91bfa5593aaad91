"""Everything at once: the world stays a world, and the same one every time."""

import asyncio
import contextlib
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from prefect_llm_tiers.simulator.account import Account
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.records import BatchRecord
from prefect_llm_tiers.simulator.settings import all_faults
from tests.unit.simulator.box import Box, anthropic_requests, openai_lines

DOCS = Path(__file__).parents[3] / "docs"
SOURCES = Path(__file__).parents[3] / "prefect_llm_tiers" / "simulator"

WHAT_FAULTS_LOOK_LIKE = (
    openai.OpenAIError,
    anthropic.AnthropicError,
    httpx2.TransportError,
    TimeoutError,
    ValueError,  # a body that the SDK cannot read
    TypeError,
    AttributeError,
)
"""What a client without any care meets; whatever else comes is a defect of the simulator."""


def a_bad_week(seed: int, rate: float) -> tuple[Account, list[BatchRecord], list[str]]:
    """Use every endpoint for a while with all faults on, and return the evidence and what was met."""
    box = Box(all_faults(seed, rate))
    met: list[str] = []

    async def tried(number: int, name: str, work: Any) -> Any:
        try:
            async with asyncio.timeout(900):
                result = await work
        except WHAT_FAULTS_LOOK_LIKE as error:
            met.append(f"{number} {name} {type(error).__name__} {getattr(error, 'status_code', '')}")
            return None
        met.append(f"{number} {name} fine")
        return result

    async def openai_batch(number: int) -> None:
        client = box.openai()
        upload = client.files.create(file=("rows.jsonl", io.BytesIO(openai_lines(5 + number))), purpose="batch")
        file = await tried(number, "upload", upload)
        if file is None:
            return
        create = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
        batch = await tried(number, "create", create)
        await tried(number, "list", first_ids(client.batches.list(limit=5)))
        if batch is None:
            return
        await box.wait(minutes=5)
        if number % 3 == 0:
            await tried(number, "cancel", client.batches.cancel(batch.id))
        await box.wait(hours=3)
        ended = await tried(number, "retrieve", client.batches.retrieve(batch.id))
        for file_id in (ended.output_file_id, ended.error_file_id) if ended else ():
            if file_id:
                await tried(number, "content", client.files.content(file_id))

    async def anthropic_batch(number: int) -> None:
        batches = box.anthropic().messages.batches
        batch = await tried(number, "create", batches.create(requests=anthropic_requests(5 + number)))
        await tried(number, "list", first_ids(batches.list(limit=5)))
        if batch is None:
            return
        await box.wait(minutes=5)
        if number % 3 == 0:
            await tried(number, "cancel", batches.cancel(batch.id))
        await box.wait(hours=3)
        with contextlib.suppress(*WHAT_FAULTS_LOOK_LIKE):
            results = await batches.results(batch.id)
            met.extend([f"{number} line {getattr(line, 'custom_id', None)}" async for line in results])

    async def live(number: int) -> None:
        asked = box.openai().responses.create(
            model="gpt-6-luna", input=f"Sum up.\nPage {number}.", service_tier=("flex", "default")[number % 2]
        )
        await tried(number, "ask", asked)
        said = box.anthropic().messages.create(
            model="claude-haiku-5-5", max_tokens=50, messages=[{"role": "user", "content": f"Page {number}."}]
        )
        await tried(number, "ask", said)

    async def week() -> None:
        for number in range(12):
            await asyncio.gather(openai_batch(number), anthropic_batch(number), live(number))
        await box.wait(hours=30)

    box.run(week())
    billed = box.simulation.billed()
    account = box.simulation.account()
    assert sum((bill.usd for bill in billed.values()), Decimal(0)) == account.billed_usd
    assert sum(record.billed_rows for record in box.simulation.batches()) == sum(
        line.answered for line in account.lines if line.lane == "batch"
    )
    return account, box.simulation.batches(), met


async def first_ids(pages: Any) -> list[str]:
    """Return the ids of the first thirty of a list, which may have no end."""
    found = []
    async for batch in pages:
        found.append(batch.id)
        if len(found) == 30:
            break
    return found


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_world_full_of_faults_is_the_same_every_time(rate: float) -> None:
    """Account, batches and all that clients met repeat to the letter; only faults are met; the bill adds up."""
    first = a_bad_week(7, rate)
    assert first == a_bad_week(7, rate)
    assert first[0].faults != a_bad_week(8, rate)[0].faults
    assert len(first[0].faults) > 15


def test_every_fault_is_drawn_and_told() -> None:
    """No fault is a name alone: each is drawn somewhere, and the page on the simulator tells how it is switched on."""
    drawn = "".join(path.read_text() for path in SOURCES.glob("*.py") if path.name != "faults.py")
    told = (DOCS / "simulator.md").read_text()
    for name in Faults.names():
        assert f'"{name}"' in drawn
        assert f"`{name}`" in told
    for name in Faults.__struct_fields__:
        assert f"`{name}`" in told
