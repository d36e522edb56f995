"""Diagnostics: the figures beside an estimate, worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_meta.ab.diagnostics import diagnose, effective_size, weight_distribution
from recsys_meta.ab.intervals import resamples
from recsys_meta.ab.off_policy import sample_of
from recsys_meta.ab.policies import supported_share
from recsys_meta.ab.synthetic_logs import WORLDS

WORLD = WORLDS["users nested"]


def test_the_figures_are_those_of_the_logs():
    logs = WORLD.logs(3000, np.random.default_rng(0))
    sample = sample_of(logs, WORLD.policy, None)
    users = int(logs.users.max()) + 1
    support = supported_share(WORLD.policy, logs)
    found = diagnose(sample, logs.clustered, logs.origin, support, kind="normal", drawn=resamples(users, 100))
    weights, clicks = sample.weights, logs.rewards
    assert (found.rows, found.users, found.clustered, found.origin) == (3000, users, True, "logged")
    assert found.rewarded_rows == int(clicks.sum())
    assert found.rewarded_users == len(set(logs.users[clicks > 0]))
    assert found.logged_value == pytest.approx(clicks.mean())
    assert found.matches == pytest.approx(sample.target.sum())
    assert found.support == pytest.approx(1.0)
    overlap = found.overlap
    assert overlap is not None
    assert overlap.mean_weight == pytest.approx(weights.mean())
    assert overlap.mean_weight_low < 1 < overlap.mean_weight_high
    assert overlap.effective_rows == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert overlap.largest_weight == weights.max()
    assert overlap.largest_share == pytest.approx(weights.max() / weights.sum())
    assert overlap.effective_rewarded_rows == pytest.approx(effective_size(weights[clicks > 0]))
    assert found.row()["effective_rows"] == overlap.effective_rows


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=50))
def test_an_effective_size_lies_between_1_and_the_rows_that_weigh_anything(weights):
    size = effective_size(np.array(weights))
    there = sum(weight > 0 for weight in weights)
    assert size == 0 or 1 - 1e-9 <= size <= there + 1e-9


@given(st.lists(st.floats(1e-6, 1e6) | st.just(0.0), min_size=1, max_size=200))
def test_a_distribution_holds_every_row_and_all_of_the_weight_once(weights):
    found = weight_distribution(np.array(weights))
    assert found["rows"].sum() == len(weights)
    assert found["share"].sum() == pytest.approx(1.0 if any(weights) else 0.0)


def test_equal_weights_are_as_many_as_they_are():
    assert effective_size(np.full(7, 3.0)) == pytest.approx(7)
    assert effective_size(np.array([1.0, 0.0, 0.0])) == 1
