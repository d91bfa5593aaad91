"""What is believed of each tier's latency: priors, and what the ledger has seen since."""

from datetime import datetime

from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw
from prefect_llm_tiers.planning.learning import basis_of, learn_batch, learn_live
from prefect_llm_tiers.planning.priors import LiveRate, prior_batch

__all__ = ["Beliefs"]


class Beliefs:
    """The laws for one plan; what they rest on is read once for each model and tier.

    Args:
        ledger: What was seen.
        now: When the plan is made.
    """

    def __init__(self, ledger: Ledger, now: datetime) -> None:
        self._ledger = ledger
        self._now = now
        self._batches: dict[tuple[str, str, str | None], list[ObservedBatch]] = {}
        self._lanes: dict[tuple[str, str, str | None, Tier], list[ObservedLane]] = {}

    def batch(self, provider: str, model: str, account: str | None, *, window_s: float) -> BatchLaw:
        """Return the law of a batch of a model.

        Args:
            provider: Which provider dialect carries it.
            model: The model.
            account: Whose batches tell of it; None for those of every account.
            window_s: The completion window.
        """
        key = provider, model, account
        if key not in self._batches:
            self._batches[key] = self._ledger.observed_batches(
                provider=provider, model=model, account=account, now=self._now
            )
        return learn_batch(prior_batch(window_s=window_s), self._batches[key], now=self._now)

    def live(
        self,
        provider: str,
        model: str,
        account: str | None,
        tier: Tier,
        *,
        step: str,
        rate: LiveRate,
        input_tokens: float,
        output_tokens: float,
    ) -> LiveLaw:
        """Return the law of a live tier of a model; see `learn_live`."""
        key = provider, model, account, tier
        if key not in self._lanes:
            self._lanes[key] = self._ledger.observed_lanes(provider=provider, model=model, account=account, tier=tier)
        return learn_live(
            tier,
            self._lanes[key],
            step=step,
            rate=rate,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            now=self._now,
        )

    @property
    def basis(self) -> str:
        """What the laws that were asked for rest on, in plain words."""
        return basis_of(
            [one for seen in self._batches.values() for one in seen],
            [one for seen in self._lanes.values() for one in seen],
        )
