"""Errors by meaning as they come over a socket through the real SDKs, and what hosts in between make of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
import pytest

from prefect_llm_tiers.core.outcomes import Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import CallFailed, FailureMeaning, Provider
from prefect_llm_tiers.core.requests import Endpoint, Request
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import CredentialsRejected, UnknownModel
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider
from tests.unit.providers.test_outcome_reasons import chat, message

T = TypeVar("T")

SECRET = "marmalade"
KEY = "sk-proj-0123456789"
ENDPOINTS = {Dialect.OPENAI: Endpoint.CHAT_COMPLETIONS, Dialect.ANTHROPIC: Endpoint.MESSAGES}
MODELS = {Dialect.OPENAI: "gpt-6-luna", Dialect.ANTHROPIC: "claude-haiku-5-5"}

Reply = tuple[int, dict[str, str], bytes]


def error(status: int, said: str = "", headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    """Return an error of OpenAI's, whose message also repeats the prompt."""
    body = {"error": {"message": f"{said} ({SECRET})", **fields}}
    return status, headers or {}, orjson.dumps(body)


def anthropic_error(status: int, kind: str, said: str = "") -> Reply:
    """Return an error of Anthropic's."""
    body = {"type": "error", "error": {"type": kind, "message": f"{said} ({SECRET})"}}
    return status, {}, orjson.dumps(body)


def ok(body: dict[str, Any]) -> Reply:
    """Return a success."""
    return 200, {}, orjson.dumps(body)


class Host:
    """A loopback server that answers each request in turn, and keeps what arrived.

    Args:
        answer: Makes the reply of a request from its path and body.
    """

    def __init__(self, answer: Callable[[str, bytes], Reply]) -> None:
        self._answer = answer
        self.paths: list[str] = []
        self.heads: list[bytes] = []
        self.bodies: list[dict[str, Any]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                body = await reader.readexactly(length)
                path = head.split(b" ")[1].decode()
                self.heads.append(head.lower())
                self.paths.append(path)
                if body:
                    self.bodies.append(orjson.loads(body))
                status, headers, text = self._answer(path, body)
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\n{lines}\r\n".encode() + text)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def with_host(
    dialect: Dialect, host: Host, main: Callable[[Provider], Awaitable[T]], *, service: str | None = None
) -> T:
    """Run a coroutine over a provider at a host, through the SDK's own transport."""

    async def run() -> T:
        server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
        host.port = server.sockets[0].getsockname()[1]
        root = f"http://127.0.0.1:{host.port}"
        spec = ProviderSpec(
            dialect=dialect,
            api_key=KEY,
            base_url=f"{root}/v1" if dialect is Dialect.OPENAI else root,
            service=service,
        )
        provider = open_provider(spec)
        try:
            async with asyncio.timeout(30):
                return await main(provider)
        finally:
            await provider.aclose()
            server.close()

    return asyncio.run(run())


def ask(
    dialect: Dialect, host: Host, *, tier: Tier = Tier.STANDARD, model: str | None = None, service: str | None = None
) -> Outcome:
    """Ask one thing."""
    body = orjson.dumps({"messages": [{"role": "user", "content": SECRET}], "model": model or MODELS[dialect]})
    request = Request(key="k" * 43, body=body)
    return with_host(
        dialect,
        host,
        lambda provider: provider.call(request, endpoint=ENDPOINTS[dialect], tier=tier, timeout_s=10.0),
        service=service,
    )


def meaning(dialect: Dialect, reply: Reply, *, tier: Tier = Tier.STANDARD) -> FailureMeaning:
    """Return the meaning of a call that is answered so; nothing of the message may come along, and it is sent once."""
    host = Host(lambda _path, _body: reply)
    with pytest.raises(CallFailed) as caught:
        ask(dialect, host, tier=tier)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert len(host.paths) == 1
    return caught.value.meaning


