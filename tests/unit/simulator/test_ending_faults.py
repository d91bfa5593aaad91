"""How a batch may end, be cancelled, and be read."""

import json
from datetime import timedelta
from typing import Any

import httpx2
import openai
import pytest

from prefect_llm_tiers.simulator.clock import ScaledClock
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.server import serving
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import Box, anthropic_requests, openai_lines
from tests.unit.simulator.test_creation_faults import DIALECTS, ERRORS, batches_of, create

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)


def box_with(rates: dict[str, Any], **settings: Any) -> Box:
    """Return a box with these faults and batches of one hour."""
    return Box(WorldSettings(batch=HOUR, faults=Faults(**rates), **settings))


async def later(box: Box, batch: Any, **delta: float) -> Any:
    """Return a batch as it is after a while."""
    await box.wait(**delta)
    dialect = "openai" if batch.id.startswith("batch_") else "anthropic"
    return await batches_of(box, dialect).retrieve(batch.id)


async def kinds(box: Box, batch: Any) -> dict[str, int]:
    """Return how often each kind of outcome stands in the results of a batch."""
    found: dict[str, int] = {}
    if batch.id.startswith("msgbatch_"):
        async for result in await box.anthropic().messages.batches.results(batch.id):
            found[result.result.type] = found.get(result.result.type, 0) + 1
        return found
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is None:
            continue
        for line in (await box.openai().files.content(file_id)).text.splitlines():
            decoded = json.loads(line)
            kind = str(decoded["response"]["status_code"] if decoded["response"] else decoded["error"]["code"])
            found[kind] = found.get(kind, 0) + 1
    return found


@pytest.mark.parametrize(
    ("fault", "code"), [("token_limit", "token_limit_exceeded"), ("validation_fails", "invalid_json_line")]
)
def test_a_batch_fails_after_it_was_taken(fault: str, code: str) -> None:
    """It turns failed once validating is over, with the reason; nothing of it is billed; the next one goes well."""
    box = box_with({"only": {fault: (0,)}})

    async def live() -> tuple[Any, Any]:
        first = await later(box, await box.openai_batch(openai_lines(3)), minutes=1)
        second = await later(box, await box.openai_batch(openai_lines(3)), minutes=1)
        return first, second

    first, second = box.run(live())
    assert (first.status, first.errors.data[0].code, second.status) == ("failed", code, "in_progress")
    account = box.simulation.account()
    assert (account.asked, account.faults) == (3, {fault: 1})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_batch_expires_with_part_of_its_rows_done_and_billed(dialect: str) -> None:
    """At the end of the window the finished rows are there and paid; the rest says that it expired."""
    box = box_with({"batch_expires": 1})

    async def live() -> dict[str, int]:
        batch = await later(box, await create(box, dialect, rows=100), hours=24.1)
        return await kinds(box, batch)

    found = box.run(live())
    done = found["200" if dialect == "openai" else "succeeded"]
    undone = found["batch_expired" if dialect == "openai" else "expired"]
    assert done + undone == 100
    assert 0 < done < 100
    account = box.simulation.account()
    assert (account.answered, account.faults) == (done, {"batch_expires": 1})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_batch_completes_with_every_row_failed(dialect: str) -> None:
    """There is no output, every row stands in the errors, and nothing is billed."""
    box = box_with({"no_output": 1})

    async def live() -> tuple[Any, dict[str, int]]:
        batch = await later(box, await create(box, dialect, rows=4), hours=2)
        return batch, await kinds(box, batch)

    batch, found = box.run(live())
    if dialect == "openai":
        assert (batch.status, batch.output_file_id, found) == ("completed", None, {"500": 4})
    else:
        assert (batch.processing_status, found) == ("ended", {"errored": 4})
    account = box.simulation.account()
    assert (account.answered, account.faults) == (0, {"no_output": 1})


