"""The checks that run with every evaluation; each raises SanityError with the figures that speak against the result.

Shuffled labels fall to the prior, an oracle scores 1, support and query never overlap, results do not depend on the batch size.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import polars as pl
import torch
from torch import Tensor

from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, paired_differences, summarize
from recsys_meta.tables import USER_ID
from recsys_meta.tensors import Histories

# What an oracle reaches. Recall is left out: with more than k relevant items even an oracle cannot reach 1.
_PERFECT = {"mae": 0.0, "rmse": 0.0, "ndcg": 1.0, "hit_rate": 1.0, "mrr": 1.0}

_PRIOR = "the prior"
_SURE = 0.99  # of the intervals that speak against a learner, of all shots and learners together


class SanityError(AssertionError):
    """An evaluation contradicts itself: its figures must not be believed."""

    exit_code: ClassVar[int] = 4


def in_same_task(some: Histories, others: Histories) -> Tensor:
    """Which of ``some`` are of an item that ``others`` hold for the same task, [M] bool. Both have the same T tasks."""
    width = 1 + int(torch.cat([some.items, others.items, torch.zeros(1, dtype=torch.int64)]).max())
    return torch.isin(some.owners() * width + some.items, others.owners() * width + others.items)


def check_disjoint(support: Histories, query: Histories) -> None:
    """Support and query of a task share no item. Both have the same T tasks."""
    if len(support.offsets) != len(query.offsets):
        raise SanityError(
            f"{len(support.offsets) - 1} support sets stand against {len(query.offsets) - 1} query sets"
        )
    both = in_same_task(support, query)
    if both.any():
        tasks = torch.unique(support.owners()[both])
        raise SanityError(
            f"{int(both.sum())} support examples stand in the query of their own task too, in {len(tasks)} tasks "
            f"(first: row {int(tasks[0])}); expected none"
        )


def check_later(support: Histories, query: Histories) -> None:
    """No query event of a task lies before a support event of the same task. Both have times, and the same T tasks."""
    latest = _last_times(support)
    owners = query.owners()
    early = query.times < latest[owners]
    if early.any():
        tasks = torch.unique(owners[early])
        raise SanityError(
            f"{int(early.sum())} of {len(owners)} query events lie before a support event of their own task, in {len(tasks)} of"
            f" {len(support.offsets) - 1} tasks (first: row {int(tasks[0])}); expected none"
        )


def _last_times(histories: Histories) -> Tensor:
    """The time of the latest event of each task, [T]; the beginning of time where it has none."""
    latest = torch.full((len(histories.offsets) - 1,), torch.iinfo(torch.int64).min)
    return latest.scatter_reduce(0, histories.owners(), histories.times, "amax")


def check_adapts(adapted: Tensor, priors: Tensor) -> None:
    """Scores are finite, follow from the support set, and are not the same for everybody.

    adapted, priors: [T, N] scores of the same users and items, with their support sets and without any.
    """
    if not bool(adapted.isfinite().all()):
        wrong = int((~adapted.isfinite()).any(1).sum())
        raise SanityError(f"scores of {wrong} of {len(adapted)} users are not finite; expected all to be")
    if len(adapted) > 1 and bool((adapted == adapted[0]).all()):
        raise SanityError(
            f"all {len(adapted)} users get the same score for each of {adapted.shape[1]} items; expected their own"
        )
    unmoved = (adapted == priors).all(1)
    if bool(unmoved.all()):
        raise SanityError(
            f"the scores of all {len(adapted)} users are those of the prior: the support set changes nothing; expected it to"
        )


def check_oracle(judgements: pl.DataFrame, tolerance: float = 1e-6) -> None:
    """An oracle that scores by the query itself is perfect by every metric. judgements: those of the oracle."""
    summary = summarize(judgements, draws=1)
    for row in summary.drop_nulls("mean").iter_rows(named=True):
        expected = next((best for name, best in _PERFECT.items() if row["metric"].startswith(name)), None)
        if expected is not None and abs(row["mean"] - expected) > tolerance:
            raise SanityError(
                f"an oracle has {row['metric']} {row['mean']:.6f} at shot {row['shot']}; expected {expected}"
            )


def shuffled_labels(support: Histories, seed: int, *, ranked: bool = False) -> Histories:
    """The same tasks with what they observed dealt out anew among all tasks.

    Ratings are shuffled over the rows. Where rankings are judged (``ranked``), or all values agree, the label is the item:
    items are shuffled, each with its value, since even of a sampled negative the item would tell whose it was.
    """
    order = torch.randperm(len(support.items), generator=torch.Generator().manual_seed(seed))
    if ranked or (len(order) and bool((support.values == support.values[0]).all())):
        return support._replace(items=support.items[order], values=support.values[order])
    return support._replace(values=support.values[order])


def check_shuffled_labels(
    shuffled: pl.DataFrame,
    priors: pl.DataFrame,
    tolerance: float = 0.02,
    draws: int = 4000,
    seed: int = 0,
    among: int = 1,
) -> None:
    """Adapted on shuffled labels a learner does no better than unadapted: otherwise it knows the query from elsewhere.

    shuffled: judgements of a run on ``shuffled_labels``. priors: of the same run without adaptation, in which the same items
    are left out of every ranking; of several learners, the best at each metric and shot stands for what is known beforehand.
    tolerance: gain over the prior, relative to it, that is let pass: even shuffled labels tell how the judged users
    differ on average from those trained on (about 1 % of the error on MovieLens-1M).
    among: how many learners the evaluation checks: of many, one gains by chance more often than of one.
    """
    best = _best(priors).with_columns(pl.lit(_PRIOR).alias("learner"))
    means = summarize(best, draws=1).select("metric", "shot", prior="mean")
    level = 1 - (1 - _SURE) / (among * shuffled["shot"].n_unique())
    for learner in shuffled["learner"].unique(maintain_order=True).to_list():
        both = pl.concat([shuffled.filter(pl.col("learner") == learner), best])
        found = paired_differences(both, learner, _PRIOR, draws, seed, level=level).join(
            means, on=["metric", "shot"]
        )
        gained = found.filter(
            (pl.col("verdict") == "better") & (pl.col("difference").abs() > tolerance * pl.col("prior").abs())
        )
        for row in gained.iter_rows(named=True):
            raise SanityError(
                f"{learner} gains from shuffled labels: {row['metric']} at shot {row['shot']} differs by "
                f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] from {row['prior']:.4f} without adaptation"
            )


def beyond_strangers(
    own: pl.DataFrame, strangers: pl.DataFrame, prior_strangers: pl.DataFrame
) -> pl.DataFrame:
    """``own``, less what these answers gain over the prior on the queries of other tasks: that much is no knowledge of the user.

    A number of shots alone tells something, since who has done much is asked for other things than who has done little; and
    labels of others tell what everybody likes by now. Both serve a stranger as well, a leak does not.
    own, strangers: judgements on the own query and on that of another task; prior_strangers: on the latter, unadapted.
    """
    key = ["learner", "metric", "shot", USER_ID, "draw"]
    return (
        own.join(strangers, on=key, suffix="_stranger", maintain_order="left")
        .join(prior_strangers, on=key, suffix="_prior", maintain_order="left")
        .with_columns(value=pl.col("value") - pl.col("value_stranger") + pl.col("value_prior"))
        .select(own.columns)
    )


def mean_of_shuffles(pages: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Judgements of the same tasks under several shuffles, averaged: what one of them gives a few users is mostly chance."""
    key = ["learner", "metric", "shot", USER_ID, "draw"]
    mean = pl.col("value").fill_nan(None).mean().fill_null(float("nan"))
    return pl.concat(pages).group_by(key, maintain_order=True).agg(mean).select(pages[0].columns)