@pytest.mark.parametrize(
    ("reply", "kind", "reason", "wait_s", "maybe_billed"),
    [
        # Capacity: by code, by words, by status.
        (error(429, "x", code="resource_unavailable"), "capacity", "resource_unavailable", None, False),
        (error(429, "Resource Unavailable"), "capacity", "resource_unavailable", None, False),
        (error(498, "x", code="capacity_exceeded"), "capacity", "capacity_exceeded", None, False),
        (error(503, "x", code="server_overloaded"), "capacity", "server_overloaded", None, False),
        ((503, {}, b"<html>"), "capacity", "service_unavailable", None, True),
        ((529, {}, b""), "capacity", "overloaded_error", None, True),
        # The account's own limit.
        (
            error(429, "x", {"retry-after": "7"}, code="rate_limit_exceeded"),
            "rate_limit",
            "rate_limit_exceeded",
            7,
            False,
        ),
        (error(429, "x", {"retry-after-ms": "250"}), "rate_limit", "rate_limit_exceeded", 0.25, False),
        # Gateways that lose the code, the header or the status.
        (error(429, "Too many requests", code="429", type=None), "rate_limit", "rate_limit_exceeded", None, False),
        (error(429, "Too many requests", code=429), "rate_limit", "rate_limit_exceeded", None, False),
        (error(500, "Too many requests", code="429"), "rate_limit", "rate_limit_exceeded", None, False),
        (error(400, "upstream: Resource Unavailable", code=429), "capacity", "resource_unavailable", None, False),
        (error(429, "Please try again in 1m30s."), "rate_limit", "rate_limit_exceeded", 90, False),
        (error(429, "Please retry after 6 seconds.", code="429"), "rate_limit", "rate_limit_exceeded", 6, False),
        ((429, {}, b""), "rate_limit", "rate_limit_exceeded", None, False),
        # Nobody answers until somebody pays.
        (
            error(429, "x", type="insufficient_quota", code="insufficient_quota"),
            "quota",
            "insufficient_quota",
            None,
            False,
        ),
        (error(429, "You exceeded your current quota", code="429"), "quota", "insufficient_quota", None, False),
        ((402, {}, b""), "quota", "insufficient_quota", None, False),
        # The provider, and the way to it.
        (error(500, "x", type="server_error"), "server", "server_error", None, True),
        ((502, {}, b"<html>"), "server", "http_502", None, True),
        ((504, {}, b""), "timeout", "http_504", None, True),
        ((409, {}, b""), "server", "conflict", None, False),
    ],
)
def test_openais_errors(reply: Reply, kind: str, reason: str, wait_s: float | None, maybe_billed: bool) -> None:
    """Each means the same whatever stands between: by code, by words, by status, in that order."""
    told = meaning(Dialect.OPENAI, reply)
    assert (told.kind, told.reason, told.retry_after_s) == (kind, reason, wait_s)
    assert told.maybe_billed is maybe_billed


@pytest.mark.parametrize(
    ("reply", "kind", "reason"),
    [
        (anthropic_error(529, "overloaded_error"), "capacity", "overloaded_error"),
        (anthropic_error(429, "rate_limit_error"), "rate_limit", "rate_limit_error"),
        (
            anthropic_error(400, "invalid_request_error", "Your credit balance is too low"),
            "quota",
            "insufficient_quota",
        ),
        (anthropic_error(500, "api_error"), "server", "api_error"),
        (anthropic_error(504, "timeout_error"), "timeout", "timeout_error"),
    ],
)
def test_anthropics_errors(reply: Reply, kind: str, reason: str) -> None:
    """The same meanings in the other dialect."""
    told = meaning(Dialect.ANTHROPIC, reply)
    assert (told.kind, told.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("dialect", "reply", "kind", "reason"),
    [
        (
            Dialect.OPENAI,
            error(400, "x", code="unsupported_parameter", param="temperature"),
            OutcomeKind.FAILURE,
            "unsupported_parameter: temperature",
        ),
        (
            Dialect.OPENAI,
            error(400, "x", code="context_length_exceeded"),
            OutcomeKind.FAILURE,
            "context_length_exceeded",
        ),
        (Dialect.OPENAI, error(400, "x", code="invalid_prompt"), OutcomeKind.REFUSAL, "invalid_prompt"),
        (Dialect.OPENAI, error(400, "x", code="content_filter", param="prompt"), OutcomeKind.REFUSAL, "content_filter"),
        (
            Dialect.OPENAI,
            error(400, "filtered due to Azure OpenAI's content management policy", type="invalid_request_error"),
            OutcomeKind.REFUSAL,
            "content_filter",
        ),
        (
            Dialect.ANTHROPIC,
            anthropic_error(400, "invalid_request_error", "Output blocked by content filtering policy"),
            OutcomeKind.REFUSAL,
            "content_filter",
        ),
        (
            Dialect.ANTHROPIC,
            anthropic_error(400, "invalid_request_error", "max_tokens: too large"),
            OutcomeKind.FAILURE,
            "invalid_request_error",
        ),
    ],
)
def test_a_row_that_is_turned_down_has_an_outcome(
    dialect: Dialect, reply: Reply, kind: OutcomeKind, reason: str
) -> None:
    """What the request is ends its row, as a failure; what it says, as a refusal; the message is not kept."""
    outcome = ask(dialect, Host(lambda _path, _body: reply))
    assert (outcome.kind, outcome.reason, outcome.text) == (kind, reason, None)


