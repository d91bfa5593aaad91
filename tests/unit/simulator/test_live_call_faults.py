"""What a live call may meet instead of its answer."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import anthropic
import openai
import pytest

from prefect_llm_tiers.simulator.clock import ScaledClock
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.server import serving
from prefect_llm_tiers.simulator.settings import WorldSettings
from tests.unit.simulator.box import Box
from tests.unit.simulator.test_creation_faults import DIALECTS

UNREACHED = (openai.APIConnectionError, anthropic.APIConnectionError)


async def ask(box: Box, dialect: str, number: int = 0, tier: Any = "default") -> Any:
    """Ask one question live."""
    if dialect == "openai":
        return await box.openai().responses.create(
            model="gpt-6-luna", input=f"Sum up.\nPage {number} is short.", service_tier=tier
        )
    return await box.anthropic().messages.create(
        model="claude-haiku-5-5", max_tokens=100, messages=[{"role": "user", "content": f"Sum up.\nPage {number}."}]
    )


def refused(dialect: str, fault: str, tier: str = "default") -> tuple[int, Any, dict[str, Any], Box]:
    """Return the status, body and headers of the refusal of one struck call, whose next try is answered."""
    box = Box(WorldSettings(faults=Faults(only={fault: (0,)})))

    async def live() -> Any:
        with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
            await ask(box, dialect, tier=tier)
        await ask(box, dialect, tier=tier)
        return caught.value

    error = box.run(live())
    account = box.simulation.account()
    assert (account.answered, account.faults) == (1, {fault: 1})
    return error.status_code, error.body, dict(error.response.headers), box


@pytest.mark.parametrize(
    ("fault", "tier", "status", "code"),
    [
        ("live_limited", "default", 429, "rate_limit_exceeded"),
        ("live_quota", "default", 429, "insufficient_quota"),
        ("live_capacity", "flex", 429, "resource_unavailable"),
        ("live_529", "default", 529, None),
        ("live_498", "flex", 498, "capacity_exceeded"),
    ],
)
def test_openai_refuses_in_its_words(fault: str, tier: str, status: int, code: str | None) -> None:
    """Each refusal has the status and code that tell it apart; nothing is billed; the next try is answered."""
    found, body, headers, _ = refused("openai", fault, tier)
    assert (found, body["code"]) == (status, code)
    assert ("retry-after" in headers) == (fault == "live_limited")


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("live_limited", 429, "rate_limit_error"),
        ("live_quota", 400, "invalid_request_error"),
        ("live_529", 529, "overloaded_error"),
    ],
)
def test_anthropic_refuses_in_its_words(fault: str, status: int, kind: str) -> None:
    """429 is the account's, 529 the provider's, and an empty balance a bad request."""
    found, body, headers, _ = refused("anthropic", fault)
    assert (found, body["error"]["type"]) == (status, kind)
    assert ("retry-after" in headers) == (fault == "live_limited")


def test_a_capacity_miss_strikes_flex_alone() -> None:
    """On other tiers there is no such refusal."""
    box = Box(WorldSettings(faults=Faults(live_capacity=1)))

    async def live() -> None:
        await ask(box, "openai", tier="default")
        with pytest.raises(openai.RateLimitError):
            await ask(box, "openai", tier="flex")

    box.run(live())
    account = box.simulation.account()
    assert (account.capacity_refused, account.faults) == (1, {"live_capacity": 1})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_provider_breaks_in_several_ways(dialect: str) -> None:
    """500, 502 as a gateway's page, 503 and 504, none of them billed."""
    box = Box(WorldSettings(faults=Faults(live_5xx=1)))

    async def live() -> set[int]:
        found = set()
        for number in range(30):
            with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
                await ask(box, dialect, number)
            found.add(getattr(caught.value, "status_code", 0))
        return found

    assert box.run(live()) == {500, 502, 503, 504}
    account = box.simulation.account()
    assert (account.answered, account.faults) == (0, {"live_5xx": 30})


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", ["live_reset", "live_502_billed"])
def test_a_reply_is_lost_after_it_was_billed(dialect: str, fault: str) -> None:
    """The work is done and billed; a reset or a gateway's 502 comes in the place of the answer."""
    rates: dict[str, Any] = {fault: 1}
    box = Box(WorldSettings(faults=Faults(**rates)))

    async def live() -> None:
        with pytest.raises((*UNREACHED, openai.InternalServerError, anthropic.InternalServerError)):
            await ask(box, dialect)

    box.run(live())
    account = box.simulation.account()
    assert (account.answered, account.faults) == (1, {fault: 1})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_reply_never_comes(dialect: str) -> None:
    """A stalled call is billed and ends in a reset, for who waits that long."""
    box = Box(WorldSettings(faults=Faults(live_stalls=1, stall_s=2000)))

    async def live() -> timedelta:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(900):
                await ask(box, dialect)
        before = box.clock.now()
        with pytest.raises(UNREACHED):
            await ask(box, dialect)
        return box.clock.now() - before

    assert timedelta(seconds=2000) < box.run(live()) < timedelta(seconds=2010)
    account = box.simulation.account()
    assert (account.answered, account.billed_again, account.faults) == (2, 1, {"live_stalls": 2})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_body_is_malformed(dialect: str) -> None:
    """200 with something else than an answer: cut, empty, null, a list, a page; each is billed."""
    box = Box(WorldSettings(faults=Faults(live_malformed=1)))
    paths = {"openai": "/v1/responses", "anthropic": "/v1/messages"}
    headers = {"authorization": "Bearer k", "x-api-key": "k", "anthropic-version": "2023-06-01"}

    async def live() -> list[bytes]:
        found = []
        for number in range(60):
            said = f"Page {number}."
            body: dict[str, Any] = {"model": "gpt-6-luna", "input": said}
            if dialect == "anthropic":
                messages = [{"role": "user", "content": said}]
                body = {"model": "claude-haiku-5-5", "max_tokens": 100, "messages": messages}
            reply = await box.http().post(paths[dialect], json=body, headers=headers)
            assert reply.status_code == 200
            found.append(reply.content)
        return found

    found = box.run(live())
    assert {b"", b"null", b"[]", b'{"ok": true}'} < set(found)
    assert any(body.startswith(b"\xff\xfe") for body in found)
    assert any(body.startswith(b"<html>") for body in found)
    account = box.simulation.account()
    assert (account.answered, account.faults) == (60, {"live_malformed": 60})


