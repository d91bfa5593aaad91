"""Who answers at a base URL: the services that speak one of the two dialects, and how a host tells them."""

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.errors import ConfigurationError

__all__ = [
    "ANTHROPIC",
    "AZURE",
    "DEEPINFRA",
    "DOUBLEWORD",
    "GATEWAY",
    "GROQ",
    "OPENAI",
    "SERVICES",
    "VLLM",
    "Dialect",
    "Service",
    "service_at",
    "service_named",
]


class Dialect(StrEnum):
    """Whose protocol a provider speaks; many hosts speak OpenAI's."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers at a base URL.

    Attributes:
        name: As a block may name it.
        dialect: The protocol.
        hosts: Shell patterns of its hosts.
        known_as: Its name in the ledger, and in the price book where that has prices of it.
        endpoint: The path that is asked where a step names none; see `default_endpoint`.
        models: How to ask whether it has a model: each has a page of its own (`page`), or stands in the list (`list`);
            `unlisted` where the names that are asked are the account's own.
    """

    name: str
    dialect: Dialect
    hosts: tuple[str, ...] = ()
    known_as: str
    endpoint: Endpoint
    models: Literal["page", "list", "unlisted"] = "page"


def _speaks_openai(name: str, *hosts: str, models: Literal["list", "unlisted"] = "list") -> Service:
    return Service(
        name=name,
        dialect=Dialect.OPENAI,
        hosts=hosts,
        known_as=name,
        # What every host that speaks OpenAI's protocol has; few have `responses`.
        endpoint=Endpoint.CHAT_COMPLETIONS,
        models=models,
    )


OPENAI = Service(
    name="openai",
    dialect=Dialect.OPENAI,
    hosts=("api.openai.com", "*.api.openai.com"),
    known_as="openai",
    endpoint=Endpoint.RESPONSES,
)
ANTHROPIC = Service(
    name="anthropic",
    dialect=Dialect.ANTHROPIC,
    hosts=("api.anthropic.com",),
    known_as="anthropic",
    endpoint=Endpoint.MESSAGES,
)
AZURE = _speaks_openai(
    "azure",
    "*.openai.azure.com",
    "*.services.ai.azure.com",
    "*.cognitiveservices.azure.com",
    # A deployment has the name that the account gave it, and the list holds what could be deployed.
    models="unlisted",
)
GROQ = _speaks_openai("groq", "api.groq.com")
DOUBLEWORD = _speaks_openai("doubleword", "api.doubleword.ai")
DEEPINFRA = _speaks_openai("deepinfra", "api.deepinfra.com")
VLLM = _speaks_openai("vllm")
# A host that nobody knows. OpenAI sells its own models alone, so whoever passes one on passes OpenAI's tiers on.
GATEWAY = msgspec.structs.replace(_speaks_openai("gateway"), known_as="openai")

SERVICES: tuple[Service, ...] = (OPENAI, ANTHROPIC, AZURE, GROQ, DOUBLEWORD, DEEPINFRA, VLLM, GATEWAY)
"""Every service that the table knows."""


def service_named(name: str, dialect: Dialect) -> Service:
    """Return the service of a name.

    Raises:
        ConfigurationError: There is none of that name that speaks the dialect.
    """
    known = {service.name: service for service in SERVICES if service.dialect is dialect}
    if name not in known:
        raise ConfigurationError(
            f"There is no service {name!r} that speaks the '{dialect}' dialect. Choose one of {', '.join(known)}, or "
            "leave the block's `service` out to go by the host of its `base_url`."
        )
    return known[name]


def service_at(base_url: str | None, dialect: Dialect) -> Service:
    """Return the service at a base URL; None is the dialect's own.

    A host that the table does not know is a gateway to OpenAI for OpenAI's own models, and offers the standard tier
    alone for all others. One that speaks Anthropic's dialect can only pass Anthropic's models on.
    """
    if dialect is Dialect.ANTHROPIC:
        return ANTHROPIC
    if base_url is None:
        return OPENAI
    host = urlsplit(base_url).hostname or ""
    return next((one for one in SERVICES if any(fnmatchcase(host, pattern) for pattern in one.hosts)), GATEWAY)
