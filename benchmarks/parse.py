"""How fast a batch's results become outcomes, as a share of what msgspec needs to decode the same lines.

The bound is a bare loop: read the lines of the file, decode each into plain typed structs that hold what a result
has to say (id, status, text, usage, tier, errors), and keep a group of a thousand, as whoever stores them must.
The package does its whole work on the way to the ledger: it cuts lines out of a stream of pieces, checks every
figure and id, tells answers from refusals and failures, splits the ids, looks for repeated and missing ones, prices
each answer in its tier and on the list, and hands over groups of a thousand. Only the ledger is none: it takes a
group and drops it.

Plain structs that are kept are walked by the garbage collector. `unkept_ratio` is the share of the same loop when it
drops each line as soon as it is decoded, which nobody can use and nothing can beat.

All take turns over the same file, and the medians of the rounds are reported.
"""

import asyncio
import gc
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import orjson

from prefect_llm_tiers.core.batches import Batch, BatchCounts, BatchState
from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.ports import Clock, Ledger, Provider, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, custom_id, derived_token, request_key
from prefect_llm_tiers.core.runs import Event, Lease, Recorded
from prefect_llm_tiers.engine.harvest import HARVEST_GROUP, Harvest
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.watching import Watcher
from prefect_llm_tiers.providers.incoming import line_blocks
from prefect_llm_tiers.providers.openai_lines import read_openai_lines

__all__ = ["run"]

ROWS = 50_000
ROUNDS = 9
PIECE = 64 * 1024
AT = datetime(2026, 11, 1, tzinfo=UTC)
TOKEN = derived_token("parse benchmark", "batch", 1, 1)
MODEL = "gpt-6-luna"


# The bare loop


