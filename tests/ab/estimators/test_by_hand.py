"""Every estimator against a case worked by hand."""

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab.estimators import doubly_robust as dr
from recsys_meta.ab.estimators.embeddings import marginal_weights
from recsys_meta.ab.estimators.importance import ips, snips, sub_gaussian_ips
from recsys_meta.ab.estimators.registry import ESTIMATORS, refused
from recsys_meta.ab.estimators.replay import replay
from recsys_meta.ab.estimators.sample import Sample, UserSums, user_sums
from recsys_meta.ab.estimators.selection import least_error, slope
from recsys_meta.ab.estimators.weights import clipped, shrinking, shrunk, sub_gaussian, switched, thresholds
from recsys_meta.ab.logged_actions import logged_actions
from recsys_meta.ab.off_policy import fitted_models, off_policy
from recsys_meta.ab.policies import from_table

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
    ("name", "setting", "expected"),
    [
        # Weights 2, 1/2, 1, 0 become 1, 1/2, 1, 0; rewards 1, 1, 0, 1.
        ("clipped IPS", 1.0, 1.5 / 4),
        # w / (1/2 + w/2): 2 / 1.5, .5 / .75, 1 / 1, 0 / .5 = 4/3, 2/3, 1, 0. Times the rewards: 4/3 + 2/3 = 2.
        ("sub-Gaussian", 0.5, 2 / 4),
        ("sub-Gaussian", 0.0, 2.5 / 4),  # IPS
        # The weight of 2 is above the threshold: its .4 of the weighted residuals' .5 goes, .3 - .2 = .1 stays.
        ("Switch-DR", 1.0, 1.4 / 4 + 0.1 / 4),
        ("Switch-DR", 0.0, 1.4 / 4),  # DM
        ("Switch-DR", 2.0, 1.4 / 4 + 0.5 / 4),  # DR
        # 4 w / (w^2 + 4): 8/8, 2/4.25, 4/5, 0. Times the residuals .2, .6, -.2, .9: .2 + 1.2/4.25 - .16.
        ("DRos", 4.0, 1.4 / 4 + (0.2 + 1.2 / 4.25 - 0.16) / 4),
    ],
)
def test_under_a_fixed_setting_the_estimate_is_the_one_worked_by_hand(name, setting, expected):
    contributions, note = ESTIMATORS[name].applied(CASE, {name: setting})
    assert contributions.setting == setting
    assert f"fixed at {setting:g}" in note
    assert user_sums(contributions, CASE.users, 4).value == pytest.approx(expected, rel=1e-12)


def test_the_sub_gaussian_estimate_that_the_logs_choose_is_the_one_worked_by_hand():
    # 99 users of weight 1 and one of weight 100, all rewarded. At l a weight of 1 stays 1 and 100 becomes 100 / (1 + 99 l), which
    # is above 1 by 99 (1 - l) / (1 + 99 l). One user in a hundred that is off by e moves the mean by e / 100, with a standard
    # error of e / 100 too. So with x = .99 (1 - l) / (1 + 99 l) the estimate is 1 + x, its error x, and what it is away from IPS
    # .99 - x, with that for its error: the bound that is to be least is x^2 + (2 (.99 - x))^2.
    #   l      x                               bound
    #   0      .99                             .9801
    #   .001   .98901 / 1.099 = .899918        .809852 + .032459 = .842312
    #   .003   .98703 / 1.297 = .761010        .579137 + .209745 = .788882   the least
    #   .01    .9801  / 1.99  = .492513        .242569 + .989977 = 1.232546
    #   .03, .1, .3: x below .25, hence above 4 (.74)^2 = 2.19
    weights = np.array([1.0] * 99 + [100.0])
    sample = Sample(np.arange(100), np.ones(100), np.full(100, 0.01), 0.01 * weights)
    found = user_sums(sub_gaussian_ips(sample), sample.users, 100)
    assert sub_gaussian_ips(sample).setting == 0.003
    assert found.value == pytest.approx(1.0 + 0.98703 / 1.297, rel=1e-12)
    assert found.standard_error == pytest.approx(0.98703 / 1.297, rel=1e-12)


