"""Faults of the wire that the simulator does not make, through both SDKs' own transports."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import orjson
import pytest

from prefect_llm_tiers.core.ports import BatchLine, CallFailed, FailureMeaning, Provider, ResultLine
from prefect_llm_tiers.core.requests import Endpoint, Request, custom_id
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider
from prefect_llm_tiers.providers.wire import named_tier

T = TypeVar("T")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

KEY = "k" * 43
ID = custom_id(KEY, "t" * 20)
REQUEST = Request(key=KEY, body=b'{"model":"m"}')
ENDPOINTS = {Dialect.OPENAI: Endpoint.RESPONSES, Dialect.ANTHROPIC: Endpoint.MESSAGES}

each = pytest.mark.parametrize("dialect", list(Dialect))


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one HTTP request whole and return its head; empty where the connection ended before one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    return head


def reply(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Return an HTTP reply."""
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def over(dialect: Dialect, serve: Serve, main: Callable[[Provider], Awaitable[T]]) -> T:
    """Run a coroutine over a provider behind a raw loopback server."""

    async def run() -> T:
        async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(closing, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        provider = open_provider(spec(dialect, port))
        try:
            # A fault that hangs the adapter fails its test, and not the whole run.
            async with asyncio.timeout(30):
                return await main(provider)
        finally:
            await provider.aclose()
            server.close()

    return asyncio.run(run())


def spec(dialect: Dialect, port: int) -> ProviderSpec:
    """Return a spec for a loopback port."""
    path = "/v1" if dialect is Dialect.OPENAI else ""
    return ProviderSpec(dialect=dialect, api_key="sk-1", base_url=f"http://127.0.0.1:{port}{path}")


async def failing_call(provider: Provider, dialect: Dialect, *, timeout_s: float = 10.0) -> FailureMeaning:
    """Return the meaning of a call that must fail."""
    with pytest.raises(CallFailed) as caught:
        await provider.call(REQUEST, endpoint=ENDPOINTS[dialect], tier=Tier.STANDARD, timeout_s=timeout_s)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.meaning


@each
def test_a_refused_connection_cost_nothing(dialect: Dialect) -> None:
    """Nothing left the machine: the call may be made again without a doubt about money."""

    async def main() -> FailureMeaning:
        server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        provider = open_provider(spec(dialect, port))
        try:
            return await failing_call(provider, dialect)
        finally:
            await provider.aclose()

    assert asyncio.run(main()) == FailureMeaning(kind="connection", reason="connection")


@each
def test_a_connection_that_ends_after_the_request_may_have_cost(dialect: Dialect) -> None:
    """The server read the request and closed: the SDKs say "never connected", which is wrong."""
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await read_request(reader))

    meaning = over(dialect, serve, lambda provider: failing_call(provider, dialect))
    assert meaning == FailureMeaning(kind="connection", reason="connection", maybe_billed=True)
    assert len(arrived) == 1


@each
def test_a_reply_that_is_cut_may_have_cost(dialect: Dialect) -> None:
    """Half a reply is a lost connection, and no unreadable answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply(b'{"status":"completed"}')[:-5])
        await writer.drain()

    meaning = over(dialect, serve, lambda provider: failing_call(provider, dialect))
    assert (meaning.kind, meaning.maybe_billed) == ("connection", True)


@each
def test_silence_and_dribble_end_at_the_timeout(dialect: Dialect) -> None:
    """The timeout bounds the whole call: a server that sends a byte now and then does not hold it longer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        gone = asyncio.ensure_future(reader.read(1))
        while not gone.done():
            writer.write(b" ")
            await writer.drain()
            await asyncio.wait([gone], timeout=0.01)

    meaning = over(dialect, serve, lambda provider: failing_call(provider, dialect, timeout_s=0.1))
    assert meaning == FailureMeaning(kind="timeout", reason="timeout", maybe_billed=True)


@each
def test_a_post_is_not_redirected(dialect: Dialect) -> None:
    """A redirect is not followed: the second request could be a second payment, and the host another."""
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await read_request(reader))
        writer.write(reply(b"", "308 Permanent Redirect", "location: /elsewhere\r\nconnection: close\r\n"))

    async def main(provider: Provider) -> str | None:
        outcome = await provider.call(REQUEST, endpoint=ENDPOINTS[dialect], tier=Tier.STANDARD, timeout_s=10.0)
        return outcome.reason

    assert over(dialect, serve, main) == "http_308"
    assert len(arrived) == 1


