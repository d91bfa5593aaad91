"""Embeddings, completions, moderations, images and videos, live where they are live, and in batches."""

import base64
import json
import math
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import Box

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)


def run_one(box: Box, method: Any, **body: Any) -> Any:
    """Ask one question of an SDK's method."""

    async def ask() -> Any:
        return await method(box.openai()).create(**body)

    return box.run(ask())


def embed(box: Box, given: Any, **extra: Any) -> Any:
    """Embed with the smaller model; numbers come as numbers unless said otherwise."""
    options = {"model": "text-embedding-3-small", "encoding_format": "float"} | extra
    return run_one(box, lambda client: client.embeddings, input=given, **options)


def test_an_embedding_follows_from_its_text() -> None:
    """A unit vector of the model's length, the same every time, another one for another text."""
    first = embed(Box(), ["one text", "another"])
    again = embed(Box(WorldSettings(seed=9)), "one text")
    assert [item.index for item in first.data] == [0, 1]
    assert len(first.data[0].embedding) == 1536
    assert math.hypot(*first.data[0].embedding) == pytest.approx(1)
    assert first.data[0].embedding == again.data[0].embedding
    assert first.data[0].embedding != first.data[1].embedding
    assert (first.object, first.model) == ("list", "text-embedding-3-small")
    assert first.usage.prompt_tokens == first.usage.total_tokens == 2 + 2


def test_fewer_dimensions_are_the_first_ones() -> None:
    """A shorter vector is the beginning of the longer one, made a unit vector again."""
    whole = embed(Box(), "text").data[0].embedding
    short = embed(Box(), "text", dimensions=64).data[0].embedding
    length = math.hypot(*whole[:64])
    assert short == pytest.approx([value / length for value in whole[:64]], rel=1e-5)


def test_base64_holds_the_same_numbers() -> None:
    """base64 is the little-endian 32-bit numbers that `float` shows."""
    box = Box()

    async def ask() -> bytes:
        headers = {"authorization": "Bearer k"}
        body = {"model": "text-embedding-3-small", "input": "text", "encoding_format": "base64", "dimensions": 8}
        reply = await box.http().post("/v1/embeddings", json=body, headers=headers)
        return base64.b64decode(reply.json()["data"][0]["embedding"])

    assert list(struct.unpack("<8f", box.run(ask()))) == embed(Box(), "text", dimensions=8).data[0].embedding
    # The SDK asks for base64 on its own and decodes it.
    assert (
        len(run_one(Box(), lambda c: c.embeddings, model="text-embedding-3-large", input="t").data[0].embedding) == 3072
    )


@pytest.mark.parametrize(
    "change",
    [
        {"service_tier": "default"},
        {"service_tier": "flex"},
        {"dimensions": 0},
        {"dimensions": 1537},
        {"encoding_format": "hex"},
        {"model": "gpt-6-luna"},
        {"model": "text-embedding-ada-002", "dimensions": 5},
        {"input": ["fine", ""]},
        {"input": ["x"] * 2049},
        {"input": "long " * 8192},
        {"input": [{"text": "x"}]},
    ],
)
def test_embeddings_refuse_what_the_real_ones_refuse(change: dict[str, Any]) -> None:
    """A tier, a dimension out of range, another kind of model, an empty or overlong input are 400."""
    box = Box()
    body = {"model": "text-embedding-3-small", "input": "text"} | change

    async def ask() -> int:
        reply = await box.http().post("/v1/embeddings", json=body, headers={"authorization": "Bearer k"})
        return reply.status_code

    assert box.run(ask()) == 400
    assert box.simulation.account().asked == 0


def test_token_ids_can_be_embedded() -> None:
    """One list of numbers is one input; lists of them are several."""
    assert embed(Box(), [1, 2, 3]).usage.prompt_tokens == 3
    assert len(embed(Box(), [[1, 2], [3]]).data) == 2


def test_a_completion_goes_on_with_a_prompt() -> None:
    """The older endpoint answers text with usage, cut at 16 tokens unless more are asked for."""
    method = lambda client: client.completions  # noqa: E731 - the SDK's attribute
    prompt = "Sum up.\nThe page tells how a thing is done, in which order, and why that order matters to all."
    short = run_one(Box(), method, model="gpt-3.5-turbo-instruct", prompt=prompt)
    whole = run_one(Box(), method, model="gpt-3.5-turbo-instruct", prompt=prompt, max_tokens=200)
    assert (short.object, short.choices[0].finish_reason, short.usage.completion_tokens) == (
        "text_completion",
        "length",
        16,
    )
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].text.startswith(short.choices[0].text)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_a_moderation_is_free() -> None:
    """Each text has a result of its own, and nothing is billed."""
    box = Box()
    reply = run_one(
        box, lambda c: c.moderations, model="omni-moderation-latest", input=["a calm page", "how to kill a man"]
    )
    assert [result.flagged for result in reply.results] == [False, True]
    assert [result.categories.violence for result in reply.results] == [False, True]
    assert 0 <= reply.results[0].category_scores.hate < 0.1
    account = box.simulation.account()
    assert (account.answered, account.billed_usd) == (1, Decimal(0))


