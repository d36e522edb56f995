"""The memory of MAML's start: addressed by the user's profile, blended by attention, learned with everything else."""

import pytest
import torch
from double_precision import assert_the_meta_gradient_is_exact, batch_of, double_world, learner_of
from toy_world import ToyWorld

from recsys_meta.algorithms.maml import MAML
from recsys_meta.algorithms.memory_maml import MemoryMAML


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


@pytest.mark.parametrize(
    "settings", [{"loss": "softmax"}, {"head": "mlp", "hidden": (4,), "step_sizes": "per_step"}]
)
def test_the_meta_gradient_equals_finite_differences(settings: dict, world: ToyWorld) -> None:
    learner = learner_of(MemoryMAML, world, slots=3, profile_dim=2, num_steps=2, **settings)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


@torch.no_grad()
def test_a_profile_that_meets_one_key_starts_from_its_value(world: ToyWorld) -> None:
    learner = learner_of(MemoryMAML, world, slots=2, profile_dim=2)
    learner.profile.categorical[0].weight.copy_(torch.tensor([[0.0, 0.0], [900.0, 0.0], [0.0, 900.0]]))
    learner.keys.copy_(torch.eye(2))
    batch, codes = batch_of(world, learner, tasks=40), learner.encode(world.catalogue)
    added = learner.prior(batch.support, batch.users, codes)["user"] - learner.head.start(batch.users)["user"]
    slot = batch.users.categorical[:, 0] - 1
    torch.testing.assert_close(added, learner.memory["user"][slot])
    assert set(slot.tolist()) == {0, 1}


@torch.no_grad()
def test_with_an_empty_memory_it_is_maml(world: ToyWorld) -> None:
    memory, maml = (learner_of(cls, world) for cls in (MemoryMAML, MAML))
    maml.load_state_dict(memory.state_dict(), strict=False)
    for values in memory.memory.values():
        values.zero_()
    batch = batch_of(world, maml)
    torch.testing.assert_close(memory.meta_loss(batch), maml.meta_loss(batch))
