"""The list of an account's batches, page by page, as both dialects tell it."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime

from prefect_llm_tiers.core.batches import ProviderBatch
from prefect_llm_tiers.providers.wire import unreadable

__all__ = ["Page", "each_batch"]

Page = tuple[list[ProviderBatch], bool | None]
"""Batches, newest first, and whether there are more; None where the provider does not say."""


async def each_batch(
    page_after: Callable[[str | None], Awaitable[Page]], *, since: datetime
) -> AsyncGenerator[ProviderBatch, None]:
    """Yield batches newest first, back to those created in the second of `since`; a page is read when it is needed.

    Whoever reads to the end has read the whole list: a page that cannot be read raises, and so do a list that goes on
    and does not move, and an empty page that says that more follows. A provider that does not say whether there is
    more is asked until a page is empty.

    Args:
        page_after: Reads the page behind the batch of an id; the first one for None.
        since: Aware instant.

    Raises:
        CallFailed: See above.
    """
    # A creation time may be told in whole seconds: a batch made 0.7 s into a second as made at its start.
    floor = since.replace(microsecond=0)
    last: str | None = None
    while True:
        batches, more = await page_after(last)
        for batch in batches:
            if batch.created_at >= floor:
                yield batch
        if not batches and more:
            # An end that is none: taken for one, it would prove batches absent that were taken.
            raise unreadable()
        if not batches or more is False or batches[-1].created_at < floor:
            return
        if batches[-1].id == last:
            raise unreadable()
        last = batches[-1].id
