"""The verdict on a treatment: what makes it, what refuses it, and what it says."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab.experiments.analysis import EFFECTS, EVERYBODY, Analysis, Rules, analyse
from recsys_meta.ab.experiments.metrics import Metric

HALF = {"A": 1.0, "B": 1.0}
FIRST = date(2026, 1, 1)
ONCE = Rules("once")


def moves(
    effect: float = 0.0,
    *,
    users: int = 600,
    days: int = 5,
    mean: float = 5.0,
    share_b: float = 0.5,
    seed: int = 0,
) -> pl.DataFrame:
    """What measuring.steps gives: users enter on one of the days, each with one number."""
    random = np.random.default_rng(seed)
    is_b = random.random(users) < share_b
    return pl.DataFrame(
        {
            "user_id": np.arange(users),
            "variant": np.where(is_b, "B", "A"),
            "day": [FIRST + timedelta(days=int(day)) for day in random.integers(0, days, users)],
            "entry": np.ones(users),
            "numerator": mean + random.normal(size=users) + np.where(is_b, effect, 0.0),
            "denominator": np.ones(users),
            "covariate": np.zeros(users),
        }
    )


def found(metrics: dict[Metric, pl.DataFrame], rules: Rules = ONCE, **more: object) -> Analysis:
    tables = {metric.name: table for metric, table in metrics.items()}
    return analyse(tables, list(metrics), "A", HALF, rules, **more)


def verdict(analysis: Analysis) -> tuple[str, str]:
    (row,) = analysis.verdicts.iter_rows(named=True)
    return row["verdict"], " ".join(row["reasons"])


M = Metric("plays", "play")
LESS = Metric("skips", "skip", lower_is_better=True)
GUARD = Metric("minutes", "minutes", margin=0.05)


@pytest.mark.parametrize("reading", ["once", "always"])
@pytest.mark.parametrize(
    ("metric", "effect", "said"),
    [(M, 0.6, "better"), (M, -0.6, "worse"), (LESS, 0.6, "worse"), (LESS, -0.6, "better"), (M, 0.0, "no difference shown")],
)  # fmt: skip
def test_the_verdict_follows_the_effect_and_which_way_is_better(reading, metric, effect, said) -> None:
    analysis = found({metric: moves(effect)}, Rules(reading))
    assert verdict(analysis)[0] == said
    assert analysis.effects["verdict"].to_list() == [said]
    assert analysis.effects.schema == pl.Schema(EFFECTS)


def test_where_nothing_is_shown_it_says_what_would_have_been_seen() -> None:
    analysis = found({M: moves()})
    row = analysis.effects.row(0, named=True)
    half = (row["high"] - row["low"]) / 2
    assert row["minimum_detectable"] == pytest.approx(half * (1.9639 + 0.8416) / 1.9639, rel=1e-3)
    assert "would have been seen with probability 80%" in verdict(analysis)[1]


def test_a_mismatch_of_the_sample_ratio_refuses_every_verdict() -> None:
    said, reasons = verdict(analysis := found({M: moves(0.6, share_b=0.38)}))
    assert said == "not to be trusted"
    assert "sample ratio mismatch" in reasons
    assert analysis.sample_ratios["passed"].to_list() == [False]
    assert analysis.effects["verdict"].to_list() == ["not to be trusted"]


def test_so_do_too_many_users_of_both_variants_too_few_users_and_no_outcomes() -> None:
    said, reasons = verdict(found({M: moves(0.6)}, crossed_share=0.03))
    assert said == "not to be trusted"
    assert "3.0% of the users were seen in more than one variant" in reasons
    said, reasons = verdict(found({M: moves(0.6, users=120)}))
    assert said == "not to be trusted"
    assert "at least 100 are asked for" in reasons
    said, reasons = verdict(found({M: moves().with_columns(numerator=pl.lit(0.0))}))
    assert said == "not to be trusted"
    assert "No user has any outcome" in reasons


@pytest.mark.parametrize("reading", ["once", "always"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("effect", "guarded", "whole"),
    [(0.2, "kept", "better"), (-1.5, "broken", "mixed"), (-0.25, "not shown", "better")],
)
def test_a_guardrail_is_kept_broken_or_not_shown(reading, sign, effect, guarded, whole) -> None:
    guard = GUARD._replace(lower_is_better=sign < 0)
    analysis = found({M: moves(0.6), guard: moves(sign * effect, seed=1)}, Rules(reading))
    rows = {row["metric"]: row for row in analysis.effects.iter_rows(named=True)}
    assert rows["minutes"]["verdict"] == guarded
    assert rows["minutes"]["p_adjusted"] is None
    assert verdict(analysis)[0] == whole


def constant(control: float, treatment: float) -> pl.DataFrame:
    """Every user of a variant has the same number."""
    return moves().with_columns(
        numerator=pl.when(pl.col("variant") == "A").then(control).otherwise(treatment)
    )


@pytest.mark.parametrize("reading", ["once", "always"])
@pytest.mark.parametrize("kind", ["mean", "ratio", "quantile"])
@pytest.mark.parametrize(
    ("lower", "control", "treatment", "guarded", "whole"),
    [
        (True, 0.0, 1.0, "broken", "mixed"),
        (True, 1.0, 0.0, "kept", "better"),
        (False, 1.0, 0.0, "broken", "mixed"),
        (False, 0.0, 1.0, "kept", "better"),
        (False, 1.0, 0.95, "kept", "better"),
        (False, 1.0, 0.94, "broken", "mixed"),
        (False, -1.0, -1.06, "broken", "mixed"),
        (True, 0.3, 0.1 + 0.2, "kept", "better"),
    ],
)
def test_a_guardrail_that_is_constant_in_each_variant_is_judged_by_the_difference(
    reading, kind, lower, control, treatment, guarded, whole
) -> None:
    guard = GUARD._replace(lower_is_better=lower, kind=kind)
    analysis = found({M: moves(0.6), guard: constant(control, treatment)}, Rules(reading))
    row = analysis.effects.row(1, named=True)
    assert (row["verdict"], row["low"], row["p_value"], row["p_adjusted"]) == (guarded, None, None, None)
    said, reasons = verdict(analysis)
    assert said == whole
    assert "constant in each arm: no interval" in reasons


def test_a_broken_constant_guardrail_beside_nothing_better_is_worse() -> None:
    guard = GUARD._replace(lower_is_better=True)
    assert verdict(found({M: moves(), guard: constant(0.0, 1.0)}))[0] == "worse"


@pytest.mark.parametrize("reading", ["once", "always"])
def test_a_constant_metric_is_told_and_never_called_better_or_worse(reading) -> None:
    for kind in ("mean", "ratio", "quantile"):
        alone = found({M._replace(kind=kind): constant(1.0, 2.0)}, Rules(reading))
        assert verdict(alone) == (
            "not to be trusted", "plays: +100.0% (+1), constant in each arm: no interval.",
        )  # fmt: skip
        assert alone.effects["verdict"].to_list() == ["constant"]
        assert alone.effects["p_adjusted"].to_list() == [None]
    other = found({M: moves(0.6), M._replace(name="other"): constant(1.0, 0.0)}, Rules(reading))
    assert verdict(other)[0] == "better"
    assert "other: -100.0% (-1), constant in each arm: no interval." in verdict(other)[1]


def test_a_guardrail_of_which_nothing_is_known_is_a_caveat() -> None:
    said, reasons = verdict(found({M: moves(0.6), GUARD: constant(0.0, 0.0)}))
    assert said == "better"
    assert (
        "Guardrail minutes: 0 for every user of both variants; whether it is kept cannot be said." in reasons
    )


def test_what_cannot_be_compared_is_told_as_it_is() -> None:
    ratio = M._replace(name="rate", kind="ratio")
    unseen = moves().with_columns(denominator=pl.lit(0.0))
    said, reasons = verdict(found({ratio: unseen}))
    assert said == "not to be trusted"
    assert reasons == "rate: what it is divided by adds up to 0 in a variant; nothing can be compared."
    both = verdict(found({ratio: unseen, M: constant(0.0, 0.0)}))[1]
    assert "No user has any outcome" not in both
    assert "plays: 0 for every user of both variants; nothing can be compared." in both
    guard = GUARD._replace(kind="ratio")
    said, reasons = verdict(found({M: moves(0.6), guard: unseen}))
    assert said == "better"
    assert "adds up to 0 in a variant; whether it is kept cannot be said." in reasons


def test_one_user_of_a_variant_is_too_few_whatever_is_asked_for() -> None:
    single = moves(users=2).with_columns(variant=pl.Series(["A", "B"]))
    said, reasons = verdict(found({M: single}, ONCE._replace(min_users=1)))
    assert said == "not to be trusted"
    assert "The smaller variant has 1 users; at least 2 are asked for." in reasons


def test_a_guardrail_asks_what_a_test_of_the_margin_asks() -> None:
    from scipy import stats

    kept = []
    for effect in np.linspace(-0.3, 0.1, 9):
        table = moves(float(effect), seed=4)
        a, b = (table.filter(pl.col("variant") == name)["numerator"].to_numpy() for name in "AB")
        p = stats.ttest_ind(b, 0.95 * a, equal_var=False, alternative="greater").pvalue
        rows = found({M: moves(), GUARD: table}).effects
        kept.append(rows["verdict"][1] == "kept")
        assert kept[-1] == (p < 0.025)
    assert set(kept) == {True, False}


def test_one_metric_better_and_one_worse_is_mixed() -> None:
    other = M._replace(name="other")
    assert verdict(found({M: moves(0.6), other: moves(-0.6)}))[0] == "mixed"


def test_a_quantile_waits_for_the_planned_end() -> None:
    quantile = Metric("p90", "play", "quantile", quantile=0.9)
    assert found({M: moves(), quantile: moves(1.5)}).effects["verdict"].to_list()[1] == "better"
    early = found({M: moves(), quantile: moves(1.5)}, Rules("always"))
    assert early.effects["verdict"].to_list()[1] == "wait for the end"


def test_segments_are_broken_down_corrected_together_and_never_make_the_verdict() -> None:
    table = moves()
    region = pl.DataFrame({"user_id": table["user_id"][:500], "region": ["east", "west"] * 250})
    lifted = table.join(region.filter(pl.col("region") == "east"), on="user_id", how="left").with_columns(
        numerator=pl.col("numerator")
        + pl.when((pl.col("region") == "east") & (pl.col("variant") == "B")).then(0.5).otherwise(0.0)
    )
    analysis = found({M: lifted.drop("region")}, segments=region)
    rows = {row["segment"]: row for row in analysis.effects.iter_rows(named=True)}
    assert list(rows) == [EVERYBODY, "region = east", "region = not known", "region = west"]
    assert rows["region = east"]["verdict"] == "better"
    assert rows["region = west"]["verdict"] == "no difference shown"
    assert rows["region = not known"]["verdict"] == "too few users"
    users = sum(row["users_control"] for name, row in rows.items() if name != EVERYBODY)
    assert users == rows[EVERYBODY]["users_control"]
    assert rows["region = east"]["p_adjusted"] == pytest.approx(2 * rows["region = east"]["p_value"])


def test_the_last_look_is_the_effect() -> None:
    analysis = found({M: moves(0.3)}, Rules("always"))
    last, row = analysis.looks.row(-1, named=True), analysis.effects.row(0, named=True)
    assert last["effect"] == pytest.approx(row["effect"], rel=1e-10)
    assert (last["low"], last["high"]) == (row["always_low"], row["always_high"])
    assert last["once_p_value"] == pytest.approx(row["p_value"], rel=1e-9)
