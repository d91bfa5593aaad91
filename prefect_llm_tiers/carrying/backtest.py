"""The command line's backtest: which past is replayed, under which due times."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from prefect_llm_tiers.backtesting.history import PastChain, read_chains
from prefect_llm_tiers.backtesting.replaying import (
    DueOption,
    HistoryReport,
    ScenarioReport,
    replay_history,
    replay_scenario,
)
from prefect_llm_tiers.backtesting.scenarios import read_scenarios
from prefect_llm_tiers.blocks import load_ledger
from prefect_llm_tiers.due import by
from prefect_llm_tiers.engine.system import SystemClock
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.planning.plan import show_span

__all__ = ["of_ledger", "of_scenarios"]

NEIGHBOURS = tuple(timedelta(minutes=minutes) for minutes in (-60, -30, 0, 30, 60, 120))
"""What is tried around the due times that chains had, where none is named."""


def of_scenarios(files: Sequence[Path], *, nights: int, seed: int) -> list[ScenarioReport]:
    """Return what the scenarios of some files come to.

    Raises:
        ConfigurationError: A file cannot be read, or there is no night to play.
    """
    _check("nights", nights)
    return [replay_scenario(scenario, nights=nights, seed=seed) for scenario in read_scenarios(files)]


def of_ledger(
    place: str | None, *, due: Sequence[str], zone: str, days: int, step: str | None, draws: int, seed: int
) -> HistoryReport:
    """Return what the last days of a ledger came to, and what they would have with other due times.

    Args:
        place: Path, URL or block of the ledger; None for the machine's.
        due: Times of day to try; none for those that the chains had, and some around them.
        zone: Their time zone.
        days: How many days back.
        step: Only chains with a step of this name.
        draws: Nights for each chain and due time.
        seed: Another one draws other nights.

    Raises:
        LedgerUnusable: There is no such ledger.
        ConfigurationError: A due time or a number cannot be used.
    """
    _check("nights", draws)
    _check("days", days)
    options = [DueOption(f"{at} {zone}", _at(at, zone)) for at in due] or [
        DueOption(_named(shift), _shifted(shift)) for shift in NEIGHBOURS
    ]
    ledger = load_ledger(place, make=False)
    until = SystemClock().wall()
    since = until - timedelta(days=days)
    chains, left_out = read_chains(ledger, since=since, until=until, step=step)
    return replay_history(chains, options, since=since, until=until, left_out=left_out, draws=draws, seed=seed)


def _at(at: str, zone: str) -> Callable[[PastChain], datetime | None]:
    due = by(at, zone)
    return lambda chain: due.after(chain.started_at)


def _shifted(shift: timedelta) -> Callable[[PastChain], datetime | None]:
    def of(chain: PastChain) -> datetime | None:
        # A due time from before the chain began would say nothing.
        return chain.due + shift if chain.due is not None and chain.due + shift > chain.started_at else None

    return of


def _named(shift: timedelta) -> str:
    if not shift:
        return "as it was"
    return f"{show_span(abs(shift))} {'later' if shift > timedelta(0) else 'earlier'}"


def _check(name: str, number: int) -> None:
    if number < 1:
        msg = f"--{name} {number} leaves nothing to replay. Give a number of 1 or more."
        raise ConfigurationError(msg)
