"""PostgreSQL as the ledger: what is not SQLite's, against a real server."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, text

from prefect_llm_tiers.core.batches import BatchState
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.runs import Entry, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import LedgerUnusable
from prefect_llm_tiers.ledger import SqlLedger, engines, open_ledger
from prefect_llm_tiers.ledger.database import Contradiction
from prefect_llm_tiers.ledger.schema import events
from prefect_llm_tiers.ledger.texts import encodable, for_postgresql, from_postgresql
from tests.postgres import PostgreSQL

AT = datetime(2026, 11, 1, 6, tzinfo=UTC)
UNTIL = datetime(2026, 11, 2, 6, tzinfo=UTC)
LOCK = f"SELECT pg_advisory_lock({engines._LOCK_NUMBER})"


@pytest.fixture
def where(postgres: PostgreSQL) -> str:
    """The URL of an empty ledger."""
    return postgres.empty_ledger()


@pytest.fixture
def ledger(where: str) -> Iterator[SqlLedger]:
    """An empty ledger."""
    with closing(open_ledger(where)) as opened:
        yield opened


def enter(ledger: SqlLedger, name: str = "r", *, step: str = "s") -> StepRun:
    """A step run to write."""
    entry = Entry(
        id=name,
        flow_run_id="f",
        step=step,
        key_digest="",
        requests=1,
        rows=1,
        provider="openai",
        account="org",
        deadline=None,
        entered_at=AT,
    )
    return ledger.enter(entry, stamp=AT)


class TestTexts:
    """What PostgreSQL cannot keep in a text comes back all the same."""

    @given(answer=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x00\x10000")))
    def test_a_text_comes_back_as_it_was(self, answer: str) -> None:
        """What is written holds no NUL, is the text itself where nothing must be escaped, and can be read back."""
        written = for_postgresql(answer)
        assert "\x00" not in written
        assert from_postgresql(written) == answer
        if not set(answer) & {"\x00", "\x10"}:
            assert written is answer

    @given(answer=st.text(st.characters(categories=["Cs", "L"]) | st.sampled_from("\x00?")))
    def test_a_half_pair_becomes_a_question_mark(self, answer: str) -> None:
        """Every text can be encoded after, as long as before, and is itself where it could be before."""
        kept = encodable(answer)
        assert len(kept) == len(answer)
        assert kept.encode().decode() == kept
        assert all(other in {one, "?"} for one, other in zip(answer, kept, strict=True))

    def test_a_nul_costs_nothing(self, ledger: SqlLedger) -> None:
        """NUL and half pairs, in any text a provider tells, lose neither their row nor those beside it."""
        run = enter(ledger)
        lease = ledger.acquire("step:r", owner="one", now=AT, until=UNTIL)
        assert lease is not None
        batch = ledger.plan_batch(
            ["a", "b", "c", "d"],
            run=run,
            provider="openai",
            account="org",
            model="m",
            endpoint="/v1/responses",
            lease=lease,
            at=AT,
        )
        lines = [
            Outcome(key="a", kind=OutcomeKind.ANSWER, text="\x00\x10 0 \ud83d", billing=Billing.BILLED),
            Outcome(key="b", kind=OutcomeKind.ANSWER, text="beside it", provider_request_id="req\x00\udc00"),
            Outcome(key="c", kind=OutcomeKind.RETRY, reason="nul\x00\ud800"),
            Outcome(key="d", kind=OutcomeKind.FAILURE, reason="\x10\x00"),
        ]
        assert ledger.record_results(batch, lines, at=AT, stamp=AT).settled == 3
        found = ledger.answers(["a", "b"], step_run_id="r")
        assert [one and one.text for one in found] == ["\x00\x10 0 ?", "beside it"]
        standing = ledger.stand(["c", "d"], step_run_id="r", not_before=None, now=None)
        assert [one.reason for one in standing] == ["nul\x00?", "\x10\x00"]
        assert ledger.failures("r") == {"\x10\x00": 1}
        ledger.advance_batch(batch, BatchState.DISCARDED, lease=lease, at=AT, detail="told\x00\ud83d")
        assert ledger.events("batch", str(batch.id))[-1].detail == "told\x00?"


class TestOpening:
    """A database that is there, and whatever may be wrong with it."""

    def test_processes_open_a_new_ledger_at_once(self, postgres: PostgreSQL) -> None:
        """Of processes that find no tables in the same instant one makes them, and all use that ledger."""
        program = (
            "import sys; from prefect_llm_tiers.ledger import open_ledger; import alembic.command;"
            "print('ready', flush=True); sys.stdin.read(1); print(open_ledger(sys.argv[1]).ledger_id)"
        )
        url = postgres.url(postgres.new_database())
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        ids = {process.communicate("\n")[0] for process in started}
        assert [process.returncode for process in started] == [0] * 4
        assert len(ids) == 1

    def test_threads_open_a_new_ledger_at_once(self, postgres: PostgreSQL) -> None:
        """Threads of one process share the ledger that one of them makes."""
        url = postgres.url(postgres.new_database())
        barrier = threading.Barrier(4)

        def opened(_number: int) -> str:
            barrier.wait()
            with closing(open_ledger(url)) as ledger:
                return ledger.ledger_id

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(opened, range(4)))) == 1

    def test_a_schema_holds_a_ledger(self, postgres: PostgreSQL) -> None:
        """Two ledgers live in two schemas of one database, and neither sees the other's tables."""
        name = postgres.new_database()
        ids = set()
        for schema in ("one", "two"):
            postgres.run(f"CREATE SCHEMA {schema}", database=name)
            with closing(open_ledger(postgres.url(name, more=f"&options=-csearch_path%3D{schema}"))) as ledger:
                ids.add(ledger.ledger_id)
                enter(ledger)
        assert len(ids) == 2

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
    def test_the_schemes_of_a_url(self, where: str, scheme: str) -> None:
        """The driver need not be named, and the older scheme is understood."""
        with closing(open_ledger(where.replace("postgresql", scheme, 1))) as ledger:
            assert enter(ledger).entries == 1

    def test_another_driver_is_refused(self) -> None:
        """A driver that the contract was not run on is refused, and those that work are named."""
        with pytest.raises(LedgerUnusable, match=r"not supported.*postgresql\+psycopg"):
            open_ledger("postgresql+asyncpg://localhost/ledger")

    def test_a_missing_driver(self) -> None:
        """Without the driver the message says what to install."""
        program = (
            "import sys; sys.modules['psycopg'] = None\n"
            "from prefect_llm_tiers.ledger import open_ledger\n"
            "open_ledger('postgresql://somebody:hunter2@localhost/ledger')"
        )
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
        assert "LedgerUnusable" in told
        assert "pip install 'prefect-llm-tiers[postgresql]'" in told
        assert "hunter2" not in told

    def test_no_such_database(self, postgres: PostgreSQL) -> None:
        """A database is not made: the message says so."""
        with pytest.raises(LedgerUnusable, match=r"nowhere.*does not exist.*Make that database"):
            open_ledger(postgres.url("nowhere"))

    def test_a_database_that_cannot_keep_every_answer(self, postgres: PostgreSQL) -> None:
        """Another encoding than UTF-8 is refused before an answer is paid for that does not fit it."""
        name = postgres.new_database(how="TEMPLATE template0 ENCODING 'SQL_ASCII'")
        with pytest.raises(LedgerUnusable, match=r"keeps text in SQL_ASCII.*ENCODING 'UTF8'"):
            open_ledger(postgres.url(name))

    def test_a_user_without_rights(self, postgres: PostgreSQL) -> None:
        """A user who may not make tables is told to be given the right."""
        name = postgres.new_database()
        postgres.run("CREATE ROLE reader LOGIN")
        with pytest.raises(LedgerUnusable, match="right to make and write tables"):
            open_ledger(postgres.url(name, user="reader"))

    def test_a_replica(self, postgres: PostgreSQL) -> None:
        """A ledger that can only be read is refused when it is opened, not when an answer was paid for."""
        name = postgres.new_database()
        open_ledger(postgres.url(name)).close()
        postgres.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(LedgerUnusable, match="name the primary"):
            open_ledger(postgres.url(name))

    def test_tables_in_the_way(self, postgres: PostgreSQL) -> None:
        """Another application's table is left as it is, and so is everything else."""
        name = postgres.new_database()
        postgres.run("CREATE TABLE outcomes (mine TEXT)", database=name)
        with pytest.raises(LedgerUnusable, match="a database or a schema of its own"):
            open_ledger(postgres.url(name))
        assert postgres.run("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=name) == [
            ("outcomes",)
        ]


