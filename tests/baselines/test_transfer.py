"""Transfer: what pretraining minimizes, what is adapted, and what knows nothing of other users."""

import pytest
import torch
from toy_world import ToyWorld, episodes, histories, meta_train, query_losses, toy_world

from recsys_meta.baselines.transfer import FineTuned, FromScratch, JointlyTrained

TRAIN, TEST = torch.arange(0, 120), torch.arange(120, 160)


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return toy_world()


def test_pretraining_minimizes_the_unadapted_loss_of_all_that_a_user_did(world: ToyWorld) -> None:
    learner = FineTuned(world.sizes, dim=4).eval()  # in training it hides ids at random
    learner.fit_statistics(histories(world, TRAIN, implicit=False), world.catalogue)
    batch = episodes(world, TRAIN, implicit=False, shots=3, query=6, seed=0)
    codes = learner.encode(batch.catalogue)
    prior = learner.prior(batch.support, batch.users, codes)
    of_support, of_query = (
        learner.task_loss(prior, part, codes).mean() for part in (batch.support, batch.query)
    )
    torch.testing.assert_close(learner.meta_loss(batch), (3 * of_support + 6 * of_query) / 9)


def test_fine_tuning_learns_neither_steps_nor_pull(world: ToyWorld) -> None:
    trained = {name for name, weight in FineTuned(world.sizes).named_parameters() if weight.requires_grad}
    assert not {"shot_power", "pull"} & trained
    assert not any(name.startswith("step_size") for name in trained)


def test_the_jointly_trained_learns_and_serves_everybody_alike_but_for_their_features(
    world: ToyWorld,
) -> None:
    torch.manual_seed(0)
    learner = JointlyTrained(world.sizes, dim=8)
    learner.fit_statistics(histories(world, TRAIN, implicit=False), world.catalogue)
    batch = episodes(world, TEST, implicit=False, shots=10, query=6, seed=3)
    before = query_losses(learner, batch, learner.encode(world.catalogue), adapted=False).mean()
    meta_train(learner, world, TRAIN, implicit=False, steps=120)
    codes = learner.encode(world.catalogue)
    after = query_losses(learner, batch, codes, adapted=True)
    assert after.mean() < 0.9 * before
    assert (after == query_losses(learner, batch, codes, adapted=False)).all()
    assert learner.meta_loss(batch).requires_grad


def test_from_scratch_knows_of_others_the_mean_alone(world: ToyWorld) -> None:
    learner = FromScratch(world.sizes, dim=4)
    before = {name: weight.clone() for name, weight in learner.state_dict().items()}
    seen = histories(world, TRAIN, implicit=False)
    learner.fit_statistics(seen, world.catalogue)
    after = learner.state_dict()
    assert [name for name in before if not before[name].equal(after[name])] == ["head.offset"]
    assert learner.head.offset_parameter().item() == pytest.approx(seen.values.mean().item())
