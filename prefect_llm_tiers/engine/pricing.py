"""Puts prices on outcomes: each from its own usage, in the tier that served it, at its own instant."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import partial

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome
from prefect_llm_tiers.core.prices import Tariff
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["Pricing", "priced"]


def priced(outcome: Outcome, *, provider: str, model: str, tier_asked: Tier, at: datetime) -> Outcome:
    """Return the outcome with what it cost and what it would have cost on the standard tier.

    An outcome that names no usage, or whose tier no source prices, stays without a price: it is listed as
    unpriced, never as free.
    """
    return Pricing(provider=provider, model=model, tier_asked=tier_asked, at=at).priced(outcome)


class Pricing:
    """Prices many outcomes of one model at one instant; the rules of `priced`."""

    def __init__(self, *, provider: str, model: str, tier_asked: Tier, at: datetime) -> None:
        """Take what is the same for all of them.

        Args:
            provider: The price book's provider id.
            model: The model asked.
            tier_asked: The tier asked, for an outcome that does not say which served it.
            at: When they were asked.
        """
        self._tariff = partial(Tariff, provider=provider, model=model, at=at)
        self._tier_asked = tier_asked
        self._listed = self._tariff(tier=Tier.STANDARD)
        self._serve(tier_asked)

    def priced(self, outcome: Outcome) -> Outcome:
        """Return the outcome with its price."""
        usage = outcome.usage
        if usage is None or outcome.billing is not _BILLED:
            return outcome
        served = outcome.tier_served or self._tier_asked
        if served is not self._served:
            self._serve(served)
        read = usage.input_tokens
        if read <= self._line and not (usage.cached_input_tokens or usage.cache_write_tokens):
            paid_in, listed_in = self._read[read]
            paid_out, listed_out = self._written[usage.output_tokens]
            return _replace(
                outcome, cost_usd=paid_in + paid_out, list_usd=listed_in + listed_out, price_source=self._source
            )
        paid = self._paid.usd(usage)
        source = self._source if paid is not None else None
        return _replace(outcome, cost_usd=paid, list_usd=self._listed.usd(usage), price_source=source)

    def _serve(self, tier: Tier) -> None:
        """Take up the tariff of a tier; nearly all outcomes of a batch or a lane were served in the same one."""
        self._served = tier
        self._paid = self._tariff(tier=tier)
        self._source = self._paid.source
        # Up to here, and with rates for both, plain input and output are all that has to be priced.
        self._line = min(self._paid.line, self._listed.line)
        self._read = _Pairs(self._paid.read_usd, self._listed.read_usd)
        self._written = _Pairs(self._paid.written_usd, self._listed.written_usd)


class _Pairs(dict[int, tuple[Decimal, Decimal]]):
    """What numbers of tokens cost and would have cost."""

    def __init__(self, paid: Callable[[int], Decimal], listed: Callable[[int], Decimal]) -> None:
        super().__init__()
        self._paid, self._listed = paid, listed

    def __missing__(self, tokens: int) -> tuple[Decimal, Decimal]:
        pair = self._paid(tokens), self._listed(tokens)
        if len(self) < _MOST_PAIRS:
            self[tokens] = pair
        return pair


_MOST_PAIRS = 20_000

# This runs for every line of a batch.
_BILLED = Billing.BILLED
_replace = msgspec.structs.replace