def test_what_befalls_a_call_does_not_depend_on_the_order() -> None:
    """The same questions meet the same faults in any order, and each try of one has a draw of its own."""

    def struck(order: list[int]) -> dict[int, list[str]]:
        box = Box(WorldSettings(seed=5, faults=Faults(live_5xx=0.2, live_limited=0.2, live_reset=0.2)))

        async def live() -> dict[int, list[str]]:
            found: dict[int, list[str]] = {}
            for number in order:
                try:
                    await ask(box, "openai", number)
                    outcome = "answered"
                except openai.APIError as error:
                    outcome = f"{type(error).__name__} {getattr(error, 'status_code', None)}"
                found.setdefault(number, []).append(outcome)
            return found

        return box.run(live())

    forward = struck([*range(20), *range(20)])
    assert forward == struck([*range(19, -1, -1), *range(19, -1, -1)])
    outcomes = Counter(outcome for tries in forward.values() for outcome in tries)
    assert len(outcomes) >= 4
    assert any(first != second for first, second in forward.values())


def test_over_a_socket_a_reset_is_a_reset() -> None:
    """The connection is cut without a byte of a reply, and the server goes on."""
    with serving(speed=600, settings=WorldSettings(faults=Faults(only={"live_reset": (0,)}))) as url:

        async def work() -> str:
            async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
                with pytest.raises(openai.APIConnectionError):
                    await client.responses.create(model="gpt-6-luna", input="x")
                return (await client.responses.create(model="gpt-6-luna", input="x")).status or ""

        assert ScaledClock.of_server(url).run(work(), name="client") == "completed"
