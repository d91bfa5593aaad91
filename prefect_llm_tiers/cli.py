"""The command line: `prefect-llm-tiers`.

Exit codes: 0 all is well, 1 an error, 2 wrong usage, 3 batches are left that nobody can say anything of, or, of
`backtest`, there is no past to replay.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from prefect_llm_tiers.errors import ConfigurationError, LLMTiersError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from prefect_llm_tiers.carrying.recovering import Found
    from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["app", "main"]

app = App(name="prefect-llm-tiers", help="Service tiers, deadlines and batches for LLM steps in Prefect.")
simulate = App(name="simulate", help="A provider in a box.")
app.command(simulate)

UNRESOLVED = 3
NOTHING_TO_REPLAY = 3

Providers = Annotated[
    list[str],
    Parameter(name="--provider", negative="", help="A provider block; may be given again. By default all stored ones."),
]
LedgerPlace = Annotated[
    str | None, Parameter(name="--ledger", help="Path, URL or block of the ledger. By default the machine's.")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of a table.")]


@app.command
def recover(
    *,
    provider: Providers = [],  # noqa: B006 (read, never changed; the help shows it)
    ledger: LedgerPlace = None,
    give_up: Annotated[
        int | None, Parameter(help="Number of a batch that cannot be resolved, whose rows may be asked again.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Look again at every batch that is out, or of which nobody knows whether the provider took it.

    What was found is taken up, what has ended is harvested, and nothing is sent. With --give-up a batch that stays
    unknown is given up: its rows may be asked again. If the provider took it after all, it is billed as well, and
    both are counted when it turns up.

    Exits with 0 if every batch is accounted for, 3 if some stay unknown or belong to no stored provider, 1 on an
    error and 2 on wrong usage.
    """
    from prefect_llm_tiers.blocks import load_ledger
    from prefect_llm_tiers.carrying.recovering import give_up_batch, look_again

    if give_up is None:
        found = look_again(load_ledger(ledger, make=False), provider, _say)
        _show(found, as_json=as_json, none="No batch is out.")
        return UNRESOLVED if any(one.open for one in found) else 0
    if len(provider) > 1:
        msg = "--give-up decides about one batch: name at most one --provider, whose clock counts."
        raise ConfigurationError(msg)
    given_up = give_up_batch(load_ledger(ledger, make=False), give_up, provider[0] if provider else None)
    _show([given_up], as_json=as_json, none="")
    _say(
        f"Batch {give_up} is given up: its {given_up.rows:,} requests are asked again when their flow is run again. It "
        "may have been submitted all the same, and then it is billed; if it turns up, what it brings is kept, and "
        "both are priced."
    )
    return 0


@app.command
def cancel(
    flow_run_id: Annotated[str, Parameter(help="Id of the flow run, as the Prefect UI shows it.")],
    *,
    keep: Annotated[
        bool, Parameter(negative="", help="Leave what is out at the provider, for the next run over the same rows.")
    ] = False,
    provider: Providers = [],  # noqa: B006 (as above)
    ledger: LedgerPlace = None,
    as_json: AsJson = False,
) -> int:
    """Cancel the batches of a flow run that was cancelled, and of the flow runs that it called.

    For a run whose process ended before it could do so itself. A batch that another run waits for stays out. A
    cancel takes the provider up to ten minutes; then `recover` takes what was finished, which is billed.

    Exits as `recover` does.
    """
    from prefect_llm_tiers.blocks import load_ledger
    from prefect_llm_tiers.carrying.api import flow_runs_within, is_at_work
    from prefect_llm_tiers.carrying.recovering import cancel_runs

    if is_at_work(flow_run_id):
        _say(
            f"Flow run {flow_run_id} is still running and will ask again what is cancelled here: cancel it in Prefect "
            "as well."
        )
    found = cancel_runs(load_ledger(ledger, make=False), flow_runs_within(flow_run_id), provider, _say, keep=keep)
    _show(found, as_json=as_json, none="No batch of this flow run is out.")
    return UNRESOLVED if any(one.open for one in found) else 0


