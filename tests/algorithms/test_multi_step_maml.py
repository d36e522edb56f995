"""MAML's multi-step loss: its weights, its gradient, and what is left of it in the end."""

import pytest
import torch
from double_precision import (
    assert_the_meta_gradient_is_exact,
    batch_of,
    double_world,
    learner_of,
    meta_gradient,
)
from toy_world import ToyWorld

from recsys_meta.algorithms.maml import MAML
from recsys_meta.algorithms.multi_step_maml import MultiStepMAML


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


def test_the_weights_of_steps_fall_from_equal_to_the_last_alone(world: ToyWorld) -> None:
    learner = MultiStepMAML(world.sizes, dim=3, num_steps=4, annealing=10)
    found = {}
    for steps in (0, 5, 10, 99):
        learner.trained_steps.fill_(steps)
        found[steps] = learner.step_weights().tolist()
    assert found == {
        0: [0.25, 0.25, 0.25, 0.25],
        5: [0.125, 0.125, 0.125, 0.625],
        10: [0.0, 0.0, 0.0, 1.0],
        99: [0.0, 0.0, 0.0, 1.0],
    }


def test_the_meta_gradient_equals_finite_differences(world: ToyWorld) -> None:
    learner = learner_of(MultiStepMAML, world, num_steps=3, annealing=10)
    learner.trained_steps.fill_(4)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


def test_the_loss_is_the_weighted_mean_of_those_of_fewer_steps(world: ToyWorld) -> None:
    learner = learner_of(MultiStepMAML, world, num_steps=3, annealing=10)
    learner.trained_steps.fill_(4)
    batch = batch_of(world, learner)
    expected = torch.zeros((), dtype=torch.float64)
    for steps, weight in ((1, 0.2), (2, 0.2), (3, 0.6)):
        learner.num_steps = steps
        expected += weight * MAML.meta_loss(learner, batch).detach()
    learner.num_steps = 3
    torch.testing.assert_close(learner.meta_loss(batch).detach(), expected)


def test_after_annealing_it_is_maml_and_only_training_counts(world: ToyWorld) -> None:
    multi, maml = (learner_of(cls, world, num_steps=3) for cls in (MultiStepMAML, MAML))
    batch = batch_of(world, maml)
    multi.trained_steps.fill_(multi.annealing)
    multi.meta_loss(batch)
    assert multi.trained_steps == multi.annealing
    torch.testing.assert_close(meta_gradient(multi, batch), meta_gradient(maml, batch))
    multi.train().meta_loss(batch)
    assert multi.trained_steps == multi.annealing + 1
    with pytest.raises(ValueError, match="annealing is at least 1; found 0"):
        MultiStepMAML(world.sizes, annealing=0)
