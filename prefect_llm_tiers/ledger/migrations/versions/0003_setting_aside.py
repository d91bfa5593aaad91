"""An answer that one step run cannot read is set aside for that run alone.

Those that were set aside for everybody before stay so: who could read them nobody wrote down.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column."""
    op.add_column("setbacks", sa.Column("aside", _NUMBER))
