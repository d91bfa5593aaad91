"""Whether a fault strikes, and when what it delays happens."""

from collections import Counter
from datetime import timedelta

from prefect_llm_tiers.simulator.asked import chance, draw
from prefect_llm_tiers.simulator.faults import Faults, Span
from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["Draws"]

_ON_THE_WORLD = {
    "error_rate": "live-error",
    "batch_row_error_rate": "row-error",
    "unparsable_rate": "unparsable",
    "refusal_rate": "refusal",
}
"""Faults that are fields of `WorldSettings`, and what their draws are keyed by."""


class Draws:
    """The draws of the world's faults, and how often each struck.

    A fault is keyed by what it strikes, so that the same question meets the same fault in any order of
    arrival. The world's lock guards it.

    Attributes:
        struck: How often each fault struck, by name.
    """

    def __init__(self, settings: WorldSettings) -> None:
        self.struck: Counter[str] = Counter()
        self._seed = settings.seed
        self._faults = settings.faults
        self._only = settings.faults.only
        self._chances = {name: getattr(settings.faults, name) for name in Faults.names()}
        self._chances |= {name: getattr(settings, name) for name in _ON_THE_WORLD}
        self._on = {name for name, rate in self._chances.items() if rate > 0} | set(self._only)
        self._occasions: Counter[str] = Counter()

    def any_of(self, *names: str) -> bool:
        """Tell whether one of these faults can strike at all."""
        return not self._on.isdisjoint(names)

    def happens(self, name: str, *key: object) -> bool:
        """Tell whether a fault strikes what the key names, without counting it.

        Call it once for each occasion: `only` counts the calls.
        """
        if name not in self._on:
            return False
        if (occasions := self._only.get(name)) is not None:
            occasion = self._occasions[name]
            self._occasions[name] += 1
            return occasion in occasions
        return chance(self._seed, self._chances[name], _ON_THE_WORLD.get(name, name), *key)

    def strikes(self, name: str, *key: object) -> bool:
        """Tell whether a fault strikes what the key names, and count it."""
        if not self.happens(name, *key):
            return False
        self.struck[name] += 1
        return True

    def first_of(self, names: tuple[str, ...], *key: object) -> str | None:
        """Return the first of several faults that strikes, counted, or None."""
        return next((name for name in names if self.strikes(name, *key)), None)

    def span(self, name: str, *key: object) -> timedelta:
        """Draw the time that a fault takes, from its range of seconds."""
        low, high = span_of(self._faults, name)
        return timedelta(seconds=draw(self._seed, name, *key).uniform(low, high))

    def fraction(self, *key: object) -> float:
        """Draw a number from 0 to 1."""
        return draw(self._seed, *key).random()


def span_of(faults: Faults, name: str) -> Span:
    """Return a range of seconds by its name."""
    low, high = getattr(faults, name)
    return low, high
