"""The way in: what is needed to reach a provider, and the adapter opened from it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any, assert_never
from urllib.parse import SplitResult, urlsplit

import httpx2
import msgspec

from prefect_llm_tiers.core.ports import Provider
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.providers.capabilities import Dialect

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
    """

    dialect: Dialect
    api_key: str
    organization: str | None = None
    project: str | None = None
    base_url: str | None = None
    account: str | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"ProviderSpec({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return what may be shown; `rich`, which draws tracebacks, would list every field otherwise."""
        optional = ((name, getattr(self, name)) for name in ("organization", "project", "base_url", "account"))
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
    match spec.dialect:
        case Dialect.OPENAI:
            return _open_openai(spec, base_url, app)
        case Dialect.ANTHROPIC:
            return _open_anthropic(spec, base_url, app)
        case _:
            assert_never(spec.dialect)


def _open_openai(spec: ProviderSpec, base_url: str, app: ASGIApp | None) -> Provider:
    try:
        from openai import AsyncOpenAI, DefaultAioHttpClient

        from prefect_llm_tiers.providers.openai import OpenAIProvider
    except ImportError as error:
        raise _not_installed(spec.dialect) from error
    http = _http_client(DefaultAioHttpClient, spec.dialect, app)
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
    return OpenAIProvider(client, account=spec.account)


def _open_anthropic(spec: ProviderSpec, base_url: str, app: ASGIApp | None) -> Provider:
    try:
        from anthropic import AsyncAnthropic, DefaultAioHttpClient

        from prefect_llm_tiers.providers.anthropic import AnthropicProvider
    except ImportError as error:
        raise _not_installed(spec.dialect) from error
    http = _http_client(DefaultAioHttpClient, spec.dialect, app)
    client = AsyncAnthropic(api_key=spec.api_key, base_url=base_url, max_retries=0, http_client=http)
    return AnthropicProvider(client, account=spec.account)


def _http_client(aiohttp_client: type[httpx2.AsyncClient], dialect: Dialect, app: ASGIApp | None) -> httpx2.AsyncClient:
    if app is not None:
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), follow_redirects=False)
    try:
        return aiohttp_client(limits=_LIMITS, follow_redirects=False)
    except RuntimeError as error:
        # The SDK's placeholder, where aiohttp is missing.
        raise _not_installed(dialect) from error


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
    parts, host = _parts(base_url)
    if host is None or parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            f"The `base_url` of the '{spec.dialect}' provider's block is no http(s) URL. Give one as "
            f"{_BASE_URLS[spec.dialect]!r}."
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            f"The `base_url` of the '{spec.dialect}' provider's block holds a user name or password, and "
            "URLs are shown in messages. Put the key into `api_key`."
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            f"The `base_url` http://{host} is not encrypted: the key would travel in clear. Use https, or a "
            "loopback address for a local server."
        )
    if spec.dialect is Dialect.ANTHROPIC and parts.path.rstrip("/").endswith("/v1"):
        raise ConfigurationError(
            "The `base_url` of an Anthropic block ends in /v1, which the calls add themselves. Leave it out."
        )
    return base_url


def _parts(url: str) -> tuple[SplitResult, str | None]:
    """Return a URL's parts and its host; None for the host of what cannot be read."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", ""), None
    return parts, parts.hostname


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
