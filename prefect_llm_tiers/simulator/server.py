"""The simulator on a loopback port."""

import contextlib
import errno
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.simulator.broken import ABORT
from prefect_llm_tiers.simulator.clock import ScaledClock, real_now
from prefect_llm_tiers.simulator.settings import WorldSettings
from prefect_llm_tiers.simulator.simulation import Simulation

__all__ = ["serve", "serving"]


class _Server(uvicorn.Server):
    """A server that tells when it listens and that ends cleanly on a signal.

    uvicorn raises the signal again once it has shut down, which ends the process as if killed.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    speed: float = 600.0,
    settings: WorldSettings | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a simulated provider until SIGINT or SIGTERM, and print its URL.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        speed: Simulated seconds in a real one. Batches are faithful at 600; the cost of real calls makes
            live latencies wrong above about 20.
        settings: What the world is like.
        on_ready: Called with the URL once it answers, instead of printing it.

    Raises:
        ConfigurationError: The port is taken, the address is not this machine's, or time would stand still.
    """
    with _listening(host, port) as listener:
        url = _url(listener)
        server = _server(speed, settings, lambda: (on_ready or _print_url)(url))
        server.run(sockets=[listener])


@contextlib.contextmanager
def serving(
    *, host: str = "127.0.0.1", port: int = 0, speed: float = 600.0, settings: WorldSettings | None = None
) -> Iterator[str]:
    """Serve a simulated provider in a thread for the length of a block, and yield its URL.

    Raises:
        ConfigurationError: As `serve`.
    """
    with _listening(host, port) as listener:
        ready = threading.Event()
        server = _server(speed, settings, ready.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), name="simulator", daemon=True)
        thread.start()
        try:
            while not ready.wait(0.1):
                if not thread.is_alive():
                    raise ConfigurationError(
                        f"The simulator ended while it started on {_url(listener)}. Its log says why."
                    )
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def _server(speed: float, settings: WorldSettings | None, on_start: Callable[[], None]) -> _Server:
    if not 0 < speed < math.inf:
        raise ConfigurationError(
            f"The simulator cannot run at speed {speed:g}: time would not pass, or not forward. Give the simulated "
            "seconds in a real one, above 0, as 600."
        )
    simulation = Simulation(settings or WorldSettings(), ScaledClock(real_now(), speed))
    config = uvicorn.Config(
        _resettable(simulation.app),
        log_level="warning",
        access_log=False,
        lifespan="off",
        # A call in flight may wait for simulated hours; whoever stops the server does not.
        timeout_graceful_shutdown=1,
    )
    return _Server(config, on_start)


def _resettable(app: ASGIApp) -> ASGIApp:
    """Let the app reset a connection, which ASGI has no word for: uvicorn's `send` knows its transport."""

    async def resettable(scope: Scope, receive: Receive, send: Send) -> None:
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        if transport is not None:
            scope[ABORT] = transport.abort
        await app(scope, receive, send)

    return resettable


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            cause = "the port is taken" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise ConfigurationError(
                f"The simulator cannot listen on {host} port {port}: {cause}. Choose another port, or 0 for a free one."
            ) from error
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _print_url(url: str) -> None:
    print(f"Simulated provider at {url} (OpenAI: {url}/v1, Anthropic: {url}). Ctrl-C stops it.", flush=True)  # noqa: T201
