"""Power before the test: what statsmodels says, and what simulated tests of that size then see."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestIndPower

from recsys_meta.ab.experiments.moments import moments
from recsys_meta.ab.experiments.power import (
    Horizon,
    days_needed,
    detectable,
    horizon,
    looking,
    users_needed,
)

AT = Horizon(14, 2000, 3.0, 4.0, None)


def test_the_smallest_effect_is_that_of_statsmodels() -> None:
    standardized = NormalIndPower().solve_power(nobs1=1000, alpha=0.05, power=0.8)
    assert detectable(AT).once == pytest.approx(4.0 * standardized, rel=1e-5)
    uneven = NormalIndPower().solve_power(nobs1=1600, ratio=0.25, alpha=0.01, power=0.9)
    assert detectable(AT, share=0.2, level=0.99, power=0.9).once == pytest.approx(4.0 * uneven, rel=1e-5)
    of_t = TTestIndPower().solve_power(nobs1=1000, alpha=0.05, power=0.8)
    assert detectable(AT).once == pytest.approx(4.0 * of_t, rel=1e-3)


def test_the_users_needed_for_the_smallest_effect_are_those_there_are() -> None:
    assert users_needed(AT, detectable(AT).once / AT.mean) == pytest.approx(AT.users, abs=2)
    assert users_needed(AT, 0.05) == pytest.approx(4 * users_needed(AT, 0.1), rel=0.01)


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
