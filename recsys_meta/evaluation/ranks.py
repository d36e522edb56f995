"""Learners over several evaluations: their mean rank, and how near they come to the best baseline of each."""

from collections.abc import Sequence

import polars as pl

from recsys_meta.evaluation.intervals import LOWER_IS_BETTER

_CELL = ["evaluation", "shot"]


def mean_ranks(means: pl.DataFrame, baselines: Sequence[str]) -> pl.DataFrame:
    """One row per learner, the best mean rank first.

    means: evaluation, shot, metric (one per evaluation), learner, mean. A cell is one shot of one evaluation.
    Gives: learner, mean_rank (1 is the best; equals share the mean of their ranks), cells (how many it was judged in), best
    (in how many of them nobody was better), and ratio (geometric mean over the cells of its mean to that of the best
    baseline there, turned over where lower is better: above 1 is better than the ladder; null where there is none).
    """
    lower = pl.col("metric").is_in(LOWER_IS_BETTER)
    worth = pl.when(lower).then(-pl.col("mean")).otherwise(pl.col("mean"))
    ladder = pl.when(pl.col("learner").is_in(list(baselines))).then(pl.col("worth")).max().over(_CELL).abs()
    ratio = pl.when(lower).then(ladder / pl.col("mean")).otherwise(pl.col("mean") / ladder)
    cells = means.drop_nulls("mean").with_columns(worth=worth)
    ranked = cells.with_columns(
        rank=pl.col("worth").rank("average", descending=True).over(_CELL),
        first=pl.col("worth") == pl.col("worth").max().over(_CELL),
        ratio=pl.when(ladder > 0).then(ratio),
    )
    found = ranked.group_by("learner", maintain_order=True).agg(
        mean_rank=pl.col("rank").mean(),
        cells=pl.len().cast(pl.Int64),
        best=pl.col("first").sum().cast(pl.Int64),
        ratio=pl.col("ratio").log().mean().exp(),
    )
    return found.sort("mean_rank", maintain_order=True)


def rank_table(ranks: pl.DataFrame) -> str:
    """The ranks as Markdown."""
    lines = ["| | mean rank | best in | of cells | to the best baseline |", "| --- | --- | --- | --- | --- |"]
    for row in ranks.iter_rows(named=True):
        ratio = "" if row["ratio"] is None else f"{row['ratio'] - 1:+.1%}"
        lines.append(
            f"| {row['learner']} | {row['mean_rank']:.2f} | {row['best']} | {row['cells']} | {ratio} |"
        )
    return "\n".join(lines) + "\n"
