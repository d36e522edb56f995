"""An A/A check over one's own users: they are split at random again and again, and the analysis is asked each time.

Nothing differs between the parts of such a split, so a test at level alpha should call a share alpha of them different, and its
p-values should be uniform. Where they are not, the analysis is wrong for these data: too few users, a tail too heavy, or, the
usual case, rows taken as independent that hang together by user. That last one is told beside it: the same splits, with every row
a draw of its own.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from recsys_meta.ab.experiments.metrics import Metric
from recsys_meta.ab.experiments.moments import SUMS, Array, Moments, contrast, moments, terms
from recsys_meta.tables import USER_ID

_CELLS_AT_ONCE = 2**22  # of the matrix of splits by users: 32 MiB

BY_USER, BY_ROW = "by user", "by row"


class FalseAlarms(NamedTuple):
    """How often random splits looked different."""

    metric: str
    analysis: str  # BY_USER, or BY_ROW
    draws: int
    users: int
    false_positives: int
    rate: float
    rate_low: float  # exact binomial interval (Clopper-Pearson), 95 %
    rate_high: float
    uniform_p_value: float  # Kolmogorov-Smirnov: of the p-values being uniform


class Rows(NamedTuple):
    """What an analysis of rows would see of each user, [U] each."""

    rows: Array
    total: Array  # of the values
    squares: Array


def rows_of(users: pl.DataFrame, days: pl.DataFrame, metric: Metric, below: str) -> Rows:
    """Each user's rows of ``below`` (a metric of the rows: impressions, say), and of what happened on them.

    users: USER_ID, in the order wanted; days: ``Daily.rows``. Each row of the outcome is taken for what happened on one row of
    ``below``, and nothing for what happened on the others.
    """
    sums = days.group_by(USER_ID, "metric").agg(pl.col("total", "rows", "squares").sum())

    def column(name: str, of: str) -> Array:
        found = users.select(USER_ID).join(
            sums.filter(pl.col("metric") == of), on=USER_ID, how="left", maintain_order="left"
        )
        values: Array = found[name].fill_null(0.0).to_numpy()
        return values

    value = "total" if metric.aggregate == "sum" else "rows"
    square = "squares" if metric.aggregate == "sum" else "rows"
    return Rows(column("rows", below), column(value, metric.outcome), column(square, metric.outcome))


def false_alarms(
    users: pl.DataFrame,
    metric: Metric,
    *,
    rows: Rows | None = None,
    share: float = 0.5,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[FalseAlarms]:
    """Splits users into two at random, ``draws`` times, and counts the splits called different at ``level``.

    users: what ``measuring.totals`` gives, of a mean or a ratio; all variants are thrown together. rows: of the same users in the
    same order, for the analysis by row. share: of the users, in the second half.
    """
    if metric.kind == "quantile":
        raise ValueError(f"{metric.name}: expected a mean or a ratio; a quantile has no sums to split")
    n, d, x = (users[name].to_numpy() for name in ("numerator", "denominator", "covariate"))
    centre = moments(n, d, x).centre
    columns = [*terms(n, d, x, centre), *(() if rows is None else rows)]
    sums, total = split_sums(np.stack(columns, 1), share, draws, seed)
    width = len(SUMS)
    second = Moments.around(centre, sums[:, :width].T)
    first = Moments.around(centre, np.broadcast_to(total[:width, None], (width, draws))).minus(second)
    found = [_told(metric.name, BY_USER, contrast(first, second).p_values(), len(n), level)]
    if rows is not None:
        p = _p_by_row(total[width:, None] - sums[:, width:].T, sums[:, width:].T)
        found.append(_told(metric.name, BY_ROW, p, len(n), level))
    return found


def split_sums(columns: Array, share: float, draws: int, seed: int) -> tuple[Array, Array]:
    """The sums over the second part of every random split, [draws, C], and over all users, [C]. columns: [U, C]."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // max(1, len(columns)))
    parts = []
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        parts.append(
            (generator.random((some, len(columns)), np.float32) < share).astype(np.float64) @ columns
        )
    return np.concatenate(parts), columns.sum(0)


def _p_by_row(control: Array, treatment: Array) -> Array:
    """Welch's p-values of two means of rows. control, treatment: [3, draws], rows, total, squares."""
    with np.errstate(divide="ignore", invalid="ignore"):
        (mean_c, error_c), (mean_t, error_t) = (
            (total / rows, (squares - total**2 / rows) / (rows - 1.0) / rows)
            for rows, total, squares in (control, treatment)
        )
        p: Array = 2.0 * stats.norm.sf(np.abs(mean_t - mean_c) / np.sqrt(error_c + error_t))
    return p


def _told(metric: str, analysis: str, p: Array, users: int, level: float) -> FalseAlarms:
    p = p[np.isfinite(p)]
    alarms = int((p < 1.0 - level).sum())
    if not len(p):
        return FalseAlarms(metric, analysis, 0, users, 0, np.nan, np.nan, np.nan, np.nan)
    interval = stats.binomtest(alarms, len(p)).proportion_ci(0.95)
    return FalseAlarms(
        metric, analysis, len(p), users, alarms, alarms / len(p), float(interval.low), float(interval.high),
        float(stats.kstest(p, "uniform").pvalue),
    )  # fmt: skip
