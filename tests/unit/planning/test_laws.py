"""The laws of completion time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.planning.laws import BatchLaw, LiveLaw, chances_by
from prefect_llm_tiers.planning.playing import draws_of
from prefect_llm_tiers.planning.priors import LiveRate, prior_batch, prior_live
from tests.unit.planning.worlds import BATCH

LUCK = draws_of(1)[0]

live_laws = st.builds(
    LiveLaw,
    base_s=st.floats(0.1, 300),
    per_request_s=st.floats(0.001, 10),
    sigma=st.floats(0.05, 1.0),
    p_down=st.sampled_from([0.0, 0.2, 0.5]),
    down_s=st.sampled_from([0.0, 600.0, 3600.0]),
)
chances = st.floats(0.5, 0.999)


@given(law=live_laws, q=chances, requests=st.integers(1, 100_000))
def test_a_quantile_is_met_with_its_chance(law: LiveLaw, q: float, requests: int) -> None:
    """Within `quantile_s(q)` a tier is done with chance `q`: exactly without outages, at least with them."""
    met = law.chance_by(law.quantile_s(q, requests), requests)
    if law.p_down and law.down_s:
        # The chance is averaged over 32 points of the log-normal.
        assert met >= q - 0.002
    else:
        assert met == pytest.approx(q, abs=1e-9)


@given(law=live_laws, q=chances, requests=st.integers(1, 10_000))
def test_quantiles_grow_with_work_and_with_chance(law: LiveLaw, q: float, requests: int) -> None:
    """More requests never take less time, nor does more certainty; nothing takes none."""
    assert law.quantile_s(q, requests) <= law.quantile_s(q, requests + 1)
    assert law.quantile_s(q, requests) <= law.quantile_s((1 + q) / 2, requests)
    assert law.quantile_s(q, 0) == law.median_s(0) == 0


@given(law=live_laws, q=chances)
def test_many_at_once_are_as_one_by_one(law: LiveLaw, q: float) -> None:
    """The forms over arrays say what the plain ones say."""
    requests = np.array([0.0, 0.5, 1.0, 700.0])
    assert law.quantiles(q, requests).tolist() == pytest.approx([law.quantile_s(q, one) for one in requests])
    assert law.medians(requests).tolist() == pytest.approx([law.median_s(one) for one in requests])


def test_played_makespans_have_the_laws_quantiles() -> None:
    """Stratified draws meet each quantile of the law to one night."""
    law = LiveLaw(base_s=12, per_request_s=0.12, sigma=0.35)
    times = law.times(LUCK.standard, np.full(LUCK.standard.shape, 5000.0))
    for q in (0.5, 0.9, 0.99, 0.999):
        late = int((times > law.quantile_s(q, 5000)).sum())
        assert late == pytest.approx((1 - q) * len(times), abs=1)


def test_played_batches_complete_as_the_law_says() -> None:
    """The share of drawn batches that completed by an instant is `chance_by`, also in the stuck tail."""
    times = BATCH.times(LUCK.batch, LUCK.stuck, LUCK.stuck_at)
    for hours in (0.1, 0.5, 2, 6, 12, 24):
        share = float((times <= 3600 * hours).mean())
        assert share == pytest.approx(BATCH.chance_by(3600 * hours), abs=0.01)
        assert chances_by(BATCH, np.array([3600.0 * hours]))[0] == pytest.approx(share, abs=0.01)


@given(early=st.floats(0, 2e5), late=st.floats(0, 2e5))
def test_a_batch_is_never_less_likely_done_later(early: float, late: float) -> None:
    """`chance_by` grows with time, from 0 to the chance of not expiring, and not past the window."""
    early, late = sorted((early, late))
    assert 0 <= BATCH.chance_by(early) <= BATCH.chance_by(late) <= BATCH.chance_by(BATCH.window_s) < 1


@given(q=st.floats(0.01, 0.99))
def test_a_batchs_quantile_inverts_its_chance(q: float) -> None:
    """`quantile_s` is the earliest instant that is met with the chance, or the window where none is."""
    assert BATCH.chance_by(BATCH.quantile_s(q)) == pytest.approx(min(q, BATCH.chance_by(BATCH.window_s)), abs=1e-6)


@pytest.mark.parametrize("law", [BatchLaw(60, 0, 0, 10, 10), BatchLaw(60, 0, 0.5, 100, 100)])
def test_laws_without_spread_are_steps(law: BatchLaw) -> None:
    """A law without spread divides by nothing: before its time never, after it always."""
    assert law.chance_by(59) == 0
    assert law.chance_by(60) == 1 - law.p_stuck
    assert law.chance_by(100) == 1


@pytest.mark.parametrize("tier", LIVE_TIERS)
def test_the_account_s_own_limit_paces_a_live_tier(tier: Tier) -> None:
    """However fast a tier is, 40 requests a minute are 40 requests a minute."""
    free = prior_live(tier, rate=LiveRate(concurrency=64), input_tokens=500, output_tokens=100)
    limited = prior_live(
        tier, rate=LiveRate(concurrency=64, requests_per_minute=40), input_tokens=500, output_tokens=100
    )
    by_tokens = prior_live(
        tier, rate=LiveRate(concurrency=64, tokens_per_minute=600), input_tokens=500, output_tokens=100
    )
    assert free.per_request_s < 1.5
    assert limited.per_request_s == 1.5
    assert by_tokens.per_request_s == 60


def test_only_flex_is_believed_to_refuse() -> None:
    """The tiers that deadlines are trusted to have no outages in their priors; flex has."""
    laws = {
        tier: prior_live(tier, rate=LiveRate(concurrency=8), input_tokens=1, output_tokens=1) for tier in LIVE_TIERS
    }
    assert [tier for tier, law in laws.items() if law.p_down > 0] == [Tier.FLEX]
    assert laws[Tier.PRIORITY].median_s(100) < laws[Tier.STANDARD].median_s(100) < laws[Tier.FLEX].median_s(100)


def test_the_batch_prior_has_a_heavy_tail() -> None:
    """Most batches are done within an hour or two, one in twenty takes hours, and some expire."""
    law = prior_batch(window_s=86_400)
    assert law.chance_by(3600) > 0.7
    assert 0.9 < law.chance_by(4 * 3600) < 0.96
    assert law.chance_by(86_400) < 0.995
    assert math.isclose(law.quantile_s(0.999), 86_400)
