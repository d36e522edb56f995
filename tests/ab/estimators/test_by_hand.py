"""Every estimator against a case worked by hand."""

import numpy as np
import pytest

from recsys_meta.ab.estimators import doubly_robust as dr
from recsys_meta.ab.estimators.embeddings import marginal_weights
from recsys_meta.ab.estimators.importance import ips, snips
from recsys_meta.ab.estimators.replay import replay
from recsys_meta.ab.estimators.sample import Sample, UserSums, user_sums
from recsys_meta.ab.estimators.selection import least_error, slope
from recsys_meta.ab.estimators.weights import clipped, shrinking, shrunk, sub_gaussian, switched, thresholds

# Weights 2, 1/2, 1 and 0.
CASE = Sample(
    users=np.arange(4),
    rewards=np.array([1.0, 1.0, 0.0, 1.0]),
    propensities=np.array([0.25, 0.5, 0.5, 0.25]),
    target=np.array([0.5, 0.25, 0.5, 0.0]),
    model_value=np.array([0.5, 0.4, 0.3, 0.2]),
    model_reward=np.array([0.8, 0.4, 0.2, 0.1]),
)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (replay, 0.75 / 1.25),  # matches of probability 1/2, 1/4, 1/2, 0
        (ips, 2.5 / 4),
        (snips, 2.5 / 3.5),
        (dr.direct, 1.4 / 4),
        # Weighted residuals: 2 * .2 + .5 * .6 + 1 * -.2 = .5
        (dr.doubly_robust, 1.4 / 4 + 0.5 / 4),
        (dr.self_normalized_doubly_robust, 1.4 / 4 + 0.5 / 3.5),
    ],
)
def test_the_estimate_is_the_one_worked_by_hand(estimator, expected):
    assert user_sums(estimator(CASE), CASE.users, 4).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (clipped(CASE.weights, 1.0), [1.0, 0.5, 1.0, 0.0]),
        (switched(CASE.weights, 1.0), [0.0, 0.5, 1.0, 0.0]),
        (shrunk(CASE.weights, 4.0), [1.0, 2 / 4.25, 4 / 5, 0.0]),
        (shrunk(CASE.weights, float("inf")), [2.0, 0.5, 1.0, 0.0]),
        (sub_gaussian(CASE.weights, 0.5), [4 / 3, 2 / 3, 1.0, 0.0]),
        (sub_gaussian(CASE.weights, 0.0), [2.0, 0.5, 1.0, 0.0]),
    ],
)
def test_the_weights_are_those_worked_by_hand(weights, expected):
    np.testing.assert_allclose(weights, expected)


def test_settings_begin_with_the_weights_as_they_are_and_end_with_the_smallest():
    cuts = thresholds(CASE.weights)
    assert cuts[0] == float("inf")
    assert list(cuts) == sorted(cuts, reverse=True)
    assert shrinking(CASE.weights).settings[1] == pytest.approx(cuts[1] ** 2)


def test_nothing_is_chosen_where_all_weights_are_nothing():
    assert thresholds(np.zeros(3)) == (float("inf"),)


def test_a_marginal_weight_is_the_mean_of_the_other_users_in_the_cell():
    users = np.array([0, 0, 1, 2, 3])
    cells = np.array([0, 0, 0, 0, 1])
    target = np.array([1.0, 3.0, 5.0, 7.0, 9.0])
    sample = Sample(users, np.ones(5), np.ones(5), target, embeddings=cells)
    # Of user 0: (5 + 7) / 2; of user 1: (1 + 3 + 7) / 3; of user 2: (1 + 3 + 5) / 3; user 3 is alone in its cell.
    np.testing.assert_allclose(marginal_weights(sample), [6, 6, 11 / 3, 3, 9])


def spread(value: float, half: float, users: int = 100) -> UserSums:
    """Sums of that value, with a 95 % interval of that half-width."""
    noise = np.tile([1.0, -1.0], users // 2)
    error = np.sqrt(users / (users - 1) / users)
    return UserSums(value + noise * half / 1.959964 / error, np.ones(users))


def test_slope_goes_on_until_a_bias_shows_beyond_the_noise():
    # With half-widths 1, .5 and .1: the second may be off by .5 + 1.449, the third by .1 + 1.449 (and .1 + .725 from the second).
    assert slope([spread(0.0, 1.0), spread(1.9, 0.5)]) == 1
    assert slope([spread(0.0, 1.0), spread(2.0, 0.5)]) == 0
    assert slope([spread(0.0, 1.0), spread(1.0, 0.5), spread(1.5, 0.1)]) == 2
    assert slope([spread(0.0, 1.0), spread(1.0, 0.5), spread(1.6, 0.1)]) == 1
    assert slope([spread(0.0, 1.0)]) == 0


def test_the_least_error_weighs_variance_against_bias():
    noise = np.tile([1.0, -1.0], 50)
    unbiased = UserSums(noise, np.ones(100))  # standard error .1
    # Nine tenths of the noise gone, known to .09: .01^2 + (bias + .09)^2 is less than .1^2 while the bias is less than .0095.
    for bias, chosen in ((0.0, 1), (0.009, 1), (0.011, 0), (-0.011, 0)):
        assert least_error([unbiased, UserSums(bias + noise / 10, np.ones(100))]) == chosen, bias
    assert least_error([unbiased, unbiased]) == 0
