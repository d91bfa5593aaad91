"""Result files of the simulated provider, of every dialect and end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from prefect_llm_tiers.core.ports import BatchLine
from prefect_llm_tiers.core.requests import Endpoint, canonical_json, custom_id, derived_token, request_key
from prefect_llm_tiers.providers.bodies import build_body
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.openai import OpenAIProvider
from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider
from prefect_llm_tiers.simulator.clock import SimulatedClock
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation
from tests.fuzz.mutating import Line

__all__ = ["START", "TOKEN", "RealFile", "real_files"]

START = datetime(2026, 11, 20, 21, 0, tzinfo=UTC)
TOKEN = derived_token("fuzz", "batch", 1, 1)
ROWS = 5


class RealFile(msgspec.Struct, frozen=True):
    """What a provider said of a batch of a few rows, in the order in which it is read.

    Attributes:
        dialect: Whose protocol it is in.
        endpoint: What the rows asked.
        model: Whom they asked.
        lines: Output and error file.
    """

    dialect: Dialect
    endpoint: Endpoint
    model: str
    lines: tuple[Line, ...]


SIDES = (
    (Dialect.OPENAI, Endpoint.RESPONSES, "gpt-6-luna"),
    (Dialect.OPENAI, Endpoint.CHAT_COMPLETIONS, "gpt-5.6-sol"),
    (Dialect.ANTHROPIC, Endpoint.MESSAGES, "claude-haiku-5-5"),
    (Dialect.OPENAI, Endpoint.EMBEDDINGS, "text-embedding-3-small"),
)
STEADY = BatchLaw(median_s=1800.0, sigma=0.0, stuck_share=0.0)
WORLDS = (
    WorldSettings(batch=STEADY),
    WorldSettings(batch=STEADY, refusal_rate=0.4, batch_row_error_rate=0.3),
    WorldSettings(batch=BatchLaw(median_s=30 * 3600.0, sigma=0.0, stuck_share=0.0)),
)


def real_files() -> list[RealFile]:
    """Return a file for each dialect, and in each world: one where all goes well, one with errors, one that expires."""
    return [_file(*side, world) for side in SIDES for world in WORLDS]


def _file(dialect: Dialect, endpoint: Endpoint, model: str, settings: WorldSettings) -> RealFile:
    clock = SimulatedClock(START)
    simulation = Simulation(settings, clock)

    async def main() -> bytes:
        provider = open_provider(ProviderSpec(dialect=dialect, api_key="simulated"), app=simulation.app)
        try:
            return await _harvested(provider, clock, dialect, endpoint, model)
        finally:
            await provider.aclose()

    text = clock.run(main(), name="fuzz")
    lines = tuple(Line(line, msgspec.json.decode(line)["custom_id"][:43]) for line in text.split(b"\n") if line)
    assert len(lines) == ROWS
    return RealFile(dialect, endpoint, model, lines)


async def _harvested(provider: Any, clock: SimulatedClock, dialect: Dialect, endpoint: Endpoint, model: str) -> bytes:
    lines = []
    for number in range(ROWS):
        most = None if endpoint is Endpoint.EMBEDDINGS else 200
        prompt = f"Summarize this document.\n\nThe document {number} is about the document {number}."
        body = canonical_json(build_body(endpoint, prompt, model=model, max_output_tokens=most))
        key = request_key(account="org", endpoint=endpoint, body=body)
        lines.append(BatchLine(custom_id=custom_id(key, TOKEN), body=body))

    async def outgoing() -> Any:
        for line in lines:
            yield line

    where: dict[str, Any] = {"model": model, "endpoint": endpoint, "token": TOKEN}
    file_id = await provider.upload(outgoing(), expires_after=timedelta(days=7), **where)
    batch = await provider.create_batch(input_file_id=file_id, lines=outgoing(), timeout_s=120.0, **where)
    while not (await provider.retrieve_batch(batch.id)).results_ready:
        await clock.sleep_until(clock.now() + timedelta(minutes=10))
    if not isinstance(provider, OpenAIProvider):
        return await _downloaded(provider, f"/v1/messages/batches/{batch.id}/results")
    seen = await provider._retrieve(batch.id)
    files = [file for file in (seen.output_file_id, seen.error_file_id) if file]
    return b"".join([await _downloaded(provider, f"/files/{file}/content") for file in files])


async def _downloaded(provider: Any, path: str) -> bytes:
    return b"".join([piece async for piece in provider._wire.download(path)])
