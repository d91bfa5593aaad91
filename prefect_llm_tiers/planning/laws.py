"""Laws of completion time: how long a tier takes, as a distribution.

Times are seconds. A batch's law is of the whole batch, because providers tell no more; a live tier's law
scales with the number of requests. The laws map standard draws to times and draw nothing themselves, so that
two plans can be compared over the same nights.
"""

import math
from functools import lru_cache
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["BatchLaw", "LiveLaw", "Times", "chances_by"]

Times = npt.NDArray[np.float64]
"""Durations or instants of many scenarios side by side, in seconds; shape (scenarios,)."""

_STANDARD_NORMAL = NormalDist()
_MIDPOINTS = [_STANDARD_NORMAL.inv_cdf((number + 0.5) / 32) for number in range(32)]


class BatchLaw(msgspec.Struct, frozen=True, tag="batch"):
    """A log-normal with a stuck tail, cut at the completion window.

    With chance `p_stuck` the time is uniform over the stuck range instead. Past `window_s` the batch
    expires with part of its rows done.

    Attributes:
        median_s: Median of the log-normal part; above 0.
        sigma: Its shape: standard deviation of the logarithm.
        p_stuck: Chance of the stuck tail.
        stuck_from_s: Where the tail begins.
        stuck_to_s: Where it ends.
        window_s: The completion window.
    """

    median_s: float
    sigma: float
    p_stuck: float
    stuck_from_s: float
    stuck_to_s: float
    window_s: float = 86_400.0

    def times(self, normals: Times, luck: Times, places: Times) -> Times:
        """Return completion times; those past the window mean that the batch expires.

        Args:
            normals: Standard normal draws, for the log-normal part.
            luck: Uniform draws; those below `p_stuck` are stuck.
            places: Uniform draws, for the place in the stuck range.
        """
        body = self.median_s * np.exp(self.sigma * normals)
        stuck = self.stuck_from_s + places * (self.stuck_to_s - self.stuck_from_s)
        return np.where(luck < self.p_stuck, stuck, body)

    def chance_by(self, elapsed_s: float) -> float:
        """Return the chance that the batch has completed within `elapsed_s`; past the window it never does."""
        if elapsed_s <= 0:
            return 0.0
        elapsed_s = min(elapsed_s, self.window_s)
        body = _log_normal_by(elapsed_s, self.median_s, self.sigma)
        spread = self.stuck_to_s - self.stuck_from_s
        reached = elapsed_s - self.stuck_from_s
        tail = min(max(reached / spread, 0.0), 1.0) if spread > 0 else float(reached >= 0)
        return (1 - self.p_stuck) * body + self.p_stuck * tail

    def quantile_s(self, q: float) -> float:
        """Return the time within which a batch completes with chance `q`; the window where that is later."""
        low, high = 0.0, self.window_s
        for _ in range(50):
            middle = (low + high) / 2
            if self.chance_by(middle) >= q:
                high = middle
            else:
                low = middle
        return high


class LiveLaw(msgspec.Struct, frozen=True, tag="live"):
    """A log-normal around `base_s + per_request_s * n`: what a lane of concurrent calls takes.

    A tier that may refuse for capacity begins with an outage with chance `p_down`; what is left of the outage is
    exponential.

    Attributes:
        base_s: Set-up and the last call's own latency.
        per_request_s: Seconds a request adds at the lane's throughput.
        sigma: Standard deviation of the logarithm.
        p_down: Chance that the tier takes no calls when it is entered.
        down_s: Mean of what is left of an outage.
    """

    base_s: float
    per_request_s: float
    sigma: float
    p_down: float = 0.0
    down_s: float = 0.0

    def median_s(self, requests: float) -> float:
        """Return the median makespan of `requests` calls, outages apart; nothing takes no time."""
        return self.base_s + self.per_request_s * requests if requests > 0 else 0.0

    def stretch(self, q: float) -> tuple[float, float]:
        """Return the factor on the median, and the wait on top, that are met with chance `q`, 0 < q < 1.

        Without outages the factor is the log-normal's own quantile. With them the chance to be late is halved
        between the outage and the work: at most `1 - q` by Boole's inequality.
        """
        late = 1 - q
        if self.p_down <= 0 or self.down_s <= 0:
            return math.exp(self.sigma * _STANDARD_NORMAL.inv_cdf(q)), 0.0
        wait_s = self.down_s * max(math.log(2 * self.p_down / late), 0.0)
        return math.exp(self.sigma * _STANDARD_NORMAL.inv_cdf(1 - late / 2)), wait_s

    def quantile_s(self, q: float, requests: float) -> float:
        """Return the makespan of `requests` calls that is met with chance `q`, 0 < q < 1."""
        if requests <= 0:
            return 0.0
        factor, wait_s = self.stretch(q)
        return wait_s + factor * self.median_s(requests)

    def chance_by(self, elapsed_s: float, requests: float) -> float:
        """Return the chance that `requests` calls are done within `elapsed_s`."""
        if requests <= 0:
            return 1.0
        if elapsed_s <= 0:
            return 0.0
        median_s = self.median_s(requests)
        up = _log_normal_by(elapsed_s, median_s, self.sigma)
        if self.p_down <= 0 or self.down_s <= 0:
            return up
        spare = [elapsed_s - median_s * math.exp(self.sigma * normal) for normal in _MIDPOINTS]
        after = sum(-math.expm1(-left / self.down_s) for left in spare if left > 0) / len(spare)
        return (1 - self.p_down) * up + self.p_down * after

    def medians(self, requests: Times) -> Times:
        """Return `median_s` for many numbers of requests."""
        return np.where(requests > 0, self.base_s + self.per_request_s * requests, 0.0)

    def quantiles(self, q: float, requests: Times) -> Times:
        """Return `quantile_s` for many numbers of requests."""
        factor, wait_s = self.stretch(q)
        return np.where(requests > 0, wait_s + factor * self.medians(requests), 0.0)

    def times(self, normals: Times, requests: Times) -> Times:
        """Return makespans, outages apart, for standard normal draws and each one's number of requests."""
        return np.asarray(self.medians(requests) * np.exp(self.sigma * normals), dtype=np.float64)

    def outages(self, luck: Times, lengths: Times) -> Times:
        """Return how long the tier takes no calls, for uniform draws and for exponential draws of mean 1."""
        return np.where(luck < self.p_down, self.down_s * lengths, 0.0)


def chances_by(law: BatchLaw, elapsed_s: Times) -> Times:
    """Return `law.chance_by` for many times, over a grid that is fine enough for a threshold."""
    grid, chances = _grid(law)
    return np.interp(elapsed_s, grid, chances)


@lru_cache(maxsize=256)
def _grid(law: BatchLaw) -> tuple[Times, Times]:
    grid = np.concatenate(([0.0], np.geomspace(1.0, max(law.window_s, 2.0), 256)))
    return grid, np.array([law.chance_by(float(point)) for point in grid])


def _log_normal_by(elapsed_s: float, median_s: float, sigma: float) -> float:
    if median_s <= 0 or sigma <= 0:
        return float(elapsed_s >= median_s)
    return _STANDARD_NORMAL.cdf((math.log(elapsed_s) - math.log(median_s)) / sigma)
