"""The laws of the provider port, held by each dialect through its real SDK against the simulator."""

import asyncio
import base64
import pickle
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

import msgspec
import pytest
from pydantic import BaseModel

from prefect_llm_tiers.core.batches import ProviderBatch, ProviderBatchStatus
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import BatchLine, CallFailed, Provider
from prefect_llm_tiers.core.requests import (
    Endpoint,
    Request,
    canonical_json,
    custom_id,
    derived_token,
    request_key,
    split_custom_id,
)
from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.errors import ConfigurationError, CredentialsRejected, UnknownModel
from prefect_llm_tiers.providers.bodies import build_body
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ASGIApp, ProviderSpec, open_provider
from prefect_llm_tiers.providers.schemas import output_schema
from prefect_llm_tiers.simulator.clock import SimulatedClock
from prefect_llm_tiers.simulator.server import serving
from prefect_llm_tiers.simulator.settings import BatchLaw, FlexOutages, LiveLaw, WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation

START = datetime(2026, 11, 20, 21, 0, tzinfo=UTC)
KEY = "sk-a-key-that-no-message-may-show"
SECRET = "the marmalade ledger of Ottoline"
TOKEN = derived_token("ledger", "batch", 1, 1)

T = TypeVar("T")


class Side(msgspec.Struct, frozen=True):
    """One dialect at one endpoint, with a model of the simulated provider."""

    dialect: Dialect
    endpoint: Endpoint
    model: str

    @property
    def spec(self) -> ProviderSpec:
        return ProviderSpec(dialect=self.dialect, api_key=KEY)


SIDES = (
    Side(Dialect.OPENAI, Endpoint.RESPONSES, "gpt-6-luna"),
    Side(Dialect.OPENAI, Endpoint.CHAT_COMPLETIONS, "gpt-5.6-sol"),
    Side(Dialect.ANTHROPIC, Endpoint.MESSAGES, "claude-haiku-5-5"),
)

OPENAI = SIDES[0]

both = pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side.dialect}{side.endpoint}")

STEADY = WorldSettings(batch=BatchLaw(median_s=1800.0, sigma=0.0, stuck_share=0.0))


class Label(BaseModel):
    """A structured answer."""

    topic: Literal["api", "howto", "concept"]
    confidence: float


