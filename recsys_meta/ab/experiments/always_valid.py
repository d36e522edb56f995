r"""The effect after every day with a band that holds on all days at once, so that looking, and stopping, is allowed on any.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Time-uniform central limit theory
and asymptotic confidence sequences, Annals of Statistics 52(6), in their form for variances that change (Lyapunov type): with t
terms of running mean mu_t, whose variances add up to V_t, for any rho > 0,

    mu_t +- sqrt( (V_t rho^2 + 1) / (t^2 rho^2)  log( (V_t rho^2 + 1) / alpha^2 ) )          for all t with probability 1 - alpha.

Here the terms are users: the difference of two (CUPED-adjusted) means or ratios is the mean of one influence value per user, of
standard error se_t, so that V_t = (t se_t)^2, with t the denominators of all users (their number where the metric is a mean).
Dividing, and with m = V_t rho^2:

    effect +- se_t sqrt( (1 + 1/m) log( (1 + m) / alpha^2 ) )
    p_t = sqrt(1 + m) exp( -z^2 m / (2 (1 + m)) ),   z = effect / se_t,   at most 1: the level at which the band just excludes 0.

The band is narrowest, against se_t, near m = -2 log alpha + log(1 - 2 log alpha), as they advise. rho is set so that m is there
when V_t has grown to ``planned_days`` times what it was at the first look; that look is the first day on which both variants have
``first_look_users``. A rerun a day later has the same rho, hence the same band.

Users who come back on other days are no new terms. Their days are correlated positively, which makes two looks more alike than
those of independent terms would be, so that the band errs on the safe side; that is an argument and no theorem, and
``simulation`` counts it.
"""

from math import log

import numpy as np
import polars as pl

from recsys_meta.ab.experiments.moments import SUMS, Array, Centre, Contrast, Moments, contrast
from recsys_meta.tables import USER_ID


def tightest_ratio(level: float) -> float:
    """The m at which the band is narrowest against the standard error."""
    alpha = 1.0 - level
    return -2.0 * log(alpha) + log(1.0 - 2.0 * log(alpha))


def widths(time: Array, tightest: float, level: float) -> Array:
    """Half the width of the band in standard errors. time: V_t; tightest: the V_t where it is to be narrowest."""
    m = tightest_ratio(level) * time / tightest
    factor: Array = np.sqrt((1.0 + 1.0 / m) * np.log((1.0 + m) / (1.0 - level) ** 2))
    return factor


def p_values(z: Array, time: Array, tightest: float, level: float) -> Array:
    """The p-value of each look by itself; it holds on whichever day one stops."""
    m = tightest_ratio(level) * time / tightest
    p: Array = np.minimum(1.0, np.sqrt(1.0 + m) * np.exp(-(z**2) * m / (2.0 * (1.0 + m))))
    return p


def cumulative_moments(moves: pl.DataFrame, variants: list[str]) -> tuple[pl.Series, dict[str, Moments]]:
    """The days, and of every variant the moments of its users until the end of each day, [days], around the mean on the last one.

    moves: what ``measuring.steps`` gives. One pass over the rows: what a day adds to a sum of squares is the new square of a user
    without the old one, of which there is none on the day of its entry.
    """
    n, d, x, entry = (pl.col(name) for name in ("numerator", "denominator", "covariate", "entry"))
    centre = centre_of(moves.filter(pl.col("variant").is_in(variants)))
    now_n, now_d, was_n, was_d = (pl.col(name) for name in ("now_n", "now_d", "was_n", "was_d"))
    after = (
        moves.sort(USER_ID, "day")
        .with_columns(
            x=x - centre.x,
            now_n=n.cum_sum().over(USER_ID) - centre.n,
            now_d=d.cum_sum().over(USER_ID) - centre.d,
        )
        .with_columns(was_n=(now_n - n) * (1.0 - entry), was_d=(now_d - d) * (1.0 - entry))
    )
    x = pl.col("x")
    moved_n, moved_d = n - entry * centre.n, d - entry * centre.d
    added = after.group_by("variant", "day").agg(
        users=entry.sum(), n=moved_n.sum(), d=moved_d.sum(), x=(entry * x).sum(),
        nn=(now_n**2 - was_n**2).sum(), dd=(now_d**2 - was_d**2).sum(), xx=(entry * x**2).sum(),
        nd=(now_n * now_d - was_n * was_d).sum(), nx=(moved_n * x).sum(), dx=(moved_d * x).sum(),
    )  # fmt: skip
    days = added["day"].unique().sort()
    found = {}
    for variant in variants:
        of_days = days.to_frame().join(
            added.filter(pl.col("variant") == variant).drop("variant"),
            on="day",
            how="left",
            maintain_order="left",
        )
        found[variant] = Moments.around(
            centre, (of_days[name].fill_null(0.0).cum_sum().to_numpy() for name in SUMS)
        )
    return days, found


def centre_of(moves: pl.DataFrame) -> Centre:
    """The means over all users at the end. moves: as of ``cumulative_moments``."""
    users, *totals = moves.select(
        pl.col("entry").sum(),
        pl.col("numerator").sum(),
        pl.col("denominator").sum(),
        (pl.col("entry") * pl.col("covariate")).sum().alias("covariate"),
    ).row(0)
    return Centre(*(total / users for total in totals)) if users else Centre()


def looks(
    moves: pl.DataFrame,
    control: str,
    treatment: str,
    *,
    level: float = 0.95,
    planned_days: float = 14.0,
    first_look_users: int = 100,
    share: float = 1.0,
) -> pl.DataFrame:
    """The effect (treatment minus ``share`` of control) until the end of each day, from the first look on.

    Gives day, users_control, users_treatment, control_mean, treatment_mean, effect, error, low, high and p_value (always valid),
    once_low, once_high and once_p_value (of a test that is read on this one day).
    """
    days, by_variant = cumulative_moments(moves, [control, treatment])
    counts = [by_variant[variant].users for variant in (control, treatment)]
    found = contrast(by_variant[control], by_variant[treatment], share)
    usable = (np.minimum(*counts) >= first_look_users) & np.isfinite(found.error) & (found.error > 0.0)
    found = Contrast(*(values[usable] for values in found))
    once_low, once_high = found.interval(level)
    table = {
        "day": days.filter(pl.Series(usable)),
        "users_control": counts[0][usable].astype(np.int64),
        "users_treatment": counts[1][usable].astype(np.int64),
        "control_mean": found.control,
        "treatment_mean": found.treatment,
        "effect": found.effect,
        "error": found.error,
        "once_low": once_low,
        "once_high": once_high,
        "once_p_value": found.p_values(),
    }
    if not usable.any():
        nothing = np.zeros(0)
        return pl.DataFrame({**table, "low": nothing, "high": nothing, "p_value": nothing})
    tightest = planned_days * float(found.time[0])
    half = found.error * widths(found.time, tightest, level)
    return pl.DataFrame(
        {
            **table,
            "low": found.effect - half,
            "high": found.effect + half,
            "p_value": p_values(found.effect / found.error, found.time, tightest, level),
        }
    )
