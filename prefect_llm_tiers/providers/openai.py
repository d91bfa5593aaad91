"""OpenAI's dialect: its endpoints, live and in batches of an uploaded file."""

import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from datetime import datetime, timedelta
from urllib.parse import quote

import msgspec
import orjson
from openai import AsyncOpenAI

from prefect_llm_tiers.core.batches import ProviderBatch
from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.ports import BatchLine, CallFailed, Capabilities, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, Request
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect, capabilities_of
from prefect_llm_tiers.providers.incoming import line_blocks
from prefect_llm_tiers.providers.lines import spooled
from prefect_llm_tiers.providers.listing import Page, each_batch
from prefect_llm_tiers.providers.meanings import MODEL_NOT_FOUND
from prefect_llm_tiers.providers.openai_batches import METADATA_NAME, BatchPage, BatchReply, line_form, provider_batch
from prefect_llm_tiers.providers.openai_lines import read_openai_lines
from prefect_llm_tiers.providers.openai_replies import read_reply
from prefect_llm_tiers.providers.outcomes import model_of, outcome_of_rejection, raise_if_unbilled_retry
from prefect_llm_tiers.providers.wire import CONTROL_TIMEOUT_S, Wire, named_tier, tier_refused, unreadable

__all__ = ["OpenAIProvider"]

_TIER_NAMES = {Tier.STANDARD: "default", Tier.FLEX: "flex", Tier.PRIORITY: "priority"}

_TIERED = frozenset({Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS})
"""Endpoints whose requests name their tier; the others are served on the standard tier, and refuse the field."""

_BATCHED_ONLY = frozenset({Endpoint.IMAGE_EDITS, Endpoint.VIDEOS})

_PAGE = 100
_SHORTEST_EXPIRY_S = 3_600
_LONGEST_EXPIRY_S = 2_592_000


class _FileReply(msgspec.Struct):
    id: str


_FILE = msgspec.json.Decoder(_FileReply)
_BATCH = msgspec.json.Decoder(BatchReply)
_LIST = msgspec.json.Decoder(BatchPage)


class OpenAIProvider:
    """One project at OpenAI, or at a host that speaks its dialect. See `core.ports.Provider`."""

    def __init__(self, client: AsyncOpenAI, *, account: str | None = None) -> None:
        """Take over a client whose retries are off.

        Args:
            client: The SDK's client; closed with the provider.
            account: Name of the account, in the place of what the provider's headers say.
        """
        self._wire = Wire(client, dialect=Dialect.OPENAI)
        self._account = account

    @property
    def name(self) -> str:
        return Dialect.OPENAI.value

    def capabilities(self, model: str, endpoint: Endpoint) -> Capabilities:
        return capabilities_of(Dialect.OPENAI, model, endpoint)

    async def identify(self, model: str) -> str:
        reply = await self._wire.look_up(model, "/models/")
        parts = (reply.headers.get("openai-organization"), reply.headers.get("openai-project"))
        named = "/".join(part for part in parts if part)
        return self._account or named or f"host:{self._wire.host}"

    async def call(self, request: Request, *, endpoint: Endpoint, tier: Tier, timeout_s: float) -> Outcome:
        name = _TIER_NAMES.get(tier)
        tiered = endpoint in _TIERED
        if name is None or endpoint in _BATCHED_ONLY or not (tiered or tier is Tier.STANDARD):
            raise tier_refused(tier)
        body = named_tier(request.body, name) if tiered else request.body
        try:
            reply = await self._wire.post(_path(endpoint), body, timeout_s=timeout_s)
        except CallFailed as failed:
            if failed.meaning.reason == MODEL_NOT_FOUND:
                raise self._wire.unknown_model(model_of(request.body)) from None
            return outcome_of_rejection(failed, key=request.key)
        request_id = reply.headers.get("x-request-id")
        outcome = read_reply(endpoint, reply.content, key=request.key, asked=tier, request_id=request_id)
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
    ) -> str:
        """Upload a batch's requests as JSON lines, named after the token; return the file's id."""
        seconds = min(max(int(expires_after.total_seconds()), _SHORTEST_EXPIRY_S), _LONGEST_EXPIRY_S)
        fields = {"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": seconds}}
        with await spooled(lines, line_form(endpoint)) as file:
            reply = await self._wire.upload("/files", file, name=f"{token}.jsonl", fields=fields)
        return self._wire.decoded(reply, _FILE).id

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
        body = orjson.dumps(
            {
                "input_file_id": input_file_id,
                "endpoint": endpoint.value,
                "completion_window": "24h",
                "metadata": {METADATA_NAME: token},
            }
        )
        reply = await self._wire.post("/batches", body, timeout_s=timeout_s, model=model)
        return _seen(self._wire.decoded(reply, _BATCH))

    async def retrieve_batch(self, batch_id: str) -> ProviderBatch:
        return _seen(await self._retrieve(batch_id))

    async def _retrieve(self, batch_id: str) -> BatchReply:
        return self._wire.decoded(await self._wire.get(f"/batches/{quote(batch_id, safe='')}"), _BATCH)

    async def cancel_batch(self, batch_id: str) -> ProviderBatch:
        try:
            reply = await self._wire.post(
                f"/batches/{quote(batch_id, safe='')}/cancel", b"{}", timeout_s=CONTROL_TIMEOUT_S
            )
        except CallFailed as failed:
            # Too late is no failure: an ended batch is refused with a 400 or a 409.
            with contextlib.suppress(CallFailed):
                seen = await self.retrieve_batch(batch_id)
                if seen.status.ended:
                    return seen
            raise CallFailed(failed.meaning) from None
        return _seen(self._wire.decoded(reply, _BATCH))

    async def results(self, batch_id: str, *, model: str, endpoint: Endpoint) -> AsyncIterator[ResultLine]:
        """Stream the lines of the output file, then those of the error file; either may be missing."""
        batch = await self._retrieve(batch_id)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if not file_id:
                continue
            pieces = self._wire.download(f"/files/{quote(file_id, safe='')}/content")
            async with contextlib.aclosing(pieces), contextlib.aclosing(line_blocks(pieces)) as blocks:
                async for block in blocks:
                    for line in read_openai_lines(block, endpoint=endpoint):
                        yield line

    def list_batches(self, *, since: datetime) -> AsyncIterator[ProviderBatch]:
        return each_batch(self._page, since=since)

    async def _page(self, last: str | None) -> Page:
        params: dict[str, str | int] = {"limit": _PAGE}
        if last is not None:
            params["after"] = last
        page = self._wire.decoded(await self._wire.get("/batches", params=params), _LIST)
        return [_seen(batch) for batch in page.data], page.has_more

    async def aclose(self) -> None:
        await self._wire.close()


def _path(endpoint: Endpoint) -> str:
    """Return the path below the base URL, which ends in `/v1` itself."""
    return endpoint.removeprefix("/v1")


def _seen(batch: BatchReply) -> ProviderBatch:
    try:
        return provider_batch(batch)
    except ValueError:
        pass
    raise unreadable()
