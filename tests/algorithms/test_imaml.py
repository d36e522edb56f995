"""The implicit meta-gradient against the closed form of a quadratic, and against finite differences elsewhere."""

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

from recsys_meta.algorithms.imaml import IMAML, conjugate_gradient
from recsys_meta.algorithms.ridge import Ridge


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


def test_of_squared_error_loss_and_meta_gradient_are_those_of_the_closed_form(world: ToyWorld) -> None:
    implicit, closed = learner_of(IMAML, world, num_steps=1), learner_of(Ridge, world)
    closed.load_state_dict(implicit.state_dict())
    batch = batch_of(world, closed)
    torch.testing.assert_close(implicit.meta_loss(batch), closed.meta_loss(batch), rtol=1e-10, atol=0)
    expected = meta_gradient(closed, batch)
    assert set(expected) == {name for name, p in closed.named_parameters() if p.numel()}
    torch.testing.assert_close(meta_gradient(implicit, batch), expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_the_meta_gradient_equals_finite_differences_at_the_solution(loss: str, world: ToyWorld) -> None:
    learner = learner_of(IMAML, world, loss=loss, dim=2, num_steps=8, cg_steps=3)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


def test_the_meta_gradient_does_not_depend_on_the_way_to_the_solution(world: ToyWorld) -> None:
    gradients = []
    for steps in (12, 24):
        learner = learner_of(IMAML, world, loss="bpr", num_steps=steps)
        gradients.append(meta_gradient(learner, batch_of(world, learner)))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_conjugate_gradient_solves_every_system_in_as_many_steps_as_it_has_unknowns() -> None:
    draw = torch.Generator().manual_seed(0)
    roots = torch.randn(4, 6, 6, generator=draw, dtype=torch.float64)
    matrices = roots @ roots.mT + torch.eye(6, dtype=torch.float64)
    matrices[0] = torch.eye(6)  # solved in one step, then has to wait
    right = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    right[1] = 0
    found = conjugate_gradient(lambda v: (torch.einsum("tij,tj->ti", matrices, v),), right, steps=12)
    torch.testing.assert_close(found, torch.linalg.solve(matrices, right), rtol=1e-8, atol=1e-10)


def test_what_has_no_curvature_is_refused(world: ToyWorld) -> None:
    with pytest.raises(ValueError, match="a loss with curvature"):
        IMAML(world.sizes, loss="absolute")
    with pytest.raises(ValueError, match="expected a linear head"):
        IMAML(world.sizes, head="mlp")
