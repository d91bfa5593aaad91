"""The first tables. A revision says what was, so it names no table of `schema`, which says what is."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_COUNTS = sa.text("standing = 'counts'")


def upgrade() -> None:
    """Make the tables of an empty ledger."""
    op.create_table(
        "events",
        sa.Column("sequence", _NUMBER, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("before", sa.Text()),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text()),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_events")),
    )
    op.create_index("ix_events_subject", "events", ["subject", "subject_id"])
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "meta",
        sa.Column("id", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("ledger_id", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_meta_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meta")),
    )
    op.create_table(
        "observations",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column("censored", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observations")),
    )
    op.create_index("ix_observations_newest", "observations", ["provider", "model", "tier", "at"])
    op.create_table(
        "requests",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
        sa.UniqueConstraint("key", name=op.f("uq_requests_key")),
    )
    op.create_table(
        "step_runs",
        sa.Column("number", _NUMBER, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("flow_run_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("key_digest", sa.Text(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("deadline", sa.BigInteger()),
        sa.Column("entered_at", sa.BigInteger(), nullable=False),
        sa.Column("first_stamp", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("plan", sa.LargeBinary()),
        sa.Column("planned_at", sa.BigInteger()),
        sa.Column("tier", sa.Text()),
        sa.Column("tier_since", sa.BigInteger()),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_step_runs")),
        sa.UniqueConstraint("id", name=op.f("uq_step_runs_id")),
    )
    op.create_table(
        "batches",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("step_run", _NUMBER, nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("submission", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("input_file_id", sa.Text()),
        sa.Column("provider_batch_id", sa.Text()),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("error_codes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("submitting_at", sa.BigInteger()),
        sa.Column("submitted_at", sa.BigInteger()),
        sa.Column("cancel_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("next_poll_at", sa.BigInteger()),
        sa.Column("polls", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["step_run"], ["step_runs.number"], name=op.f("fk_batches_step_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        sa.UniqueConstraint("token", name=op.f("uq_batches_token")),
    )
    op.create_index(op.f("ix_batches_state"), "batches", ["state"])
    op.create_index(op.f("ix_batches_step_run"), "batches", ["step_run"])
    op.create_table(
        "setbacks",
        sa.Column("step_run", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("request_id", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("tried_for", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("attempt_id", _NUMBER),
        sa.Column("despite", _NUMBER),
        sa.Column("stamp", sa.BigInteger()),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name=op.f("fk_setbacks_request_id")),
        sa.ForeignKeyConstraint(["step_run"], ["step_runs.number"], name=op.f("fk_setbacks_step_run")),
        sa.PrimaryKeyConstraint("step_run", "request_id", name=op.f("pk_setbacks")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "attachments",
        sa.Column("step_run", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("batch_id", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("left_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_attachments_batch_id")),
        sa.ForeignKeyConstraint(["step_run"], ["step_runs.number"], name=op.f("fk_attachments_step_run")),
        sa.PrimaryKeyConstraint("step_run", "batch_id", name=op.f("pk_attachments")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_attachments_batch_id"), "attachments", ["batch_id"])
    op.create_table(
        "attempts",
        sa.Column("id", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("request_id", _NUMBER, nullable=False),
        sa.Column("step_run", _NUMBER, nullable=False),
        sa.Column("batch_id", _NUMBER),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("replaces", _NUMBER),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("closed", sa.Text()),
        sa.Column("closed_at", sa.BigInteger()),
        sa.CheckConstraint("closed IN ('released', 'abandoned')", name=op.f("ck_attempts_closed")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_attempts_batch_id")),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name=op.f("fk_attempts_request_id")),
        sa.ForeignKeyConstraint(["step_run"], ["step_runs.number"], name=op.f("fk_attempts_step_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("request_id", "batch_id", name=op.f("uq_attempts_request_id_batch_id")),
    )
    op.create_index(op.f("ix_attempts_batch_id"), "attempts", ["batch_id"])
    op.create_index(op.f("ix_attempts_step_run"), "attempts", ["step_run"])
    op.create_table(
        "outcomes",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("attempt_id", _NUMBER, nullable=False),
        sa.Column("request_id", _NUMBER, nullable=False),
        sa.Column("standing", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("text", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("tier_served", sa.Text()),
        sa.Column("billing", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.Integer()),
        sa.Column("cached_input_tokens", sa.Integer()),
        sa.Column("cache_write_tokens", sa.Integer()),
        sa.Column("output_tokens", sa.Integer()),
        sa.Column("reasoning_tokens", sa.Integer()),
        sa.Column("cost_usd", sa.Text()),
        sa.Column("list_usd", sa.Text()),
        sa.Column("price_source", sa.Text()),
        sa.Column("provider_request_id", sa.Text()),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("stamp", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outcomes")),
        sa.UniqueConstraint("attempt_id", name=op.f("uq_outcomes_attempt_id")),
    )
    op.create_index(
        "ix_outcomes_counts",
        "outcomes",
        ["request_id"],
        unique=True,
        sqlite_where=_COUNTS,
        postgresql_where=_COUNTS,
    )
