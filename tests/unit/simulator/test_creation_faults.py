"""What may befall the creation of a batch, and the lists that tell of it."""

import asyncio
import contextlib
import io
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anthropic
import openai
import pytest

from prefect_llm_tiers.simulator.clock import ScaledClock
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.server import serving
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import START, Box, anthropic_requests, openai_lines

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
DIALECTS = ("openai", "anthropic")


def box_with(**faults: Any) -> Box:
    """Return a box with these faults and batches of one hour."""
    return Box(WorldSettings(batch=HOUR, faults=Faults(**faults)))


async def create(box: Box, dialect: str, rows: int = 3) -> Any:
    """Create a batch of either dialect."""
    if dialect == "openai":
        return await box.openai_batch(openai_lines(rows))
    return await box.anthropic().messages.batches.create(requests=anthropic_requests(rows))


def batches_of(box: Box, dialect: str) -> Any:
    """Return the SDK's batches of a dialect."""
    return box.openai().batches if dialect == "openai" else box.anthropic().messages.batches


async def listed(box: Box, dialect: str, limit: int = 20) -> list[str]:
    """Return the ids that a walk through the list finds."""
    return [batch.id async for batch in batches_of(box, dialect).list(limit=limit)]


ERRORS = (openai.APIError, anthropic.APIError)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("fault", "taken"), [("create_502_untaken", 0), ("create_502_taken", 1)])
def test_a_gateway_answers_502(dialect: str, fault: str, taken: int) -> None:
    """The gateway's page is no JSON and says nothing of whether the batch was taken; the next call is answered."""
    box = box_with(only={fault: (0,)})

    async def live() -> list[str]:
        with pytest.raises(ERRORS) as caught:
            await create(box, dialect)
        assert getattr(caught.value, "status_code", None) == 502
        before = await listed(box, dialect)
        await create(box, dialect)
        return before

    assert len(box.run(live())) == taken
    assert len(box.simulation.batches()) == taken + 1
    assert box.simulation.account().faults == {fault: 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_reply_never_comes(dialect: str) -> None:
    """The batch is taken at once; the client hears nothing for as long as it waits, and then a reset."""
    box = box_with(create_stalls=1, stall_s=7200)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await create(box, dialect)
        assert len(await listed(box, dialect)) == 1

    async def sit_it_out() -> None:
        before = box.clock.now()
        with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)):
            await create(box, dialect)
        assert box.clock.now() - before == timedelta(seconds=7200)

    box.run(give_up())
    box.run(sit_it_out())
    assert box.simulation.account().faults == {"create_stalls": 2}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_create_lands_after_its_client_gave_up(dialect: str) -> None:
    """Nobody sees the batch until it lands; it lands all the same, whole, and lives from then on."""
    box = box_with(create_lands_late=1, create_late_s=(400, 500))

    async def live() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await create(box, dialect)
        assert await listed(box, dialect) == []
        (record,) = box.simulation.batches()
        assert record.status == "landing"
        assert 400 <= (record.created_at - START).total_seconds() <= 500
        assert box.simulation.account().answered == 0
        await box.clock.sleep_until(record.created_at)
        assert await listed(box, dialect) == [record.id]
        await box.wait(hours=2)

    box.run(live())
    (record,) = box.simulation.batches()
    assert (record.status, record.billed_rows) == ("completed" if dialect == "openai" else "ended", 3)
    assert box.simulation.account().faults == {"create_lands_late": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_patient_client_hears_of_a_late_landing(dialect: str) -> None:
    """Who waits long enough is answered at the moment it lands."""
    box = box_with(create_lands_late=1, create_late_s=(400, 400))

    async def live() -> list[str]:
        batch = await create(box, dialect)
        assert box.clock.now() - START == timedelta(seconds=400)
        return [batch.id]

    assert box.run(live()) == [record.id for record in box.simulation.batches()]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_502_may_come_before_the_landing(dialect: str) -> None:
    """A look right after the 502 finds nothing, and a later one finds the batch."""
    box = box_with(create_502_lands_late=1, create_late_s=(300, 300))

    async def live() -> tuple[int, int]:
        with pytest.raises(ERRORS):
            await create(box, dialect)
        before = len(await listed(box, dialect))
        await box.wait(seconds=300)
        return before, len(await listed(box, dialect))

    assert box.run(live()) == (0, 1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_gateway_posts_the_create_twice(dialect: str) -> None:
    """One call leaves two batches of the same bodies; the reply names one; both are worked on and billed."""
    box = box_with(create_twice=1)

    async def live() -> str:
        batch = await create(box, dialect)
        assert len(await listed(box, dialect)) == 2
        await box.wait(hours=2)
        return str(batch.id)

    named = box.run(live())
    one, two = box.simulation.batches()
    assert one.rows_digest == two.rows_digest
    assert named in (one.id, two.id)
    account = box.simulation.account()
    assert (account.batches_created, account.answered, account.billed_again) == (2, 6, 3)
    assert account.faults == {"create_twice": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("fault", "in_list", "by_id"),
    [("batch_hidden", False, False), ("batch_404", True, False), ("list_lag", False, True)],
)
def test_a_batch_is_seen_only_later(dialect: str, fault: str, in_list: bool, by_id: bool) -> None:
    """Hidden from both, from a look by its id, or from the list alone, and for no longer than said."""
    box = box_with(**{fault: 1, f"{fault}_s": (120, 120)})

    async def seen(batch_id: str) -> tuple[bool, bool]:
        try:
            await batches_of(box, dialect).retrieve(batch_id)
            found = True
        except (openai.NotFoundError, anthropic.NotFoundError):
            found = False
        return batch_id in await listed(box, dialect), found

    async def live() -> list[tuple[bool, bool]]:
        batch = await create(box, dialect)
        looks = [await seen(batch.id)]
        await box.wait(seconds=119)
        looks.append(await seen(batch.id))
        await box.wait(seconds=1)
        return [*looks, await seen(batch.id)]

    assert box.run(live()) == [(in_list, by_id), (in_list, by_id), (True, True)]
    assert box.simulation.account().faults == {fault: 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_list_answers_503(dialect: str) -> None:
    """One page in the middle of a walk may fail, and comes when it is asked for again."""
    box = box_with(only={"list_503": (1,)})

    async def live() -> int:
        for number in range(3):
            await create(box, dialect, rows=number + 1)
        with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)):
            await listed(box, dialect, limit=2)
        return len(await listed(box, dialect, limit=2))

    assert box.run(live()) == 3
    assert box.simulation.account().faults == {"list_503": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_page_is_cut_and_says_that_nothing_follows(dialect: str) -> None:
    """A truncated page holds half of what there is and ends the walk."""
    box = box_with(only={"list_truncated": (0,)})

    async def live() -> tuple[list[str], list[str]]:
        for number in range(4):
            await create(box, dialect, rows=number + 1)
        return await listed(box, dialect), await listed(box, dialect)

    cut, whole = box.run(live())
    assert (cut, len(whole)) == (whole[:2], 4)
    assert box.simulation.account().faults == {"list_truncated": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_list_may_never_end(dialect: str) -> None:
    """Every page of an endless list says that more follow, for as long as one cares to walk."""
    box = box_with(list_endless=1)

    async def live() -> list[str]:
        for number in range(3):
            await create(box, dialect, rows=number + 1)
        found: list[str] = []
        async for batch in batches_of(box, dialect).list(limit=2):
            found.append(batch.id)
            if len(found) == 50:
                break
        return found

    found = box.run(live())
    assert (len(found), len(set(found))) == (50, 3)
    assert box.simulation.account().faults["list_endless"] > 20


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_retrieve_answers_500(dialect: str) -> None:
    """A look may fail and says nothing of the batch."""
    box = box_with(only={"retrieve_500": (0,)})

    async def live() -> None:
        batch = await create(box, dialect)
        with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)):
            await batches_of(box, dialect).retrieve(batch.id)
        await batches_of(box, dialect).retrieve(batch.id)

    box.run(live())
    assert box.simulation.account().faults == {"retrieve_500": 1}


def test_an_upload_may_be_lost_or_its_reply() -> None:
    """A 502 on an upload leaves a file that nobody knows the name of, or none."""
    box = box_with(only={"upload_502_untaken": (0,), "upload_502_taken": (1,)})

    async def live() -> list[int]:
        stored = []
        for _ in range(3):
            with contextlib.suppress(openai.InternalServerError):
                await box.openai().files.create(file=("a.jsonl", io.BytesIO(openai_lines(1))), purpose="batch")
            stored.append(box.simulation.account().files_uploaded)
        return stored

    # `upload_502_taken` has its first occasion with the second upload: the first one was struck already.
    assert box.run(live()) == [0, 1, 2]
    assert box.simulation.account().faults == {"upload_502_untaken": 1, "upload_502_taken": 1}


def struck(seed: int, rate: float, order: Callable[[list[int]], list[int]]) -> dict[int, str]:
    """Return what befell the creation of each of 40 batches, by the number of its rows."""
    box = Box(WorldSettings(seed=seed, faults=Faults(create_502_untaken=rate, create_502_taken=rate)))

    async def live() -> dict[int, str]:
        fates = {}
        for rows in order(list(range(1, 41))):
            before = len(box.simulation.batches())
            try:
                await create(box, "openai", rows)
                fates[rows] = "answered"
            except openai.InternalServerError:
                fates[rows] = "lost" if len(box.simulation.batches()) > before else "not taken"
        return fates

    return box.run(live())


def test_what_befalls_a_batch_does_not_depend_on_the_order() -> None:
    """The same batches meet the same faults in any order of arrival, and others under another seed."""
    forward = struck(1, 0.3, lambda sizes: sizes)
    assert forward == struck(1, 0.3, lambda sizes: sizes[::-1])
    assert forward != struck(2, 0.3, lambda sizes: sizes)
    assert set(forward.values()) == {"answered", "lost", "not taken"}


def over_a_socket(faults: Faults, work: Callable[[str, ScaledClock], Awaitable[Any]]) -> Any:
    """Run a client against a served simulator with these faults."""
    settings = WorldSettings(batch=HOUR, faults=faults)
    with serving(speed=600, settings=settings) as url:
        clock = ScaledClock.of_server(url)
        return clock.run(work(url, clock), name="client")  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["create_stalls", "create_lands_late"])
