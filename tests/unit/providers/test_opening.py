"""What is needed to reach a provider, and what is refused before the key leaves the process."""

import asyncio
import pickle
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider

KEY = "sk-proj-0123456789"
SPEC = ProviderSpec(dialect=Dialect.OPENAI, api_key=KEY, organization="org-1", base_url="https://host/v1")

each = pytest.mark.parametrize("dialect", list(Dialect))


def opened(spec: ProviderSpec, app: Any = None) -> str:
    """Open a provider in a loop of its own, close it, and return its name."""

    async def main() -> str:
        provider = open_provider(spec, app=app)
        await provider.aclose()
        return provider.name

    return asyncio.run(main())


def test_a_spec_travels_and_does_not_show_its_key() -> None:
    """A spec pickles to an equal one; neither its `repr` nor `rich`'s has the key."""
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC
    for text in (repr(SPEC), str(SPEC), f"{SPEC}", pretty_repr(SPEC), repr([SPEC])):
        assert KEY not in text
        assert "org-1" in text


@each
def test_a_provider_has_the_name_of_its_dialect(dialect: Dialect) -> None:
    """The name is the price book's provider id."""
    assert opened(ProviderSpec(dialect=dialect, api_key=KEY)) == dialect.value


@each
def test_a_provider_is_opened_in_its_loop(dialect: Dialect) -> None:
    """A client belongs to a loop: without a running one there is nothing to open it in."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        open_provider(ProviderSpec(dialect=dialect, api_key=KEY))


@pytest.mark.parametrize(
    ("base_url", "cause"),
    [
        ("http://api.example.com/v1", "send the key in the clear"),
        ("http://10.0.0.7:8000/v1", "send the key in the clear"),
        ("http://localhost.example.com/v1", "send the key in the clear"),
        ("http://[2001:db8::1]/v1", "send the key in the clear"),
        ("ftp://api.example.com/v1", "no http"),
        ("api.example.com/v1", "no http"),
        ("https://", "no http"),
        ("https://[::1", "no http"),
        ("https://user:hunter2@api.example.com/v1", "user name or password"),
    ],
)
@each
def test_a_base_url_that_would_give_the_key_away_is_refused(dialect: Dialect, base_url: str, cause: str) -> None:
    """The key travels encrypted or not at all; the message says why and repeats no password."""
    with pytest.raises(ConfigurationError, match=cause) as caught:
        opened(ProviderSpec(dialect=dialect, api_key=KEY, base_url=base_url))
    assert "hunter2" not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "base_url",
    ["http://127.0.0.1:9/x", "http://localhost:9/x", "http://[::1]:9/x", "https://api.example.com/x"],
)
@each
def test_loopback_needs_no_encryption(dialect: Dialect, base_url: str) -> None:
    """A local server may be reached in clear."""
    assert opened(ProviderSpec(dialect=dialect, api_key=KEY, base_url=base_url)) == dialect.value


def test_a_doubled_path_is_seen() -> None:
    """Anthropic's paths bring their own /v1; a base URL that has it would answer 404 to all."""
    with pytest.raises(ConfigurationError, match="/v1"):
        opened(ProviderSpec(dialect=Dialect.ANTHROPIC, api_key=KEY, base_url="https://api.example.com/v1/"))


@pytest.mark.parametrize("key", ["", " ", "sk-1\n", "sk 1", "sk-\u2026", "sk-1\x00"])
@each
def test_a_key_that_is_no_header_is_refused_without_being_shown(dialect: Dialect, key: str) -> None:
    """A key with a stray character is a setting to correct, and the error that says so does not repeat it."""
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        opened(ProviderSpec(dialect=dialect, api_key=key))
    assert "sk" not in str(caught.value)


def test_the_environment_does_not_choose_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, organisation, project and address are the block's; variables change none of them."""
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
    ):
        monkeypatch.setenv(name, "from-the-environment")
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.setenv(name, "https://from-the-environment")
    arrived: list[dict[str, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        arrived.append({key.decode(): value.decode() for key, value in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def main() -> None:
        for dialect in Dialect:
            provider = open_provider(ProviderSpec(dialect=dialect, api_key=KEY), app=app)
            await provider.identify("a-model")
            await provider.aclose()

    asyncio.run(main())
    assert [headers["host"] for headers in arrived] == ["api.openai.com", "api.anthropic.com"]
    assert all(KEY in headers.get("x-api-key", headers.get("authorization", "")) for headers in arrived)
    assert not any("from-the-environment" in value for headers in arrived for value in headers.values())


@each
def test_a_host_that_names_no_account_is_the_account(dialect: Dialect) -> None:
    """Where no header names an organisation, the account is the host, so that answers are not mixed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def main() -> str:
        spec = ProviderSpec(dialect=dialect, api_key=KEY, base_url="https://llm.example.com:8443/x")
        provider = open_provider(spec, app=app)
        try:
            return await provider.identify("org/model")
        finally:
            await provider.aclose()

    assert asyncio.run(main()) == "host:llm.example.com:8443"


def test_a_spec_is_made_from_plain_values() -> None:
    """A block's fields convert to a spec; a dialect that nobody speaks does not."""
    made = msgspec.convert({"dialect": "anthropic", "api_key": KEY}, ProviderSpec)
    assert made.dialect is Dialect.ANTHROPIC
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"dialect": "esperanto", "api_key": KEY}, ProviderSpec)
