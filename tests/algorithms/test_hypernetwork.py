"""Hypernetworks: the head is written, from its start, by a function of the support set."""

import pytest
import torch
from double_precision import assert_the_meta_gradient_is_exact, batch_of, double_world, learner_of
from toy_world import ToyWorld

from recsys_meta.algorithms.hypernetwork import AttentiveHypernetwork, Hypernetwork, RecurrentHypernetwork

CLASSES = [AttentiveHypernetwork, RecurrentHypernetwork]


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_the_meta_gradient_equals_finite_differences(
    cls: type[Hypernetwork], loss: str, world: ToyWorld
) -> None:
    learner = learner_of(cls, world, loss=loss, width=8)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("head", ["linear", "mlp"])
@torch.no_grad()
def test_every_weight_of_the_head_is_written(cls: type[Hypernetwork], head: str, world: ToyWorld) -> None:
    learner = learner_of(cls, world, head=head, hidden=(4,), width=8)
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    start, state = (how(batch.support, batch.users, codes) for how in (learner.prior, learner.adapt))
    for name in learner.head.adapted:
        moved = (
            (state[name] - start[name]).flatten(1).abs().sum(1) > 0
            if state[name].dim() > 1
            else (state[name] != start[name])
        )
        assert moved.tolist() == (batch.support.shots > 0).tolist(), name


@torch.no_grad()
def test_what_is_written_depends_on_the_order_in_the_recurrent_one_alone(world: ToyWorld) -> None:
    for cls, depends in zip(CLASSES, (False, True), strict=True):
        learner = learner_of(cls, world, width=8)
        batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
        turned = batch.support._make(part.flip(1) for part in batch.support)
        a, b = (learner.adapt(s, batch.users, codes)["user"] for s in (batch.support, turned))
        assert torch.allclose(a, b, rtol=1e-10) != depends
        assert bool(cls.order_matters) == depends


@torch.no_grad()
def test_the_change_is_the_written_out_formula(world: ToyWorld) -> None:
    learner = learner_of(RecurrentHypernetwork, world, width=8)
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    theta = learner.head.start(batch.users)
    t = 1  # one example
    item, target = batch.support.items[t, 0], batch.support.targets[t, 0]
    v = codes.vectors[item]
    s = target - (codes.bias[item] + theta["user"][t] @ v + theta["offset"][t])
    z = torch.relu(learner.tokens.layer(torch.cat([v, s * v, s[None]])))
    r = learner.pool.cell(z[None, None])[1][0, 0]
    expected = theta["user"][t] + learner.writers["user"].weight @ torch.relu(learner.hidden.weight @ r)
    torch.testing.assert_close(learner.adapt(batch.support, batch.users, codes)["user"][t], expected)
