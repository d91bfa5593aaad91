"""The package as a whole: what a bare import costs, what it offers, and what its tests may reach."""

import ast
import inspect
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import prefect_llm_tiers
from benchmarks.imports import heavy, loaded_by
from prefect_llm_tiers import errors

CHECKOUT = Path(__file__).parents[2]


def test_a_bare_import_loads_nothing_heavy() -> None:
    """Importing the package loads no SDK, no polars, no SQLAlchemy and nothing of Prefect."""
    assert not heavy(loaded_by("import prefect_llm_tiers"))


def test_looking_at_the_names_loads_nothing_heavy() -> None:
    """Listing the public names loads none of them."""
    assert not heavy(loaded_by("import prefect_llm_tiers; dir(prefect_llm_tiers)"))


def test_heavy_packages_are_seen_when_loaded() -> None:
    """The two tests above can fail: a heavy package that a statement loads is among what it added."""
    assert heavy(loaded_by("import orjson")) == {"orjson"}


@pytest.mark.parametrize("name", sorted(set(prefect_llm_tiers.__all__) - {"__version__"}))
def test_every_public_name_is_there(name: str) -> None:
    """Each name of `__all__` loads from its module, and is the thing of that name."""
    thing = getattr(prefect_llm_tiers, name)
    assert thing.__name__ == name
    assert vars(prefect_llm_tiers)[name] is thing


def test_checkers_and_interpreters_see_the_same_names() -> None:
    """What type checkers are told to import is what `__all__` says, from where it is loaded at run time."""
    told = {
        alias.name: node.module
        for node in ast.walk(ast.parse(inspect.getsource(prefect_llm_tiers)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect_llm_tiers.")
        for alias in node.names
    }
    assert set(told) == set(prefect_llm_tiers.__all__) - {"__version__"}
    homes = {name: f"prefect_llm_tiers.{prefect_llm_tiers._HOMES.get(name, 'errors')}" for name in told}
    assert told == homes


def test_every_error_is_public() -> None:
    """A user can name every error that the package raises without knowing its modules."""
    assert set(errors.__all__) <= set(prefect_llm_tiers.__all__)


def test_errors_load_nothing_beyond_the_standard_library() -> None:
    """An `except` clause costs no dependency."""
    loaded = {module.partition(".")[0] for module in loaded_by("import prefect_llm_tiers.errors")}
    assert loaded <= {*sys.stdlib_module_names, "prefect_llm_tiers"}


def test_dir_lists_every_public_name() -> None:
    """Completion offers what has not been loaded yet."""
    assert set(prefect_llm_tiers.__all__) <= set(dir(prefect_llm_tiers))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as on any module, so that `hasattr` and `from ... import` keep their meaning."""
    assert not hasattr(prefect_llm_tiers, "lmm_step")
    with pytest.raises(AttributeError, match="'prefect_llm_tiers' has no attribute 'lmm_step'"):
        getattr(prefect_llm_tiers, "lmm_step")  # noqa: B009  (a checker would refuse the plain form)


def test_the_version_is_the_installed_one(tmp_path: Path) -> None:
    """`__version__` is what the installed distribution says, not a second copy of it."""
    installed = tmp_path / "prefect_llm_tiers-9.8.7.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: prefect-llm-tiers\nVersion: 9.8.7\n")
    assert _version_seen_by(CHECKOUT, tmp_path) == "9.8.7"


def test_without_an_installation_there_is_no_version() -> None:
    """Imported from a folder that was never installed, the package has no `__version__`, and says why."""
    assert (
        _version_seen_by(CHECKOUT) == "prefect-llm-tiers is imported from a folder and not installed: pip install -e ."
    )


def test_tests_reach_loopback() -> None:
    """A test may serve and call on loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getpeername() == server.getsockname()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_tests_reach_nothing_else(host: str) -> None:
    """A test that connects to another machine fails, by address (documentation's own) and by name."""
    with pytest.raises(RuntimeError, match="loopback only"):
        socket.create_connection((host, 443), timeout=1)


def _version_seen_by(*path: Path) -> str:
    """Return `__version__`, or why there is none, in an interpreter that knows no other packages."""
    script = (
        f"import sys; sys.path[:0] = {[str(part) for part in path]!r}\n"
        "import prefect_llm_tiers\n"
        "try:\n    print(prefect_llm_tiers.__version__)\n"
        "except AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.strip()
