"""Before the test: how many users, for how long, to see how much.

Of a test that is read once, by the two-sided z-test. With z the critical value and d the effect in standard errors of the
difference, deviation * sqrt(1 / users of control + 1 / users of treatment), it is seen with

    power(d) = P(Z > z - d) + P(Z < -z - d)

which is solved for d; the effect, or the users that make a lift so many standard errors, follow. Normal, not t: with the users of
a test no digit that matters differs. Solved here and not by tea-tasting, whose root is found to 2e-12 in the units of the metric:
of a small effect, or of many users, that is fewer than nine digits.

One that may be looked at every day pays with a wider interval: its minimum detectable effect is larger by
(c + z_power) / (z_(1 - alpha/2) + z_power), with c half the width of the always-valid band in standard errors
(``always_valid``), and the users needed by the square of that.
"""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from recsys_meta.ab.experiments.always_valid import widths
from recsys_meta.ab.experiments.moments import Moments, spread

# An effect of so few deviations is none: it would take a billion times a billion users to see it.
_NOTHING = 1e-9


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
    once = distance(level, power) * at.deviation * sqrt(_inverse_parts(share) / at.users)
    return Detectable(once, once * looking(at.days, level, power, planned_days))


def users_needed(
    at: Horizon, lift: float, *, share: float = 0.5, level: float = 0.95, power: float = 0.8
) -> int | None:
    """The users of both variants together who show a relative lift, in a test that is read once; None: beyond counting."""
    apart, effect = distance(level, power) * at.deviation, abs(lift * at.mean)
    if effect <= _NOTHING * apart:
        return None
    return ceil(_inverse_parts(share) * (apart / effect) ** 2)


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


def distance(level: float, power: float) -> float:
    """The effect that is seen with this power, in standard errors of the difference; 0 where chance alone sees as much."""
    critical = float(stats.norm.isf((1.0 - level) / 2.0))

    def missing(effect: float) -> float:
        return power - float(stats.norm.sf(critical - effect) + stats.norm.cdf(-critical - effect))

    if missing(0.0) <= 0.0:
        return 0.0
    # One side alone sees a little less: the root lies below.
    beyond = critical + float(stats.norm.ppf(power)) + 1.0
    return float(optimize.brentq(missing, 0.0, max(beyond, 1.0), xtol=1e-14, rtol=4 * np.finfo(float).eps))


def _inverse_parts(share: float) -> float:
    """1 / share of control + 1 / share of the treatment."""
    return 1.0 / (1.0 - share) + 1.0 / share
