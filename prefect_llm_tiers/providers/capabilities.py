"""What each provider offers, as one table: dialect, endpoint and model to tiers and limits of a batch.

As of November 2026, from the providers' own pages. A model that is offered less than the table says answers
400, which is read as `tier_unsupported`; one that is offered more is asked in fewer tiers than it could be.
"""

from datetime import timedelta
from enum import StrEnum
from fnmatch import fnmatchcase

import msgspec

from prefect_llm_tiers.core.ports import BatchLimits, Capabilities
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import ConfigurationError

__all__ = ["CAPABILITIES", "Dialect", "Offer", "capabilities_of", "endpoints_of"]


class Dialect(StrEnum):
    """Whose protocol a provider speaks; many hosts speak OpenAI's."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Offer(msgspec.Struct, frozen=True):
    """One row of the table.

    Attributes:
        dialect: The protocol.
        endpoints: The paths it holds for.
        models: Shell pattern of the model ids it holds for.
        tiers: The tiers that may be asked for.
        batch: Limits of a batch; None where there is none.
    """

    dialect: Dialect
    endpoints: frozenset[Endpoint]
    models: str
    tiers: frozenset[Tier]
    batch: BatchLimits | None


_OPENAI_BATCH = BatchLimits(
    requests=50_000,
    bytes=200_000_000,
    window=timedelta(hours=24),
    cancel=timedelta(minutes=10),
    reports_progress=True,
)
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
_EMBEDDINGS = frozenset({Endpoint.EMBEDDINGS})
_RAW = frozenset({Endpoint.COMPLETIONS, Endpoint.MODERATIONS, Endpoint.IMAGES})
# Live these two take a multipart form, or answer with a job to look after; in a batch they are like the rest.
_BATCH_ONLY = frozenset({Endpoint.IMAGE_EDITS, Endpoint.VIDEOS})
_MESSAGES = frozenset({Endpoint.MESSAGES})

_ALL = frozenset(Tier)
_NO_FLEX = frozenset({Tier.PRIORITY, Tier.STANDARD, Tier.BATCH})
_NO_PRIORITY = frozenset({Tier.STANDARD, Tier.FLEX, Tier.BATCH})
_BASE = frozenset({Tier.STANDARD, Tier.BATCH})

CAPABILITIES: tuple[Offer, ...] = (
    # Fine-tuned models are served on the standard tier and in batches only.
    Offer(Dialect.OPENAI, _TEXT, "ft:*", _BASE, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "*-pro*", _BASE, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "gpt-*-nano*", _NO_PRIORITY, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "gpt-5*", _ALL, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "gpt-6*", _ALL, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "o3", _ALL, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "o3-20*", _ALL, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "o4-mini*", _ALL, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "gpt-4.1*", _NO_FLEX, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "gpt-4o*", _NO_FLEX, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _TEXT, "*", _BASE, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _EMBEDDINGS, "*", _BASE, _EMBEDDINGS_BATCH),
    Offer(Dialect.OPENAI, _RAW, "*", _BASE, _OPENAI_BATCH),
    Offer(Dialect.OPENAI, _BATCH_ONLY, "*", frozenset({Tier.BATCH}), _OPENAI_BATCH),
    # Priority commitments are no longer sold, and there is no flex.
    Offer(Dialect.ANTHROPIC, _MESSAGES, "*", _BASE, _ANTHROPIC_BATCH),
)
"""The table; the first row that fits counts."""


def endpoints_of(dialect: Dialect) -> frozenset[Endpoint]:
    """Return the endpoints that can be asked in a dialect."""
    return frozenset(endpoint for offer in CAPABILITIES if offer.dialect is dialect for endpoint in offer.endpoints)


def capabilities_of(dialect: Dialect, model: str, endpoint: Endpoint) -> Capabilities:
    """Return what a provider offers for a model at an endpoint.

    Raises:
        ConfigurationError: The dialect has no such endpoint.
    """
    for offer in CAPABILITIES:
        if offer.dialect is dialect and endpoint in offer.endpoints and fnmatchcase(model, offer.models):
            return Capabilities(tiers=offer.tiers, batch=offer.batch)
    known = ", ".join(sorted(endpoints_of(dialect)))
    raise ConfigurationError(
        f"A provider that speaks the '{dialect}' dialect has no endpoint '{endpoint}'. Choose one of: {known}."
    )
