"""The ledger that the rest of the package sees: every subject over one database."""

from prefect_llm_tiers.ledger.account import Account
from prefect_llm_tiers.ledger.batches import Batches
from prefect_llm_tiers.ledger.calls import Calls
from prefect_llm_tiers.ledger.copies import Copies
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.harvest import Harvest, Packed
from prefect_llm_tiers.ledger.leases import Leases
from prefect_llm_tiers.ledger.life import BatchLife
from prefect_llm_tiers.ledger.observed import Observed
from prefect_llm_tiers.ledger.requests import Requests
from prefect_llm_tiers.ledger.step_runs import StepRuns

__all__ = ["SqlLedger"]


class SqlLedger(Leases, StepRuns, Requests, Calls, Batches, BatchLife, Copies, Harvest, Account, Observed):
    """A ledger in a database; the contract is `core.ports.Ledger`.

    One value may be used by several threads, and one database by several processes. A file must be on
    a disk of this machine: SQLite's shared memory does not reach across a network.

    Args:
        database: Migrated and ready.
        ledger_id: What it was given when it was made.
    """

    def __init__(self, database: Database, ledger_id: str) -> None:
        self._database = database
        self._ledger_id = ledger_id
        self._harvested: dict[int, Packed] = {}

    @property
    def ledger_id(self) -> str:
        """The random id drawn when the ledger was made."""
        return self._ledger_id

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
