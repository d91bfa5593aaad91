"""One account's connection through an SDK client: requests out, replies or meanings back.

What both dialects share. The SDK's own exceptions end here: their text repeats what the provider said,
which may echo a key or a prompt, so nothing that leaves this module is chained to one.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from prefect_llm_tiers.core.ports import CallFailed, FailureMeaning
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import CredentialsRejected, UnknownModel
from prefect_llm_tiers.providers.decoding import decode
from prefect_llm_tiers.providers.meanings import MODEL_NOT_FOUND, ORGANIZATION_UNVERIFIED, meaning_of

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

__all__ = [
    "CONTROL_TIMEOUT_S",
    "UPLOAD_TIMEOUT_S",
    "Content",
    "RedirectRefused",
    "Wire",
    "named_tier",
    "tier_refused",
    "unreadable",
]

CONTROL_TIMEOUT_S = 60.0
"""Total time of a call that only looks: retrieve, list, identify, cancel."""

UPLOAD_TIMEOUT_S = 1800.0
"""Total time of an upload: 200 MB in half an hour is 0.9 Mbit/s."""

_SILENCE_S = 120.0
"""How long a download may stay silent between two pieces."""

_CONNECT_TIMEOUT_S = 10.0

Content = bytes | AsyncIterable[bytes]

T = TypeVar("T")

# Nothing has left the machine when one of these is raised; aiohttp's are looked for first, see `_meaning`.
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


class RedirectRefused(Exception):
    """A redirect leads to an address that is not encrypted; nothing was sent there."""


def named_tier(body: bytes, value: str) -> bytes:
    """Return an encoded JSON object with `service_tier` put in front, without encoding it again.

    Left out, the tier is `auto` at OpenAI, which is the project's setting, and not the standard tier.

    Raises:
        ValueError: The body is no JSON object.
    """
    rest = body.lstrip()
    if rest[:1] != b"{":
        raise ValueError("A request's body is a JSON object.")
    rest = rest[1:].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return b'{"service_tier":"' + value.encode() + b'"' + comma + rest


def unreadable() -> CallFailed:
    """Return the failure of a 2xx reply that cannot be read; what was asked for may have been done."""
    return CallFailed(FailureMeaning(kind="server", reason="unreadable_reply", maybe_billed=True))


def tier_refused(tier: Tier) -> CallFailed:
    """Return the failure of a call that was not sent, because its tier cannot be asked for live."""
    return CallFailed(FailureMeaning(kind="tier_unsupported", reason=f"{tier}_not_offered"))


class Wire:
    """Sends through one SDK client, whose retries are off, and translates every way of failing.

    A client belongs to the event loop it was opened in.
    """

    def __init__(self, client: "AsyncOpenAI | AsyncAnthropic", *, dialect: str) -> None:
        self._client: Any = client
        self._dialect = dialect
        # The SDK probes the platform in a worker thread on its first call, for a header that only counts
        # installations; a thread is invisible to a simulated clock. An attribute nobody reads does no harm.
        self._client._platform = "Unknown"  # noqa: SLF001 - see above

    @property
    def host(self) -> str:
        """Host and port that the calls go to."""
        url: httpx2.URL = self._client.base_url
        return url.netloc.decode("ascii")

    async def look_up(self, model: str, path: str) -> httpx2.Response:
        """Return the provider's reply about a model, asked at `path` + its id.

        Raises:
            UnknownModel: There is no such model, or no list of models at this base URL.
        """
        if not model.strip():
            raise self.unknown_model(model)
        return await self.get(path + quote(model, safe=""), model=model)

    def unknown_model(self, model: str) -> UnknownModel:
        """Return the error of a model that the provider does not offer."""
        return UnknownModel(
            f"The {self._dialect} provider at {self.host} does not offer the model {model!r} to this "
            "account. Check the step's `model`, that the block's project may use it, and the block's "
            "`base_url`."
        )

    def _unverified(self) -> CredentialsRejected:
        return CredentialsRejected(
            f"The {self._dialect} provider at {self.host} wants the organization verified before it answers this "
            "request; nothing was asked. Somebody with the right to must verify it in the provider's settings "
            "(at OpenAI under Settings, Organization, General), which may take 15 minutes to count. Then run the flow "
            "again, or choose a model that needs none."
        )

    async def get(
        self, path: str, *, model: str | None = None, params: Mapping[str, str | int] | None = None
    ) -> httpx2.Response:
        """Send a GET that only looks; the rules of `post`."""
        return await self._send("GET", path, None, model, CONTROL_TIMEOUT_S, params=params)

    async def post(
        self,
        path: str,
        content: Content,
        *,
        timeout_s: float,
        model: str | None = None,
        length: int | None = None,
    ) -> httpx2.Response:
        """Send JSON bytes as they are, once, and return the successful reply.

        Args:
            path: Below the base URL.
            content: The encoded body.
            timeout_s: Bound on the whole call, and on any silence in it.
            model: The model that is asked, for the message should it not be offered.
            length: Number of bytes of a streamed `content`.

        Raises:
            CredentialsRejected: 401 or 403, or the organisation has to be verified first.
            UnknownModel: The provider says that the model is not offered.
            CallFailed: Anything else.
        """
        headers = {"content-type": "application/json"}
        if length is not None:
            headers["content-length"] = str(length)
        return await self._send("POST", path, content, model, timeout_s, headers=headers)

    async def upload(self, path: str, file: IO[bytes], *, name: str, fields: Mapping[str, object]) -> httpx2.Response:
        """Send a file as a form, read piece by piece; the rules of `post`."""
        # A pair, and not a path: the SDK reads a path in a worker thread that a simulated clock cannot see.
        return await self._send(
            "POST",
            path,
            None,
            None,
            UPLOAD_TIMEOUT_S,
            headers={"content-type": "multipart/form-data"},
            form=(fields, {"file": (name, file)}),
        )

    async def download(self, path: str) -> AsyncGenerator[bytes, None]:
        """Stream a reply's body in pieces, without ever holding all of it.

        A connection that breaks half-way raises; what was yielded stands.
        """
        response = await self._send(
            "GET",
            path,
            None,
            None,
            _SILENCE_S,
            # The SDKs' own way of leaving the body unread; see `with_streaming_response`.
            headers={"accept": "application/binary", "X-Stainless-Raw-Response": "stream"},
            follow_redirects=True,
        )
        pieces = response.aiter_bytes()
        try:
            while True:
                piece = b""
                failure: Exception | None = None
                try:
                    async with asyncio.timeout(_SILENCE_S):
                        piece = await anext(pieces)
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001 - raised again below, translated
                    failure = error
                if failure is not None:
                    raise self._translated(failure, None)
                yield piece
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def decoded(self, response: httpx2.Response, decoder: msgspec.json.Decoder[T]) -> T:
        """Return a reply's value. Raises `CallFailed` where it cannot be read."""
        value = decode(response.content, decoder)
        if value is None:
            raise unreadable()
        return value

    async def _send(
        self,
        method: Literal["GET", "POST"],
        path: str,
        content: Content | None,
        model: str | None,
        timeout_s: float,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        form: tuple[Mapping[str, object], Mapping[str, tuple[str, IO[bytes]]]] | None = None,
        follow_redirects: bool = False,
    ) -> httpx2.Response:
        options: dict[str, Any] = {
            "headers": dict(headers or {}),
            "timeout": httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
            # Never on POST: a redirected POST is a second request, and a host that is sent elsewhere
            # is a setting to correct.
            "follow_redirects": follow_redirects,
        }
        if params:
            options["params"] = dict(params)
        response: httpx2.Response
        try:
            # The SDK's timeout bounds silence only, and an in-process app has none.
            async with asyncio.timeout(timeout_s):
                if method == "GET":
                    response = await self._client.get(path, cast_to=httpx2.Response, options=options)
                elif form is not None:
                    fields, files = form
                    response = await self._client.post(
                        path, cast_to=httpx2.Response, body=dict(fields), files=dict(files), options=options
                    )
                else:
                    response = await self._client.post(path, cast_to=httpx2.Response, content=content, options=options)
        except Exception as error:  # noqa: BLE001 - raised again below, translated
            failure: Exception = error
        else:
            return response
        # Raised outside of the handler: there the SDK's exception would come along as `__context__`.
        raise self._translated(failure, model)

    def _translated(self, error: BaseException, model: str | None) -> Exception:
        """Return the exception that stands for one of the SDK's; a bug of ours is returned as it is."""
        reply = getattr(error, "response", None)
        if isinstance(reply, httpx2.Response):
            meaning = meaning_of(reply.status_code, dict(reply.headers), _body(reply))
            if meaning.reason == ORGANIZATION_UNVERIFIED:
                return self._unverified()
            looked_up = reply.status_code == 404 and reply.request.method == "GET"
            if model is not None and (looked_up or meaning.reason == MODEL_NOT_FOUND):
                return self.unknown_model(model)
            if meaning.kind == "auth":
                return CredentialsRejected(
                    f"The {self._dialect} provider at {self.host} rejected the credentials "
                    f"(HTTP {reply.status_code}, {meaning.reason}). Nothing was asked. Check the provider "
                    "block's `api_key`, `organization`, `project` and `base_url`."
                )
            return CallFailed(meaning)
        meaning_or_none = _transport_meaning(error)
        if meaning_or_none is not None:
            return CallFailed(meaning_or_none)
        assert isinstance(error, Exception)
        return error


