"""When a batch is looked at, and when the provider's list is read for it."""

from datetime import datetime, timedelta

from prefect_llm_tiers.core.batches import ENDED_STATES, LIVE_STATES, Batch, BatchState

__all__ = [
    "CANCEL_POLL",
    "DOUBTED_FOR",
    "FIRST_POLL",
    "LONGEST_POLL",
    "SEARCH_AGAIN",
    "is_due",
    "next_look",
    "next_search",
    "to_be_searched",
    "was_looked_at",
]

FIRST_POLL = timedelta(seconds=30)
LONGEST_POLL = timedelta(minutes=5)
CANCEL_POLL = timedelta(seconds=30)
POLL_GROWTH = 1.5

DOUBTED_FOR = timedelta(hours=26)
"""How long after it was planned a batch that is over is searched for again, where the provider may have it twice."""

SEARCH_AGAIN = timedelta(minutes=5)

_UNATTENDED = timedelta(hours=1)
"""So long after its look was due, a batch was in nobody's hands: all runs were suspended, or the machine was off."""

_OUT = frozenset({BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.OVERDUE})

_LONGEST_WAITS = dict.fromkeys(_OUT | ENDED_STATES, LONGEST_POLL) | {BatchState.SUBMITTING: timedelta(minutes=30)}
"""The longest that a batch waits for its next look; when a planned one goes out, the provider says."""


def is_due(batch: Batch, now: datetime) -> bool:
    """Return whether a batch is to be looked at now."""
    due = batch.next_poll_at
    if due is None or due <= now:
        return True
    # Looks are minutes apart; a next one that is further off was noted before the clock was set back.
    longest = _LONGEST_WAITS.get(batch.state)
    return longest is not None and due > now + longest


def next_look(batch: Batch, now: datetime) -> datetime:
    """Return when a batch is looked at next: ever later, since an old batch is rarely about to end."""
    if batch.state is BatchState.CANCELLING:
        return now + CANCEL_POLL
    # Growth is capped before the power is taken: a batch may be looked at for days.
    return now + min(LONGEST_POLL, FIRST_POLL * POLL_GROWTH ** min(batch.polls, 16))


def next_search(batch: Batch, now: datetime) -> datetime:
    """Return when a batch that is over is searched for again: each wait is half of the time that has passed."""
    passed = now - (batch.submitting_at or batch.created_at)
    return now + max(SEARCH_AGAIN, passed / 2)


def to_be_searched(before: Batch, after: Batch, *, marked: bool) -> bool:
    """Return whether the provider's list is to be read for a second one of a batch after this look at it.

    Also a batch that was confirmed may be there twice: what stands between sends a POST again whose reply it lost,
    and passes on the second reply. Nothing that is told of the batch shows it, and what the other one costs would be
    on the invoice and nowhere else. So the list is read once after a batch was sent, where it shows tokens and a
    copy can be stopped, and once after its end, for one that was not to be seen at first: two calls beside the
    hundreds of looks that a day takes. The second one comes before the batch is settled, and so is not asked for
    here. One that may well be there twice is searched for also at the looks 2, 4, 8 and so on while it is out, and
    when it is over, as often as its next look is due.

    Args:
        before: The batch before the look.
        after: The batch after it.
        marked: Whether the list shows tokens. Otherwise only an ended batch tells whose it is.
    """
    if after.copy_of is not None:
        return False
    if after.state not in LIVE_STATES:
        # One that is over since this look was searched for before it was settled.
        return after.doubtful and before.state not in LIVE_STATES
    # One that was just found was just searched for.
    looked = after.polls > before.polls and before.state in _OUT and after.state in _OUT
    return looked and ((marked and after.polls == 1) or (after.doubtful and after.polls & (after.polls - 1) == 0))


def was_looked_at(batch: Batch, now: datetime) -> bool:
    """Return whether somebody has looked at a batch of late, so that its silence is the provider's and not ours."""
    return batch.next_poll_at is not None and now < batch.next_poll_at + _UNATTENDED
