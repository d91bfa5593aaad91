"""What Alembic runs: the revisions, on the connection and in the transaction of whoever opens the ledger.

All of them happen or none does, and beside other processes that open the same new ledger only one of
them migrates it: the transaction holds the write lock.
"""

from alembic import context

from prefect_llm_tiers.ledger.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite's DDL is transactional where the driver's own transaction control is off, as here.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
