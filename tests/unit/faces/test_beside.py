"""The engine's thread: what it does comes out in the calling one, and it is stopped when that is interrupted."""

import _thread
import asyncio
import signal
from collections.abc import Iterator

import pytest

from prefect_llm_tiers.carrying.beside import Stop, run_beside
from prefect_llm_tiers.engine.system import SystemClock


def test_what_it_returns_and_raises_comes_out() -> None:
    """A result and an error of the work are the caller's."""
    assert run_beside(lambda _: 7, flow_run_id=None, keep=False) == 7

    def fails(_: Stop) -> None:
        msg = "inside"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="inside"):
        run_beside(fails, flow_run_id=None, keep=False)


def test_it_may_be_called_where_a_loop_runs() -> None:
    """In an async flow a sync step runs on the loop's own thread: the work has a loop of its own all the same."""

    async def outer() -> int:
        return run_beside(lambda _: asyncio.run(asyncio.sleep(0, 3)), flow_run_id=None, keep=False)

    assert asyncio.run(outer()) == 3


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also where whoever started the tests ignores it, as a shell does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_work_and_waits_for_its_end() -> None:
    """An interrupt ends the work's loop, which is given the time to clean up, and asks it to keep its batches."""
    told: list[str] = []

    def work(stop: Stop) -> None:
        async def main() -> None:
            stop.bind()
            _thread.interrupt_main(signal.SIGINT)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.append(f"cancelled, withdraws={stop.withdraws}")
                raise

        SystemClock().run(main(), name="work")

    with pytest.raises(KeyboardInterrupt):
        run_beside(work, flow_run_id=None, keep=False)
    assert told == ["cancelled, withdraws=False"]


def test_a_stop_that_comes_before_the_loop() -> None:
    """Work that is told to end before it has a loop ends as soon as it has one."""
    stop = Stop()
    stop.tell(withdraw=True)

    async def main() -> None:
        stop.bind()
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert stop.withdraws
