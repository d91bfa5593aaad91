"""What became of a submission that nobody confirmed.

Three verdicts. *Found*: the provider has a batch that bears one of our tokens, or several. *Absent*: a complete
list had none, twice, the second time so late that no create can still be under way. *Ambiguous*: everything else;
nothing is sent in its place then.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

import msgspec

from prefect_llm_tiers.core.batches import Batch, BatchState, ProviderBatch, ProviderBatchStatus
from prefect_llm_tiers.core.ports import BatchLimits, CallFailed, Ledger
from prefect_llm_tiers.core.requests import Endpoint, split_custom_id
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.engine.submission import CREATE_TIMEOUT, create_timeout

__all__ = [
    "LOOK_AGAIN",
    "LOOK_BACK",
    "PROOF_AFTER",
    "Finding",
    "Match",
    "Search",
    "Verdict",
    "limits_of",
    "look_for",
    "proof_after",
    "proven_absent_at",
    "search",
]

LOOK_BACK = timedelta(hours=2)
"""How far before the intent the list is read: the provider's clock may be another than ours, and ours may have
been set back since. A list cut too short proves a batch absent that was taken, and pays for it twice."""

VISIBLE_AFTER = timedelta(minutes=10)
"""How late a batch may become visible in the list after the provider took it."""

PROOF_AFTER = CREATE_TIMEOUT + VISIBLE_AFTER
"""From the intent on, where the create carries no requests; see `proof_after`."""

LONGEST_LIST = timedelta(seconds=60)
"""A list that takes longer proves nothing, and so does one with more entries than `MOST_LISTED`."""

MOST_LISTED = 20_000

LOOK_AGAIN = timedelta(minutes=2)

_KNOWN_SINCE = timedelta(days=2)
"""How long before the list begins a batch that is in it may have been planned."""

Item = TypeVar("Item")


class Match(msgspec.Struct, frozen=True):
    """A batch at the provider that bears a token of ours."""

    batch: ProviderBatch
    token: str


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider's list holds of a batch, apart from what the ledger knows.

    Attributes:
        matches: Batches that bear one of its tokens, the best first: what is of most use to the rows.
        complete: Whether the whole list was read, and nothing in it is left that may turn out to be ours.
        stalled: Whether it was cut by time.
    """

    matches: tuple[Match, ...]
    complete: bool
    stalled: bool = False


