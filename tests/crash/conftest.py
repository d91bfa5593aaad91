import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks._crash_world import Worlds, memory
from prefect_llm_tiers.ledger import open_ledger
from prefect_llm_tiers.providers.capabilities import Dialect
from tests.crash.cases import Case, Ledgers, Lived, live_through, undisturbed
from tests.postgres import PostgreSQL

AT_ONCE = 4
"""Cases that run at the same time: more than cores, since a process that waits for a disk or a reply uses none."""


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """One server and one nursery for all."""
    with Worlds() as made:
        yield made


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder in memory where there is one: processes are killed here, and never the machine."""
    with tempfile.TemporaryDirectory(prefix="crash-tests-", dir=memory()) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def ledgers(place: Path, request: pytest.FixtureRequest) -> Ledgers:
    """Make new ledgers, copied from one that was made once: migrations are not what is tested here."""
    folder = place / "ledgers"
    folder.mkdir()
    made: dict[str, Any] = {}

    def new(kind: str, name: str) -> str:
        if kind == "sqlite":
            if kind not in made:
                made[kind] = folder / "template.db"
                open_ledger(made[kind]).close()
            return str(shutil.copyfile(made[kind], folder / f"{name}.db"))
        server: PostgreSQL = request.getfixturevalue("postgres")
        if kind not in made:
            made[kind] = server.new_database()
            open_ledger(server.url(made[kind])).close()
        return server.url(server.new_database(how=f"TEMPLATE {made[kind]}"))

    return new


@pytest.fixture(scope="session")
def lived(
    request: pytest.FixtureRequest, worlds: Worlds, ledgers: Ledgers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Case], Lived]]:
    """Return what a case came to. All that were selected run side by side from the first question on."""
    # Another test may call a parameter of its own so.
    named = (_params(item).get("case") for item in request.session.items)
    wanted = [case for case in named if isinstance(case, Case)]
    # Databases are made here, one after the other: a template must have no other visitor.
    paths = {case: ledgers(case.ledger, f"case-{number}") for number, case in enumerate(wanted)}
    with ThreadPoolExecutor(AT_ONCE) as executor:
        running: dict[Case, Future[Lived]] = {
            case: executor.submit(live_through, case, worlds, paths[case], tmp_path_factory.mktemp("case"))
            for case in wanted
        }
        yield lambda case: running[case].result()
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def usual_cost(worlds: Worlds, ledgers: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return what the rows of a case cost where nobody dies and nothing goes wrong."""
    known: dict[tuple[Dialect, Any], Any] = {}

    def cost(case: Case) -> Any:
        what = (case.dialect, case.scenario.answered_by)
        if what not in known:
            folder: Path = tmp_path_factory.mktemp("undisturbed")
            known[what] = undisturbed(*what, worlds, ledgers("sqlite", f"undisturbed-{len(known)}"), folder)
        return known[what]

    return cost


def _params(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
