"""A treatment against control on a table of users: tea-tasting's means, ratios, CUPED, sample ratios and corrections."""

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import tea_tasting as tt
from tea_tasting.aggr import Aggregates
from tea_tasting.experiment import ExperimentResult

from recsys_meta.ab.experiments.metrics import Metric
from recsys_meta.ab.experiments.quantiles import quantile_difference

Correction = Literal["holm", "benjamini-hochberg", "none"]

_ROUNDING = 1e-12  # of the largest number in it, up to which the users of a variant are all alike


class Compared(NamedTuple):
    """One metric of one treatment against control, read once. None where it cannot be said."""

    users_control: int
    users_treatment: int
    constant: bool  # users of each variant are all alike, and not all are 0: an effect without an interval
    control: float | None  # mean, ratio or quantile; adjusted by the covariate where there is one
    treatment: float | None
    effect: float | None
    low: float | None
    high: float | None
    relative: float | None  # effect / control
    relative_low: float | None
    relative_high: float | None
    p_value: float | None


def compare(
    users: pl.DataFrame, metric: Metric, control: str, treatment: str, *, level: float = 0.95
) -> Compared:
    """Compares two variants by one metric. users: what ``measuring.totals`` gives for it."""
    arms = [users.filter(pl.col("variant") == variant) for variant in (control, treatment)]
    counts = (arms[0].height, arms[1].height)
    if min(counts) < 2:
        return _compared(counts, [None] * 9)
    if any(arm["denominator"].sum() == 0.0 for arm in arms):
        return _compared(counts, [None] * 9)
    if all((arm["numerator"] == 0.0).all() for arm in arms):
        return _compared(counts, [0.0, 0.0, 0.0, *[None] * 6])
    first, second = (_constant(arm, metric) for arm in arms)
    if first is not None and second is not None:
        effect = 0.0 if isclose(first, second, rel_tol=_ROUNDING) else second - first
        numbers = [first, second, effect, None, None, effect / first if first else None, *[None] * 3]
        return _compared(counts, numbers, constant=True)
    if metric.kind == "quantile":
        values = [arm["numerator"].to_numpy() for arm in arms]
        found = quantile_difference(values[0], values[1], metric.quantile, level=level)
        effect = found.treatment - found.control
        relative = effect / found.control if found.control else None
        numbers = [found.control, found.treatment, effect, found.low, found.high, relative]
        return _compared(counts, [*numbers, found.relative_low, found.relative_high, found.p_value])
    aggregates = {name: _aggregates(arm) for name, arm in zip((control, treatment), arms, strict=True)}
    with np.errstate(divide="ignore", invalid="ignore"):  # what is no number is said as None
        result = _tea_tasting(metric, level).analyze(aggregates, control, treatment)
    return _compared(
        counts,
        [
            result.control,
            result.treatment,
            result.effect_size,
            result.effect_size_ci_lower,
            result.effect_size_ci_upper,
            result.rel_effect_size,
            result.rel_effect_size_ci_lower,
            result.rel_effect_size_ci_upper,
            result.pvalue,
        ],
    )


class SampleRatio(NamedTuple):
    """Whether users fell to the variants as they should have."""

    treatment: str
    users_control: int
    users_treatment: int
    expected_share: float  # of the treatment, among the users of both
    p_value: float


def sample_ratio(
    counts: Mapping[str, int], control: str, treatment: str, shares: Mapping[str, float]
) -> SampleRatio:
    """Tests the numbers of users against the shares that were meant (exact binomial below 1,000 users)."""
    parts = {name: Aggregates(count_=counts.get(name, 0)) for name in (control, treatment)}
    result = tt.SampleRatio(shares[treatment] / shares[control]).analyze(parts, control, treatment)
    expected = shares[treatment] / (shares[control] + shares[treatment])
    return SampleRatio(
        treatment, counts.get(control, 0), counts.get(treatment, 0), expected, float(result.pvalue)
    )


def corrected(p_values: Sequence[float | None], correction: Correction, alpha: float) -> list[float | None]:
    """Adjusted p-values of a family, to be held against alpha; what is None stays, and is no member of the family.

    holm: keeps the chance of any false "different" in the family at alpha, however the metrics hang together (Holm 1979).
    benjamini-hochberg: keeps the expected share of false ones among all "different" at alpha (1995).
    """
    members = {str(place): {"pvalue": p} for place, p in enumerate(p_values) if p is not None}
    if correction == "none" or not members:
        return list(p_values)
    family = ExperimentResult(members)
    if correction == "holm":
        results = tt.adjust_fwer(family, alpha=alpha, arbitrary_dependence=True, method="bonferroni")
    else:
        results = tt.adjust_fdr(family, alpha=alpha, arbitrary_dependence=False)
    adjusted = {row["metric"]: row["pvalue_adj"] for row in results.to_dicts()}
    return [None if p is None else float(adjusted[str(place)]) for place, p in enumerate(p_values)]


def _tea_tasting(metric: Metric, level: float) -> Any:
    """The metric as tea-tasting knows it."""
    covariate = None if metric.covariate is None else "covariate"
    if metric.kind == "ratio":
        return tt.RatioOfMeans("numerator", "denominator", covariate, confidence_level=level)
    return tt.Mean("numerator", covariate, confidence_level=level)


def _constant(arm: pl.DataFrame, metric: Metric) -> float | None:
    """The number, or the ratio, that every user of a variant has, but for rounding; None: they differ."""
    above = arm["numerator"].to_numpy()
    below = arm["denominator"].to_numpy() if metric.kind == "ratio" else np.ones(len(above))
    value = float(above.sum() / below.sum())
    return value if np.abs(above - value * below).max() <= _ROUNDING * np.abs(above).max() else None


def _aggregates(arm: pl.DataFrame) -> Any:
    """Count, means, variances and covariances of one variant."""
    names = ["numerator", "denominator", "covariate"]
    pairs = [(left, right) for left in names for right in names if left < right]
    found = arm.select(
        *(pl.col(name).mean().alias(f"mean {name}") for name in names),
        *(pl.col(name).var().alias(f"var {name}") for name in names),
        *(pl.cov(left, right).alias(f"cov {left} {right}") for left, right in pairs),
    ).row(0, named=True)
    return Aggregates(
        count_=arm.height,
        mean_={name: found[f"mean {name}"] for name in names},
        var_={name: found[f"var {name}"] for name in names},
        cov_={(left, right): found[f"cov {left} {right}"] for left, right in pairs},
    )


def _compared(
    counts: tuple[int, int], numbers: Sequence[float | None], *, constant: bool = False
) -> Compared:
    """The numbers, with None in the place of what is none."""
    return Compared(*counts, constant, *(_finite(number) for number in numbers))


def _finite(number: float | None) -> float | None:
    return float(number) if number is not None and abs(float(number)) < float("inf") else None