class Front:
    """Stands before an app: counts what arrives, and may put another reply in the place of the app's."""

    def __init__(self, app: ASGIApp, *, status: int | None = None, commits: bool = True) -> None:
        """Take over an app.

        Args:
            app: Who does the work.
            status: Status of the reply that replaces every POST's; None replaces none.
            commits: Whether the app does its work before its reply is lost.
        """
        self.app = app
        self.status = status
        self.commits = commits
        self.arrived: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        self.arrived.append((scope["method"], scope["path"]))
        body = bytearray()

        async def kept() -> MutableMapping[str, Any]:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def lost(message: MutableMapping[str, Any]) -> None:
            pass

        if self.status is None or scope["method"] != "POST":
            await self.app(scope, kept, send)
        else:
            if self.commits:
                await self.app(scope, kept, lost)
            await send({"type": "http.response.start", "status": self.status, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>Bad gateway</html>"})
        self.bodies.append(bytes(body))


def in_world(
    side: Side,
    main: Callable[[Provider, SimulatedClock], Awaitable[T]],
    *,
    settings: WorldSettings = STEADY,
    spec: ProviderSpec | None = None,
    front: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> tuple[T, Simulation]:
    """Run a coroutine over a provider in a simulated world; return its result and the world."""
    clock = SimulatedClock(START)
    simulation = Simulation(settings, clock)

    async def opened() -> T:
        provider = open_provider(spec or side.spec, app=front(simulation.app))
        try:
            return await main(provider, clock)
        finally:
            await provider.aclose()

    return clock.run(opened(), name="contract"), simulation


def question(side: Side, text: str, *, output: type[BaseModel] | None = None, tokens: int = 500) -> Request:
    """Return a request for a text."""
    schema = output_schema(output, side.dialect) if output is not None else None
    body = canonical_json(build_body(side.endpoint, text, model=side.model, max_output_tokens=tokens, output=schema))
    return Request(key=request_key(account="org", endpoint=side.endpoint, body=body), body=body)


def questions(side: Side, count: int) -> list[Request]:
    """Return as many different requests."""
    return [question(side, f"Summarize.\n\nDocument {n} is about the number {n}.") for n in range(count)]


async def lines_of(requests: list[Request], token: str = TOKEN) -> AsyncIterator[BatchLine]:
    """Yield the lines of a batch."""
    for request in requests:
        yield BatchLine(custom_id=custom_id(request.key, token), body=request.body)


async def submitted(provider: Provider, side: Side, requests: list[Request], token: str = TOKEN) -> ProviderBatch:
    """Upload and create a batch."""
    where = {"model": side.model, "endpoint": side.endpoint, "token": token}
    file_id = await provider.upload(
        lines_of(requests, token),
        expires_after=timedelta(days=7),
        **where,  # type: ignore[arg-type]
    )
    return await provider.create_batch(
        input_file_id=file_id,
        lines=lines_of(requests, token),
        timeout_s=120.0,
        **where,  # type: ignore[arg-type]
    )


async def until_ended(provider: Provider, clock: SimulatedClock, batch_id: str) -> ProviderBatch:
    """Look once a minute until a batch has ended and its results can be read."""
    while True:
        seen = await provider.retrieve_batch(batch_id)
        if seen.status.ended and seen.results_ready:
            return seen
        await clock.sleep_until(clock.now() + timedelta(minutes=1))


async def harvested(provider: Provider, side: Side, batch_id: str) -> dict[str, Outcome]:
    """Return the outcomes of a batch by key, each of which must come once and bear the token."""
    found: dict[str, Outcome] = {}
    async for line in provider.results(batch_id, model=side.model, endpoint=side.endpoint):
        assert line.custom_id is not None
        assert line.outcome is not None
        key, token = split_custom_id(line.custom_id) or ("", "")
        assert (key, token) == (line.outcome.key, TOKEN)
        assert key not in found
        found[key] = line.outcome
    return found


# Live


@pytest.mark.parametrize(
    ("side", "tier"),
    [(side, tier) for side in SIDES for tier in LIVE_TIERS if tier is Tier.STANDARD or side.dialect is Dialect.OPENAI],
    ids=str,
)
def test_a_live_call_answers_in_the_tier_that_was_asked(side: Side, tier: Tier) -> None:
    """An answer names its tier, its tokens and its call; it is billed, and its price is left to others."""
    request = question(side, f"Summarize.\n\nThis document is about {SECRET}. It has two sentences.")

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome:
        assert tier in provider.capabilities(side.model, side.endpoint).tiers
        return await provider.call(request, endpoint=side.endpoint, tier=tier, timeout_s=900.0)

    outcome, simulation = in_world(side, main)
    (line,) = simulation.account().lines
    assert outcome.kind is OutcomeKind.ANSWER
    assert SECRET in (outcome.text or "")
    assert outcome.key == request.key
    assert outcome.billing is Billing.BILLED
    assert outcome.tier_served is tier is line.tier
    assert outcome.usage is not None
    assert outcome.usage.input_tokens == line.input_tokens > 0
    assert outcome.usage.output_tokens == line.output_tokens > 0
    assert outcome.cost_usd is outcome.list_usd is None
    assert (outcome.provider_request_id or "").startswith("req_")


@both
def test_the_tier_is_named_and_the_body_goes_as_it_is(side: Side) -> None:
    """What is sent is the request's body byte for byte, with the tier in front of it and nothing else."""
    request = question(side, "One\u2028two \U0001f600 three.")
    fronts: list[Front] = []

    def front(app: ASGIApp) -> Front:
        fronts.append(Front(app))
        return fronts[-1]

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome:
        return await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)

    in_world(side, main, front=front)
    named = b"standard_only" if side.dialect is Dialect.ANTHROPIC else b"default"
    assert fronts[0].bodies == [b'{"service_tier":"' + named + b'",' + request.body[1:]]


@both
def test_cached_input_is_part_of_the_input(side: Side) -> None:
    """Usage counts all of the input, the cached part among it, whichever way the dialect counts."""
    request = question(side, "Summarize.\n\n" + "A long document about nothing. " * 40)

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome:
        return await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)

    outcome, simulation = in_world(side, main, settings=WorldSettings(cached_input_share=0.5))
    account = simulation.account()
    assert outcome.usage is not None
    assert outcome.usage.input_tokens == account.input_tokens
    assert outcome.usage.cached_input_tokens == account.cached_input_tokens > 0


@both
def test_a_structured_answer_fits_its_model(side: Side) -> None:
    """The schema that a pydantic model becomes is taken by the provider, and its answer validates."""
    request = question(side, "Which kind of page is this?", output=Label)

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome:
        return await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)

    outcome, _ = in_world(side, main)
    assert outcome.kind is OutcomeKind.ANSWER
    assert Label.model_validate_json(outcome.text or "")


