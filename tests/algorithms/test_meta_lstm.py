"""The learned optimizer: its input, its shared cell, and that its gates contain plain gradient descent."""

import math

import pytest
import torch
from double_precision import batch_of, double_world, learner_of, meta_gradient
from toy_world import ToyWorld

from recsys_meta.algorithms.maml import FOMAML
from recsys_meta.algorithms.meta_lstm import MetaLSTM, preprocessed


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


def test_size_and_sign_of_a_number_are_told_apart_as_in_equation_5() -> None:
    values = torch.tensor([math.e, -1.0, math.exp(-10), math.exp(-11), -math.exp(-12), 0.0]).double()
    expected = [[0.1, 1], [0, -1], [-1, 1], [-1, math.exp(-1)], [-1, -math.exp(-2)], [-1, 0]]
    torch.testing.assert_close(preprocessed(values), torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", [{"loss": "squared"}, {"loss": "bpr", "head": "mlp", "hidden": (4,)}])
def test_gates_that_keep_everything_and_take_one_rate_are_first_order_maml(
    settings: dict, world: ToyWorld
) -> None:
    lstm, maml = (learner_of(cls, world, num_steps=3, **settings) for cls in (MetaLSTM, FOMAML))
    with torch.no_grad():
        lstm.gates.weight.zero_()
        lstm.gates.bias.copy_(torch.tensor([50.0, 0.0]))  # forget nothing; a rate of a half
        lstm.log_scale.fill_(math.log(0.4))
        maml.load_state_dict(lstm.state_dict(), strict=False)
        for sizes in maml.step_size.values():
            sizes.fill_(0.2)
        maml.shot_power.zero_()
        maml.pull.zero_()
    batch = batch_of(world, maml)
    torch.testing.assert_close(lstm.meta_loss(batch), maml.meta_loss(batch))
    theirs, mine = meta_gradient(maml, batch), meta_gradient(lstm, batch)
    name = "item_encoder.ids.weight"
    torch.testing.assert_close(mine[name], theirs[name], rtol=1e-9, atol=1e-12)


def test_the_meta_gradient_of_the_optimizer_equals_finite_differences_with_one_step(world: ToyWorld) -> None:
    # With one step no gradient of the support set depends on the optimizer, so leaving those derivatives out is exact.
    learner = learner_of(MetaLSTM, world, num_steps=1, units=4)
    batch = batch_of(world, learner)
    gradient = meta_gradient(learner, batch)
    for name, parameter in [*learner.cell.named_parameters(prefix="cell"), ("log_scale", learner.log_scale)]:
        start, losses = parameter.detach().clone(), []
        direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(start + sign * 1e-5 * direction)
            losses.append(learner.meta_loss(batch).item())
        with torch.no_grad():
            parameter.copy_(start)
        slope = (losses[0] - losses[1]) / 2e-5
        assert (gradient[name] * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-9), name


@torch.no_grad()
def test_a_coordinate_is_moved_by_its_own_gradient_alone(world: ToyWorld) -> None:
    learner = learner_of(MetaLSTM, world, num_steps=1)
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    codes = codes._replace(
        vectors=codes.vectors * torch.tensor([1.0, 1.0, 0.0])
    )  # no gradient by the third entry
    start, state = (how(batch.support, batch.users, codes)["user"] for how in (learner.prior, learner.adapt))
    assert torch.equal(state[:, 2], start[:, 2])
    assert (state[1:, :2] != start[1:, :2]).all()