@app.command
def backtest(
    *files: Annotated[Path, Parameter(help="Files of scenarios to play instead of the ledger's past.")],
    due: Annotated[list[str], Parameter(negative="", help="Time of day to try, as 07:00; may be given again.")] = [],  # noqa: B006 (as above)
    zone: Annotated[str, Parameter(name="--tz", help="Time zone of --due.")] = "UTC",
    days: Annotated[int, Parameter(help="How many days back the past goes.")] = 30,
    step: Annotated[str | None, Parameter(help="Only flow runs with a step of this name.")] = None,
    nights: Annotated[
        int | None,
        Parameter(help="Nights for each due time and chain, by default 20; for each scenario, by default 2000."),
    ] = None,
    seed: Annotated[int, Parameter(help="Another one draws other nights.")] = 0,
    ledger: LedgerPlace = None,
    as_json: AsJson = False,
) -> int:
    """Say what other due times would have cost, and how often they would have been missed.

    Replays the chains that the ledger has seen, with the planner's own decisions over nights drawn from what was
    observed. Without --due, the due times that they had, and some before and after. With files, plays their scenarios.
    Nothing is asked and nothing is written.

    Exits with 0, with 3 if there is no past to replay, 1 on an error and 2 on wrong usage.
    """
    from prefect_llm_tiers.backtesting.showing import as_text
    from prefect_llm_tiers.carrying.backtest import of_ledger, of_scenarios

    if files:
        _report(
            played := of_scenarios(files, nights=2000 if nights is None else nights, seed=seed),
            as_text(played),
            as_json=as_json,
        )
        return 0
    past = of_ledger(
        ledger, due=due, zone=zone, days=days, step=step, draws=20 if nights is None else nights, seed=seed
    )
    _report(past, as_text(past), as_json=as_json)
    return 0 if past.chains else NOTHING_TO_REPLAY


@simulate.command
def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(help="0 takes a free one.")] = 0,
    speed: Annotated[float, Parameter(help="Simulated seconds in a real one.")] = 600.0,
    seed: Annotated[int | None, Parameter(help="Changes every draw of the world.")] = None,
    settings: Annotated[
        Path | None, Parameter(help="File that says what the world is like, in JSON or TOML; see docs/simulator.md.")
    ] = None,
    faults: Annotated[
        list[str],
        Parameter(negative="", help="A fault and its chance, as create_502_taken=0.2; may be given again."),
    ] = [],  # noqa: B006 (read, never changed; the help shows it)
) -> None:
    """Serve a simulated OpenAI and Anthropic until Ctrl-C; its account is at /_simulator/account."""
    from prefect_llm_tiers.simulator.server import serve as run

    if not 0 <= port <= 65535:
        msg = f"--port {port} is no port. Give one from 1 to 65535, or 0 for a free one."
        raise ConfigurationError(msg)
    if not 0 < speed < float("inf"):
        msg = f"--speed {speed:g} is no speed. Give a number above 0: simulated seconds in a real one."
        raise ConfigurationError(msg)
    run(host=host, port=port, speed=speed, settings=_world(settings, faults, seed))


def _world(path: Path | None, faults: Sequence[str], seed: int | None) -> "WorldSettings":
    """Return the settings of a world from a file and from the command line, which goes before."""
    from prefect_llm_tiers.simulator.decoding import settings_from

    said: dict[str, Any] = _read(path) if path is not None else {}
    if faults:
        said["faults"] = {**said.get("faults", {}), **dict(map(_fault, faults))}
    if seed is not None:
        said["seed"] = seed
    return settings_from(said)


def _fault(text: str) -> tuple[str, float]:
    name, _, chance = text.partition("=")
    try:
        return name, float(chance)
    except ValueError:
        msg = f"--faults {text} names no chance. Write it as NAME=CHANCE, as create_502_taken=0.2."
        raise ConfigurationError(msg) from None


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        said = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        msg = f"--settings {path} cannot be read ({error.strerror}). Give the path of a JSON or TOML file."
        raise ConfigurationError(msg) from error
    except ValueError as error:
        msg = f"--settings {path} is neither JSON nor, by its name, TOML ({error}). Correct the file."
        raise ConfigurationError(msg) from error
    if not isinstance(said, dict):
        msg = f"--settings {path} holds no object. Write the settings by name, as {{'seed': 4}}."
        raise ConfigurationError(msg)
    return said


def _report(report: Any, text: "RenderableType", *, as_json: bool) -> None:
    """Print a value as JSON, or as the text that was made of it."""
    import msgspec

    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _console().print(text)


def _console() -> "Console":
    from rich.console import Console

    # Piped on, nobody's window bounds a line.
    return Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False)


def _show(found: "Sequence[Found]", *, as_json: bool, none: str) -> None:
    if not found and not as_json:
        print(none)
        return
    from rich.table import Table

    table = Table("batch", "step", "state", "rows", "since", "next", box=None, pad_edge=False)
    for one in found:
        state = one.after if one.before == one.after else f"{one.before} -> {one.after}"
        rows, since = f"{one.rows:,}", f"{one.since:%Y-%m-%d %H:%MZ}"
        table.add_row(str(one.batch), one.step, state, rows, since, one.next)
    _report(list(found), table, as_json=as_json)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def main() -> None:
    """Run a command; an error of this package is told in one line, with exit code 1."""
    try:
        app()
    except LLMTiersError as error:
        _say(f"error: {error}")
        sys.exit(1)