class Verdict(StrEnum):
    """What a search found."""

    FOUND = "found"
    ABSENT = "absent"
    AMBIGUOUS = "ambiguous"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict, with what was found and the next look if it is open.

    Attributes:
        complete: Whether the whole list was read and the batch was not in it.
    """

    verdict: Verdict
    matches: tuple[Match, ...] = ()
    complete: bool = False
    look_again_at: datetime | None = None


async def look_for(batch: Batch, ports: Ports) -> Finding:
    """Judge what became of a batch that was sent and not confirmed."""
    found = await search(batch, ports)
    if found.matches:
        return Finding(verdict=Verdict.FOUND, matches=found.matches)
    now = ports.clock.now()
    if not found.complete:
        return Finding(verdict=Verdict.AMBIGUOUS, look_again_at=now + LOOK_AGAIN)
    proven_at = proven_absent_at(batch, ports)
    # `polls` counts complete looks before this one: absence is believed only when it was seen twice.
    if batch.polls >= 1 and now >= proven_at:
        return Finding(verdict=Verdict.ABSENT)
    return Finding(verdict=Verdict.AMBIGUOUS, complete=True, look_again_at=max(now + LOOK_AGAIN, proven_at))


def proof_after(batch: Batch, ports: Ports) -> timedelta:
    """Return how long after its intent a batch that no list shows can no longer come in."""
    limits = limits_of(batch, ports)
    carried = limits.bytes if limits is not None and batch.input_file_id is None else 0
    return create_timeout(carried) + VISIBLE_AFTER


def proven_absent_at(batch: Batch, ports: Ports) -> datetime:
    """Return the instant from which a complete list that does not show a batch, or another one of it, proves it."""
    return (batch.submitting_at or batch.created_at) + proof_after(batch, ports)


def limits_of(batch: Batch, ports: Ports) -> BatchLimits | None:
    """Return what the provider allows a batch of this model, None where it offers none any more."""
    return ports.provider.capabilities(batch.model, Endpoint(batch.endpoint)).batch


async def search(batch: Batch, ports: Ports) -> Search:
    """Read the provider's list for a batch, back to before its first submission.

    With metadata (OpenAI) any of the batch's tokens decides, or the file that its requests were uploaded in.
    Without (Anthropic) the candidates are the batches created at about that time with as many requests, and only
    the custom_ids of an ended one prove that it is ours.
    """
    reading = _Reading(batch, ports)
    complete = stalled = False
    try:
        async with asyncio.timeout(LONGEST_LIST.total_seconds()):
            complete = await reading.list_out()
            complete &= await reading.judge()
    except CallFailed:
        # What was found by then is there all the same.
        complete = False
    except TimeoutError:
        complete, stalled = False, True
    best_first = sorted(reading.matches, key=lambda match: _rank(match, batch))
    return Search(matches=tuple(best_first), complete=complete and not reading.running, stalled=stalled)


class _Reading:
    """One pass over the list, and what it has found so far."""

    def __init__(self, batch: Batch, ports: Ports) -> None:
        self._batch = batch
        self._ports = ports
        self._tokens = ports.ledger.tokens(batch)
        self._since = _first_intent(batch, ports.ledger) - LOOK_BACK
        self._known = ports.ledger.known_provider_batches(provider=batch.provider, since=self._since - _KNOWN_SINCE)
        limits = limits_of(batch, ports)
        self._unmarked = limits is not None and not limits.metadata
        self._candidates: list[ProviderBatch] = []
        self.matches: list[Match] = []
        self.running = False

    async def list_out(self) -> bool:
        """Read the list; return whether it came to its end."""
        seen = 0
        async with _closing(self._ports.provider.list_batches(since=self._since)) as listing:
            async for listed in listing:
                seen += 1
                if seen > MOST_LISTED:
                    return False
                if listed.id in self._known:
                    continue
                token = self._token_of(listed)
                if token is not None:
                    self.matches.append(Match(listed, token))
                elif self._unmarked and listed.counts.total in (0, self._batch.rows):
                    self._candidates.append(listed)
        return True

    async def judge(self) -> bool:
        """Read a line of each candidate that has ended; return whether every one of them could be judged."""
        complete = True
        sent_at = self._batch.submitting_at or self._batch.created_at
        # The likeliest first: there may be time for some of them alone.
        for candidate in sorted(self._candidates, key=lambda each: abs(each.created_at - sent_at)):
            if not candidate.status.ended:
                self.running = True
                continue
            try:
                token = await self._token_in(candidate)
            except CallFailed:
                # Somebody else's perhaps, whose results are gone: it hides none of the others.
                token = None
            if token and token in self._tokens:
                self.matches.append(Match(candidate, token))
            complete &= token is not None
        return complete

    def _token_of(self, listed: ProviderBatch) -> str | None:
        if listed.token is not None:
            return listed.token if listed.token in self._tokens else None
        # A host that drops metadata still tells the file, whose every line bears the token.
        ours = listed.input_file_id is not None and listed.input_file_id == self._batch.input_file_id
        return self._batch.token if ours else None

    async def _token_in(self, ended: ProviderBatch) -> str | None:
        """Return the token that an ended batch's lines bear, empty if it is none; None where no line can be read."""
        batch = self._batch
        results = self._ports.provider.results(ended.id, model=batch.model, endpoint=Endpoint(batch.endpoint))
        async with _closing(results) as lines:
            async for line in lines:
                if line.custom_id is not None:
                    # All ids of a batch bear the same token, or are somebody else's.
                    parts = split_custom_id(line.custom_id)
                    return parts[1] if parts is not None else ""
        return None


def _rank(match: Match, batch: Batch) -> tuple[bool, bool, int, datetime, str]:
    """Order matches by their use: one that answers, of the current submission, the furthest, the oldest."""
    seen = match.batch
    cut_short = seen.status not in (ProviderBatchStatus.COMPLETED, ProviderBatchStatus.IN_PROGRESS)
    return cut_short, match.token != batch.token, -seen.counts.completed, seen.created_at, seen.id


def _first_intent(batch: Batch, ledger: Ledger) -> datetime:
    """Return when the batch was first about to be sent, on the run's clock."""
    intents = [event.at for event in ledger.events("batch", str(batch.id)) if event.after == BatchState.SUBMITTING]
    return min(intents, default=batch.submitting_at or batch.created_at)


@contextlib.asynccontextmanager
async def _closing(items: AsyncIterator[Item]) -> AsyncIterator[AsyncIterator[Item]]:
    """Let go of the connection when what came first has told enough."""
    try:
        yield items
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()
