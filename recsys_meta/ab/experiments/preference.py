r"""Which of two rankings users prefer, told from what they did with lists that were merged from both (``ab.interleaving``).

What a user did with the items of each team is added up over all its lists: a user prefers the team with more, or neither. With

    x_u = 1/2 where user u prefers B, -1/2 where it prefers A, 0 for a tie,

the preference is the mean of x_u over the users who did anything with an item of their lists: the statistic of O. Chapelle,
T. Joachims, F. Radlinski & Y. Yue, Large-scale validation and analysis of interleaved search evaluation, TOIS 30(1), 2012,

    Delta = (wins + ties / 2) / (wins + losses + ties) - 1/2,

with users in the place of their queries, and from the side of B: above 0 where B is preferred (their Delta_AB with the names
exchanged). Users are independent, so its interval is that of a mean (Student), and its band that of ``always_valid`` with one
term for each user. The sign test looks at the users who prefer one team alone: whether each is as likely (exact binomial).

A preference says which ranking is better, and how surely; it is no number of clicks that would be won.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from recsys_meta.ab.experiments.always_valid import cumulative_moments, p_values, widths
from recsys_meta.ab.experiments.analysis import BETTER, NO_DIFFERENCE, NOT_TRUSTED, WORSE, Reading
from recsys_meta.tables import ITEM_ID, TEAMS, USER_ID

_A, _B = TEAMS
_EVERYBODY = "all"  # the one variant there is


class Credited(NamedTuple):
    """What users did with their lists, and what else they did."""

    rows: (
        pl.DataFrame
    )  # USER_ID, "day" (of what was done), "a", "b": values credited to each team; by user and day
    outcomes: int  # rows on items of the list in force
    uncredited: int  # of these, on items of neither team
    not_listed: int  # rows on other items, or on none, while a list was in force
    users_not_listed: int  # users with such rows
    too_early: int  # rows of users with lists, before the first of these
    of_others: int  # rows of users without any list
    too_late: int  # rows after the end
    last: datetime | None  # row on an item of the list in force; None: there is none


class Preference(NamedTuple):
    """What all users together prefer, read once."""

    users: int  # who did anything with an item of their lists
    wins_a: int
    ties: int
    wins_b: int
    credit_a: float  # of all users
    credit_b: float
    effect: float  # the preference, -1/2 to 1/2; above 0: for B
    error: float
    low: float
    high: float
    p_value: float  # that it is 0
    sign_p_value: float  # that one team is preferred as often as the other


class Draws(NamedTuple):
    """Whether the lists are what a fair coin makes of two rankings."""

    first_a: int  # lists whose first credited item is A's
    first_b: int
    p_value: float


class Rules(NamedTuple):
    """How the figures are read."""

    reading: Reading = "always"
    level: float = 0.95
    power: float = 0.8  # of the minimum detectable effect
    min_users: int = 100  # for a verdict, and for the first look
    planned_days: float = 14.0  # after so many days' worth of data the always-valid band is narrowest
    draws_alpha: float = 0.001  # a smaller p-value of the draws refuses the verdict


class Judged(NamedTuple):
    """The verdict on B."""

    verdict: str  # BETTER, WORSE, NO_DIFFERENCE or NOT_TRUSTED
    reasons: list[str]
    low: float | None  # of the reading that decides
    high: float | None
    p_value: float | None
    minimum_detectable: float | None  # preference that would have been seen with the wanted power


def credited(lists: pl.DataFrame, outcomes: pl.DataFrame, *, until: datetime | None = None) -> Credited:
    """What the teams are credited with. A list is in force from its day (UTC) on, until the next one of its user.

    lists: tables.INTERLEAVED. outcomes: USER_ID, ITEM_ID (null: about no item), "value", "occurred_at". until: rows from this
    moment on do not count.
    """
    counted = outcomes if until is None else outcomes.filter(pl.col("occurred_at") < until)
    shown = lists.select(USER_ID, pl.col("day").alias("shown")).unique().sort("shown")
    mine = counted.join(shown.select(USER_ID).unique(), on=USER_ID, how="semi")
    # Sorted by day, which is all that the join asks for; polars cannot check it user by user, and would say so.
    placed = (
        mine.select(USER_ID, ITEM_ID, "value", "occurred_at", pl.col("occurred_at").dt.date().alias("day"))
        .sort("day")
        .join_asof(shown, left_on="day", right_on="shown", by=USER_ID, check_sortedness=False)
    )
    in_force = placed.filter(pl.col("shown").is_not_null())
    found = in_force.join(
        lists.select(USER_ID, pl.col("day").alias("shown"), ITEM_ID, "team", listed=pl.lit(True)),
        on=[USER_ID, "shown", ITEM_ID],
        how="left",
    )
    on_list = found.filter(pl.col("listed").is_not_null())
    elsewhere = found.filter(pl.col("listed").is_null())
    rows = (
        on_list.group_by(USER_ID, "day")
        .agg(
            a=pl.col("value").filter(pl.col("team") == _A).sum(),
            b=pl.col("value").filter(pl.col("team") == _B).sum(),
        )
        .sort(USER_ID, "day")
    )
    last = on_list["occurred_at"].max()
    assert last is None or isinstance(last, datetime)
    return Credited(
        rows,
        on_list.height,
        on_list["team"].null_count(),
        elsewhere.height,
        elsewhere[USER_ID].n_unique(),
        placed.height - in_force.height,
        counted.height - mine.height,
        outcomes.height - counted.height,
        last,
    )


def preferences(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per user: USER_ID, "a", "b", "preference" (1/2 for B, -1/2 for A, 0). rows: ``Credited.rows``."""
    return (
        rows.group_by(USER_ID)
        .agg(pl.col("a", "b").sum())
        .with_columns(preference=(pl.col("b") - pl.col("a")).sign() / 2.0)
        .sort(USER_ID)
    )