@both
def test_a_refusal_is_an_outcome_that_was_paid_for(side: Side) -> None:
    """The model's refusal is billed, and its words are kept."""

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome:
        request = question(side, "Say something unspeakable.")
        return await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)

    outcome, _ = in_world(side, main, settings=WorldSettings(refusal_rate=1.0))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.REFUSAL, "refusal")
    assert outcome.text
    assert outcome.billing is Billing.BILLED
    assert outcome.usage is not None


@both
def test_an_answer_cut_at_its_length_is_a_failure_that_was_paid_for(side: Side) -> None:
    """An answer that hit its bound is no answer; its reason is `length` and its tokens count."""

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome:
        request = question(side, "Summarize.\n\n" + "A very long sentence about nothing at all, " * 9, tokens=16)
        return await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)

    outcome, _ = in_world(side, main)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.FAILURE, "length")
    assert outcome.billing is Billing.BILLED
    assert outcome.usage is not None
    assert outcome.usage.output_tokens == 16


@both
def test_a_rejected_request_is_an_outcome_that_costs_nothing(side: Side) -> None:
    """A 400 fails its own row with the provider's code, and no text of the prompt comes back."""
    body = canonical_json({"model": side.model, SECRET: True, "max_tokens": 10})
    request = Request(key=request_key(account="org", endpoint=side.endpoint, body=body), body=body)

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome:
        return await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)

    outcome, _ = in_world(side, main)
    assert outcome.kind is OutcomeKind.FAILURE
    assert outcome.billing is Billing.UNBILLED
    assert outcome.usage is None
    assert outcome.reason
    assert "marmalade" not in repr(outcome)


@both
def test_a_limit_says_when_to_come_back(side: Side) -> None:
    """The account's own limit is `rate_limit` with the seconds to wait, unbilled."""
    request = question(side, "Summarize this.")

    async def main(provider: Provider, clock: SimulatedClock) -> CallFailed:
        for _ in range(2):
            await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)
        with pytest.raises(CallFailed) as caught:
            await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)
        return caught.value

    failed, _ = in_world(side, main, settings=WorldSettings(requests_per_minute=2))
    assert failed.meaning.kind == "rate_limit"
    assert not failed.meaning.maybe_billed
    assert failed.meaning.retry_after_s is not None
    assert 0 < failed.meaning.retry_after_s <= 61


def test_flex_without_capacity_is_no_limit_of_the_account() -> None:
    """A flex call that finds no capacity is `capacity`, which the throttle must not take for a limit."""
    side = SIDES[0]
    settings = WorldSettings(flex_outages=FlexOutages(mean_up_s=1e-6, mean_down_s=1e12))

    async def main(provider: Provider, clock: SimulatedClock) -> CallFailed:
        request = question(side, "Summarize this.")
        with pytest.raises(CallFailed) as caught:
            await provider.call(request, endpoint=side.endpoint, tier=Tier.FLEX, timeout_s=900.0)
        return caught.value

    failed, simulation = in_world(side, main, settings=settings)
    assert (failed.meaning.kind, failed.meaning.reason) == ("capacity", "resource_unavailable")
    assert simulation.account().capacity_refused == 1


def test_a_model_without_flex_says_so() -> None:
    """A 400 for the tier is `tier_unsupported`, and no failure of the row."""
    side = SIDES[0]

    async def main(provider: Provider, clock: SimulatedClock) -> CallFailed:
        request = question(side, "Summarize this.")
        with pytest.raises(CallFailed) as caught:
            await provider.call(request, endpoint=side.endpoint, tier=Tier.FLEX, timeout_s=900.0)
        return caught.value

    failed, _ = in_world(side, main, settings=WorldSettings(without_flex=(side.model,)))
    assert failed.meaning.kind == "tier_unsupported"