class _Part(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str | None = None
    phase: str | None = None
    content: list[_Part] | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Cause(msgspec.Struct):
    code: str | None = None
    reason: str | None = None


class _Body(msgspec.Struct):
    status: str | None = None
    output: list[_Item] | None = None
    usage: _Usage | None = None
    service_tier: str | None = None
    error: _Cause | None = None
    incomplete_details: _Cause | None = None


class _Reply(msgspec.Struct):
    status_code: int
    request_id: str | None = None
    body: _Body | None = None


class TypedLine(msgspec.Struct):
    """A line of a result file, as far as anybody needs it."""

    custom_id: str
    response: _Reply | None = None
    error: _Cause | None = None


def _bare(path: Path, *, kept: int) -> float:
    """Return the seconds that decoding takes, with so many lines kept at a time."""
    decode = msgspec.json.Decoder(TypedLine).decode
    lines = 0
    began = time.process_time()
    with path.open("rb") as file:
        group: list[TypedLine] = []
        for line in file:
            group.append(decode(line))
            if len(group) >= kept:
                lines += len(group)
                group = []
    elapsed = time.process_time() - began
    _check(lines + len(group))
    return elapsed


# The package


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    """Yield a file as it comes over a connection."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


class _File:
    """What an adapter is to a harvest, over a file instead of a connection."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def results(self, batch_id: str, *, model: str, endpoint: Endpoint) -> AsyncIterator[ResultLine]:
        async for block in line_blocks(_pieces(self._path)):
            for line in read_openai_lines(block, endpoint=endpoint):
                yield line


class _Sink:
    """The ledger's part of a harvest, with nothing behind it."""

    def __init__(self) -> None:
        self.rows = 0
        self.cost = 0.0

    def tokens(self, batch: Batch) -> list[str]:
        return [batch.token]

    def events(self, subject: str, subject_id: str) -> list[Event]:
        return []

    def record_results(self, batch: Batch, outcomes: Sequence[Outcome], *, at: datetime, stamp: datetime) -> Recorded:
        self.rows += len(outcomes)
        last = outcomes[-1]
        if last.cost_usd is None or last.text is None or last.usage is None:
            raise RuntimeError("An answer came without text, usage or price; the figure would mean nothing.")
        return Recorded(settled=len(outcomes))

    def settle_batch(self, batch: Batch, *, lease: Lease, at: datetime) -> tuple[Batch, int]:
        return batch, 0


class _Still:
    """A clock that stands, and a watcher that looks away."""

    def now(self) -> datetime:
        return AT

    wall = now

    def noticed(self, message: str) -> None:
        raise RuntimeError(f"The harvest found something odd; the figure would mean nothing. {message}")

    def settled(self, batch: Batch, *, kept: int, released: int) -> None:
        if kept != ROWS or released:
            raise RuntimeError(f"{kept} of {ROWS} rows were kept; the figure would mean nothing.")


def _reconciled(path: Path) -> float:
    """Return the seconds that a harvest takes."""
    return asyncio.run(_harvested(path))


async def _harvested(path: Path) -> float:
    sink, still = _Sink(), _Still()
    ports = Ports(
        ledger=cast("Ledger", sink),
        provider=cast("Provider", _File(path)),
        clock=cast("Clock", still),
        chance=random.Random(0),
        watcher=cast("Watcher", still),
        owner="benchmark",
    )
    lease = Lease(name="batch:1", owner="benchmark", epoch=1, until=AT + timedelta(hours=1))
    began = time.process_time()
    await Harvest(ports).take(_batch(), lease)
    elapsed = time.process_time() - began
    _check(sink.rows)
    return elapsed


def _batch() -> Batch:
    return Batch(
        id=1,
        version=1,
        state=BatchState.COMPLETED,
        step_run_id="benchmark",
        provider="openai",
        account="benchmark",
        model=MODEL,
        endpoint="/v1/responses",
        token=TOKEN,
        submission=1,
        rows=ROWS,
        provider_batch_id="batch_1",
        counts=BatchCounts(total=ROWS, completed=ROWS),
        created_at=AT,
        submitted_at=AT,
        ended_at=AT + timedelta(minutes=20),
    )


def _check(rows: int) -> None:
    if rows != ROWS:
        raise RuntimeError(f"{rows} of {ROWS} rows came; the figure would mean nothing.")


# The file


def _write(path: Path) -> None:
    """Write an output file as OpenAI does: every field of a response, an answer of 300 characters."""
    rng = random.Random("parse benchmark")
    words = ("pager", "latency", "rollback", "throughput", "quota", "replica", "shard", "timeout")

    def name(prefix: str) -> str:
        return f"{prefix}_{rng.getrandbits(128):032x}"

    with path.open("wb") as file:
        for number in range(ROWS):
            key = request_key(account="benchmark", endpoint="/v1/responses", body=str(number).encode())
            text = " ".join(rng.choices(words, k=60))[:300]
            body = _response(name, text, rng.randint(200, 900), rng.randint(40, 120))
            line = {
                "id": name("batch_req"),
                "custom_id": custom_id(key, TOKEN),
                "response": {"status_code": 200, "request_id": name("req"), "body": body},
                "error": None,
            }
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _response(name: Any, text: str, tokens_in: int, tokens_out: int) -> dict[str, Any]:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    return {
        "id": name("resp"),
        "object": "response",
        "created_at": int(AT.timestamp()),
        "status": "completed",
        "background": False,
        "billing": {"payer": "developer"},
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": 200,
        "max_tool_calls": None,
        "model": MODEL,
        "output": [
            {"id": name("msg"), "type": "message", "status": "completed", "content": [part], "role": "assistant"}
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": "none", "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": tokens_in,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_in + tokens_out,
        },
        "user": None,
        "metadata": {},
    }


def run() -> dict[str, float]:
    """Measure all in turns and return the medians and their ratios."""
    measured: dict[str, list[float]] = {"ours": [], "kept": [], "unkept": []}
    with tempfile.TemporaryDirectory(prefix="parse-benchmark-") as folder:
        path = Path(folder) / "output.jsonl"
        _write(path)
        ways: list[tuple[str, Callable[[], float]]] = [
            ("ours", lambda: _reconciled(path)),
            ("kept", lambda: _bare(path, kept=HARVEST_GROUP)),
            ("unkept", lambda: _bare(path, kept=1)),
        ]
        # What is there before is nobody's doing: the collector must not walk it at the cost of either.
        gc.collect()
        gc.freeze()
        try:
            for number in range(ROUNDS):
                # Who goes first changes, so that none always meets the machine as another left it.
                turn = number % len(ways)
                for name, way in ways[turn:] + ways[:turn]:
                    measured[name].append(way())
        finally:
            gc.unfreeze()
    ours, kept, unkept = (measured[name] for name in ("ours", "kept", "unkept"))
    return {
        "reconciled_lines_per_s": ROWS / statistics.median(ours),
        "msgspec_lines_per_s": ROWS / statistics.median(kept),
        "msgspec_ratio": statistics.median(theirs / own for theirs, own in zip(kept, ours, strict=True)),
        "unkept_ratio": statistics.median(theirs / own for theirs, own in zip(unkept, ours, strict=True)),
    }