def test_over_a_socket_the_batch_is_taken_though_the_client_left(fault: str) -> None:
    """A client that closes its connection before the reply leaves a batch behind, at once or later."""

    async def work(url: str, clock: ScaledClock) -> list[Any]:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
            file = await client.files.create(file=("a.jsonl", openai_lines(2)), purpose="batch")
            with pytest.raises(openai.APITimeoutError):
                await client.batches.create(
                    input_file_id=file.id, endpoint="/v1/responses", completion_window="24h", timeout=0.05
                )
            await clock.sleep_until(clock.now() + timedelta(seconds=600))
            return [batch async for batch in client.batches.list()]

    faults = Faults(create_stalls=fault == "create_stalls", create_lands_late=fault == "create_lands_late")
    assert len(over_a_socket(faults, work)) == 1


def test_over_a_socket_silence_ends_in_a_reset() -> None:
    """Who waits out a stall sees the connection reset, and the server goes on."""

    async def work(url: str, _: ScaledClock) -> int:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
            file = await client.files.create(file=("a.jsonl", openai_lines(2)), purpose="batch")
            with pytest.raises(openai.APIConnectionError):
                await client.batches.create(
                    input_file_id=file.id, endpoint="/v1/responses", completion_window="24h", timeout=30
                )
            return len((await client.batches.list()).data)

    assert over_a_socket(Faults(create_stalls=1.0, stall_s=60), work) == 1