@both
def test_a_tier_that_cannot_be_asked_live_is_not_sent(side: Side) -> None:
    """Batch is no tier of a live call; nothing reaches the provider."""

    async def main(provider: Provider, clock: SimulatedClock) -> CallFailed:
        request = question(side, "Summarize this.")
        with pytest.raises(CallFailed) as caught:
            await provider.call(request, endpoint=side.endpoint, tier=Tier.BATCH, timeout_s=600.0)
        return caught.value

    failed, simulation = in_world(side, main)
    assert failed.meaning.kind == "tier_unsupported"
    assert simulation.account().asked == 0


@both
def test_a_call_ends_at_its_timeout(side: Side) -> None:
    """A call that stays silent ends after `timeout_s` and says that it may have been billed."""

    async def main(provider: Provider, clock: SimulatedClock) -> tuple[CallFailed, timedelta]:
        request = question(side, "Summarize this.")
        with pytest.raises(CallFailed) as caught:
            await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=30.0)
        return caught.value, clock.now() - START

    slow = WorldSettings(live={Tier.STANDARD: LiveLaw(base_s=1000.0, sigma=0.0)})
    (failed, took), _ = in_world(side, main, settings=slow)
    assert failed.meaning.kind == "timeout"
    assert failed.meaning.maybe_billed
    assert timedelta(seconds=29) < took < timedelta(seconds=32)


# Never twice


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408, 409])
@both
def test_a_call_is_sent_once_whatever_comes_back(side: Side, status: int) -> None:
    """Neither SDK sends a live call again on its own, for any status that it would retry by default."""
    fronts: list[Front] = []

    def front(app: ASGIApp) -> Front:
        fronts.append(Front(app, status=status))
        return fronts[-1]

    async def main(provider: Provider, clock: SimulatedClock) -> CallFailed:
        request = question(side, "Summarize this.")
        with pytest.raises(CallFailed) as caught:
            await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)
        return caught.value

    _, simulation = in_world(side, main, front=front)
    assert len(fronts[0].arrived) == 1
    assert simulation.account().asked == 1


@pytest.mark.parametrize("status", [500, 502, 504])
@both
def test_a_batch_whose_confirmation_is_lost_is_created_once(side: Side, status: int) -> None:
    """The provider commits and its reply is lost: one batch exists, and it can be found."""
    fronts: list[Front] = []

    def front(app: ASGIApp) -> Front:
        fronts.append(Front(app))
        return fronts[-1]

    async def main(provider: Provider, clock: SimulatedClock) -> tuple[CallFailed, list[ProviderBatch]]:
        requests = questions(side, 3)
        where = {"model": side.model, "endpoint": side.endpoint, "token": TOKEN}
        file_id = await provider.upload(
            lines_of(requests),
            expires_after=timedelta(days=7),
            **where,  # type: ignore[arg-type]
        )
        fronts[0].status = status
        fronts[0].arrived.clear()
        with pytest.raises(CallFailed) as caught:
            await provider.create_batch(
                input_file_id=file_id,
                lines=lines_of(requests),
                timeout_s=60.0,
                **where,  # type: ignore[arg-type]
            )
        fronts[0].status = None
        return caught.value, [batch async for batch in provider.list_batches(since=START)]

    (failed, found), simulation = in_world(side, main, front=front)
    assert failed.meaning.maybe_billed
    assert simulation.account().batches_created == 1
    assert [method for method, _ in fronts[0].arrived].count("POST") == 1
    assert len(found) == 1
    assert found[0].token == (TOKEN if side.dialect is Dialect.OPENAI else None)
    assert found[0].created_at == START


# Batches


