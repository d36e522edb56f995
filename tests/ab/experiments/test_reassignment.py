"""The A/A check: rows that hang together by user are found out, and users are not."""

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab.experiments.metrics import Metric
from recsys_meta.ab.experiments.moments import Centre, contrast, moments
from recsys_meta.ab.experiments.reassignment import Rows, false_alarms, rows_of, split_sums

RATE = Metric("rate", "click", "ratio")


def nested(users: int = 600, seed: int = 0) -> tuple[pl.DataFrame, Rows]:
    """Clicks of users who have a rate of their own and see any number of impressions."""
    random = np.random.default_rng(seed)
    shown = 1.0 + random.geometric(0.1, users)
    clicks = random.binomial(shown.astype(int), random.beta(0.8, 4.0, users)).astype(float)
    table = pl.DataFrame(
        {
            "user_id": np.arange(users),
            "variant": "A",
            "numerator": clicks,
            "denominator": shown,
            "covariate": np.zeros(users),
        }
    )
    return table, Rows(shown, clicks, clicks)


def test_users_are_called_different_one_time_in_twenty_and_their_impressions_far_more_often() -> None:
    users, rows = nested()
    by_user, by_row = false_alarms(users, RATE, rows=rows, seed=1)
    assert (by_user.draws, by_user.users) == (2000, 600)
    assert by_user.rate_low <= 0.05 <= by_user.rate_high
    assert 0.04 <= by_user.rate <= 0.06
    assert by_user.uniform_p_value > 0.01
    assert by_row.rate > 0.10
    assert by_row.uniform_p_value < 1e-6


def test_uneven_shares_and_a_covariate_make_no_false_alarms_either() -> None:
    users, _ = nested()
    random = np.random.default_rng(5)
    users = users.with_columns(covariate=pl.col("numerator") + pl.Series(random.normal(size=len(users))))
    (found,) = false_alarms(users, Metric("clicks", "click", covariate="outcome"), share=0.3, seed=2)
    assert 0.035 <= found.rate <= 0.065


def test_the_sums_of_a_split_are_those_of_its_users_and_a_seed_gives_the_same_splits() -> None:
    users, _ = nested(50)
    n, d, x = (users[name].to_numpy() for name in ("numerator", "denominator", "covariate"))
    columns = np.stack([np.ones(50), n, d], 1)
    sums, total = split_sums(columns, 0.5, 20, seed=3)
    again, _ = split_sums(columns, 0.5, 20, seed=3)
    assert np.array_equal(sums, again)
    mask = np.random.default_rng(3).random((20, 50), np.float32)[4] < 0.5
    assert sums[4] == pytest.approx(columns[mask].sum(0))
    assert total == pytest.approx(columns.sum(0))
    direct = contrast(*(moments(n[part], d[part], x[part], Centre()) for part in (~mask, mask)))
    assert np.isfinite(direct.effect)


def test_rows_are_added_up_by_user_in_the_order_asked_for() -> None:
    rows = [
        ("u", "exposures", 1.0, 3.0, 3.0),
        ("u", "click", 2.0, 2.0, 4.0),
        ("u", "click", 3.0, 1.0, 9.0),
        ("v", "exposures", 1.0, 4.0, 4.0),
    ]
    days = pl.DataFrame(rows, schema=["user_id", "metric", "total", "rows", "squares"], orient="row")
    users = pl.DataFrame({"user_id": ["v", "u"]})
    found = rows_of(users, days, RATE, "exposures")
    assert [list(part) for part in found] == [[4.0, 3.0], [0.0, 5.0], [0.0, 13.0]]
    counted = rows_of(users, days, RATE._replace(aggregate="any"), "exposures")
    assert [list(part) for part in counted] == [[4.0, 3.0], [0.0, 3.0], [0.0, 3.0]]


def test_a_quantile_is_no_sum() -> None:
    with pytest.raises(ValueError, match="expected a mean or a ratio"):
        false_alarms(nested()[0], Metric("p90", "click", "quantile"))
