"""Laws that estimators share: unbiasedness by enumeration, and what must not change an estimate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bandit import VALUE, all_logs, random_sample

from recsys_meta.ab.estimators.registry import ESTIMATORS, available
from recsys_meta.ab.estimators.sample import Sample, user_sums

UNBIASED = ("IPS", "DR")
CONSISTENT = ("IPS", "SNIPS", "DR", "SNDR", "clipped IPS", "sub-Gaussian", "Switch-DR")
SHIFTED = ("SNIPS", "Replay")  # by the same as the rewards


def value(name: str, sample: Sample) -> float:
    """The estimate."""
    return user_sums(ESTIMATORS[name].contributions(sample), sample.users, int(sample.users.max()) + 1).value


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_mean_over_every_possible_log_is_the_value_of_the_policy(name, rows):
    total = sum(probability * value(name, sample) for probability, sample in all_logs(rows))
    assert total == pytest.approx(VALUE, abs=1e-12)


def test_doubly_robust_is_unbiased_under_wrong_propensities_where_the_model_is_right():
    from small_bandit import CLICKS, TARGET

    total = 0.0
    for probability, sample in all_logs(1):
        # The situation and the action of the only row follow from its probabilities.
        x = int(sample.propensities[0] in (0.3, 0.7))
        a = int(sample.propensities[0] in (0.4, 0.7))
        right = sample._replace(
            propensities=np.array([0.5]),
            model_value=np.array([(CLICKS * TARGET)[x].sum()]),
            model_reward=np.array([CLICKS[x, a]]),
        )
        total += probability * value("DR", right)
    assert total == pytest.approx(VALUE, abs=1e-12)


@given(seed=st.integers(0, 10_000), rows=st.integers(6, 60))
def test_where_the_target_is_the_logging_policy_the_estimate_is_the_mean_reward(seed, rows):
    sample = random_sample(rows, 5, seed)
    same = sample._replace(target=sample.propensities)
    for name in ("IPS", "SNIPS", "clipped IPS", "sub-Gaussian", "MIPS"):
        assert value(name, same) == pytest.approx(sample.rewards.mean()), name


@given(seed=st.integers(0, 10_000), rows=st.integers(6, 60))
def test_the_order_of_the_rows_does_not_matter(seed, rows):
    sample = random_sample(rows, 5, seed)
    order = np.random.default_rng(seed).permutation(rows)
    mixed = Sample(*(None if column is None else column[order] for column in sample))
    for estimator in available(sample):
        assert value(estimator.name, mixed) == pytest.approx(value(estimator.name, sample)), estimator.name


@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5))
def test_a_shift_of_the_rewards_shifts_the_estimate_by_as_much(seed, shift):
    sample = random_sample(40, 5, seed)
    moved = sample._replace(rewards=sample.rewards + shift)
    for name in SHIFTED:
        assert value(name, moved) == pytest.approx(value(name, sample) + shift), name
    both = moved._replace(model_value=sample.model_value + shift, model_reward=sample.model_reward + shift)
    for name in ("DR", "SNDR", "DM"):
        assert value(name, both) == pytest.approx(value(name, sample) + shift), name


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_the_unit_of_the_rewards_is_the_unit_of_the_estimate(seed, scale):
    sample = random_sample(40, 5, seed)
    other = sample._replace(
        rewards=sample.rewards * scale,
        model_value=sample.model_value * scale,
        model_reward=sample.model_reward * scale,
        robust_value=sample.robust_value * scale,
        robust_reward=sample.robust_reward * scale,
    )
    for estimator in available(sample):
        assert value(estimator.name, other) == pytest.approx(value(estimator.name, sample) * scale), (
            estimator.name
        )


def test_a_model_of_nothing_makes_dr_ips():
    sample = random_sample(50, 5, 0)
    nothing = sample._replace(model_value=np.zeros(50), model_reward=np.zeros(50))
    assert value("DR", nothing) == pytest.approx(value("IPS", sample))
    assert value("SNDR", nothing) == pytest.approx(value("SNIPS", sample))


def test_a_perfect_model_makes_dr_dm():
    sample = random_sample(50, 5, 0)
    perfect = sample._replace(model_reward=sample.rewards)
    for name in ("DR", "SNDR", "Switch-DR", "DRos"):
        assert value(name, perfect) == pytest.approx(value("DM", sample)), name


@pytest.mark.parametrize("name", CONSISTENT)
def test_with_many_rows_the_estimate_is_near_the_value(name):
    sample = random_sample(200_000, 1000, 3)
    # Actions are logged uniformly there, whatever the table of the small bandit says.
    sample = sample._replace(propensities=np.full(200_000, 0.5))
    assert value(name, sample) == pytest.approx(VALUE, abs=0.01)


def test_only_what_a_sample_has_everything_for_is_computed():
    sample = random_sample(10, 5, 0)
    assert [estimator.name for estimator in available(sample)] == list(ESTIMATORS)
    bare = Sample(sample.users, sample.rewards, None, sample.target)
    assert [estimator.name for estimator in available(bare)] == ["Replay"]
    weighted = bare._replace(propensities=sample.propensities)
    assert [estimator.name for estimator in available(weighted)] == [
        "Replay", "IPS", "clipped IPS", "SNIPS", "sub-Gaussian",
    ]  # fmt: skip