@both
def test_a_batch_comes_back_whole(side: Side) -> None:
    """Every id that was sent has one outcome, an answer in the batch tier, with its billed tokens."""
    requests = questions(side, 25)

    async def main(provider: Provider, clock: SimulatedClock) -> tuple[ProviderBatch, dict[str, Outcome]]:
        batch = await submitted(provider, side, requests)
        assert batch.status is ProviderBatchStatus.IN_PROGRESS
        assert not batch.results_ready
        assert batch.created_at == START
        ended = await until_ended(provider, clock, batch.id)
        return ended, await harvested(provider, side, batch.id)

    (ended, found), simulation = in_world(side, main)
    account = simulation.account()
    assert ended.status is ProviderBatchStatus.COMPLETED
    assert (ended.counts.total, ended.counts.completed, ended.counts.failed) == (25, 25, 0)
    assert ended.token == (TOKEN if side.dialect is Dialect.OPENAI else None)
    assert ended.ended_at is not None
    assert ended.ended_at > START
    assert found.keys() == {request.key for request in requests}
    assert {outcome.kind for outcome in found.values()} == {OutcomeKind.ANSWER}
    assert {outcome.tier_served for outcome in found.values()} == {Tier.BATCH}
    assert {outcome.billing for outcome in found.values()} == {Billing.BILLED}
    assert sum(o.usage.output_tokens for o in found.values() if o.usage) == account.output_tokens
    assert account.asked_more_than_once == 0


@both
def test_a_cancelled_batch_gives_what_was_done(side: Side) -> None:
    """After a cancel the rows that were done are answers and billed; the rest is unbilled."""
    requests = questions(side, 40)

    async def main(provider: Provider, clock: SimulatedClock) -> tuple[ProviderBatch, dict[str, Outcome]]:
        batch = await submitted(provider, side, requests)
        await clock.sleep_until(START + timedelta(seconds=1600))
        cancelling = await provider.cancel_batch(batch.id)
        assert cancelling.status is ProviderBatchStatus.CANCELLING
        ended = await until_ended(provider, clock, batch.id)
        return ended, await harvested(provider, side, batch.id)

    (ended, found), simulation = in_world(side, main, settings=msgspec.structs.replace(STEADY, cancel_s=(60.0, 60.0)))
    kinds = [outcome.kind for outcome in found.values()]
    assert ended.status is ProviderBatchStatus.CANCELLED
    assert 0 < kinds.count(OutcomeKind.ANSWER) < 40
    assert kinds.count(OutcomeKind.ANSWER) == simulation.account().answered == ended.counts.completed
    # OpenAI may leave rows that were not done out of both files; a row that is there says why.
    rest = [outcome for outcome in found.values() if outcome.kind is not OutcomeKind.ANSWER]
    assert {(o.kind, o.billing) for o in rest} <= {(OutcomeKind.RETRY, Billing.UNBILLED)}
    assert all(outcome.reason for outcome in rest)


@both
def test_a_cancel_that_comes_too_late_changes_nothing(side: Side) -> None:
    """Cancelling a batch that has ended returns it as it is."""

    async def main(provider: Provider, clock: SimulatedClock) -> ProviderBatch:
        batch = await submitted(provider, side, questions(side, 2))
        await until_ended(provider, clock, batch.id)
        return await provider.cancel_batch(batch.id)

    seen, _ = in_world(side, main)
    assert seen.status is ProviderBatchStatus.COMPLETED


@both
def test_an_expired_batch_gives_what_was_done(side: Side) -> None:
    """What was done within the window is an answer; each other row is there, unbilled, as expired."""
    requests = questions(side, 30)
    stuck = WorldSettings(stuck_batches=(f"{side.dialect}:0",), batch=BatchLaw(stuck_s=(30 * 3600.0, 30 * 3600.0)))

    async def main(provider: Provider, clock: SimulatedClock) -> tuple[ProviderBatch, dict[str, Outcome]]:
        batch = await submitted(provider, side, requests)
        ended = await until_ended(provider, clock, batch.id)
        return ended, await harvested(provider, side, batch.id)

    (ended, found), simulation = in_world(side, main, settings=stuck)
    assert ended.status is ProviderBatchStatus.EXPIRED
    assert found.keys() == {request.key for request in requests}
    expired = [outcome for outcome in found.values() if outcome.kind is OutcomeKind.RETRY]
    assert len(expired) == 30 - simulation.account().answered > 0
    assert {outcome.reason for outcome in expired} == {"batch_expired"}
    assert {outcome.billing for outcome in expired} == {Billing.UNBILLED}


@both
def test_the_providers_own_error_in_a_row_is_asked_again(side: Side) -> None:
    """A row that ends in the provider's error is RETRY with a reason, unbilled."""
    settings = msgspec.structs.replace(STEADY, batch_row_error_rate=1.0)

    async def main(provider: Provider, clock: SimulatedClock) -> dict[str, Outcome]:
        batch = await submitted(provider, side, questions(side, 3))
        await until_ended(provider, clock, batch.id)
        return await harvested(provider, side, batch.id)

    found, _ = in_world(side, main, settings=settings)
    assert len(found) == 3
    assert {(o.kind, o.billing) for o in found.values()} == {(OutcomeKind.RETRY, Billing.UNBILLED)}


