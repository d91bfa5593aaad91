"""The OpenAI dialect over HTTP."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator import openai_batches
from prefect_llm_tiers.simulator.answers import Composed
from prefect_llm_tiers.simulator.asked import AskedRequest
from prefect_llm_tiers.simulator.batches import Batch
from prefect_llm_tiers.simulator.book import MODELS, Model
from prefect_llm_tiers.simulator.broken import BrokenReply, HungUp, bad_gateway
from prefect_llm_tiers.simulator.creating import create
from prefect_llm_tiers.simulator.limits import Reading, reset_text
from prefect_llm_tiers.simulator.listing import Listing, draw_listing
from prefect_llm_tiers.simulator.live_calls import CapacityRefused, Limited, ProviderFailed, Struck
from prefect_llm_tiers.simulator.live_faults import reply_to_struck
from prefect_llm_tiers.simulator.openai_batches import Status, batch_object, status_of
from prefect_llm_tiers.simulator.openai_creation import read_creation
from prefect_llm_tiers.simulator.openai_endpoints import read_request, render_answer
from prefect_llm_tiers.simulator.openai_errors import DIALECT, openai_error, server_error
from prefect_llm_tiers.simulator.openai_files import OpenAIFiles
from prefect_llm_tiers.simulator.openai_refusals import no_capacity, refusal
from prefect_llm_tiers.simulator.openai_uploads import judge
from prefect_llm_tiers.simulator.wire import Refused, json_body, json_response
from prefect_llm_tiers.simulator.world import World

__all__ = ["OpenAIDialect"]

Handler = Callable[[Request], Awaitable[Response]]


class OpenAIDialect:
    """Endpoints of OpenAI."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._files = OpenAIFiles(world)

    def routes(self) -> list[Route]:
        """Return the routes; `/v1/models` is shared with the other dialect and routed above."""
        return [
            self._route("/v1/responses", self._responses, "POST"),
            self._route("/v1/chat/completions", self._chat_completions, "POST"),
            self._route("/v1/embeddings", self._embeddings, "POST"),
            self._route("/v1/completions", self._completions, "POST"),
            self._route("/v1/moderations", self._moderations, "POST"),
            self._route("/v1/images/generations", self._images, "POST"),
            self._route("/v1/files", self._batched(self._files.upload), "POST"),
            self._route("/v1/files/{id}", self._batched(self._files.retrieve), "GET"),
            self._route("/v1/files/{id}", self._batched(self._files.delete), "DELETE"),
            self._route("/v1/files/{id}/content", self._batched(self._files.content), "GET"),
            self._route("/v1/batches", self._batched(self._create_batch), "POST"),
            self._route("/v1/batches", self._batched(self._list_batches), "GET"),
            self._route("/v1/batches/{id}", self._batched(self._retrieve_batch), "GET"),
            self._route("/v1/batches/{id}/cancel", self._batched(self._cancel_batch), "POST"),
        ]

    def _batched(self, handler: Handler) -> Handler:
        """Return the handler of a path that only a service with batches has."""

        async def absent(_: Request) -> Response:
            raise _no_such_path()

        return handler if self._world.played.batches else absent

    def _route(self, path: str, handler: Handler, method: str) -> Route:
        return Route(path, self.guarded(handler), methods=[method])

    def guarded(self, handler: Handler) -> Handler:
        """Return the handler behind the key check, with refusals worded and headers set."""

        async def guarded(request: Request) -> Response:
            try:
                _check_key(request)
                response = await handler(request)
            except HungUp:
                return BrokenReply()
            except Refused as refused:
                response = json_response(refused.body, status=refused.status, headers=refused.headers)
            if self._world.played.names_account:
                response.headers["openai-organization"] = self._world.settings.organization
                response.headers["openai-project"] = self._world.settings.project
            response.headers["openai-version"] = "2020-10-01"
            response.headers["x-request-id"] = self._world.new_id("req_")
            return response

        return guarded

    # Live calls

    async def _responses(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.RESPONSES)

    async def _chat_completions(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.CHAT_COMPLETIONS)

    async def _embeddings(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.EMBEDDINGS)

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.COMPLETIONS)

    async def _moderations(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.MODERATIONS)

    async def _images(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.IMAGES)

    async def _answer(self, request: Request, endpoint: Endpoint) -> Response:
        world = self._world
        asked = read_request(world, endpoint, await json_body(request, _not_json()))
        try:
            served = await world.ask(asked)
        except Limited as limited:
            raise self._limit_refusal(asked.model, limited) from None
        except CapacityRefused:
            raise no_capacity(world.played.capacity_status) from None
        except ProviderFailed:
            raise server_error() from None
        except Struck as struck:
            answer = None if struck.reply is None else self._rendered(asked, struck.reply)
            return await reply_to_struck(world, request, struck, answer=answer, refusal=refusal)
        body = self._rendered(asked, served.composed)
        headers = _limit_headers({"requests": served.requests, "tokens": served.tokens})
        return json_response(body, headers=headers)

    def _rendered(self, asked: AskedRequest, composed: Composed) -> dict[str, Any]:
        created = int(self._world.clock.now().timestamp())
        return render_answer(self._world, asked, composed, created=created, name=self._world.new_id("live"))

    def _limit_refusal(self, model: str, limited: Limited) -> Refused:
        reading = limited.reading
        short = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}[limited.unit]
        message = (
            f"Rate limit reached for {model} in organization {self._world.settings.organization} on {short}: "
            f"Limit {reading.limit}. Please try again in {reset_text(reading.retry_after_s)}."
        )
        headers = _limit_headers({limited.unit: reading})
        headers["retry-after"] = str(max(1, math.ceil(reading.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(reading.retry_after_s * 1000))
        return openai_error(429, message, code="rate_limit_exceeded", kind=limited.unit, headers=headers)

    # Models

    async def list_models(self, _: Request) -> Response:
        """Return every model of the dialect."""
        self._world.books.models_calls += 1
        data = [_model_object(model) for model in MODELS.values() if self._world.model(DIALECT, model.id)]
        return json_response({"object": "list", "data": data})

    async def retrieve_model(self, request: Request) -> Response:
        """Return one model."""
        self._world.books.models_calls += 1
        if not self._world.played.model_pages:
            raise _no_such_path()
        name = request.path_params["id"]
        model = self._world.model(DIALECT, name)
        if model is None:
            raise openai_error(404, f"The model '{name}' does not exist", param="model", code="model_not_found")
        return json_response(_model_object(model))

    # Batches

    async def _create_batch(self, request: Request) -> Response:
        body = await json_body(request, _not_json())
        if not isinstance(body, dict):
            raise _not_json()
        creation = read_creation(body)
        file = self._files.uploaded(creation.input_file_id)
        if file is None:
            raise openai_error(400, f"No such File object: {creation.input_file_id}", param="input_file_id")
        world = self._world
        upload = judge(world, creation.endpoint, file.content)
        sheet = {
            "endpoint": creation.endpoint.value,
            "input_file_id": file.id,
            "metadata": creation.metadata,
            "output_expires_s": creation.output_expires_s,
        }
        return await create(
            world,
            request,
            key=world.call_key(DIALECT, upload.digest),
            take=lambda at: openai_batches.submit(world, upload, sheet, lands_at=at),
            show=lambda batch: json_response(batch_object(world, batch)),
        )

    def _batch(self, request: Request) -> Batch:
        name = request.path_params["id"]
        batch = self._world.batch(DIALECT, name)
        if batch is None:
            raise openai_error(404, f"No batch found with id '{name}'.")
        return batch

    async def _retrieve_batch(self, request: Request) -> Response:
        with self._world.lock:
            batch = self._batch(request)
            if self._world.draws.strikes("retrieve_500", batch.fate.key, batch.look("retrieve")):
                raise server_error()
            return json_response(batch_object(self._world, batch))

    async def _list_batches(self, request: Request) -> Response:
        limit = _page_size(request.query_params.get("limit", "20"))
        after = request.query_params.get("after")
        world = self._world
        with world.lock:
            batches = world.batches(DIALECT)
            ids = [batch.id for batch in batches]
            if after and after not in ids:
                raise openai_error(400, f"No batch found with id '{after}'.", param="after")
            listing = draw_listing(world, DIALECT, batches[ids.index(after)] if after else None)
            if listing is Listing.UNAVAILABLE:
                raise openai_error(503, "The server is currently overloaded. Try again later.", kind="server_error")
            begin = ids.index(after) + 1 if after else 0
            page = batches[begin : begin + limit]
            more = begin + limit < len(batches)
            if listing is Listing.TRUNCATED:
                page, more = page[: len(page) // 2], False
            if listing is Listing.ENDLESS:
                page, more = page or batches[-limit:], True
            for batch in page:
                world.work(batch)
            data = [batch_object(world, batch) for batch in page]
        return json_response(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": more,
            }
        )

    async def _cancel_batch(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            batch = self._batch(request)
            status = status_of(world, batch, world.clock.now())
            refused = world.draws.strikes("cancel_refused", batch.fate.key, look := batch.look("cancel"))
            if refused or status not in (Status.VALIDATING, Status.IN_PROGRESS, Status.CANCELLING):
                raise openai_error(409, f"Cannot cancel a batch with status '{status.value}'.")
            world.cancel(batch)
            if world.draws.strikes("cancel_502_taken", batch.fate.key, look):
                return bad_gateway()
            world.work(batch)
            return json_response(batch_object(world, batch))


def _check_key(request: Request) -> None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise openai_error(
            401,
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )
    if key.startswith("bad"):
        raise openai_error(401, "Incorrect API key provided: ***.", code="invalid_api_key")


def _no_such_path() -> Refused:
    """Return what a server says of a path that it does not have."""
    return Refused(404, {"detail": "Not Found"}, {})


def _not_json() -> Refused:
    return openai_error(400, "We could not parse the JSON body of your request. The API expects a JSON payload.")


def _limit_headers(readings: dict[str, Reading | None]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for unit, reading in readings.items():
        if reading is not None:
            headers[f"x-ratelimit-limit-{unit}"] = str(reading.limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(reading.remaining)
            headers[f"x-ratelimit-reset-{unit}"] = reset_text(reading.reset_s)
    return headers


def _model_object(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.released.timestamp()),
        "owned_by": "openai",
        "shutdown_date": model.shutdown.date().isoformat() if model.shutdown else None,
    }


def _page_size(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise openai_error(400, "Invalid 'limit': expected 1 to 100.", param="limit", code="invalid_value")
    return int(text)
