"""The table of what each service offers."""

from typing import get_args

import pytest

from prefect_llm_tiers.blocks import OpenAIService, PlayedService
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.providers.capabilities import (
    CAPABILITIES,
    capabilities_of,
    default_endpoint,
    endpoints_of,
    offer_of,
)
from prefect_llm_tiers.providers.services import SERVICES, Dialect, service_at, service_named
from prefect_llm_tiers.simulator.services import PLAYED

LIVE_FLEX = {Tier.PRIORITY, Tier.STANDARD, Tier.FLEX, Tier.BATCH}


@pytest.mark.parametrize(
    ("base_url", "service"),
    [
        (None, "openai"),
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://API.GROQ.COM/openai/v1", "groq"),
        ("https://api.groq.com:443/openai/v1", "groq"),
        ("https://ours.openai.azure.com/openai/v1/", "azure"),
        ("https://ours.services.ai.azure.com/openai/v1/", "azure"),
        ("https://api.doubleword.ai/v1", "doubleword"),
        ("https://api.deepinfra.com/v1/openai", "deepinfra"),
        ("http://localhost:8000/v1", "gateway"),
        ("https://llm.example.com/v1", "gateway"),
        # A name that only looks like one.
        ("https://api.openai.com.example.com/v1", "gateway"),
        ("https://notapi.groq.com/v1", "gateway"),
    ],
)
def test_the_host_tells_the_service(base_url: str | None, service: str) -> None:
    """A base URL is known by its host alone, and one that nobody knows is a gateway."""
    assert service_at(base_url, Dialect.OPENAI).name == service


@pytest.mark.parametrize(
    ("service", "model", "endpoint", "tiers"),
    [
        ("openai", "gpt-6-luna", Endpoint.RESPONSES, LIVE_FLEX),
        ("openai", "gpt-4.1-mini", Endpoint.RESPONSES, LIVE_FLEX - {Tier.FLEX}),
        ("openai", "ft:gpt-6-luna:us::1", Endpoint.CHAT_COMPLETIONS, {Tier.STANDARD, Tier.BATCH}),
        ("openai", "of-next-year", Endpoint.RESPONSES, {Tier.STANDARD, Tier.BATCH}),
        ("openai", "sora-2", Endpoint.VIDEOS, {Tier.BATCH}),
        ("anthropic", "claude-haiku-5-5", Endpoint.MESSAGES, {Tier.STANDARD, Tier.BATCH}),
        ("azure", "our-deployment", Endpoint.CHAT_COMPLETIONS, {Tier.STANDARD, Tier.BATCH}),
        ("groq", "llama-3.3-70b-versatile", Endpoint.CHAT_COMPLETIONS, {Tier.STANDARD, Tier.FLEX, Tier.BATCH}),
        ("doubleword", "Qwen/Qwen3.5-9B", Endpoint.CHAT_COMPLETIONS, {Tier.STANDARD, Tier.BATCH}),
        ("deepinfra", "meta-llama/Llama-4", Endpoint.CHAT_COMPLETIONS, {Tier.STANDARD, Tier.BATCH}),
        ("vllm", "gpt-6-luna", Endpoint.CHAT_COMPLETIONS, {Tier.STANDARD}),
        # A gateway passes OpenAI's own models on, and no other tier of anybody else's.
        ("gateway", "gpt-6-luna", Endpoint.RESPONSES, LIVE_FLEX),
        ("gateway", "meta-llama/Llama-3.3-70B-Instruct", Endpoint.RESPONSES, {Tier.STANDARD}),
        ("gateway", "gpt-oss-20b", Endpoint.CHAT_COMPLETIONS, {Tier.STANDARD}),
        ("gateway", "text-embedding-3-small", Endpoint.EMBEDDINGS, {Tier.STANDARD, Tier.BATCH}),
        ("gateway", "nomic-embed-text", Endpoint.EMBEDDINGS, {Tier.STANDARD}),
    ],
)
def test_a_model_is_offered_in_the_tiers_of_its_row(
    service: str, model: str, endpoint: Endpoint, tiers: set[Tier]
) -> None:
    """The first row that fits counts; a batch has limits exactly where there is one."""
    offered = capabilities_of(service, model, endpoint)
    assert offered.tiers == tiers
    assert (offered.batch is not None) is (Tier.BATCH in tiers)


def test_an_endpoint_that_a_service_lacks_is_refused_with_those_it_has() -> None:
    """The message names the service, the endpoint and the way out."""
    with pytest.raises(ConfigurationError, match=r"'vllm' .* '/v1/videos'.*Choose one of: .*`service`"):
        capabilities_of("vllm", "m", Endpoint.VIDEOS)


@pytest.mark.parametrize(
    ("service", "model", "endpoint"),
    [
        ("openai", "gpt-6-luna", Endpoint.RESPONSES),
        ("gateway", "gpt-6-luna", Endpoint.RESPONSES),
        ("gateway", "llama", Endpoint.CHAT_COMPLETIONS),
        ("groq", "llama", Endpoint.CHAT_COMPLETIONS),
        ("anthropic", "claude", Endpoint.MESSAGES),
    ],
)
def test_each_service_is_asked_at_an_endpoint_that_it_has(service: str, model: str, endpoint: Endpoint) -> None:
    """Where a step names no endpoint, it is one that the service is known to have."""
    dialect = Dialect.ANTHROPIC if service == "anthropic" else Dialect.OPENAI
    found = next(one for one in SERVICES if one.name == service and one.dialect is dialect)
    assert default_endpoint(found, model) == endpoint
    assert endpoint in endpoints_of(service)


def test_every_row_is_sound() -> None:
    """A row names known services, a tier or more, and no tier both offered and not established."""
    names = {service.name for service in SERVICES}
    for offer in CAPABILITIES:
        assert set(offer.services) <= names
        assert offer.tiers
        assert offer.tiers.isdisjoint(offer.unproven)
        assert (offer.batch is not None) is (Tier.BATCH in offer.tiers)
        # Named are all live tiers or none: one that is not named would be another tier's.
        assert not offer.names or offer.tiers - {Tier.BATCH} <= set(offer.names)
        if {Tier.FLEX, Tier.PRIORITY} & offer.tiers:
            assert offer.names


def test_a_block_names_the_services_that_there_are() -> None:
    """Every service of OpenAI's dialect but the unknown host can be named on a block, and the simulator plays some."""
    spoken = {service.name for service in SERVICES if service.dialect is Dialect.OPENAI}
    assert set(get_args(OpenAIService)) - {""} == spoken - {"gateway"}
    assert set(get_args(PlayedService)) - {""} == set(PLAYED) <= spoken


def test_a_service_that_nobody_knows_is_refused() -> None:
    """A slip in a name is told with the names there are."""
    with pytest.raises(ConfigurationError, match=r"no service 'grok'.*groq"):
        service_named("grok", Dialect.OPENAI)
    with pytest.raises(ConfigurationError, match="no service 'anthropic'"):
        service_named("anthropic", Dialect.OPENAI)


def test_moderations_are_free() -> None:
    """What is never billed is known to be free, and is not unpriced."""
    for model in ("omni-moderation-latest", "text-moderation-stable"):
        offer = offer_of("openai", model, Endpoint.MODERATIONS)
        assert offer is not None
        assert offer.free