def _body(reply: httpx2.Response) -> bytes:
    try:
        return reply.content
    except httpx2.StreamError:
        return b""


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception and those that it was raised from, outermost first."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        below = error.__cause__ or error.__context__
        if below is None:
            break
        error = below
    return chain


def _transport_meaning(error: BaseException) -> FailureMeaning | None:
    """Return what a failure without a reply means; None if it is none of the network's.

    The aiohttp transports translate its exceptions too coarsely, and each SDK's differently: a server that
    closes the connection after it read the request ends as openai's `ConnectTimeout` and as anthropic's
    `ConnectError`, which both say "never sent". So aiohttp's own exception decides where there is one.
    """
    chain = _causes(error)
    if any(isinstance(link, RedirectRefused) for link in chain):
        return FailureMeaning(kind="connection", reason="insecure_redirect")
    names = {kind.__name__ for link in chain for kind in type(link).__mro__ if kind.__module__.startswith("aiohttp")}
    if names:
        if "ConnectionTimeoutError" in names:
            return FailureMeaning(kind="timeout", reason="connect_timeout")
        if "ServerTimeoutError" in names:
            return FailureMeaning(kind="timeout", reason="timeout", maybe_billed=True)
        unsent = "ClientConnectorError" in names or "ClientSSLError" in names or "InvalidURL" in names
        return FailureMeaning(kind="connection", reason="connection", maybe_billed=not unsent)
    for link in chain:
        if isinstance(link, _UNSENT):
            if isinstance(link, httpx2.TimeoutException):
                return FailureMeaning(kind="timeout", reason="connect_timeout")
            return FailureMeaning(kind="connection", reason="connection")
    for link in chain:
        if isinstance(link, httpx2.TimeoutException | TimeoutError):
            return FailureMeaning(kind="timeout", reason="timeout", maybe_billed=True)
        if isinstance(link, httpx2.TransportError | httpx2.StreamError | httpx2.DecodingError | OSError):
            return FailureMeaning(kind="connection", reason="connection", maybe_billed=True)
    if any(type(link).__module__.split(".")[0] in ("openai", "anthropic") for link in chain):
        return FailureMeaning(kind="connection", reason="sdk_error", maybe_billed=True)
    return None
