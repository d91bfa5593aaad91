"""A flow run that is cancelled takes its batches with it; one that is merely stopped leaves them to the next."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterStartTime
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from prefect_llm_tiers import SimulatedProvider
from prefect_llm_tiers.blocks import load_ledger
from prefect_llm_tiers.core.batches import BatchState
from prefect_llm_tiers.engine.system import SystemClock
from prefect_llm_tiers.simulator.server import serving
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.acceptance.test_recover import Command, account, command

__all__ = ["command"]

SLOW = WorldSettings(batch=BatchLaw(median_s=36_000.0, sigma=0.0, stuck_share=0.0), cancel_s=(30.0, 30.0))
"""Batches take ten hours, so that they are out whenever something happens."""

SIGTERM_CODES = (-signal.SIGTERM, 128 + signal.SIGTERM, 1)


class Running:
    """A flow in a process of its own, with its batch out."""

    def __init__(self, url: str, ledger: str, *words: str) -> None:
        self.url = url
        self.ledger = ledger
        self._since = SystemClock().now()
        environment = os.environ | {
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_TEST_MODE": "0",
            "PREFECT_LOGGING_LEVEL": "INFO",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.asking_flow", url, ledger, *words],
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        # The process says so once the provider has confirmed.
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if "submitted:" in line:
                return
        pytest.fail(self.said[-2000:])

    def flow_run_id(self) -> UUID:
        """Return the id of its flow run."""
        with get_client(sync_client=True) as client:
            started = FlowRunFilter(start_time=FlowRunFilterStartTime.model_validate({"after_": self._since}))
            [run] = [run for run in client.read_flow_runs(flow_run_filter=started) if run.state_type != "COMPLETED"]
        return run.id

    def cancel(self) -> UUID:
        """Ask Prefect to cancel the run, as the UI does."""
        run = self.flow_run_id()
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelling())
        return run

    def end(self, number: signal.Signals | None) -> None:
        """Send a signal, and wait for the end."""
        if number is not None:
            self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        self.said += out

    def states(self) -> list[BatchState]:
        """Return the states of the batches in its ledger."""
        ledger = load_ledger(self.ledger)
        return [ledger.batch(1).state]


@contextmanager
def running(tmp_path: Path, *words: str) -> Iterator[Running]:
    """Serve a world, and run the flow in it until its batch is out."""
    with serving(speed=600.0, settings=SLOW) as url:
        flow = Running(url, str(tmp_path / "ledger.db"), *words)
        try:
            yield flow
        finally:
            flow.process.kill()
            flow.process.wait()


def test_a_cancelled_run_cancels_its_batch(command: Command, tmp_path: Path) -> None:
    """SIGTERM to a run that Prefect is cancelling cancels its batch; `recover` takes what was finished."""
    with running(tmp_path) as flow:
        flow.cancel()
        flow.end(signal.SIGTERM)
        assert flow.process.returncode in SIGTERM_CODES
        assert account(flow.url)["batches_cancelled"] == 1
        assert flow.states() == [BatchState.CANCELLING]
        assert "being cancelled, and with it batches that it alone waited for (1)" in flow.said
        SimulatedProvider(base_url=flow.url).save("cancelling", overwrite=True)
        # Half a minute in this world: a twentieth of a second.
        for _ in range(100):
            code, _, _ = command("recover", "--ledger", flow.ledger, "--provider", "cancelling")
            if flow.states() == [BatchState.SETTLED]:
                break
        assert (code, flow.states()) == (0, [BatchState.SETTLED])


def test_an_evicted_run_keeps_its_batch(tmp_path: Path) -> None:
    """SIGTERM to a run that nobody cancels leaves its batch out: the run may be started again, and attaches."""
    with running(tmp_path) as flow:
        flow.end(signal.SIGTERM)
        assert flow.process.returncode in SIGTERM_CODES
        assert account(flow.url)["batches_cancelled"] == 0
        assert flow.states() == [BatchState.IN_PROGRESS]
        assert "its batches (1) stay out" in flow.said


def test_ctrl_c_keeps_the_batch(tmp_path: Path) -> None:
    """Ctrl-C ends the process soon and leaves the batch out."""
    with running(tmp_path) as flow:
        flow.end(signal.SIGINT)
        assert account(flow.url)["batches_cancelled"] == 0
        assert flow.states() == [BatchState.IN_PROGRESS]


def test_a_cancelled_run_that_keeps(command: Command, tmp_path: Path) -> None:
    """With `keep_batches` a cancelled run leaves its batch; the command line cancels it afterwards after all."""
    with running(tmp_path, "keep") as flow:
        run = flow.cancel()
        flow.end(signal.SIGTERM)
        assert account(flow.url)["batches_cancelled"] == 0
        SimulatedProvider(base_url=flow.url).save("keeping", overwrite=True)
        place = ("--ledger", flow.ledger, "--provider", "keeping")
        code, out, _ = command("cancel", str(run), "--keep", *place)
        assert (code, flow.states(), "in_progress" in out) == (0, [BatchState.IN_PROGRESS], True)
        code, out, _ = command("cancel", str(run), *place)
        assert (code, "in_progress -> cancelling" in out) == (0, True)
        assert account(flow.url)["batches_cancelled"] == 1


def test_a_killed_run_is_cancelled_afterwards(command: Command, tmp_path: Path) -> None:
    """A process that was killed without a word could cancel nothing: `cancel` does it."""
    with running(tmp_path) as flow:
        run = flow.flow_run_id()
        flow.end(signal.SIGKILL)
        SimulatedProvider(base_url=flow.url).save("killed", overwrite=True)
        code, out, said = command("cancel", str(run), "--ledger", flow.ledger, "--provider", "killed")
        assert (code, "in_progress -> cancelling" in out) == (0, True)
        assert "is still running" in said


def test_a_submitted_step_hears_of_it(tmp_path: Path) -> None:
    """A step in a thread of the task runner gets no signal; it looks at the run's state and cancels its batch."""
    with running(tmp_path, "beside") as flow:
        flow.cancel()
        flow.end(None)
        assert account(flow.url)["batches_cancelled"] == 1
        assert flow.states() == [BatchState.CANCELLING]
