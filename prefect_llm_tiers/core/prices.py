"""What tokens cost in a tier, and an honest "unpriced" where nobody says.

The figures are those of genai-prices' offline snapshot. That library gives the *standard* price where it
knows no price for a tier, so nothing is taken from it unless the tier's variant names every kind of token
that was used.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache, partial

import genai_prices
import msgspec
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, TieredPrices

from prefect_llm_tiers.core.outcomes import Usage
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["PUBLISHED_RATIO", "Price", "Tariff", "price"]

PUBLISHED_RATIO: Mapping[Tier, Decimal] = {
    Tier.BATCH: Decimal("0.5"),
    Tier.FLEX: Decimal("0.5"),
    Tier.STANDARD: Decimal(1),
    Tier.PRIORITY: Decimal(2),
}
"""Price of a tier over standard as the providers publish it; for planning models without a price."""

_MTOK = Decimal(1_000_000)

_CONTEXT: Mapping[tuple[str, Tier], Mapping[str, str] | None] = {
    ("openai", Tier.STANDARD): None,
    ("openai", Tier.BATCH): {"processing": "batch"},
    ("openai", Tier.FLEX): {"service_tier": "flex"},
    ("openai", Tier.PRIORITY): {"service_tier": "priority"},
    ("anthropic", Tier.STANDARD): None,
    ("anthropic", Tier.BATCH): {"processing": "batch"},
    ("azure", Tier.STANDARD): None,
    ("doubleword", Tier.STANDARD): None,
    ("groq", Tier.STANDARD): None,
    # Groq publishes that flex costs what standard costs.
    ("groq", Tier.FLEX): None,
    ("groq", Tier.BATCH): {"processing": "batch"},
}

# Its weights are published, so whoever serves it sets the price; under OpenAI's protocol that may be anybody.
_NOBODYS = ("openai", "gpt-oss")

# The library has no price of an embedding in a batch, and would give the standard one.
_PUBLISHED: Mapping[tuple[str, Tier, str], Mapping[str, Decimal]] = {
    ("openai", Tier.BATCH, "text-embedding-3-small"): {"input_mtok": Decimal("0.01")},
    ("openai", Tier.BATCH, "text-embedding-3-large"): {"input_mtok": Decimal("0.065")},
    ("openai", Tier.BATCH, "text-embedding-ada-002"): {"input_mtok": Decimal("0.05")},
}
_PUBLISHED_BY = {"openai": "OpenAI's price list, 2026-11"}


class Price(msgspec.Struct, frozen=True):
    """The price of one call.

    Attributes:
        usd: Exact, in US dollars.
        source: Where the rates came from.
    """

    usd: Decimal
    source: str


class _RateCard(msgspec.Struct, frozen=True):
    """Rates of one model in one tier at one instant, USD per million tokens.

    `rates` holds only what the tier itself names; `line` is the input size above which other rates
    apply to the whole request (long-context surcharge), None without one.
    """

    rates: Mapping[str, Decimal]
    line: int | None
    source: str


def price(usage: Usage, *, provider: str, model: str, tier: Tier, at: datetime) -> Price | None:
    """Return what one call costs, or None where no source prices it in that tier.

    Prices are per request and at its own instant, because surcharges apply to a request's own size and
    rates change by the day. Reasoning tokens are output tokens.

    Args:
        usage: Tokens of this one call; a sum over calls would cross surcharge lines that none crossed.
        provider: The price book's provider id, as `openai`.
        model: The model asked; dated names resolve.
        tier: The tier *served*.
        at: When the call was made; aware.

    Raises:
        ValueError: `at` is naive.
    """
    tariff = Tariff(provider=provider, model=model, tier=tier, at=at)
    usd = tariff.usd(usage)
    return Price(usd=usd, source=tariff.source) if usd is not None and tariff.source is not None else None


class Tariff:
    """What calls cost in one tier at one instant; the rules of `price`, for many calls at once.

    Attributes:
        source: Where the rates came from; None where there are none.
        line: Up to this many input tokens `read_usd` and `written_usd` are all that plain input and output cost;
            -1 where they have no price.
    """

    def __init__(self, *, provider: str, model: str, tier: Tier, at: datetime) -> None:
        """Look the rates up.

        Args:
            provider: As all arguments, see `price`.
            model: The model.
            tier: The tier served.
            at: When the calls were made.

        Raises:
            ValueError: `at` is naive.
        """
        if at.tzinfo is None:
            msg = f"The instant of a price must be aware, got {at.isoformat()}."
            raise ValueError(msg)
        card = _rate_card(provider, model, tier, at.astimezone(UTC).replace(second=0, microsecond=0))
        self._rates: Mapping[str, Decimal] = card.rates if card is not None else {}
        self._surcharge_above = card.line if card is not None else None
        self._by_the_library = partial(_usd_above_the_line, provider=provider, model=model, tier=tier, at=at)
        self.source = card.source if card is not None else None
        both = "input_mtok" in self._rates and "output_mtok" in self._rates
        self.line = -1 if not both else _NO_LINE if self._surcharge_above is None else self._surcharge_above

    def read_usd(self, tokens: int) -> Decimal:
        """Return what plain input costs. Raises KeyError if it has no price."""
        return self._rates["input_mtok"] * tokens / _MTOK

    def written_usd(self, tokens: int) -> Decimal:
        """Return what output costs. Raises KeyError if it has no price."""
        return self._rates["output_mtok"] * tokens / _MTOK

    def usd(self, usage: Usage) -> Decimal | None:
        """Return what one call costs, exactly; None where a token that it used has no price."""
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        if self.source is None or plain < 0:
            return None
        used = {
            "input_mtok": plain,
            "cache_read_mtok": usage.cached_input_tokens,
            "cache_write_mtok": usage.cache_write_tokens,
            "output_mtok": usage.output_tokens,
        }
        if any(tokens and kind not in self._rates for kind, tokens in used.items()):
            return None
        if self._surcharge_above is not None and usage.input_tokens > self._surcharge_above:
            return self._by_the_library(usage)
        total = sum((self._rates[kind] * tokens for kind, tokens in used.items() if tokens), Decimal(0))
        return total / _MTOK


_NO_LINE = 1 << 62


def _usd_above_the_line(usage: Usage, *, provider: str, model: str, tier: Tier, at: datetime) -> Decimal:
    """Price one call by the library itself: 100 times slower, and it knows every surcharge."""
    calculated = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
        ),
        model,
        provider_id=provider,
        price_context=_CONTEXT[provider, tier],
        genai_request_timestamp=at,
    )
    return calculated.total_price


@lru_cache(maxsize=4096)
def _rate_card(provider: str, model: str, tier: Tier, minute: datetime) -> _RateCard | None:
    if (provider, tier) not in _CONTEXT or (provider == _NOBODYS[0] and model.startswith(_NOBODYS[1])):
        return None
    told = _PUBLISHED.get((provider, tier, model))
    if told is not None:
        return _RateCard(rates=told, line=None, source=_PUBLISHED_BY[provider])
    try:
        _, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    named = _named_rates(info, _CONTEXT[provider, tier], minute)
    if not named:
        return None
    rates: dict[str, Decimal] = {}
    lines: list[int] = []
    for kind, rate in named.items():
        if isinstance(rate, TieredPrices):
            rates[kind] = rate.base
            lines.extend(step.start for step in rate.tiers)
        else:
            rates[kind] = rate
    return _RateCard(
        rates=rates,
        line=min(lines, default=None),
        source=f"genai-prices {_library_version()}",
    )


def _named_rates(info: ModelInfo, context: Mapping[str, str] | None, at: datetime) -> dict[str, Decimal | TieredPrices]:
    """Return the rates that a tier names itself, none borrowed from standard."""
    if context is None:
        return _only_rates(vars(info.get_prices(at)))
    named: dict[str, Decimal | TieredPrices] = {}
    for variant in info.price_variants or ():
        active = variant.constraint is None or variant.constraint.active(at)
        # First to last, as the library resolves them.
        if active and all(context.get(key) == value for key, value in variant.when.items()):
            for kind, rate in _only_rates(vars(variant.prices)).items():
                named.setdefault(kind, rate)
    return named


def _only_rates(fields: Mapping[str, object]) -> dict[str, Decimal | TieredPrices]:
    return {kind: rate for kind, rate in fields.items() if isinstance(rate, Decimal | TieredPrices)}


@lru_cache(maxsize=1)
def _library_version() -> str:
    return genai_prices.__version__
