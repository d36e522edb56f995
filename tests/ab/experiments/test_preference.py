"""Preferences of users: by hand, by scipy, by what a swap of names must do, and how often two equal rankings look different."""

from datetime import UTC, date, datetime, timedelta
from math import comb

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy import stats

from recsys_meta.ab.experiments.analysis import BETTER, NO_DIFFERENCE, NOT_TRUSTED, WORSE
from recsys_meta.ab.experiments.preference import (
    Draws,
    Rules,
    credited,
    draws,
    judged,
    looks,
    preferences,
    preferred,
)
from recsys_meta.ab.interleaving import A, B, team_draft

FIRST = date(2026, 11, 1)


def moment(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 11, 1, hour, tzinfo=UTC) + timedelta(days=day)


def listed(rows: list[tuple[int, str, list[tuple[int, str | None]]]]) -> pl.DataFrame:
    """Of each list: day, user, and items with their teams."""
    flat = [
        (FIRST + timedelta(days=day), user, position, item, team)
        for day, user, items in rows
        for position, (item, team) in enumerate(items, 1)
    ]
    schema = {
        "day": pl.Date, "user_id": pl.String, "position": pl.Int32, "item_id": pl.Int64, "team": pl.String,
    }  # fmt: skip
    return pl.DataFrame(flat, schema=schema, orient="row")


def clicked(rows: list[tuple[str, int | None, datetime]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.Int64, "occurred_at": pl.Datetime("us", "UTC")}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(value=pl.lit(1.0))


def rows_of(signs: list[int], days: list[int] | None = None) -> pl.DataFrame:
    """One row per user: one click for B (1), for A (-1) or for both (0)."""
    return pl.DataFrame(
        {
            "user_id": list(range(len(signs))),
            "day": [FIRST + timedelta(days=day) for day in days or [0] * len(signs)],
            "a": [float(sign <= 0) for sign in signs],
            "b": [float(sign >= 0) for sign in signs],
        }
    )


def test_what_is_done_is_credited_to_the_list_in_force_and_the_rest_is_counted() -> None:
    lists = listed(
        [
            (0, "u", [(1, "A"), (2, "B"), (3, None)]),
            (2, "u", [(2, "A"), (1, "B")]),
            (1, "v", [(1, "B"), (4, "A")]),
        ]
    )
    outcomes = clicked(
        [
            ("u", 2, moment(0)),  # B
            ("u", 2, moment(1)),  # B: the list of the day before is still in force
            ("u", 2, moment(2, 0)),  # A: now it is the new one
            ("u", 3, moment(1)),  # of neither
            ("u", 3, moment(2)),  # no longer in the list
            ("u", None, moment(2)),  # about no item
            ("v", 1, moment(0)),  # before the first list
            ("v", 4, moment(1)),  # A
            ("v", 1, moment(9)),  # too late
            ("x", 1, moment(1)),  # without a list
        ]
    )
    found = credited(lists, outcomes, until=moment(9, 0))
    assert found.rows.rows() == [
        ("u", FIRST, 0.0, 1.0),
        ("u", FIRST + timedelta(days=1), 0.0, 1.0),
        ("u", FIRST + timedelta(days=2), 1.0, 0.0),
        ("v", FIRST + timedelta(days=1), 1.0, 0.0),
    ]
    counts = found._asdict()
    del counts["rows"]
    assert counts.pop("last") == moment(2, 0), "neither too late nor without a list, nor on another item"
    assert counts == {
        "outcomes": 5, "uncredited": 1, "not_listed": 2, "users_not_listed": 1, "too_early": 1, "of_others": 1, "too_late": 1,
    }  # fmt: skip
    assert (
        sum(counts[name] for name in ("outcomes", "not_listed", "too_early", "of_others", "too_late")) == 10
    )
    assert preferences(found.rows)["preference"].to_list() == [0.5, -0.5]


def test_a_user_with_clicks_on_items_of_neither_alone_is_a_tie() -> None:
    done = credited(listed([(0, "u", [(3, None), (1, "A")])]), clicked([("u", 3, moment(0))]))
    assert preferences(done.rows).rows() == [("u", 0.0, 0.0, 0.0)]


def test_values_are_what_is_added_up() -> None:
    lists = listed([(0, "u", [(1, "A"), (2, "B")])])
    minutes = clicked([("u", 1, moment(0)), ("u", 1, moment(0)), ("u", 2, moment(0))])
    minutes = minutes.with_columns(value=pl.Series([1.0, 2.0, 5.0]))
    assert preferences(credited(lists, minutes).rows).rows() == [("u", 3.0, 5.0, 0.5)]


def test_the_preference_is_the_statistic_of_the_paper() -> None:
    found = preferred(preferences(rows_of([1, 1, 1, 0, -1])))
    assert (found.users, found.wins_a, found.ties, found.wins_b) == (5, 1, 1, 3)
    assert found.effect == pytest.approx((3 + 0.5) / 5 - 0.5)  # wins and half of the ties, less a half
    assert (found.credit_a, found.credit_b) == (2.0, 4.0)


signs = st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=60).filter(lambda some: len(set(some)) > 1)