@both
def test_the_list_goes_back_as_far_as_asked(side: Side) -> None:
    """Batches come newest first, over all pages, down to those created in the second of `since`."""

    async def main(provider: Provider, clock: SimulatedClock) -> tuple[list[str], list[str]]:
        made: list[str] = []
        for n in range(120):
            batch = await submitted(provider, side, [question(side, f"Document {n}.")])
            made.append(batch.id)
            await clock.sleep_until(clock.now() + timedelta(seconds=10))
        since = START + timedelta(seconds=50, milliseconds=900)
        return made, [batch.id async for batch in provider.list_batches(since=since)]

    (made, listed), _ = in_world(side, main)
    assert listed == made[:4:-1]


@both
def test_a_batch_that_is_not_there_is_no_model_that_is_not_there(side: Side) -> None:
    """A 404 for a batch, which happens for moments after a creation, is a failed call."""

    async def main(provider: Provider, clock: SimulatedClock) -> CallFailed:
        with pytest.raises(CallFailed) as caught:
            await provider.retrieve_batch("batch_of_nobody")
        return caught.value

    failed, _ = in_world(side, main)
    assert failed.meaning.kind == "rejected"
    assert not failed.meaning.maybe_billed


def test_a_batch_tells_the_file_it_was_made_from() -> None:
    """Where there are files, whoever looks for a batch that nobody confirmed can know it by its file."""

    async def main(provider: Provider, clock: SimulatedClock) -> tuple[str | None, list[str | None]]:
        where = {"model": OPENAI.model, "endpoint": OPENAI.endpoint, "token": TOKEN}
        requests = questions(OPENAI, 2)
        file_id = await provider.upload(lines_of(requests), expires_after=timedelta(days=7), **where)  # type: ignore[arg-type]
        await provider.create_batch(input_file_id=file_id, lines=lines_of(requests), timeout_s=60.0, **where)  # type: ignore[arg-type]
        return file_id, [batch.input_file_id async for batch in provider.list_batches(since=START)]

    (file_id, listed), _ = in_world(OPENAI, main)
    assert file_id is not None
    assert listed == [file_id]


# Endpoints whose answer is the reply itself


OTHERS = (
    (Side(Dialect.OPENAI, Endpoint.EMBEDDINGS, "text-embedding-3-small"), "A document."),
    (Side(Dialect.OPENAI, Endpoint.EMBEDDINGS, "text-embedding-3-small"), {"input": ["One.", "Two."]}),
    (
        Side(Dialect.OPENAI, Endpoint.EMBEDDINGS, "text-embedding-3-small"),
        {"input": ["One.", "Two."], "encoding_format": "float"},
    ),
    (Side(Dialect.OPENAI, Endpoint.COMPLETIONS, "gpt-3.5-turbo-instruct"), {"prompt": "Once", "max_tokens": 40}),
    (Side(Dialect.OPENAI, Endpoint.MODERATIONS, "omni-moderation-latest"), {"input": ["One.", "Two."]}),
    (Side(Dialect.OPENAI, Endpoint.IMAGES, "gpt-image-2.5-flare"), {"prompt": "A pager.", "quality": "low"}),
    (
        Side(Dialect.OPENAI, Endpoint.IMAGE_EDITS, "gpt-image-2.5-flare"),
        {"prompt": "A pager.", "images": [{"file_id": "file-1"}]},
    ),
    (Side(Dialect.OPENAI, Endpoint.VIDEOS, "sora-2"), {"prompt": SECRET, "seconds": "4"}),
)

others = pytest.mark.parametrize(
    ("side", "prompt"), OTHERS, ids=[f"{side.endpoint}-{number}" for number, (side, _) in enumerate(OTHERS)]
)


def asked(side: Side, prompt: Any) -> Request:
    """Return a request for what a prompt function returned."""
    body = canonical_json(build_body(side.endpoint, prompt, model=side.model))
    return Request(key=request_key(account="org", endpoint=side.endpoint, body=body), body=body)