def test_mrdr_is_the_one_worked_by_hand_its_model_included():
    # Four users of one row each, all of action a; weights 2, 1/2, 1, 0 and rewards 2, 1, 0, 3. Fitted on the three other users
    # (four folds), of which trees that need 20 rows to a leaf make no more than a constant: the mean of their rewards under the
    # squared weights 4, 1/4, 1, 0.
    #   q_1 = (1/4 * 1 + 1 * 0) / (5/4) = 1/5         q_2 = (4 * 2 + 1 * 0) / 5 = 8/5
    #   q_3 = (4 * 2 + 1/4 * 1) / (17/4) = 33/17      q_4 = (4 * 2 + 1/4 * 1 + 1 * 0) / (21/4) = 11/7
    # v = q, for q is the same for both actions. w (r - q) = 2 * 9/5, 1/2 * -3/5, -33/17, 0, so
    #   V = (1/5 + 8/5 + 33/17 + 11/7 + 18/5 - 3/10 - 33/17) / 4 = (51/10 + 11/7) / 4
    # With the unweighted q of DR (4/3, 5/3, 2, 1): (6 + 2 * 2/3 - 1/2 * 2/3 - 2) / 4 = 5/4.
    table = pl.DataFrame(
        {
            "user_id": [1, 2, 3, 4],
            "item_id": ["a"] * 4,
            "situation": ["1", "2", "3", "4"],
            "propensity": [0.25, 0.5, 0.5, 0.25],
            "reward": [2.0, 1.0, 0.0, 3.0],
        }
    )
    logs = logged_actions(table, context=("situation",), origin="logged")
    shares = [0.5, 0.25, 0.5, 0.0]
    target = pl.DataFrame(
        [
            (str(n + 1), item, p)
            for n, share in enumerate(shares)
            for item, p in (("a", share), ("b", 1 - share))
        ],
        schema=["situation", "item_id", "probability"],
        orient="row",
    )
    policy = from_table("by hand", target, ("situation",))
    found = off_policy(logs, policy, models=fitted_models(logs, "boosting", folds=4)).estimates
    values = dict(found.select("estimator", "value").iter_rows())
    assert values["MRDR"] == pytest.approx(
        (5.1 + 11 / 7) / 4, rel=1e-6
    )  # trees keep their sums in single precision
    assert values["DR"] == pytest.approx(5 / 4, rel=1e-6)


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


@pytest.mark.parametrize(
    ("fixed", "wanted", "sentences"),
    [
        ({"Switch-DR": 0.0, "clipped IPS": 0.1, "DRos": 1e9, "sub-Gaussian": 0.0}, (), []),
        ({"Switch-DR": -1.0}, (), ["Switch-DR: expected a threshold from 0; found -1"]),
        ({"clipped IPS": 0.0}, (), ["clipped IPS: expected a threshold above 0; found 0"]),
        ({"DRos": 0.0}, (), ["DRos: expected a shrinkage above 0; found 0"]),
        ({"sub-Gaussian": 1.0}, (), ["sub-Gaussian: expected a shrinkage from 0 below 1; found 1"]),
        ({"SNIPS": 1.0}, (), ["'SNIPS' chooses nothing; expected some of clipped IPS, sub-Gaussian, Switch-DR, DRos"]),
        ({"Switch": 1.0}, (), ["'Switch' is not known here; expected some of clipped IPS, sub-Gaussian, Switch-DR, DRos"]),
        ({"DRos": 1.0}, ("IPS", "DR"), ["DRos is fixed, and not among the estimators IPS, DR"]),
    ],
)  # fmt: skip
def test_a_fixed_setting_that_may_not_be_is_refused_with_what_is_expected(fixed, wanted, sentences):
    assert refused(fixed, wanted) == sentences
