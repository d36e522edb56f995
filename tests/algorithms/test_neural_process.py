"""The neural process: its divergence, its modulation, its cross-attention and its gradient."""

import pytest
import torch
from double_precision import assert_the_meta_gradient_is_exact, batch_of, double_world, learner_of
from toy_world import ToyWorld

from recsys_meta.algorithms.neural_process import Gaussian, NeuralProcess, divergence

SMALL = {"hidden": (4, 3), "width": 4, "heads": 2, "latent": 2}


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


def test_the_divergence_is_that_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = (
        Gaussian(torch.randn(5, 3, generator=draw), torch.rand(5, 3, generator=draw) + 0.1) for _ in "ab"
    )
    expected = torch.distributions.kl_divergence(*(torch.distributions.Normal(*g) for g in (one, other))).sum(
        1
    )
    torch.testing.assert_close(divergence(one, other), expected)


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_the_meta_gradient_equals_finite_differences(loss: str, world: ToyWorld) -> None:
    learner = learner_of(NeuralProcess, world, loss=loss, **SMALL)
    assert_the_meta_gradient_is_exact(learner, batch_of(world, learner))


@torch.no_grad()
def test_a_score_is_the_modulated_network_plus_what_the_item_attends_to(world: ToyWorld) -> None:
    learner = learner_of(NeuralProcess, world, **SMALL)
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    state, t, i = learner.adapt(batch.support, batch.users, codes), 3, 7
    x = torch.cat([codes.vectors[i], state["user"][t]])
    for n, layer in enumerate(learner.head.layers[:-1]):
        scale, shift = learner.film[str(n)](state["condition"][t]).chunk(2)
        x = torch.relu((1 + scale) * layer(x) + shift)
    score = codes.bias[i] + learner.head.layers[-1](x)[0]
    query = learner.queries(codes.vectors[i]).reshape(2, 2)
    for head in range(2):
        logits = state["keys"][t, :3].reshape(3, 2, 2)[:, head] @ query[head] / 2**0.5  # 3 examples
        weights = logits.exp() / (1 + logits.exp().sum())
        score = score + weights @ state["values"][t, :3, head]
    torch.testing.assert_close(learner.predict(state, codes)[t, i], score)


def test_training_draws_the_latent_variable_and_evaluation_does_not(world: ToyWorld) -> None:
    learner = learner_of(NeuralProcess, world, unknown_share=0.0, **SMALL)
    batch = batch_of(world, learner)
    assert learner.meta_loss(batch) == learner.meta_loss(batch)
    learner.train()
    torch.manual_seed(0)
    losses = {learner.meta_loss(batch).item() for _ in range(3)}
    assert len(losses) == 3


@torch.no_grad()
def test_user_vectors_are_of_one_size_whatever_the_history(world: ToyWorld) -> None:
    learner = learner_of(NeuralProcess, world, **SMALL)
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    short = batch.support._make(part[:, :1] for part in batch.support)
    shapes = {
        learner.user_vectors(learner.adapt(s, batch.users, codes)).shape for s in (batch.support, short)
    }
    assert shapes == {(5, 2 + 4 + 3)}


@torch.no_grad()
def test_a_catalogue_scored_in_blocks_has_the_same_scores(
    world: ToyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(NeuralProcess, world, **SMALL)
    batch, codes = batch_of(world, learner), learner.encode(world.catalogue)
    state = learner.adapt(batch.support, batch.users, codes)
    whole = learner.predict(state, codes)
    monkeypatch.setattr(
        "recsys_meta.algorithms.neural_process._LOGITS", 7 * 5 * 2 * 4
    )  # 7 items of 30 at a time
    torch.testing.assert_close(learner.predict(state, codes), whole)


def test_another_head_is_refused(world: ToyWorld) -> None:
    with pytest.raises(ValueError, match="found head linear"):
        NeuralProcess(world.sizes, head="linear")