class TestTransactions:
    """One writer, durable commits, and connections that get lost."""

    def test_a_writer_waits_for_another(
        self, ledger: SqlLedger, postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A write that waits too long for another's raises and says why; reads go on, and so does the ledger."""
        enter(ledger)
        impatient = engines._BEGIN_WRITE.replace(f"'{engines.BUSY_TIMEOUT_S}s'", "'20ms'")
        assert impatient != engines._BEGIN_WRITE
        monkeypatch.setattr(engines, "_BEGIN_WRITE", impatient)
        with ledger._database._engine.connect() as other:
            other.exec_driver_sql(LOCK)
            with pytest.raises(LedgerUnusable, match="Another process was writing for over 30 s"):
                enter(ledger)
            assert ledger.step_run("r") is not None
            other.exec_driver_sql(LOCK.replace("_lock", "_unlock"))
        assert enter(ledger).entries == 2

    def test_a_connection_lost_in_the_middle(self, ledger: SqlLedger, postgres: PostgreSQL) -> None:
        """Nothing of the change is kept, the message says so, and the next use connects again."""
        with pytest.raises(LedgerUnusable, match="Nothing of this change was kept") as refusal:  # noqa: PT012, SIM117
            with ledger._database.write() as connection:
                add_event(connection)
                cut(connection, postgres)
                add_event(connection)
        assert "Check that it can be reached" in str(refusal.value)
        assert ledger.events("batch", "1") == []
        assert enter(ledger).entries == 1

    def test_a_connection_lost_in_the_commit(self, ledger: SqlLedger, postgres: PostgreSQL) -> None:
        """Nobody can know then whether the change was kept, and the message claims neither."""
        with pytest.raises(LedgerUnusable, match="kept whole or not at all") as refusal:  # noqa: PT012, SIM117
            with ledger._database.write() as connection:
                add_event(connection)
                cut(connection, postgres)
        assert "Nothing of this change" not in str(refusal.value)
        assert enter(ledger).entries == 1

    def test_a_connection_lost_between_two_uses(self, ledger: SqlLedger, postgres: PostgreSQL) -> None:
        """A server that was started anew meanwhile is not noticed."""
        enter(ledger)
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'prefect-llm-tiers'"
        )
        assert enter(ledger).entries == 2

    @pytest.mark.parametrize(("set_up", "used"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
    def test_a_commit_waits_for_the_disk(self, postgres: PostgreSQL, set_up: str, used: str) -> None:
        """A server that is set up to commit before its disk has it does not do so here; a stricter one stays so."""
        name = postgres.new_database()
        postgres.run(f"ALTER DATABASE {name} SET synchronous_commit = {set_up}")
        with closing(open_ledger(postgres.url(name))) as ledger, ledger._database.write() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == used

    def test_a_read_sees_one_state(self, ledger: SqlLedger) -> None:
        """What is written while a read goes on is not seen by it."""
        with ledger._database.read() as connection:
            counted = text("SELECT count(*) FROM step_runs")
            assert connection.execute(counted).scalar_one() == 0
            enter(ledger)
            assert connection.execute(counted).scalar_one() == 0
        assert ledger.step_run("r") is not None

    def test_errors_hold_no_values(self, ledger: SqlLedger) -> None:
        """The row that PostgreSQL adds to what it refuses is in no message, down the chain of causes."""
        with pytest.raises(Contradiction, match="null value in column") as refusal:  # noqa: SIM117
            with ledger._database.write() as connection:
                connection.execute(
                    text("INSERT INTO events (subject, subject_id, at) VALUES (:said, 'x', 1)"), {"said": "an answer"}
                )
        error: BaseException | None = refusal.value
        while error is not None:
            assert "an answer" not in repr(error)
            assert "an answer" not in str(error)
            error = error.__cause__

    def test_counts_of_any_size(self, ledger: SqlLedger) -> None:
        """A number of tokens beyond 32 bits is kept, and so is their sum."""
        run = enter(ledger)
        lease = ledger.acquire("step:r", owner="one", now=AT, until=UNTIL)
        assert lease is not None
        begun = ledger.begin_calls(["a", "b"], run=run, tier=Tier.FLEX, lease=lease, at=AT, not_before=None)
        many = Usage(input_tokens=1 << 40)
        told = [
            (attempt, Outcome(key=key, kind=OutcomeKind.ANSWER, text="", usage=many))
            for attempt, key in zip(begun, "ab", strict=True)
            if attempt is not None
        ]
        ledger.record_calls(told, at=AT, stamp=AT)
        (line,) = ledger.spending("r")
        assert line.usage == Usage(input_tokens=2 << 40)
        assert type(line.usage.input_tokens) is int


def add_event(connection: Connection) -> None:
    """Write something."""
    connection.execute(insert(events).values(subject="batch", subject_id="1", after="planned", at=AT))


def cut(connection: Connection, postgres: PostgreSQL) -> None:
    """Cut a connection from the server's side."""
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    postgres.run(f"SELECT pg_terminate_backend({pid}, 5000)")
