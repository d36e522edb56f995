"""LiMAML: steps on the block, a vector of fixed size left, and that vector is what is exported."""

import pytest
import torch
from double_precision import assert_the_meta_gradient_is_exact, batch_of, double_world, learner_of
from toy_world import ToyWorld

from recsys_meta.algorithms.limaml import LiMAML, embedded, parts_of, vector_of


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_the_meta_gradient_equals_finite_differences(loss: str, world: ToyWorld) -> None:
    learner = learner_of(LiMAML, world, loss=loss, units=4, num_steps=3)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


def test_the_steps_are_those_of_autograd_on_the_block_of_one_user(world: ToyWorld) -> None:
    learner = learner_of(LiMAML, world, units=4, num_steps=3)
    batch, t = batch_of(world, learner), 3
    codes = learner.encode(world.catalogue)
    alone = batch.support._make(part[t : t + 1] for part in batch.support)
    user = batch.users.take(torch.tensor([t]))
    start = learner.head.start(user)
    block = {name: weight[None] for name, weight in learner.block.items()}
    for k in range(3):
        state = parts_of(embedded(block, vector_of(start))[0], start)
        loss = learner.task_loss(state, alone, codes).sum()
        slopes = torch.autograd.grad(loss, list(block.values()), retain_graph=True)
        scale = 3**learner.shot_power
        block = {
            name: weight - scale * learner.step_size[name][k] * slope
            for (name, weight), slope in zip(block.items(), slopes, strict=True)
        }
    expected = embedded(block, vector_of(start))[0]
    torch.testing.assert_close(learner.user_vectors(learner.adapt(alone, user, codes)), expected)


@pytest.mark.parametrize("loss", ["squared", "softmax"])
@torch.no_grad()
def test_the_exported_vector_and_the_item_codes_are_all_that_scoring_needs(
    loss: str, world: ToyWorld
) -> None:
    learner = learner_of(LiMAML, world, loss=loss, units=4)
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    state = learner.adapt(batch.support, batch.users, codes)
    vectors = learner.user_vectors(state)
    ones = codes.vectors.new_ones(len(codes.bias), int(loss == "squared"))
    scores = codes.bias + vectors @ torch.cat([codes.vectors, ones], 1).T
    torch.testing.assert_close(scores, learner.predict(state, codes))


def test_another_head_is_refused(world: ToyWorld) -> None:
    with pytest.raises(ValueError, match="found head mlp"):
        LiMAML(world.sizes, head="mlp")
