"""OpenAI's dialect: its endpoints, live and in batches of an uploaded file."""

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from datetime import datetime, timedelta
from urllib.parse import quote

import httpx2
import msgspec
import orjson
from openai import AsyncOpenAI

from prefect_llm_tiers.core.batches import ProviderBatch
from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.ports import BatchLine, CallFailed, Capabilities, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, Request
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import UnknownModel
from prefect_llm_tiers.providers.capabilities import capabilities_of, offer_of
from prefect_llm_tiers.providers.incoming import line_blocks
from prefect_llm_tiers.providers.lines import spooled
from prefect_llm_tiers.providers.listing import Page, each_batch
from prefect_llm_tiers.providers.meanings import MODEL_NOT_FOUND, error_in_success
from prefect_llm_tiers.providers.openai_batches import METADATA_NAME, BatchPage, BatchReply, line_form, provider_batch
from prefect_llm_tiers.providers.openai_lines import read_openai_lines
from prefect_llm_tiers.providers.openai_replies import UNREADABLE_REPLY, read_reply
from prefect_llm_tiers.providers.outcomes import model_of, outcome_of_rejection, raise_if_unbilled_retry
from prefect_llm_tiers.providers.services import Dialect, Service
from prefect_llm_tiers.providers.wire import CONTROL_TIMEOUT_S, Wire, named_tier, tier_refused, unreadable

__all__ = ["OpenAIProvider"]

_PAGE = 100
_SHORTEST_EXPIRY_S = 3_600
_LONGEST_EXPIRY_S = 2_592_000


class _FileReply(msgspec.Struct):
    id: str


class _ModelReply(msgspec.Struct):
    id: str


class _ModelPage(msgspec.Struct):
    data: list[_ModelReply]


_FILE = msgspec.json.Decoder(_FileReply)
_BATCH = msgspec.json.Decoder(BatchReply)
_LIST = msgspec.json.Decoder(BatchPage)
_MODELS = msgspec.json.Decoder(_ModelPage)


class OpenAIProvider:
    """One project at OpenAI, or at a host that speaks its dialect. See `core.ports.Provider`."""

    def __init__(self, client: AsyncOpenAI, *, service: Service, account: str | None = None) -> None:
        """Take over a client whose retries are off.

        Args:
            client: The SDK's client; closed with the provider.
            service: Who answers.
            account: Name of the account, in the place of what the provider's headers say.
        """
        self._wire = Wire(client, dialect=Dialect.OPENAI)
        self._service = service
        self._account = account
        # The host refuses `service_tier` though the table says otherwise.
        self._wordless = False

    @property
    def name(self) -> str:
        return self._service.known_as

    def capabilities(self, model: str, endpoint: Endpoint) -> Capabilities:
        return capabilities_of(self._service.name, model, endpoint)

    async def identify(self, model: str) -> str:
        headers = await self._look_up(model)
        parts = (headers.get("openai-organization"), headers.get("openai-project"))
        named = "/".join(part for part in parts if part)
        return self._account or named or f"host:{self._wire.host}"

    async def _look_up(self, model: str) -> Mapping[str, str]:
        """Return the headers of a reply about a model; of a host without a page for each, of its list of models.

        Where there is no list either, nobody can say before the first call.
        """
        try:
            return (await self._wire.look_up(model, "/models/")).headers
        except UnknownModel:
            if self._service.models == "page" or not model.strip():
                raise
        try:
            reply = await self._wire.get("/models")
        except CallFailed as failed:
            if failed.meaning.kind != "rejected":
                raise
            return {}
        if self._service.models == "list":
            listed = self._wire.decoded(reply, _MODELS)
            if all(one.id != model for one in listed.data):
                raise self._wire.unknown_model(model)
        return reply.headers

    async def call(self, request: Request, *, endpoint: Endpoint, tier: Tier, timeout_s: float) -> Outcome:
        model = model_of(request.body)
        offer = offer_of(self._service.name, model, endpoint)
        if offer is None or tier is Tier.BATCH or tier not in offer.tiers:
            raise tier_refused(tier)
        try:
            reply = await self._post(request.body, endpoint, tier, offer.names, timeout_s)
            outcome = self._outcome(reply, request.key, endpoint, tier)
        except CallFailed as failed:
            if failed.meaning.reason == MODEL_NOT_FOUND:
                raise self._wire.unknown_model(model) from None
            return outcome_of_rejection(failed, key=request.key)
        raise_if_unbilled_retry(outcome)
        return outcome

    async def _post(
        self, body: bytes, endpoint: Endpoint, tier: Tier, names: Mapping[Tier, str], timeout_s: float
    ) -> httpx2.Response:
        """Send a body with its tier named, where the service takes a name.

        A host in between may know nothing of tiers. What it refuses costs nothing, so a call on the standard tier goes
        out again without the name, as do all that follow.
        """
        path, standard = _path(endpoint), tier is Tier.STANDARD
        if not names or (self._wordless and standard):
            return await self._wire.post(path, body, timeout_s=timeout_s)
        try:
            return await self._wire.post(path, named_tier(body, names[tier]), timeout_s=timeout_s)
        except CallFailed as failed:
            if not standard or failed.meaning.kind != "tier_unsupported":
                raise
        self._wordless = True
        return await self._wire.post(path, body, timeout_s=timeout_s)

    def _outcome(self, reply: httpx2.Response, key: str, endpoint: Endpoint, tier: Tier) -> Outcome:
        request_id = reply.headers.get("x-request-id")
        outcome = read_reply(endpoint, reply.content, key=key, asked=tier, request_id=request_id)
        if outcome.reason == UNREADABLE_REPLY and outcome.usage is None:
            meaning = error_in_success(dict(reply.headers), reply.content)
            if meaning is not None:
                raise CallFailed(meaning)
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