@pytest.mark.parametrize(
    "reply",
    [
        error(403, "Your organization must be verified to use the model `o3`", code="model_not_found"),
        error(404, "Your organization must be verified to use the model `o3`", code="model_not_found"),
        error(
            400,
            "Your organization must be verified to generate reasoning summaries",
            code="unsupported_value",
            param="reasoning.summary",
        ),
    ],
)
def test_an_unverified_organization_stops_with_what_to_do(reply: Reply) -> None:
    """It is neither a missing model nor a bad row, and the message says where to verify and how long it takes."""
    with pytest.raises(CredentialsRejected, match=r"organization verified.*nothing was asked.*15 minutes") as caught:
        ask(Dialect.OPENAI, Host(lambda _path, _body: reply))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_refused_key_stops_with_what_to_check(dialect: Dialect, status: int) -> None:
    """The error names the block's fields, and repeats no message and no key."""
    with pytest.raises(CredentialsRejected, match=rf"HTTP {status}.*Check the provider block's `api_key`") as caught:
        ask(dialect, Host(lambda _path, _body: error(status, f"Incorrect API key provided: {KEY}")))
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


def test_an_error_in_a_success_is_an_error() -> None:
    """Gateways pass on an error under 200; its own status tells what it means, and nothing was billed."""
    reply = ok({"error": {"code": 429, "message": "Rate limit exceeded. Try again in 20s"}})
    told = meaning(Dialect.OPENAI, reply)
    assert (told.kind, told.retry_after_s, told.maybe_billed) == ("rate_limit", 20, False)


# Tiers that a host does not know


def test_flex_that_is_not_offered_is_told_from_a_bad_row() -> None:
    """A 400 about the tier is no failure of the row."""
    reply = error(400, "x", code="unsupported_value", param="service_tier", type="invalid_request_error")
    assert meaning(Dialect.OPENAI, reply, tier=Tier.FLEX).kind == "tier_unsupported"
    detail = {"detail": [{"type": "extra_forbidden", "loc": ["body", "service_tier"], "msg": "Extra inputs"}]}
    assert meaning(Dialect.OPENAI, (422, {}, orjson.dumps(detail)), tier=Tier.FLEX).kind == "tier_unsupported"


def test_a_host_that_refuses_the_field_is_not_told_it_again() -> None:
    """On the standard tier the field is left out from then on: one call is repeated, which cost nothing."""

    def answer(_path: str, body: bytes) -> Reply:
        if "service_tier" in orjson.loads(body):
            return error(400, "Unrecognized request argument supplied: service_tier", param="service_tier")
        return ok(chat("yes"))

    host = Host(answer)
    body = orjson.dumps({"messages": [], "model": "gpt-6-luna"})

    async def twice(provider: Provider) -> list[str | None]:
        requests = [Request(key=letter * 43, body=body) for letter in "ab"]
        return [
            (await provider.call(one, endpoint=Endpoint.CHAT_COMPLETIONS, tier=Tier.STANDARD, timeout_s=10.0)).text
            for one in requests
        ]

    assert with_host(Dialect.OPENAI, host, twice) == ["yes", "yes"]
    assert ["service_tier" in sent for sent in host.bodies] == [True, False, False]


@pytest.mark.parametrize(
    ("model", "service", "tier", "named"),
    [
        ("gpt-6-luna", None, Tier.STANDARD, "default"),
        ("gpt-6-luna", None, Tier.FLEX, "flex"),
        ("meta-llama/Llama-3.3-70B-Instruct", None, Tier.STANDARD, None),
        ("gpt-6-luna", "vllm", Tier.STANDARD, None),
        ("llama-3.3-70b-versatile", "groq", Tier.STANDARD, "on_demand"),
        ("llama-3.3-70b-versatile", "groq", Tier.FLEX, "flex"),
        ("our-deployment", "azure", Tier.STANDARD, None),
    ],
)
def test_a_tier_is_named_as_the_service_names_it(
    model: str, service: str | None, tier: Tier, named: str | None
) -> None:
    """A request says `service_tier` in the service's own words, or not at all."""
    host = Host(lambda _path, _body: ok({**chat("yes"), "service_tier": named}))
    outcome = ask(Dialect.OPENAI, host, tier=tier, model=model, service=service)
    assert [body.get("service_tier") for body in host.bodies] == [named]
    assert outcome.tier_served is tier


