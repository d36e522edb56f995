"""Summaries and paired differences: what they average, and that their intervals cover."""

import math

import polars as pl
import pytest
import torch

from recsys_meta.evaluation.intervals import (
    against_prior,
    differences_to,
    paired_differences,
    summarize,
)
from recsys_meta.tables import USER_ID


def judgements(
    values: list[list[float]], learner: str = "a", shot: str = "1", metric: str = "mae", first_user: int = 0
) -> pl.DataFrame:
    """One learner, shot and metric. values: of each user, over draws."""
    rows = [
        (learner, first_user + user, draw, shot, metric, value)
        for user, draws in enumerate(values)
        for draw, value in enumerate(draws)
    ]
    return pl.DataFrame(
        rows, ["learner", USER_ID, "draw", "shot", "metric", "value"], orient="row"
    ).with_columns(pl.col("draw").cast(pl.Int32), pl.col("value").cast(pl.Float64))


def test_draws_are_averaged_before_users() -> None:
    summary = summarize(judgements([[1.0, 1.0, 1.0, 1.0], [3.0]]))
    assert summary["mean"].item() == 2.0
    assert summary.columns == [
        "learner",
        "shot",
        "metric",
        "mean",
        "low",
        "high",
        "users",
        "users_without_relevant",
    ]


def test_users_without_anything_relevant_are_counted_and_left_out() -> None:
    nan = float("nan")
    summary = summarize(judgements([[0.25, nan], [0.75, 0.75], [nan, nan]], metric="ndcg@10"))
    assert summary["mean"].item() == 0.5
    assert summary["users"].item() == 2
    assert summary["users_without_relevant"].item() == 1


def test_where_nobody_can_be_judged_there_is_no_figure() -> None:
    summary = summarize(judgements([[float("nan")]], metric="ndcg@10"))
    assert summary.row(0)[3:] == (None, None, None, 0, 1)


def test_of_a_single_user_there_is_a_figure_and_no_interval() -> None:
    row = summarize(judgements([[0.25, 0.75], [float("nan")] * 2], metric="ndcg@10")).row(0, named=True)
    assert (row["mean"], row["low"], row["high"], row["users"]) == (0.5, None, None, 1)


@pytest.mark.parametrize("metric", ["mse", "ndcg@10"])
def test_a_single_user_decides_nothing_and_two_who_agree_do(metric) -> None:
    for users, verdicts in ((1, {"undecided"}), (2, {"better", "worse"})):
        table = pl.concat(
            [
                judgements([[4.0]] * users, "a", metric=metric),
                judgements([[9.0]] * users, "b", metric=metric),
            ]
        )
        found = pl.concat([paired_differences(table, "a", "b"), differences_to(table, "a")])
        assert set(found["verdict"]) == verdicts
        assert found["low"].null_count() == found["high"].null_count() == (2 if users == 1 else 0)
        assert found["difference"].null_count() == 0


def test_a_user_alone_in_its_cell_has_no_interval_beside_cells_of_many() -> None:
    many = judgements([[0.1], [0.5], [0.9]], metric="ndcg@10")
    found = summarize(pl.concat([many, judgements([[0.7]], shot="3", metric="ndcg@10")]))
    assert found["low"].is_null().to_list() == [False, True]


def test_squared_errors_are_reported_as_the_root_of_their_mean() -> None:
    summary = summarize(judgements([[1.0], [7.0], [16.0]], metric="mse"))
    assert summary["metric"].item() == "rmse"
    assert summary["mean"].item() == pytest.approx(math.sqrt(8))
    assert 1 <= summary["low"].item() <= math.sqrt(8) <= summary["high"].item() <= 4


def test_shots_rise_and_learners_keep_their_order() -> None:
    table = pl.concat(
        judgements([[1.0]], learner=learner, shot=shot)
        for learner in ("z", "a")
        for shot in ("all", "10", "0", "3")
    )
    summary = summarize(table)
    assert summary["learner"].to_list() == ["z"] * 4 + ["a"] * 4
    assert summary["shot"].to_list() == ["0", "3", "10", "all"] * 2


def test_the_order_of_the_rows_does_not_matter() -> None:
    values = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).tolist()
    table = judgements(values)
    assert summarize(table.reverse(), seed=3).equals(summarize(table, seed=3))
    assert not summarize(table, seed=4).equals(summarize(table, seed=3))


def test_the_interval_is_that_of_a_mean() -> None:
    values = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row = summarize(judgements(values.tolist()), draws=4000).row(0, named=True)
    half = 1.96 * values.std().item() / 20
    assert row["mean"] - row["low"] == pytest.approx(half, rel=0.08)
    assert row["high"] - row["mean"] == pytest.approx(half, rel=0.08)


def test_about_95_of_100_intervals_cover_the_truth() -> None:
    draw = torch.Generator().manual_seed(1)
    covered = 0
    for world in range(100):
        values = torch.rand(60, 1, generator=draw, dtype=torch.float64)
        row = summarize(judgements(values.tolist()), draws=200, seed=world).row(0, named=True)
        covered += row["low"] <= 0.5 <= row["high"]
    assert 0.88 <= covered / 100 <= 1


