"""Before the test: how many users, for how long, to see how much.

Of a test that is read once tea-tasting says it (two-sided z-test). One that may be looked at every day pays with a wider
interval: its minimum detectable effect is larger by (c + z_power) / (z_(1 - alpha/2) + z_power), with c half the width of the
always-valid band in standard errors (``always_valid``), and the users needed by the square of that.
"""

from math import ceil
from typing import NamedTuple

import numpy as np
import tea_tasting as tt
from scipy import stats
from tea_tasting.aggr import Aggregates

from recsys_meta.ab.experiments.always_valid import widths
from recsys_meta.ab.experiments.moments import Moments, spread


class Horizon(NamedTuple):
    """What a test of so many days would have to work with."""

    days: int
    users: int  # of all variants together
    mean: float  # or ratio
    deviation: float  # standard deviation per user, after the covariate has taken away what it can
    reduction: float | None  # share of the variance that the covariate took away


class Detectable(NamedTuple):
    """The smallest effect that a test would see with the wanted power."""

    once: float  # absolute, of a test that is read at its end
    always: float  # of a test that may be looked at every day


def horizon(days: int, of_everybody: Moments, covariate: bool) -> Horizon:
    """From the sums over all users who came within the days."""
    mean, variance, reduction = spread(of_everybody)
    return Horizon(
        days, int(of_everybody.users), mean, float(np.sqrt(variance)), reduction if covariate else None
    )


def detectable(
    at: Horizon, *, share: float = 0.5, level: float = 0.95, power: float = 0.8, planned_days: float = 14.0
) -> Detectable:
    """The minimum detectable effect. share: of the users, in the treatment; planned_days: as the analysis will have it."""
    once = _solved(at, "effect_size", share, level, power, n_obs=at.users)
    return Detectable(once, once * looking(at.days, level, power, planned_days))


def users_needed(
    at: Horizon, lift: float, *, share: float = 0.5, level: float = 0.95, power: float = 0.8
) -> int:
    """The users of both variants together who show a relative lift, in a test that is read once."""
    return int(_solved(at, "n_obs", share, level, power, rel_effect_size=lift))


def looking(days: int, level: float, power: float, planned_days: float) -> float:
    """By what factor effects have to be larger where every day is looked at. Days are taken to bring the same each."""
    beta = float(stats.norm.ppf(power))
    wide = float(widths(np.asarray(float(days)), planned_days, level))
    return (wide + beta) / (float(stats.norm.ppf((1.0 + level) / 2.0)) + beta)


def days_needed(horizons: list[Horizon], needed: list[int]) -> tuple[int | None, int]:
    """The first horizon with as many users as it needs (None: none has), and the days at the pace of the longest one."""
    reached = next((at.days for at, users in zip(horizons, needed, strict=True) if at.users >= users), None)
    longest = horizons[-1]
    return reached, ceil(needed[-1] / (longest.users / longest.days))


def _solved(at: Horizon, parameter: str, share: float, level: float, power: float, **given: float) -> float:
    """What tea-tasting finds for one parameter."""
    # Normal, not t: with the users of a test no digit differs, and scipy's noncentral t gives NaN for many of them.
    metric = tt.Mean("x", use_t=False, alpha=1.0 - level, power=power, ratio=share / (1.0 - share), **given)
    sample = Aggregates(count_=at.users, mean_={"x": at.mean}, var_={"x": at.deviation**2}, cov_={})
    (result,) = metric.solve_power_from_aggregates(sample, parameter)
    return float(getattr(result, parameter))
