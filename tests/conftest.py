"""What holds for every test: a Prefect of its own, the same examples each time, and no network.

Prefect reads its settings when it is first imported, so they are set here, before any test module is.
"""

import atexit
import errno
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if "prefect" in sys.modules:
    message = "Prefect was imported before tests/conftest.py could keep it from the user's own settings"
    raise pytest.UsageError(message)

# Neither the API nor the keys of whoever runs the tests may be reached by one of them.
for _name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "OPENAI_", "PREFECT_"))]:
    del os.environ[_name]

_HOME = tempfile.mkdtemp(prefix="prefect-llm-tiers-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": _HOME,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TEST_MODE": "1",
}

# A failure must come back with the next run, on any machine; how long an example takes is for benchmarks.
settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")


if TYPE_CHECKING:
    from tests.postgres import PostgreSQL


class OutsideLoopbackError(RuntimeError):
    """A test tried to reach another machine. No OSError: nothing may take it for an outage and retry."""


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """Fail whatever connects to another machine, or asks for the address of one."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_outside(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_outside(self, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name and not _is_address(name) and name not in {"localhost", socket.gethostname()}:
            message = f"a test asked for the address of {name!r}; tests talk to loopback only"
            raise OutsideLoopbackError(message)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgreSQL"]:
    """A PostgreSQL server, started by the first test that needs it."""
    from tests.postgres import PostgreSQL

    server = PostgreSQL()
    yield server
    server.stop()


def _refuse_outside(sock: socket.socket, address: Any) -> None:
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    host = str(address[0])
    if host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback):
        return
    if sock.type == socket.SOCK_DGRAM:
        # Sends nothing. Libraries learn their own address this way (Dask does) and cope without a network.
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    message = f"a test connected to {host}; tests talk to loopback only"
    raise OutsideLoopbackError(message)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
