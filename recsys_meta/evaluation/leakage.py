"""Signs that a feature was made from what is to be predicted: it explains an entity's mean value, or its count, all but wholly.

A feature of an item (or user) says something about its mean rating or popularity; one that says all of it has as good as
certainly been computed from the ratings, those of the future included.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from recsys_meta.tables import VALUE, Feature

SUSPECT = 0.95  # share of the variance; features that describe an item explain some tens of per cent at most
_FEWEST = 30  # entities below which a share says nothing

FIGURES = {"mean_value": "the mean of its values", "log_count": "the number of its events"}


def giveaways(
    features: pl.DataFrame, id_name: str, declared: Sequence[Feature], interactions: pl.DataFrame
) -> pl.DataFrame:
    """One row per feature and figure: ``feature``, ``figure`` (of FIGURES), ``explained`` (share of its variance), ``entities``.

    features: one row per id. interactions: all of them. Figures that are the same for all entities are left out. Of numbers
    the better of the straight line and the monotonic one counts (Pearson, Spearman), of categories the analysis of variance,
    of vectors the linear regression, the latter two adjusted for the number of their parameters (Ezekiel 1930); lists of
    values are passed over.
    """
    figures = interactions.group_by(id_name).agg(
        mean_value=pl.col(VALUE).cast(pl.Float64).mean(), log_count=pl.len().cast(pl.Float64).log1p()
    )
    table = features.join(figures, on=id_name, how="inner")
    rows = []
    for feature in declared:
        for figure in FIGURES:
            known = table.select(x=feature.name, y=figure).drop_nulls()
            if known.height < _FEWEST or known["y"].n_unique() < 2 or feature.kind == "multi":
                continue
            rows.append((feature.name, figure, _explained(known, feature.kind), known.height))
    schema = {"feature": pl.String, "figure": pl.String, "explained": pl.Float64, "entities": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _explained(known: pl.DataFrame, kind: str) -> float:
    """The share of the variance of y that x explains; 0 where that cannot be said."""
    if kind == "number":
        found = known.with_columns(pl.col("x").cast(pl.Float64)).select(
            line=pl.corr("x", "y"), order=pl.corr("x", "y", method="spearman")
        )
        return max((r * r for r in found.row(0) if r is not None and r == r), default=0.0)
    y = known["y"].to_numpy()
    total = float(((y - y.mean()) ** 2).sum())
    if kind == "categorical":
        means = known.select(pl.col("y").mean().over("x"))["y"].to_numpy()
        parameters = known["x"].n_unique()
        left = float(((y - means) ** 2).sum())
    else:
        x = np.column_stack([np.ones(known.height), np.array(known["x"].to_list(), dtype=np.float64)])
        parameters = x.shape[1]
        left = float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())
    freedom = known.height - parameters
    return 1 - (left / freedom) / (total / (known.height - 1)) if freedom > 0 else 0.0
