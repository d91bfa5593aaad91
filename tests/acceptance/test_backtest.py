"""`prefect-llm-tiers backtest`: what other due times would have cost, from a ledger's own past and from scenarios."""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from prefect import flow

from prefect_llm_tiers import Chain, llm_step
from prefect_llm_tiers.cli import main
from prefect_llm_tiers.ledger import open_ledger
from tests.acceptance.conftest import World

Docs = Callable[[int], pl.DataFrame]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def backtest(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return what runs the command, and returns its exit code, what it printed, and what it said beside."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefect-llm-tiers", "backtest", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def nights(world: World, docs: Docs, number: int) -> None:
    """Run a flow of two chained steps on some nights."""

    @llm_step(**world.options())
    def summary(body: str) -> str:
        return f"Summarize.\n{body}"

    @llm_step(**world.options())
    def label(summary: str) -> str:
        return f"Label.\n{summary}"

    @flow
    def nightly(night: int) -> None:
        with Chain(summary, label, due=timedelta(hours=4)):
            label(summary(docs(6 + night).tail(6)))

    for night in range(number):
        nightly(night)


def test_the_past_under_other_due_times(world: World, docs: Docs, backtest: Command) -> None:
    """As a table for people and as JSON for programs: the same figures, with all that they take for granted."""
    nights(world, docs, 3)
    code, out, err = backtest("--ledger", world.ledger, "--nights", "4", "--json")
    told = json.loads(out)
    assert (code, err, told["chains"], told["left_out"], told["late"]) == (0, "", 3, {}, 0)
    assert float(told["paid_usd"]) == pytest.approx(float(world.paid_by_ledger()))
    assert [one["due"] for one in told["due"]] == [
        "1 h earlier",
        "30 min earlier",
        "as it was",
        "30 min later",
        "1 h later",
        "2 h later",
    ]
    assert {one["missed"] for one in told["due"]} == {0.0}
    assert float(told["due"][2]["cost_usd"]) == pytest.approx(float(told["paid_usd"]), rel=0.05)
    code, out, err = backtest("--ledger", world.ledger, "--nights", "4")
    assert (code, err) == (0, "")
    assert "3 chains from" in out
    assert "as it was" in out
    assert all(line in out for line in told["assumed"])


def test_a_time_of_day_is_tried_in_its_zone(world: World, docs: Docs, backtest: Command) -> None:
    """`--due` may be given again; each is the first such time after a chain's start."""
    nights(world, docs, 2)
    words = ("--ledger", world.ledger, "--tz", "Europe/London", "--nights", "2", "--json")
    code, out, _ = backtest("--due", "07:00", "--due", "09:00", *words)
    assert code == 0
    assert [(one["due"], one["chains"]) for one in json.loads(out)["due"]] == [
        ("07:00 Europe/London", 2),
        ("09:00 Europe/London", 2),
    ]


def test_without_a_past_it_says_so(tmp_path: Path, world: World, docs: Docs, backtest: Command) -> None:
    """An empty ledger, and one without a step of the name, end with code 3; a ledger that is not there with 1."""
    nights(world, docs, 1)
    open_ledger(tmp_path / "empty.db").close()
    code, out, _ = backtest("--ledger", str(tmp_path / "empty.db"))
    assert (code, out.startswith("No chain that can be replayed")) == (3, True)
    code, out, _ = backtest("--ledger", world.ledger, "--step", "translate", "--json")
    assert (code, json.loads(out)["chains"]) == (3, 0)
    code, out, err = backtest("--ledger", str(tmp_path / "nowhere.db"))
    assert (code, out) == (1, "")
    assert "There is no ledger" in err


def test_scenarios_are_played(backtest: Command) -> None:
    """Files in the place of the ledger: cost, misses, and what the plan had said of both."""
    code, out, err = backtest("benchmarks/scenarios.json", "--nights", "20", "--json")
    told = json.loads(out)
    assert (code, err, len(told)) == (0, "", 10)
    assert all(0.5 <= one["cost"] <= 1.0 and one["missed"] <= 0.1 for one in told)
    code, out, _ = backtest("benchmarks/scenarios.json", "--nights", "20")
    assert code == 0
    assert all(one["scenario"] in out for one in told)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no-such-file.json",), "cannot be read"),
        (("--due", "noon"), "is no time of day"),
        (("--due", "07:00", "--tz", "Mars/Base"), "names no time zone"),
        (("--days", "0"), "--days 0 leaves nothing to replay"),
        (("--nights", "0"), "--nights 0 leaves nothing to replay"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    tmp_path: Path, backtest: Command, words: tuple[str, ...], message: str
) -> None:
    """Code 1, and one line that says what to change."""
    open_ledger(tmp_path / "ledger.db").close()
    code, out, err = backtest(*words, "--ledger", str(tmp_path / "ledger.db"))
    assert (code, out) == (1, "")
    assert message in err
    assert backtest("--nights", "many")[0] != 0
