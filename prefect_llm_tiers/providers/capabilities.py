"""What each service offers, as one table: host, endpoint and model to tiers, limits, window and discount.

As of November 2026, from the services' own pages. Only what is established is offered: a tier that a service may
have, and of which nobody here knows how it answers, stands in `unproven`. A model that is offered less than the table
says answers 400, which is read as `tier_unsupported` and learned for the run; one that is offered more is asked in
fewer tiers than it could be. `docs/providers.md` shows the table, and a test holds the two together.
"""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache

import msgspec

from prefect_llm_tiers.core.ports import BatchLimits, Capabilities
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.providers.services import (
    ANTHROPIC,
    AZURE,
    DEEPINFRA,
    DOUBLEWORD,
    GATEWAY,
    GROQ,
    OPENAI,
    VLLM,
    Dialect,
    Service,
)

__all__ = [
    "CAPABILITIES",
    "Dialect",
    "Offer",
    "capabilities_of",
    "default_endpoint",
    "endpoints_of",
    "offer_of",
]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        services: Names of the services that it holds for.
        endpoints: The paths that it holds for.
        models: Shell patterns of the model ids that it holds for.
        tiers: The tiers that may be asked for.
        batch: Limits of a batch; None where there is none.
        names: What a request says in `service_tier` for each live tier; empty where it must not say anything.
        ratios: What a tier costs over standard, as published.
        free: Whether nothing is ever billed.
        unproven: Tiers that the service may have and that are not asked for, for want of an established fact.
    """

    services: tuple[str, ...]
    endpoints: frozenset[Endpoint]
    models: tuple[str, ...]
    tiers: frozenset[Tier]
    batch: BatchLimits | None = None
    names: Mapping[Tier, str] = {}
    ratios: Mapping[Tier, Decimal] = {}
    free: bool = False
    unproven: frozenset[Tier] = frozenset()


_OPENAI_BATCH = BatchLimits(
    requests=50_000,
    bytes=200_000_000,
    window=timedelta(hours=24),
    cancel=timedelta(minutes=10),
    reports_progress=True,
)
# Its guide says 200 MB and its reference 100.
_GROQ_BATCH = msgspec.structs.replace(_OPENAI_BATCH, bytes=100_000_000)
_EMBEDDINGS_BATCH = msgspec.structs.replace(_OPENAI_BATCH, inputs=50_000)
# The counts stay at zero until the whole batch ends. How long a cancel takes is not documented.
_ANTHROPIC_BATCH = BatchLimits(
    requests=100_000,
    bytes=256_000_000,
    window=timedelta(hours=24),
    cancel=timedelta(minutes=10),
    reports_progress=False,
    metadata=False,
)

_TEXT = frozenset({Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS})
_CHAT = frozenset({Endpoint.CHAT_COMPLETIONS})
_RESPONSES = frozenset({Endpoint.RESPONSES})
_EMBEDDINGS = frozenset({Endpoint.EMBEDDINGS})
_COMPLETIONS = frozenset({Endpoint.COMPLETIONS})
_MODERATIONS = frozenset({Endpoint.MODERATIONS})
_RAW = frozenset({Endpoint.COMPLETIONS, Endpoint.IMAGES})
# Live these two take a multipart form, or answer with a job to look after; in a batch they are like the rest.
_BATCH_ONLY = frozenset({Endpoint.IMAGE_EDITS, Endpoint.VIDEOS})
_MESSAGES = frozenset({Endpoint.MESSAGES})

_ALL = frozenset(Tier)
_NO_FLEX = frozenset({Tier.PRIORITY, Tier.STANDARD, Tier.BATCH})
_NO_PRIORITY = frozenset({Tier.STANDARD, Tier.FLEX, Tier.BATCH})
_BASE = frozenset({Tier.STANDARD, Tier.BATCH})
_STANDARD = frozenset({Tier.STANDARD})

_OPENAI_NAMES = {Tier.STANDARD: "default", Tier.FLEX: "flex", Tier.PRIORITY: "priority"}
_HALF = Decimal("0.5")
_OPENAI_RATIOS = {Tier.BATCH: _HALF, Tier.FLEX: _HALF, Tier.PRIORITY: Decimal(2)}
_BATCH_AT_HALF = {Tier.BATCH: _HALF}

_FROM_OPENAI = (OPENAI.name, GATEWAY.name)

_OPENAIS_OWN = ("gpt-[0-9]*", "chatgpt-*", "o[1-9]", "o[1-9]-*")
"""Models that nobody but OpenAI serves: of `gpt-oss` the weights are published."""


def _text(*models: str, tiers: frozenset[Tier]) -> Offer:
    return Offer(
        services=_FROM_OPENAI,
        endpoints=_TEXT,
        models=models,
        tiers=tiers,
        batch=_OPENAI_BATCH,
        names=_OPENAI_NAMES,
        ratios=_OPENAI_RATIOS,
    )


def _openais(
    endpoints: frozenset[Endpoint], *models: str, tiers: frozenset[Tier] = _BASE, batch: BatchLimits = _OPENAI_BATCH
) -> Offer:
    return Offer(
        services=_FROM_OPENAI, endpoints=endpoints, models=models, tiers=tiers, batch=batch, ratios=_BATCH_AT_HALF
    )


CAPABILITIES: tuple[Offer, ...] = (
    # Fine-tuned models are served on the standard tier and in batches only.
    _text("ft:*", "gpt-*-pro*", "o[1-9]-pro*", tiers=_BASE),
    _text("gpt-*-nano*", tiers=_NO_PRIORITY),
    _text("gpt-5*", "gpt-6*", "o3", "o3-20*", "o4-mini*", tiers=_ALL),
    _text("gpt-4.1*", "gpt-4o*", tiers=_NO_FLEX),
    _text(*_OPENAIS_OWN, tiers=_BASE),
    msgspec.structs.replace(_text("*", tiers=_BASE), services=(OPENAI.name,)),
    _openais(_EMBEDDINGS, "text-embedding-*", batch=_EMBEDDINGS_BATCH),
    _openais(_RAW, "gpt-3.5-*", "davinci-*", "babbage-*", "gpt-image*"),
    msgspec.structs.replace(_openais(_MODERATIONS, "*-moderation-*"), free=True),
    _openais(_BATCH_ONLY, "gpt-image*", "chatgpt-image*", "sora-*", tiers=frozenset({Tier.BATCH})),
    # OpenAI's own host takes what the names above do not tell.
    msgspec.structs.replace(_openais(_EMBEDDINGS, "*", batch=_EMBEDDINGS_BATCH), services=(OPENAI.name,)),
    msgspec.structs.replace(_openais(_RAW, "*"), services=(OPENAI.name,)),
    msgspec.structs.replace(_openais(_MODERATIONS, "*"), services=(OPENAI.name,), free=True),
    msgspec.structs.replace(_openais(_BATCH_ONLY, "*", tiers=frozenset({Tier.BATCH})), services=(OPENAI.name,)),
    # Priority commitments are no longer sold, and there is no flex. `auto` would draw on a commitment that is left.
    Offer(
        services=(ANTHROPIC.name,),
        endpoints=_MESSAGES,
        models=("*",),
        tiers=_BASE,
        batch=_ANTHROPIC_BATCH,
        names={Tier.STANDARD: "standard_only"},
        ratios=_BATCH_AT_HALF,
    ),
    # The window is a target: batches do not expire. A model is a deployment, and one for batches takes no live calls.
    # Flex is a preview that answers 400 where it is not there, and which deployments have priority is not told.
    Offer(
        services=(AZURE.name,),
        endpoints=_TEXT,
        models=("*",),
        tiers=_BASE,
        batch=_OPENAI_BATCH,
        ratios=_BATCH_AT_HALF,
        unproven=frozenset({Tier.FLEX, Tier.PRIORITY}),
    ),
    Offer(
        services=(AZURE.name,),
        endpoints=_EMBEDDINGS,
        models=("*",),
        tiers=_STANDARD,
        unproven=frozenset({Tier.BATCH}),
    ),
    # Flex costs what standard costs, at higher limits. Its `performance` tier is by contract. The window may be up to
    # 7 days; 24 hours are asked for.
    Offer(
        services=(GROQ.name,),
        endpoints=_CHAT,
        models=("*",),
        tiers=_NO_PRIORITY,
        batch=_GROQ_BATCH,
        names={Tier.STANDARD: "on_demand", Tier.FLEX: "flex"},
        ratios={Tier.FLEX: Decimal(1), Tier.BATCH: _HALF},
    ),
    Offer(
        services=(GROQ.name,),
        endpoints=_RESPONSES,
        models=("*",),
        tiers=_STANDARD,
        unproven=frozenset({Tier.FLEX, Tier.BATCH}),
    ),
    # A batch saves half at least; prices differ by model and window. Flex is at `responses` alone: an answer takes
    # up to an hour and is polled for, and standard is called `priority` there.
    Offer(
        services=(DOUBLEWORD.name,),
        endpoints=_CHAT | _EMBEDDINGS,
        models=("*",),
        tiers=_BASE,
        batch=_EMBEDDINGS_BATCH,
        ratios=_BATCH_AT_HALF,
        unproven=frozenset({Tier.FLEX}),
    ),
    Offer(
        services=(DEEPINFRA.name,),
        endpoints=_CHAT,
        models=("*",),
        tiers=_BASE,
        batch=_OPENAI_BATCH,
        ratios={Tier.BATCH: Decimal("0.8")},
        unproven=frozenset({Tier.PRIORITY}),
    ),
    Offer(
        services=(DEEPINFRA.name,),
        endpoints=_EMBEDDINGS,
        models=("*",),
        tiers=_STANDARD,
        unproven=frozenset({Tier.BATCH}),
    ),
    Offer(
        services=(VLLM.name, GATEWAY.name),
        endpoints=_TEXT | _EMBEDDINGS | _COMPLETIONS,
        models=("*",),
        tiers=_STANDARD,
    ),
)
"""The table; the first row that fits counts. Where a service's own limits of a batch are not established, OpenAI's
are kept, whose format they all take."""


def endpoints_of(service: str) -> frozenset[Endpoint]:
    """Return the endpoints that can be asked of a service, by its name."""
    return frozenset(endpoint for offer in CAPABILITIES if service in offer.services for endpoint in offer.endpoints)


def default_endpoint(service: Service, model: str) -> Endpoint:
    """Return the path that is asked where a step names none; OpenAI's for its own models behind a gateway."""
    offer = offer_of(service.name, model, OPENAI.endpoint)
    return OPENAI.endpoint if offer is not None and OPENAI.name in offer.services else service.endpoint


@lru_cache(maxsize=1024)
def offer_of(service: str, model: str, endpoint: Endpoint) -> Offer | None:
    """Return the row that holds for a service's model at an endpoint; None where there is none."""
    for offer in CAPABILITIES:
        fits = service in offer.services and endpoint in offer.endpoints
        if fits and any(fnmatchcase(model, pattern) for pattern in offer.models):
            return offer
    return None


def capabilities_of(service: str, model: str, endpoint: Endpoint) -> Capabilities:
    """Return what a service offers, by its name, for a model at an endpoint.

    Raises:
        ConfigurationError: It has no such endpoint.
    """
    offer = offer_of(service, model, endpoint)
    if offer is not None:
        return Capabilities(tiers=offer.tiers, batch=offer.batch, ratios=offer.ratios, free=offer.free)
    known = ", ".join(sorted(endpoints_of(service)))
    raise ConfigurationError(
        f"The service '{service}' is not known to have the endpoint '{endpoint}' for the model {model!r}. Choose one "
        f"of: {known}; or, if another service answers at this host, name it in the block's `service`."
    )
