"""How fast rows become the lines of batches, as a share of what orjson and SHA-256 alone can do.

The bound is one loop that does for each row what has to be done: it calls the prompt function, puts the prompt into
the body's dict, encodes that with `orjson.dumps` and sorted keys, hashes account, body, endpoint and sample with
`hashlib.sha256`, puts the hash into base64 and that into a custom_id, and writes the JSON line to a file with
`orjson.dumps`, the encoded body in it as a fragment that is not encoded again. It keeps nothing else: it could
not tell which rows ask the same thing, ask one of them live, or send a batch again.

The package does what a step does, by the functions that a step calls. `build_requests` calls the prompt function,
encodes the bodies with `BodyEncoder`, makes the keys with `request_keys` and hands both to the `Spool`, on disk.
The spool is sealed, which finds the rows that ask the same thing. Then for each batch of 50,000 the keys are
looked up in the spool, the bodies are read back, and `spooled` writes the lines of `OutgoingLines` in the form of
`line_form` to the file that an upload is sent from, which is dropped when it is full. The keys of a batch, which a
step has from its ledger, come from the spool here. So the package writes every body twice, and the loop once.

Both read one frame and write the same bytes, which is checked. They take turns over all rows, and the median of the
rounds' ratios is reported. Prompts are of about 650 bytes, most with a character beyond ASCII.

Memory is the package's alone: the peak of a fresh process over 1,000,000 rows as a multiple of that of one over
50,000, imports included. The frame holds four bytes a row, so that what grows is what the package keeps.
"""

import asyncio
import base64
import hashlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.engine.outgoing import OutgoingLines
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.frames.reading import build_requests
from prefect_llm_tiers.frames.signature import reading_of
from prefect_llm_tiers.providers.bodies import BodyEncoder
from prefect_llm_tiers.providers.lines import spooled
from prefect_llm_tiers.providers.openai_batches import line_form

__all__ = ["peak_kb", "run"]

ROWS = 1_000_000
FEW_ROWS = 50_000
CHECKED_ROWS = 60_000
BATCH = 50_000
GROUP = 2_000
ROUNDS = 5

MODEL = "gpt-6-luna"
ENDPOINT = Endpoint.RESPONSES
URL = ENDPOINT.value
ACCOUNT = "org-benchmark/proj-benchmark"
TOKEN = "benchmark-benchmark1"  # noqa: S105 (what a batch's custom_ids end in; opens nothing)
MOST_TOKENS = 200

_CHECKOUT = Path(__file__).parents[1]
_WORDS = (
    "pager",
    "latency",
    "rollback",
    "throughput",
    "quota",
    "replica",
    'the "shard"',
    "a naïve timeout",
    "of",
    "to",
)

Look = Callable[[IO[bytes]], None]
"""Is shown each file of lines before it is dropped."""


def _pages() -> list[str]:
    rng = random.Random("build benchmark")
    return ["\n".join(" ".join(rng.choices(_WORDS, k=15)) for _ in range(5)) for _ in range(64)]


PAGES = _pages()


def page(number: int) -> str:
    """Build the prompt of one row."""
    return f"Summarize for an on-call engineer.\n\n# Page {number}\n{PAGES[number % len(PAGES)]}"


def _frame(rows: int) -> pl.DataFrame:
    return pl.DataFrame({"number": pl.int_range(rows, dtype=pl.Int32, eager=True)})


