"""The band that may be looked at every day: what it is made of, and how often it is wrong on users who do not differ."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from recsys_meta.ab.experiments.always_valid import (
    cumulative_moments,
    looks,
    p_values,
    tightest_ratio,
    widths,
)
from recsys_meta.ab.experiments.measuring import totals
from recsys_meta.ab.experiments.moments import Contrast, Moments, contrast, of_users

LOOKS = 20
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


def alarms(found: Contrast, planned: float = 10.0) -> tuple[float, float]:
    """Shares of the draws in which any look excludes zero: of the band, and of plain t-tests. found: [draws, looks]."""
    tightest = planned * found.time[:, :1]
    half = found.error * widths(found.time, tightest, 0.95)
    return (
        float((np.abs(found.effect) > half).any(1).mean()),
        float((found.p_values() < 0.05).any(1).mean()),
    )


def summed(n: np.ndarray, d: np.ndarray, x: np.ndarray, counted: np.ndarray) -> Moments:
    """Moments over the last axis, of the users that are counted."""
    terms = (np.ones_like(n), n, d, x, n * n, d * d, x * x, n * d, n * x, d * x)
    return Moments(*((term * counted).sum(-1) for term in terms))


def test_twenty_looks_at_users_who_come_one_after_the_other() -> None:
    random = np.random.default_rng(0)
    draws, batch = 2000, 60
    shape = (draws, LOOKS, batch)
    y, is_b = random.normal(size=shape), random.random(shape) < 0.5
    parts = [summed(y, np.ones(shape), np.zeros(shape), arm) for arm in (~is_b, is_b)]
    a, b = (Moments(*(term.cumsum(1) for term in part)) for part in parts)
    band, plain = alarms(contrast(a, b))
    assert band <= 0.05
    assert plain == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("persistence", [0.0, 0.9])
def test_twenty_looks_at_users_who_come_back_every_day(persistence: float) -> None:
    random = np.random.default_rng(1)
    draws, users = 1500, 200
    own = random.normal(size=(draws, 1, users)) * np.sqrt(persistence)
    each = random.normal(size=(draws, LOOKS, users)) * np.sqrt(1.0 - persistence)
    total = (own + each).cumsum(1)
    is_b = np.broadcast_to(random.random((draws, 1, users)) < 0.5, total.shape)
    one, nothing = np.ones_like(total), np.zeros_like(total)
    found = contrast(*(summed(total, one, nothing, arm) for arm in (~is_b, is_b)))
    band, plain = alarms(found)
    assert band <= 0.05
    assert plain > (0.15 if persistence == 0.0 else 0.05)


def test_twenty_looks_at_clicks_per_impression_with_users_of_their_own_rate_and_a_covariate() -> None:
    random = np.random.default_rng(2)
    draws, users = 800, 200
    rate = random.beta(1.0, 4.0, size=(draws, 1, users))
    shown = random.poisson(3.0, size=(draws, LOOKS, users))
    clicks = random.binomial(shown, np.broadcast_to(rate, shown.shape))
    past = np.broadcast_to(random.binomial(20, rate).astype(float), shown.shape)
    is_b = np.broadcast_to(random.random((draws, 1, users)) < 0.5, shown.shape)
    n, d = clicks.cumsum(1).astype(float), shown.cumsum(1).astype(float)
    found = contrast(*(summed(n, d, past, arm) for arm in (~is_b, is_b)))
    assert float(found.reduction.mean()) > 0.3
    band, plain = alarms(found)
    assert band <= 0.05
    assert plain > 0.05


def test_twenty_looks_at_whether_users_ever_did_it() -> None:
    random = np.random.default_rng(3)
    draws, users = 1500, 300
    day = random.geometric(random.beta(1.0, 8.0, size=(draws, users)))[:, None, :]
    done = (day <= np.arange(1, LOOKS + 1)[None, :, None]).astype(float)
    is_b = np.broadcast_to(random.random((draws, 1, users)) < 0.5, done.shape)
    one, nothing = np.ones_like(done), np.zeros_like(done)
    band, _ = alarms(contrast(*(summed(done, one, nothing, arm) for arm in (~is_b, is_b))))
    assert band <= 0.05


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
            direct = of_users(until.filter(pl.col("variant") == variant))
            for name in Moments._fields:
                assert getattr(found[variant], name)[place] == pytest.approx(
                    float(getattr(direct, name)), rel=1e-12
                )


def test_looks_begin_when_there_are_users_enough_and_a_day_more_does_not_change_those_before() -> None:
    table = moves()
    found = looks(table, "A", "B", first_look_users=40)
    assert found["users_control"].min() >= 40
    assert found["day"][0] > FIRST
    before = looks(table.filter(pl.col("day") < FIRST + timedelta(days=5)), "A", "B", first_look_users=40)
    assert before.equals(found.head(-1))
    assert ((found["low"] < found["once_low"]) & (found["high"] > found["once_high"])).all()
    assert looks(table, "A", "B", first_look_users=10_000).is_empty()
