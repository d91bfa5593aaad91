"""OpenAI's way to say no, and what all its endpoints refuse."""

from typing import Any

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator.book import Model
from prefect_llm_tiers.simulator.wire import Refused
from prefect_llm_tiers.simulator.world import World

__all__ = ["DIALECT", "check_body", "openai_error", "server_error"]

DIALECT = "openai"


def openai_error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    kind: str = "invalid_request_error",
    headers: dict[str, str] | None = None,
) -> Refused:
    """Return OpenAI's way to say no."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Refused(status, body, headers or {})


def server_error() -> Refused:
    """Return OpenAI's 500."""
    return openai_error(
        500, "The server had an error while processing your request. Sorry about that!", kind="server_error"
    )


def check_body(
    world: World, endpoint: Endpoint, body: dict[str, Any], known: frozenset[str], required: tuple[str, ...]
) -> Model:
    """Check the fields of a body and its model, and return the model.

    Args:
        world: Knows the models.
        endpoint: Where it was sent.
        body: Decoded JSON.
        known: Fields that the endpoint takes.
        required: Fields that it needs.

    Raises:
        Refused: A field is unknown or missing, or the model is none of this endpoint's.
    """
    for name in body:
        if name not in known:
            raise openai_error(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    for name in required:
        if not body.get(name):
            raise openai_error(
                400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    model = world.model(DIALECT, body["model"])
    if model is None:
        raise openai_error(
            404,
            f"The model `{body['model']}` does not exist or you do not have access to it.",
            code="model_not_found",
        )
    if endpoint not in model.endpoints:
        raise openai_error(400, f"The model `{model.id}` cannot be used with {endpoint.value}.", param="model")
    return model
