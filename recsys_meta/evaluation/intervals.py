"""From judgements of single users to means with intervals, and to paired differences of two learners.

Users are the unit: a user's draws are averaged first, then users are resampled with replacement (bootstrap, percentile
interval). Of a single user there is no interval: every resample is that user again, and says nothing of any other. The judged
squared error (``mse``) is reported as ``rmse``, the root of its mean, in every resample as well.
"""

import polars as pl
import torch
from torch import Tensor

from recsys_meta.tables import USER_ID

ALL = "all"  # the shot that uses every support example
PRIOR = "its prior"  # what a learner is compared with to see what adaptation does
SUPPORT_LOSSES = ("support_loss_before", "support_loss_after")  # of adaptation, on what it adapts to
LOWER_IS_BETTER = frozenset({"mae", "mse", "rmse", *SUPPORT_LOSSES})

_CELL = ["learner", "metric", "shot"]
_WEIGHTS_AT_ONCE = 2**22  # 32 MiB of bootstrap weights, whatever the number of users


def shot_order(shot: str) -> float:
    """The place of a shot: 0, 1, 3, ..., all."""
    return float("inf") if shot == ALL else float(shot)


def summarize(
    judgements: pl.DataFrame, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """Means over users with bootstrap intervals.

    judgements: columns of ``tables.JUDGEMENTS``; NaN or null where a user had nothing relevant.
    draws: bootstrap resamples; level: of the percentile interval.
    Gives one row per learner, metric and shot (in the order of the judgements; shots rising):
    learner, shot, metric, mean, low, high (null of a single user), users (judged), users_without_relevant (left out of the
    mean, in no draw relevant).
    """
    per_user = _per_user(judgements)
    cells, (values,) = _matrices(per_user, ["value"])
    lower = _roots(cells)
    means = _mean(values, lower)
    low, high = _interval(_rooted(_resampled_means(values, draws, seed), lower), level, values)
    counts = per_user.group_by(_CELL).agg(
        users=pl.col("value").is_not_null().sum().cast(pl.Int64),
        users_without_relevant=pl.col("value").is_null().sum().cast(pl.Int64),
    )
    summary = cells.with_columns(_column("mean", means), _column("low", low), _column("high", high))
    summary = summary.join(counts, on=_CELL, how="left", maintain_order="left").with_columns(
        _reported_metric()
    )
    return summary.select(
        "learner", "shot", "metric", "mean", "low", "high", "users", "users_without_relevant"
    )


def paired_differences(
    judgements: pl.DataFrame,
    learner: str,
    against: str,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> pl.DataFrame:
    """How a learner differs from another on the users that both were judged on, at every shot and metric.

    Gives: learner, against, shot, metric, difference (learner minus against), low, high, users, better, worse (shares of
    users, judged by their own values) and verdict: "better" or "worse" where the interval excludes zero, else "undecided", as
    it is where a single user gives no interval (low and high are null).
    Raises KeyError if one of the two was not judged.
    """
    for name in (learner, against):
        if name not in judgements["learner"]:
            raise KeyError(
                f"no judgements of {name!r}; found {judgements['learner'].unique().sort().to_list()}"
            )
    both = judgements.filter(pl.col("learner").is_in([learner, against]))
    return differences_to(both, against, draws, seed, level)


def differences_to(
    judgements: pl.DataFrame, against: str, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """``paired_differences`` of everybody else to one learner."""
    per_user = _per_user(judgements)
    left = per_user.filter(pl.col("learner") != against)
    right = per_user.filter(pl.col("learner") == against).drop("learner")
    pairs = left.join(right, on=["metric", "shot", USER_ID], suffix="_against", maintain_order="left")
    return _differences(pairs.with_columns(against=pl.lit(against)), draws, seed, level)


def against_prior(
    judgements: pl.DataFrame, unadapted: pl.DataFrame, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """What adaptation does to users: learners at every shot but 0 against themselves, unadapted, in the same situation.

    unadapted: judgements of the same tasks with the prior in the place of the task state, so that the same items are left out
    of a ranking. Learners that are not in it are passed over.
    Columns of ``paired_differences``; against is "its prior", and ``worse`` is the share of users harmed by adaptation.
    """
    left = _per_user(judgements).filter(pl.col("shot") != "0")
    right = _per_user(unadapted)
    pairs = left.join(right, on=[*_CELL, USER_ID], suffix="_against", maintain_order="left")
    return _differences(pairs.with_columns(against=pl.lit(PRIOR)), draws, seed, level)


def _per_user(judgements: pl.DataFrame) -> pl.DataFrame:
    """The mean over the draws of each user; null where none could be judged. Cells keep their order, shots rise."""
    per_user = judgements.select(*_CELL, USER_ID, "draw", pl.col("value").fill_nan(None))
    if per_user["draw"].n_unique() > 1:
        per_user = per_user.group_by([*_CELL, USER_ID], maintain_order=True).agg(pl.col("value").mean())
    cell = torch.zeros(len(per_user), dtype=torch.int64)
    for name in _CELL:
        places = _places(per_user[name])
        cell = cell * len(places) + per_user[name].replace_strict(places).cast(pl.Int64).to_torch()
    return per_user.select(*_CELL, USER_ID, "value")[cell.argsort(stable=True).numpy()]


def _places(names: pl.Series) -> dict[str, int]:
    """Where each name goes: shots by size, everything else by first appearance."""
    unique: list[str] = names.unique(maintain_order=True).to_list()
    if names.name == "shot":
        unique.sort(key=shot_order)
    return {name: place for place, name in enumerate(unique)}


def _matrices(per_user: pl.DataFrame, columns: list[str]) -> tuple[pl.DataFrame, list[Tensor]]:
    """The cells, and for each column the values of all users (sorted by id) in each cell, [U, C] float64, NaN where none."""
    cells = per_user.select(_CELL).unique(maintain_order=True)
    users = per_user.select(USER_ID).unique().sort(USER_ID)
    placed = per_user.join(cells.with_row_index("cell"), on=_CELL).join(
        users.with_row_index("row"), on=USER_ID
    )
    row, cell = placed["row"].cast(pl.Int64).to_torch(), placed["cell"].cast(pl.Int64).to_torch()
    matrices = []
    for name in columns:
        matrix = torch.full((len(users), len(cells)), torch.nan, dtype=torch.float64)
        matrix[row, cell] = placed[name].cast(pl.Float64).fill_null(float("nan")).to_torch()
        matrices.append(matrix)
    return cells, matrices


def _resampled_means(values: Tensor, draws: int, seed: int) -> Tensor:
    """The mean of each cell over users drawn with replacement, [draws, C]. values: [U, C], NaN where a user has none."""
    users = len(values)
    if users == 0:
        return values.new_empty(draws, values.shape[1])
    sums_and_counts = torch.cat([values.nan_to_num(), (~values.isnan()).to(values)], dim=1)
    generator = torch.Generator().manual_seed(seed)
    totals = []
    for some in torch.split(torch.arange(draws), max(1, _WEIGHTS_AT_ONCE // users)):
        picks = torch.randint(users, (len(some), users), generator=generator)
        weights = values.new_zeros(len(some), users).scatter_add_(1, picks, values.new_ones(picks.shape))
        totals.append(weights @ sums_and_counts)
    sums, counts = torch.cat(totals).chunk(2, dim=1)
    return sums / counts


def _differences(pairs: pl.DataFrame, draws: int, seed: int, level: float) -> pl.DataFrame:
    """The rows of ``paired_differences``. pairs: cells, user, value, value_against, against."""
    pairs = pairs.drop_nulls(["value", "value_against"])
    cells, (left, right) = _matrices(pairs, ["value", "value_against"])
    roots = _roots(cells)
    difference = _mean(left, roots) - _mean(right, roots)
    # The same seed draws the same users for both sides: that is what makes the interval paired.
    resampled = _rooted(_resampled_means(left, draws, seed), roots) - _rooted(
        _resampled_means(right, draws, seed), roots
    )
    low, high = _interval(resampled, level, left)
    sign = pl.when(pl.col("metric").is_in(LOWER_IS_BETTER)).then(-1.0).otherwise(1.0)
    gain = sign * (pl.col("value") - pl.col("value_against"))
    shares = pairs.group_by(_CELL).agg(
        against=pl.col("against").first(),
        users=pl.len().cast(pl.Int64),
        better=(gain > 0).mean(),
        worse=(gain < 0).mean(),
    )
    signed_low, signed_high = sign * pl.col("low"), sign * pl.col("high")
    above = (signed_low > 0) & (signed_high > 0)
    below = (signed_low < 0) & (signed_high < 0)
    return (
        cells.with_columns(_column("difference", difference), _column("low", low), _column("high", high))
        .join(shares, on=_CELL, how="left", maintain_order="left")
        .with_columns(
            verdict=pl.when(above)
            .then(pl.lit("better"))
            .when(below)
            .then(pl.lit("worse"))
            .otherwise(pl.lit("undecided"))
        )
        .with_columns(_reported_metric())
        .select(
            "learner",
            "against",
            "shot",
            "metric",
            "difference",
            "low",
            "high",
            "users",
            "better",
            "worse",
            "verdict",
        )
    )


def _mean(values: Tensor, roots: Tensor) -> Tensor:
    """The mean of each cell over its users, [C]."""
    return _rooted(values.nanmean(0), roots)


def _interval(resampled: Tensor, level: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """The percentile interval of each column, two of [C]; NaN where fewer than two users have a value.

    resampled: [draws, C]. values: [U, C], NaN where a user has none.
    """
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=resampled.dtype)
    if resampled.numel() == 0:
        return resampled.new_zeros(resampled.shape[1]), resampled.new_zeros(resampled.shape[1])
    # A resample may hold none of the users of a small cell: such NaN are passed over.
    low, high = torch.nanquantile(resampled, edges, dim=0)
    alone = (~values.isnan()).sum(0) < 2
    return low.masked_fill(alone, torch.nan), high.masked_fill(alone, torch.nan)


def _roots(cells: pl.DataFrame) -> Tensor:
    """Which cells are squared errors, to be reported as their root, [C] bool."""
    return torch.tensor([metric == "mse" for metric in cells["metric"]], dtype=torch.bool)


def _rooted(means: Tensor, roots: Tensor) -> Tensor:
    """The means with the root taken where asked. means: [..., C]."""
    return torch.where(roots, means.abs().sqrt(), means)


def _reported_metric() -> pl.Expr:
    """The metric's name after the root."""
    return pl.col("metric").replace("mse", "rmse")


def _column(name: str, values: Tensor) -> pl.Series:
    """A column of figures; null where there is none."""
    return pl.Series(name, values.tolist(), dtype=pl.Float64).fill_nan(None)
