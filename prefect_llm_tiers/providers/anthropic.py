"""Anthropic's dialect: messages, live and in message batches.

Message batches have no files, no metadata and no progress: the requests travel in the creating call, and a
batch whose creation is in doubt is found by its creation time, its counts and, once it has ended, its ids.
"""

import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from datetime import datetime, timedelta
from urllib.parse import quote

import msgspec
from anthropic import AsyncAnthropic

from prefect_llm_tiers.core.batches import ProviderBatch
from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.ports import BatchLine, CallFailed, Capabilities, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, Request
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.anthropic_batches import BatchPage, BatchReply, provider_batch
from prefect_llm_tiers.providers.anthropic_lines import read_anthropic_lines
from prefect_llm_tiers.providers.anthropic_replies import read_message
from prefect_llm_tiers.providers.capabilities import capabilities_of, offer_of
from prefect_llm_tiers.providers.incoming import line_blocks
from prefect_llm_tiers.providers.lines import LineForm, chunks, spooled
from prefect_llm_tiers.providers.listing import Page, each_batch
from prefect_llm_tiers.providers.meanings import MODEL_NOT_FOUND
from prefect_llm_tiers.providers.outcomes import model_of, outcome_of_rejection, raise_if_unbilled_retry
from prefect_llm_tiers.providers.services import Dialect, Service
from prefect_llm_tiers.providers.wire import CONTROL_TIMEOUT_S, Wire, named_tier, tier_refused, unreadable

__all__ = ["AnthropicProvider"]

_BATCHES = "/v1/messages/batches"
_PAGE = 1000

_LINE = LineForm(b'{"custom_id":"', b'","params":', b"}")

_BATCH = msgspec.json.Decoder(BatchReply)
_LIST = msgspec.json.Decoder(BatchPage)


class AnthropicProvider:
    """One organisation at Anthropic. See `core.ports.Provider`."""

    def __init__(self, client: AsyncAnthropic, *, service: Service, account: str | None = None) -> None:
        """Take over a client whose retries are off.

        Args:
            client: The SDK's client; closed with the provider.
            service: Who answers.
            account: Name of the account, in the place of what the provider's headers say.
        """
        self._wire = Wire(client, dialect=Dialect.ANTHROPIC)
        self._service = service
        self._account = account

    @property
    def name(self) -> str:
        return self._service.known_as

    def capabilities(self, model: str, endpoint: Endpoint) -> Capabilities:
        return capabilities_of(self._service.name, model, endpoint)

    async def identify(self, model: str) -> str:
        reply = await self._wire.look_up(model, "/v1/models/")
        named: str | None = reply.headers.get("anthropic-organization-id")
        return self._account or named or f"host:{self._wire.host}"

    async def call(self, request: Request, *, endpoint: Endpoint, tier: Tier, timeout_s: float) -> Outcome:
        model = model_of(request.body)
        offer = offer_of(self._service.name, model, endpoint)
        if offer is None or tier not in offer.names:
            raise tier_refused(tier)
        body = named_tier(request.body, offer.names[tier])
        try:
            reply = await self._wire.post(endpoint.value, body, timeout_s=timeout_s)
        except CallFailed as failed:
            if failed.meaning.reason == MODEL_NOT_FOUND:
                raise self._wire.unknown_model(model) from None
            return outcome_of_rejection(failed, key=request.key)
        outcome = read_message(reply.content, key=request.key, asked=tier, request_id=reply.headers.get("request-id"))
        raise_if_unbilled_retry(outcome)
        return outcome

    async def upload(
        self,
        lines: AsyncIterable[BatchLine],
        *,
        model: str,
        endpoint: Endpoint,
        token: str,
        expires_after: timedelta,
    ) -> None:
        """Do nothing: there are no files, and `create_batch` reads the lines itself."""

    async def create_batch(
        self,
        *,
        input_file_id: str | None,
        lines: AsyncIterable[BatchLine],
        model: str,
        endpoint: Endpoint,
        token: str,
        timeout_s: float,
    ) -> ProviderBatch:
        with await spooled(lines, _LINE, head=b'{"requests":[', between=b",", tail=b"]}") as file:
            length = file.seek(0, 2)
            file.seek(0)
            reply = await self._wire.post(_BATCHES, chunks(file), timeout_s=timeout_s, model=model, length=length)
        return _seen(self._wire.decoded(reply, _BATCH))

    async def retrieve_batch(self, batch_id: str) -> ProviderBatch:
        return _seen(self._wire.decoded(await self._wire.get(f"{_BATCHES}/{quote(batch_id, safe='')}"), _BATCH))

    async def cancel_batch(self, batch_id: str) -> ProviderBatch:
        try:
            reply = await self._wire.post(
                f"{_BATCHES}/{quote(batch_id, safe='')}/cancel", b"", timeout_s=CONTROL_TIMEOUT_S
            )
        except CallFailed as failed:
            # Too late is no failure.
            with contextlib.suppress(CallFailed):
                seen = await self.retrieve_batch(batch_id)
                if seen.status.ended:
                    return seen
            raise CallFailed(failed.meaning) from None
        return _seen(self._wire.decoded(reply, _BATCH))

    async def results(self, batch_id: str, *, model: str, endpoint: Endpoint) -> AsyncIterator[ResultLine]:
        # Not at the batch's `results_url`: it is absolute, and the key must not go where a reply says.
        pieces = self._wire.download(f"{_BATCHES}/{quote(batch_id, safe='')}/results")
        async with contextlib.aclosing(pieces), contextlib.aclosing(line_blocks(pieces)) as blocks:
            async for block in blocks:
                for line in read_anthropic_lines(block):
                    yield line

    def list_batches(self, *, since: datetime) -> AsyncIterator[ProviderBatch]:
        return each_batch(self._page, since=since)

    async def _page(self, last: str | None) -> Page:
        params: dict[str, str | int] = {"limit": _PAGE}
        if last is not None:
            params["after_id"] = last
        page = self._wire.decoded(await self._wire.get(_BATCHES, params=params), _LIST)
        return [_seen(batch) for batch in page.data], page.has_more

    async def aclose(self) -> None:
        await self._wire.close()


def _seen(batch: BatchReply) -> ProviderBatch:
    try:
        return provider_batch(batch)
    except (ValueError, OverflowError):
        pass
    raise unreadable()
