"""What goes wrong, by name: each fault is a chance with its own key."""

from prefect_llm_tiers.simulator.asked import chance
from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["Faults"]


class Faults:
    """The draws of the world's faults.

    A fault is keyed by what it strikes, so that the same question meets the same fault in any order of
    arrival. A new fault is a field of `WorldSettings` and a method here.
    """

    def __init__(self, settings: WorldSettings) -> None:
        self._settings = settings

    def live_error(self, digest: str, number: int) -> bool:
        """Whether the given try of a live call ends in a 500."""
        return self._happens(self._settings.error_rate, "live-error", digest, number)

    def row_error(self, batch_key: str, custom_id: str) -> bool:
        """Whether a batch row ends in the provider's own error."""
        return self._happens(self._settings.batch_row_error_rate, "row-error", batch_key, custom_id)

    def refusal(self, digest: str) -> bool:
        """Whether the model refuses this body, every time."""
        return self._happens(self._settings.refusal_rate, "refusal", digest)

    def unparsable(self, digest: str) -> bool:
        """Whether the first structured answer to this body breaks its schema."""
        return self._happens(self._settings.unparsable_rate, "unparsable", digest)

    def _happens(self, probability: float, *key: object) -> bool:
        return chance(self._settings.seed, probability, *key)
