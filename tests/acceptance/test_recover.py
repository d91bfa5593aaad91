"""The command line looks again at batches of processes that died, and decides about those that stay unknown."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prefect.settings import PREFECT_API_URL

from prefect_llm_tiers import SimulatedProvider
from prefect_llm_tiers.cli import main
from prefect_llm_tiers.crash_points import CRASH_AT
from prefect_llm_tiers.ledger import open_ledger
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.server import serving
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.acceptance.asking_flow import ROWS, asking

QUICK = BatchLaw(median_s=60.0, sigma=0.0, stuck_share=0.0)
LONG = BatchLaw(median_s=36_000.0, sigma=0.0, stuck_share=0.0)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return what runs a command line and returns its exit code, what it printed, and what it said beside."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefect-llm-tiers", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


@contextlib.contextmanager
def served(law: BatchLaw, faults: Faults | None = None, *, saved: str | None = None) -> Iterator[str]:
    """Serve a world, and keep its block with Prefect under a name."""
    with serving(speed=600.0, settings=WorldSettings(batch=law, faults=faults or Faults())) as url:
        if saved is not None:
            SimulatedProvider(base_url=url).save(saved, overwrite=True)
        yield url


def die_at(point: str, url: str, ledger: str) -> None:
    """Run the flow in a process that is killed at a point."""
    environment = os.environ | {CRASH_AT: point, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    died = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.asking_flow", url, ledger],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()


def once_free(command: Command, *words: str) -> tuple[int, str, str]:
    """Run a command until the dead process holds the batch no more: five minutes in this world, half a second here."""
    for _ in range(2000):
        code, out, said = command(*words)
        if "another process" not in said:
            break
    return code, out, said


def account(url: str) -> dict[str, Any]:
    """Return what a served provider was asked."""
    told: dict[str, Any] = httpx2.get(f"{url}/_simulator/account").json()
    return told


def test_a_batch_that_nobody_confirmed_is_found_and_harvested(command: Command, tmp_path: Path) -> None:
    """After a crash before the confirmation `recover` finds the batch and takes its answers; nothing is paid twice."""
    ledger = str(tmp_path / "ledger.db")
    with served(QUICK, saved="recovering") as url:
        die_at("batch.create.sent", url, ledger)
        # A tenth of a second away: a minute in this world.
        assert any(account(url)["answered"] for _ in range(2000))
        code, out, _ = once_free(command, "recover", "--ledger", ledger, "--provider", "recovering")
        assert (code, "submitting -> settled" in out, "harvested" in out) == (0, True, True)
        assert asking(url, ledger)["summary_error"].null_count() == ROWS
        assert (account(url)["batches_created"], account(url)["asked"]) == (1, ROWS)
        assert command("recover", "--ledger", ledger, "--provider", "recovering")[:2] == (0, "No batch is out.\n")


def test_all_stored_blocks_are_tried(command: Command, tmp_path: Path) -> None:
    """Without --provider the block whose key belongs to the account is found; --json says what a script needs."""
    ledger = str(tmp_path / "ledger.db")
    with served(LONG, saved="among-others") as url:
        SimulatedProvider(dialect="anthropic", base_url=url).save("another-dialect", overwrite=True)
        SimulatedProvider(world="elsewhere").save("in-a-process", overwrite=True)
        die_at("batch.create.sent", url, ledger)
        code, out, _ = once_free(command, "recover", "--ledger", ledger, "--json")
        [one] = json.loads(out)
        assert (code, one["before"], one["after"], one["rows"]) == (0, "submitting", "in_progress", ROWS)
        assert (one["step"], one["open"]) == ("summary", None)


def test_what_stays_unknown(command: Command, tmp_path: Path) -> None:
    """Where the list cannot be read a batch stays unknown (exit code 3) until somebody gives it up."""
    ledger = str(tmp_path / "ledger.db")
    with served(LONG, Faults(list_503=1.0), saved="unlisted") as url:
        die_at("batch.create.sent", url, ledger)
        code, out, _ = once_free(command, "recover", "--ledger", ledger, "--provider", "unlisted")
        assert (code, "may have been taken" in out, "--give-up 1" in out) == (3, True, True)
        code, out, said = command("recover", "--give-up", "1", "--ledger", ledger, "--provider", "unlisted")
        assert (code, "submitting -> discarded" in out) == (0, True)
        assert "may have been submitted all the same, and then it is billed" in said
        code, _, said = command("recover", "--give-up", "1", "--ledger", ledger, "--provider", "unlisted")
        assert (code, "not given up: it is discarded" in said) == (1, True)


def test_no_block_has_the_key(command: Command, tmp_path: Path) -> None:
    """A batch of an account that no stored block has a key of is listed as such, with exit code 3."""
    ledger = str(tmp_path / "ledger.db")
    with served(LONG) as url:
        die_at("batch.create.sent", url, ledger)
    SimulatedProvider(dialect="anthropic", base_url="http://127.0.0.1:9").save("unreachable", overwrite=True)
    SimulatedProvider(world="elsewhere").save("in-a-process", overwrite=True)
    code, out, said = command("recover", "--ledger", ledger, "--provider", "in-a-process")
    assert (code, "no stored provider block has a key of" in out) == (3, True)
    assert "simulated inside another process" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("simulate", "serve", "--speed", "0"), "--speed 0 is no speed"),
        (("simulate", "serve", "--speed", "nan"), "--speed nan is no speed"),
        (("simulate", "serve", "--port", "-1"), "--port -1 is no port"),
        (("simulate", "serve", "--faults", "create_twice"), "Write it as NAME=CHANCE"),
        (("simulate", "serve", "--faults", "create_thrice=0.1"), "there is no setting 'create_thrice' in `faults`"),
        (("simulate", "serve", "--faults", "create_twice=2"), "a chance is from 0 to 1"),
        (("simulate", "serve", "--settings", "nowhere.json"), "cannot be read (No such file"),
        (("recover", "--give-up", "1", "--provider", "a", "--provider", "b"), "at most one --provider"),
        (("recover", "--give-up", "77"), "77"),
        (("cancel", "no-such-run"), "knows no step of flow run no-such-run"),
    ],
)
def test_bad_words(command: Command, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """What cannot be is refused in one line of words, with exit code 1."""
    open_ledger(tmp_path / "ledger.db").close()
    place = ("--ledger", str(tmp_path / "ledger.db")) if words[0] != "simulate" else ()
    code, out, told = command(*words, *place)
    assert (code, out) == (1, "")
    assert said in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("text", ["[1]", "{", '{"sed": 4}'])
def test_a_settings_file_that_makes_no_world(command: Command, tmp_path: Path, text: str) -> None:
    """A file of settings that cannot be read as such is refused in words."""
    path = tmp_path / "world.json"
    path.write_text(text)
    code, _, told = command("simulate", "serve", "--settings", str(path))
    assert code == 1
    assert told.startswith("error: ")
    assert "Traceback" not in told


def test_wrong_usage(command: Command) -> None:
    """An option that there is not is wrong usage, exit code 2."""
    assert command("recover", "--nope")[0] == 2


@pytest.mark.parametrize("words", [("recover",), ("recover", "--give-up", "1"), ("cancel", "00000000-0000")])
def test_a_ledger_that_is_not_there_is_no_all_clear(command: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A slip in the ledger's path is an error, not an empty ledger in which no batch is out."""
    place = tmp_path / "nowhere" / "ledger.db"
    code, out, said = command(*words, "--ledger", str(place))
    assert (code, out) == (1, "")
    assert f"There is no ledger at {place}" in said
    assert not place.parent.exists()
