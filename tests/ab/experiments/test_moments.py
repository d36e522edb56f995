"""Sums over users: the difference that they say is the one of tea-tasting, whatever the shape; CUPED takes away rho squared."""

import numpy as np
import polars as pl
import pytest
import tea_tasting as tt
from hypothesis import given
from hypothesis import strategies as st
from made_experiment import made_users

from recsys_meta.ab.experiments.moments import Moments, contrast, of_users


def arms(users: pl.DataFrame) -> tuple[Moments, Moments]:
    return of_users(users.filter(pl.col("variant") == "A")), of_users(users.filter(pl.col("variant") == "B"))


def without(users: pl.DataFrame, *, ratio: bool, covariate: bool) -> pl.DataFrame:
    users = users if ratio else users.with_columns(denominator=pl.lit(1.0))
    return users if covariate else users.with_columns(covariate=pl.lit(0.0))


@given(
    seed=st.integers(0, 10_000), users=st.integers(20, 300), ratio=st.booleans(), covariate=st.booleans()
)  # fmt: skip
def test_the_contrast_is_what_tea_tasting_says(seed: int, users: int, ratio: bool, covariate: bool) -> None:
    table = without(
        made_users(users, effect=0.5, correlation=0.5, seed=seed), ratio=ratio, covariate=covariate
    )
    direct = tt.RatioOfMeans(
        "numerator", "denominator" if ratio else None, "covariate" if covariate else None
    )
    said = tt.Experiment({"m": direct}).analyze(table, "A")["m"]
    found = contrast(*arms(table))
    assert float(found.effect) == pytest.approx(said.effect_size, rel=1e-9)
    assert float(found.control) == pytest.approx(said.control, rel=1e-9)
    assert float(found.p_values()) == pytest.approx(said.pvalue, rel=1e-7)
    low, high = found.interval(0.95)
    assert float(low) == pytest.approx(said.effect_size_ci_lower, rel=1e-7, abs=1e-9)
    assert float(high) == pytest.approx(said.effect_size_ci_upper, rel=1e-7, abs=1e-9)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100.0))
def test_another_unit_changes_effect_and_error_alike(seed: int, scale: float) -> None:
    table = made_users(100, effect=0.4, correlation=0.5, seed=seed)
    one = contrast(*arms(table))
    other = contrast(*arms(table.with_columns(pl.col("numerator") * scale)))
    assert float(other.effect) == pytest.approx(scale * float(one.effect), rel=1e-6, abs=1e-9)
    assert float(other.error) == pytest.approx(scale * float(one.error), rel=1e-6)


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
    alone = [contrast(*arms(table)) for table in tables]
    stacked = [
        Moments(*(np.stack(parts) for parts in zip(*(arms(table)[arm] for table in tables), strict=True)))
        for arm in (0, 1)
    ]
    together = contrast(*stacked)
    for place, one in enumerate(alone):
        for name in one._fields:
            assert getattr(together, name)[place] == pytest.approx(float(getattr(one, name)), rel=1e-12)
