"""What has to be seen beside an estimate before it is believed: overlap of the policies, and how much evidence there is.

effective sample size       (sum w)^2 / sum w^2                       Kish, "Survey Sampling", 1965
effective rewarded rows     (sum w r)^2 / sum (w r)^2, over r != 0    the same of what IPS adds up
mean weight                 1 where the propensities are right and every action of the target could be logged
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from recsys_meta.ab.estimators.sample import Contributions, Numbers, Sample, user_sums
from recsys_meta.ab.intervals import Kind, Resamples, interval
from recsys_meta.ab.logged_actions import Origin

_BINS = 30
_APART = 1.1  # weights within this factor of each other are alike


class Overlap(NamedTuple):
    """How far the logging policy did what the target would: what the weights say."""

    mean_weight: float
    mean_weight_low: float
    mean_weight_high: float
    effective_rows: float
    largest_weight: float
    largest_share: float  # of the sum of all weights, that the largest has
    effective_rewarded_rows: float


class Diagnostics(NamedTuple):
    """One policy over one set of logs."""

    rows: int
    users: int
    clustered: bool  # whether rows are known to belong to users; else each counts as a user of its own
    origin: Origin  # of the propensities
    rewarded_rows: int  # with a reward that is not 0: clicks
    rewarded_users: int
    logged_value: float  # what the logging policy itself earned per row
    support: (
        float | None
    )  # share of the target's probability on actions that occur in the logs; None: not known
    matches: float  # expected number of rows in which the target chooses the logged action
    overlap: Overlap | None = None  # None without propensities

    def row(self) -> dict[str, object]:
        """All figures by name, null where there is no overlap to speak of."""
        overlap = dict.fromkeys(Overlap._fields) if self.overlap is None else self.overlap._asdict()
        return {name: value for name, value in self._asdict().items() if name != "overlap"} | overlap


def diagnose(
    sample: Sample,
    clustered: bool,
    origin: Origin,
    support: float | None,
    *,
    kind: Kind,
    drawn: Resamples,
    level: float = 0.95,
) -> Diagnostics:
    """The figures, and the interval of the mean weight. support: as of ``policies.supported_share``."""
    n_users = int(sample.users.max()) + 1
    rewarded = sample.rewards != 0
    found = Diagnostics(
        rows=len(sample.rewards),
        users=n_users,
        clustered=clustered,
        origin=origin,
        rewarded_rows=int(rewarded.sum()),
        rewarded_users=int((np.bincount(sample.users, rewarded, n_users) > 0).sum()),
        logged_value=float(sample.rewards.mean()),
        support=support,
        matches=float(sample.target.sum()),
    )
    if sample.propensities is None:
        return found
    weights = sample.weights
    total = float(weights.sum())
    mean = user_sums(Contributions(weights), sample.users, n_users)
    low, high, _ = interval(mean, kind, drawn, level)
    overlap = Overlap(
        mean_weight=mean.value,
        mean_weight_low=low,
        mean_weight_high=high,
        effective_rows=effective_size(weights),
        largest_weight=float(weights.max()),
        largest_share=float(weights.max()) / total if total else 1.0,
        effective_rewarded_rows=effective_size((weights * sample.rewards)[rewarded]),
    )
    return found._replace(overlap=overlap)


def effective_size(weights: Numbers) -> float:
    """(sum w)^2 / sum w^2: as many rows of equal weight say as much; 0 where all weights are 0."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def weight_distribution(weights: Numbers) -> pl.DataFrame:
    """A histogram on a logarithmic scale: low, high, rows, share (of all weight). Weights of 0 have a bin of their own."""
    positive = weights[weights > 0]
    rows = [{"low": 0.0, "high": 0.0, "rows": int((weights == 0).sum()), "share": 0.0}]
    if len(positive):
        least, most = float(positive.min()), float(positive.max())
        if most / least < _APART:  # all alike: one bar in the middle of a picture
            least, most = least / _APART, most * _APART
        edges = np.geomspace(least, most, _BINS + 1)
        edges[0], edges[-1] = least, most  # which rounding may have moved
        counts, _ = np.histogram(positive, edges)
        mass, _ = np.histogram(positive, edges, weights=positive)
        rows += [
            {"low": low, "high": high, "rows": count, "share": share}
            for low, high, count, share in zip(
                edges[:-1].tolist(),
                edges[1:].tolist(),
                counts.tolist(),
                (mass / positive.sum()).tolist(),
                strict=True,
            )
        ]
    schema = {"low": pl.Float64, "high": pl.Float64, "rows": pl.Int64, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema)
