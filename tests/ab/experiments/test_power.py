"""Power before the test: what statsmodels and tea-tasting say, and what simulated tests of that size then see."""

import numpy as np
import pytest
import tea_tasting as tt
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestIndPower
from tea_tasting.aggr import Aggregates

from recsys_meta.ab.experiments.moments import moments
from recsys_meta.ab.experiments.power import (
    Horizon,
    days_needed,
    detectable,
    distance,
    horizon,
    looking,
    users_needed,
)

DIGITS = 1e-9

AT = Horizon(14, 2000, 3.0, 4.0, None)


@pytest.mark.parametrize(
    ("share", "level", "power"),
    [(0.5, 0.95, 0.8), (0.2, 0.99, 0.9), (0.7, 0.8, 0.999), (0.5, 0.95, 0.06), (0.5, 0.5, 0.51)],
)
@pytest.mark.parametrize("deviation", [4.0, 4e-9, 4e9])
def test_the_smallest_effect_is_the_one_that_statsmodels_and_tea_tasting_see_with_that_power(
    share: float, level: float, power: float, deviation: float
) -> None:
    at = AT._replace(deviation=deviation)
    effect = detectable(at, share=share, level=level, power=power).once
    nobs, ratio = at.users * (1 - share), share / (1 - share)
    # statsmodels' own root is found to 1e-5 only; its power at ours is the oracle.
    seen = NormalIndPower().power(effect / deviation, nobs, 1 - level, ratio=ratio)
    assert seen == pytest.approx(power, rel=DIGITS)
    metric = tt.Mean("x", use_t=False, alpha=1 - level, effect_size=effect, ratio=ratio, n_obs=at.users)
    sample = Aggregates(count_=at.users, mean_={"x": at.mean}, var_={"x": deviation**2}, cov_={})
    (said,) = metric.solve_power_from_aggregates(sample, "power")
    assert said.power == pytest.approx(power, rel=DIGITS)


def test_where_one_side_is_all_it_is_the_sum_of_two_quantiles() -> None:
    exact = (stats.norm.isf(0.005) + stats.norm.ppf(0.9)) * 4.0 * np.sqrt(1 / 1600 + 1 / 400)
    assert detectable(AT, share=0.2, level=0.99, power=0.9).once == pytest.approx(exact, rel=DIGITS)
    (said,) = tt.Mean("x", use_t=False, alpha=0.01, power=0.9, ratio=0.25).solve_power_from_aggregates(
        Aggregates(count_=2000, mean_={"x": 3.0}, var_={"x": 16.0}, cov_={}), "effect_size"
    )
    assert detectable(AT, share=0.2, level=0.99, power=0.9).once == pytest.approx(
        said.effect_size, rel=DIGITS
    )


def test_what_chance_alone_sees_needs_no_effect() -> None:
    assert distance(0.95, 0.05) == 0.0
    assert distance(0.95, 0.01) == 0.0
    assert distance(0.95, 0.0500001) > 0.0


def test_a_t_test_of_so_many_users_hardly_needs_more() -> None:
    of_t = TTestIndPower().solve_power(nobs1=1000, alpha=0.05, power=0.8)
    assert detectable(AT).once == pytest.approx(4.0 * of_t, rel=1e-3)


@given(
    lift=st.floats(0.001, 0.5), share=st.floats(0.05, 0.95), level=st.floats(0.8, 0.99), power=st.floats(0.5, 0.95)
)  # fmt: skip
def test_the_users_needed_are_the_first_number_that_sees_the_lift(
    lift: float, share: float, level: float, power: float
) -> None:
    needed = users_needed(AT, lift, share=share, level=level, power=power)
    seen = [
        NormalIndPower().power(lift * 0.75, users * (1 - share), 1 - level, ratio=share / (1 - share))
        for users in (needed - 1, needed)
    ]
    assert seen[0] < power + DIGITS
    assert seen[1] > power - DIGITS


def test_the_users_needed_for_the_smallest_effect_are_those_there_are() -> None:
    assert users_needed(AT, detectable(AT).once / AT.mean) == pytest.approx(AT.users, abs=1)
    assert users_needed(AT, 0.05) == pytest.approx(4 * users_needed(AT, 0.1), rel=0.01)
    assert users_needed(AT, -0.05) == users_needed(AT, 0.05)


def test_tests_of_that_size_see_that_effect_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    effect = detectable(AT).once
    draws = 1500
    a = random.normal(3.0, 4.0, (draws, 1000))
    b = random.normal(3.0 + effect, 4.0, (draws, 1000))
    assert (stats.ttest_ind(b, a, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.035)


def test_looking_every_day_costs_a_third_to_two_fifths_and_least_at_the_planned_end() -> None:
    assert looking(14, 0.95, 0.8, 14.0) == pytest.approx((3.034 + 0.8416) / (1.96 + 0.8416), rel=1e-3)
    assert looking(14, 0.95, 0.8, 14.0) < looking(3, 0.95, 0.8, 14.0)
    assert looking(14, 0.95, 0.8, 14.0) < looking(90, 0.95, 0.8, 14.0)
    assert detectable(AT).always == pytest.approx(detectable(AT).once * looking(14, 0.95, 0.8, 14.0))


def test_a_horizon_takes_away_what_the_covariate_explains() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=50_000)
    y = 5.0 + 0.6 * x + 0.8 * random.normal(size=50_000)
    found = horizon(7, moments(y, np.ones_like(y), x), covariate=True)
    rho = np.corrcoef(x, y)[0, 1]
    assert found.reduction == pytest.approx(rho**2, rel=1e-9)
    assert found.deviation == pytest.approx(y.std(ddof=1) * np.sqrt(1.0 - rho**2), rel=1e-9)
    assert (found.days, found.users) == (7, 50_000)


def test_days_are_the_first_horizon_with_users_enough_or_told_by_its_pace() -> None:
    horizons = [Horizon(7, 700, 1.0, 1.0, None), Horizon(14, 1000, 1.0, 1.0, None)]
    assert days_needed(horizons, [800, 900]) == (14, 13)
    assert days_needed(horizons, [700, 900]) == (7, 13)
    assert days_needed(horizons, [1500, 2000]) == (None, 28)
