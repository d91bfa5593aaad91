"""The Anthropic dialect over HTTP."""

import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefect_llm_tiers.simulator import anthropic_batches
from prefect_llm_tiers.simulator.anthropic_batches import (
    are_readable,
    batch_object,
    has_ended,
    result_lines,
    timestamp,
)
from prefect_llm_tiers.simulator.anthropic_bodies import DIALECT, anthropic_error, read_request, render_answer
from prefect_llm_tiers.simulator.batches import Batch, rows_digest
from prefect_llm_tiers.simulator.book import MODELS, Model
from prefect_llm_tiers.simulator.broken import BrokenReply, HungUp, bad_gateway
from prefect_llm_tiers.simulator.creating import create
from prefect_llm_tiers.simulator.downloads import download
from prefect_llm_tiers.simulator.limits import Reading
from prefect_llm_tiers.simulator.listing import Listing, draw_listing
from prefect_llm_tiers.simulator.live_calls import CapacityRefused, Limited, ProviderFailed, Struck
from prefect_llm_tiers.simulator.live_faults import reply_to_struck
from prefect_llm_tiers.simulator.wire import Refused, json_body, json_response
from prefect_llm_tiers.simulator.world import World

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
            except HungUp:
                return BrokenReply()
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
        except Struck as struck:
            reply = struck.reply
            answer = None if reply is None else render_answer(world, asked, reply, name=world.new_id("live"))
            return await reply_to_struck(world, request, struck, answer=answer, refusal=_refusal)
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
        most = world.settings.most_bytes(DIALECT)
        if len(await request.body()) > most:
            raise anthropic_error(413, f"Request exceeds the maximum size of {most} bytes")
        rows = anthropic_batches.read_requests(world, await json_body(request, _not_json()))
        digest = rows_digest(rows)
        return await create(
            world,
            request,
            key=world.call_key(DIALECT, digest),
            take=lambda at: anthropic_batches.submit(world, rows, digest=digest, lands_at=at),
            show=lambda batch: json_response(batch_object(world, batch, _base_url(request))),
        )

    def _batch(self, request: Request) -> Batch:
        name = request.path_params["id"]
        batch = self._world.batch(DIALECT, name)
        if batch is None:
            raise anthropic_error(404, f"Message Batch {name} not found")
        return batch

    async def _retrieve_batch(self, request: Request) -> Response:
        with self._world.lock:
            batch = self._batch(request)
            if self._world.draws.strikes("retrieve_500", batch.fate.key, batch.look("retrieve")):
                raise anthropic_error(500, "Internal server error")
            return json_response(batch_object(self._world, batch, _base_url(request)))

    async def _list_batches(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            batches = {batch.id: batch for batch in world.batches(DIALECT)}
            chosen = _page(request, [{"id": name} for name in batches])
            listing = draw_listing(world, DIALECT, batches.get(request.query_params.get("after_id", "")))
            if listing is Listing.UNAVAILABLE:
                raise anthropic_error(503, "The service is temporarily unavailable")
            page = [batches[item["id"]] for item in chosen["data"]]
            if listing is Listing.TRUNCATED:
                page, chosen["has_more"] = page[: len(page) // 2], False
            if listing is Listing.ENDLESS:
                page, chosen["has_more"] = page or list(batches.values())[-1:], True
            for batch in page:
                world.work(batch)
            chosen["data"] = [batch_object(world, batch, _base_url(request)) for batch in page]
            chosen["first_id"] = page[0].id if page else None
            chosen["last_id"] = page[-1].id if page else None
        return json_response(chosen)

    async def _cancel_batch(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            batch = self._batch(request)
            refused = world.draws.strikes("cancel_refused", batch.fate.key, look := batch.look("cancel"))
            if refused or has_ended(batch, world.clock.now()):
                raise anthropic_error(400, f"Message Batch {batch.id} cannot be canceled: it has already ended")
            world.cancel(batch)
            if world.draws.strikes("cancel_502_taken", batch.fate.key, look):
                return bad_gateway()
            world.work(batch)
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
            readable = are_readable(world, batch)
        if not readable:
            raise anthropic_error(404, f"No results are available for Message Batch {batch.id}")
        return download(
            world,
            request,
            batch,
            result_lines(world, batch),
            file="results",
            media_type="application/x-jsonl",
            otherwise=anthropic_error(500, "Internal server error"),
        )


def _refusal(fault: str, status: int, retry_after_s: float) -> Refused:
    """Word the refusal of a live call that a fault struck."""
    match fault:
        case "live_limited":
            message = "This request would exceed your organization's rate limit."
            return anthropic_error(status, message, headers={"retry-after": str(math.ceil(retry_after_s))})
        case "live_quota":
            # Anthropic has no 429 for it: an empty balance is a bad request.
            return anthropic_error(400, "Your credit balance is too low to access the Anthropic API.")
        case "live_529":
            return anthropic_error(status, "Overloaded")
        case _:
            return anthropic_error(status, "Internal server error")


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
