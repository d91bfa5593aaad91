"""The Anthropic dialect over HTTP."""

import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from prefect_llm_tiers.simulator import anthropic_batches
from prefect_llm_tiers.simulator.anthropic_batches import batch_object, has_ended, result_lines, timestamp
from prefect_llm_tiers.simulator.anthropic_bodies import DIALECT, anthropic_error, read_request, render_answer
from prefect_llm_tiers.simulator.book import MODELS, Model
from prefect_llm_tiers.simulator.limits import Reading
from prefect_llm_tiers.simulator.wire import Refused, in_blocks, json_body, json_response
from prefect_llm_tiers.simulator.world import Batch, CapacityRefused, Limited, ProviderFailed, World

__all__ = ["AnthropicDialect"]

Handler = Callable[[Request], Awaitable[Response]]


class AnthropicDialect:
    """Endpoints of Anthropic."""

    def __init__(self, world: World) -> None:
        self._world = world

    def routes(self) -> list[Route]:
        """Return the routes; `/v1/models` is shared with the other dialect and routed above."""
        return [
            self._route("/v1/messages", self._messages, "POST"),
            self._route("/v1/messages/batches", self._create_batch, "POST"),
            self._route("/v1/messages/batches", self._list_batches, "GET"),
            self._route("/v1/messages/batches/{id}", self._retrieve_batch, "GET"),
            self._route("/v1/messages/batches/{id}", self._delete_batch, "DELETE"),
            self._route("/v1/messages/batches/{id}/cancel", self._cancel_batch, "POST"),
            self._route("/v1/messages/batches/{id}/results", self._results, "GET"),
        ]

    def _route(self, path: str, handler: Handler, method: str) -> Route:
        return Route(path, self.guarded(handler), methods=[method])

    def guarded(self, handler: Handler) -> Handler:
        """Return the handler behind the key check, with refusals worded and headers set."""

        async def guarded(request: Request) -> Response:
            request_id = self._world.new_id("req_")
            try:
                _check_headers(request)
                response = await handler(request)
            except Refused as refused:
                body = refused.body | {"request_id": request_id}
                response = json_response(body, status=refused.status, headers=refused.headers)
            response.headers["anthropic-organization-id"] = self._world.settings.organization
            response.headers["request-id"] = request_id
            return response

        return guarded

    async def _messages(self, request: Request) -> Response:
        world = self._world
        asked = read_request(world, await json_body(request, _not_json()))
        try:
            served = await world.ask(asked)
        except Limited as limited:
            raise self._limit_refusal(limited) from None
        except (CapacityRefused, ProviderFailed):
            raise anthropic_error(500, "Internal server error") from None
        body = render_answer(world, asked, served.composed, name=world.new_id("live"))
        return json_response(body, headers=self._limit_headers({"requests": served.requests, "tokens": served.tokens}))

    def _limit_refusal(self, limited: Limited) -> Refused:
        reading = limited.reading
        headers = self._limit_headers({limited.unit: reading})
        headers["retry-after"] = str(max(1, math.ceil(reading.retry_after_s)))
        message = (
            f"This request would exceed your organization's rate limit of {reading.limit} {limited.unit} per minute."
        )
        return anthropic_error(429, message, headers=headers)

    def _limit_headers(self, readings: dict[str, Reading | None]) -> dict[str, str]:
        now = self._world.clock.now()
        headers: dict[str, str] = {}
        for unit, reading in readings.items():
            if reading is not None:
                name = f"anthropic-ratelimit-{unit}"
                headers[f"{name}-limit"] = str(reading.limit)
                headers[f"{name}-remaining"] = str(reading.remaining)
                headers[f"{name}-reset"] = timestamp(now + timedelta(seconds=reading.reset_s))
        return headers

    # Models

    async def list_models(self, request: Request) -> Response:
        """Return the models of the dialect, newest first."""
        self._world.books.models_calls += 1
        offered = [model for model in MODELS.values() if self._world.model(DIALECT, model.id)]
        offered.sort(key=lambda model: model.released, reverse=True)
        return json_response(_page(request, [_model_object(model) for model in offered]))

    async def retrieve_model(self, request: Request) -> Response:
        """Return one model."""
        self._world.books.models_calls += 1
        name = request.path_params["id"]
        model = self._world.model(DIALECT, name)
        if model is None:
            raise anthropic_error(404, f"model: {name}")
        return json_response(_model_object(model))

    # Batches

    async def _create_batch(self, request: Request) -> Response:
        world = self._world
        most = world.settings.batch_bytes[DIALECT]
        if len(await request.body()) > most:
            raise anthropic_error(413, f"Request exceeds the maximum size of {most} bytes")
        batch = anthropic_batches.submit(world, await json_body(request, _not_json()))
        return json_response(batch_object(world, batch, _base_url(request)))

    def _batch(self, request: Request) -> Batch:
        name = request.path_params["id"]
        batch = self._world.batch(DIALECT, name)
        if batch is None:
            raise anthropic_error(404, f"Message Batch {name} not found")
        return batch

    async def _retrieve_batch(self, request: Request) -> Response:
        with self._world.lock:
            return json_response(batch_object(self._world, self._batch(request), _base_url(request)))

    async def _list_batches(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            chosen = _page(request, [{"id": batch.id} for batch in world.batches(DIALECT)])
            page = [world.batch(DIALECT, item["id"]) for item in chosen["data"]]
            chosen["data"] = [batch_object(world, batch, _base_url(request)) for batch in page if batch]
        return json_response(chosen)

    async def _cancel_batch(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            batch = self._batch(request)
            if has_ended(batch, world.clock.now()):
                raise anthropic_error(400, f"Message Batch {batch.id} cannot be canceled: it has already ended")
            world.cancel(batch)
            return json_response(batch_object(world, batch, _base_url(request)))

    async def _delete_batch(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            batch = self._batch(request)
            if not has_ended(batch, world.clock.now()):
                raise anthropic_error(
                    400, f"Message Batch {batch.id} cannot be deleted before it has ended: cancel it first"
                )
            world.forget(batch)
        return json_response({"id": batch.id, "type": "message_batch_deleted"})

    async def _results(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            batch = self._batch(request)
            now = world.clock.now()
        if not has_ended(batch, now) or now >= batch.created_at + anthropic_batches.RESULTS_KEPT:
            raise anthropic_error(404, f"No results are available for Message Batch {batch.id}")
        return StreamingResponse(in_blocks(result_lines(world, batch)), media_type="application/x-jsonl")


def _check_headers(request: Request) -> None:
    key = request.headers.get("x-api-key") or ""
    if not key:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else ""
    if not key:
        raise anthropic_error(401, "x-api-key header is required")
    if key.startswith("bad"):
        raise anthropic_error(401, "invalid x-api-key")
    if "anthropic-version" not in request.headers:
        raise anthropic_error(400, "anthropic-version: header is required")


def _not_json() -> Refused:
    return anthropic_error(400, "The request body is not valid JSON")


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _model_object(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "type": "model",
        "display_name": model.display_name,
        "created_at": timestamp(model.released),
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "max_tokens": model.max_output_tokens,
        "max_input_tokens": 1_000_000,
    }


def _page(request: Request, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one page of items that stand newest first.

    `after_id` asks for what stands after an item (older), `before_id` for what stands right before it.
    """
    text = request.query_params.get("limit", "20")
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise anthropic_error(400, "limit: Input should be between 1 and 1000")
    limit = int(text)
    ids = [item["id"] for item in items]
    after, before = request.query_params.get("after_id"), request.query_params.get("before_id")
    for cursor in (after, before):
        if cursor is not None and cursor not in ids:
            raise anthropic_error(400, f"Invalid cursor: {cursor}")
    if before is not None:
        newer = items[: ids.index(before)]
        page, more = newer[-limit:], len(newer) > limit
    else:
        rest = items if after is None else items[ids.index(after) + 1 :]
        page, more = rest[:limit], len(rest) > limit
    return {
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
