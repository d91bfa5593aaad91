"""A real Prefect server for the session, and for each test a world and a ledger of its own."""

import contextlib
import itertools
import logging
import sqlite3
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from prefect_llm_tiers import SimulatedProvider
from prefect_llm_tiers.simulator.account import Account
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from prefect_llm_tiers.simulator.simulation import in_process

_numbers = itertools.count()

Dialect = Literal["openai", "anthropic"]

CALM = WorldSettings(batch=BatchLaw(median_s=600.0, sigma=0.0, stuck_share=0.0))
"""A world in which every batch takes ten minutes."""


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    """Run a Prefect server for the session; starting one takes seconds."""
    # Test mode logs everything that Prefect's inside does, at seconds for each test.
    for name in ("prefect", "prefect._internal"):
        logging.getLogger(name).setLevel(logging.INFO)
    # Without heartbeats: the thread that sends them holds up the end of every flow run by a second.
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield


class World:
    """A simulated provider and a ledger that no other test has seen."""

    def __init__(self, folder: Path) -> None:
        self.name = f"acceptance-{next(_numbers)}"
        self.ledger = str(folder / "ledger.db")
        self._settings: WorldSettings | None = None

    def shaped(self, settings: WorldSettings) -> "World":
        """Make the world with settings that the block has no fields for."""
        self._settings = settings
        return self

    def provider(self, dialect: Dialect = "openai", **fields: Any) -> SimulatedProvider:
        """Return a block of this world."""
        in_process(self.name, self._settings or CALM)
        return SimulatedProvider(dialect=dialect, world=self.name, **fields)

    def account(self) -> Account:
        """Return what the provider was asked and would bill."""
        return in_process(self.name).account()

    def options(self, **changes: Any) -> dict[str, Any]:
        """Return what most steps here are made with."""
        return {
            "provider": self.provider(),
            "model": "gpt-6-luna",
            "ledger": self.ledger,
            "max_output_tokens": 200,
        } | changes

    def paid_by_ledger(self) -> Decimal:
        """Return the sum of what the ledger says that its attempts cost."""
        with contextlib.closing(sqlite3.connect(self.ledger)) as connection:
            rows = connection.execute("SELECT cost_usd FROM outcomes WHERE cost_usd IS NOT NULL").fetchall()
        return sum((Decimal(cost) for (cost,) in rows), Decimal(0))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a world and a ledger of the test's own."""
    return World(tmp_path)


@pytest.fixture
def docs() -> Callable[[int], pl.DataFrame]:
    """Return a maker of documents, each unlike the others."""

    def made(rows: int) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "title": [f"Page {row}" for row in range(rows)],
                "body": [f"The {row}th page tells how to open a valve. It has {row} steps." for row in range(rows)],
            }
        )

    return made