def check_raw(side: Side, prompt: Any, outcome: Outcome, tier: Tier) -> None:
    """Hold an outcome to what its endpoint promises."""
    assert outcome.kind is OutcomeKind.ANSWER
    assert outcome.text is not None
    free = side.endpoint is Endpoint.MODERATIONS
    assert outcome.billing is (Billing.UNBILLED if free else Billing.BILLED)
    assert outcome.tier_served is (None if free else tier)
    assert SECRET not in outcome.text
    if side.endpoint is Endpoint.EMBEDDINGS:
        inputs = prompt["input"] if isinstance(prompt, dict) else [prompt]
        texts = [outcome.text] if len(inputs) == 1 else msgspec.json.decode(outcome.text)
        vectors = [struct.unpack("<1536f", base64.b64decode(text)) for text in texts]
        assert len(vectors) == len(inputs)
        assert all(abs(sum(x * x for x in vector) - 1) < 0.01 for vector in vectors)
        assert outcome.usage is not None
        assert outcome.usage.input_tokens > 0 == outcome.usage.output_tokens
    else:
        body = msgspec.json.decode(outcome.text)
        assert isinstance(body, dict)
        assert "\n" not in outcome.text
        assert ": " not in outcome.text.split('"text"')[0]


@others
def test_a_raw_endpoint_is_asked_in_a_batch(side: Side, prompt: Any) -> None:
    """The reply is the answer, in the batch tier, with the tokens that it names."""
    request = asked(side, prompt)

    async def main(provider: Provider, clock: SimulatedClock) -> dict[str, Outcome]:
        assert Tier.BATCH in provider.capabilities(side.model, side.endpoint).tiers
        batch = await submitted(provider, side, [request])
        await until_ended(provider, clock, batch.id)
        return await harvested(provider, side, batch.id)

    found, _ = in_world(side, main)
    check_raw(side, prompt, found[request.key], Tier.BATCH)


@others
def test_a_raw_endpoint_is_asked_live_where_there_is_such(side: Side, prompt: Any) -> None:
    """Live the body goes as it is, without a tier; where nothing answers live, nothing is sent."""
    request = asked(side, prompt)
    fronts: list[Front] = []

    def front(app: ASGIApp) -> Front:
        fronts.append(Front(app))
        return fronts[-1]

    async def main(provider: Provider, clock: SimulatedClock) -> Outcome | None:
        tiers = provider.capabilities(side.model, side.endpoint).tiers
        for tier in LIVE_TIERS:
            if tier not in tiers:
                with pytest.raises(CallFailed) as caught:
                    await provider.call(request, endpoint=side.endpoint, tier=tier, timeout_s=600.0)
                assert caught.value.meaning.kind == "tier_unsupported"
                assert not caught.value.meaning.maybe_billed
        assert not fronts[0].arrived
        if Tier.STANDARD not in tiers:
            return None
        return await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=600.0)

    outcome, _ = in_world(side, main, front=front)
    if outcome is None:
        assert side.endpoint in (Endpoint.IMAGE_EDITS, Endpoint.VIDEOS)
    else:
        assert fronts[0].bodies == [request.body]
        check_raw(side, prompt, outcome, Tier.STANDARD)


def test_a_batch_of_embeddings_counts_inputs() -> None:
    """Embeddings have a limit of their own: inputs, of which a request may have many."""

    async def main(provider: Provider, clock: SimulatedClock) -> list[int | None]:
        sides = (OTHERS[0][0], OPENAI)
        limits = [provider.capabilities(side.model, side.endpoint).batch for side in sides]
        return [limit.inputs if limit is not None else None for limit in limits]

    found, _ = in_world(OPENAI, main)
    assert found == [50_000, None]


# Account, key and model


@both
def test_the_account_is_the_one_that_the_provider_names(side: Side) -> None:
    """The account comes from the headers of one look-up of the model, which asks nothing and is free."""

    async def main(provider: Provider, clock: SimulatedClock) -> str:
        return await provider.identify(side.model)

    account, simulation = in_world(side, main)
    openai = side.dialect is Dialect.OPENAI
    assert account == ("org-simulated/proj_simulated" if openai else "org-simulated")
    assert (simulation.account().models_calls, simulation.account().asked) == (1, 0)


