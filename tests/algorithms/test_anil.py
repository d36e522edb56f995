"""ANIL moves the last layer, by the steps that MAML would take of it, and nothing else."""

import pytest
import torch
from double_precision import assert_the_meta_gradient_is_exact, batch_of, double_world, learner_of
from toy_world import ToyWorld

from recsys_meta.algorithms.anil import ANIL
from recsys_meta.algorithms.maml import MAML


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_the_meta_gradient_equals_finite_differences(loss: str, world: ToyWorld) -> None:
    learner = learner_of(ANIL, world, loss=loss, hidden=(4, 3), num_steps=3)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


@torch.no_grad()
def test_only_the_last_layer_moves(world: ToyWorld) -> None:
    learner = learner_of(ANIL, world, hidden=(4, 3))
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    prior, state = (how(batch.support, batch.users, codes) for how in (learner.prior, learner.adapt))
    moved = {name for name, weight in state.items() if not torch.equal(weight, prior[name])}
    assert moved == {"weight_2", "bias_2"}
    vectors = learner.user_vectors(state)
    assert vectors.shape == (5, 3 + 3 + 1)  # user code, last weights, last bias
    assert (vectors != learner.user_vectors(prior)).any(0).tolist() == [
        True,
        False,
        False,
        False,
        True,
        True,
        True,
    ]


@torch.no_grad()
def test_it_is_maml_with_step_sizes_of_0_below_the_last_layer(world: ToyWorld) -> None:
    anil, maml = (learner_of(cls, world, head="mlp", hidden=(4, 3)) for cls in (ANIL, MAML))
    maml.load_state_dict(anil.state_dict(), strict=False)
    for name, sizes in maml.step_size.items():
        sizes.copy_(anil.step_size[name] if name in anil.step_size else torch.zeros_like(sizes))
    batch, codes = batch_of(world, anil), anil.encode(world.catalogue)
    torch.testing.assert_close(
        *(one.predict(one.adapt(batch.support, batch.users, codes), codes) for one in (anil, maml))
    )


@torch.no_grad()
def test_of_a_linear_head_everything_is_the_last_layer(world: ToyWorld) -> None:
    assert learner_of(ANIL, world, head="linear").adapted_weights() == ("user", "offset")