@pytest.mark.parametrize("tier", [Tier.FLEX, Tier.PRIORITY])
def test_a_tier_that_the_table_does_not_offer_is_never_sent(tier: Tier) -> None:
    """Llama at a host that nobody knows is asked in no tier but standard; nothing leaves the machine."""
    host = Host(lambda _path, _body: ok(chat("yes")))
    with pytest.raises(CallFailed) as caught:
        ask(Dialect.OPENAI, host, tier=tier, model="meta-llama/Llama-3.3-70B-Instruct")
    assert caught.value.meaning.kind == "tier_unsupported"
    assert host.paths == []


# Models


def looked_up(answer: Callable[[str], Reply], model: str, *, service: str | None = None) -> str:
    """Look a model up at a host, and return the account."""
    host = Host(lambda path, _body: answer(path))
    return with_host(Dialect.OPENAI, host, lambda provider: provider.identify(model), service=service)


def lists_alone(path: str) -> Reply:
    """Answer as a server that has a list of models and no page for each."""
    return ok({"object": "list", "data": [{"id": "org/llama"}]}) if path == "/v1/models" else (404, {}, b"Not Found")


def test_a_model_is_found_in_the_list_of_a_host_without_pages() -> None:
    """Where a model has no page of its own, the list tells whether it is there."""
    assert looked_up(lists_alone, "org/llama").startswith("host:127.0.0.1:")
    with pytest.raises(UnknownModel, match="'org/qwen'"):
        looked_up(lists_alone, "org/qwen")
    with pytest.raises(UnknownModel):
        looked_up(lists_alone, "org/llama", service="openai")


def test_a_host_without_a_list_is_asked_all_the_same() -> None:
    """Where nobody can say beforehand, the first call tells."""
    assert looked_up(lambda _path: (404, {}, b"Not Found"), "org/llama").startswith("host:")
    with pytest.raises(CallFailed):
        looked_up(lambda path: (503, {}, b"") if path == "/v1/models" else (404, {}, b""), "org/llama")


def test_a_deployment_is_not_looked_for_in_a_list_of_models() -> None:
    """Azure's list holds what could be deployed, under names of its own."""
    assert looked_up(lists_alone, "our-deployment", service="azure").startswith("host:")


# Redirects


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_redirect_does_not_carry_the_key(dialect: Dialect) -> None:
    """A result file may lie elsewhere; the key goes to the block's own address alone."""
    elsewhere = Host(lambda _path, _body: ok({"moved": True}))

    async def main() -> list[bytes]:
        server = await asyncio.start_server(elsewhere.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        there = f"http://127.0.0.1:{port}/file"

        def answer(path: str, _body: bytes) -> Reply:
            if path.endswith(("/content", "/results")):
                return 302, {"location": there}, b""
            return ok({"id": "b", "status": "completed", "output_file_id": "f", "created_at": 1, "endpoint": "/v1/x"})

        host = Host(answer)
        here = await asyncio.start_server(host.serve, "127.0.0.1", 0)
        root = f"http://127.0.0.1:{here.sockets[0].getsockname()[1]}"
        base_url = f"{root}/v1" if dialect is Dialect.OPENAI else root
        provider = open_provider(ProviderSpec(dialect=dialect, api_key=KEY, organization="org-1", base_url=base_url))
        try:
            async for _ in provider.results("b", model="m", endpoint=ENDPOINTS[dialect]):
                pass
        finally:
            await provider.aclose()
            server.close()
            here.close()
        return host.heads

    first = asyncio.run(main())
    assert KEY.encode() in first[-1]
    assert list(elsewhere.paths) == ["/file"]
    assert KEY.encode() not in elsewhere.heads[0]
    assert b"org-1" not in elsewhere.heads[0]


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_redirect_to_an_address_in_clear_is_not_followed(dialect: Dialect) -> None:
    """Nothing is sent there; what failed is named, and may be tried again."""

    def answer(path: str, _body: bytes) -> Reply:
        if path.endswith(("/content", "/results")):
            return 302, {"location": "http://files.example.com/file"}, b""
        return ok({"id": "b", "status": "completed", "output_file_id": "f", "created_at": 1, "endpoint": "/v1/x"})

    async def read(provider: Provider) -> None:
        async for _ in provider.results("b", model="m", endpoint=ENDPOINTS[dialect]):
            pass

    with pytest.raises(CallFailed) as caught:
        with_host(dialect, Host(answer), read)
    assert caught.value.meaning == FailureMeaning(kind="connection", reason="insecure_redirect")


def test_anthropics_own_words_are_sent() -> None:
    """The standard tier is `standard_only`, whatever the host."""
    host = Host(lambda _path, _body: ok(message("yes")))
    assert ask(Dialect.ANTHROPIC, host).text == "yes"
    assert host.bodies[0]["service_tier"] == "standard_only"
