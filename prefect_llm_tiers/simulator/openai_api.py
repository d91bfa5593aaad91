"""The OpenAI dialect over HTTP."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator import openai_batches
from prefect_llm_tiers.simulator.book import MODELS, Model
from prefect_llm_tiers.simulator.limits import Reading, reset_text
from prefect_llm_tiers.simulator.openai_batches import BATCH_ENDPOINTS, Status, batch_object, status_of
from prefect_llm_tiers.simulator.openai_bodies import DIALECT, openai_error, read_request, render_answer
from prefect_llm_tiers.simulator.openai_files import OpenAIFiles
from prefect_llm_tiers.simulator.wire import Refused, json_body, json_response
from prefect_llm_tiers.simulator.world import Batch, CapacityRefused, Limited, ProviderFailed, World

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
            self._route("/v1/files", self._files.upload, "POST"),
            self._route("/v1/files/{id}", self._files.retrieve, "GET"),
            self._route("/v1/files/{id}", self._files.delete, "DELETE"),
            self._route("/v1/files/{id}/content", self._files.content, "GET"),
            self._route("/v1/batches", self._create_batch, "POST"),
            self._route("/v1/batches", self._list_batches, "GET"),
            self._route("/v1/batches/{id}", self._retrieve_batch, "GET"),
            self._route("/v1/batches/{id}/cancel", self._cancel_batch, "POST"),
        ]

    def _route(self, path: str, handler: Handler, method: str) -> Route:
        return Route(path, self.guarded(handler), methods=[method])

    def guarded(self, handler: Handler) -> Handler:
        """Return the handler behind the key check, with refusals worded and headers set."""

        async def guarded(request: Request) -> Response:
            try:
                _check_key(request)
                response = await handler(request)
            except Refused as refused:
                response = json_response(refused.body, status=refused.status, headers=refused.headers)
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

    async def _answer(self, request: Request, endpoint: Endpoint) -> Response:
        world = self._world
        asked = read_request(world, endpoint, await json_body(request, _not_json()))
        try:
            served = await world.ask(asked)
        except Limited as limited:
            raise self._limit_refusal(asked.model, limited) from None
        except CapacityRefused:
            raise openai_error(
                429,
                "Resource Unavailable: flex processing has no capacity for this request right now. "
                "You were not charged.",
                code="resource_unavailable",
                kind="resource_unavailable",
            ) from None
        except ProviderFailed:
            raise openai_error(
                500,
                "The server had an error while processing your request. Sorry about that!",
                kind="server_error",
            ) from None
        created = int(world.clock.now().timestamp())
        body = render_answer(world, asked, served.composed, created=created, name=world.new_id("live"))
        headers = _limit_headers({"requests": served.requests, "tokens": served.tokens})
        return json_response(body, headers=headers)

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
        known = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
        for name in body:
            if name not in known:
                raise openai_error(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        for name in known[:3]:
            if not body.get(name):
                raise openai_error(
                    400,
                    f"Missing required parameter: '{name}'.",
                    param=name,
                    code="missing_required_parameter",
                )
        endpoint = BATCH_ENDPOINTS.get(body["endpoint"])
        if endpoint is None:
            supported = " and ".join(f"'{name}'" for name in BATCH_ENDPOINTS)
            raise openai_error(
                400,
                f"Invalid value: '{body['endpoint']}'. Supported values are: {supported}.",
                param="endpoint",
                code="invalid_value",
            )
        if body["completion_window"] != "24h":
            raise openai_error(
                400,
                f"Invalid value: '{body['completion_window']}'. Value must be '24h'.",
                param="completion_window",
                code="invalid_value",
            )
        metadata = _metadata(body.get("metadata"))
        expires_s = _output_expiry(body.get("output_expires_after"))
        file = self._files.uploaded(body["input_file_id"])
        if file is None:
            raise openai_error(400, f"No such File object: {body['input_file_id']}", param="input_file_id")
        batch = openai_batches.submit(
            self._world,
            endpoint,
            file.content,
            file_id=file.id,
            metadata=metadata,
            output_expires_s=expires_s,
        )
        return json_response(batch_object(self._world, batch))

    def _batch(self, request: Request) -> Batch:
        name = request.path_params["id"]
        batch = self._world.batch(DIALECT, name)
        if batch is None:
            raise openai_error(404, f"No batch found with id '{name}'.")
        return batch

    async def _retrieve_batch(self, request: Request) -> Response:
        with self._world.lock:
            return json_response(batch_object(self._world, self._batch(request)))

    async def _list_batches(self, request: Request) -> Response:
        limit = _page_size(request.query_params.get("limit", "20"))
        world = self._world
        with world.lock:
            batches = world.batches(DIALECT)
            if after := request.query_params.get("after"):
                ids = [batch.id for batch in batches]
                if after not in ids:
                    raise openai_error(400, f"No batch found with id '{after}'.", param="after")
                batches = batches[ids.index(after) + 1 :]
            page = [world.batch(DIALECT, batch.id) for batch in batches[:limit]]
            data = [batch_object(world, batch) for batch in page if batch is not None]
        return json_response(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(batches) > limit,
            }
        )

    async def _cancel_batch(self, request: Request) -> Response:
        world = self._world
        with world.lock:
            batch = self._batch(request)
            status = status_of(world, batch, world.clock.now())
            if status not in (Status.VALIDATING, Status.IN_PROGRESS, Status.CANCELLING):
                raise openai_error(409, f"Cannot cancel a batch with status '{status.value}'.")
            world.cancel(batch)
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


def _output_expiry(value: Any) -> int | None:
    if value is None:
        return None
    seconds = value.get("seconds") if isinstance(value, dict) else None
    if (
        not isinstance(value, dict)
        or value.get("anchor") != "created_at"
        or not isinstance(seconds, int)
        or not 3600 <= seconds <= 2_592_000
    ):
        raise openai_error(
            400,
            "Invalid 'output_expires_after': expected anchor 'created_at' and 3600 to 2592000 seconds.",
            param="output_expires_after",
            code="invalid_value",
        )
    return seconds


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    fits = isinstance(value, dict) and len(value) <= 16
    if not fits or not all(
        isinstance(text, str) and len(name) <= 64 and len(text) <= 512 for name, text in value.items()
    ):
        raise openai_error(
            400,
            "Invalid 'metadata': at most 16 pairs of strings, keys up to 64 and values up to 512 characters.",
            param="metadata",
            code="invalid_value",
        )
    return dict(value)


def _page_size(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise openai_error(400, "Invalid 'limit': expected 1 to 100.", param="limit", code="invalid_value")
    return int(text)
