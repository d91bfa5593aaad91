"""Opening a ledger: found or made, migrated to this package's schema, and proven writable.

What cannot be written must be known before anything is paid for, so opening writes.
"""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from threading import Lock

from sqlalchemy import Connection, column, exc, insert, inspect, select, table, update
from sqlalchemy.engine import URL, make_url

from prefect_llm_tiers.errors import LedgerUnusable
from prefect_llm_tiers.ledger import engines
from prefect_llm_tiers.ledger.database import Database, named
from prefect_llm_tiers.ledger.schema import REVISION, VERSION_TABLE, meta
from prefect_llm_tiers.ledger.store import SqlLedger

__all__ = ["open_ledger"]

_MIGRATIONS = "prefect_llm_tiers.ledger:migrations"

_migrating = Lock()
"""Alembic keeps its environment in module globals: one migration at a time in a process."""


def open_ledger(where: str | PathLike[str], *, make: bool = True) -> SqlLedger:
    """Open a ledger, making it if there is none and migrating it to this package's schema.

    Several processes may open one new ledger at once: one makes it, the others wait and find it made.

    Args:
        where: Path of a SQLite file on a disk of this machine (`~` is the home folder, missing folders
            are made), or a URL such as `sqlite:////srv/ledger.db` or `postgresql://user@host/database`, which
            takes the extra `prefect-llm-tiers[postgresql]`.
        make: Whether a file that is not there is made. An empty ledger has nothing to tell to one who only looks.

    A database on a server must be there already; its tables are made. Give a ledger a database of its own, or
    a schema: `postgresql://host/database?options=-csearch_path%3Dschema`.

    Raises:
        LedgerUnusable: It cannot be reached or written, is no ledger, or was written by a newer version
            of this package. A password in a URL is not repeated.
    """
    url = _parsed(where)
    if not make and url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise LedgerUnusable(
            f"There is no ledger at {named(url)}. Nothing was made or looked at. Name the one that the steps use: the "
            "path or URL in their ledger=, in their LedgerDatabase block, or in "
            "PREFECT_INTEGRATIONS_LLM_TIERS_LEDGER."
        )
    try:
        engine = engines.make_engine(url)
    except ImportError as error:
        raise LedgerUnusable(
            f"The ledger {named(url)} needs the driver for PostgreSQL, which cannot be loaded here ({error}). "
            "Run pip install 'prefect-llm-tiers[postgresql]'."
        ) from error
    database = Database(engine)
    try:
        with _alone(url):
            with database.read() as connection:
                _check_fit(connection, database.name)
                revision = _revision(connection)
            if revision != REVISION:
                with database.migrate() as connection:
                    _migrate(connection, database.name)
        with database.write() as connection:
            ledger_id = connection.execute(select(meta.c.ledger_id)).scalar_one_or_none()
            if ledger_id is None:
                ledger_id = secrets.token_hex(16)
                connection.execute(insert(meta).values(id=1, ledger_id=ledger_id))
            # In WAL mode the write lock is given to one who may only read the file; a write is not.
            connection.execute(update(meta).values(ledger_id=ledger_id))
    except BaseException:
        database.close()
        raise
    return SqlLedger(database, ledger_id)


def _parsed(where: str | PathLike[str]) -> URL:
    if isinstance(where, PathLike) or "://" not in where:
        return URL.create("sqlite", database=str(Path(where).expanduser().absolute()))
    try:
        url = make_url(where)
    except (exc.ArgumentError, ValueError):
        # Without the cause: it may repeat the URL, and the URL may hold a password.
        raise LedgerUnusable(
            "The ledger's URL cannot be read. Write it as backend://user:password@host/database with special "
            "characters percent-encoded, or give the path of a file."
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername=engines.POSTGRESQL)
    if url.drivername not in engines.SUPPORTED:
        raise LedgerUnusable(
            f"The ledger {named(url)} is on a backend that is not supported. Give the path of a SQLite "
            f"file, or a URL that begins with one of: {', '.join(engines.SUPPORTED)}."
        )
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise LedgerUnusable(
            f"The ledger {named(url)} would not outlive the process, and what it holds is paid for. Give the "
            "path of a file."
        )
    return url


@contextmanager
def _alone(url: URL) -> Iterator[None]:
    """Be the only one who opens a ledger here."""
    with ExitStack() as stack:
        try:
            stack.enter_context(engines.opening(url))
        except OSError as error:
            raise LedgerUnusable(
                f"The ledger {named(url)} cannot be opened: its folder cannot be made or read ({error.strerror}: "
                f"{error.filename}). Name a path whose folder this user may write to."
            ) from error
        yield


def _check_fit(connection: Connection, name: str) -> None:
    unfit = engines.check_fit(connection)
    if unfit is not None:
        raise LedgerUnusable(f"The ledger {name} cannot be in that database: {unfit}")


def _revision(connection: Connection) -> str | None:
    """Return the revision that the schema is at; None where no ledger was made."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar_one_or_none()


def _migrate(connection: Connection, name: str) -> None:
    """Bring the schema to `REVISION` in the caller's transaction, unless another process just did."""
    revision = _revision(connection)
    if revision == REVISION:
        return
    # Loaded here: a process that opens an up-to-date ledger, which is nearly all of them, does without.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", _MIGRATIONS)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise LedgerUnusable(
            f"The ledger {name} has schema revision {revision}; this version of prefect-llm-tiers knows those "
            f"up to {REVISION}. A newer one wrote it. Nothing was changed. Upgrade prefect-llm-tiers."
        )
    with _migrating:
        command.upgrade(config, "head")
    engines.check_references(connection)
