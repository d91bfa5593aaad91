"""Laws learned from observations: they find the truth, and never take a cut for an end."""

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw
from prefect_llm_tiers.planning.learning import basis_of, learn_batch, learn_live
from prefect_llm_tiers.planning.priors import LiveRate, latency_of, prior_batch, prior_live
from prefect_llm_tiers.planning.problem import PRIORS

NOW = datetime(2026, 11, 21, 22, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
PRIOR = prior_batch(window_s=86_400)
RATE = LiveRate(concurrency=16)

MINUTES = st.floats(min_value=1, max_value=60 * 30)
SEEN = st.lists(st.tuples(MINUTES, st.booleans(), st.integers(1, 40)), max_size=12)


def batch(minutes: float, *, cut: bool = False, nights_ago: float = 1) -> ObservedBatch:
    """A batch of an earlier night."""
    return ObservedBatch(
        model="m",
        began_at=NOW - nights_ago * DAY,
        duration=timedelta(minutes=minutes),
        censored=cut,
        requests=500,
        done=0 if cut else 500,
    )


def many(told: Sequence[tuple[float, bool, int]]) -> list[ObservedBatch]:
    """Batches by minutes, cut, and nights ago."""
    return [batch(minutes, cut=cut, nights_ago=nights) for minutes, cut, nights in told]


def learned(*seen: ObservedBatch, now: datetime = NOW) -> BatchLaw:
    """The law after some batches."""
    return learn_batch(PRIOR, seen, now=now)


def lane(slower: float = 1.0, *, tier: Tier = Tier.STANDARD, nights_ago: float = 1, **changes: object) -> ObservedLane:
    """A lane of calls that take `slower` times what is believed, and nothing else."""
    latency_s = slower * latency_of(tier, 200.0)
    seen = ObservedLane(
        step="summary",
        tier=tier,
        model="m",
        began_at=NOW - nights_ago * DAY,
        requests=2000,
        busy=timedelta(seconds=3 * latency_s + 2000 * latency_s / 16),
        concurrency=16,
        latency=timedelta(seconds=latency_s),
        output_tokens=200.0,
    )
    return msgspec.structs.replace(seen, **changes)


def live(
    seen: Sequence[ObservedLane], tier: Tier = Tier.STANDARD, *, rate: LiveRate = RATE, step: str = "other"
) -> LiveLaw:
    """The law of a live tier after some lanes."""
    return learn_live(tier, seen, step=step, rate=rate, input_tokens=500, output_tokens=200, now=NOW)


def believed(tier: Tier = Tier.STANDARD, *, rate: LiveRate = RATE) -> LiveLaw:
    """The prior of a live tier."""
    return prior_live(tier, rate=rate, input_tokens=500, output_tokens=200)


class TestBatches:
    """The law of a batch."""

    def test_without_observations_it_is_the_prior(self) -> None:
        """Nothing is made up."""
        assert learned() == PRIOR

    @pytest.mark.parametrize("factor", [1 / 6, 0.5, 1, 2, 6])
    @pytest.mark.parametrize("cut_at_h", [2, 30])
    def test_the_truth_is_found(self, factor: float, cut_at_h: float) -> None:
        """Of 500 batches the chance to be done by any time, also where all that last longer were cut."""
        luck = random.Random(f"{factor}")
        truth = msgspec.structs.replace(PRIOR, median_s=factor * PRIOR.median_s, sigma=0.9, p_stuck=0.15)
        seen = []
        for number in range(500):
            stuck = luck.random() < truth.p_stuck
            body_s = truth.median_s * math.exp(truth.sigma * luck.gauss(0, 1))
            took_h = (luck.uniform(truth.stuck_from_s, truth.stuck_to_s) if stuck else body_s) / 3600
            cut = took_h > cut_at_h
            seen.append(batch(60 * min(took_h, cut_at_h), cut=cut, nights_ago=1 + number / 20))
        law = learned(*seen)
        assert law.median_s == pytest.approx(truth.median_s, rel=0.2)
        for minutes in (5, 20, 60, 120):
            assert law.chance_by(60 * minutes) == pytest.approx(truth.chance_by(60 * minutes), abs=0.05)

    @pytest.mark.parametrize("minutes", [1, 5, 150, 1200])
    def test_a_prior_outweighs_one_observation(self, minutes: float) -> None:
        """One batch moves the median by less than half of the way to it."""
        moved = math.log(learned(batch(minutes)).median_s / PRIOR.median_s)
        way = math.log(minutes * 60 / PRIOR.median_s)
        assert 0 <= moved / way < 0.5

    @given(told=SEEN, minutes=MINUTES, nights=st.integers(1, 40))
    def test_a_cut_never_counts_as_an_end(
        self, told: list[tuple[float, bool, int]], minutes: float, nights: int
    ) -> None:
        """Told that it was not done by a time, none is likelier to be done by then than told that it was.

        Without a tail, that is: a batch that was cut may be stuck, and then says nothing of the others.
        """
        prior = msgspec.structs.replace(PRIOR, p_stuck=0.0)
        ended, cut = (
            learn_batch(prior, [*many(told), batch(minutes, cut=is_cut, nights_ago=nights)], now=NOW)
            for is_cut in (False, True)
        )
        assert cut.chance_by(60 * minutes) <= ended.chance_by(60 * minutes) + 1e-4

    @given(told=SEEN, minutes=MINUTES, nights=st.integers(41, 80))
    def test_a_cut_never_makes_the_law_faster(
        self, told: list[tuple[float, bool, int]], minutes: float, nights: int
    ) -> None:
        """Told of one more batch that it was not done by some time, none is likelier to be done by then."""
        before = learned(*many(told))
        after = learned(*many(told), batch(minutes, cut=True, nights_ago=nights))
        assert after.chance_by(60 * minutes) <= before.chance_by(60 * minutes) + 5e-3

    @given(told=SEEN, longer=st.floats(min_value=1, max_value=5))
    def test_slower_observations_never_make_a_faster_law(
        self, told: list[tuple[float, bool, int]], longer: float
    ) -> None:
        """Where no batch is long enough to pass for stuck, a factor on all times never lowers the median."""
        short = [(min(minutes, 40.0), cut, nights) for minutes, cut, nights in told]
        slower = [(minutes * longer, cut, nights) for minutes, cut, nights in short]
        assert learned(*many(slower)).median_s >= learned(*many(short)).median_s * (1 - 1e-4)

    def test_more_of_the_same_convinces_more(self) -> None:
        """Each further night of batches of two hours brings the law closer to two hours."""
        medians = [learned(*(batch(120, nights_ago=n) for n in range(1, nights))).median_s for nights in range(1, 12)]
        assert medians == sorted(medians)
        assert medians[-1] < 7200

    def test_the_newest_count_most(self) -> None:
        """What was seen a season ago gives way to what was seen this week."""
        was_slow = [batch(240, nights_ago=100 + n) for n in range(10)] + [batch(5, nights_ago=1 + n) for n in range(10)]
        is_slow = [batch(5, nights_ago=100 + n) for n in range(10)] + [batch(240, nights_ago=1 + n) for n in range(10)]
        assert learned(*was_slow).median_s < PRIOR.median_s < learned(*is_slow).median_s

    def test_what_is_ages_old_is_as_good_as_nothing(self) -> None:
        """Nor what was seen by a clock that is ahead of this one: it gives a law all the same."""
        assert learned(batch(240, nights_ago=40_000)).median_s == pytest.approx(PRIOR.median_s)
        assert learned(batch(240, nights_ago=-3)).median_s > PRIOR.median_s
        assert live([lane(4.0, nights_ago=40_000)], step="summary").median_s(100) > 0

    def test_one_night_counts_for_less_than_many(self) -> None:
        """Twelve slow batches of one night may be that night's; of twelve nights they are the law."""
        one = learned(*(batch(240, nights_ago=3) for _ in range(12)))
        twelve = learned(*(batch(240, nights_ago=1 + n) for n in range(12)))
        assert PRIOR.median_s < one.median_s < twelve.median_s

    def test_a_slow_night_is_believed_to_go_on(self) -> None:
        """A batch of four hours tonight says more of the next one tonight than of one next week."""
        steady = [batch(20, nights_ago=1 + n) for n in range(20)]
        slow = batch(230, nights_ago=1 / 6)
        tonight, next_week = learned(*steady, slow), learned(*steady, slow, now=NOW + 7 * DAY)
        assert tonight.median_s > 1.1 * next_week.median_s

    def test_a_stuck_batch_says_little_of_the_others(self) -> None:
        """One in twenty that takes fifteen hours is the tail's, and the median stays."""
        steady = [batch(20, nights_ago=1 + n) for n in range(20)]
        with_stuck = learned(*steady, batch(900, nights_ago=5))
        assert with_stuck.p_stuck > learned(*steady).p_stuck
        assert with_stuck.median_s == pytest.approx(learned(*steady).median_s, rel=0.1)

    @given(told=SEEN)
    def test_whatever_was_seen_gives_a_law(self, told: list[tuple[float, bool, int]]) -> None:
        """A median above nothing, a spread that is not nothing, a chance that is one."""
        law = learned(*many(told))
        assert 0 < law.median_s < math.inf
        assert 0.5 * PRIOR.sigma <= law.sigma < 10
        assert 0 < law.p_stuck < 1

    def test_the_order_of_observations_is_none(self) -> None:
        """The same facts give the same law, whoever read them first."""
        seen = [batch(17 * n % 100 + 1, cut=n % 3 == 0, nights_ago=n) for n in range(1, 30)]
        assert learned(*seen).median_s == pytest.approx(learned(*reversed(seen)).median_s)


class TestLanes:
    """The law of a live tier."""

    @pytest.mark.parametrize("tier", LIVE_TIERS)
    def test_without_observations_it_is_the_prior(self, tier: Tier) -> None:
        """Nothing is made up."""
        assert live([], tier) == believed(tier)

    @pytest.mark.parametrize("slower", [0.3, 1, 4])
    def test_the_pace_is_found(self, slower: float) -> None:
        """Base and rate of calls that take some other time than believed."""
        law = live([lane(slower, nights_ago=1 + n) for n in range(30)])
        assert law.base_s == pytest.approx(slower * believed().base_s, rel=0.15)
        assert law.per_request_s == pytest.approx(slower * believed().per_request_s, rel=0.15)

    def test_it_holds_for_other_steps_of_the_model(self) -> None:
        """A step with four times the calls in flight is four times as fast, with as slow a call."""
        law = live([lane(4.0, nights_ago=1 + n) for n in range(30)], rate=LiveRate(concurrency=64))
        assert law.per_request_s == pytest.approx(believed().per_request_s, rel=0.15)

    def test_a_lane_slower_than_its_calls_is_believed(self) -> None:
        """Where 429s take most of the time, each call is quick and the lane is not."""
        busy = timedelta(seconds=3 * (3 + 2000 / 16) * latency_of(Tier.STANDARD, 200.0))
        law = live([lane(busy=busy, nights_ago=1 + n) for n in range(30)])
        assert law.quantile_s(0.5, 2000) == pytest.approx(busy.total_seconds(), rel=0.2)

    def test_a_few_requests_say_nothing_of_how_fast_many_go(self) -> None:
        """The rests that batches leave are done in one call's time; a whole step is not believed to be."""
        rests = [
            lane(requests=3, busy=timedelta(seconds=latency_of(Tier.STANDARD, 200.0)), nights_ago=1 + n)
            for n in range(30)
        ]
        assert live(rests).quantile_s(0.5, 5000) > 0.8 * believed().quantile_s(0.5, 5000)

    def test_a_lane_that_was_looked_at_often_is_as_slow_as_it_was(self) -> None:
        """What is lost at each look is a part of the pace."""
        busy = timedelta(seconds=1.5 * (3 + 2000 / 16) * latency_of(Tier.STANDARD, 200.0))
        once = live([lane(busy=busy, nights_ago=1 + n) for n in range(30)])
        often = live([lane(busy=busy, visits=20, nights_ago=1 + n) for n in range(30)])
        assert often.per_request_s >= once.per_request_s > 1.2 * believed().per_request_s

    def test_a_step_is_known_by_the_length_of_its_own_answers(self) -> None:
        """Declared at 200 tokens and answered with 2,000, a step is ten times as slow; no other step is."""
        long = [
            lane(
                output_tokens=2000.0,
                latency=timedelta(seconds=latency_of(Tier.STANDARD, 2000.0)),
                busy=timedelta(seconds=(3 + 2000 / 16) * latency_of(Tier.STANDARD, 2000.0)),
                nights_ago=1 + n,
            )
            for n in range(5)
        ]
        assert live(long, step="summary").median_s(2000) > 6 * believed().median_s(2000)
        assert live(long, step="label").median_s(2000) == pytest.approx(believed().median_s(2000), rel=0.05)

    def test_no_luck_goes_beyond_the_accounts_limits(self) -> None:
        """At 60 requests a minute a request takes a second, however quick its call."""
        rate = LiveRate(concurrency=16, requests_per_minute=60)
        quick = [lane(0.1, spacing=timedelta(seconds=1), nights_ago=1 + n) for n in range(30)]
        assert live(quick, rate=rate).per_request_s >= 1.0

    def test_an_uneven_tier_keeps_a_wider_reserve(self) -> None:
        """Lanes that take half as long or twice as long by turns spread the law; even ones do not make it certain."""
        uneven = live([lane(2.0 if n % 2 else 0.5, nights_ago=1 + n) for n in range(30)])
        even = live([lane(1.0, nights_ago=1 + n) for n in range(30)])
        assert uneven.sigma > believed().sigma > even.sigma >= 0.8 * believed().sigma - 1e-9

    def test_a_lane_without_an_outcome_makes_the_tier_slower(self) -> None:
        """An hour in which nothing came back is "longer than an hour", and not left out."""
        silent = lane(requests=0, busy=HOUR, latency=timedelta(0), output_tokens=0.0)
        assert live([silent]).quantile_s(0.99, 500) > believed().quantile_s(0.99, 500)

    def test_a_prior_outweighs_one_observation(self) -> None:
        """One night moves a tier by less than half of the way."""
        moved = math.log(live([lane(3.0)]).median_s(2000) / believed().median_s(2000))
        assert 0 < moved < 0.75 * math.log(3.0)


class TestOutages:
    """How often flex takes no calls, and for how long."""

    def test_a_tier_that_is_always_up_is_believed_to_be(self) -> None:
        """The prior of one time in five gives way."""
        law = live([lane(tier=Tier.FLEX, nights_ago=1 + n) for n in range(30)], Tier.FLEX)
        assert law.p_down < 0.06
        assert law.down_s == believed(Tier.FLEX).down_s

    def test_outages_are_learned_from_how_long_they_last(self) -> None:
        """Time down over ends seen: one that was not seen to end adds time, and no end."""
        down = lane(tier=Tier.FLEX, found_down=True, down=2 * HOUR, recoveries=1)
        lasting = lane(tier=Tier.FLEX, found_down=True, down=2 * HOUR, recoveries=0)
        ended = live([msgspec.structs.replace(down, began_at=NOW - n * DAY) for n in range(1, 30)], Tier.FLEX)
        never = live([msgspec.structs.replace(lasting, began_at=NOW - n * DAY) for n in range(1, 30)], Tier.FLEX)
        assert ended.down_s == pytest.approx(7200, rel=0.2)
        assert never.down_s > 5 * ended.down_s
        assert ended.p_down > 0.7

    def test_standard_has_none(self) -> None:
        """A tier that refuses nobody is not believed to."""
        law = live([lane(nights_ago=1 + n) for n in range(5)])
        assert (law.p_down, law.down_s) == (0.0, 0.0)


def test_a_plan_says_what_its_laws_rest_on() -> None:
    """Priors, a night or two that weigh less than they do, or what was seen."""
    assert basis_of([], []) == PRIORS
    assert basis_of([batch(5)], []) == "priors, which outweigh 1 batch of 1 night"
    assert basis_of([batch(5), batch(6)], [lane()]) == "priors, which outweigh 2 batches and 1 live run of 1 night"
    seen = [batch(5, nights_ago=n) for n in range(1, 10)]
    assert basis_of(seen, []) == "9 batches of 9 nights"
    assert basis_of(seen, [lane(nights_ago=20), lane()]) == "9 batches and 2 live runs of 10 nights"
