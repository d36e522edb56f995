"""Meta-SGD: one step whose every entry has a rate of its own, of either sign."""

import pytest
import torch
from double_precision import assert_the_meta_gradient_is_exact, batch_of, double_world, learner_of
from toy_world import ToyWorld

from recsys_meta.algorithms.meta_sgd import MetaSGD


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


@pytest.mark.parametrize(
    "settings", [{"loss": "squared"}, {"loss": "logistic", "head": "mlp", "hidden": (4,)}]
)
def test_the_meta_gradient_equals_finite_differences(settings: dict, world: ToyWorld) -> None:
    learner = learner_of(MetaSGD, world, **settings)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


def test_the_step_is_the_gradient_of_the_mean_support_loss_times_a_rate_per_entry(world: ToyWorld) -> None:
    learner = learner_of(MetaSGD, world)
    rates = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)  # one goes uphill, one stays
    with torch.no_grad():
        learner.step_size["user"].copy_(rates[None])
        learner.shot_power.zero_()
    batch = batch_of(world, learner)
    codes = learner.encode(world.catalogue)._replace(log_popularity=None)
    theta = {
        name: w.detach().requires_grad_() for name, w in learner.prior(*batch[:1], batch.users, codes).items()
    }
    loss = learner.task_loss(theta, batch.support, codes).sum()
    (slope,) = torch.autograd.grad(loss, theta["user"], retain_graph=True)
    state = learner.adapt(batch.support, batch.users, codes)
    torch.testing.assert_close(state["user"], theta["user"] - rates * slope)
    assert slope[1:].abs().min() > 0


def test_the_rates_are_the_only_thing_learned_about_the_step(world: ToyWorld) -> None:
    learner = MetaSGD(world.sizes, dim=3)
    assert not learner.shot_power.requires_grad
    assert not learner.pull.numel()
    assert {name: tuple(r.shape) for name, r in learner.step_size.items()} == {"user": (1, 3), "offset": (1,)}
    with pytest.raises(ValueError, match="found settings num_steps, pull, which the algorithm fixes"):
        MetaSGD(world.sizes, pull=0.1, num_steps=2)
