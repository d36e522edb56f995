"""The difference of two quantiles, with the bootstrap's interval but without its resamples.

A resample of n values sorted as x_1 <= ... <= x_n has as its q-quantile the order statistic x_K, with K nearly
Binomial(n + 1, q), whatever the values are. Schultzberg and Ankargren (2022), Resampling-free bootstrap inference for quantiles.
They draw K; here nothing is drawn, for with y_L of treatment and x_K of control the distribution that many draws would tend to is

    P(y_L - x_K <= t) = sum_k P(K = k) P(L <= number of y at most x_k + t)

so that quantiles of the difference are found by halving, and one analysis gives one answer.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from recsys_meta.ab.experiments.moments import Array

_NEGLIGIBLE = (
    1e-18  # probability of the order statistics on either side that are taken for the outermost one looked at
)
_HALVINGS = 64  # brings what lies between two values to less than their last digit
_MAY_FAIL = 1e-4  # probability of a control not above 0 up to which there is an interval of the ratio


class QuantileDifference(NamedTuple):
    """The quantiles and what lies between them."""

    control: float
    treatment: float
    low: float  # of treatment - control, percentile interval
    high: float
    relative_low: float  # of treatment / control - 1; NaN where a resampled control is not safely above 0
    relative_high: float
    error: float  # standard deviation of the resampled difference
    p_value: float  # two-sided: twice the probability of a resample on the other side of no difference


class OrderStatistics(NamedTuple):
    """The q-quantile of a resample: a value out of the sorted ones, and how probable each is."""

    values: Array  # [V], ascending
    masses: Array  # [V], add up to 1

    @property
    def variance(self) -> float:
        """Of the value."""
        mean = float(self.masses @ self.values)
        return float(self.masses @ np.square(self.values - mean))

    def up_to(self, bounds: Array, *, strictly: bool = False) -> Array:
        """The probability of a value of at most (or below) each bound."""
        below = np.searchsorted(self.values, bounds, "left" if strictly else "right")
        share: Array = np.concatenate([[0.0], self.masses.cumsum()])[below]
        return share


def quantile_difference(
    control: Array, treatment: Array, q: float, *, level: float = 0.95
) -> QuantileDifference:
    """Compares the q-quantiles of two groups of users. control, treatment: [U], in any order, at least one user each."""
    a, b = (order_statistics(values, q) for values in (control, treatment))
    tails = ((1.0 - level) / 2.0, (1.0 + level) / 2.0)
    low, high = (_reached(tail, a, b, np.add, np.subtract) for tail in tails)
    positive = a.values > 0.0
    above = OrderStatistics(a.values[positive], a.masses[positive])
    relative_low = relative_high = np.nan
    if above.masses.sum() > 1.0 - _MAY_FAIL:  # what is left out counts as infinite
        relative_low, relative_high = (
            _reached(tail, above, b, np.multiply, np.divide) - 1.0 for tail in tails
        )
    not_above = float(a.masses @ b.up_to(a.values))
    not_below = 1.0 - float(a.masses @ b.up_to(a.values, strictly=True))
    return QuantileDifference(
        float(np.quantile(control, q)),
        float(np.quantile(treatment, q)),
        low,
        high,
        relative_low,
        relative_high,
        float(np.sqrt(a.variance + b.variance)),
        min(1.0, 2.0 * min(not_above, not_below)),
    )


def order_statistics(values: Array, q: float) -> OrderStatistics:
    """Of the q-quantile of resamples of these values, [U]."""
    ordered, size = np.sort(values), len(values)
    drawn = stats.binom(size + 1, q)
    # From both ends: isf knows no such small shares.
    beyond = stats.binom(size + 1, 1.0 - q).ppf(_NEGLIGIBLE)
    first, last = (int(np.clip(end, 1, size)) for end in (drawn.ppf(_NEGLIGIBLE), size + 1 - beyond))
    masses = drawn.pmf(np.arange(first, last + 1))
    masses[0], masses[-1] = drawn.cdf(first), drawn.sf(last - 1)
    if first == last:
        masses[0] = 1.0
    kept, places = np.unique(ordered[first - 1 : last], return_inverse=True)
    return OrderStatistics(kept, np.bincount(places, masses).astype(np.float64, copy=False))


def _reached(share: float, a: OrderStatistics, b: OrderStatistics, moved: np.ufunc, apart: np.ufunc) -> float:
    """The least of what lies apart between b and a up to which there is at least ``share`` of the probability.

    apart: subtract or divide; moved: what takes a to b again, add or multiply.
    """
    ends = apart(b.values[[0, 0, -1, -1]], a.values[[0, -1, 0, -1]])
    low, high = float(ends.min()), float(ends.max())
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2.0
        reached = float(a.masses @ b.up_to(moved(a.values, middle))) >= share
        low, high = (low, middle) if reached else (middle, high)
    # No pair lies between but the one looked for: what halving leaves of rounding goes.
    pairs = np.searchsorted(b.values, moved(a.values, high), "right") - 1
    some = pairs >= 0
    return float(apart(b.values[pairs[some]], a.values[some]).max())