@settings(max_examples=40)
@given(signs=signs, level=st.sampled_from([0.9, 0.95]))
def test_interval_and_p_values_are_those_of_scipy(signs, level) -> None:
    found = preferred(preferences(rows_of(signs)), level)
    test = stats.ttest_1samp(np.array(signs) / 2.0, 0.0)
    interval = test.confidence_interval(level)
    assert found.p_value == pytest.approx(test.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    wins, losses = signs.count(1), signs.count(-1)
    if wins + losses:
        assert found.sign_p_value == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=1e-9)
        tail = sum(comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
        assert found.sign_p_value == pytest.approx(min(1.0, 2 * tail), abs=1e-9)


@settings(max_examples=40)
@given(signs=signs)
def test_exchanged_names_exchange_the_sign(signs) -> None:
    found, other = (preferred(preferences(rows_of(some))) for some in (signs, [-sign for sign in signs]))
    assert (other.effect, other.low, other.high) == pytest.approx((-found.effect, -found.high, -found.low))
    assert (other.wins_a, other.wins_b) == (found.wins_b, found.wins_a)
    assert (other.p_value, other.sign_p_value) == pytest.approx((found.p_value, found.sign_p_value))


def test_users_who_are_all_alike_leave_no_doubt_and_one_user_says_nothing() -> None:
    assert preferred(preferences(rows_of([1] * 5))).p_value == 0.0
    ties = preferred(preferences(rows_of([0] * 5)))
    assert (ties.p_value, ties.sign_p_value) == (1.0, 1.0)
    assert np.isnan(preferred(preferences(rows_of([1]))).effect)


# Over the days ------------------------------------------------------------------------------------------------------


def made(users: int = 200, days: int = 6, seed: int = 0) -> pl.DataFrame:
    """Rows of users who come on several days and change their minds."""
    random = np.random.default_rng(seed)
    rows = [
        (user, FIRST + timedelta(days=day), float(random.poisson(0.6)), float(random.poisson(0.8)))
        for user in range(users)
        for day in range(days)
        if random.random() < 0.4
    ]
    return pl.DataFrame(rows, schema=["user_id", "day", "a", "b"], orient="row")


def test_until_each_day_the_preference_is_that_of_the_rows_until_then() -> None:
    rows = made()
    found = looks(rows.sample(fraction=1.0, shuffle=True, seed=1), first_look_users=50)
    assert found.height == 6
    for look in found.iter_rows(named=True):
        until = preferred(preferences(rows.filter(pl.col("day") <= look["day"])))
        assert look["users"] == until.users
        for name, wanted in (
            ("effect", until.effect), ("error", until.error), ("once_low", until.low), ("once_high", until.high),
            ("once_p_value", until.p_value),
        ):  # fmt: skip
            assert look[name] == pytest.approx(wanted, rel=1e-9), name


def test_a_day_more_does_not_change_the_looks_before_and_the_band_is_wider() -> None:
    rows = made()
    found = looks(rows, first_look_users=50)
    before = looks(rows.filter(pl.col("day") < FIRST + timedelta(days=5)), first_look_users=50)
    assert_frame_equal(before, found.head(-1), check_exact=False, rel_tol=1e-10, abs_tol=1e-12)
    assert ((found["low"] < found["once_low"]) & (found["high"] > found["once_high"])).all()
    assert looks(rows, first_look_users=10_000).is_empty()


# Verdicts -----------------------------------------------------------------------------------------------------------

FAIR = Draws(100, 100, 1.0)


def verdict(signs: list[int], drawn: Draws = FAIR, **rules) -> tuple[str, list[str]]:
    rows = rows_of(signs)
    found = judged(preferred(preferences(rows)), looks(rows), drawn, Rules(**{"reading": "once", **rules}))
    return found.verdict, found.reasons


def test_verdicts_in_words() -> None:
    assert verdict([1] * 90 + [-1] * 60)[0] == BETTER
    assert verdict([-1] * 90 + [1] * 60)[0] == WORSE
    word, reasons = verdict([1] * 80 + [-1] * 70)
    assert word == NO_DIFFERENCE
    assert "would have been seen with probability 80%" in reasons[0]
    word, reasons = verdict([1] * 99)
    assert word == NOT_TRUSTED
    assert reasons == ["99 users did anything with their lists; at least 100 are asked for."]


def test_a_difference_as_large_as_would_be_seen_is_seen_four_times_in_five() -> None:
    rows = rows_of([1] * 80 + [-1] * 70)
    found = judged(preferred(preferences(rows)), looks(rows), FAIR, Rules("once"))
    assert found.minimum_detectable is not None
    wins = 0.5 + found.minimum_detectable
    random = np.random.default_rng(0)
    drawn = np.where(random.random((4000, 150)) < wins, 0.5, -0.5)
    assert (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.05)


def test_looking_on_any_day_asks_for_more() -> None:
    signs = [1] * 90 + [-1] * 60
    assert verdict(signs)[0] == BETTER
    assert verdict(signs, reading="always")[0] == NO_DIFFERENCE
    assert verdict([1] * 120 + [-1] * 30, reading="always")[0] == BETTER


def test_lists_that_no_fair_coin_drew_are_not_believed() -> None:
    lists = listed([(0, f"u{n}", [(1, None), (2, "A" if n % 4 else "B"), (3, "B")]) for n in range(400)])
    drawn = draws(lists)
    assert (drawn.first_a, drawn.first_b) == (300, 100)
    assert drawn.p_value == pytest.approx(stats.binomtest(100, 400).pvalue, abs=1e-12)
    word, reasons = verdict([1] * 150, drawn)
    assert word == NOT_TRUSTED
    assert "A's in 300 lists, B's in 100" in reasons[0]
    assert draws(listed([(0, "u", [(1, None)])])) == Draws(0, 0, 1.0)


# How often it is wrong ----------------------------------------------------------------------------------------------


def equal_rankings(draws: int, users: int, seed: int) -> np.ndarray:
    """Preferences [draws, users] where both rankings are orders at random of items that users like differently."""
    random = np.random.default_rng(seed)
    count, items, size = draws * users, 8, 4
    first, second = (random.random((count, items)).argsort(1) for _ in range(2))
    merged = team_draft(first, second, random.random((count, size)) < 0.5)
    liked = random.beta(1.0, 2.0, size=(count, items))
    chance = np.take_along_axis(liked, merged.items, axis=1) * np.arange(1, size + 1) ** -0.7
    clicks = random.random((count, size)) < chance
    credit = (clicks & (merged.teams == B)).sum(1) - (clicks & (merged.teams == A)).sum(1)
    found = np.where(clicks.any(1), np.sign(credit) / 2.0, np.nan)
    return found.reshape(draws, users)


def test_two_equal_rankings_are_called_different_one_time_in_twenty() -> None:
    found = equal_rankings(draws=2000, users=200, seed=1)
    p_values = stats.ttest_1samp(found, 0.0, axis=1, nan_policy="omit").pvalue
    assert 0.04 <= (p_values < 0.05).mean() <= 0.06
    for row in found[:20]:  # and this is what the analysis says of them
        some = row[~np.isnan(row)]
        said = preferred(preferences(rows_of((2 * some).astype(int).tolist()))).p_value
        assert said == pytest.approx(stats.ttest_1samp(some, 0.0).pvalue, abs=1e-9)


def test_two_equal_rankings_looked_at_every_day_are_called_different_one_time_in_twenty_at_most() -> None:
    found = equal_rankings(draws=60, users=400, seed=2)
    band = once = 0
    for row in found:
        some = (2 * row[~np.isnan(row)]).astype(int).tolist()
        days = (np.arange(len(some)) * 14 // len(some)).tolist()
        seen = looks(rows_of(some, days), first_look_users=20)
        band += bool((seen["p_value"] < 0.05).any())
        once += bool((seen["once_p_value"] < 0.05).any())
    assert band / len(found) <= 0.05
    assert once / len(found) > 0.1, "fourteen looks at a test that is made for one"
