"""Ledgers of an older schema: what they hold was paid for, and is there after the upgrade."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from prefect_llm_tiers.core.batches import BatchCounts as Counts
from prefect_llm_tiers.core.batches import BatchState, ProviderBatch, ProviderBatchStatus
from prefect_llm_tiers.core.requests import derived_token
from prefect_llm_tiers.core.runs import RequestState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.ledger import SqlLedger, open_ledger
from prefect_llm_tiers.ledger.database import Contradiction
from prefect_llm_tiers.ledger.schema import VERSION_TABLE, metadata

AT = datetime(2026, 11, 1, 6, tzinfo=UTC)
MICROS = int(AT.timestamp()) * 1_000_000
LEDGER_ID = "0123456789abcdef"

STEP_RUN = (
    "INSERT INTO step_runs (id, version, flow_run_id, step, key_digest, requests, rows, entered_at, "
    "first_stamp, state, entries) VALUES ('{name}', 1, 'flow', 'summary', 'd', 3, 3, {at}, {at}, 'running', 1)"
)
BATCH = (
    "INSERT INTO batches (id, version, state, step_run, provider, account, model, endpoint, tier, token, submission, "
    "rows, provider_batch_id, total, completed, failed, error_codes, created_at, submitted_at, polls) VALUES "
    "({id}, 3, '{state}', 1, '{provider}', 'org/{id}', 'm', '/v1/responses', 'batch', '{token}', 1, 2, 'batch_{id}', "
    "2, 1, 0, '[\"code\"]', {at}, {at}, 4)"
)
ATTEMPTS = (
    "INSERT INTO attempts (id, request_id, step_run, batch_id, tier, began_at, closed) VALUES "
    f"(1, 1, 1, 1, 'batch', {MICROS}, NULL), (2, 2, 1, 1, 'batch', {MICROS}, 'released'), "
    f"(3, 2, 1, 2, 'batch', {MICROS}, NULL), (4, 3, 2, NULL, 'flex', {MICROS}, NULL)"
)
ANSWER = (
    "INSERT INTO outcomes (attempt_id, request_id, standing, kind, text, tier_served, billing, input_tokens, "
    "cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, list_usd, ended_at, stamp) "
    f"VALUES (1, 1, 'counts', 'answer', 'Paid.', 'batch', 'billed', 5, 0, 0, 7, 0, '0.25', '0.50', {MICROS}, {MICROS})"
)
OBSERVED = (
    "INSERT INTO observations (provider, model, tier, requests, duration_us, censored, at) VALUES "
    f"('openai', 'm', 'batch', 2, 60000000, false, {MICROS})"
)
HELD = [
    f"INSERT INTO meta VALUES (1, '{LEDGER_ID}')",
    STEP_RUN.format(name="with-batches", at=MICROS),
    STEP_RUN.format(name="live", at=MICROS),
    "INSERT INTO requests (key) VALUES ('key-a'), ('key-b'), ('key-c')",
    *(
        BATCH.format(
            id=number, state=state, provider=provider, at=MICROS, token=derived_token(LEDGER_ID, "batch", number, 1)
        )
        for number, state, provider in ((1, "settled", "openai"), (2, "in_progress", "anthropic"))
    ),
    "INSERT INTO attachments VALUES (1, 1, NULL), (1, 2, NULL)",
    ATTEMPTS,
    ANSWER,
    "INSERT INTO setbacks (step_run, request_id, tries, tried_for) VALUES (1, 2, 1, 'missing_in_results')",
    "INSERT INTO leases VALUES ('step:live', 'one', 4, 99)",
    OBSERVED,
    f"INSERT INTO events (subject, subject_id, after, at) VALUES ('batch', '2', 'planned', {MICROS})",
]
"""A ledger of the first schema: a settled batch with one answer, one that is out, a live call in flight."""


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger that the first version of this package wrote."""
    if request.param == "sqlite":
        url = driver = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        server = request.getfixturevalue("postgres")
        url = server.url(server.new_database())
        driver = url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(driver)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "prefect_llm_tiers.ledger:migrations")
        command.upgrade(config, "0001")
        for statement in HELD:
            connection.execute(text(statement.replace(":live", r"\:live")))
    engine.dispose()
    return url


@pytest.fixture
def ledger(old: str) -> Iterator[SqlLedger]:
    """That ledger, opened by this version."""
    with closing(open_ledger(old)) as opened:
        yield opened


