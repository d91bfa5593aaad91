"""Broken result files all the way into a ledger: every row that was sent ends with one outcome, and money is true."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from prefect_llm_tiers.core.batches import Batch, BatchCounts, BatchState, ProviderBatch, ProviderBatchStatus
from prefect_llm_tiers.core.outcomes import Billing, OutcomeKind
from prefect_llm_tiers.core.ports import Clock, Ledger, Provider, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, request_key
from prefect_llm_tiers.core.runs import Entry, Lease, RequestState, StepRun
from prefect_llm_tiers.engine.harvest import INCOMPLETE_FOR, Harvest
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.reading import Reading
from prefect_llm_tiers.engine.watching import Watcher
from prefect_llm_tiers.ledger import open_ledger
from prefect_llm_tiers.providers.anthropic_lines import read_anthropic_lines
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.incoming import line_blocks
from prefect_llm_tiers.providers.openai_lines import read_openai_lines
from tests.fuzz.mutating import Line, mutated
from tests.fuzz.real_files import START, TOKEN, RealFile, real_files

FILES = 300
LONG = timedelta(days=30)


@pytest.fixture(scope="module")
def files() -> list[RealFile]:
    """Return the files that a simulated provider wrote."""
    return real_files()


class OneFile:
    """What an adapter is to a harvest, over bytes that are here."""

    def __init__(self, file: RealFile, text: bytes) -> None:
        self.file = file
        self.text = text

    async def results(self, batch_id: str, *, model: str, endpoint: Endpoint) -> AsyncIterator[ResultLine]:
        async for block in line_blocks(self._pieces()):
            found = (
                read_anthropic_lines(block)
                if self.file.dialect is Dialect.ANTHROPIC
                else read_openai_lines(block, endpoint=endpoint)
            )
            for line in found:
                yield line

    async def _pieces(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.text), 1000):
            yield self.text[start : start + 1000]


class Hand:
    """A clock that is set by hand, and a watcher that looks away."""

    def __init__(self) -> None:
        self.at = START
        self.looks = itertools.count()

    def now(self) -> datetime:
        return self.at

    def wall(self) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=next(self.looks))

    def noticed(self, message: str) -> None:
        pass

    def settled(self, batch: Batch, *, kept: int, released: int) -> None:
        assert 0 <= kept <= batch.rows


def ended(ledger: Ledger, run: StepRun, lease: Lease, keys: list[str], file: RealFile, number: int) -> Batch:
    """Plan a batch over some keys and take it through its life to its end."""
    batch = ledger.plan_batch(
        keys,
        run=run,
        provider=file.dialect.value,
        account="org",
        model=file.model,
        endpoint=file.endpoint.value,
        lease=lease,
        at=START,
    )
    seen = ProviderBatch(
        id=f"batch_{number}",
        status=ProviderBatchStatus.COMPLETED,
        counts=BatchCounts(total=len(keys)),
        created_at=START,
        ended_at=START,
        results_ready=True,
    )
    own = ledger.acquire(f"batch:{batch.id}", owner="fuzz", now=START, until=START + LONG)
    assert own is not None
    for state in (BatchState.SUBMITTING, BatchState.IN_PROGRESS, BatchState.COMPLETED):
        known = None if state is BatchState.SUBMITTING else seen
        batch = ledger.advance_batch(batch, state, lease=own, at=START, provider_batch=known)
    return batch


def renamed(file: RealFile, number: int, token: str) -> list[Line]:
    """Return a file's lines with keys and a token of their own."""
    return [
        Line(
            line.text.replace(TOKEN.encode(), token.encode()).replace((line.key or "").encode(), key.encode()),
            key,
        )
        for line, key in zip(file.lines, keys_of(file, number), strict=True)
    ]


def keys_of(file: RealFile, number: int) -> list[str]:
    """Return keys that no other file has."""
    return [request_key(account="org", endpoint=str(number), body=str(n).encode()) for n in range(len(file.lines))]


def test_every_row_of_a_broken_file_ends_in_the_ledger(files: list[RealFile], tmp_path: Path) -> None:
    """After a harvest each row is answered, refused, failed or open; whole lines gave theirs, at their price."""
    with closing(open_ledger(tmp_path / "ledger.db")) as ledger:
        hand = Hand()
        entry = Entry(
            id="fuzz",
            flow_run_id="fuzz",
            step="fuzz",
            key_digest="",
            requests=FILES * 5,
            rows=FILES * 5,
            provider="openai",
            account="org",
            deadline=None,
            entered_at=START,
        )
        run = ledger.enter(entry, stamp=START)
        lease = ledger.acquire("step:fuzz", owner="fuzz", now=START, until=START + LONG)
        assert lease is not None
        expected_cost, certain = Decimal(0), 0
        for number in range(FILES):
            rng = random.Random(f"harvest {number}")
            file = rng.choice(files)
            keys = keys_of(file, number)
            batch = ended(ledger, run, lease, keys, file, number)
            lines = renamed(file, number, batch.token)
            broken = mutated(lines, rng)
            text = broken.encoded()
            batch = asyncio.run(harvested(ledger, hand, batch, file, text))
            assert batch.state is BatchState.SETTLED

            before = asyncio.run(whole(batch, file, lines))
            standing = ledger.stand(keys, step_run_id=run.id, not_before=None, now=None)
            for key, stands in zip(keys, standing, strict=True):
                assert stands.state is not RequestState.OUT
                if key in broken.changed:
                    continue
                outcome = before[key]
                certain += 1
                assert stands.state is STATES[outcome.kind], (number, key)
                if outcome.billing is Billing.BILLED:
                    expected_cost += outcome.cost_usd or Decimal(0)
                answer = ledger.answers([key], step_run_id=run.id)[0]
                assert (answer.text if answer else None) == outcome.text
        spent = ledger.spending(run.id)
        assert sum(line.attempts for line in spent) == FILES * 5
        assert not [line for line in spent if line.outcome == "open"]
        assert certain > FILES * 2
        assert sum((line.cost_usd for line in spent), Decimal(0)) >= expected_cost > 0


STATES = {
    OutcomeKind.ANSWER: RequestState.ANSWERED,
    OutcomeKind.REFUSAL: RequestState.REFUSED,
    OutcomeKind.FAILURE: RequestState.FAILED,
    OutcomeKind.RETRY: RequestState.OPEN,
}


async def harvested(ledger: Ledger, hand: Hand, batch: Batch, file: RealFile, text: bytes) -> Batch:
    """Harvest a batch after the time in which its files might still be completed."""
    ports = Ports(
        ledger=ledger,
        provider=cast("Provider", OneFile(file, text)),
        clock=cast("Clock", hand),
        chance=random.Random(0),
        watcher=cast("Watcher", hand),
        owner="fuzz",
    )
    own = ledger.lease(f"batch:{batch.id}")
    assert own is not None
    hand.at = START + 2 * INCOMPLETE_FOR
    return await Harvest(ports).take(batch, own)


async def whole(batch: Batch, file: RealFile, lines: list[Line]) -> dict[str, Any]:
    """Return what the file would have said."""
    reading = Reading(batch, [batch.token])
    text = b"\n".join(line.text for line in lines)
    found = [reading.take(line) async for line in OneFile(file, text).results("", model="", endpoint=file.endpoint)]
    return {outcome.key: outcome for outcome in [*found, *reading.rest()] if outcome is not None}