@each
def test_connections_are_kept(dialect: Dialect) -> None:
    """Calls one after the other share a connection."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        while await read_request(reader):
            writer.write(reply(b"{}"))
            await writer.drain()

    async def main(provider: Provider) -> None:
        for _ in range(3):
            await provider.identify("m")

    over(dialect, serve, main)
    assert len(connections) == 1


def in_app(dialect: Dialect, replies: dict[str, tuple[int, bytes]], main: Callable[[Provider], Awaitable[T]]) -> T:
    """Run a coroutine over a provider whose app answers by path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status, body = replies[scope["path"]]
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def run() -> T:
        provider = open_provider(ProviderSpec(dialect=dialect, api_key="sk-1"), app=app)
        try:
            return await main(provider)
        finally:
            await provider.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("body", [b"", b"<html>login</html>", b"[]", b'{"id": 7}', b'{"id":"x","created_at":1e300}'])
@each
def test_a_confirmation_that_cannot_be_read_is_no_confirmation(dialect: Dialect, body: bytes) -> None:
    """A 200 without a batch in it means that a batch may exist."""
    path = "/v1/batches" if dialect is Dialect.OPENAI else "/v1/messages/batches"

    async def main(provider: Provider) -> FailureMeaning:
        with pytest.raises(CallFailed) as caught:
            await provider.create_batch(
                input_file_id="file-1",
                lines=no_lines(),
                model="m",
                endpoint=ENDPOINTS[dialect],
                token="t",
                timeout_s=5.0,
            )
        return caught.value.meaning

    meaning = in_app(dialect, {path: (200, body)}, main)
    assert meaning == FailureMeaning(kind="server", reason="unreadable_reply", maybe_billed=True)


async def no_lines() -> AsyncIterator[BatchLine]:
    """Yield nothing."""
    nothing: tuple[BatchLine, ...] = ()
    for line in nothing:
        yield line


async def listed(provider: Provider) -> list[str]:
    """Return the ids of all batches."""
    return [batch.id async for batch in provider.list_batches(since=datetime(2026, 1, 1, tzinfo=UTC))]


@each
def test_a_list_that_does_not_move_is_not_complete(dialect: Dialect) -> None:
    """A list that says it goes on and repeats itself fails; nobody may prove a batch absent by it."""
    openai = dialect is Dialect.OPENAI
    at: Any = 1_800_000_000 if openai else "2027-01-15T08:00:00Z"
    page = orjson.dumps({"data": [{"id": "b", "created_at": at}], "has_more": True})

    async def main(provider: Provider) -> None:
        with pytest.raises(CallFailed):
            await listed(provider)

    in_app(dialect, {"/v1/batches" if openai else "/v1/messages/batches": (200, page)}, main)


@each
def test_a_list_that_says_nothing_of_its_end_is_not_complete(dialect: Dialect) -> None:
    """Where `has_more` is missing, only an empty page is the end; the same page again is none."""
    openai = dialect is Dialect.OPENAI
    path = "/v1/batches" if openai else "/v1/messages/batches"
    at: Any = 1_800_000_000 if openai else "2027-01-15T08:00:00Z"

    async def full(provider: Provider) -> None:
        with pytest.raises(CallFailed):
            await listed(provider)

    async def empty(provider: Provider) -> list[str]:
        return await listed(provider)

    in_app(dialect, {path: (200, orjson.dumps({"data": [{"id": "b", "created_at": at}]}))}, full)
    assert in_app(dialect, {path: (200, b'{"data": []}')}, empty) == []


@each
def test_a_page_that_cannot_be_read_fails_the_list(dialect: Dialect) -> None:
    """One batch of an unreadable shape fails the list, and is not left out of it."""
    page = orjson.dumps({"data": [{"id": None}], "has_more": False})

    async def main(provider: Provider) -> None:
        with pytest.raises(CallFailed):
            await listed(provider)

    path = "/v1/batches" if dialect is Dialect.OPENAI else "/v1/messages/batches"
    in_app(dialect, {path: (200, page)}, main)


def expired(dialect: Dialect) -> bytes:
    """Return a result line of an expired row."""
    if dialect is Dialect.OPENAI:
        return orjson.dumps({"custom_id": ID, "response": None, "error": {"code": "batch_expired"}}) + b"\n"
    return orjson.dumps({"custom_id": ID, "result": {"type": "expired"}}) + b"\n"


