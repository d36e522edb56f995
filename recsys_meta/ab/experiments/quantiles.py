"""The difference of two quantiles, with the bootstrap's interval but without its resamples.

A resample of n values sorted as x_1 <= ... <= x_n has as its q-quantile the order statistic x_K, with K nearly
Binomial(n + 1, q), whatever the values are: so K is drawn, and not the resample. Schultzberg and Ankargren (2022),
Resampling-free bootstrap inference for quantiles. The users are sorted once; a draw costs one look-up, of millions of users too.
"""

from typing import NamedTuple

import numpy as np

from recsys_meta.ab.experiments.moments import Array


class QuantileDifference(NamedTuple):
    """The quantiles and what lies between them."""

    control: float
    treatment: float
    low: float  # of treatment - control, percentile interval
    high: float
    relative_low: float  # of treatment / control - 1; NaN where a resampled control is not above 0
    relative_high: float
    error: float  # standard deviation of the resampled difference
    p_value: float  # two-sided: twice the share of the resamples on the other side of no difference


def quantile_difference(
    control: Array, treatment: Array, q: float, *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> QuantileDifference:
    """Compares the q-quantiles of two groups of users. control, treatment: [U], in any order, at least one user each."""
    generator = np.random.default_rng(seed)
    ordered = [np.sort(values) for values in (control, treatment)]
    drawn_control, drawn_treatment = (
        values[np.clip(generator.binomial(len(values) + 1, q, draws), 1, len(values)) - 1]
        for values in ordered
    )
    difference = drawn_treatment - drawn_control
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(difference, [tail, 1.0 - tail])
    relative_low = relative_high = np.nan
    if drawn_control.min() > 0.0:
        relative_low, relative_high = np.quantile(drawn_treatment / drawn_control - 1.0, [tail, 1.0 - tail])
    beyond = min(float((difference <= 0.0).mean()), float((difference >= 0.0).mean()))
    return QuantileDifference(
        float(np.quantile(ordered[0], q)),
        float(np.quantile(ordered[1], q)),
        float(low),
        float(high),
        float(relative_low),
        float(relative_high),
        float(difference.std(ddof=1)),
        min(1.0, 2.0 * max(beyond, 1.0 / draws)),
    )