def _bare(frame: pl.DataFrame, look: Look | None = None) -> None:
    """Write the lines of all rows with orjson and hashlib alone."""
    dumps, sha256, encode = orjson.dumps, hashlib.sha256, base64.urlsafe_b64encode
    head = b'{"account":' + dumps(ACCOUNT) + b',"body":'
    tail = b',"endpoint":' + dumps(URL) + b',"sample":0}'
    with tempfile.TemporaryFile(buffering=1 << 18) as file:
        for part in frame.iter_slices(GROUP):
            for number in part.get_column("number").to_list():
                body = {"model": MODEL, "input": page(number), "max_output_tokens": MOST_TOKENS}
                encoded = dumps(body, option=orjson.OPT_SORT_KEYS)
                key = encode(sha256(head + encoded + tail).digest())[:43].decode()
                line = {
                    "custom_id": f"{key}-{TOKEN}",
                    "method": "POST",
                    "url": URL,
                    "body": orjson.Fragment(encoded),
                }
                file.write(dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        if look is not None:
            look(file)


def _ours(frame: pl.DataFrame, look: Look | None = None) -> None:
    """Write the lines of all rows as a step does."""
    with Spool() as spool:
        build_requests(
            frame,
            reading_of(page, columns={}, constants={}, step="page"),
            prompt=page,
            encoder=BodyEncoder(ENDPOINT, model=MODEL, max_output_tokens=MOST_TOKENS),
            account=ACCOUNT,
            endpoint=ENDPOINT,
            samples=1,
            spool=spool,
        )
        spool.seal()
        asyncio.run(_upload(spool, look))


async def _upload(spool: Spool, look: Look | None) -> None:
    wanted = spool.distinct
    for start in range(0, len(wanted), BATCH):
        lines = OutgoingLines(spool, partial(_groups, spool, wanted[start : start + BATCH]), token=TOKEN)
        with await spooled(lines, line_form(ENDPOINT)) as file:
            if look is not None:
                look(file)


def _groups(spool: Spool, positions: npt.NDArray[np.int64]) -> Iterator[list[str]]:
    """Yield a batch's keys as the ledger does, some at a time."""
    for start in range(0, len(positions), GROUP):
        yield spool.keys(positions[start : start + GROUP])


def _digest(write: Callable[[pl.DataFrame, Look], None], frame: pl.DataFrame) -> str:
    digest = hashlib.sha256()

    def look(file: IO[bytes]) -> None:
        file.seek(0)
        while piece := file.read(1 << 20):
            digest.update(piece)

    write(frame, look)
    return digest.hexdigest()


def _rate(write: Callable[[pl.DataFrame], None], frame: pl.DataFrame) -> float:
    began = time.perf_counter()
    write(frame)
    return frame.height / (time.perf_counter() - began)


def peak_kb(rows: int) -> int:
    """Build some rows and return the most memory that this process ever held, in KiB."""
    _ours(_frame(rows))
    status = Path("/proc/self/status")
    if status.exists():
        # A child's `ru_maxrss` begins with its parent's; this is the process's own.
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _peak_of_a_process(rows: int) -> int:
    script = f"from benchmarks.build import peak_kb; print(peak_kb({rows}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=_CHECKOUT, check=True, capture_output=True, text=True)
    return int(done.stdout)


def run() -> dict[str, float]:
    """Measure both in turns and return the medians, their ratio and the ratio of the peaks."""
    few, many = _peak_of_a_process(FEW_ROWS), _peak_of_a_process(ROWS)
    checked = _frame(CHECKED_ROWS)
    if _digest(_ours, checked) != _digest(_bare, checked):
        raise RuntimeError("The two wrote different lines; the figure would mean nothing.")
    frame = _frame(ROWS)
    ours, bare, ratios = [], [], []
    for number in range(ROUNDS):
        # Who goes first changes, so that neither always meets the machine as the other left it.
        if number % 2:
            theirs, own = _rate(_bare, frame), _rate(_ours, frame)
        else:
            own, theirs = _rate(_ours, frame), _rate(_bare, frame)
        ours.append(own)
        bare.append(theirs)
        ratios.append(own / theirs)
    return {
        "rows_per_s": statistics.median(ours),
        "orjson_rows_per_s": statistics.median(bare),
        "orjson_ratio": statistics.median(ratios),
        "peak_mb": many / 1024,
        "peak_mb_few_rows": few / 1024,
        "memory_ratio": many / few,
    }
