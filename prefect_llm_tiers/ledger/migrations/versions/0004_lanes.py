"""Latency is learned from what is there anyway: batches from their own rows, live tiers from one row a step run.

What `observations` held of batches stands in `batches`. What it held of live tiers cannot be used: it does not
say how many calls were in flight.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Put `lanes` in the place of `observations`."""
    op.drop_table("observations")
    op.create_table(
        "lanes",
        sa.Column("step_run", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("visits", sa.Integer(), nullable=False),
        sa.Column("requests", _NUMBER, nullable=False),
        sa.Column("busy_us", sa.BigInteger(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("spacing_us", sa.BigInteger(), nullable=False),
        sa.Column("latency_us", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("found_down", sa.Boolean(), nullable=False),
        sa.Column("down_us", sa.BigInteger(), nullable=False),
        sa.Column("recoveries", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["step_run"], ["step_runs.number"], name=op.f("fk_lanes_step_run")),
        sa.PrimaryKeyConstraint("step_run", "tier", name=op.f("pk_lanes")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_lanes_newest", "lanes", ["model", "tier", "began_at"])
    op.create_index("ix_batches_observed", "batches", ["provider", "account", "model"])
