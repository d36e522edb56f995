"""Sums over users: the difference that they say is that of tea-tasting, scipy and statsmodels; CUPED takes away rho squared."""

import numpy as np
import polars as pl
import pytest
import tea_tasting as tt
from hypothesis import given
from hypothesis import strategies as st
from made_experiment import made_users
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from recsys_meta.ab.experiments.moments import (
    SUMS,
    Centre,
    Contrast,
    Moments,
    contrast,
    moments,
    of_pair,
    of_users,
)

DIGITS = 1e-9


def arms(users: pl.DataFrame) -> tuple[Moments, Moments]:
    return of_pair(users, "A", "B")


def without(users: pl.DataFrame, *, ratio: bool, covariate: bool) -> pl.DataFrame:
    users = users if ratio else users.with_columns(denominator=pl.lit(1.0))
    return users if covariate else users.with_columns(covariate=pl.lit(0.0))


def says(found: Contrast, effect: float, low: float, high: float, p_value: float) -> None:
    """An end of an interval may lie at zero, of which there are no digits: it is held to as many of the interval's width."""
    ours_low, ours_high = found.interval(0.95)
    assert float(found.effect) == pytest.approx(effect, rel=DIGITS, abs=DIGITS * (high - low))
    assert (float(ours_low), float(ours_high)) == pytest.approx(
        (low, high), rel=DIGITS, abs=DIGITS * (high - low)
    )
    assert float(found.p_values()) == pytest.approx(p_value, rel=DIGITS, abs=0.0)


@given(
    seed=st.integers(0, 10_000),
    users=st.integers(20, 300),
    ratio=st.booleans(),
    covariate=st.booleans(),
    shift=st.sampled_from([0.0, 1e4]),
)
def test_the_contrast_is_what_tea_tasting_says_to_nine_digits(
    seed: int, users: int, ratio: bool, covariate: bool, shift: float
) -> None:
    table = without(
        made_users(users, effect=0.5, correlation=0.5, seed=seed), ratio=ratio, covariate=covariate
    )
    if not ratio:  # users who hardly differ: all away from zero
        table = table.with_columns(pl.col("numerator", "covariate") + shift)
    direct = tt.RatioOfMeans(
        "numerator", "denominator" if ratio else None, "covariate" if covariate else None
    )
    said = tt.Experiment({"m": direct}).analyze(table, "A")["m"]
    found = contrast(*arms(table))
    assert float(found.control) == pytest.approx(said.control, rel=DIGITS)
    says(found, said.effect_size, said.effect_size_ci_lower, said.effect_size_ci_upper, said.pvalue)


@given(seed=st.integers(0, 10_000), users=st.integers(20, 300), shift=st.sampled_from([0.0, 1e4]))
def test_a_difference_of_means_is_what_scipy_and_statsmodels_say_to_nine_digits(
    seed: int, users: int, shift: float
) -> None:
    table = without(made_users(users, effect=0.5, seed=seed), ratio=False, covariate=False)
    table = table.with_columns(pl.col("numerator") + shift)
    a, b = (table.filter(pl.col("variant") == name)["numerator"].to_numpy() for name in ("A", "B"))
    found = contrast(*arms(table))
    assert float(found.treatment) == pytest.approx(b.mean(), rel=DIGITS)
    welch = stats.ttest_ind(b, a, equal_var=False)
    interval = welch.confidence_interval(0.95)
    says(found, b.mean() - a.mean(), interval.low, interval.high, welch.pvalue)
    other = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    says(
        found,
        b.mean() - a.mean(),
        *other.tconfint_diff(usevar="unequal"),
        other.ttest_ind(usevar="unequal")[1],
    )


def test_sums_around_another_centre_say_the_same_and_are_not_added_up_with_others() -> None:
    table = made_users(100, effect=0.4, correlation=0.5, seed=1)
    here = arms(table)
    there = [of_users(table.filter(pl.col("variant") == name), Centre(4.0, 2.0, 1.0)) for name in ("A", "B")]
    for one, other in zip(contrast(*here), contrast(*there), strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-12)
    with pytest.raises(ValueError, match="expected one centre"):
        here[0].plus(there[0])


def test_what_is_taken_away_again_leaves_what_was_there() -> None:
    table = made_users(100, effect=0.4, correlation=0.5, seed=1)
    a, b = arms(table)
    for name, left, before in zip(SUMS, a.plus(b).minus(b).sums, a.sums, strict=True):
        assert float(left) == pytest.approx(float(before), rel=1e-12, abs=1e-12), name


def test_of_nobody_the_sums_are_zero() -> None:
    nobody = moments(*np.zeros((3, 0)))
    assert [float(part) for part in nobody.sums] == [0.0] * len(SUMS)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100.0))
def test_another_unit_changes_effect_and_error_alike(seed: int, scale: float) -> None:
    table = made_users(100, effect=0.4, correlation=0.5, seed=seed)
    one = contrast(*arms(table))
    other = contrast(*arms(table.with_columns(pl.col("numerator") * scale)))
    width = scale * float(one.error)
    assert float(other.effect) == pytest.approx(scale * float(one.effect), rel=DIGITS, abs=DIGITS * width)
    assert float(other.error) == pytest.approx(scale * float(one.error), rel=DIGITS)


@given(seed=st.integers(0, 1000))
def test_the_order_of_the_users_does_not_matter(seed: int) -> None:
    table = made_users(60, seed=seed)
    one, other = contrast(*arms(table)), contrast(*arms(table.sample(fraction=1.0, shuffle=True, seed=seed)))
    assert float(one.effect) == pytest.approx(float(other.effect), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("correlation", [0.3, 0.7, 0.9])
def test_a_covariate_takes_away_the_square_of_its_correlation(correlation: float) -> None:
    table = without(made_users(40_000, correlation=correlation, seed=3), ratio=False, covariate=True)
    plain = contrast(*arms(without(table, ratio=False, covariate=False)))
    adjusted = contrast(*arms(table))
    rho = np.corrcoef(table["numerator"], table["covariate"])[0, 1]
    assert float(adjusted.error / plain.error) ** 2 == pytest.approx(1.0 - rho**2, rel=0.01)
    assert float(adjusted.reduction) == pytest.approx(rho**2, rel=0.01)


def test_a_share_of_control_asks_about_a_margin() -> None:
    table = without(made_users(200, seed=1), ratio=False, covariate=False)
    a, b = (table.filter(pl.col("variant") == name)["numerator"].to_numpy() for name in ("A", "B"))
    found = contrast(*arms(table), 0.9)
    assert float(found.effect) == pytest.approx(b.mean() - 0.9 * a.mean(), rel=1e-12)
    error = np.sqrt(b.var(ddof=1) / len(b) + 0.81 * a.var(ddof=1) / len(a))
    assert float(found.error) == pytest.approx(error, rel=1e-10)


def test_of_many_splits_at_once_each_is_as_alone() -> None:
    tables = [made_users(80, seed=seed) for seed in range(3)]
    centre = Centre(5.0, 5.0, 0.0)
    by_arm = [
        [of_users(table.filter(pl.col("variant") == name), centre) for table in tables] for name in ("A", "B")
    ]
    alone = [contrast(*pair) for pair in zip(*by_arm, strict=True)]
    stacked = [
        Moments.around(centre, (np.stack(parts) for parts in zip(*(one.sums for one in arm), strict=True)))
        for arm in by_arm
    ]
    together = contrast(*stacked)
    for place, one in enumerate(alone):
        for name in one._fields:
            assert getattr(together, name)[place] == pytest.approx(float(getattr(one, name)), rel=1e-12)
