"""Laws learned from what really happened, by maximum a posteriori.

A prior counts as much as a few observations and gives way to more. What was cut is "longer than" (censored), never
done and never dropped: left out, only the quick batches would be believed. The newest observations count most, and
those of one night count for less than as many of different nights, because their times move together.

The fit is an expectation-maximization: times that were cut stand in by what is expected of them, each batch is
stuck with some chance, and given these the estimates are weighted means (Dempster, Laird and Rubin, 1977).
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import numpy.typing as npt

from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw, Times
from prefect_llm_tiers.planning.priors import LiveRate, latency_of, pace_of, prior_live
from prefect_llm_tiers.planning.problem import PRIORS

__all__ = ["basis_of", "learn_batch", "learn_live"]

HALF_LIFE = timedelta(days=28)
"""After so long an observation counts half: providers change, and what one of them was like last year says little."""

SHARED = 0.15
"""Share of the variance of the logarithm of times that is a whole night's, and not a single batch's.

Nobody publishes it. It makes 20 batches of one night count as 5, and moves tonight's median by a seventh of the way
that the first batch of tonight was off.
"""

TONIGHT = timedelta(hours=12)
"""How old an observation may be to be of the same night as the plan."""

_WORTH = 2.0
"""How many nights' observations the prior of a median, and of an outage's length, counts as much as."""
_SPREAD_WORTH = 8.0
"""The same for a spread: it takes more to know than a median."""
_STUCK_WORTH = 20.0
"""The same for the chance to be stuck, which is rare."""
_DOWN_WORTH = 5.0
"""The same for the chance to find a tier down."""

_LEAST_SPREAD = 0.5
"""A law's spread is at least this share of its prior's: what was not seen yet is rarely as even as what was."""
_LEAST_LIVE_SPREAD = 0.8
"""The same for a live tier, which every deadline falls back to: on the night on which it is twice as slow as on all
others, its reserve has to do."""

_ROUNDS = 200
_CLOSE = 1e-6

_NOON = datetime(1970, 1, 1, 12, tzinfo=UTC)
_DAY_S = 86_400.0
_ROOT_2 = math.sqrt(2.0)
_ROOT_2_PI = math.sqrt(2.0 * math.pi)


class _Sample(msgspec.Struct, frozen=True):
    """Observations side by side.

    Attributes:
        values: Times, or their ratios to what was believed.
        cut: Whether each is "longer than".
        weights: What each counts.
        tonight: What each says of the night of the plan; nothing where it is of another one.
    """

    values: Times
    cut: npt.NDArray[np.bool_]
    weights: Times
    tonight: Times


class _Fit(msgspec.Struct, frozen=True):
    """What was fitted.

    Attributes:
        mean: Of the logarithm.
        spread: Its standard deviation.
        p_stuck: Chance to be stuck.
        shift: How far tonight is off the mean, as far as it shows.
    """

    mean: float
    spread: float
    p_stuck: float
    shift: float


def learn_batch(prior: BatchLaw, seen: Sequence[ObservedBatch], *, now: datetime) -> BatchLaw:
    """Return the law of a batch, given those that were seen: the prior itself where there are none.

    Its window and the range in which a batch is stuck stay the prior's.
    """
    if not seen:
        return prior
    times = [one.duration.total_seconds() for one in seen]
    sample = _sample(times, seen, now, cut=[one.censored for one in seen])
    fit = _fit(sample, mean=math.log(prior.median_s), spread=prior.sigma, least=_LEAST_SPREAD, stuck=prior)
    return msgspec.structs.replace(
        prior, median_s=math.exp(fit.mean + fit.shift), sigma=fit.spread, p_stuck=fit.p_stuck
    )


def learn_live(
    tier: Tier,
    seen: Sequence[ObservedLane],
    *,
    step: str,
    rate: LiveRate,
    input_tokens: float,
    output_tokens: float,
    now: datetime,
) -> LiveLaw:
    """Return the law of a live tier, given what was seen of it: the prior itself where that is nothing.

    Two things are learned of its pace: how long a call takes over what is believed of one with as many output tokens,
    and how long a lane takes over what such calls need at its concurrency and within the account's limits. So
    a step may ask for longer answers or more at a time than any before it.

    Args:
        tier: A live tier.
        seen: What step runs saw of it.
        step: The step's name; how long its answers are, its own lanes know better than anybody.
        rate: How fast the account may go.
        input_tokens: Tokens of a request, on average.
        output_tokens: Tokens of an answer, on average, as far as none was seen.
        now: When the plan is made.
    """
    if own := [one for one in seen if one.step == step and one.requests]:
        sample = _sample([one.output_tokens for one in own], own, now)
        output_tokens = float(sample.weights @ sample.values / sample.weights.sum())
    prior = prior_live(tier, rate=rate, input_tokens=input_tokens, output_tokens=output_tokens)
    if not seen:
        return prior
    slower = 0.0
    if replied := [one for one in seen if one.latency > timedelta(0)]:
        ratios = [one.latency.total_seconds() / latency_of(tier, one.output_tokens) for one in replied]
        slower = _fit(_sample(ratios, replied, now), mean=0.0, spread=prior.sigma, least=_LEAST_LIVE_SPREAD).mean
    paces = [_pace(tier, one, math.exp(slower), output_tokens) for one in seen]
    busy_s = [max(one.busy.total_seconds(), 1e-3) for one in seen]
    sample = _sample(
        [spent_s / (base_s + work_s) for spent_s, (base_s, work_s) in zip(busy_s, paces, strict=True)],
        seen,
        now,
        cut=[one.requests == 0 for one in seen],
        # A lane of a few requests tells of its set-up alone: what it knows of the pace (its Fisher information) is
        # the square of the share of its time that goes by the pace.
        says=[
            (work_s / (base_s + work_s)) ** 2 if one.requests else 1.0
            for one, (base_s, work_s) in zip(seen, paces, strict=True)
        ],
    )
    fit = _fit(sample, mean=0.0, spread=prior.sigma, least=_LEAST_LIVE_SPREAD)
    factor = math.exp(fit.mean + fit.shift)
    spacing_s = rate.spacing_s(input_tokens + output_tokens)
    base_s, per_request_s = pace_of(
        latency_of(tier, output_tokens) * math.exp(slower), concurrency=rate.concurrency, spacing_s=spacing_s
    )
    p_down, down_s = _outages(prior, seen, _sample([1.0] * len(seen), seen, now).weights)
    return msgspec.structs.replace(
        prior,
        base_s=base_s * max(factor, 1.0),
        # No luck goes beyond the account's own limits.
        per_request_s=max(per_request_s * factor, spacing_s),
        sigma=fit.spread,
        p_down=p_down,
        down_s=down_s,
    )


def basis_of(batches: Sequence[ObservedBatch], lanes: Sequence[ObservedLane]) -> str:
    """Return what laws rest on, in plain words, as "23 batches and 14 live runs of 9 nights"."""
    counts = ((len(batches), "batch", "batches"), (len(lanes), "live run", "live runs"))
    named = " and ".join(f"{count:,} {one if count == 1 else many}" for count, one, many in counts if count)
    if not named:
        return PRIORS
    began = [batch.began_at for batch in batches] + [lane.began_at for lane in lanes]
    nights = len(np.unique(_nights(began)))
    text = f"{named} of {nights:,} {'night' if nights == 1 else 'nights'}"
    return text if nights > _WORTH else f"priors, which outweigh {text}"


def _pace(tier: Tier, lane: ObservedLane, slower: float, output_tokens: float) -> tuple[float, float]:
    """Return what a lane's set-up and its requests would take if calls took `slower` times what is believed.

    One without an outcome had at least one request to ask.
    """
    latency_s = slower * latency_of(tier, lane.output_tokens if lane.latency else output_tokens)
    base_s, per_request_s = pace_of(latency_s, concurrency=lane.concurrency, spacing_s=lane.spacing.total_seconds())
    return base_s, per_request_s * max(lane.requests, 1)


def _outages(prior: LiveLaw, seen: Sequence[ObservedLane], weights: Times) -> tuple[float, float]:
    """Return the chance to find a tier down, and the mean of what is left of an outage: it has no memory."""
    if prior.p_down <= 0:
        return prior.p_down, prior.down_s
    found = float(weights @ np.array([one.found_down for one in seen]))
    down_s = float(weights @ np.array([one.down.total_seconds() for one in seen]))
    ends = float(weights @ np.array([one.recoveries for one in seen]))
    return (
        (_DOWN_WORTH * prior.p_down + found) / (_DOWN_WORTH + float(weights.sum())),
        (_WORTH * prior.down_s + down_s) / (_WORTH + ends),
    )


def _sample(
    values: Sequence[float],
    seen: Sequence[ObservedBatch] | Sequence[ObservedLane],
    now: datetime,
    *,
    cut: Sequence[bool] | None = None,
    says: Sequence[float] | None = None,
) -> _Sample:
    """Weigh observations by age, by how many its night has, and by how much each says."""
    began = [one.began_at for one in seen]
    ages_s = np.array([(now - one).total_seconds() for one in began])
    # However old, it counts for more than nothing: a weight that underflows would leave nothing to divide by.
    recency = 0.5 ** np.clip(ages_s / HALF_LIFE.total_seconds(), 0.0, 100.0)
    _, night, sizes = np.unique(_nights(began), return_inverse=True, return_counts=True)
    told = np.ones(len(values)) if says is None else np.array(says)
    return _Sample(
        values=np.array(values),
        cut=np.zeros(len(values), dtype=np.bool_) if cut is None else np.array(cut),
        weights=told * recency / (1 + (sizes[night] - 1) * SHARED),
        tonight=np.where(np.abs(ages_s) < TONIGHT.total_seconds(), told, 0.0),
    )


def _nights(began: Sequence[datetime]) -> Times:
    """Return the number of the night, from noon to noon in UTC, in which each observation began."""
    return np.floor(np.array([(one - _NOON).total_seconds() for one in began]) / _DAY_S)


def _fit(sample: _Sample, *, mean: float, spread: float, least: float, stuck: BatchLaw | None = None) -> _Fit:
    """Return the normal of some logarithms, part of them cut, that is likeliest with a prior.

    Args:
        sample: The observations.
        mean: Mean of the prior.
        spread: Standard deviation that the prior is centred on.
        least: The share of it that stays at least.
        stuck: The law whose stuck tail may have held a batch instead; None without one.
    """
    mean_0, spread_0 = mean, spread
    p_stuck = stuck.p_stuck if stuck is not None else 0.0
    precision = _WORTH / spread_0**2
    total = float(sample.weights.sum())
    logs = np.log(sample.values)
    held = np.zeros(len(logs))
    believed = logs
    for _ in range(_ROUNDS):
        scores = (logs - mean) / spread
        survival, hazard = _beyond(scores, sample.cut)
        believed = np.where(sample.cut, mean + spread * hazard, logs)
        # What is left open of a time that was cut: the variance of a normal above a bound.
        doubt = np.where(sample.cut, np.maximum(spread**2 * (1 + hazard * (scores - hazard)), 0.0), 0.0)
        if stuck is not None:
            held = _held(sample, scores, survival, spread=spread, p_stuck=p_stuck, law=stuck)
            p_stuck = (_STUCK_WORTH * stuck.p_stuck + float(sample.weights @ held)) / (_STUCK_WORTH + total)
        weights = sample.weights * (1 - held)
        evidence = weights / spread**2
        before = mean, spread
        mean = (precision * mean_0 + float(evidence @ believed)) / (precision + float(evidence.sum()))
        squares = float(weights @ (doubt + (believed - mean) ** 2))
        spread = math.sqrt((_SPREAD_WORTH * spread_0**2 + squares) / (_SPREAD_WORTH + float(weights.sum())))
        spread = max(spread, least * spread_0)
        if abs(mean - before[0]) + abs(spread - before[1]) < _CLOSE:
            break
    tonight = sample.tonight * (1 - held)
    off = float(tonight @ (believed - mean))
    shift = SHARED * off / max(1 + (float(tonight.sum()) - 1) * SHARED, SHARED)
    return _Fit(mean=mean, spread=spread, p_stuck=p_stuck, shift=shift)


def _held(sample: _Sample, scores: Times, survival: Times, *, spread: float, p_stuck: float, law: BatchLaw) -> Times:
    """Return the chance that each batch was stuck, given when it ended or how long it had not."""
    times = sample.values
    width = max(law.stuck_to_s - law.stuck_from_s, 1.0)
    inside = (times >= law.stuck_from_s) & (times <= law.stuck_to_s)
    left = np.clip((law.stuck_to_s - times) / width, 0.0, 1.0)
    body = np.where(sample.cut, survival, np.exp(-0.5 * scores**2) / (_ROOT_2_PI * spread * times))
    tail = np.where(sample.cut, left, inside / width)
    stuck = p_stuck * tail
    return np.asarray(stuck / np.maximum(stuck + (1 - p_stuck) * body, 1e-300), dtype=np.float64)


def _beyond(scores: Times, cut: npt.NDArray[np.bool_]) -> tuple[Times, Times]:
    """Return a standard normal's survival and hazard at the scores that are cut; 1 and 0 elsewhere."""
    survival, hazard = np.ones(len(scores)), np.zeros(len(scores))
    # Further out the survival is below the smallest float, and the hazard is the score itself.
    at = np.clip(scores[cut], -37.0, 37.0)
    survival[cut] = [0.5 * math.erfc(score / _ROOT_2) for score in at]
    hazard[cut] = np.exp(-0.5 * at**2) / (_ROOT_2_PI * survival[cut])
    hazard = np.where(cut & (scores > 37.0), scores, hazard)
    return survival, hazard
