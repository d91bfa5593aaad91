"""OpenAI's dialect: responses and chat completions, live and in batches of an uploaded file."""

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
from prefect_llm_tiers.providers.lines import split_lines, spooled
from prefect_llm_tiers.providers.meanings import MODEL_NOT_FOUND
from prefect_llm_tiers.providers.openai_batches import METADATA_NAME, BatchPage, BatchReply, provider_batch
from prefect_llm_tiers.providers.openai_replies import read_line, read_reply
from prefect_llm_tiers.providers.outcomes import model_of, outcome_of_rejection, raise_if_unbilled_retry
from prefect_llm_tiers.providers.wire import CONTROL_TIMEOUT_S, Wire, named_tier, tier_refused, unreadable

__all__ = ["OpenAIProvider"]

_TIER_NAMES = {Tier.STANDARD: "default", Tier.FLEX: "flex", Tier.PRIORITY: "priority"}

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
        if name is None:
            raise tier_refused(tier)
        try:
            reply = await self._wire.post(_path(endpoint), named_tier(request.body, name), timeout_s=timeout_s)
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
        middle = b'","method":"POST","url":' + orjson.dumps(endpoint.value) + b',"body":'

        def encode(line: BatchLine) -> bytes:
            # A custom_id has no character that JSON would escape. The body goes in as it is: encoding
            # it again would cost most of the upload's CPU, and could change what was keyed.
            return b'{"custom_id":"' + line.custom_id.encode() + middle + line.body + b"}\n"

        seconds = min(max(int(expires_after.total_seconds()), _SHORTEST_EXPIRY_S), _LONGEST_EXPIRY_S)
        fields = {"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": seconds}}
        with await spooled(lines, encode) as file:
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
            async with contextlib.aclosing(pieces), contextlib.aclosing(split_lines(pieces)) as lines:
                async for line in lines:
                    yield read_line(line, endpoint=endpoint)

    async def list_batches(self, *, since: datetime) -> AsyncIterator[ProviderBatch]:
        # Creation times are whole seconds: a batch made 0.7 s into a second is told as made at its start.
        floor = since.replace(microsecond=0)
        after: str | None = None
        while True:
            params: dict[str, str | int] = {"limit": _PAGE}
            if after is not None:
                params["after"] = after
            page = self._wire.decoded(await self._wire.get("/batches", params=params), _LIST)
            seen = [_seen(batch) for batch in page.data]
            for batch in seen:
                if batch.created_at >= floor:
                    yield batch
            if not seen or not page.has_more or seen[-1].created_at < floor:
                return
            if seen[-1].id == after:
                # The list goes on and does not move: nobody may take it for complete.
                raise unreadable()
            after = seen[-1].id

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
