"""A batch that the provider took twice has a row for each copy, and a step run knows whose account it asks.

What a provider counts may have as many digits as it likes. What a batch takes of a bound on enqueued tokens is
stored with it; of a batch of before it is not known.

A step run of before is given provider and account of its first batch, or none where it had no batch: nothing
of it is out at a provider then.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_OWN = sa.text("copy_of IS NULL")

_WIDER = {
    "batches": ("total", "completed", "failed"),
    "outcomes": (
        "input_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
    ),
}

_step_runs = sa.table("step_runs", sa.column("number"), sa.column("provider"), sa.column("account"))
_batches = sa.table(
    "batches",
    sa.column("id"),
    sa.column("step_run"),
    sa.column("provider"),
    sa.column("account"),
    sa.column("doubtful"),
)


def _of_first_batch(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    mine = _batches.c.step_run == _step_runs.c.number
    return sa.func.coalesce(sa.select(column).where(mine).order_by(_batches.c.id).limit(1).scalar_subquery(), "")


def upgrade() -> None:
    """Add the columns, and let a copy bear the token of the batch it is a copy of."""
    op.add_column("step_runs", sa.Column("provider", sa.Text()))
    op.add_column("step_runs", sa.Column("account", sa.Text()))
    op.execute(
        _step_runs.update().values(
            provider=_of_first_batch(_batches.c.provider), account=_of_first_batch(_batches.c.account)
        )
    )
    with op.batch_alter_table("step_runs") as step_runs:
        step_runs.alter_column("provider", existing_type=sa.Text(), nullable=False)
        step_runs.alter_column("account", existing_type=sa.Text(), nullable=False)
    op.create_index(op.f("ix_step_runs_flow_run_id"), "step_runs", ["flow_run_id"])
    op.add_column("batches", sa.Column("doubtful", sa.Boolean()))
    op.add_column("batches", sa.Column("copy_of", _NUMBER))
    op.add_column("batches", sa.Column("input_tokens", _NUMBER))
    op.execute(_batches.update().values(doubtful=sa.false()))
    with op.batch_alter_table("batches") as batches:
        batches.alter_column("doubtful", existing_type=sa.Boolean(), nullable=False)
        batches.create_foreign_key(op.f("fk_batches_copy_of"), "batches", ["copy_of"], ["id"])
        batches.drop_constraint(op.f("uq_batches_token"), type_="unique")
    if op.get_bind().dialect.name == "postgresql":
        # SQLite's integers are as wide as they need to be.
        for table, columns in _WIDER.items():
            for column in columns:
                op.alter_column(table, column, existing_type=sa.Integer(), type_=sa.BigInteger())
    op.create_index("ix_batches_token", "batches", ["token"], unique=True, sqlite_where=_OWN, postgresql_where=_OWN)
    op.create_index(op.f("ix_batches_copy_of"), "batches", ["copy_of"])
    op.create_index(op.f("ix_batches_provider_batch_id"), "batches", ["provider_batch_id"])
