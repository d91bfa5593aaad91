"""How fast a settled row reaches the disk, as a share of what SQLite itself can do with the same bytes.

The bound is the standard library's `sqlite3` alone: one prepared INSERT for each row into one table with the
key as its primary key, `executemany` over tuples made beforehand, the ledger's own pragmas (WAL,
synchronous FULL), the same rows in the same groups. The ledger does its whole work on top: finds the
attempt of each key, refuses second answers, counts what was superseded, keeps foreign keys and indexes.

Both take turns on fresh files, in lines shuffled as a provider may return them, and the median of the
rounds is reported.
"""

import random
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec

from prefect_llm_tiers.core.batches import Batch
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.requests import request_key
from prefect_llm_tiers.core.runs import Entry
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.ledger import SqlLedger, open_ledger
from prefect_llm_tiers.ledger.engines import SQLITE_PRAGMAS

__all__ = ["run"]

ROWS = 50_000
GROUP = 2_000
ROUNDS = 5
AT = datetime(2026, 11, 1, tzinfo=UTC)

_TABLE = """CREATE TABLE answers (
    key TEXT PRIMARY KEY, answer TEXT, input_tokens INT, cached_input_tokens INT, cache_write_tokens INT,
    output_tokens INT, reasoning_tokens INT, cost_usd TEXT
)"""
_INSERT = "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def _outcomes() -> list[Outcome]:
    rng = random.Random("ledger benchmark")
    words = ("pager", "latency", "rollback", "throughput", "quota", "replica", "shard", "timeout")
    lines = []
    for number in range(ROWS):
        tokens_in, tokens_out = rng.randint(200, 900), rng.randint(40, 120)
        cost = Decimal(tokens_in) * Decimal("0.00000005") + Decimal(tokens_out) * Decimal("0.00000025")
        answer = f"{number:06d} " + " ".join(rng.choices(words, k=60))
        lines.append(
            Outcome(
                key=request_key(account="org", endpoint="/v1/responses", body=str(number).encode()),
                kind=OutcomeKind.ANSWER,
                text=answer[:300],
                usage=Usage(tokens_in, 0, 0, tokens_out, 0),
                tier_served=Tier.BATCH,
                billing=Billing.BILLED,
                cost_usd=cost,
                list_usd=cost * 2,
                price_source="genai-prices",
                provider_request_id=f"batch_req_{rng.getrandbits(96):024x}",
            )
        )
    return lines


def _ledger_rate(folder: Path, keys: list[str], outcomes: list[Outcome]) -> float:
    """Return rows settled per second through `record_results`; planning the batch is not timed."""
    with closing(open_ledger(folder / "ledger.db")) as ledger:
        batch = _planned(ledger, keys)
        began = time.perf_counter()
        settled = sum(
            ledger.record_results(batch, outcomes[start : start + GROUP], at=AT, stamp=AT).settled
            for start in range(0, ROWS, GROUP)
        )
        elapsed = time.perf_counter() - began
    if settled != ROWS:
        raise RuntimeError(f"{settled} of {ROWS} rows were settled; the figure would mean nothing.")
    return ROWS / elapsed


def _planned(ledger: SqlLedger, keys: list[str]) -> Batch:
    entry = Entry(
        id="benchmark",
        flow_run_id="benchmark",
        step="answer",
        key_digest="",
        requests=len(keys),
        rows=len(keys),
        provider="openai",
        account="org",
        deadline=None,
        entered_at=AT,
    )
    run = ledger.enter(entry, stamp=AT)
    lease = ledger.acquire("step:benchmark", owner="benchmark", now=AT, until=AT + timedelta(hours=1))
    if lease is None:
        raise RuntimeError("A fresh ledger has a free lease.")
    return ledger.plan_batch(
        keys,
        run=run,
        provider="openai",
        account="org",
        model="gpt-6-luna",
        endpoint="/v1/responses",
        lease=lease,
        at=AT,
    )


def _bare_rate(folder: Path, outcomes: list[Outcome]) -> float:
    """Return rows inserted per second by `sqlite3` alone; the tuples are made before the clock starts."""
    rows = [
        (outcome.key, outcome.text, *msgspec.structs.astuple(outcome.usage or Usage()), str(outcome.cost_usd))
        for outcome in outcomes
    ]
    with closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as connection:
        for pragma in (*SQLITE_PRAGMAS, "PRAGMA journal_mode = WAL"):
            connection.execute(pragma)
        connection.execute(_TABLE)
        began = time.perf_counter()
        for start in range(0, ROWS, GROUP):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, rows[start : start + GROUP])
            connection.execute("COMMIT")
        return ROWS / (time.perf_counter() - began)


def run() -> dict[str, float]:
    """Measure both in turns and return the medians and their ratio."""
    outcomes = _outcomes()
    keys = [outcome.key for outcome in outcomes]
    ledger_rates, bare_rates, ratios = [], [], []
    for number in range(ROUNDS):
        random.Random(number).shuffle(outcomes)
        with tempfile.TemporaryDirectory(prefix="ledger-benchmark-") as name:
            folder = Path(name)
            # Who goes first changes, so that neither always meets the disk as the other left it.
            if number % 2:
                bare = _bare_rate(folder, outcomes)
                settled = _ledger_rate(folder, keys, outcomes)
            else:
                settled = _ledger_rate(folder, keys, outcomes)
                bare = _bare_rate(folder, outcomes)
        ledger_rates.append(settled)
        bare_rates.append(bare)
        ratios.append(settled / bare)
    return {
        "ledger_rows_per_s": statistics.median(ledger_rates),
        "sqlite3_rows_per_s": statistics.median(bare_rates),
        "sqlite_ratio": statistics.median(ratios),
    }
