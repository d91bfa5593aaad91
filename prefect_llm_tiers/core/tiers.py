"""The service tiers: the same answer at different prices for patience."""

from enum import StrEnum

__all__ = ["LIVE_TIERS", "SURE_TIERS", "Tier"]


class Tier(StrEnum):
    """A service tier, named as the providers name it."""

    PRIORITY = "priority"
    STANDARD = "standard"
    FLEX = "flex"
    BATCH = "batch"


LIVE_TIERS = (Tier.FLEX, Tier.STANDARD, Tier.PRIORITY)
"""Tiers that answer one call at a time, from the cheapest to the dearest."""

SURE_TIERS = (Tier.STANDARD, Tier.PRIORITY)
"""Tiers that a deadline can be trusted to: they neither refuse for capacity nor promise only a window."""
