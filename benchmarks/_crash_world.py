"""Simulated providers on one loopback port, each with a time of its own that its client processes share."""

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import msgspec
import uvicorn

from benchmarks._crash_nursery import Nursery, Worker
from benchmarks._crash_task import Asked, Report, Task
from benchmarks._crash_time import SERVER, SLOTS, SharedClock
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.broken import ABORT
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation

__all__ = ["LONGEST_S", "Process", "World", "Worlds", "memory"]

SPEED = 20.0
"""Simulated seconds in a real one while somebody is busy: a lease lasts 15 real seconds."""

LONGEST_S = 600.0
"""Real seconds that a process may take before its case has failed."""

_FOR_EVER_S = 10.0**9


def memory() -> str | None:
    """Return a folder in memory, None where there is none: a process that is killed takes nothing from it."""
    return next((place for place in ("/dev/shm",) if os.access(place, os.W_OK)), None)  # noqa: S108


class World:
    """One provider, with the processes that talk to it; a context manager that leaves none of them behind.

    Attributes:
        simulation: The provider, in this process.
        url: Its root.
        clock: Its time.
    """

    def __init__(self, worlds: "Worlds", number: int, folder: Path, settings: WorldSettings, speed: float) -> None:
        self._worlds = worlds
        self._number = number
        self._folder = folder
        self._slots = list(range(1, SLOTS))
        self._started = 0
        self._workers: list[Worker] = []
        self.clock = SharedClock(SharedClock.make(folder / "clock", speed), SERVER)
        self.simulation = Simulation(settings, self.clock)
        self.url = f"{worlds.url}/{number}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            if not worker.over:
                worker.kill()
                with contextlib.suppress(TimeoutError):
                    worker.wait(LONGEST_S)
        self._worlds.close(self._number)

    def start(
        self, asked: Asked, *, ledger: str, run: str = "run-1", crash_at: str | None = None, sweep: bool = False
    ) -> "Process":
        """Start a process that carries a step run out; see `Task`."""
        task = self._task(asked, ledger=ledger, run=run, sweep=sweep)
        # Before it starts, so that time does not leap past it on the way.
        self.clock.hold(task.slot)
        worker = self._worlds.nursery.start(
            msgspec.to_builtins(task), crash_at=crash_at, ended=lambda: self._give_back(task.slot)
        )
        self._workers.append(worker)
        return Process(worker, Path(task.report), task.slot)

    def waits(self, process: "Process") -> bool:
        """Tell whether a process has nothing to do now."""
        return not process.over and self.clock.waits(process.slot)

    def warm_up(self, asked: Asked, *, ledger: str) -> None:
        """Let the nursery carry a step run out itself."""
        self._worlds.nursery.warm_up(msgspec.to_builtins(self._task(asked, ledger=ledger, run="run-1")))

    def _task(self, asked: Asked, *, ledger: str, run: str, sweep: bool = False) -> Task:
        number = self._started = self._started + 1
        return Task(
            asked=asked,
            run=run,
            clock=self.clock.spec,
            slot=self._slots.pop(0),
            base_url=self.url,
            ledger=ledger,
            report=str(self._folder / f"report-{number}"),
            owner=f"process-{number}",
            sweep=sweep,
        )

    def _give_back(self, slot: int) -> None:
        self.clock.free(slot)
        self._slots.append(slot)

    def billed_usd(self) -> Decimal:
        """Return what the provider has billed by now."""
        return self.simulation.account().billed_usd


class Process:
    """A process that carries a step run out."""

    def __init__(self, worker: Worker, report: Path, slot: int) -> None:
        self.slot = slot
        self._worker = worker
        self._report = report
        self.kill: Callable[[], None] = worker.kill

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._worker.over

    def wait(self) -> int:
        """Return its exit status, or minus the signal that killed it."""
        return self._worker.wait(LONGEST_S)

    def let_go(self, seconds: float) -> None:
        """Return when it has ended, or after some seconds: what is waited for is looked at again."""
        self._worker.let_go(seconds)

    def report(self) -> Report:
        """Return what it said at its end.

        Raises:
            RuntimeError: It did not come to an end of its own.
        """
        status = self.wait()
        if status:
            raise RuntimeError(f"The process ended with status {status}; its traceback is on stderr.")
        return msgspec.json.decode(self._report.read_bytes(), type=Report)


class Worlds:
    """A server and a nursery that many worlds share; a context manager."""

    def __init__(self) -> None:
        self.nursery = Nursery()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._serve,
            log_level="warning",
            access_log=False,
            lifespan="off",
            interface="asgi3",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="simulators", daemon=True)
        self._worlds: dict[int, World] = {}
        self._calls: dict[int, int] = {}
        self._made = 0
        self._lock = threading.Condition()

    def __enter__(self) -> Self:
        self._thread.start()
        with (
            tempfile.TemporaryDirectory(prefix="crash-warm-up-") as name,
            self.world(Path(name), WorldSettings(batch=BatchLaw(median_s=60.0, sigma=0.0, stuck_share=0.0))) as world,
        ):
            for dialect in Dialect:
                for tier in (Tier.BATCH, Tier.STANDARD):
                    world.warm_up(Asked(dialect=dialect, rows=1, tiers=(tier,)), ledger=f"{name}/{dialect}-{tier}")
            world.start(Asked(dialect=Dialect.OPENAI, rows=1), ledger=f"{name}/last").report()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
        self.nursery.__exit__()

    def world(self, folder: Path, settings: WorldSettings, *, speed: float = SPEED) -> World:
        """Make a world; close it by leaving its `with`."""
        with self._lock:
            number = self._made
            self._made += 1
            self._calls[number] = 0
        made = World(self, number, folder, settings, speed)
        self._worlds[number] = made
        return made

    def close(self, number: int) -> None:
        """End a world: no new call reaches it, and those that wait in it are let go."""
        world = self._worlds.pop(number)
        world.clock.leap_by(_FOR_EVER_S)
        with self._lock:
            self._lock.wait_for(lambda: not self._calls[number], timeout=LONGEST_S)
            del self._calls[number]
        world.clock.close()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    async def _serve(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]
    ) -> None:
        """Hand a call to the world that the first part of its path names."""
        assert scope["type"] == "http"
        # Let the app reset a connection, which ASGI has no word for: uvicorn's `send` knows its transport.
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        head = scope["path"].split("/", 2)[1]
        number = int(head) if head.isdigit() else -1
        with self._lock:
            world = self._worlds.get(number)
            if world is not None:
                self._calls[number] += 1
        if world is None:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            await world.simulation.app(
                {**scope, "root_path": f"/{number}", ABORT: getattr(transport, "abort", None)}, receive, send
            )
        finally:
            with self._lock:
                self._calls[number] -= 1
                self._lock.notify_all()
