"""Prices: exact, from a source that names the tier, or openly unknown."""

from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.outcomes import Usage
from prefect_llm_tiers.core.prices import price
from prefect_llm_tiers.core.tiers import Tier

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)


def usd(usage: Usage, tier: Tier, model: str = "gpt-6-luna", provider: str = "openai") -> Decimal | None:
    """Return the price of one call."""
    found = price(usage, provider=provider, model=model, tier=tier, at=AT)
    return found.usd if found else None


@pytest.mark.parametrize(
    ("tier", "expected"),
    [(Tier.STANDARD, "0.0006"), (Tier.BATCH, "0.0003"), (Tier.FLEX, "0.0003"), (Tier.PRIORITY, "0.0012")],
)
def test_each_tier_has_its_published_price(tier: Tier, expected: str) -> None:
    """gpt-6-luna: $0.10 in and $0.50 out per million tokens; half in batch and flex, twice in priority."""
    assert usd(Usage(input_tokens=1000, output_tokens=1000), tier) == Decimal(expected)


@given(
    st.integers(0, 400_000),
    st.integers(0, 1000),
    st.integers(0, 50_000),
    st.sampled_from([Tier.STANDARD, Tier.FLEX]),
)
def test_the_rates_agree_with_the_library_that_they_come_from(plain: int, cached: int, output: int, tier: Tier) -> None:
    """Below and above the long-context line the fast way and the library's give the same dollars."""
    usage = Usage(input_tokens=plain + cached, cached_input_tokens=cached, output_tokens=output)
    expected = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=plain + cached, cache_read_tokens=cached, cache_write_tokens=0, output_tokens=output
        ),
        "gpt-6-luna",
        provider_id="openai",
        price_context=None if tier is Tier.STANDARD else {"service_tier": "flex"},
        genai_request_timestamp=AT,
    )
    assert usd(usage, tier) == expected.total_price


def test_a_kind_of_token_that_the_tier_does_not_price_makes_the_call_unpriced() -> None:
    """o3 in batch has no price for cached input; the standard one is not borrowed."""
    assert usd(Usage(input_tokens=100, output_tokens=10), Tier.BATCH, "o3") == Decimal("0.00014")
    assert usd(Usage(input_tokens=100, cached_input_tokens=50), Tier.BATCH, "o3") is None


def test_a_tier_that_is_not_offered_is_unpriced() -> None:
    """Anthropic has no flex: the library would give the standard price."""
    assert usd(Usage(input_tokens=100), Tier.FLEX, "claude-haiku-5-5", "anthropic") is None


def test_an_unknown_model_is_unpriced() -> None:
    """Never $0."""
    assert usd(Usage(input_tokens=100), Tier.STANDARD, "a-model-of-my-own") is None


def test_usage_that_cannot_be_is_unpriced() -> None:
    """More cached input than input is no bill."""
    assert usd(Usage(input_tokens=10, cached_input_tokens=20), Tier.STANDARD) is None


def test_prices_are_those_of_the_day() -> None:
    """gpt-5.6-sol cost more before 21 August 2026."""
    usage = Usage(input_tokens=1_000_000)
    august = datetime(2026, 8, 1, tzinfo=UTC)
    before = price(Usage(input_tokens=1000), provider="openai", model="gpt-5.6-sol", tier=Tier.STANDARD, at=august)
    after = price(Usage(input_tokens=1000), provider="openai", model="gpt-5.6-sol", tier=Tier.STANDARD, at=AT)
    assert before is not None
    assert after is not None
    assert (before.usd, after.usd) == (Decimal("0.005"), Decimal("0.004"))
    assert usd(usage, Tier.STANDARD, "gpt-5.6-sol") == Decimal(8)


def test_a_naive_instant_is_refused() -> None:
    """A price depends on the day, and a naive instant has none."""
    with pytest.raises(ValueError, match="aware"):
        price(Usage(), provider="openai", model="o3", tier=Tier.STANDARD, at=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("text-embedding-3-small", "0.01"),
        ("text-embedding-3-large", "0.065"),
        ("text-embedding-ada-002", "0.05"),
        ("text-embedding-of-nobody", None),
    ],
)
def test_an_embedding_in_a_batch_has_the_batch_price_or_none(model: str, expected: str | None) -> None:
    """The library knows no batch price of an embedding and would give the standard one, which is twice as much."""
    found = usd(Usage(input_tokens=1_000_000), Tier.BATCH, model)
    assert found == (Decimal(expected) if expected else None)
    assert usd(Usage(input_tokens=1_000_000), Tier.FLEX, model) is None


def test_completions_in_a_batch_are_unpriced() -> None:
    """Nobody names their batch price; the standard one is known, and is not taken for it."""
    tokens = Usage(input_tokens=1000, output_tokens=1000)
    assert usd(tokens, Tier.STANDARD, "gpt-3.5-turbo-instruct") == Decimal("0.0035")
    assert usd(tokens, Tier.BATCH, "gpt-3.5-turbo-instruct") is None