def preferred(users: pl.DataFrame, level: float = 0.95) -> Preference:
    """The preference of all, read once. users: of ``preferences``; with fewer than two of them nothing is known (NaN)."""
    x = users["preference"].to_numpy()
    wins_a, wins_b = int((x < 0).sum()), int((x > 0).sum())
    sign = float(stats.binomtest(wins_b, wins_a + wins_b).pvalue) if wins_a + wins_b else 1.0
    counts = (len(x), wins_a, len(x) - wins_a - wins_b, wins_b)
    credit = (float(users["a"].sum()), float(users["b"].sum()))
    if len(x) < 2:
        unknown = float("nan")
        return Preference(*counts, *credit, unknown, unknown, unknown, unknown, unknown, sign)
    effect, error = float(x.mean()), float(x.std(ddof=1)) / len(x) ** 0.5
    half = error * float(stats.t.isf((1.0 - level) / 2.0, len(x) - 1))
    # All alike: the mean of no spread is 0 for sure, or not.
    z = abs(effect) / error if error else (float("inf") if effect else 0.0)
    p_value = 2.0 * float(stats.t.sf(z, len(x) - 1))
    return Preference(*counts, *credit, effect, error, effect - half, effect + half, p_value, sign)


def looks(
    rows: pl.DataFrame, *, level: float = 0.95, planned_days: float = 14.0, first_look_users: int = 100
) -> pl.DataFrame:
    """The preference until the end of each day, from the first on which so many users have done anything.

    rows: ``Credited.rows``. Gives day, users, effect, error, low, high and p_value (always valid), once_low, once_high and
    once_p_value (of a test that is read on this one day).
    """
    so_far = (pl.col("b") - pl.col("a")).cum_sum().over(USER_ID).sign() / 2.0
    moves = rows.sort(USER_ID, "day").with_columns(now=so_far).select(
        USER_ID, "day",
        numerator=pl.col("now") - pl.col("now").shift(1, fill_value=0.0).over(USER_ID),
        entry=(pl.int_range(pl.len()).over(USER_ID) == 0).cast(pl.Float64),
    )  # fmt: skip
    one = {"variant": pl.lit(_EVERYBODY), "denominator": pl.col("entry"), "covariate": pl.lit(0.0)}
    days, by_variant = cumulative_moments(moves.with_columns(**one), [_EVERYBODY])
    found = by_variant[_EVERYBODY]
    with np.errstate(divide="ignore", invalid="ignore"):
        from_centre = found.n / found.users
        effect = found.centre.n + from_centre
        squared = np.maximum(found.nn - found.users * from_centre**2, 0.0) / (found.users - 1.0) / found.users
        error = np.sqrt(squared)
    usable = (found.users >= max(first_look_users, 2)) & (error > 0.0)
    users, effect, error = found.users[usable], effect[usable], error[usable]
    time = (users * error) ** 2
    tightest = planned_days * float(time[0]) if len(time) else 1.0
    half = error * widths(time, tightest, level)
    once = error * stats.t.isf((1.0 - level) / 2.0, users - 1.0)
    return pl.DataFrame(
        {
            "day": days.filter(pl.Series(usable)),
            "users": users.astype(np.int64),
            "effect": effect,
            "error": error,
            "low": effect - half,
            "high": effect + half,
            "p_value": p_values(effect / error, time, tightest, level),
            "once_low": effect - once,
            "once_high": effect + once,
            "once_p_value": 2.0 * stats.t.sf(np.abs(effect / error), users - 1.0),
        }
    )