def test_what_was_paid_for_is_there(ledger: SqlLedger) -> None:
    """Answer, usage, money, tries, batches and who waits for them are after the upgrade as they were before it."""
    assert ledger.ledger_id == LEDGER_ID
    (answer,) = ledger.answers(["key-a"], step_run_id="with-batches")
    assert answer is not None
    assert (answer.text, answer.cost_usd, answer.fresh) == ("Paid.", Decimal("0.25"), True)
    (standing,) = ledger.stand(["key-b"], step_run_id="with-batches", not_before=None, now=None)
    assert (standing.state, standing.batch_id, standing.tries) == (RequestState.OUT, 2, 1)
    assert sum(line.cost_usd for line in ledger.spending("with-batches")) == Decimal("0.25")
    first, second = ledger.batches_of("with-batches")
    assert (first.state, first.token) == (BatchState.SETTLED, derived_token(LEDGER_ID, "batch", 1, 1))
    assert (second.state, second.provider_batch_id, second.polls) == (BatchState.IN_PROGRESS, "batch_2", 4)
    assert (second.counts, second.error_codes) == (Counts(2, 1, 0), ("code",))
    assert (second.doubtful, second.copy_of, second.submitted_at) == (False, None, AT)
    assert second.input_tokens is None
    assert list(ledger.batch_keys(1)) == [["key-a", "key-b"]]
    assert [event.after for event in ledger.events("batch", "2")] == ["planned"]
    lease = ledger.lease("step:live")
    assert lease is not None
    assert lease.epoch == 4


def test_batches_of_before_tell_how_long_they_took(ledger: SqlLedger) -> None:
    """Their own rows say it, once each; nothing is learned twice from what was noted beside them."""
    (running,) = ledger.observed_batches(provider="anthropic", model="m", account=None, now=AT + timedelta(hours=1))
    assert (running.duration, running.censored) == (timedelta(hours=1), True)


def test_a_step_run_is_told_whose_account_it_asked(ledger: SqlLedger) -> None:
    """Provider and account come from a run's first batch; of a run without one nothing is out, and they are empty."""
    with_batches, live = ledger.step_runs_of("flow")
    assert (with_batches.provider, with_batches.account) == ("openai", "org/1")
    assert (live.provider, live.account) == ("", "")


def test_it_goes_on(ledger: SqlLedger) -> None:
    """What was out is harvested, ids go on where they were, and a batch can be noted a second time."""
    run = ledger.step_run("with-batches")
    assert run is not None
    lease = ledger.acquire("step:with-batches", owner="heir", now=AT, until=AT + timedelta(hours=1))
    assert lease is not None
    seen = ProviderBatch(id="batch_9", status=ProviderBatchStatus.IN_PROGRESS, counts=Counts(), created_at=AT)
    batch = ledger.batch(2)
    copy = ledger.note_copy(batch, seen, token=batch.token, at=AT)
    assert (copy.id, copy.token, copy.copy_of) == (3, batch.token, 2)
    planned = ledger.plan_batch(
        ["key-d"],
        run=run,
        provider="openai",
        account="org/1",
        model="m",
        endpoint="/v1/responses",
        lease=lease,
        at=AT,
        input_tokens=2**40,
    )
    assert (planned.id, planned.input_tokens) == (4, 2**40)
    assert ledger.batch(4) == planned
    begun = ledger.begin_calls(["key-c"], run=run, tier=Tier.FLEX, lease=lease, at=AT, not_before=None)
    assert begun == [7]


SECOND_OF_ITS_TOKEN = (
    "INSERT INTO batches SELECT 9, version, state, step_run, provider, account, model, endpoint, tier, token, "
    "submission, rows, input_file_id, provider_batch_id, total, completed, failed, error_codes, created_at, "
    "submitting_at, submitted_at, cancel_at, ended_at, next_poll_at, polls, doubtful, copy_of, input_tokens "
    "FROM batches WHERE id = 1"
)


def test_what_forbids_two_batches_of_one_token_is_there(ledger: SqlLedger) -> None:
    """The tables made anew have their constraints: a token is one batch's, and rows refer to what exists."""
    for statement in (
        SECOND_OF_ITS_TOKEN,
        "UPDATE batches SET step_run = 77 WHERE id = 1",
        "UPDATE attempts SET batch_id = 77 WHERE id = 1",
        "UPDATE batches SET copy_of = 77 WHERE id = 1",
    ):
        with pytest.raises(Contradiction), ledger._database.write() as connection:
            connection.execute(text(statement))


def test_it_is_the_schema_of_a_new_ledger(ledger: SqlLedger) -> None:
    """An upgraded ledger and a new one have the same tables, by Alembic's comparison."""
    with ledger._database.read() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


# PostgreSQL checks each reference when it is written, so there it cannot be.
@pytest.mark.parametrize("old", ["sqlite"], indirect=True)
def test_rows_that_refer_to_nothing_stop_the_upgrade(old: str) -> None:
    """A damaged ledger is left at its schema, as it was, and not made to look whole."""
    engine = create_engine(old)
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET batch_id = 77 WHERE id = 1"))
    with pytest.raises(Contradiction, match="1 rows refer to nothing, one of them in attempts"):
        open_ledger(old)
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar() == "0001"
    engine.dispose()
