"""Reward models: what they learn, and that nobody is judged by a model that saw him."""

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab import reward_models
from recsys_meta.ab.logged_actions import LogsError, logged_actions
from recsys_meta.ab.policies import from_table, uniform
from recsys_meta.ab.synthetic_logs import WORLDS

WORLD = WORLDS["good overlap"]


@pytest.fixture(scope="module")
def logs():
    return WORLD.logs(8000, np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_the_model_is_calibrated_and_near_the_truth(kind, logs):
    model = reward_models.fit(logs, kind=kind)
    rewards = model.rewards(logs)
    assert rewards.mean() == pytest.approx(logs.rewards.mean(), abs=0.005)
    truth = WORLD.rewards[logs.table["situation"].cast(pl.Int64), logs.table["item_id"]]
    assert np.corrcoef(rewards, truth)[0, 1] > (
        0.3 if kind == "logistic" else 0.9
    )  # which knows no interactions


@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_the_value_of_a_policy_that_always_takes_the_logged_action_is_the_predicted_reward(kind):
    rows = pl.DataFrame(
        {
            "user_id": range(40),
            "item_id": [n % 3 for n in range(40)],
            "reward": [float(n % 2) for n in range(40)],
        }
    )
    logs = logged_actions(
        rows.with_columns(hour=pl.col("item_id").cast(pl.String)), context=["hour"], origin="none"
    )
    policy = from_table(
        "as shown",
        pl.DataFrame({"hour": ["0", "1", "2"], "item_id": [0, 1, 2], "probability": 1.0}),
        ["hour"],
    )
    model = reward_models.fit(logs, kind=kind)
    np.testing.assert_allclose(model.values(logs, policy), model.rewards(logs))


def test_the_value_is_the_mean_of_the_predictions_under_the_policy(logs):
    model = reward_models.fit(logs)
    found = model.values(logs, WORLD.policy)[:50]
    for row in range(5):
        situation = int(logs.table["situation"][row])
        every = logs.table.head(1).select("situation").join(pl.DataFrame({"item_id": range(10)}), how="cross")
        every = every.with_columns(
            situation=pl.lit(str(situation)), reward=pl.lit(0.0), propensity=pl.lit(1.0)
        )
        other = logged_actions(every, context=["situation"])
        of_fold = model._replace(folds=np.full(10, model.folds[row]))
        expected = of_fold.rewards(other) @ WORLD.target[situation]
        assert found[row] == pytest.approx(expected)


def test_the_rewards_of_a_user_do_not_reach_his_own_prediction(logs):
    model = reward_models.fit(logs)
    user = logs.table["user_id"] == logs.table["user_id"][0]
    changed = logs.table.with_columns(reward=pl.when(user).then(1 - pl.col("reward")).otherwise("reward"))
    other = reward_models.fit(logged_actions(changed, context=["situation"]))
    mine = user.to_numpy()
    assert (model.rewards(logs)[mine] == other.rewards(logs)[mine]).all()
    assert (model.rewards(logs)[~mine] != other.rewards(logs)[~mine]).any()


def test_all_rows_of_a_user_are_in_one_fold():
    nested = WORLDS["users nested"].logs(2000, np.random.default_rng(0))
    folds = reward_models.fit(nested).folds
    assert len(set(zip(nested.users, folds, strict=True))) == nested.users.max() + 1
    assert set(folds) == set(range(5))


def test_rows_weigh_as_they_are_told(logs):
    rows = pl.DataFrame({"item_id": [0, 0] * 50, "reward": [0.0, 1.0] * 50})
    flat = logged_actions(rows, origin="none")
    weights = np.tile([3.0, 1.0], 50)
    assert reward_models.fit(flat).rewards(flat) == pytest.approx(0.5, abs=0.1)
    assert reward_models.fit(flat, weights=weights).rewards(flat) == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_rewards_that_are_no_clicks_are_fitted_by_squares(kind):
    rows = pl.DataFrame({"item_id": [0, 1] * 200, "reward": [2.5, -4.0] * 200})
    logs = logged_actions(rows, origin="none")
    assert reward_models.fit(logs, kind=kind).rewards(logs) == pytest.approx(logs.rewards, abs=0.1)


def test_what_nobody_ever_clicked_is_predicted_as_nothing():
    logs = logged_actions(pl.DataFrame({"item_id": [0, 1] * 20, "reward": 0.0}), origin="none")
    assert (reward_models.fit(logs).rewards(logs) == 0).all()


def test_unseen_and_missing_values_get_a_prediction():
    rows = pl.DataFrame(
        {"item_id": range(400), "reward": [float(n % 2) for n in range(400)], "city": [None, "x"] * 200}
    )
    logs = logged_actions(rows, context=["city"], origin="none")
    for kind in ("logistic", "boosting"):
        assert np.isfinite(reward_models.fit(logs, kind=kind).rewards(logs)).all()


def test_one_user_is_not_enough():
    logs = logged_actions(pl.DataFrame({"user_id": 1, "item_id": [1, 2], "reward": 0.0}), origin="none")
    with pytest.raises(LogsError, match="one user"):
        reward_models.fit(logs)


def test_a_context_of_lists_is_refused():
    logs = logged_actions(
        pl.DataFrame({"item_id": [1, 2], "reward": 0.0, "tags": [["a"], []]}), context=["tags"], origin="none"
    )
    with pytest.raises(LogsError, match="'tags' is of type"):
        reward_models.fit(logs)


def test_a_world_without_situations_has_one_value_for_each_fold():
    logs = logged_actions(pl.DataFrame({"item_id": [0, 1] * 50, "reward": [0.0, 1.0] * 50}), origin="none")
    model = reward_models.fit(logs)
    values = model.values(logs, uniform(logs))
    assert values == pytest.approx(0.5, abs=0.05)
    assert len(set(values)) <= 5
