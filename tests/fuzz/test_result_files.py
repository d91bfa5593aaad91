"""Result files of any content: nothing is fatal to other rows, and every row has one outcome."""

import asyncio
import random
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from prefect_llm_tiers.core.batches import Batch, BatchCounts, BatchState
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import ResultLine
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.engine.reading import Reading
from prefect_llm_tiers.providers import incoming
from prefect_llm_tiers.providers.anthropic_lines import read_anthropic_lines
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.incoming import Block, line_blocks
from prefect_llm_tiers.providers.openai_lines import read_openai_lines
from tests.fuzz.mutating import mutated
from tests.fuzz.real_files import START, TOKEN, RealFile, real_files

FILES = 10_000


@pytest.fixture(scope="module")
def files() -> list[RealFile]:
    """Return the files that a simulated provider wrote."""
    return real_files()


async def pieces(text: bytes, size: int) -> AsyncIterator[bytes]:
    """Yield a text in pieces."""
    for start in range(0, len(text), size):
        yield text[start : start + size]


def read(file: RealFile, block: Block) -> list[ResultLine]:
    """Read lines as the adapter of their dialect does."""
    if file.dialect is Dialect.ANTHROPIC:
        return read_anthropic_lines(block)
    return read_openai_lines(block, endpoint=file.endpoint)


def batch_of(file: RealFile) -> Batch:
    """Return the batch that a file is the result of."""
    return Batch(
        id=1,
        version=1,
        state=BatchState.COMPLETED,
        step_run_id="fuzz",
        provider=file.dialect.value,
        account="org",
        model=file.model,
        endpoint=file.endpoint.value,
        token=TOKEN,
        submission=1,
        rows=len(file.lines),
        counts=BatchCounts(),
        created_at=START,
    )


async def outcomes(file: RealFile, text: bytes, size: int) -> tuple[dict[str, Outcome], Reading]:
    """Return what comes of a file by key; no key may have two."""
    reading = Reading(batch_of(file), [TOKEN])
    found: list[Outcome] = []
    async for block in line_blocks(pieces(text, size)):
        found += [outcome for line in read(file, block) if (outcome := reading.take(line)) is not None]
    found += reading.rest()
    by_key = {outcome.key: outcome for outcome in found}
    assert len(by_key) == len(found)
    return by_key, reading


def check(outcome: Outcome) -> None:
    """Hold an outcome to what may be believed of any."""
    assert (outcome.reason is None) == (outcome.kind is OutcomeKind.ANSWER)
    assert outcome.text is not None or outcome.kind is not OutcomeKind.ANSWER
    (outcome.text or "").encode()
    (outcome.reason or "").encode()
    if outcome.usage is None or outcome.billing is not Billing.BILLED:
        assert outcome.cost_usd is None
    else:
        assert min(outcome.usage.input_tokens, outcome.usage.output_tokens) >= 0
        assert outcome.cost_usd is None or outcome.cost_usd >= Decimal(0)


def test_every_row_of_a_broken_file_has_one_outcome(files: list[RealFile]) -> None:
    """Of 10,000 files with anything wrong about them, none is fatal, and a row whose line is whole has its answer."""

    async def main() -> Counter[str]:
        seen: Counter[str] = Counter()
        before = [(await outcomes(file, b"\n".join(line.text for line in file.lines), 700))[0] for file in files]
        for number in range(FILES):
            rng = random.Random(f"result file {number}")
            place = rng.randrange(len(files))
            file, expected = files[place], before[place]
            broken = mutated(list(file.lines), rng)
            text = broken.encoded()
            found, reading = await outcomes(file, text, rng.choice((1 << 16, 1000, 97)))
            for key, outcome in expected.items():
                if key not in broken.changed:
                    assert found.get(key) == outcome, (number, key)
            for outcome in found.values():
                check(outcome)
            seen["files"] += 1
            seen["rows"] += len(expected)
            seen["changed"] += len(broken.changed)
            seen["missing"] += len(expected.keys() - found.keys())
            seen["broken"] += reading.broken
            seen["repeated"] += reading.repeated
            seen["contradicting"] += reading.contradicting
            seen["unknown"] += reading.unknown
            seen["unreadable"] += reading.unreadable
        return seen

    seen = asyncio.run(main())
    assert seen["files"] == FILES
    assert seen["rows"] == FILES * 5
    # Each kind of trouble was there to be met.
    assert min(seen.values()) > 100, seen


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_line_without_end_fills_no_memory(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a line of 100 MB a bounded part is held; it keeps its id, and the line behind it is read."""
    monkeypatch.setattr(incoming, "MAX_LINE_BYTES", 1 << 20)
    name = b"k" * 43 + b"-" + TOKEN.encode()
    head = b'{"custom_id":"' + name + b'","response":{"body":"'

    async def sent() -> AsyncIterator[bytes]:
        yield head
        for _ in range(400):
            yield b"x" * (256 * 1024)
        yield b'"}}\n{"custom_id":"' + name + b'","response":null,"result":{"type":"expired"}}'

    async def main() -> list[ResultLine]:
        blocks = line_blocks(sent())
        if dialect is Dialect.ANTHROPIC:
            return [line async for block in blocks for line in read_anthropic_lines(block)]
        return [line async for block in blocks for line in read_openai_lines(block, endpoint=Endpoint.RESPONSES)]

    tracemalloc.start()
    found = asyncio.run(main())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert [line.custom_id for line in found] == [name.decode()] * 2
    broken = found[0].outcome
    assert broken is not None
    assert (broken.kind, broken.reason, broken.billing) == (OutcomeKind.RETRY, "broken_line", Billing.UNKNOWN)
