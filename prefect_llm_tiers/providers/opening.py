"""The way in: what is needed to reach a provider, and the adapter opened from it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, assert_never
from urllib.parse import urlsplit

import httpx2
import msgspec

from prefect_llm_tiers.core.addresses import base_url_fault, is_loopback
from prefect_llm_tiers.core.ports import Provider
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.providers.services import Dialect, Service, service_at, service_named
from prefect_llm_tiers.providers.wire import RedirectRefused

__all__ = ["ASGIApp", "ProviderSpec", "open_provider"]

ASGIApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]

_BASE_URLS = {
    Dialect.OPENAI: "https://api.openai.com/v1",
    Dialect.ANTHROPIC: "https://api.anthropic.com",
}

# Shorter than the 5 s after which common servers close an idle connection: one that dies under a POST leaves
# the engine not knowing whether it was taken.
_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=1000, keepalive_expiry=4.0)


class ProviderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to reach one account at one provider: a plain value that pickles.

    Neither `repr` nor `rich` shows the key. Whoever pickles or encodes the value writes the key with it.

    Attributes:
        dialect: The protocol the provider speaks.
        api_key: The key; sent to `base_url` and nowhere else.
        organization: OpenAI's organisation, for a key that belongs to several.
        project: OpenAI's project, likewise.
        base_url: Root of the API; None is the provider's own. For the OpenAI dialect it ends in `/v1`, for
            Anthropic's it does not.
        account: Name of the account in the ledger, in the place of the one that the provider tells.
        service: Which service answers at the base URL; None goes by its host.
    """

    dialect: Dialect
    api_key: str
    organization: str | None = None
    project: str | None = None
    base_url: str | None = None
    account: str | None = None
    service: str | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"ProviderSpec({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return what may be shown; `rich`, which draws tracebacks, would list every field otherwise."""
        names = ("organization", "project", "base_url", "account", "service")
        optional = ((name, getattr(self, name)) for name in names)
        shown = [(name, value) for name, value in optional if value is not None]
        return [("dialect", self.dialect.value), ("api_key", "**********"), *shown]


def open_provider(spec: ProviderSpec, *, app: ASGIApp | None = None) -> Provider:
    """Open the adapter for an account. Call it inside the event loop that will use it, and close it there.

    The SDK's retries are off: both SDKs would send a batch's creation again after a 502, and pay twice.
    Nothing is read from the environment but proxies: which account pays is the block's to say.

    Args:
        spec: The account.
        app: An ASGI app that is the provider, in this process; None for the network.

    Raises:
        ConfigurationError: The key, the base URL or the installation cannot work.
        RuntimeError: No event loop runs in this thread.
    """
    asyncio.get_running_loop()
    _check_headers(spec)
    base_url = _checked_base_url(spec)
    service = service_named(spec.service, spec.dialect) if spec.service else service_at(spec.base_url, spec.dialect)
    match spec.dialect:
        case Dialect.OPENAI:
            return _open_openai(spec, base_url, service, app)
        case Dialect.ANTHROPIC:
            return _open_anthropic(spec, base_url, service, app)
        case _:
            assert_never(spec.dialect)


def _open_openai(spec: ProviderSpec, base_url: str, service: Service, app: ASGIApp | None) -> Provider:
    try:
        from openai import AsyncOpenAI, DefaultAioHttpClient

        from prefect_llm_tiers.providers.openai import OpenAIProvider
    except ImportError as error:
        raise _not_installed(spec.dialect) from error
    http = _http_client(DefaultAioHttpClient, spec.dialect, base_url, app)
    client = AsyncOpenAI(
        api_key=spec.api_key,
        organization=spec.organization,
        project=spec.project,
        base_url=base_url,
        max_retries=0,
        http_client=http,
    )
    # The SDK fills what is None from OPENAI_ORG_ID and OPENAI_PROJECT_ID.
    client.organization = spec.organization
    client.project = spec.project
    return OpenAIProvider(client, service=service, account=spec.account)


def _open_anthropic(spec: ProviderSpec, base_url: str, service: Service, app: ASGIApp | None) -> Provider:
    try:
        from anthropic import AsyncAnthropic, DefaultAioHttpClient

        from prefect_llm_tiers.providers.anthropic import AnthropicProvider
    except ImportError as error:
        raise _not_installed(spec.dialect) from error
    http = _http_client(DefaultAioHttpClient, spec.dialect, base_url, app)
    client = AsyncAnthropic(api_key=spec.api_key, base_url=base_url, max_retries=0, http_client=http)
    return AnthropicProvider(client, service=service, account=spec.account)


def _http_client(
    aiohttp_client: type[httpx2.AsyncClient], dialect: Dialect, base_url: str, app: ASGIApp | None
) -> httpx2.AsyncClient:
    hooks = {"request": [_key_guard(httpx2.URL(base_url))]}
    if app is not None:
        transport = httpx2.ASGITransport(app=app)
        return httpx2.AsyncClient(transport=transport, follow_redirects=False, event_hooks=hooks)
    try:
        return aiohttp_client(limits=_LIMITS, follow_redirects=False, event_hooks=hooks)
    except RuntimeError as error:
        # The SDK's placeholder, where aiohttp is missing.
        raise _not_installed(dialect) from error


_FOR_THE_PROVIDER = ("authorization", "x-api-key", "openai-organization", "openai-project")
"""Headers that go to the base URL's own origin and nowhere else."""


def _key_guard(home: httpx2.URL) -> Callable[[httpx2.Request], Awaitable[None]]:
    """Return what looks at each request, redirected ones among them, just before it is sent.

    The HTTP library drops `authorization` where a redirect leads elsewhere; Anthropic's key is in another header.
    """

    async def guard(request: httpx2.Request) -> None:
        if request.url.origin == home.origin:
            return
        if request.url.scheme != "https" and not is_loopback(request.url.host):
            raise RedirectRefused
        for name in _FOR_THE_PROVIDER:
            request.headers.pop(name, None)

    return guard


def _not_installed(dialect: Dialect) -> ConfigurationError:
    return ConfigurationError(
        f"The '{dialect}' dialect needs the SDK and its aiohttp transport, which are not installed. "
        f"Run `pip install 'prefect-llm-tiers[{dialect}]'` where the flow runs."
    )


def _check_headers(spec: ProviderSpec) -> None:
    """Refuse what cannot be sent as a header, before an HTTP library raises an error that repeats the key."""
    if not spec.api_key:
        raise ConfigurationError(f"The block for the '{spec.dialect}' provider has an empty `api_key`. Set one.")
    for name in ("api_key", "organization", "project"):
        value = getattr(spec, name)
        if value is not None and not (value.isascii() and value.isprintable() and " " not in value):
            raise ConfigurationError(
                f"The `{name}` of the '{spec.dialect}' provider's block has a space, a line break or a "
                "character outside of ASCII, and cannot be sent. It was probably pasted with something "
                "around it; set it again."
            )


def _checked_base_url(spec: ProviderSpec) -> str:
    base_url = spec.base_url or _BASE_URLS[spec.dialect]
    if (fault := base_url_fault(base_url)) is not None:
        raise ConfigurationError(f"The `base_url` of the '{spec.dialect}' provider's block {fault}")
    parts = urlsplit(base_url)
    if spec.dialect is Dialect.ANTHROPIC and parts.path.rstrip("/").endswith("/v1"):
        raise ConfigurationError(
            "The `base_url` of an Anthropic block ends in /v1, which the calls add themselves. Leave it out."
        )
    return base_url
