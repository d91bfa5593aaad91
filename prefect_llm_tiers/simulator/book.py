"""The simulated providers' own price list, and the models on it.

Written apart from every other price table of this package, so that a bill from here can prove theirs.
Prices are USD per million tokens, as the providers publish them for November 2026.
"""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["MODELS", "Model", "Rate", "bill_usd", "find_model"]

MILLION = Decimal(1_000_000)


class Rate(msgspec.Struct, frozen=True):
    """USD per million tokens, and per second of film.

    Attributes:
        input: Of text read.
        cached: Of text read from the cache.
        output: Of what is written.
        image: Of images read.
        second: Of film, in USD for each second.
    """

    input: Decimal
    cached: Decimal
    output: Decimal
    image: Decimal = Decimal(0)
    second: Decimal = Decimal(0)


class Surcharge(msgspec.Struct, frozen=True):
    """A request whose input is longer than `above` tokens pays all of it times these."""

    above: int
    input: Decimal
    output: Decimal


_TEXT = frozenset({Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES})


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its provider lists it."""

    id: str
    dialect: str
    display_name: str
    released: datetime
    rates: dict[Tier, Rate]
    service: str = "openai"
    surcharge: Surcharge | None = None
    shutdown: datetime | None = None
    endpoints: frozenset[Endpoint] = _TEXT
    max_output_tokens: int = 128_000


def _rates(standard: str, batch: str, flex: str | None = None, priority: str | None = None) -> dict[Tier, Rate]:
    """Read `input / cached / output` price lines, and `/ image / second` where there are such."""

    def rate(line: str) -> Rate:
        return Rate(*(Decimal(part.strip()) for part in line.split("/")))

    rates = {Tier.STANDARD: rate(standard), Tier.BATCH: rate(batch)}
    if flex is not None:
        rates[Tier.FLEX] = rate(flex)
    if priority is not None:
        rates[Tier.PRIORITY] = rate(priority)
    return rates


_LONG_OPENAI = Surcharge(272_000, Decimal(2), Decimal("1.5"))
_LONG_HAIKU = Surcharge(100_000, Decimal(5), Decimal(5))

# o3 and o4-mini publish no cached price for batch: cached input costs what fresh input costs there.
# Anthropic reads its cache at a tenth of the input price.
_LISTED = (
    Model(
        id="o3",
        dialect="openai",
        display_name="o3",
        released=datetime(2025, 4, 16, tzinfo=UTC),
        rates=_rates("2/.50/8", "1/1/4", "1/.25/4", "3.5/.875/14"),
        shutdown=datetime(2026, 12, 11, tzinfo=UTC),
    ),
    Model(
        id="o4-mini",
        dialect="openai",
        display_name="o4-mini",
        released=datetime(2025, 4, 16, tzinfo=UTC),
        rates=_rates("1.1/.275/4.4", ".55/.55/2.2", ".55/.138/2.2", "2/.5/8"),
        shutdown=datetime(2026, 10, 23, tzinfo=UTC),
    ),
    Model(
        id="gpt-5.6-sol",
        dialect="openai",
        display_name="GPT-5.6 Sol",
        released=datetime(2026, 5, 12, tzinfo=UTC),
        rates=_rates("4/.4/20", "2/.2/10", "2/.2/10", "8/.8/40"),
        surcharge=_LONG_OPENAI,
    ),
    Model(
        id="gpt-6-luna",
        dialect="openai",
        display_name="GPT-6 Luna",
        released=datetime(2026, 8, 4, tzinfo=UTC),
        rates=_rates(".1/.01/.5", ".05/.005/.25", ".05/.005/.25", ".2/.02/1"),
        surcharge=_LONG_OPENAI,
    ),
    Model(
        id="gpt-6.1-sol",
        dialect="openai",
        display_name="GPT-6.1 Sol",
        released=datetime(2026, 10, 1, tzinfo=UTC),
        rates=_rates("2/.1/10", "1/.05/5", "1/.05/5", "4/.2/20"),
        surcharge=_LONG_OPENAI,
    ),
    Model(
        id="text-embedding-3-small",
        dialect="openai",
        display_name="text-embedding-3-small",
        released=datetime(2024, 1, 25, tzinfo=UTC),
        rates=_rates(".02/.02/0", ".01/.01/0"),
        endpoints=frozenset({Endpoint.EMBEDDINGS}),
    ),
    Model(
        id="text-embedding-3-large",
        dialect="openai",
        display_name="text-embedding-3-large",
        released=datetime(2024, 1, 25, tzinfo=UTC),
        rates=_rates(".13/.13/0", ".065/.065/0"),
        endpoints=frozenset({Endpoint.EMBEDDINGS}),
    ),
    Model(
        id="text-embedding-ada-002",
        dialect="openai",
        display_name="text-embedding-ada-002",
        released=datetime(2022, 12, 15, tzinfo=UTC),
        rates=_rates(".1/.1/0", ".05/.05/0"),
        endpoints=frozenset({Endpoint.EMBEDDINGS}),
    ),
    Model(
        id="gpt-3.5-turbo-instruct",
        dialect="openai",
        display_name="GPT-3.5 Turbo Instruct",
        released=datetime(2023, 9, 18, tzinfo=UTC),
        rates=_rates("1.5/1.5/2", ".75/.75/1"),
        endpoints=frozenset({Endpoint.COMPLETIONS}),
    ),
    Model(
        id="davinci-002",
        dialect="openai",
        display_name="davinci-002",
        released=datetime(2023, 8, 22, tzinfo=UTC),
        rates=_rates("2/2/2", "1/1/1"),
        endpoints=frozenset({Endpoint.COMPLETIONS}),
    ),
    Model(
        id="omni-moderation-latest",
        dialect="openai",
        display_name="Omni Moderation",
        released=datetime(2024, 9, 26, tzinfo=UTC),
        rates=_rates("0/0/0", "0/0/0"),
        endpoints=frozenset({Endpoint.MODERATIONS}),
    ),
    Model(
        id="gpt-image-2.5-flare",
        dialect="openai",
        display_name="GPT Image 2.5 Flare",
        released=datetime(2026, 9, 8, tzinfo=UTC),
        rates=_rates("5/1.25/30/8", "2.5/.625/15/4"),
        endpoints=frozenset({Endpoint.IMAGES, Endpoint.IMAGE_EDITS}),
    ),
    Model(
        id="sora-2",
        dialect="openai",
        display_name="Sora 2",
        released=datetime(2025, 10, 6, tzinfo=UTC),
        rates=_rates("0/0/0/0/.1", "0/0/0/0/.05"),
        shutdown=datetime(2026, 9, 24, tzinfo=UTC),
        endpoints=frozenset({Endpoint.VIDEOS}),
    ),
    Model(
        id="openai/gpt-oss-20b",
        dialect="openai",
        display_name="GPT OSS 20B at Groq",
        released=datetime(2025, 8, 5, tzinfo=UTC),
        rates=_rates(".075/.0375/.3", ".0375/.0375/.15", ".075/.0375/.3"),
        service="groq",
    ),
    Model(
        id="llama-3.3-70b-versatile",
        dialect="openai",
        display_name="Llama 3.3 70B at Groq",
        released=datetime(2024, 12, 6, tzinfo=UTC),
        rates=_rates(".59/.59/.79", ".295/.295/.395", ".59/.59/.79"),
        service="groq",
    ),
    # On a server of one's own, which bills nobody.
    Model(
        id="meta-llama/Llama-3.3-70B-Instruct",
        dialect="openai",
        display_name="Llama 3.3 70B",
        released=datetime(2024, 12, 6, tzinfo=UTC),
        rates=_rates("0/0/0", "0/0/0"),
        service="vllm",
    ),
    Model(
        id="claude-opus-5-5",
        dialect="anthropic",
        display_name="Claude Opus 5.5",
        released=datetime(2026, 9, 15, tzinfo=UTC),
        rates=_rates("4/.4/20", "2/.2/10"),
    ),
    Model(
        id="claude-sonnet-5-5",
        dialect="anthropic",
        display_name="Claude Sonnet 5.5",
        released=datetime(2026, 8, 20, tzinfo=UTC),
        rates=_rates("2/.2/10", "1/.1/5"),
    ),
    Model(
        id="claude-haiku-5-5",
        dialect="anthropic",
        display_name="Claude Haiku 5.5",
        released=datetime(2026, 9, 1, tzinfo=UTC),
        rates=_rates(".1/.01/.5", ".05/.005/.25"),
        surcharge=_LONG_HAIKU,
    ),
)

MODELS: dict[str, Model] = {model.id: model for model in _LISTED}
"""Every model on the list, by id."""


def find_model(
    dialect: str, name: object, *, service: str = "openai", alive_at: datetime | None = None
) -> Model | None:
    """Return a dialect's model, or None where it is not offered.

    Args:
        dialect: Whose list to look at.
        name: The id as it was sent, whatever it is.
        service: Which service OpenAI's dialect plays.
        alive_at: Instant at which it must not be shut down yet; None passes over shutdown dates.
    """
    model = MODELS.get(name) if isinstance(name, str) else None
    if model is None or model.dialect != dialect or (dialect == "openai" and model.service != service):
        return None
    if alive_at is not None and model.shutdown is not None and alive_at >= model.shutdown:
        return None
    return model


def bill_usd(
    model: Model,
    tier: Tier,
    *,
    input_tokens: int,
    cached_tokens: int,
    output_tokens: int,
    image_tokens: int = 0,
    seconds: int = 0,
) -> Decimal:
    """Return what one request costs.

    Args:
        model: The model that answered.
        tier: The tier served.
        input_tokens: All of the input, the cached part and images included.
        cached_tokens: The part of it that was read from the cache.
        output_tokens: All of the output.
        image_tokens: The part of the input that images are.
        seconds: Length of a film.
    """
    rate = model.rates[tier]
    input_usd = (
        (input_tokens - cached_tokens - image_tokens) * rate.input
        + cached_tokens * rate.cached
        + image_tokens * rate.image
    )
    output_usd = output_tokens * rate.output
    if model.surcharge is not None and input_tokens > model.surcharge.above:
        input_usd *= model.surcharge.input
        output_usd *= model.surcharge.output
    return (input_usd + output_usd) / MILLION + seconds * rate.second
