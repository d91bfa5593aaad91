"""How each backend is reached: engines whose transactions keep the law of one writer.

A ledger has one writer at a time. SQLite says it with BEGIN IMMEDIATE, PostgreSQL with an advisory lock that
the transaction holds. What a write reads is true until it commits, and a commit that returned is on the disk.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL
from sqlalchemy.pool import ConnectionPoolEntry

__all__ = [
    "BUSY_TIMEOUT_S",
    "POSTGRESQL",
    "SQLITE_PRAGMAS",
    "SUPPORTED",
    "check_fit",
    "check_references",
    "make_engine",
    "migrating",
    "opening",
    "writing",
]

POSTGRESQL = "postgresql+psycopg"
"""The one driver for PostgreSQL, whichever a URL leaves open."""

SUPPORTED = ("sqlite", "sqlite+pysqlite", POSTGRESQL)
"""Backends and drivers that the contract suite has been run on."""

BUSY_TIMEOUT_S = 30
"""How long a write waits for another process's; the longest one is a settle of 100,000 rows, about 1 s."""

SQLITE_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}",
    # FULL: a commit that returned survives a power cut. NORMAL would lose the last ones in WAL mode.
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -65536",
    # 16 MB between checkpoints in place of 4: a group of 2,000 answers writes about 1.5 MB.
    "PRAGMA wal_autocheckpoint = 4000",
)
"""What each connection to SQLite is told first; WAL is asked for after, and kept by the file."""

_POSTGRESQL_DEFAULTS = {
    "application_name": "prefect-llm-tiers",
    "client_encoding": "utf8",
    "connect_timeout": "10",
    # A server that went away without a word is noticed within two minutes, and not never.
    "keepalives_idle": "60",
    "keepalives_interval": "15",
    "keepalives_count": "4",
}
"""What a connection to PostgreSQL is made with where the URL's query does not say otherwise."""

_LOCK_NUMBER = 0x6C6C6D74  # "llmt": names the ledger's lock among PostgreSQL's advisory locks

# Every large read looks up a list of keys by index, however many rows there are beside it; written so, joined so.
# A planner that has not counted a table yet, as on the first day of a ledger, would read and hash all of it, for a
# hundred keys at a time.
_BY_INDEX = """
SET LOCAL join_collapse_limit = 1;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL jit = off
"""

# One round trip. A server may be set up to commit without waiting for its disk; a stricter setting stays.
_BEGIN_WRITE = f"""{_BY_INDEX};
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S}s';
SELECT pg_advisory_xact_lock({_LOCK_NUMBER})
"""

_WRITES = "ledger_writes"
_MIGRATES = "ledger_migrates"


def make_engine(url: URL) -> Engine:
    """Return an engine whose transactions begin as the law of one writer asks.

    Parameters are positional in every backend, so that rows can be handed to the driver as tuples, and
    hidden from the errors, because they hold answers.

    Raises:
        ImportError: The backend's driver is not installed.
    """
    if url.get_backend_name() == "sqlite":
        # The driver's own transaction control is off: it would begin later and weaker than asked.
        engine = create_engine(
            url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(
            url,
            hide_parameters=True,
            paramstyle="format",
            pool_pre_ping=True,
            # Of a read: one state of the ledger throughout, as SQLite's snapshot gives it.
            isolation_level="REPEATABLE READ",
            connect_args={name: value for name, value in _POSTGRESQL_DEFAULTS.items() if name not in url.query},
        )
        event.listen(engine, "begin", _begin_postgresql)
    return engine


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Be the only one in this block, of all threads and processes that open a ledger in this folder.

    The folder is made if need be. SQLite's change to WAL mode answers "locked" at once, past every
    timeout, to whoever makes it in the same instant as another. The lock is on the folder: one on the
    file would, when given up, take away those that SQLite holds on it for another ledger of this process.
    PostgreSQL needs none: whoever migrates holds the writer's lock.

    Raises:
        OSError: The folder cannot be made or read.
    """
    if url.get_backend_name() != "sqlite":
        yield
        return
    folder = Path(str(url.database)).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def writing(engine: Engine) -> Engine:
    """Return the same engine with transactions that write: each is the only one until it commits."""
    options: dict[str, Any] = {_WRITES: True}
    if engine.dialect.name == "postgresql":
        # The state to write on is the one after the lock was got; a snapshot would be of before.
        options["isolation_level"] = "READ COMMITTED"
    return engine.execution_options(**options)


def migrating(engine: Engine) -> Engine:
    """Return the same engine with transactions that write and in which tables can be made anew.

    SQLite changes a constraint by copying the table, and would refuse to drop the old one while rows refer
    to it. Whether they do can be left unchecked for a whole connection only, from before its transaction.
    """
    return writing(engine).execution_options(**{_MIGRATES: True})


def check_references(connection: Connection) -> None:
    """Make sure that a migration left no row that refers to nothing.

    Raises:
        sqlalchemy.exc.IntegrityError: It did.
    """
    if connection.dialect.name == "sqlite":
        astray = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if astray:
            cause = sqlite3.IntegrityError(f"{len(astray)} rows refer to nothing, one of them in {astray[0][0]}")
            raise exc.IntegrityError("PRAGMA foreign_key_check", None, cause)


def check_fit(connection: Connection) -> str | None:
    """Return why a database cannot hold a ledger, whatever its tables; None where it can."""
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            return f"it keeps text in {encoding}, which not every answer fits. Make one with ENCODING 'UTF8'."
    return None


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    for pragma in SQLITE_PRAGMAS:
        connection.execute(pragma)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(f"journal mode is {mode} where WAL was asked for; it needs a local disk")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_MIGRATES):
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
    # A deferred transaction that reads first and then writes can fail with "locked" past every timeout.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITES) else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql(_BEGIN_WRITE if writes else _BY_INDEX)