def test_draws_of_the_same_user_do_not_narrow_the_interval() -> None:
    values = torch.rand(50, 1, generator=torch.Generator().manual_seed(2)).tolist()
    once = summarize(judgements(values)).select("low", "high")
    assert summarize(judgements([row * 20 for row in values])).select("low", "high").equals(once)


def test_many_users_are_resampled_in_portions() -> None:
    values = torch.rand(30_000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    row = summarize(judgements(values.tolist()), draws=150).row(0, named=True)
    assert row["low"] < row["mean"] < row["high"]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * values.std().item() / 30_000**0.5, rel=0.3)


def test_pairing_finds_a_small_difference_that_users_hide() -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.rand(100, 1, generator=draw) * 4
    better = base - 0.05 - 0.05 * torch.rand(100, 1, generator=draw)
    table = pl.concat([judgements(better.tolist(), "a"), judgements(base.tolist(), "b")])
    summary = summarize(table)
    assert summary["high"][0] > summary["low"][1]  # the two intervals overlap
    row = paired_differences(table, "a", "b").row(0, named=True)
    assert row["difference"] == pytest.approx((better - base).mean().item(), abs=1e-6)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert (row["better"], row["worse"], row["verdict"]) == (1.0, 0.0, "better")
    turned = paired_differences(table, "b", "a").row(0, named=True)
    assert (turned["better"], turned["worse"], turned["verdict"]) == (0.0, 1.0, "worse")


def test_higher_is_better_where_it_is() -> None:
    table = pl.concat(
        [judgements([[0.9]] * 9, "a", metric="ndcg@10"), judgements([[0.4]] * 9, "b", metric="ndcg@10")]
    )
    assert paired_differences(table, "a", "b")["verdict"].item() == "better"


def test_noise_is_undecided() -> None:
    noise = torch.rand(40, 1, generator=torch.Generator().manual_seed(5))
    values = torch.cat([noise, -noise])  # as much better for one half as worse for the other
    table = pl.concat([judgements((1 + values).tolist(), "a"), judgements([[1.0]] * 80, "b")])
    row = paired_differences(table, "a", "b").row(0, named=True)
    assert row["low"] < 0 < row["high"]
    assert row["verdict"] == "undecided"
    assert row["better"] == row["worse"] == 0.5


def test_only_users_judged_on_both_sides_are_paired() -> None:
    nan = float("nan")
    left = judgements([[1.0], [nan], [3.0]], "a", metric="ndcg@10")
    right = judgements([[1.0], [1.0], [1.0]], "b", metric="ndcg@10", first_user=1)
    row = paired_differences(pl.concat([left, right]), "a", "b").row(0, named=True)
    assert row["users"] == 1
    assert row["difference"] == 2.0


def test_the_difference_of_squared_errors_is_that_of_their_roots() -> None:
    table = pl.concat(
        [judgements([[9.0], [9.0]], "a", metric="mse"), judgements([[4.0], [4.0]], "b", metric="mse")]
    )
    row = paired_differences(table, "a", "b").row(0, named=True)
    assert (row["metric"], row["difference"], row["verdict"]) == ("rmse", 1.0, "worse")


def test_differences_of_all_to_one_are_those_of_each_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 40, 1, generator=generator).tolist()
    table = pl.concat(
        judgements(some, learner=name, metric="ndcg@10") for name, some in zip("abc", values, strict=True)
    )
    pairs = [paired_differences(table, name, "b", draws=200) for name in "ac"]
    assert differences_to(table, "b", draws=200).equals(pl.concat(pairs))


def test_a_learner_that_was_not_judged_is_named() -> None:
    with pytest.raises(KeyError, match="nobody"):
        paired_differences(judgements([[1.0]]), "a", "nobody")


def test_users_harmed_by_adaptation_are_those_worse_than_with_the_prior() -> None:
    table = pl.concat(
        [
            judgements([[1.0], [1.0], [1.0], [1.0]], shot="0"),
            judgements([[0.5], [0.5], [2.0], [1.0]], shot="3"),
            judgements([[0.5], [0.5], [0.5], [0.5]], shot="all"),
            judgements([[9.0], [9.0], [9.0], [9.0]], "passed over", shot="3"),
        ]
    )
    unadapted = pl.concat(
        [judgements([[1.0], [1.0], [1.0], [1.0]], shot=shot) for shot in ("0", "3")]
        + [judgements([[0.6], [0.6], [0.6], [0.6]], shot="all")]
    )
    harmed = against_prior(table, unadapted)
    assert harmed["shot"].to_list() == ["3", "all"]
    assert harmed["against"].to_list() == ["its prior", "its prior"]
    assert harmed["worse"].to_list() == [0.25, 0.0]
    assert harmed["better"].to_list() == [0.5, 1.0]
    assert harmed["verdict"].to_list() == ["undecided", "better"]


def test_no_judgements_give_an_empty_summary() -> None:
    assert len(summarize(judgements([[1.0]]).clear())) == 0


def test_ids_of_any_type_are_users() -> None:
    table = judgements([[1.0], [3.0]]).with_columns(pl.col(USER_ID).cast(pl.String))
    assert summarize(table)["mean"].item() == 2.0
