"""The few places in which SQLite and PostgreSQL differ; every other module writes SQL for both.

One law holds in each of them: a ledger has one writer at a time. SQLite says it with BEGIN IMMEDIATE,
PostgreSQL with an advisory lock that the transaction holds. What a write reads is true until it commits.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import BindParameter, ColumnElement, Connection, Engine, Table, bindparam, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import Text

__all__ = [
    "BUSY_TIMEOUT_S",
    "SQLITE_PRAGMAS",
    "SUPPORTED",
    "gathered",
    "key_list",
    "keys_argument",
    "make_engine",
    "opening",
    "upsert",
    "writing",
]

SUPPORTED = ("sqlite",)
"""Backends that the contract suite has been run on."""

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

_WRITES = "ledger_writes"
_LOCK_NUMBER = 0x6C6C6D74  # "llmt": names the ledger's lock among PostgreSQL's advisory locks


def make_engine(url: URL) -> Engine:
    """Return an engine whose transactions begin as the law of one writer asks.

    Parameters are positional in every backend, so that rows can be handed to the driver as tuples, and
    hidden from the errors, because they hold answers.
    """
    if url.get_backend_name() == "sqlite":
        # The driver's own transaction control is off: it would begin later and weaker than asked.
        engine = create_engine(
            url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, hide_parameters=True, paramstyle="format", pool_pre_ping=True)
        event.listen(engine, "begin", _begin_postgresql)
    return engine


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Be the only one in this block, of all threads and processes that open a ledger in this folder.

    The folder is made if need be. SQLite's change to WAL mode answers "locked" at once, past every
    timeout, to whoever makes it in the same instant as another. The lock is on the folder: one on the
    file would, when given up, take away those that SQLite holds on it for another ledger of this process.

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
    return engine.execution_options(**{_WRITES: True})


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    for pragma in SQLITE_PRAGMAS:
        connection.execute(pragma)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(f"journal mode is {mode} where WAL was asked for; it needs a local disk")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first and then writes can fail with "locked" past every timeout.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})")


def upsert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that takes `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


class _KeyList(FunctionElement[Any]):
    """A JSON list of texts as a table of `key` (position from 0) and `value`."""

    name = "key_list"
    inherit_cache = True


@compiles(_KeyList, "sqlite")
def _key_list_sqlite(element: _KeyList, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(_KeyList, "postgresql")
def _key_list_postgresql(element: _KeyList, compiler: SQLCompiler, **kw: Any) -> str:
    listed = f"json_array_elements_text(CAST({compiler.process(element.clauses, **kw)} AS json))"
    # No value is in this text: the list is a parameter.
    return f"(SELECT ordinality - 1 AS key, value FROM {listed} WITH ORDINALITY AS t(value, ordinality))"  # noqa: S608


def key_list(name: str = "keys") -> TableValuedAlias:
    """Return a table of the keys bound to the parameter `name`, one parameter however many they are.

    An IN list would stop at SQLite's 32,766 variables and be parsed anew for every length.
    """
    bound: BindParameter[str] = bindparam(name, type_=Text)
    return _KeyList(bound).table_valued("key", "value", name="listed")


class _Gathered(FunctionElement[str]):
    """All values of a column as one JSON list."""

    name = "gathered"
    type = Text()
    inherit_cache = True


@compiles(_Gathered, "sqlite")
def _gathered_sqlite(element: _Gathered, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_group_array({compiler.process(element.clauses, **kw)})"


@compiles(_Gathered, "postgresql")
def _gathered_postgresql(element: _Gathered, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(json_agg({compiler.process(element.clauses, **kw)}) AS text)"


def gathered(column: ColumnElement[Any]) -> FunctionElement[str]:
    """Return a column as one JSON list: several in one SELECT keep their rows beside each other.

    A quarter of the time that fetching the rows takes, where tens of thousands are wanted at once.
    """
    return _Gathered(column)


def keys_argument(keys: Sequence[str]) -> str:
    """Return the value to bind for `key_list`."""
    return orjson.dumps(keys if isinstance(keys, list) else list(keys)).decode()
