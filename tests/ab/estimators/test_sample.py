"""Contributions and sums over users: one number from rows, whichever way they are cut."""

import numpy as np
import pytest

from recsys_meta.ab.estimators.sample import Contributions, Sample, UserSums, difference, user_sums

USERS = np.array([0, 0, 1, 2, 2, 2])
A = np.array([1.0, 0.0, 2.0, 1.0, 3.0, 0.0])
B = np.array([1.0, 2.0, 1.0, 0.5, 1.0, 1.0])
C = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])


def test_a_mean_is_the_mean_of_the_rows_and_not_of_the_users():
    assert user_sums(Contributions(A), USERS, 3).value == pytest.approx(A.mean())


def test_a_ratio_is_the_ratio_of_the_sums():
    assert user_sums(Contributions(A, B), USERS, 3).value == pytest.approx(A.sum() / B.sum())


@pytest.mark.parametrize("denominator", [None, B])
def test_a_direct_part_is_added_as_its_mean(denominator):
    plain = user_sums(Contributions(A, denominator), USERS, 3).value
    assert user_sums(Contributions(A, denominator, C), USERS, 3).value == pytest.approx(plain + C.mean())


def test_the_standard_error_of_one_row_per_user_is_that_of_a_mean():
    sums = user_sums(Contributions(A), np.arange(6), 6)
    assert sums.standard_error == pytest.approx(A.std(ddof=1) / np.sqrt(6))


def test_a_user_whose_rows_are_copies_counts_as_one():
    copies = user_sums(Contributions(np.repeat(A, 5)), np.repeat(np.arange(6), 5), 6)
    assert copies.standard_error == pytest.approx(A.std(ddof=1) / np.sqrt(6))


def test_the_influence_is_what_leaving_users_out_does_to_first_order():
    generator = np.random.default_rng(0)
    a, b = generator.random(400), 1 + generator.random(400)
    sums = UserSums(a, b)
    without = np.array([(a.sum() - a[u]) / (b.sum() - b[u]) for u in range(400)])
    np.testing.assert_allclose((sums.value - without) * 399, sums.influence, rtol=0.02, atol=1e-4)


def test_the_influence_of_a_mean_plus_a_ratio_is_the_sum_of_both():
    generator = np.random.default_rng(1)
    a, b, c = generator.random((3, 90))
    users = np.arange(90) % 30
    both = user_sums(Contributions(a, b, c), users, 30)
    apart = user_sums(Contributions(a, b), users, 30), user_sums(Contributions(c), users, 30)
    np.testing.assert_allclose(both.influence, apart[0].influence + apart[1].influence)


def test_a_policy_against_itself_differs_by_nothing_and_certainly():
    sums = user_sums(Contributions(A, B), USERS, 3)
    gap = difference(sums, sums, np.array([2.0, 1.0, 3.0]))
    assert (gap.value, gap.standard_error) == (0.0, 0.0)


def test_the_difference_of_two_means_is_the_mean_difference_of_the_rows():
    rows = np.ones(6)
    left, right = (user_sums(Contributions(values), np.arange(6), 6) for values in (A, B))
    gap = difference(left, right, rows)
    assert gap.value == pytest.approx((A - B).mean())
    assert gap.standard_error == pytest.approx((A - B).std(ddof=1) / np.sqrt(6))


def test_weights_without_propensities_are_refused():
    with pytest.raises(ValueError, match="no propensities"):
        _ = Sample(USERS, A, None, A).weights
