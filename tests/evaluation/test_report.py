"""The Markdown table: learners by shots, best in bold."""

import polars as pl
import pytest

from recsys_meta.evaluation.report import markdown


def summary(metric: str = "mae") -> pl.DataFrame:
    rows = [
        ("b|d", "0", metric, 0.70004, 0.6, 0.8, 1200, 3),
        ("b|d", "all", metric, 0.6, 0.5, 0.7, 1200, 3),
        ("a", "all", metric, 0.5, 0.4, 0.6, 1100, 3),
        ("a", "0", metric, 0.70001, 0.6, 0.8, 1200, 3),
        ("a", "10", metric, None, None, None, 0, 3),
    ]
    names = ["learner", "shot", "metric", "mean", "low", "high", "users", "users_without_relevant"]
    return pl.DataFrame(rows, names, orient="row")


def test_learners_by_shots_with_intervals() -> None:
    assert markdown(summary(), "mae", digits=2).splitlines() == [
        "| mae at shot | 0 | 10 | all |",
        "| --- | --- | --- | --- |",
        "| b\\|d | **0.70** [0.60, 0.80] |  | 0.60 [0.50, 0.70] |",
        "| a | **0.70** [0.60, 0.80] | - | **0.50** [0.40, 0.60] |",
        "",
        "0 to 1,200 users judged; 3 without a relevant item",
    ]


def test_a_mean_of_a_single_user_is_told_without_an_interval() -> None:
    alone = summary().with_columns(low=None, high=None)
    assert "| 0.60 [no interval] |" in markdown(alone, "mae", digits=2)


def test_the_best_is_the_highest_where_higher_is_better() -> None:
    lines = markdown(summary("ndcg@10"), "ndcg@10", intervals=False, digits=1).splitlines()
    assert lines[2] == "| b\\|d | **0.7** |  | **0.6** |"
    assert lines[3] == "| a | **0.7** | - | 0.5 |"


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match="mae"):
        markdown(summary("ndcg@10"), "mae")
