"""Sums over users, and what they say of the difference of two variants: means, ratios and CUPED in one formula.

A metric is R = mean(N) / mean(D) over the users of a variant, with D = 1 where it is a mean, and X what a user did before.

    per-user variance of R, by the delta method:     (s_NN - 2 R s_ND + R^2 s_DD) / mean(D)^2
    CUPED: R - theta (mean(X) - mean(X of all)),     theta = cov(R, X) / s_XX over both variants,
           of variance                               var(R) + theta^2 s_XX - 2 theta cov(R, X)

Sums are of what users are away from one common centre near their mean: squares of large numbers that hardly differ would cancel.
The centre is the same in all that is added up or taken away, so it says nothing of its own.

Deng, Xu, Kohavi, Walker (2013), Improving the Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment Data;
Deng, Knoblich, Lu (2018), Applying the Delta Method in Metric Analytics. The same as tea-tasting computes from a table of users;
here on arrays, so that a day or a random split is one more element.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

Array = npt.NDArray[np.float64]

_COLUMNS = ("numerator", "denominator", "covariate")


class Centre(NamedTuple):
    """What numerator, denominator and covariate are counted from."""

    n: float = 0.0
    d: float = 0.0
    x: float = 0.0


class Moments(NamedTuple):
    """Sums over users of n, d and x away from the centre, and of their products, each an array of the same shape [...]."""

    users: Array
    n: Array
    d: Array
    x: Array
    nn: Array
    dd: Array
    xx: Array
    nd: Array
    nx: Array
    dx: Array
    centre: Centre = Centre()

    @classmethod
    def around(cls, centre: Centre, sums: Iterable[Array]) -> "Moments":
        """Those of sums in the order of SUMS."""
        users, n, d, x, nn, dd, xx, nd, nx, dx = sums
        return cls(users, n, d, x, nn, dd, xx, nd, nx, dx, centre)

    @property
    def sums(self) -> tuple[Array, ...]:
        """All but the centre, in the order of SUMS."""
        return self.users, self.n, self.d, self.x, self.nn, self.dd, self.xx, self.nd, self.nx, self.dx

    def plus(self, other: "Moments") -> "Moments":
        """Those of both. Raises ValueError where the other's centre is another."""
        self._same_centre(other)
        return Moments.around(
            self.centre, (mine + its for mine, its in zip(self.sums, other.sums, strict=True))
        )

    def minus(self, other: "Moments") -> "Moments":
        """Those of the rest. Raises ValueError where the other's centre is another."""
        self._same_centre(other)
        return Moments.around(
            self.centre, (mine - its for mine, its in zip(self.sums, other.sums, strict=True))
        )

    def _same_centre(self, other: "Moments") -> None:
        if self.centre != other.centre:
            raise ValueError(f"sums around {self.centre} and {other.centre}; expected one centre for both")


SUMS = Moments._fields[:-1]


class Contrast(NamedTuple):
    """Treatment minus a multiple of control, each an array [...]; NaN where there are too few users, or nothing to divide by."""

    control: Array  # the mean or ratio, adjusted by the covariate
    treatment: Array
    effect: Array
    error: Array  # standard error of the effect
    degrees: Array  # of freedom, Welch-Satterthwaite
    time: Array  # intrinsic time, for always_valid: variance of the sum whose mean the effect is
    reduction: Array  # share of the variance that the covariate took away

    def p_values(self) -> Array:
        """Of no difference, two-sided, read once (Welch)."""
        p: Array = 2.0 * stats.t.sf(np.abs(self.effect / self.error), self.degrees)
        return p

    def interval(self, level: float) -> tuple[Array, Array]:
        """Of the effect, read once (Welch)."""
        half = self.error * stats.t.isf((1.0 - level) / 2.0, self.degrees)
        return self.effect - half, self.effect + half


def terms(n: Array, d: Array, x: Array, centre: Centre) -> tuple[Array, ...]:
    """What every user adds to the SUMS, of the shape of n."""
    n, d, x = n - centre.n, d - centre.d, x - centre.x
    return np.ones_like(n), n, d, x, n * n, d * d, x * x, n * d, n * x, d * x


