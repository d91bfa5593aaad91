"""The tables of a ledger, and what each row promises.

What is written on the hot path is only ever inserted: a request's key, an attempt, an outcome. An
attempt is open until it has an outcome or is closed; a request is answered by the one outcome whose
`standing` is `counts`, and a partial unique index lets there be no second. So an answer that came back
cannot be overwritten, and "answered twice" is not a state that the file can hold.

No prompt is stored anywhere. Instants are microseconds since 1970 in UTC, so that they compare and
sort as they are; money is decimal text, so that it comes back as it went in.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

from prefect_llm_tiers.ledger.texts import Words

__all__ = [
    "COUNTS",
    "REVISION",
    "VERSION_TABLE",
    "Instant",
    "attachments",
    "attempts",
    "batches",
    "events",
    "from_micros",
    "lanes",
    "leases",
    "meta",
    "metadata",
    "micros",
    "money",
    "outcomes",
    "requests",
    "setbacks",
    "step_runs",
]

REVISION = "0004"
"""The newest migration; a ledger at this revision is opened without loading Alembic."""

VERSION_TABLE = "ledger_schema_version"
"""Not Alembic's default name, which the database of another application may hold already."""

COUNTS = text("standing = 'counts'")
"""Spelled out rather than bound: a planner proves the use of a partial index from the text alone."""

_OWN = text("copy_of IS NULL")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(instant: datetime) -> int:
    """Return an aware instant as whole microseconds since 1970 in UTC.

    Raises:
        ValueError: The instant is naive.
    """
    if instant.tzinfo is None:
        raise ValueError(f"{instant.isoformat()} has no time zone; the ledger takes aware instants only.")
    return (instant - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Return the aware UTC instant that `micros` was given."""
    return _EPOCH + timedelta(microseconds=value)


def money(value: str | None) -> Decimal | None:
    """Return an amount as it was written, digit for digit."""
    return None if value is None else Decimal(value)


class Instant(TypeDecorator[datetime]):
    """An aware instant, kept as microseconds since 1970 in UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_micros(value)


# SQLite gives a row number of its own only to a primary key that is spelled INTEGER.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("id", _NUMBER, primary_key=True, autoincrement=False),
    Column("ledger_id", Text, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)
"""One row: the random id that every token is derived from, drawn when the ledger is made."""

step_runs = Table(
    "step_runs",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("version", Integer, nullable=False),
    Column("flow_run_id", Text, nullable=False, index=True),
    Column("step", Text, nullable=False),
    Column("key_digest", Text, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("deadline", Instant),
    Column("entered_at", Instant, nullable=False),
    Column("first_stamp", Instant, nullable=False),
    Column("state", Text, nullable=False),
    Column("plan", LargeBinary),
    Column("planned_at", Instant),
    Column("tier", Text),
    Column("tier_since", Instant),
    Column("entries", Integer, nullable=False),
    Column("provider", Text, nullable=False),
    Column("account", Text, nullable=False),
)
"""What a first entry stored and every later one is bound by.

`provider` and `account` are empty where a ledger of before they were stored did not know them.

`number` stands for the id in the rows that are many. `version` counts plan, tier, end and rebase, and
not entries: a second process that looks in must not spoil the first one's decisions.
"""

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text),
    Column("epoch", Integer, nullable=False),
    Column("until", Instant, nullable=False),
    sqlite_with_rowid=False,
)
"""Who decides. A lease given back keeps its row, without an owner, so that no epoch ever returns."""

requests = Table(
    "requests",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("key", Text, nullable=False, unique=True),
)
"""A number for every key ever asked. Where a request stands follows from attempts and outcomes."""

