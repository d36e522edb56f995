"""Intervals for an estimate that is a ratio of sums over users; users are independent, the rows of one are not.

With users u = 1 .. U, sums A_u and B_u, theta = sum A / sum B, influence psi_u = (A_u - theta B_u) / mean B, and se its standard
error (sample.py):

    normal            theta +- z se: the cluster-robust sandwich, by linearization
    percentile        quantiles of theta over resampled users                         Efron, Ann. Stat. 1979
    studentized       theta - se * quantiles of (theta* - theta) / se* over resamples Hall, Ann. Stat. 1988
    likelihood        the theta that -2 log of the empirical likelihood ratio of A - theta B leaves below F_{1, U-1}
                                                                                      Owen, Empirical Likelihood, 2001
    bernstein         theta +- sqrt(2 V log(4/alpha) / U) + 7 R log(4/alpha) / (3 (U - 1)),  V = var psi, R its range
                                                                                      Maurer & Pontil, COLT 2009, theorem 4
    sequence          theta +- s sqrt(2 (U rho^2 + 1) / (U^2 rho^2) log(sqrt(U rho^2 + 1) / alpha)), s^2 = var psi: holds at all
                      times at once, so that logs may be looked at every day
                                                                                      Waudby-Smith et al., Ann. Stat. 2024, eq. 3

Differences from the papers: R is the range that was observed, so that the Bernstein interval is no finite-sample guarantee where
a larger weight has not been seen yet; rho makes the sequence narrowest at the U at hand. Which of them cover what they promise,
and where none does, is measured by ``recsys_meta.ab.coverage``; docs/offline_ab.md has the table.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys_meta.ab.estimators.sample import Numbers, UserSums, per_user

Kind = Literal["normal", "percentile", "studentized", "likelihood", "bernstein", "sequence"]

# What a kind is besides an interval that holds as often as it says (docs/coverage.md). It stands beside every estimate.
_SKEWED = "with a few large weights it holds less often than it says; studentized suffers less"
MEANT: Mapping[Kind, str] = {
    "normal": _SKEWED,
    "percentile": _SKEWED,
    "likelihood": _SKEWED,
    "bernstein": "wider than its level asks for: it holds nearly always",
    "sequence": "holds on all days at once, so on one day more often than it says",
}

# Several users are resampled as one beyond so many: their sums are as independent, and the resamples fit into memory.
_GROUPS = 10_000
_HALVINGS = 34  # brings an end of an interval to 1e-10 of a step of one standard error
_NEWTON_STEPS = 60  # at most; seldom more than ten are taken


class Interval(NamedTuple):
    """Where the value lies, by one method."""

    low: float
    high: float
    kind: Kind


class Resamples(NamedTuple):
    """How often each group of users is drawn, and who is in it; the same for every estimate, so that differences are paired."""

    counts: NDArray[np.float32]  # [draws, G], each row sums to G
    groups: NDArray[np.int64]  # [U]

    def grouped(self, sums: UserSums) -> UserSums:
        """The sums of the groups."""
        size = self.counts.shape[1]
        if size == len(self.groups):
            return sums
        return UserSums(*(per_user(self.groups, column, size) for column in sums))

    def of(self, sums: UserSums) -> tuple[Numbers, Numbers]:
        """The estimate in every resample and its standard error there, [draws] each."""
        size = self.counts.shape[1]
        a, b = self.grouped(sums)
        moments = self.counts @ np.stack([a, b, a * a, a * b, b * b], axis=1)
        total_a, total_b, aa, ab, bb = moments.T
        with np.errstate(divide="ignore", invalid="ignore"):
            values = total_a / total_b
            squares = np.maximum(aa - 2 * values * ab + values**2 * bb, 0.0)
            errors = np.sqrt(squares * size / (size - 1)) / np.abs(total_b)
        return values, errors


def resamples(n_users: int, draws: int = 1000, seed: int = 0) -> Resamples:
    """Users drawn with replacement; beyond 10,000 in groups put together at random."""
    generator = np.random.default_rng(seed)
    size = min(n_users, _GROUPS)
    groups = np.arange(n_users)
    if n_users > size:
        groups = generator.permutation(n_users) % size
    counts = np.empty((draws, size), dtype=np.float32)
    for draw in range(draws):
        counts[draw] = np.bincount(generator.integers(size, size=size), minlength=size)
    return Resamples(counts, groups)


def interval(sums: UserSums, kind: Kind, drawn: Resamples, level: float = 0.95) -> Interval:
    """The interval of this kind; without bounds where there are fewer than two users."""
    if len(sums.numerator) < 2 or not np.isfinite(sums.value):
        return Interval(-np.inf, np.inf, kind)
    low, high = _METHODS[kind](sums, drawn, level)
    return Interval(float(low), float(high), kind)


def _normal(sums: UserSums, drawn: Resamples, level: float) -> tuple[float, float]:
    half = NormalDist().inv_cdf((1 + level) / 2) * sums.standard_error
    return sums.value - half, sums.value + half


def _percentile(sums: UserSums, drawn: Resamples, level: float) -> tuple[float, float]:
    values, _ = drawn.of(sums)
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return low, high


def _studentized(sums: UserSums, drawn: Resamples, level: float) -> tuple[float, float]:
    """Resamples without any spread say that the truth may be anywhere: their t is infinite, on the side where they lie."""
    if not sums.standard_error:
        return sums.value, sums.value
    values, errors = drawn.of(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (values - sums.value) / errors
    # 'lower' and 'higher', for an interpolation with an infinite neighbour would be NaN.
    t = np.sort(np.where(np.isnan(t), 0.0, t))
    low, high = (
        np.quantile(t, (1 - level) / 2, method="lower"),
        np.quantile(t, (1 + level) / 2, method="higher"),
    )
    return sums.value - high * sums.standard_error, sums.value - low * sums.standard_error


def _likelihood(sums: UserSums, drawn: Resamples, level: float) -> tuple[float, float]:
    """Both ends by bisection between the estimate and the outermost ratio of a single user."""
    if not sums.standard_error:
        return sums.value, sums.value
    sums = drawn.grouped(sums)
    limit = _f_quantile(level, len(sums.numerator) - 1)

    def beyond(theta: float) -> bool:
        return _likelihood_ratio(sums.numerator - theta * sums.denominator) > limit

    ends = []
    for sign in (-1.0, 1.0):
        inside, step = sums.value, sums.standard_error
        while not beyond(inside + sign * step):
            inside, step = inside + sign * step, 2 * step
        outside = inside + sign * step
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
        ends.append(inside)
    return ends[0], ends[1]


def _likelihood_ratio(g: Numbers) -> float:
    """-2 log max prod(U p_u) over p with sum p_u g_u = 0: 2 sum log(1 + lambda g_u), by Newton in lambda."""
    if not (g.min() < 0.0 < g.max()):
        return np.inf
    scaled = g / np.abs(g).max()
    size = len(g)
    # All 1 + lambda g_u lie above 1/U at the solution.
    low, high = (1 / size - 1) / scaled.max(), (1 / size - 1) / scaled.min()
    multiplier = 0.0
    for _ in range(_NEWTON_STEPS):
        terms = 1 + multiplier * scaled
        shares = scaled / terms
        slope = float(shares.sum())  # falls as the multiplier rises
        low, high = (multiplier, high) if slope > 0 else (low, multiplier)
        step = multiplier + slope / float(shares @ shares)
        step = step if low < step < high else (low + high) / 2
        if abs(step - multiplier) <= 1e-10 * max(1.0, abs(multiplier)):
            break
        multiplier = step
    return 2.0 * float(np.log1p(multiplier * scaled).sum())


def _f_quantile(level: float, freedom: int) -> float:
    """Of F with 1 and many degrees of freedom: the square of a t quantile, by its expansion (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t * t


def _bernstein(sums: UserSums, drawn: Resamples, level: float) -> tuple[float, float]:
    influence = sums.influence
    users = len(influence)
    log = np.log(4 / (1 - level))
    half = np.sqrt(2 * influence.var(ddof=1) * log / users) + 7 * np.ptp(influence) * log / (3 * (users - 1))
    return sums.value - half, sums.value + half


def _sequence(sums: UserSums, drawn: Resamples, level: float) -> tuple[float, float]:
    users, alpha = len(sums.numerator), 1 - level
    # Waudby-Smith et al., appendix B.2: the rho whose boundary is narrowest, nearly, at this many users.
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / users
    factor = 2 * (users * rho2 + 1) / (users**2 * rho2) * np.log(np.sqrt(users * rho2 + 1) / alpha)
    half = sums.standard_error * np.sqrt(users) * np.sqrt(factor)
    return sums.value - half, sums.value + half


_METHODS: Mapping[Kind, Callable[[UserSums, Resamples, float], tuple[float, float]]] = {
    "normal": _normal,
    "percentile": _percentile,
    "studentized": _studentized,
    "likelihood": _likelihood,
    "bernstein": _bernstein,
    "sequence": _sequence,
}
KINDS: tuple[Kind, ...] = tuple(_METHODS)