def test_a_batch_is_finalizing_for_long() -> None:
    """Its counts say that all is done for as long as it is finalizing."""
    box = box_with({"long_finalizing": 1, "long_finalizing_s": (5400, 5400)}, finalizing_s=0)

    async def live() -> list[tuple[str, int]]:
        batch = await box.openai_batch(openai_lines(4))
        looks = []
        for minutes in (61, 89, 1):
            batch = await later(box, batch, minutes=minutes)
            assert batch.request_counts is not None
            looks.append((batch.status, batch.request_counts.completed))
        return looks

    assert box.run(live()) == [("finalizing", 4), ("completed", 4), ("completed", 4)]
    assert box.simulation.account().faults == {"long_finalizing": 1}


@pytest.mark.parametrize("seconds", [120, 3600])
def test_the_output_comes_late(seconds: int) -> None:
    """The batch is completed, its counts promise rows, and no file is named until later."""
    box = box_with({"output_late": 1, "output_late_s": (seconds, seconds)}, finalizing_s=0)

    async def live() -> list[tuple[str, bool]]:
        batch = await later(box, await box.openai_batch(openai_lines(4)), hours=1)
        looks = [batch]
        looks.append(await later(box, batch, seconds=seconds - 1))
        looks.append(await later(box, batch, seconds=1))
        assert await kinds(box, looks[-1]) == {"200": 4}
        return [(look.status, look.output_file_id is None) for look in looks]

    assert box.run(live()) == [("completed", True), ("completed", True), ("completed", False)]
    assert box.simulation.account().faults == {"output_late": 1}