def moments(n: Array, d: Array, x: Array, centre: Centre | None = None) -> Moments:
    """Of one group of users. n, d, x: [U], numerator, denominator, covariate. centre: none for the mean of the group itself."""
    if centre is None:
        centre = Centre(*(float(part.mean()) if len(part) else 0.0 for part in (n, d, x)))
    return Moments.around(centre, (np.asarray(term.sum()) for term in terms(n, d, x, centre)))


def of_users(users: pl.DataFrame, centre: Centre | None = None) -> Moments:
    """Of a table of users with "numerator", "denominator" and "covariate". centre: as of ``moments``."""
    n, d, x = (users[name].to_numpy() for name in _COLUMNS)
    return moments(n, d, x, centre)


def of_pair(users: pl.DataFrame, control: str, treatment: str) -> tuple[Moments, Moments]:
    """Of the users of each of two variants, around the mean of both. users: as of ``of_users``, with "variant"."""
    both = users.filter(pl.col("variant").is_in([control, treatment]))
    centre = of_users(both).centre
    a, b = (of_users(both.filter(pl.col("variant") == name), centre) for name in (control, treatment))
    return a, b


def contrast(control: Moments, treatment: Moments, share: float = 1.0) -> Contrast:
    """Treatment minus ``share`` of control; 1 for the difference, 1 - margin to ask whether a guardrail is kept."""
    with np.errstate(divide="ignore", invalid="ignore"):
        both = control.plus(treatment)
        _, _, cov, s_xx = _ratio(both)
        theta = np.where(s_xx > 0.0, cov / np.where(s_xx > 0.0, s_xx, 1.0), 0.0)
        centre = both.x / both.users
        (mean_c, var_c, plain_c), (mean_t, var_t, plain_t) = (
            _adjusted(arm, theta, centre) for arm in (control, treatment)
        )
        part_c, part_t = share**2 * var_c / control.users, var_t / treatment.users
        squared = part_c + part_t
        degrees = squared**2 / (part_c**2 / (control.users - 1.0) + part_t**2 / (treatment.users - 1.0))
        plain = share**2 * plain_c / control.users + plain_t / treatment.users
        return Contrast(
            mean_c,
            mean_t,
            mean_t - share * mean_c,
            np.sqrt(squared),
            degrees,
            (both.d + both.users * both.centre.d) ** 2
            * squared,  # (users x mean denominator)^2 x variance of the mean
            1.0 - squared / plain,
        )


def spread(m: Moments) -> tuple[float, float, float]:
    """Of one group: the mean or ratio, its variance per user after CUPED, and the share that CUPED took away."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, variance, cov, s_xx = (float(part) for part in _ratio(m))
    taken = cov**2 / s_xx if s_xx > 0.0 else 0.0
    return ratio, max(variance - taken, 0.0), taken / variance if variance > 0.0 else 0.0


def _ratio(m: Moments) -> tuple[Array, Array, Array, Array]:
    """R, its variance per user, its covariance with X, and the variance of X."""

    def s(left: Array, right: Array, product: Array) -> Array:
        result: Array = (product - left * right / m.users) / (m.users - 1.0)
        return result

    mean_d = m.centre.d + m.d / m.users
    ratio = (m.centre.n + m.n / m.users) / mean_d
    variance = (
        s(m.n, m.n, m.nn) - 2.0 * ratio * s(m.n, m.d, m.nd) + ratio**2 * s(m.d, m.d, m.dd)
    ) / mean_d**2
    covariance = (s(m.n, m.x, m.nx) - ratio * s(m.d, m.x, m.dx)) / mean_d
    return ratio, np.maximum(variance, 0.0), covariance, np.maximum(s(m.x, m.x, m.xx), 0.0)


def _adjusted(m: Moments, theta: Array, centre: Array) -> tuple[Array, Array, Array]:
    """R and its variance per user after CUPED, and that variance before."""
    ratio, variance, cov, s_xx = _ratio(m)
    adjusted = variance + theta**2 * s_xx - 2.0 * theta * cov
    return ratio - theta * (m.x / m.users - centre), np.maximum(adjusted, 0.0), variance
