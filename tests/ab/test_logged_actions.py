"""Logged actions: what is accepted as logs, and what is said of the rest."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_meta.ab.logged_actions import LogsError, logged_actions, with_uniform_propensities

ROWS = pl.DataFrame(
    {
        "user_id": ["b", "a", "b"],
        "item_id": [1, 2, 1],
        "position": [1, 1, 2],
        "slate_id": [7, 8, 7],
        "reward": [1, 0, 0],
        "propensity": [0.5, 0.25, 1.0],
        "hour": [3, 4, 3],
        "unused": [0, 0, 0],
    }
)


def test_only_named_columns_stay_and_numbers_become_doubles():
    logs = logged_actions(ROWS, context=["hour"])
    assert set(logs.table.columns) == set(ROWS.columns) - {"unused"}
    assert logs.table.schema["reward"] == pl.Float64
    assert logs.propensities is not None


def test_rows_of_one_user_get_one_number():
    users = logged_actions(ROWS).users
    assert users[0] == users[2] != users[1]
    assert sorted(set(users)) == [0, 1]


def test_without_a_user_column_slates_stand_alone_and_without_these_every_row():
    logs = logged_actions(ROWS.drop("user_id"))
    assert not logs.clustered
    assert logs.users[0] == logs.users[2] != logs.users[1]  # rows of one slate were shown together
    assert logged_actions(ROWS.drop("user_id", "slate_id")).users.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (ROWS.drop("reward"), r"lack the columns \['reward'\]"),
        (ROWS.drop("propensity"), r"lack the columns \['propensity'\]"),
        (ROWS.clear(), "no logged actions"),
        (ROWS.with_columns(item_id=None), "rows without .*item_id"),
        (ROWS.with_columns(reward=float("nan")), "finite"),
        (ROWS.with_columns(propensity=pl.Series([0.5, 0.0, 1.0])), r"0\.0 in row 2 .*above 0 to 1"),
        (ROWS.with_columns(propensity=pl.Series([0.5, 0.5, 1.5])), r"1\.5 in row 3"),
        (ROWS.with_columns(propensity=pl.Series([0.5, float("nan"), 1.0])), "nan in row 2"),
        (ROWS.with_columns(position=1), "slate 7 holds position 1 more than once"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_was_found(table, message):
    with pytest.raises(LogsError, match=message) as caught:
        logged_actions(table)
    assert caught.value.exit_code == 3


def test_without_propensities_none_are_asked_for_and_none_are_kept():
    assert logged_actions(ROWS, origin="none").propensities is None


def test_stated_propensities_are_uniform_over_the_actions_of_the_position():
    table = pl.DataFrame({"item_id": [1, 2, 3, 1], "position": [1, 1, 1, 2]})
    assert with_uniform_propensities(table)["propensity"].to_list() == pytest.approx([1 / 3] * 3 + [1.0])
    listed = with_uniform_propensities(table, pl.Series([1, 2, 3, 4]))
    assert listed["propensity"].to_list() == [0.25] * 4


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=20))
def test_every_probability_above_0_passes(values):
    table = pl.DataFrame({"item_id": 1, "reward": 0.0, "propensity": values})
    assert logged_actions(table).propensities.tolist() == values