def _best(priors: pl.DataFrame) -> pl.DataFrame:
    """The judgements of the learner that is best, for each metric and shot."""
    better = pl.when(pl.col("metric").is_in(LOWER_IS_BETTER)).then(-pl.col("mean")).otherwise(pl.col("mean"))
    means = summarize(priors, draws=1).with_columns(pl.col("metric").replace("rmse", "mse"), worth=better)
    best = means.sort("worth", descending=True, nulls_last=True, maintain_order=True).unique(
        ["metric", "shot"], keep="first"
    )
    key = ["learner", "metric", "shot"]
    return priors.join(best.select(key), on=key, how="semi", maintain_order="left")


def check_batch_size(
    judge: Callable[[int], pl.DataFrame], sizes: Sequence[int], tolerance: float = 1e-4, share: float = 0.001
) -> None:
    """Judging in batches of different sizes gives the same judgements.

    judge: batch size -> judgements, in which user and draw name a task; sizes: at least two.
    share: of the judgements that may differ by more than ``tolerance``,
    since the last bit of two nearly equal scores may decide a rank.
    """
    if len(sizes) < 2:
        raise ValueError(f"found the batch sizes {list(sizes)}; expected two or more")
    key = ["learner", "metric", "shot", USER_ID, "draw"]
    reference = judge(sizes[0]).with_columns(pl.col("value").fill_nan(None))
    for size in sizes[1:]:
        other = judge(size).with_columns(pl.col("value").fill_nan(None))
        pairs = reference.join(other, on=key, how="full", suffix="_other", coalesce=True)
        far = (pl.col("value") - pl.col("value_other")).abs() > tolerance
        lost = pl.col("value").is_null() != pl.col("value_other").is_null()
        differing = pairs.filter(far.fill_null(False) | lost)
        if len(differing) > share * len(pairs):
            raise SanityError(
                f"{len(differing)} of {len(pairs)} judgements change between batches of {sizes[0]} and of {size}, "
                f"first {differing.row(0, named=True)}"
            )
