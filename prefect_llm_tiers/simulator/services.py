"""What the services that speak OpenAI's dialect do otherwise than OpenAI: names of tiers, headers, paths.

Written apart from the package's own table of capabilities, so that one can prove the other.
"""

from collections.abc import Mapping

import msgspec

from prefect_llm_tiers.core.tiers import Tier

__all__ = ["PLAYED", "Played"]


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """A service as it is played.

    Attributes:
        tiers: Tiers by what a request may say in `service_tier`; empty where it refuses to be told.
        served: What a reply says in `service_tier`; empty where it says nothing.
        names_account: Whether headers name the organisation and the project.
        batches: Whether there are files and batches.
        model_pages: Whether each model has a page of its own beside the list.
        capacity_status: HTTP status of a flex call that finds no room.
    """

    tiers: Mapping[str, Tier] = {}
    served: Mapping[Tier, str] = {}
    names_account: bool = False
    batches: bool = True
    model_pages: bool = True
    capacity_status: int = 429


PLAYED: Mapping[str, Played] = {
    "openai": Played(
        tiers={
            "auto": Tier.STANDARD,
            "default": Tier.STANDARD,
            "scale": Tier.STANDARD,
            "flex": Tier.FLEX,
            "priority": Tier.PRIORITY,
            "fast": Tier.PRIORITY,
        },
        served={
            Tier.STANDARD: "default",
            Tier.FLEX: "flex",
            Tier.PRIORITY: "priority",
            Tier.BATCH: "default",
        },
        names_account=True,
    ),
    "groq": Played(
        tiers={"auto": Tier.STANDARD, "on_demand": Tier.STANDARD, "flex": Tier.FLEX},
        served={Tier.STANDARD: "on_demand", Tier.FLEX: "flex", Tier.BATCH: "on_demand"},
        capacity_status=498,
    ),
    "vllm": Played(batches=False, model_pages=False),
}
"""By the name that `WorldSettings.service` has for it."""
