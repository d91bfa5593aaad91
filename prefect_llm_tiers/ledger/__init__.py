"""What survives: answers, money, batches and decisions, in one database.

The only room that knows SQLAlchemy and Alembic. `open_ledger` is the way in; what it returns keeps the
promises of `core.ports.Ledger`.
"""

from prefect_llm_tiers.ledger.opening import open_ledger
from prefect_llm_tiers.ledger.store import SqlLedger

__all__ = ["SqlLedger", "open_ledger"]
