"""The closed form against sklearn, against its own optimality condition, and its gradient against finite differences."""

import pytest
import torch
from double_precision import assert_the_meta_gradient_is_exact, batch_of, double_world, learner_of
from sklearn.linear_model import Ridge as SklearnRidge
from toy_world import ToyWorld, padded, toy_world

from recsys_meta.algorithms.ridge import Ridge, posterior_change
from recsys_meta.tensors import Examples


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


def task(examples: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((3, examples, columns), (3, examples))
    inputs, targets = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return inputs, targets


@pytest.mark.parametrize("examples", [3, 6, 20])  # fewer than columns, as many, more
def test_the_solution_is_that_of_sklearn_in_the_primal_and_the_dual_form(examples: int) -> None:
    inputs, targets = task(examples, 6)
    precision = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)
    weight = torch.linspace(0.2, 2.0, examples, dtype=torch.float64).expand(3, examples)
    found = posterior_change(inputs, targets, torch.ones_like(targets, dtype=torch.bool), precision, weight)
    for t in range(3):
        # sklearn has one strength for all columns: a column is divided by the root of its precision.
        reference = SklearnRidge(alpha=1.0, fit_intercept=False, solver="cholesky")
        reference.fit(inputs[t] / precision.sqrt(), targets[t], sample_weight=weight[t])
        expected = torch.from_numpy(reference.coef_) / precision.sqrt()
        torch.testing.assert_close(found[t], expected, rtol=1e-9, atol=1e-12)


def test_one_example_moves_the_prior_by_the_sum_worked_by_hand() -> None:
    # d = D^-1 x r / (x D^-1 x + 1 / c) with D = (2, 1), x = (2, 1), r = 3, c = 1/2: (1, 1) * 3 / (2 + 1 + 2)
    found = posterior_change(
        torch.tensor([[[2.0, 1.0]]]),
        torch.tensor([[3.0]]),
        torch.tensor([[True]]),
        torch.tensor([2.0, 1.0]),
        torch.tensor([[0.5]]),
    )
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.6]]))


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_the_meta_gradient_through_the_solve_equals_finite_differences(loss: str, world: ToyWorld) -> None:
    for dim in (2, 6):  # fewer and more columns than examples
        learner = learner_of(Ridge, world, loss=loss, dim=dim)
        assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


def test_many_newton_steps_end_where_the_posterior_of_the_softmax_is_highest(world: ToyWorld) -> None:
    learner = learner_of(Ridge, world, loss="softmax", num_steps=60)
    with torch.no_grad():
        learner.damping.fill_(1.0)
        learner.log_curvature.fill_(0.0)
    batch = batch_of(world, learner)
    codes = learner.encode(batch.catalogue)
    codes = codes._replace(vectors=codes.vectors.detach(), bias=codes.bias.detach())
    theta = learner.prior(batch.support, batch.users, codes)["user"].detach()
    user = learner.adapt(batch.support, batch.users, codes)["user"].detach().requires_grad_()
    shots = batch.support.shots
    likelihood = shots ** (1 + learner.shot_power.detach()) * learner.task_loss(
        {"user": user}, batch.support, codes
    )
    penalty = (learner.log_precision.exp().detach() * (user - theta).square()).sum(1) / 2
    (slope,) = torch.autograd.grad((likelihood + penalty).sum(), user)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)
    assert ((user - theta).norm(dim=1) > 1e-3).tolist() == (shots > 0).tolist()


@pytest.mark.parametrize("loss", ["squared", "softmax"])
@torch.no_grad()
def test_a_state_stays_finite_where_the_prior_has_next_to_no_precision(loss: str) -> None:
    world = toy_world()
    learner = Ridge(world.sizes, loss=loss, dim=16, precision=1e-12, spread=30.0).eval()
    codes = learner.encode(world.catalogue)
    twice = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 0, 0, 0]])  # singular without a prior
    for repeats in (1, 5):  # the dual and the primal form
        items = twice.repeat(1, repeats)
        support = Examples(items, torch.ones(items.shape), torch.ones(items.shape, dtype=torch.bool))
        state = learner.adapt(padded(support, 2), world.users.take(torch.tensor([0])), codes)
        assert all(value.isfinite().all() for value in state.values())


def test_what_has_no_closed_form_is_refused(world: ToyWorld) -> None:
    with pytest.raises(ValueError, match="found loss bpr"):
        Ridge(world.sizes, loss="bpr")
    with pytest.raises(ValueError, match="found head mlp"):
        Ridge(world.sizes, head="mlp")
