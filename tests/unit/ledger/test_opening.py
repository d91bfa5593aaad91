"""Opening a ledger: what is made, what is migrated, and what is refused before anything is paid."""

import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from prefect_llm_tiers.core.runs import Entry
from prefect_llm_tiers.errors import LedgerUnusable
from prefect_llm_tiers.ledger import open_ledger
from prefect_llm_tiers.ledger.schema import REVISION, VERSION_TABLE, metadata

AT = datetime(2026, 11, 1, 6, tzinfo=UTC)
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger's file, made and closed."""
    open_ledger(tmp_path / "ledger.db").close()
    return tmp_path / "ledger.db"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Do without root's right to write what nobody may write."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def entry(name: str, *, key_digest: str = "") -> Entry:
    """A step run to write."""
    return Entry(
        id=name,
        flow_run_id="f",
        step="s",
        key_digest=key_digest,
        requests=1,
        rows=1,
        provider="openai",
        account="org/project",
        deadline=None,
        entered_at=AT,
    )


def tables(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """What SQLite itself says of every table and index."""
    with closing(sqlite3.connect(file)) as connection:
        names = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()
        told = {
            "table": (
                "SELECT * FROM pragma_table_xinfo(?)",
                'SELECT "from", "table", "to" FROM pragma_foreign_key_list(?) ORDER BY 1',
                'SELECT name, "unique", origin, partial FROM pragma_index_list(?) ORDER BY origin, name',
                "SELECT wr, strict FROM pragma_table_list(?)",
            ),
            "index": ("SELECT * FROM pragma_index_xinfo(?)",),
        }
        return {
            name: [row for query in told[kind] for row in connection.execute(query, (name,))]
            for kind, name in names
            if name != VERSION_TABLE
        }


class TestMaking:
    """A ledger where there was none."""

    def test_missing_folders_are_made(self, tmp_path: Path) -> None:
        """A path is all it takes, its folders need not exist."""
        with closing(open_ledger(str(tmp_path / "a" / "b" / "ledger.db"))) as ledger:
            assert ledger.live_batches() == []
        assert (tmp_path / "a" / "b" / "ledger.db").is_file()

    def test_a_url_and_a_path_are_one_ledger(self, path: Path) -> None:
        """A SQLite URL, a string and a Path name the same file."""
        ids = set()
        for where in (path, str(path), f"sqlite:///{path}"):
            with closing(open_ledger(where)) as ledger:
                ids.add(ledger.ledger_id)
        assert len(ids) == 1

    def test_home_is_understood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`~` is the home folder."""
        monkeypatch.setenv("HOME", str(tmp_path))
        open_ledger("~/ledger.db").close()
        assert (tmp_path / "ledger.db").is_file()

    def test_odd_names(self, tmp_path: Path) -> None:
        """Blanks, percent signs, question marks and umlauts in a path are part of its name."""
        file = tmp_path / "50 % ö?mode=ro" / "ledger.db"
        open_ledger(file).close()
        assert file.is_file()

    def test_two_ledgers_are_two(self, tmp_path: Path) -> None:
        """Each ledger draws an id of its own: only batches that bear it are ever cancelled."""
        with closing(open_ledger(tmp_path / "a.db")) as a, closing(open_ledger(tmp_path / "b.db")) as b:
            assert a.ledger_id != b.ledger_id

    def test_commits_survive_a_power_cut(self, path: Path) -> None:
        """The file is in WAL mode, and each connection waits for the disk and checks foreign keys."""
        with closing(open_ledger(path)) as ledger, ledger._database.read() as connection:
            told = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}

    def test_processes_open_a_new_ledger_at_once(self, tmp_path: Path) -> None:
        """Of processes that find no ledger in the same instant one makes it, and all use that one."""
        program = (
            "import sys; from prefect_llm_tiers.ledger import open_ledger; import alembic.command;"
            "print('ready', flush=True); sys.stdin.read(1); print(open_ledger(sys.argv[1]).ledger_id)"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path / "new" / "ledger.db")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        ids = {process.communicate()[0] for process in started}
        assert [process.returncode for process in started] == [0] * 4
        assert len(ids) == 1

    def test_threads_open_new_ledgers_at_once(self, tmp_path: Path) -> None:
        """Threads that find no ledger in the same instant make one and share it, each time."""
        barrier = threading.Barrier(6)

        def opened(file: Path) -> str:
            barrier.wait()
            with closing(open_ledger(file)) as ledger:
                return ledger.ledger_id

        with ThreadPoolExecutor(6) as pool:
            for number in range(24):
                assert len(set(pool.map(opened, [tmp_path / f"{number}.db"] * 6))) == 1


class TestMigrating:
    """The schema, from the first table on."""

    def test_migrating_from_nothing_gives_the_schema(self, path: Path) -> None:
        """The revisions in a row and the tables as written down are the same, for Alembic and for SQLite."""
        engine = create_engine(f"sqlite:///{path}")
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
            )
            assert compare_metadata(context, metadata) == []
        engine.dispose()
        direct = create_engine(f"sqlite:///{path.with_name('direct.db')}")
        metadata.create_all(direct)
        direct.dispose()
        assert tables(path) == tables(path.with_name("direct.db"))

    def test_the_newest_revision_is_the_one_named(self) -> None:
        """`REVISION` is the head, or an old ledger would be taken for one that needs nothing."""
        config = Config()
        config.set_main_option("script_location", "prefect_llm_tiers.ledger:migrations")
        assert ScriptDirectory.from_config(config).get_heads() == [REVISION]

    def test_a_newer_ledger_is_refused(self, path: Path) -> None:
        """A ledger that a newer package wrote is left alone; the message names both revisions."""
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0999'")
        before = tables(path)
        with pytest.raises(LedgerUnusable, match=rf"revision 0999.*up to {REVISION}.*Upgrade") as refusal:
            open_ledger(path)
        assert str(path) in str(refusal.value)
        assert tables(path) == before

    def test_a_migration_happens_whole_or_not_at_all(self, tmp_path: Path) -> None:
        """Where a table is in the way, the file is left as it was found, and no revision is noted."""
        file = tmp_path / "other.db"
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE outcomes (mine TEXT)")
        before = tables(file)
        with pytest.raises(LedgerUnusable, match="already exists"):
            open_ledger(file)
        assert tables(file) == before

    def test_an_up_to_date_ledger_is_opened_without_alembic(self, path: Path) -> None:
        """Workers that open what others made do not pay for loading the migrations."""
        program = (
            "import sys; from prefect_llm_tiers.ledger import open_ledger; open_ledger(sys.argv[1]).close();"
            "sys.exit('alembic' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 0


class TestRefusing:
    """What cannot be a ledger is refused when it is opened, with the path, the cause and what to do."""

    def refused(self, where: Path | str, cause: str) -> str:
        """Open, which must fail for this cause, and return the message."""
        with pytest.raises(LedgerUnusable, match=cause) as refusal:
            open_ledger(where)
        return str(refusal.value)

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        """A file of something else is named, and not overwritten."""
        file = tmp_path / "notes.txt"
        file.write_text("Remember the milk. " * 100)
        message = self.refused(file, "not a database")
        assert str(file) in message
        assert "backup" in message
        assert file.read_text().startswith("Remember")

    def test_a_damaged_file(self, path: Path) -> None:
        """A ledger whose pages were overwritten is refused as damaged."""
        content = bytearray(path.read_bytes())
        content[100:8192] = b"\xff" * 8092
        path.write_bytes(content)
        assert "backup" in self.refused(path, "malformed")

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        """A folder is no ledger."""
        assert str(tmp_path) in self.refused(tmp_path, "unable to open")

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        """Where a file stands in the way of the folder, the message names the folder."""
        (tmp_path / "file").touch()
        assert str(tmp_path / "file") in self.refused(tmp_path / "file" / "ledger.db", "cannot be made or read")

    @pytest.mark.parametrize("mode", [0o444, 0o000], ids=["readonly", "unreadable"])
    def test_a_file_that_may_not_be_written(self, mode: int) -> None:
        """A ledger that this user may only read is refused at once, not when an answer was paid for."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o777)
            file = folder / "ledger.db"
            open_ledger(file).close()
            file.chmod(mode)
            with unprivileged():
                assert "write access" in self.refused(file, "readonly|unable to open")

    def test_a_folder_that_may_not_be_written(self) -> None:
        """A ledger in a folder without room for its log is refused at once."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            open_ledger(folder / "ledger.db").close()
            (folder / "ledger.db").chmod(0o666)
            folder.chmod(0o555)
            with unprivileged():
                assert "write access" in self.refused(folder / "ledger.db", "readonly|unable to open")
            folder.chmod(0o700)

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
    def test_a_ledger_in_memory(self, url: str) -> None:
        """What is gone with the process may not hold what was paid for."""
        self.refused(url, "would not outlive the process")

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql+psycopg://ledger:hunter2@127.0.0.1:1/ledger",
            "mysql://ledger:hunter2@127.0.0.1/ledger",
            "postgresql://ledger:hunter2@[::1/ledger",
            "postgresql://ledger:hunter2@host:port/ledger",
            "hunter2://",
        ],
    )
    def test_a_url_is_refused_without_its_password(self, url: str) -> None:
        """Neither the message nor what it was raised from repeats a password."""
        with pytest.raises(LedgerUnusable) as refusal:
            open_ledger(url)
        assert ":hunter2" not in str(refusal.value)
        error: BaseException | None = refusal.value
        while error is not None:
            assert ":hunter2" not in repr(error)
            error = error.__cause__


class TestFailing:
    """What happens when the disk or another process says no in the middle."""

    def test_a_full_disk_leaves_nothing_behind(self, path: Path) -> None:
        """A write that finds no room raises, is not half there, and works once there is room."""
        with closing(open_ledger(path)) as ledger:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            try:
                with pytest.raises(LedgerUnusable, match=r"full|disk I/O") as refusal:
                    ledger.enter(entry("r", key_digest="x" * 1_000_000), stamp=AT)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert "Make room" in str(refusal.value)
            assert "xxx" not in str(refusal.value)
            assert ledger.step_run("r") is None
            assert ledger.events("step_run", "r") == []
            assert ledger.enter(entry("r"), stamp=AT).entries == 1

    def test_errors_hold_no_values(self, path: Path) -> None:
        """What SQLAlchemy says of a failed statement, down the chain of causes, is without its parameters."""
        with closing(open_ledger(path)) as ledger:
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("DROP TABLE step_runs")
            with pytest.raises(LedgerUnusable) as refusal:
                ledger.enter(entry("r", key_digest="an answer, say"), stamp=AT)
        error: BaseException | None = refusal.value
        while error is not None:
            assert "an answer" not in str(error)
            error = error.__cause__

    def test_it_waits_for_another_process(self, path: Path) -> None:
        """While another process writes, a reader sees what was committed, and a writer's turn comes."""
        with closing(open_ledger(path)) as ledger, closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert ledger.step_run("r") is None
            other.execute("ROLLBACK")
            assert ledger.enter(entry("r"), stamp=AT).entries == 1
