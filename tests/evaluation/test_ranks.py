"""Ranks over several evaluations: means of ranks within each shot, whichever way the metric points."""

import polars as pl
import pytest

from recsys_meta.evaluation.ranks import mean_ranks, rank_table


def means(rows: list[tuple[str, str, str, str, float | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["evaluation", "shot", "metric", "learner", "mean"], orient="row")


TWO = means(
    [
        ("films", "1", "ndcg@10", "new", 0.4),
        ("films", "1", "ndcg@10", "old", 0.2),
        ("films", "1", "ndcg@10", "plain", 0.2),
        ("ratings", "1", "mae", "new", 0.8),
        ("ratings", "1", "mae", "old", 0.6),
        ("ratings", "1", "mae", "plain", None),
    ]
)


def test_a_rank_is_the_mean_over_the_cells_and_equals_share_theirs() -> None:
    ranks = {row["learner"]: row for row in mean_ranks(TWO, ["old", "plain"]).iter_rows(named=True)}
    assert {name: row["mean_rank"] for name, row in ranks.items()} == {
        "new": (1 + 2) / 2,
        "old": (2.5 + 1) / 2,
        "plain": 2.5,
    }
    assert {name: row["cells"] for name, row in ranks.items()} == {"new": 2, "old": 2, "plain": 1}
    assert {name: row["best"] for name, row in ranks.items()} == {"new": 1, "old": 1, "plain": 0}


def test_the_ratio_is_above_one_for_who_is_better_than_the_ladder() -> None:
    ranks = {row["learner"]: row for row in mean_ranks(TWO, ["old", "plain"]).iter_rows(named=True)}
    assert ranks["new"]["ratio"] == pytest.approx((0.4 / 0.2 * 0.6 / 0.8) ** 0.5)
    assert ranks["old"]["ratio"] == pytest.approx(1)


def test_without_a_ladder_there_is_no_ratio() -> None:
    ranks = mean_ranks(TWO, [])
    assert ranks["ratio"].null_count() == 3
    assert "| new | 1.50 | 1 | 2 |  |" in rank_table(ranks)
