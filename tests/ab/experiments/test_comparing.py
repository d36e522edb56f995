"""Means, ratios, sample ratios and corrections: the same as tea-tasting, scipy and statsmodels say."""

import numpy as np
import polars as pl
import pytest
import tea_tasting as tt
from made_experiment import made_users
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from recsys_meta.ab.experiments.comparing import compare, corrected, sample_ratio
from recsys_meta.ab.experiments.metrics import Metric

DIGITS = 1e-10


def arms(users: pl.DataFrame) -> list[np.ndarray]:
    return [users.filter(pl.col("variant") == name)["numerator"].to_numpy() for name in ("A", "B")]


def test_a_mean_is_what_scipy_and_statsmodels_say_to_ten_digits() -> None:
    users = made_users(150, effect=0.3)
    found = compare(users, Metric("m", "m"), "A", "B")
    a, b = arms(users)
    welch = stats.ttest_ind(b, a, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert found.p_value == pytest.approx(welch.pvalue, rel=DIGITS)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=DIGITS)
    other = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    assert found.p_value == pytest.approx(other.ttest_ind(usevar="unequal")[1], rel=DIGITS)
    assert (found.low, found.high) == pytest.approx(other.tconfint_diff(usevar="unequal"), rel=DIGITS)
    assert (found.users_control, found.users_treatment) == (len(a), len(b))
    assert found.effect == pytest.approx(b.mean() - a.mean(), rel=DIGITS)
    assert found.relative == pytest.approx(b.mean() / a.mean() - 1, rel=DIGITS)


@pytest.mark.parametrize(
    ("metric", "direct"),
    [
        (Metric("m", "m"), tt.Mean("numerator")),
        (Metric("m", "m", covariate="interactions"), tt.Mean("numerator", "covariate")),
        (Metric("m", "m", "ratio"), tt.RatioOfMeans("numerator", "denominator")),
        (
            Metric("m", "m", "ratio", covariate="outcome"),
            tt.RatioOfMeans("numerator", "denominator", "covariate"),
        ),
    ],
)
def test_every_kind_is_what_tea_tasting_says_of_the_table_of_users(metric: Metric, direct: tt.Mean) -> None:
    users = made_users(150, effect=0.3, correlation=0.6)
    found = compare(users, metric, "A", "B")
    said = tt.Experiment({"m": direct}).analyze(users, "A")["m"]
    assert found.effect == pytest.approx(said.effect_size, rel=DIGITS)
    assert found.low == pytest.approx(said.effect_size_ci_lower, rel=DIGITS)
    assert found.relative_high == pytest.approx(said.rel_effect_size_ci_upper, rel=DIGITS)
    assert found.p_value == pytest.approx(said.pvalue, rel=DIGITS)


def test_swapping_the_variants_turns_the_effect_around() -> None:
    users = made_users(100, effect=0.2)
    one, other = (compare(users, Metric("m", "m"), *names) for names in (("A", "B"), ("B", "A")))
    assert one.p_value == pytest.approx(other.p_value, rel=DIGITS)
    assert (one.effect, one.low, one.high) == pytest.approx(
        (-other.effect, -other.high, -other.low), rel=DIGITS
    )


def test_what_cannot_be_compared_has_no_figures() -> None:
    users = made_users(50)
    alone = compare(users.filter(pl.col("variant") == "A"), Metric("m", "m"), "A", "B")
    assert alone.p_value is None
    assert alone.users_treatment == 0
    nothing = compare(users.with_columns(numerator=pl.lit(0.0)), Metric("m", "m"), "A", "B")
    assert (nothing.effect, nothing.p_value) == (0.0, None)
    alike = compare(users.with_columns(numerator=pl.lit(2.0)), Metric("m", "m"), "A", "B")
    assert (alike.effect, alike.low, alike.p_value) == (0.0, None, None)
    apart = users.with_columns(numerator=pl.when(pl.col("variant") == "A").then(0.0).otherwise(1.0))
    assert compare(apart, Metric("m", "m"), "A", "B").p_value is None
    assert (nothing.constant, alike.constant) == (False, True)
    only_b = users.with_columns(
        numerator=pl.when(pl.col("variant") == "A").then(0.0).otherwise(pl.col("numerator"))
    )
    found = compare(only_b, Metric("m", "m"), "A", "B")
    assert found.p_value < 0.001
    assert found.relative is None
    unseen = compare(users.with_columns(denominator=pl.lit(0.0)), Metric("m", "m", "ratio"), "A", "B")
    assert (unseen.effect, unseen.p_value) == (None, None)


@pytest.mark.parametrize("kind", ["mean", "ratio", "quantile"])
def test_a_metric_that_is_constant_in_each_variant_has_an_effect_and_no_interval(kind) -> None:
    is_a, below = pl.col("variant") == "A", pl.col("denominator") if kind == "ratio" else pl.lit(1.0)
    users = made_users(200).with_columns(numerator=pl.when(is_a).then(0.3).otherwise(0.1 + 0.5) * below)
    found = compare(users, Metric("m", "m", kind, covariate="interactions"), "A", "B")
    assert found.constant
    assert (found.effect, found.relative) == pytest.approx((0.3, 1.0))
    assert (found.low, found.high, found.relative_low, found.p_value) == (None, None, None, None)
    one = users.with_columns(numerator=pl.col("numerator") + (pl.col("user_id") == 0))
    assert not compare(one, Metric("m", "m", kind), "A", "B").constant


def test_the_sample_ratio_is_an_exact_binomial_test_of_few_users_and_its_normal_form_of_many() -> None:
    few = sample_ratio({"A": 120, "B": 80}, "A", "B", {"A": 1, "B": 1})
    assert few.p_value == pytest.approx(stats.binomtest(80, 200, 0.5).pvalue, rel=DIGITS)
    assert few.expected_share == 0.5
    many = sample_ratio({"A": 5200, "B": 4800}, "A", "B", {"A": 0.5, "B": 0.5})
    assert many.p_value == pytest.approx(2 * stats.norm.sf((200 - 0.5) / 50), rel=DIGITS)
    uneven = sample_ratio({"A": 9000, "B": 1000}, "A", "B", {"A": 0.9, "B": 0.1})
    assert uneven.p_value == 1.0


@pytest.mark.parametrize(("ours", "theirs"), [("holm", "holm"), ("benjamini-hochberg", "fdr_bh")])
def test_corrections_are_those_of_statsmodels(ours: str, theirs: str) -> None:
    p = [0.04, 0.001, 0.9, 0.02, 0.02]
    adjusted = corrected([*p[:2], None, *p[2:]], ours, 0.05)
    assert adjusted[2] is None
    assert [x for x in adjusted if x is not None] == pytest.approx(
        multipletests(p, method=theirs)[1], rel=DIGITS
    )
    assert corrected([None, 0.5], "none", 0.05) == [None, 0.5]


def test_of_twenty_null_metrics_one_wins_two_times_in_three_and_under_holm_one_time_in_twenty() -> None:
    random = np.random.default_rng(5)
    p = random.random((2000, 20))
    assert (p.min(1) < 0.05).mean() == pytest.approx(1 - 0.95**20, abs=0.03)  # 64 %
    under_holm = np.mean([min(corrected(list(row), "holm", 0.05)) < 0.05 for row in p[:1000]])
    assert under_holm == pytest.approx(0.05, abs=0.02)