def test_both_files_are_read_and_every_line_of_them() -> None:
    """Duplicates, broken lines and strangers all come, from the output file first and the error file then."""
    batch = {"id": "b", "created_at": 1, "status": "expired", "output_file_id": "out", "error_file_id": "err"}
    line = expired(Dialect.OPENAI)
    replies = {
        "/v1/batches/b": (200, orjson.dumps(batch)),
        "/v1/files/out/content": (200, b"\xef\xbb\xbf" + line + line + b"broken\r\n" + b"\r\n"),
        "/v1/files/err/content": (200, line.rstrip()),
    }

    async def main(provider: Provider) -> list[ResultLine]:
        return [found async for found in provider.results("b", model="m", endpoint=Endpoint.RESPONSES)]

    found = in_app(Dialect.OPENAI, replies, main)
    assert [line.custom_id for line in found] == [ID, ID, None, ID]
    assert [line.outcome is None for line in found] == [False, False, True, False]


@each
def test_results_come_line_by_line(dialect: Dialect) -> None:
    """The first line is here before the server has written the second, and is kept when the rest is lost."""
    got_first = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_request(reader)
        if b"/content" not in head and b"/results" not in head:
            batch = {"id": "b", "created_at": 1, "status": "completed", "output_file_id": "out"}
            writer.write(reply(orjson.dumps(batch), headers="connection: close\r\n"))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + expired(dialect))
        await writer.drain()
        await got_first.wait()
        writer.write(expired(dialect)[:20])

    async def main(provider: Provider) -> tuple[str | None, str]:
        results = provider.results("b", model="m", endpoint=ENDPOINTS[dialect])
        first = await anext(results)
        got_first.set()
        with pytest.raises(CallFailed) as caught:
            await anext(results)
        return first.custom_id, caught.value.meaning.kind

    assert over(dialect, serve, main) == (ID, "connection")


@each
def test_an_upload_is_sent_with_its_length(dialect: Dialect) -> None:
    """A batch's requests arrive byte for byte, with their length in the head, whatever the size."""
    arrived: list[tuple[bytes, bytes]] = []
    body = b'{"model":"m","input":"' + b"x" * 300_000 + b'\xe2\x80\xa8"}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        named = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        arrived.append((named[0], await reader.readexactly(int(named[0].split(b":")[1]))))
        writer.write(reply(b'{"id":"file-1","created_at":1}', headers="connection: close\r\n"))

    async def lines() -> AsyncIterator[BatchLine]:
        yield BatchLine(custom_id=ID, body=body)
        yield BatchLine(custom_id="second", body=b"{}")

    async def main(provider: Provider) -> None:
        endpoint = ENDPOINTS[dialect]
        if dialect is Dialect.OPENAI:
            await provider.upload(lines(), model="m", endpoint=endpoint, token="t", expires_after=timedelta(days=1))
        else:
            with pytest.raises(CallFailed):
                await provider.create_batch(
                    input_file_id=None, lines=lines(), model="m", endpoint=endpoint, token="t", timeout_s=10.0
                )

    over(dialect, serve, main)
    ((_, sent),) = arrived
    url = b'","method":"POST","url":"/v1/responses","body":'
    if dialect is Dialect.OPENAI:
        assert b'{"custom_id":"' + ID.encode() + url + body + b'}\n{"custom_id":"second' + url + b"{}}\n" in sent
        assert b'name="expires_after[seconds]"\r\n\r\n86400\r\n' in sent
        assert b'name="purpose"\r\n\r\nbatch\r\n' in sent
        assert b'filename="t.jsonl"' in sent
    else:
        first = b'{"custom_id":"' + ID.encode() + b'","params":' + body + b"}"
        assert sent == b'{"requests":[' + first + b',{"custom_id":"second","params":{}}]}'


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"a":1}', b'{"service_tier":"flex","a":1}'),
        (b"{}", b'{"service_tier":"flex"}'),
        (b' { "a": 1 }', b'{"service_tier":"flex","a": 1 }'),
    ],
)
def test_the_tier_is_spliced_in(body: bytes, named: bytes) -> None:
    """The tier stands first in the object, and the rest is the bytes that were there."""
    assert named_tier(body, "flex") == named


def test_what_is_no_object_has_no_tier() -> None:
    """A body that is no JSON object is a mistake of ours, and is not sent."""
    with pytest.raises(ValueError):
        named_tier(b"[1]", "flex")