batches = Table(
    "batches",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("step_run", _NUMBER, ForeignKey("step_runs.number"), nullable=False, index=True),
    Column("provider", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("submission", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("input_file_id", Text),
    Column("provider_batch_id", Text, index=True),
    # As many digits as a provider may tell.
    Column("total", _NUMBER, nullable=False),
    Column("completed", _NUMBER, nullable=False),
    Column("failed", _NUMBER, nullable=False),
    Column("error_codes", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("submitting_at", Instant),
    Column("submitted_at", Instant),
    Column("cancel_at", Instant),
    Column("ended_at", Instant),
    Column("next_poll_at", Instant),
    Column("polls", Integer, nullable=False),
    Column("doubtful", Boolean, nullable=False),
    Column("copy_of", _NUMBER, ForeignKey("batches.id"), index=True),
    Column("input_tokens", _NUMBER),
    # A copy was made by a submission of another batch, and bears its token.
    Index("ix_batches_observed", "provider", "account", "model"),
    Index("ix_batches_token", "token", unique=True, sqlite_where=_OWN, postgresql_where=_OWN),
)
"""Batches as `core.batches.Batch` describes them. `error_codes` is a JSON list.

`version` counts the changes of state, and every provider or file id that becomes known: a decision
made without knowing that id, such as "proven absent", must not go through.

A row with `copy_of` is what the provider has a second time: nobody planned it, it is watched, harvested and
priced like any other, and no provider id stands in two rows of one account.
"""

attempts = Table(
    "attempts",
    metadata,
    Column("id", _NUMBER, primary_key=True, autoincrement=False),
    Column("request_id", _NUMBER, ForeignKey("requests.id"), nullable=False),
    Column("step_run", _NUMBER, ForeignKey("step_runs.number"), nullable=False, index=True),
    Column("batch_id", _NUMBER, ForeignKey("batches.id"), index=True),
    Column("tier", Text, nullable=False),
    Column("replaces", _NUMBER),
    Column("began_at", Instant, nullable=False),
    Column("closed", Text),
    Column("closed_at", Instant),
    CheckConstraint("closed IN ('released', 'abandoned')", name="closed"),
    # A custom_id twice in one batch makes the provider refuse the whole of it.
    UniqueConstraint("request_id", "batch_id"),
)
"""Everything that was sent or is about to be, one row for each request and sending.

- open: no outcome, `closed` is null
- open -> released: the batch is overdue, discarded, or settled without a line on it
- open -> abandoned: whoever made the live call is gone; the invoice alone knows whether it cost
- any of these -> ended: an outcome exists; it is never changed and never joined by a second

`replaces` is the attempt whose answer counted when this one was made and was none to the step run that asked:
older than the run and too old for it, or set aside by it (`setbacks`). An outcome may take the place of that
answer, and of no other.
"""

outcomes = Table(
    "outcomes",
    metadata,
    # A number of its own, so that answers are appended in the order they come. With the attempt as the
    # primary key each would land on a random page of the batch's range: four times the bytes to the disk.
    Column("id", _NUMBER, primary_key=True),
    # No foreign key: its check costs a tenth of an insert, and the number was read from `attempts`, whose
    # rows are never deleted.
    Column("attempt_id", _NUMBER, nullable=False, unique=True),
    # The attempt's; here as well because the index of what counts needs it.
    Column("request_id", _NUMBER, nullable=False),
    Column("standing", Text),
    Column("kind", Text, nullable=False),
    Column("text", Words),
    Column("reason", Words),
    Column("tier_served", Text),
    Column("billing", Text, nullable=False),
    Column("input_tokens", _NUMBER),
    Column("cached_input_tokens", _NUMBER),
    Column("cache_write_tokens", _NUMBER),
    Column("output_tokens", _NUMBER),
    Column("reasoning_tokens", _NUMBER),
    Column("cost_usd", Text),
    Column("list_usd", Text),
    Column("price_source", Words),
    Column("provider_request_id", Words),
    Column("ended_at", Instant, nullable=False),
    Column("stamp", Instant, nullable=False),
    Index("ix_outcomes_counts", "request_id", unique=True, sqlite_where=COUNTS, postgresql_where=COUNTS),
)
"""What came of attempts, appended and never changed but for `standing`.

`standing` says what an answer or a refusal is to its request, null for every other kind:

- counts: the first that came back; at most one for each request
- superseded: another one counted when it came
- counts -> replaced: it grew too old for a later run, whose own answer counts now
- counts -> aside: the run that bought it cannot read it, and another of its answers counts now

No CHECK says so: two of them cost a third of an insert, and this table takes one for every answer.
"""

setbacks = Table(
    "setbacks",
    metadata,
    Column("step_run", _NUMBER, ForeignKey("step_runs.number"), primary_key=True, autoincrement=False),
    Column("request_id", _NUMBER, ForeignKey("requests.id"), primary_key=True, autoincrement=False),
    Column("tries", Integer, nullable=False),
    Column("tried_for", Words),
    Column("reason", Words),
    Column("attempt_id", _NUMBER),
    Column("despite", _NUMBER),
    Column("stamp", Instant),
    Column("aside", _NUMBER),
    sqlite_with_rowid=False,
)
"""What a step run had back without a usable answer; a `reason` makes it a failure of that run.

`tried_for` is why the last of the `tries` was of no use.

`attempt_id` is the attempt that brought the failure, null where the engine decided it. `despite` is
the attempt whose answer counted at that time. A failure holds as long as this has not changed: an
answer that arrives later ends it without touching this row.

`aside` is the attempt whose answer the run cannot read: it counts for every other run, and is none to this one.
"""

attachments = Table(
    "attachments",
    metadata,
    Column("step_run", _NUMBER, ForeignKey("step_runs.number"), primary_key=True, autoincrement=False),
    Column("batch_id", _NUMBER, ForeignKey("batches.id"), primary_key=True, autoincrement=False, index=True),
    Column("left_at", Instant),
    sqlite_with_rowid=False,
)
"""Which step runs wait for which batch: waiting (`left_at` is null) -> left, and never back."""

lanes = Table(
    "lanes",
    metadata,
    Column("step_run", _NUMBER, ForeignKey("step_runs.number"), primary_key=True, autoincrement=False),
    Column("tier", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("began_at", Instant, nullable=False),
    Column("visits", Integer, nullable=False),
    Column("requests", _NUMBER, nullable=False),
    Column("busy_us", BigInteger, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("spacing_us", BigInteger, nullable=False),
    Column("latency_us", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("found_down", Boolean, nullable=False),
    Column("down_us", BigInteger, nullable=False),
    Column("recoveries", Integer, nullable=False),
    Index("ix_lanes_newest", "model", "tier", "began_at"),
    sqlite_with_rowid=False,
)
"""What a step run saw of a live tier, as sums over its visits: `latency_us` and `output_tokens` over its requests.

Batches need no table of what was seen of them: the rows of `batches` are it.
"""

events = Table(
    "events",
    metadata,
    Column("sequence", _NUMBER, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("before", Text),
    Column("after", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("detail", Words),
    Index("ix_events_subject", "subject", "subject_id"),
)
"""Append-only: each change of state, written in the transaction that makes it.

Subject `batch`, `subject_id` its number:

- null -> planned                                       plan_batch
- planned -> submitting                                 the intent, before the call
- submitting -> in_progress                             confirmed, or found again after a crash
- submitting -> planned                                 proven absent; a new token from here on
- planned, submitting -> discarded                      nothing to wait for; its rows are released
- in_progress -> cancelling                             we asked; it may still finish rows
- in_progress, cancelling, overdue -> completed, failed, expired, cancelled
- submitting, in_progress, cancelling -> overdue        an hour past its window; its rows are released
- overdue -> discarded                                  given up
- completed, failed, expired, cancelled -> settled      every id that was sent is accounted for
- null -> in_progress                                   a copy of another batch turned up at the provider

Subject `step_run`, `subject_id` its id:

- null -> running                                       first entry
- running -> completed, failed                          finish
- completed, failed -> running                          reopened
- null or a tier -> a tier                              record_tier: every chunk follows
"""
