"""A run that began before and finds no record of itself, as on a new disk in a pod."""

import itertools
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_llm_tiers import LLMStep, RunForgotten, llm_step, submit_batch, wait_for_batch
from prefect_llm_tiers.blocks import load_ledger
from prefect_llm_tiers.carrying.remembering import check_remembered
from prefect_llm_tiers.engine.watching import Watcher
from tests.acceptance.conftest import World
from tests.acceptance.test_calling import this_run

Docs = Callable[[int], pl.DataFrame]

DOWN = "http://127.0.0.1:9/api"
"""Nobody listens there."""


def asking(world: World, **changes: Any) -> LLMStep:
    """Return a step that asks for a summary of `body`."""

    @llm_step(**world.options(**changes))
    def summary(body: str) -> str:
        return f"Summarize.\n\n{body}"

    return summary


def retried(work: Callable[[int], object]) -> Callable[[], object]:
    """Return a flow that runs `work` with the number of the attempt, and again if it raises."""
    attempts = itertools.count()

    @flow(retries=1)
    def runs() -> object:
        return work(next(attempts))

    return runs


def failing_first(attempt: int) -> None:
    """Raise in the first attempt."""
    if attempt == 0:
        msg = "after the step"
        raise RuntimeError(msg)


def test_a_retry_on_a_new_disk_pays_nothing(world: World, docs: Docs) -> None:
    """A retry whose ledger is another one than the first attempt's sends nothing, and says what to do."""
    summary = asking(world)

    def work(attempt: int) -> None:
        # Another file is what a new disk comes to.
        summary.with_options(ledger=f"{world.ledger}-{attempt}")(docs(3))
        failing_first(attempt)

    with pytest.raises(RunForgotten, match=r"no record of it.*new disk.*LedgerDatabase.*start a new flow run"):
        retried(work)()
    assert world.account().asked == 3


def test_another_run_may_begin_anywhere(world: World, docs: Docs) -> None:
    """The mark is the run's own: a new flow run over an empty ledger begins, and pays."""
    summary = asking(world)

    @flow
    def one(name: str) -> pl.DataFrame:
        return summary.with_options(ledger=f"{world.ledger}-{name}")(docs(3))

    assert one("a").height == one("b").height == 3
    assert world.account().asked == 6


def test_a_retry_goes_on(world: World, docs: Docs) -> None:
    """A retry over the same ledger goes on, also where a later step or a second call of one begins in it."""
    summary = asking(world)

    def work(attempt: int) -> list[int]:
        first = summary(docs(3))
        failing_first(attempt)
        again = summary(docs(5))
        return [first.height, again.height, summary.with_options(name="other")(docs(2)).height]

    assert retried(work)() == [3, 5, 2]
    assert world.account().asked == 5


def test_an_attempt_that_died_before_it_planned(world: World, docs: Docs) -> None:
    """Nothing was paid before the plan: a retry on a new disk may begin."""
    summary = asking(world)

    def work(attempt: int) -> int:
        failing_first(attempt)
        return summary.with_options(ledger=f"{world.ledger}-{attempt}")(docs(3)).height

    assert retried(work)() == 3


def test_the_plain_pieces_too(world: World) -> None:
    """A batch submitted by `submit_batch` is not submitted again from a new disk."""

    def work(attempt: int) -> None:
        ticket = submit_batch(["Say hello."], **world.options(ledger=f"{world.ledger}-{attempt}"))
        wait_for_batch(ticket)
        failing_first(attempt)

    with pytest.raises(RunForgotten):
        retried(work)()
    assert world.account().batches_created == 1


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def noticed(self, message: str) -> None:
        """Keep it."""
        self.messages.append(message)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def test_where_nobody_can_say(world: World, docs: Docs) -> None:
    """While Prefect's API is down a run of which the ledger knows nothing is refused, and a known one goes on."""
    summary = asking(world)
    runs: list[str] = []

    @flow
    def known() -> None:
        runs.append(str(this_run()))
        summary(docs(1))

    known()
    ledger, heard = load_ledger(world.ledger), Heard()
    watcher: Watcher = heard
    with temporary_settings({PREFECT_API_URL: DOWN, PREFECT_CLIENT_MAX_RETRIES: 0}):
        with pytest.raises(RunForgotten, match=r"could not be asked.*Nothing was sent"):
            check_remembered(ledger, step_run_id="new", step="summary", flow_run_id="0" * 32, watcher=watcher)
        check_remembered(ledger, step_run_id="new", step="summary", flow_run_id=runs[0], watcher=watcher)
    assert "it goes on" in heard.messages[0]
