"""The band that may be looked at every day: what it is made of; test_simulation counts how often it is wrong."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy import optimize

from recsys_meta.ab.experiments.always_valid import (
    cumulative_moments,
    looks,
    p_values,
    tightest_ratio,
    widths,
)
from recsys_meta.ab.experiments.measuring import totals
from recsys_meta.ab.experiments.moments import SUMS, of_users

FIRST = date(2026, 1, 1)


def test_half_the_width_is_the_formula_of_the_paper() -> None:
    t, variance, rho, alpha = 250.0, 1.7, 0.11, 0.05
    total = t * variance
    published = np.sqrt((total * rho**2 + 1) / (t**2 * rho**2) * np.log((total * rho**2 + 1) / alpha**2))
    tightest = tightest_ratio(0.95) / rho**2
    ours = np.sqrt(variance / t) * widths(np.array(total), tightest, 0.95)
    assert float(ours) == pytest.approx(published, rel=1e-12)


def test_the_band_is_narrowest_where_it_was_planned() -> None:
    found = optimize.minimize_scalar(
        lambda time: float(widths(np.array(time), 100.0, 0.95)), bounds=(1.0, 1e4), method="bounded"
    )
    at_plan = float(widths(np.array(100.0), 100.0, 0.95))
    assert found.fun == pytest.approx(
        at_plan, rel=0.01
    )  # the advice is of first order, and the bottom is flat
    assert at_plan == pytest.approx(3.03, abs=0.01)


@given(time=st.floats(0.01, 1e6), z=st.floats(0.0, 8.0), level=st.sampled_from([0.9, 0.95, 0.99]))
def test_the_p_value_is_the_level_at_which_the_band_excludes_zero(time, z, level) -> None:
    tightest = 10.0
    p = float(p_values(np.array(z), np.array(time), tightest, level))
    if p < 1.0:
        m = tightest_ratio(level) * time / tightest
        assert z == pytest.approx(np.sqrt((1 + 1 / m) * np.log((1 + m) / p**2)), rel=1e-6)
    half = float(widths(np.array(time), tightest, level))
    if abs(z - half) > 1e-9:
        assert (p < 1.0 - level) == (z > half)


def moves(users: int = 300, days: int = 6, seed: int = 0) -> pl.DataFrame:
    """Rows as measuring.steps gives, of a ratio with a covariate: users enter, and come back."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        variant, entered, past = "AB"[random.integers(2)], random.integers(days), float(random.poisson(3))
        for day in range(entered, days):
            if day == entered or random.random() < 0.4:
                shown = 1.0 + random.poisson(2.0)
                rows.append(
                    (user, variant, FIRST + timedelta(days=int(day)), float(day == entered),
                     float(random.poisson(0.3 * shown)), shown, past)
                )  # fmt: skip
    names = ["user_id", "variant", "day", "entry", "numerator", "denominator", "covariate"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_until_each_day_the_sums_are_those_of_the_users_until_then() -> None:
    table = moves()
    days, found = cumulative_moments(table.sample(fraction=1.0, shuffle=True, seed=1), ["A", "B"])
    assert days.to_list() == [FIRST + timedelta(days=day) for day in range(6)]
    for place, day in enumerate(days):
        until = totals(table.filter(pl.col("day") <= day))
        for variant in "AB":
            direct = of_users(until.filter(pl.col("variant") == variant), found[variant].centre)
            for name in SUMS:
                assert getattr(found[variant], name)[place] == pytest.approx(
                    float(getattr(direct, name)), rel=1e-12, abs=1e-9
                )


def test_looks_begin_when_there_are_users_enough_and_a_day_more_does_not_change_those_before() -> None:
    table = moves()
    found = looks(table, "A", "B", first_look_users=40)
    assert found["users_control"].min() >= 40
    assert found["day"][0] > FIRST
    before = looks(table.filter(pl.col("day") < FIRST + timedelta(days=5)), "A", "B", first_look_users=40)
    assert_frame_equal(
        before, found.head(-1), rel_tol=1e-10, abs_tol=1e-12
    )  # another centre, other roundings
    assert ((found["low"] < found["once_low"]) & (found["high"] > found["once_high"])).all()
    assert looks(table, "A", "B", first_look_users=10_000).is_empty()
