"""A disk that fills up in the middle: the error says it, what was committed stands, and the ledger goes on after."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from prefect_llm_tiers.core.batches import Batch, BatchState
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.runs import Entry, Lease, RequestState, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import LedgerUnusable
from prefect_llm_tiers.ledger import SqlLedger, open_ledger

AT = datetime(2026, 11, 1, 6, tzinfo=UTC)
KEYS = [f"key-{number}" for number in range(200)]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    """A ledger."""
    with closing(open_ledger(tmp_path / "ledger.db")) as opened:
        yield opened


def room(ledger: SqlLedger, pages: int) -> None:
    """Let the file grow by some pages from here on: a further one is SQLITE_FULL, as on a disk without room.

    A limit is a connection's own, and each ledger of these tests has one, because one thread uses it.
    """
    with ledger._database.read() as connection:
        used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {used + pages}")


def planned(ledger: SqlLedger) -> tuple[StepRun, Lease, Batch]:
    """A batch that is at the provider."""
    entry = Entry(
        id="r",
        flow_run_id="f",
        step="s",
        key_digest="",
        requests=len(KEYS),
        rows=len(KEYS),
        provider="openai",
        account="org",
        deadline=None,
        entered_at=AT,
    )
    run = ledger.enter(entry, stamp=AT)
    lease = ledger.acquire("step:r", owner="one", now=AT, until=AT + timedelta(hours=1))
    assert lease is not None
    batch = ledger.plan_batch(
        KEYS, run=run, provider="openai", account="org", model="m", endpoint="/v1/responses", lease=lease, at=AT
    )
    for state in (BatchState.SUBMITTING, BatchState.IN_PROGRESS, BatchState.COMPLETED):
        batch = ledger.advance_batch(batch, state, lease=lease, at=AT)
    return run, lease, batch


def lines(keys: list[str]) -> list[Outcome]:
    """Answers of a page each."""
    return [
        Outcome(
            key=key,
            kind=OutcomeKind.ANSWER,
            text=key + "x" * 4000,
            billing=Billing.BILLED,
            cost_usd=Decimal("0.01"),
        )
        for key in keys
    ]


def test_a_harvest_stops_and_goes_on(ledger: SqlLedger) -> None:
    """The group that found no room is not there in part, those before it are, and the same group fits after."""
    _, lease, batch = planned(ledger)
    room(ledger, 150)
    groups = [KEYS[start : start + 50] for start in range(0, 200, 50)]
    kept = 0
    with pytest.raises(LedgerUnusable, match=r"full.*Nothing of this change was kept.*Make room") as refusal:  # noqa: PT012
        for group in groups:
            kept += ledger.record_results(batch, lines(group), at=AT, stamp=AT).settled
    assert "xxx" not in str(refusal.value)
    assert 0 < kept < len(KEYS)
    standing = ledger.stand(KEYS, step_run_id="r", not_before=None, now=AT)
    assert [one.state for one in standing] == [RequestState.ANSWERED] * kept + [RequestState.OUT] * (200 - kept)
    assert sum(line.cost_usd for line in ledger.spending("r")) == kept * Decimal("0.01")
    room(ledger, 10_000)
    again = sum(ledger.record_results(batch, lines(group), at=AT, stamp=AT).settled for group in groups)
    assert again == 200 - kept
    assert ledger.settle_batch(batch, lease=lease, at=AT)[1] == 0


def test_nothing_is_sent_that_is_not_written_down(ledger: SqlLedger) -> None:
    """Without room no call is begun and no batch planned: the error comes before anything is paid for."""
    run, lease, batch = planned(ledger)
    room(ledger, 0)
    new = [f"new-{number}" for number in range(500)]
    with pytest.raises(LedgerUnusable, match="full"):
        ledger.begin_calls(new, run=run, tier=Tier.FLEX, lease=lease, at=AT, not_before=None)
    with pytest.raises(LedgerUnusable, match="full"):
        ledger.plan_batch(
            new, run=run, provider="openai", account="org", model="m", endpoint="/v1/responses", lease=lease, at=AT
        )
    assert ledger.live_batches() == [batch]
    assert {line.outcome: line.attempts for line in ledger.spending("r")} == {"open": 200}
    room(ledger, 10_000)
    begun = ledger.begin_calls(new, run=run, tier=Tier.FLEX, lease=lease, at=AT, not_before=None)
    assert None not in begun


def test_a_clock_set_back(ledger: SqlLedger) -> None:
    """With an hour taken back a lease lasts longer and frees nothing early, and what was answered stays answered."""
    run, lease, batch = planned(ledger)
    hour = timedelta(hours=1)
    back = AT - hour
    # Whoever comes with the earlier time finds the lease held, also by one who is gone: an hour more, and no less.
    assert ledger.acquire("step:r", owner="other", now=back + timedelta(minutes=59), until=AT + hour) is None
    # The holder renews by the clock as it is now; its lease ends earlier than before, and is its own.
    renewed = ledger.renew(lease, until=back + hour)
    assert renewed.epoch == lease.epoch
    taken = ledger.acquire("step:r", owner="other", now=back + hour, until=AT + hour)
    assert taken is not None
    assert taken.epoch > lease.epoch
    # An answer stamped an hour before its run's entry is its own all the same, and a late event is in its place.
    ledger.record_results(batch, lines(KEYS[:1]), at=back, stamp=back - hour)
    (standing,) = ledger.stand(KEYS[:1], step_run_id=run.id, not_before=AT, now=back)
    assert standing.state is RequestState.ANSWERED
    ledger.settle_batch(batch, lease=taken, at=back)
    told = ledger.events("batch", str(batch.id))
    assert [event.after for event in told] == ["planned", "submitting", "in_progress", "completed", "settled"]
    # Another run's call is out for as long as its lease says, by the clock of whoever asks.
    begun = ledger.begin_calls(KEYS[5:6], run=run, tier=Tier.FLEX, lease=taken, at=back, not_before=None)
    assert None not in begun
    for now, state in ((back, RequestState.OUT), (AT + hour, RequestState.OPEN)):
        (standing,) = ledger.stand(KEYS[5:6], step_run_id="another", not_before=None, now=now)
        assert standing.state is state
