import asyncio
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from prefect_llm_tiers.errors import ConfigurationError, ProviderUnavailable
from prefect_llm_tiers.simulator.clock import ScaledClock, SimulatedClock
from prefect_llm_tiers.simulator.server import serve, serving
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import anthropic_requests, openai_lines

CHECKOUT = Path(__file__).parents[3]
HALF_HOUR = WorldSettings(batch=BatchLaw(median_s=1800, sigma=0, stuck_share=0))


def test_both_dialects_over_a_real_socket() -> None:
    """With scaled time a half-hour batch of each dialect is harvested over loopback in a moment."""
    with serving(speed=7200, settings=HALF_HOUR) as url:
        clock = ScaledClock.of_server(url)
        twin = ScaledClock.of_server(url)
        assert (clock.origin, clock.speed) == (twin.origin, 7200)

        async def live() -> tuple[int, int]:
            one = openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)
            two = anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0)
            async with one, two:
                file = await one.files.create(file=("a.jsonl", openai_lines(50)), purpose="batch")
                first: Any = await one.batches.create(
                    input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
                )
                second = await two.messages.batches.create(requests=anthropic_requests(50))
                await clock.sleep_until(second.created_at + timedelta(minutes=31))
                first = await one.batches.retrieve(first.id)
                content = await one.files.content(first.output_file_id)
                stream = await two.messages.batches.results(second.id)
                return len(content.text.splitlines()), len([line async for line in stream])

        assert clock.run(live(), name="live") == (50, 50)


def test_a_taken_port_says_so() -> None:
    """A port in use is a configuration error that names host, port and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1 port {port}: the port is taken.*Choose"):
            serve(port=port)


def test_nobody_there_is_unavailable() -> None:
    """Asking for the clock of a server that is not there says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ProviderUnavailable, match=f"No simulator answered at http://127.0.0.1:{port}"):
            ScaledClock.of_server(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_cleanly(number: signal.Signals) -> None:
    """SIGINT and SIGTERM end the process with status 0, also while a call is in flight."""
    script = "from prefect_llm_tiers.simulator.server import serve; serve(speed=0.001)"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3]
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as call:
            body = b'{"model":"gpt-6-luna","input":"x"}'
            head = "POST /v1/responses HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Length: "
            call.sendall(head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body)
            os.kill(process.pid, number)
            assert process.wait(timeout=20) == 0


def test_a_simulated_clock_does_not_reach_a_server() -> None:
    """The SDK over a real socket under simulated time fails with the reason, not with a timeout."""
    clock = SimulatedClock(datetime.now(UTC))
    with serving(speed=600) as url:

        async def ask() -> None:
            client = openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)
            try:
                await client.models.list()
            except openai.APIConnectionError:
                await asyncio.sleep(1)

        with pytest.raises(ConfigurationError, match="opened a real socket"):
            clock.run(ask(), name="ask")
