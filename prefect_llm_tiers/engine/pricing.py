"""Puts prices on outcomes: each from its own usage, in the tier that served it, at its own instant."""

from datetime import datetime

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome
from prefect_llm_tiers.core.prices import price
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["priced"]


def priced(outcome: Outcome, *, provider: str, model: str, tier_asked: Tier, at: datetime) -> Outcome:
    """Return the outcome with what it cost and what it would have cost on the standard tier.

    An outcome that names no usage, or whose tier no source prices, stays without a price: it is listed as
    unpriced, never as free.
    """
    if outcome.billing is not Billing.BILLED or outcome.usage is None:
        return outcome
    served = outcome.tier_served or tier_asked
    paid = price(outcome.usage, provider=provider, model=model, tier=served, at=at)
    listed = price(outcome.usage, provider=provider, model=model, tier=Tier.STANDARD, at=at)
    return msgspec.structs.replace(
        outcome,
        cost_usd=paid.usd if paid else None,
        list_usd=listed.usd if listed else None,
        price_source=paid.source if paid else None,
    )
