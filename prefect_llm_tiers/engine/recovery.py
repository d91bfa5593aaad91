"""What became of a submission that nobody confirmed.

Three verdicts. *Found*: the provider has a batch that bears our token. *Absent*: a complete list did not have
it, twice, the second time so late that no create can still be under way. *Ambiguous*: everything else; nothing
is sent in its place then.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from prefect_llm_tiers.core.batches import Batch, ProviderBatch
from prefect_llm_tiers.core.ports import CallFailed, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, split_custom_id
from prefect_llm_tiers.engine.job import Ports

__all__ = ["LOOK_BACK", "PROOF_AFTER", "Finding", "Verdict", "look_for"]

LOOK_BACK = timedelta(hours=2)
"""How far before the intent the list is read: the provider's clock may be another than ours, and ours may have
been set back since. A list cut too short proves a batch absent that was taken, and pays for it twice."""

PROOF_AFTER = timedelta(minutes=12)
"""From the intent on: the create's timeout (2 min) and ten minutes in which a batch may become visible late."""

_LIST_AT_MOST = 5000
_LOOK_AGAIN = timedelta(minutes=2)


class Verdict(StrEnum):
    """What a search found."""

    FOUND = "found"
    ABSENT = "absent"
    AMBIGUOUS = "ambiguous"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict, with the batch if it was found and the next look if it is open.

    Attributes:
        complete: Whether the whole list was read and the batch was not in it.
    """

    verdict: Verdict
    batch: ProviderBatch | None = None
    complete: bool = False
    look_again_at: datetime | None = None


async def look_for(batch: Batch, ports: Ports) -> Finding:
    """Search the provider's list for a batch that was sent and not confirmed.

    With metadata (OpenAI) the token decides. Without (Anthropic) the candidates are the batches created at
    about that time with as many requests, and only the custom_ids of an ended one prove that it is ours.
    """
    now = ports.clock.now()
    intent = batch.submitting_at or batch.created_at
    since = intent - LOOK_BACK
    again = Finding(verdict=Verdict.AMBIGUOUS, look_again_at=now + _LOOK_AGAIN)
    known = {other.provider_batch_id for other in ports.ledger.live_batches()}
    seen = 0
    candidates: list[ProviderBatch] = []
    try:
        async for listed in ports.provider.list_batches(since=since):
            seen += 1
            if seen > _LIST_AT_MOST:
                # A list that never ends proves nothing.
                return again
            if listed.token == batch.token:
                return Finding(verdict=Verdict.FOUND, batch=listed)
            # Where there are files there is metadata, and a batch without our token is another's.
            if batch.input_file_id is None and listed.id not in known and _counts_fit(listed, batch):
                candidates.append(listed)
        for candidate in candidates:
            if not candidate.status.ended:
                continue
            bears = await _bears_token(candidate, batch, ports)
            if bears:
                return Finding(verdict=Verdict.FOUND, batch=candidate)
            if bears is None:
                return again
    except CallFailed:
        return again
    if any(not candidate.status.ended for candidate in candidates):
        return again
    # `polls` counts complete looks before this one: absence is believed only when it was seen twice.
    if batch.polls >= 1 and now >= intent + PROOF_AFTER:
        return Finding(verdict=Verdict.ABSENT)
    look_again_at = max(now + _LOOK_AGAIN, intent + PROOF_AFTER)
    return Finding(verdict=Verdict.AMBIGUOUS, complete=True, look_again_at=look_again_at)


def _counts_fit(listed: ProviderBatch, batch: Batch) -> bool:
    return listed.counts.total in (0, batch.rows)


async def _bears_token(listed: ProviderBatch, batch: Batch, ports: Ports) -> bool | None:
    """Return whether an ended batch is ours; None where not one of its lines can be read."""
    results = ports.provider.results(listed.id, model=batch.model, endpoint=Endpoint(batch.endpoint))
    async with _closing(results) as lines:
        async for line in lines:
            if line.custom_id is not None:
                # All ids of a batch bear the same token, or are somebody else's.
                parts = split_custom_id(line.custom_id)
                return parts is not None and parts[1] == batch.token
    return None


@contextlib.asynccontextmanager
async def _closing(results: AsyncIterator[ResultLine]) -> AsyncIterator[AsyncIterator[ResultLine]]:
    """Let go of the connection when the first lines have told enough."""
    try:
        yield results
    finally:
        if isinstance(results, AsyncGenerator):
            await results.aclose()
