"""One database: its transactions, its errors in the user's words, and who may decide."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, Table, exc, func, insert, select
from sqlalchemy.engine import URL

from prefect_llm_tiers.core.runs import Lease, StepRun, StepRunState
from prefect_llm_tiers.errors import IllegalTransition, LeaseLost, LedgerError, LedgerUnusable
from prefect_llm_tiers.ledger import engines
from prefect_llm_tiers.ledger.refusals import cause, unusable
from prefect_llm_tiers.ledger.schema import leases, step_runs
from prefect_llm_tiers.ledger.texts import for_postgresql

__all__ = ["Contradiction", "Database", "current", "named"]


def named(url: URL) -> str:
    """Return what to call a database in a message: a path, or a URL without its password."""
    if url.get_backend_name() == "sqlite" and url.database:
        return url.database
    return url.render_as_string(hide_password=True)


class Contradiction(LedgerError):
    """A row that a constraint forbids: two answers that count, an attempt that nobody made."""


class Database:
    """Transactions on one database, for several threads and beside other processes.

    A transaction that raises leaves nothing behind. Whatever the database itself refuses becomes
    `LedgerUnusable`.
    """

    def __init__(self, engine: Engine) -> None:
        self.name = named(engine.url)
        self._engine = engine
        self._writing_engine = engines.writing(engine)
        self.kept = for_postgresql if engine.dialect.name == "postgresql" else None
        """How a text must be written by `append`; None where it is kept as it is."""
        # Waiting here is fair and wakes at once; SQLite's busy handler sleeps up to 100 ms at a time.
        self._writer = Lock()
        self._bulk: dict[str, str] = {}
        self._closed = False

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the ledger throughout."""
        with self._transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that is the only one writing; it is on the disk when the block ends."""
        with self._writer, self._transaction(self._writing_engine) as connection:
            yield connection

    @contextmanager
    def migrate(self) -> Iterator[Connection]:
        """Open a write transaction in which tables can be made anew, without their rows' references in the way.

        Its connection is closed after: references are checked again in every later one.
        """
        with self._writer, self._transaction(engines.migrating(self._engine)) as connection:
            yield connection
        self._engine.dispose()

    @contextmanager
    def decide(self, lease: Lease) -> Iterator[Connection]:
        """Open a write transaction in which `lease` is still held.

        A lease past its end that nobody took is still held: only a taker, who brings the time along,
        judges that. Owner and epoch are compared here, inside the transaction, so that a takeover
        either came before and is seen, or comes after and sees the decision.

        Raises:
            LeaseLost: Another one holds it, or it was given back.
        """
        with self.write() as connection:
            row = connection.execute(select(leases).where(leases.c.name == lease.name)).one_or_none()
            if row is None or row.owner != lease.owner or row.epoch != lease.epoch:
                if row is None or row.owner is None:
                    now = "nobody holds it"
                else:
                    now = f"{row.owner!r} holds it in epoch {row.epoch} until {row.until:%Y-%m-%d %H:%M:%SZ}"
                raise LeaseLost(
                    f"Lease {lease.name!r} of {lease.owner!r}, epoch {lease.epoch}, is lost: {now}. "
                    "Nothing was changed. Stop deciding; what came back may still be recorded."
                )
            yield connection

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        if self._closed:
            raise LedgerUnusable(f"The ledger {self.name} was closed; open it again with open_ledger.")
        committing = False
        try:
            with engine.connect() as connection, connection.begin() as transaction:
                yield connection
                committing = True
                transaction.commit()
        except exc.IntegrityError as error:
            raise Contradiction(
                f"The ledger {self.name} refused a change that contradicts what it holds ({cause(error)}). "
                "Nothing of it was kept. This is a defect of the caller: report it."
            ) from error
        except (exc.DBAPIError, exc.TimeoutError) as error:
            raise unusable(self.name, error, committing=committing) from error

    def append(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows whose values stand in the order of the table's columns after its `id`.

        The way past SQLAlchemy's work for each row, for the table that grows by every answer: no type
        is converted here, so instants come as microseconds, money as text, and texts as `kept` returns them.
        """
        sql = self._bulk.get(table.name)
        if sql is None:
            sql = self._bulk[table.name] = str(
                insert(table).compile(
                    dialect=connection.dialect,
                    column_keys=[column.name for column in table.c if column.name != "id"],
                )
            )
        connection.exec_driver_sql(sql, list(rows))

    def next_id(self, connection: Connection, table: Table) -> int:
        """Return the first free id of a table, which stays free until this write transaction ends."""
        highest: int | None = connection.execute(select(func.max(table.c.id))).scalar_one()
        return (highest or 0) + 1

    def close(self) -> None:
        """Close the connections; nothing can be read or written after."""
        self._closed = True
        self._engine.dispose()


def current(connection: Connection, run: StepRun, *states: StepRunState) -> int:
    """Return a step run's number, having made sure that the caller decided on what is still true.

    Args:
        connection: A write transaction.
        run: The step run as the caller read it.
        *states: States in which the decision is allowed; any, if none is named.

    Raises:
        IllegalTransition: It has changed since, or its state forbids the decision.
        LedgerError: There is no such step run.
    """
    row = connection.execute(
        select(step_runs.c.number, step_runs.c.version, step_runs.c.state).where(step_runs.c.id == run.id)
    ).one_or_none()
    if row is None:
        raise LedgerError(f"This ledger knows no step run {run.id!r}; enter it first, or open the ledger it is in.")
    if row.version != run.version:
        raise IllegalTransition(
            f"Step run {run.id} is at version {row.version} ({row.state}); this was decided on version "
            f"{run.version} ({run.state}). Nothing was changed. Read it again and decide anew."
        )
    if states and row.state not in states:
        raise IllegalTransition(
            f"Step run {run.id} is {row.state}; this needs it to be {' or '.join(states)}. "
            "Nothing was changed. Reopen it with finish(RUNNING) first."
        )
    number: int = row.number
    return number
