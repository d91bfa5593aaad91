"""Every endpoint of OpenAI that is answered: reading a body, writing an answer."""

from typing import Any

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator.answers import Composed
from prefect_llm_tiers.simulator.asked import AskedRequest
from prefect_llm_tiers.simulator.openai_bodies import read_text_request, render_text_answer
from prefect_llm_tiers.simulator.openai_errors import openai_error
from prefect_llm_tiers.simulator.openai_others import read_other_request, render_other_answer
from prefect_llm_tiers.simulator.world import World

__all__ = ["BATCH_ENDPOINTS", "read_request", "render_answer"]

_TEXT = (Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS)

BATCH_ENDPOINTS = {
    endpoint.value: endpoint
    for endpoint in (
        Endpoint.RESPONSES,
        Endpoint.CHAT_COMPLETIONS,
        Endpoint.EMBEDDINGS,
        Endpoint.COMPLETIONS,
        Endpoint.MODERATIONS,
        Endpoint.IMAGES,
        Endpoint.IMAGE_EDITS,
        Endpoint.VIDEOS,
    )
}
"""Endpoints that a batch may name."""


def read_request(
    world: World, endpoint: Endpoint, body: Any, *, batched: bool = False, custom_id: str | None = None
) -> AskedRequest:
    """Read a body as the question it asks.

    Args:
        world: Knows the models.
        endpoint: Where it was sent, or its batch line's url.
        body: Decoded JSON.
        batched: Whether it stands in a batch, which knows no tiers and no streams.
        custom_id: Its id in the batch.

    Raises:
        Refused: What the real endpoint would refuse, with its status and body.
    """
    if not isinstance(body, dict):
        raise openai_error(400, "Invalid body: expected a JSON object.", code="invalid_type")
    read = read_text_request if endpoint in _TEXT else read_other_request
    return read(world, endpoint, body, batched=batched, custom_id=custom_id)


def render_answer(world: World, asked: AskedRequest, composed: Composed, *, created: int, name: str) -> dict[str, Any]:
    """Return the response body of an answer; its ids follow from `name`."""
    render = render_text_answer if asked.endpoint in _TEXT else render_other_answer
    return render(world, asked, composed, created=created, name=name)
