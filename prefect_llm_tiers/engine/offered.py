"""Which tiers turned out not to be offered: what one step of a run has learned, the next need not ask."""

import threading
from collections.abc import Sequence

from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["learn_unsupported", "still_offered"]

_LEARNED: set[tuple[str, str, str, Endpoint, Tier]] = set()
_LOCK = threading.Lock()


def learn_unsupported(tier: Tier, *, flow_run_id: str, account: str, model: str, endpoint: Endpoint) -> bool:
    """Note that a tier is not offered for a model; return whether that is news to the run.

    Known to this process alone: another one that carries the run on asks once more, which costs nothing.
    """
    learned = (flow_run_id, account, model, endpoint, tier)
    with _LOCK:
        news = learned not in _LEARNED
        _LEARNED.add(learned)
    return news


def still_offered(
    tiers: Sequence[Tier], *, flow_run_id: str, account: str, model: str, endpoint: Endpoint
) -> tuple[Tier, ...]:
    """Return the tiers without those that the run has learned about; all of them if none would be left."""
    with _LOCK:
        left = tuple(tier for tier in tiers if (flow_run_id, account, model, endpoint, tier) not in _LEARNED)
    return left or tuple(tiers)
