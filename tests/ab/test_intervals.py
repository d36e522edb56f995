"""Intervals: equal to those of scipy where scipy has them, and true to their names elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from recsys_meta.ab.estimators.sample import UserSums
from recsys_meta.ab.intervals import KINDS, interval, resamples
from recsys_meta.ab.intervals import _f_quantile as f_quantile
from recsys_meta.ab.intervals import _likelihood_ratio as likelihood_ratio

DRAWN = resamples(200, 999, 0)


def sums(seed: int = 0, users: int = 200) -> UserSums:
    """A skewed ratio."""
    generator = np.random.default_rng(seed)
    return UserSums(
        generator.exponential(size=users) * generator.integers(1, 4, users),
        generator.integers(1, 4, users) * 1.0,
    )


def mean_of(values: np.ndarray) -> UserSums:
    return UserSums(values, np.ones(len(values)))


def test_the_normal_interval_of_a_mean_is_scipys():
    values = sums().numerator
    low, high, _ = interval(mean_of(values), "normal", DRAWN)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=1e-12)


def test_the_normal_interval_of_a_ratio_is_the_delta_method():
    found = sums()
    a, b = found
    covariance = np.cov(a, b)
    gradient = np.array([1 / b.mean(), -a.mean() / b.mean() ** 2])
    error = np.sqrt(gradient @ covariance @ gradient / len(a))
    assert found.standard_error == pytest.approx(error, rel=1e-12)


def test_the_percentile_interval_is_scipys_to_the_noise_of_resampling():
    values = sums().numerator
    low, high, _ = interval(mean_of(values), "percentile", resamples(200, 4000, 1))
    expected = stats.bootstrap(
        (values,),
        np.mean,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(0),
        vectorized=True,
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.15 * values.std() / np.sqrt(200))


def test_the_studentized_interval_is_the_bootstrap_t_written_out():
    a = sums().numerator
    low, high, _ = interval(mean_of(a), "studentized", DRAWN)
    t = []
    for count in DRAWN.counts.astype(int):
        drawn = np.repeat(a, count)
        t.append((drawn.mean() - a.mean()) / stats.sem(drawn))
    expected = a.mean() - np.quantile(t, [0.975, 0.025]) * stats.sem(a)
    assert (low, high) == pytest.approx(tuple(expected), rel=0.02)


def test_the_likelihood_ratio_is_what_a_general_optimizer_finds():
    g = sums(3, 12).numerator - 1.1
    size = len(g)
    solved = optimize.minimize(
        lambda p: -np.log(size * p).sum(),
        np.full(size, 1 / size),
        constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}, {"type": "eq", "fun": lambda p: p @ g}],
        bounds=[(1e-9, 1)] * size,
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert likelihood_ratio(g) == pytest.approx(2 * solved.fun, rel=1e-5)


def test_the_ends_of_the_likelihood_interval_are_where_the_ratio_meets_the_limit():
    found = sums()
    for end in interval(found, "likelihood", DRAWN)[:2]:
        ratio = likelihood_ratio(found.numerator - end * found.denominator)
        assert ratio == pytest.approx(stats.f.ppf(0.95, 1, 199), rel=1e-4)


@pytest.mark.parametrize("freedom", [20, 100, 5000])
def test_the_quantile_of_f_is_scipys(freedom):
    assert f_quantile(0.95, freedom) == pytest.approx(stats.f.ppf(0.95, 1, freedom), rel=1e-3)


def test_a_ratio_outside_of_all_users_is_impossible():
    assert likelihood_ratio(np.array([0.5, 1.0])) == np.inf


def test_the_bernstein_interval_is_maurer_and_pontils():
    values = np.random.default_rng(0).random(200)
    low, high, _ = interval(mean_of(values), "bernstein", DRAWN)
    log = np.log(4 / 0.05)
    half = np.sqrt(2 * values.var(ddof=1) * log / 200) + 7 * np.ptp(values) * log / (3 * 199)
    assert (high - low) / 2 == pytest.approx(half)


def test_the_confidence_sequence_misses_seldom_however_often_one_looks():
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        values = generator.exponential(size=2000) - 1
        looks = (interval(mean_of(values[:n]), "sequence", DRAWN) for n in range(100, 2001, 100))
        missed += any(not look.low <= 0 <= look.high for look in looks)
    assert stats.binomtest(missed, 200, 0.05, alternative="greater").pvalue > 0.01


@given(st.integers(0, 1000), st.sampled_from(KINDS))
def test_every_interval_holds_its_estimate_and_grows_with_its_level(seed, kind):
    found = sums(seed)
    narrow, wide = (interval(found, kind, DRAWN, level) for level in (0.8, 0.95))
    assert narrow.low <= found.value <= narrow.high
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@given(st.integers(0, 1000), st.floats(0.01, 100), st.sampled_from(KINDS))
def test_the_unit_does_not_matter(seed, scale, kind):
    found = sums(seed)
    plain = interval(found, kind, DRAWN)
    scaled = interval(UserSums(found.numerator * scale, found.denominator), kind, DRAWN)
    assert (scaled.low, scaled.high) == pytest.approx(
        (plain.low * scale, plain.high * scale), rel=1e-5, abs=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_never_varies_is_known_and_what_one_user_says_is_not(kind):
    still = interval(mean_of(np.full(200, 0.5)), kind, DRAWN)
    assert (still.low, still.high) == pytest.approx((0.5, 0.5))
    alone = interval(mean_of(np.array([0.5])), kind, resamples(1, 100))
    assert (alone.low, alone.high) == (-np.inf, np.inf)


def test_many_users_are_resampled_in_groups_and_the_spread_stays():
    values = np.random.default_rng(0).exponential(size=40_000)
    drawn = resamples(40_000, 500, 1)
    assert drawn.counts.shape == (500, 10_000)
    estimates, errors = drawn.of(mean_of(values))
    assert estimates.std() == pytest.approx(stats.sem(values), rel=0.15)
    assert errors.mean() == pytest.approx(stats.sem(values), rel=0.05)
    wide = interval(mean_of(values), "likelihood", drawn)
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * stats.sem(values), rel=0.03)


def test_resamples_without_any_reward_leave_the_upper_end_open_and_never_nan():
    rare = np.zeros(200)
    rare[0] = 1.0
    low, high, _ = interval(mean_of(rare), "studentized", DRAWN)
    assert not np.isnan(low)
    assert high > 0.005