def test_an_image_is_a_picture_with_usage() -> None:
    """Each picture is a PNG, the same every time; usage tells text from images, and the bill follows it."""
    box = Box()

    async def draw() -> Any:
        return await box.openai().images.generate(
            model="gpt-image-2.5-flare", prompt="A lighthouse at dawn.", n=2, quality="low"
        )

    first, again = box.run(draw()), box.run(draw())
    pictures = [base64.b64decode(item.b64_json) for item in first.data]
    assert [picture[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert pictures[0] != pictures[1]
    assert [item.b64_json for item in first.data] == [item.b64_json for item in again.data]
    usage = first.usage
    assert (usage.output_tokens, usage.input_tokens_details.image_tokens) == (2 * 272, 0)
    due = 2 * (usage.input_tokens * Decimal(5) + usage.output_tokens * Decimal(30)) / 1_000_000
    assert box.simulation.account().billed_usd == due


BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": ["one", "two"], "encoding_format": "base64"},
    "/v1/completions": {"model": "davinci-002", "prompt": "Sum up.\nA page.", "max_tokens": 50},
    "/v1/moderations": {"model": "omni-moderation-latest", "input": "a page"},
    "/v1/images/generations": {"model": "gpt-image-2.5-flare", "prompt": "A lighthouse."},
    "/v1/images/edits": {
        "model": "gpt-image-2.5-flare",
        "prompt": "At night.",
        "images": [{"image_url": "https://example.com/a.png"}],
    },
    "/v1/videos": {"model": "sora-2", "prompt": "A lighthouse, waves.", "seconds": "8"},
}


def batch_of(box: Box, endpoint: str, bodies: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """Run a batch to its end and return it with all of its lines."""
    lines = b"".join(
        json.dumps({"custom_id": f"row-{number}", "method": "POST", "url": endpoint, "body": body}).encode() + b"\n"
        for number, body in enumerate(bodies)
    )

    async def live() -> tuple[Any, list[dict[str, Any]]]:
        batch = await box.openai_batch(lines, endpoint)
        await box.wait(hours=2)
        batch = await box.openai().batches.retrieve(batch.id)
        found = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                content = await box.openai().files.content(file_id)
                found += [json.loads(line) for line in content.text.splitlines()]
        return batch, found

    return box.run(live())


@pytest.mark.parametrize("endpoint", sorted(BODIES))
def test_every_endpoint_has_batches(endpoint: str) -> None:
    """A batch of any of them completes, with the body that the endpoint has live, at the price of batch."""
    box = Box(WorldSettings(batch=HOUR))
    batch, (line,) = batch_of(box, endpoint, [BODIES[endpoint]])
    assert (batch.status, batch.endpoint, line["response"]["status_code"]) == ("completed", endpoint, 200)
    body = line["response"]["body"]
    shape: dict[str, Callable[[], bool]] = {
        "/v1/embeddings": lambda: len(body["data"]) == 2 and isinstance(body["data"][0]["embedding"], str),
        "/v1/completions": lambda: body["choices"][0]["text"] == "A page.",
        "/v1/moderations": lambda: body["results"][0]["flagged"] is False,
        "/v1/images/generations": lambda: bool(base64.b64decode(body["data"][0]["b64_json"])),
        "/v1/images/edits": lambda: body["usage"]["input_tokens_details"]["image_tokens"] > 0,
        "/v1/videos": lambda: (body["object"], body["status"], body["seconds"]) == ("video", "completed", "8"),
    }
    assert shape[endpoint]()
    (account_line,) = box.simulation.account().lines
    assert (account_line.tier, account_line.answered) == (Tier.BATCH, 1)


@pytest.mark.parametrize(
    ("endpoint", "usd"),
    [
        ("/v1/embeddings", Decimal("0.01") * 2 / 1_000_000),
        ("/v1/completions", Decimal(1) * (4 + 2) / 1_000_000),
        ("/v1/moderations", Decimal(0)),
        ("/v1/images/generations", (Decimal("2.5") * 4 + Decimal(15) * 1056) / 1_000_000),
        ("/v1/images/edits", (Decimal("2.5") * 3 + Decimal(4) * 323 + Decimal(15) * 1056) / 1_000_000),
        ("/v1/videos", Decimal("0.05") * 8),
    ],
)
def test_batches_are_billed_at_half(endpoint: str, usd: Decimal) -> None:
    """Hand-reckoned bills at the price of batch."""
    box = Box(WorldSettings(batch=HOUR))
    batch_of(box, endpoint, [BODIES[endpoint]])
    assert box.simulation.account().billed_usd == usd


@pytest.mark.parametrize("endpoint", sorted(BODIES))
def test_a_tier_in_a_batch_body_fails_its_row(endpoint: str) -> None:
    """These endpoints know no `service_tier`: the row ends in a 400, the batch completes."""
    box = Box(WorldSettings(batch=HOUR))
    batch, lines = batch_of(box, endpoint, [BODIES[endpoint], BODIES[endpoint] | {"service_tier": "default"}])
    statuses = {line["custom_id"]: line["response"]["status_code"] for line in lines}
    assert (batch.status, statuses) == ("completed", {"row-0": 200, "row-1": 400})


def test_a_batch_takes_so_many_embedding_inputs() -> None:
    """The inputs of all rows count together; one too many fails the batch."""
    bodies = [BODIES["/v1/embeddings"] | {"input": [f"text {number}", "x", "y"]} for number in range(4)]
    fits, _ = batch_of(Box(WorldSettings(batch=HOUR, batch_inputs=12)), "/v1/embeddings", bodies)
    over, _ = batch_of(Box(WorldSettings(batch=HOUR, batch_inputs=11)), "/v1/embeddings", bodies)
    assert fits.status == "completed"
    assert (over.status, over.errors.data[0].code) == ("failed", "too_many_embedding_inputs")


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/images/edits"])
def test_edits_and_videos_are_not_live(path: str) -> None:
    """What the simulator has in batches only is not found live."""
    box = Box()

    async def ask() -> int:
        reply = await box.http().post(path, json=BODIES[path], headers={"authorization": "Bearer k"})
        return reply.status_code

    assert box.run(ask()) == 404
    assert box.simulation.account().asked == 0
