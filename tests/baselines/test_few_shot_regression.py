"""The regression on few choices as a recommender: popularity, and what a support set makes of it."""

import pytest
import torch
from toy_world import episodes, histories, toy_world

from recsys_meta.baselines.few_shot_regression import FewShotRegression

WORLD = toy_world()
TRAIN = torch.arange(120)


def fitted(**settings: float) -> FewShotRegression:
    learner = FewShotRegression(WORLD.sizes, **settings).eval()
    learner.fit_statistics(histories(WORLD, TRAIN, implicit=True), WORLD.catalogue)
    return learner


def test_it_says_how_many_times_as_popular_an_item_is_with_somebody_like_this() -> None:
    learner, batch = fitted(), episodes(WORLD, TRAIN[:5], implicit=True, shots=4, query=4, seed=0)
    codes = learner.encode(WORLD.catalogue)
    support = batch.support._replace(targets=batch.support.targets.index_fill(1, torch.tensor([3]), 0.0))
    found = learner.predict(learner.adapt(support, batch.users, codes), codes)
    mask = torch.ones_like(support.mask).index_fill(1, torch.tensor([3]), False)  # of value 0: no choice
    lift = learner.regression.scores(codes.ids[support.items], mask)[:, codes.ids]
    torch.testing.assert_close(found, WORLD.catalogue.log_popularity + lift)
    assert lift.std() > 0.1
    prior = learner.predict(learner.prior(support, batch.users, codes), codes)
    torch.testing.assert_close(prior, WORLD.catalogue.log_popularity.expand(5, -1))


def test_of_more_choices_than_it_is_fitted_to_it_is_less_sure_and_ranks_alike() -> None:
    learner, batch = fitted(shots=2), episodes(WORLD, TRAIN[:5], implicit=True, shots=8, query=1, seed=0)
    codes = learner.encode(WORLD.catalogue)
    found = learner.predict(learner.adapt(batch.support, batch.users, codes), codes)
    lift = learner.regression.scores(codes.ids[batch.support.items], batch.support.mask)[:, codes.ids]
    torch.testing.assert_close(found, (WORLD.catalogue.log_popularity + lift) / 2)


def test_what_goes_together_stands_above_what_is_popular() -> None:
    """Of new users: the mean rating of the first five, against that of the five most popular."""
    learner, new = fitted(), torch.arange(120, 160)
    batch = episodes(WORLD, new, implicit=True, shots=5, query=4, seed=1)
    codes = learner.encode(WORLD.catalogue)
    ratings = WORLD.ratings[new].scatter(1, batch.support.items, 0.0)  # what is known is nobody's gain

    def served(scores: torch.Tensor) -> torch.Tensor:
        return ratings.gather(1, scores.scatter(1, batch.support.items, -torch.inf).topk(5).indices).mean(1)

    adapted = served(learner.predict(learner.adapt(batch.support, batch.users, codes), codes))
    popular = served(codes.bias.expand(len(new), -1))
    gained = adapted - popular
    assert gained.mean() > 2 * gained.std() / len(new) ** 0.5


@pytest.mark.parametrize("settings", [{"shots": 0}, {"ridge": 0.0}, {"ridge": float("nan")}])
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more, and more than 0"):
        FewShotRegression(WORLD.sizes, **settings)
