"""The official SDKs, unmodified, wired to a simulated provider in this process."""

import io
import json
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import anthropic
import httpx2
import openai
from openai.types import Batch

from prefect_llm_tiers.simulator.answers import Answering
from prefect_llm_tiers.simulator.clock import SimulatedClock
from prefect_llm_tiers.simulator.settings import WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation

T = TypeVar("T")

START = datetime(2026, 11, 2, 5, 0, tzinfo=UTC)
WALL = datetime(2030, 1, 1, tzinfo=UTC)


class Box:
    """A simulation in simulated time, with a client of each dialect."""

    def __init__(self, settings: WorldSettings | None = None, answer: Answering | None = None) -> None:
        self.clock = SimulatedClock(START, lambda: WALL)
        self.simulation = Simulation(settings or WorldSettings(), self.clock, answer=answer)

    def http(self) -> httpx2.AsyncClient:
        """Return a client that reaches the app without a socket."""
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.simulation.app), base_url="http://simulator")

    def openai(self, key: str = "k") -> openai.AsyncOpenAI:
        """Return OpenAI's client."""
        return openai.AsyncOpenAI(api_key=key, base_url="http://simulator/v1", http_client=self.http(), max_retries=0)

    def anthropic(self, key: str = "k") -> anthropic.AsyncAnthropic:
        """Return Anthropic's client."""
        return anthropic.AsyncAnthropic(
            api_key=key, base_url="http://simulator", http_client=self.http(), max_retries=0
        )

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run in simulated time."""
        return self.clock.run(main, name="test")

    async def wait(self, **delta: float) -> None:
        """Let simulated time pass."""
        await self.clock.sleep_until(self.clock.now() + timedelta(**delta))

    async def openai_batch(self, lines: bytes, endpoint: str = "/v1/responses") -> Batch:
        """Upload lines and create a batch of them."""
        client = self.openai()
        file = await client.files.create(file=("rows.jsonl", io.BytesIO(lines)), purpose="batch")
        created: Batch = await client.batches.create(
            input_file_id=file.id,
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window="24h",
            metadata={"token": "t-1"},
        )
        return created


def openai_lines(count: int, *, model: str = "gpt-6-luna", **extra: Any) -> bytes:
    """Return the input file of a batch of that many different rows."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"row-{number}",
                "method": "POST",
                "url": "/v1/responses",
                "body": {
                    "model": model,
                    "input": f"Summarize.\nPage {number} tells how it is done.",
                    **extra,
                },
            }
        ).encode()
        + b"\n"
        for number in range(count)
    )


def anthropic_requests(count: int, **extra: Any) -> list[Any]:
    """Return the requests of a message batch of that many different rows."""
    return [
        {
            "custom_id": f"row-{number}",
            "params": {
                "model": "claude-haiku-5-5",
                "max_tokens": 200,
                "messages": [{"role": "user", "content": f"Summarize.\nPage {number} tells how it is done."}],
                **extra,
            },
        }
        for number in range(count)
    ]