def draws(lists: pl.DataFrame) -> Draws:
    """How often each team has the first credited item, which a fair coin says of every list. lists: tables.INTERLEAVED."""
    first = (
        lists.filter(pl.col("team").is_not_null())
        .group_by(USER_ID, "day")
        .agg(pl.col("team").sort_by("position").first())["team"]
    )
    first_a, first_b = int((first == _A).sum()), int((first == _B).sum())
    p_value = float(stats.binomtest(first_b, first_a + first_b).pvalue) if first_a + first_b else 1.0
    return Draws(first_a, first_b, p_value)


def judged(found: Preference, seen: pl.DataFrame, drawn: Draws, rules: Rules) -> Judged:
    """The verdict on B with its reasons. seen: of ``looks``."""
    if found.users < rules.min_users:
        few = f"{found.users:,} users did anything with their lists; at least {rules.min_users:,} are asked for."
        return Judged(NOT_TRUSTED, [few], None, None, None, None)
    low, high, p_value, least = _read(found, seen, rules)
    numbers = (low, high, p_value, least)
    if drawn.p_value < rules.draws_alpha:
        doubt = (
            f"The first item that counts was A's in {drawn.first_a:,} lists, B's in {drawn.first_b:,} (p = {drawn.p_value:.2g}):"
            " no fair coin drew these, or some are missing, and the preference below may come from that."
        )
        return Judged(NOT_TRUSTED, [doubt], *numbers)
    shares = (
        f"{found.wins_b:,} of {found.users:,} users did more with the items of B, {found.wins_a:,} with those of A,"
        f" {found.ties:,} as much (sign test: {_p(found.sign_p_value)})."
    )
    between = (
        f"Preference for B {found.effect:+.4g} of 0.5 ({rules.level:.0%} interval {low:+.4g} to {high:+.4g})"
    )
    if p_value < 1.0 - rules.level:
        verdict = BETTER if found.effect > 0.0 else WORSE
        return Judged(verdict, [f"{between}, {verdict}; {_p(p_value)}.", shares], *numbers)
    least_said = f"; {least:.4g} would have been seen with probability {rules.power:.0%}"
    return Judged(NO_DIFFERENCE, [f"{between}, no difference shown{least_said}.", shares], *numbers)


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value > 0.0 else "p below 1e-300"


def _read(found: Preference, seen: pl.DataFrame, rules: Rules) -> tuple[float, float, float, float]:
    """Interval, p-value and minimum detectable effect of the reading that decides."""
    beta = float(stats.norm.ppf(rules.power))
    if rules.reading == "once" or seen.is_empty():  # no look: all are alike, which any reading says
        half = (found.high - found.low) / 2.0
        return found.low, found.high, found.p_value, half + beta * found.error
    last: Sequence[float] = seen.select("low", "high", "p_value", "error").row(-1)
    low, high, p_value, error = last
    return low, high, p_value, (high - low) / 2.0 + beta * error