def test_results_cannot_be_found_for_a_while() -> None:
    """An ended message batch names no results, and answers 404 to who asks for them, until later."""
    box = box_with({"output_late": 1, "output_late_s": (120, 120)})

    async def live() -> tuple[bool, bool]:
        client = box.anthropic()
        batch = await client.messages.batches.create(requests=anthropic_requests(2))
        batch = await later(box, batch, hours=1)
        early = batch.results_url is None
        reply = await box.http().get(
            f"/v1/messages/batches/{batch.id}/results", headers={"x-api-key": "k", "anthropic-version": "2023-06-01"}
        )
        assert (batch.processing_status, reply.status_code) == ("ended", 404)
        batch = await later(box, batch, minutes=2)
        return early, batch.results_url is not None

    assert box.run(live()) == (True, True)
    assert box.simulation.account().faults == {"output_late": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_valid_rows_may_be_called_invalid(dialect: str) -> None:
    """Some rows end in an error of validation that only the results tell; they are not billed."""
    box = box_with({"row_invalid": 0.5})

    async def live() -> dict[str, int]:
        return await kinds(box, await later(box, await create(box, dialect, rows=60), hours=2))

    found = box.run(live())
    invalid = found["400" if dialect == "openai" else "errored"]
    assert 15 < invalid < 45
    account = box.simulation.account()
    assert (account.answered, account.faults) == (60 - invalid, {"row_invalid": invalid})


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("fault", "accepted"), [("cancel_refused", False), ("cancel_502_taken", True)])
def test_a_cancel_may_be_refused_or_its_reply_lost(dialect: str, fault: str, accepted: bool) -> None:
    """A refused cancel changes nothing and may be tried again; after a lost reply it runs all the same."""
    box = box_with({"only": {fault: (0,)}})

    async def live() -> list[bool]:
        batch = await create(box, dialect)
        with pytest.raises(ERRORS):
            await batches_of(box, dialect).cancel(batch.id)
        before = [record.cancelled for record in box.simulation.batches()]
        await batches_of(box, dialect).cancel(batch.id)
        return before

    assert box.run(live()) == [accepted]
    assert [record.cancelled for record in box.simulation.batches()] == [True]
    assert box.simulation.account().faults == {fault: 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cancel_may_begin_late(dialect: str) -> None:
    """It is accepted, and the batch goes on as if nothing had been asked for a while."""
    box = box_with({"cancel_late": 1, "cancel_late_s": (200, 200)})

    async def live() -> list[str]:
        batch = await later(box, await create(box, dialect, rows=20), minutes=10)
        looks = [await batches_of(box, dialect).cancel(batch.id)]
        looks.append(await later(box, batch, seconds=199))
        looks.append(await later(box, batch, seconds=1))
        looks.append(await later(box, batch, minutes=11))
        return [look.status if dialect == "openai" else look.processing_status for look in looks]

    wording = {
        "openai": ["in_progress", "in_progress", "cancelling", "cancelled"],
        "anthropic": ["in_progress", "in_progress", "canceling", "ended"],
    }
    assert box.run(live()) == wording[dialect]
    assert [record.cancelled for record in box.simulation.batches()] == [True]
    assert box.simulation.account().faults == {"cancel_late": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cancel_may_take_long(dialect: str) -> None:
    """It is under way for as long as said, and rows go on being done and billed meanwhile."""
    box = box_with({"cancel_slow": 1, "cancel_slow_s": (1500, 1500)}, finalizing_s=0)

    async def live() -> list[str]:
        batch = await later(box, await create(box, dialect, rows=200), minutes=30)
        await batches_of(box, dialect).cancel(batch.id)
        looks = [await later(box, batch, seconds=1499), await later(box, batch, seconds=1)]
        return [look.status if dialect == "openai" else look.processing_status for look in looks]

    wording = {"openai": ["cancelling", "cancelled"], "anthropic": ["canceling", "ended"]}
    assert box.run(live()) == wording[dialect]
    account = box.simulation.account()
    assert 0 < account.answered < 200
    assert account.faults == {"cancel_slow": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cancel_may_come_too_late(dialect: str) -> None:
    """The cancel is accepted, and yet every row is done and billed."""
    box = box_with({"cancel_too_late": 1})

    async def live() -> dict[str, int]:
        batch = await later(box, await create(box, dialect, rows=20), minutes=10)
        await batches_of(box, dialect).cancel(batch.id)
        batch = await later(box, batch, minutes=11)
        if dialect == "openai":
            assert batch.status == "completed"
        return await kinds(box, batch)

    assert box.run(live()) == {"200" if dialect == "openai" else "succeeded": 20}
    account = box.simulation.account()
    assert (account.batches_cancelled, account.answered, account.faults) == (1, 20, {"cancel_too_late": 1})


async def download(box: Box, batch: Any) -> bytes:
    """Return the results of an ended batch as they come."""
    if batch.id.startswith("batch_"):
        return (await box.openai().files.content(batch.output_file_id)).content
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
    reply = await box.http().get(f"/v1/messages/batches/{batch.id}/results", headers=headers)
    return reply.raise_for_status().content


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("fault", "after_s"), [("download_500", 0), ("download_reset", 0), ("download_stalls", 1800)])
def test_a_download_may_fail_and_goes_well_the_next_time(dialect: str, fault: str, after_s: int) -> None:
    """A 500, a reset in the middle, or a silence that ends in a reset; the next download is whole."""
    box = box_with({"only": {fault: (0,)}, "stall_s": 1800})

    async def live() -> int:
        batch = await later(box, await create(box, dialect, rows=50), hours=2)
        before = box.clock.now()
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            await download(box, batch)
        assert box.clock.now() - before == timedelta(seconds=after_s)
        return len((await download(box, batch)).splitlines())

    assert box.run(live()) == 50
    assert box.simulation.account().faults == {fault: 1}


def test_over_a_socket_a_download_breaks_off() -> None:
    """The client sees the connection reset before the length that was promised."""
    law = BatchLaw(median_s=60, sigma=0, stuck_share=0)
    settings = WorldSettings(batch=law, faults=Faults(only={"download_reset": (0,)}))
    with serving(speed=600, settings=settings) as url:
        clock = ScaledClock.of_server(url)

        async def work() -> int:
            async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
                file = await client.files.create(file=("a.jsonl", openai_lines(500)), purpose="batch")
                batch = await client.batches.create(
                    input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
                )
                await clock.sleep_until(clock.now() + timedelta(seconds=120))
                batch = await client.batches.retrieve(batch.id)
                with pytest.raises((openai.APIConnectionError, httpx2.TransportError)):
                    await client.files.content(batch.output_file_id or "")
                return len((await client.files.content(batch.output_file_id or "")).text.splitlines())

        assert clock.run(work(), name="client") == 500
