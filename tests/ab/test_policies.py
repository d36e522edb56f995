"""Policies: probabilities that add up, matched to the logs by situation, refused where they say nothing."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_meta.ab.logged_actions import LogsError, logged_actions
from recsys_meta.ab.policies import (
    as_logged,
    from_column,
    from_table,
    softmax,
    supported_share,
    target_probabilities,
    uniform,
)

LOGS = logged_actions(
    pl.DataFrame(
        {
            "user_id": [1, 1, 2, 2],
            "item_id": [10, 20, 10, 30],
            "position": [1, 1, 2, 2],
            "reward": 0.0,
            "propensity": 0.5,
            "hour": ["am", "pm", "am", "pm"],
        }
    ),
    context=["hour"],
)


def test_uniform_is_over_the_actions_of_each_position():
    assert target_probabilities(uniform(LOGS), LOGS).tolist() == [0.5, 0.5, 0.5, 0.5]
    listed = uniform(LOGS, pl.Series([10, 20, 30, 40, 50]))
    assert target_probabilities(listed, LOGS).tolist() == [0.2] * 4


def test_a_table_is_matched_by_its_keys_and_what_it_leaves_out_is_never_taken():
    table = pl.DataFrame(
        {"hour": ["am", "am", "pm"], "item_id": [10, 40, 20], "probability": [0.3, 0.7, 1.0]}
    )
    policy = from_table("mine", table, ["hour"])
    assert target_probabilities(policy, LOGS).tolist() == [0.3, 1.0, 0.3, 0.0]


def test_the_order_of_the_probabilities_is_that_of_the_logs():
    size = 5000
    generator = np.random.default_rng(0)
    items = generator.integers(50, size=size)
    logs = logged_actions(pl.DataFrame({"item_id": items, "reward": 0.0, "propensity": 1.0}))
    weights = generator.random(50)
    table = pl.DataFrame({"item_id": range(50), "probability": weights / weights.sum()})
    np.testing.assert_allclose(
        target_probabilities(from_table("p", table, []), logs), (weights / weights.sum())[items]
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("am", 10, 0.5), ("pm", 20, 1.0)], "1 of 2 situations do not add up to 1"),
        ([("am", 10, 1.2), ("am", 20, -0.2), ("pm", 20, 1.0)], "1.2"),
        ([("am", 10, 0.5), ("am", 10, 0.5), ("pm", 20, 1.0)], "more than once"),
    ],
)
def test_a_table_that_is_no_policy_is_refused(rows, message):
    table = pl.DataFrame(rows, schema=["hour", "item_id", "probability"], orient="row")
    with pytest.raises(LogsError, match=message):
        from_table("mine", table, ["hour"])


def test_a_policy_has_to_speak_of_every_situation_of_the_logs():
    policy = from_table(
        "mine", pl.DataFrame({"hour": ["am"], "item_id": [10], "probability": [1.0]}), ["hour"]
    )
    with pytest.raises(LogsError, match=r"says nothing about 1 of 2 situations .*'pm'"):
        target_probabilities(policy, LOGS)


def test_a_policy_of_what_the_logs_do_not_have_is_refused():
    policy = from_table("mine", pl.DataFrame({"day": [1], "item_id": [10], "probability": [1.0]}), ["day"])
    with pytest.raises(LogsError, match=r"depends on \['day'\]"):
        target_probabilities(policy, LOGS)


def test_ids_of_another_type_are_refused():
    policy = from_table("mine", pl.DataFrame({"item_id": ["10"], "probability": [1.0]}), [])
    with pytest.raises(LogsError, match="expected one type"):
        target_probabilities(policy, LOGS)


def test_an_id_that_does_not_fit_the_width_of_the_logs_is_told():
    narrow = LOGS._replace(table=LOGS.table.with_columns(pl.col("item_id").cast(pl.Int8)))
    policy = from_table("mine", pl.DataFrame({"item_id": [300], "probability": [1.0]}), [])
    with pytest.raises(LogsError, match="policy 'mine': item_id 300 does not fit Int8"):
        target_probabilities(policy, narrow)


def scores_of(values: list[float]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": 1, "item_id": range(len(values)), "score": values})


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=10), st.floats(0.1, 10))
def test_a_softmax_has_the_odds_of_its_scores(values, temperature):
    probabilities = softmax(scores_of(values), temperature).table["probability"].to_numpy()
    assert probabilities.sum() == pytest.approx(1.0)
    expected = np.exp((np.array(values) - max(values)) / temperature)
    np.testing.assert_allclose(probabilities, expected / expected.sum(), atol=1e-12)


def test_a_softmax_near_temperature_0_takes_the_best_and_none_at_0():
    assert softmax(scores_of([1.0, 3.0, 2.0]), 1e-3).table["probability"].to_list() == pytest.approx(
        [0, 1, 0]
    )
    with pytest.raises(LogsError, match="above 0"):
        softmax(scores_of([1.0]), 0.0)


@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
def test_a_softmax_however_cold_is_the_best_and_equals_share(temperature):
    table = softmax(scores_of([1e30, -3e38, 1e30, 2.0]), temperature).table
    assert table["probability"].to_list() == [0.5, 0.0, 0.5, 0.0]


def test_another_behaviour_is_the_shares_of_its_actions():
    other = pl.DataFrame({"position": [1, 1, 1, 2], "item_id": [10, 10, 20, 30]})
    policy = as_logged(other, ["position"])
    assert target_probabilities(policy, LOGS) == pytest.approx([2 / 3, 1 / 3, 0.0, 1.0])
    assert "estimated" in policy.note


def test_support_is_the_share_of_the_target_on_actions_seen_at_the_position():
    assert supported_share(uniform(LOGS), LOGS) == pytest.approx(1.0)
    # Of 10, 20, 30, 40: two are seen at each position.
    assert supported_share(uniform(LOGS, pl.Series([10, 20, 30, 40])), LOGS) == pytest.approx(0.5)
    table = pl.DataFrame(
        {"hour": ["am", "am", "pm"], "item_id": [10, 40, 20], "probability": [0.3, 0.7, 1.0]}
    )
    # am at 1 and 2: .3 each; pm at 1: 1, and at 2 never.
    assert supported_share(from_table("mine", table, ["hour"]), LOGS) == pytest.approx(
        (0.3 + 0.3 + 1.0 + 0.0) / 4
    )


def test_a_policy_may_stand_in_a_column_of_the_logs():
    table = LOGS.table.with_columns(new=pl.Series([0.0, 0.5, 1.0, 0.25]))
    logs = logged_actions(table, context=["hour"], probabilities=["new"])
    policy = from_column("new")
    assert target_probabilities(policy, logs).tolist() == [0.0, 0.5, 1.0, 0.25]
    assert supported_share(policy, logs) is None
    with pytest.raises(LogsError, match="no column 'new'"):
        target_probabilities(policy, LOGS)
    wrong = logged_actions(table.with_columns(new=2.0), probabilities=["new"])
    with pytest.raises(LogsError, match=r"2\.0 in row 1 .*from 0 to 1"):
        target_probabilities(policy, wrong)