@both
def test_an_account_that_is_given_counts(side: Side) -> None:
    """The block's `account` goes before what the provider says, and key and model are checked still."""

    async def main(provider: Provider, clock: SimulatedClock) -> str:
        return await provider.identify(side.model)

    spec = msgspec.structs.replace(side.spec, account="team-docs")
    account, simulation = in_world(side, main, spec=spec)
    assert account == "team-docs"
    assert simulation.account().models_calls == 1


@both
def test_a_wrong_key_is_said_without_being_shown(side: Side) -> None:
    """401 raises `CredentialsRejected` from every method; the message names the fields and no key."""
    key = "bad-key-0123456789"
    spec = msgspec.structs.replace(side.spec, api_key=key)

    async def main(provider: Provider, clock: SimulatedClock) -> list[CredentialsRejected]:
        request = question(side, "Summarize this.")
        raised: list[CredentialsRejected] = []
        for attempt in (
            lambda: provider.identify(side.model),
            lambda: provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=60.0),
            lambda: provider.retrieve_batch("batch_1"),
            lambda: provider.cancel_batch("batch_1"),
            lambda: submitted(provider, side, [request]),
            lambda: anext(provider.list_batches(since=START)),
            lambda: anext(provider.results("batch_1", model=side.model, endpoint=side.endpoint)),
        ):
            with pytest.raises(CredentialsRejected) as caught:
                await attempt()
            raised.append(caught.value)
        return raised

    errors, simulation = in_world(side, main, spec=spec)
    assert simulation.account().asked == 0
    for error in errors:
        assert "`api_key`" in str(error)
        assert key not in str(error)
        # Prefect pickles what a failed run raised; the SDK's own exception must not ride along.
        assert key.encode() not in pickle.dumps(error)
        assert error.__cause__ is None
        assert error.__context__ is None


@both
def test_a_model_that_is_not_offered_is_named(side: Side) -> None:
    """404 raises `UnknownModel` from the look-up and from a call, with the model's name."""
    other = Side(side.dialect, side.endpoint, "gpt-of-nobody")

    async def main(provider: Provider, clock: SimulatedClock) -> None:
        with pytest.raises(UnknownModel, match="gpt-of-nobody"):
            await provider.identify(other.model)
        request = question(other, "Summarize this.")
        with pytest.raises(UnknownModel, match="gpt-of-nobody"):
            await provider.call(request, endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=60.0)
        with pytest.raises(UnknownModel):
            await provider.identify("")

    in_world(side, main)


@both
def test_an_endpoint_of_another_dialect_is_refused(side: Side) -> None:
    """Capabilities exist for the endpoints of the dialect alone; the message lists those."""
    strange = Endpoint.RESPONSES if side.dialect is Dialect.ANTHROPIC else Endpoint.MESSAGES

    async def main(provider: Provider, clock: SimulatedClock) -> None:
        with pytest.raises(ConfigurationError, match=side.endpoint):
            provider.capabilities(side.model, strange)

    in_world(side, main)


# The wire


@both
def test_the_adapter_works_over_a_socket(side: Side) -> None:
    """Through the SDK's aiohttp transport a call answers and a batch is uploaded, found and harvested."""
    requests = questions(side, 3)
    fast = WorldSettings(
        batch=BatchLaw(median_s=600.0, sigma=0.0, stuck_share=0.0),
        live={Tier.STANDARD: LiveLaw(base_s=0.0, per_token_s=0.0, sigma=0.0)},
    )

    async def main(url: str) -> tuple[Outcome, dict[str, Outcome], list[str]]:
        base_url = f"{url}/v1" if side.dialect is Dialect.OPENAI else url
        provider = open_provider(msgspec.structs.replace(side.spec, base_url=base_url))
        try:
            outcome = await provider.call(requests[0], endpoint=side.endpoint, tier=Tier.STANDARD, timeout_s=30.0)
            batch = await submitted(provider, side, requests)
            while not (await provider.retrieve_batch(batch.id)).results_ready:
                pass
            listed = [seen.id async for seen in provider.list_batches(since=batch.created_at)]
            assert batch.id in listed
            return outcome, await harvested(provider, side, batch.id), listed
        finally:
            await provider.aclose()

    with serving(settings=fast, speed=36_000.0) as url:
        outcome, found, listed = asyncio.run(main(url))
    assert outcome.kind is OutcomeKind.ANSWER
    assert found.keys() == {request.key for request in requests}
    assert len(listed) == 1
