"""EASE of a support set: against the baseline, and each user left out against regressions that never saw it."""

import pytest
import torch
from safetensors.torch import load, save
from sklearn.metrics import ndcg_score
from toy_world import episodes, histories, toy_world

from recsys_meta.algorithms.laddered_maml import LadderedMAML
from recsys_meta.baselines.ease import EASE
from recsys_meta.episodes import select
from recsys_meta.models import item_regression
from recsys_meta.models.item_regression import ItemRegression
from recsys_meta.tensors import Histories
from recsys_meta.training import bundle as bundles

WORLD = toy_world()
EVENTS = histories(WORLD, torch.arange(120), implicit=True)
IDS = WORLD.sizes.item.ids
SEVERAL = 18  # of the few users below, who chose two things or more


def fitted(some: Histories = EVENTS, *, largest: int = 6000, ridge: float = 3.0) -> ItemRegression:
    regression = ItemRegression(IDS, ridge=ridge, largest=largest)
    regression.fit(some, WORLD.catalogue)
    return regression


def few_users() -> Histories:
    """Fewer than there are items; the last ten of them with one choice each."""
    some = EVENTS.take(torch.arange(30))
    place = torch.arange(len(some.items)) - torch.repeat_interleave(some.offsets[:-1], some.lengths)
    return select(some, (some.owners() < 20) | (place == 0))


def support() -> tuple[torch.Tensor, torch.Tensor]:
    batch = episodes(WORLD, torch.arange(120, 126), implicit=True, shots=4, query=3, seed=0)
    return WORLD.catalogue.features.ids[batch.support.items], batch.support.mask


def chosen_by(user: int) -> torch.Tensor:
    return WORLD.catalogue.features.ids[EVENTS.take(torch.tensor([user])).items].unique()


@pytest.mark.parametrize("most", [None, 20])
def test_scores_are_those_of_the_baseline(most: int | None) -> None:
    baseline = EASE(WORLD.sizes, ridge=3.0, most_chosen=most)
    baseline.fit_statistics(EVENTS, WORLD.catalogue)
    ids, mask = support()
    regression = fitted(largest=most or 6000)
    scores = regression.scores(ids, mask) * regression.spread
    torch.testing.assert_close(scores, baseline.affinities(ids, mask.float()))


@pytest.mark.parametrize(("largest", "few"), [(6000, 32), (6000, 0), (20, 32)])
def test_a_user_taken_out_is_served_by_the_regression_of_all_others(
    largest: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_regression, "_FEW", few)  # 0: a user's choices are few of the items
    everybody, compared = fitted(largest=largest), 0
    for user in range(0, 120, 5):
        ids = chosen_by(user)
        own = torch.zeros(1, IDS).index_fill(1, ids, 1.0)
        given, mask = ids[None, :3], torch.ones(1, len(ids[:3]), dtype=torch.bool)
        others = fitted(EVENTS.take(torch.arange(120)[torch.arange(120) != user]), largest=largest)
        # Which items are most chosen may hang on the user: only where both fit the same can they be compared.
        if not torch.equal(others.place == largest, everybody.place == largest):
            continue
        taken_out = everybody.scores(given, mask, own) * everybody.spread
        expected = others.scores(given, mask) * others.spread
        torch.testing.assert_close(taken_out, expected, rtol=1e-4, atol=1e-6)
        knowing = everybody.scores(given, mask) * everybody.spread
        assert (knowing - expected).abs().max() > 1e-3
        compared += 1
    assert compared > 5


def test_few_users_of_many_items_give_the_regression_of_all_items() -> None:
    ids, mask = support()
    by_users, by_items = (fitted(few_users(), largest=largest) for largest in (SEVERAL, IDS))
    assert by_users.inverse.shape == (SEVERAL, SEVERAL)
    torch.testing.assert_close(by_users.diagonal[:IDS], by_items.diagonal[:IDS])
    torch.testing.assert_close(by_users.spread, by_items.spread)
    torch.testing.assert_close(by_users.scores(ids, mask), by_items.scores(ids, mask), rtol=1e-4, atol=1e-5)
    for user in (3, 25):  # one of those with several choices, and one with a single one
        own = torch.zeros(len(ids), IDS)
        own[:, WORLD.catalogue.features.ids[few_users().take(torch.tensor([user])).items]] = 1.0
        without, expected = by_users.scores(ids, mask, own), by_items.scores(ids, mask, own)
        torch.testing.assert_close(without, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(without, by_users.scores(ids, mask), atol=1e-3)


def test_more_users_than_can_be_inverted_leave_out_the_least_chosen_items() -> None:
    regression = fitted(few_users(), largest=SEVERAL - 1)
    assert regression.choices.shape == (2, 0)
    assert int((regression.place == SEVERAL - 1).sum()) == IDS - (SEVERAL - 1)


@pytest.mark.parametrize("largest", [IDS, SEVERAL, SEVERAL - 1])
def test_what_was_fitted_goes_into_a_bundle_and_out_of_it_whatever_its_size(largest: int) -> None:
    ids, mask = support()
    learner, loaded = (LadderedMAML(WORLD.sizes, dim=4, ridge=3.0, regressed=largest) for _ in range(2))
    learner.fit_statistics(few_users(), WORLD.catalogue)
    weights = {name: value.contiguous() for name, value in learner.state_dict().items()}
    bundles._load_weights(loaded, load(save(weights)))
    regression, other = learner.known.regression, loaded.known.regression
    assert other.inverse.shape == regression.inverse.shape
    torch.testing.assert_close(other.scores(ids, mask), regression.scores(ids, mask), rtol=0, atol=0)
    regression.fit(EVENTS, WORLD.catalogue)
    again = fitted(EVENTS, largest=largest)
    torch.testing.assert_close(regression.scores(ids, mask), again.scores(ids, mask), rtol=0, atol=0)


def test_the_ridge_that_is_chosen_serves_users_better_whom_it_never_saw() -> None:
    def served(ridge: float) -> float:
        """NDCG@10 of regressions without the user, by scikit-learn; with the popularity that suits all best."""
        gains = []
        for user in range(0, 120, 2):
            ids = chosen_by(user)
            if len(ids) < 5:
                continue
            others = EVENTS.take(torch.arange(120)[torch.arange(120) != user])
            regression = fitted(others, ridge=ridge)
            support = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(user))[:3]]
            scores = regression.scores(support[None], torch.ones(1, 3, dtype=torch.bool))[0]
            times = torch.bincount(WORLD.catalogue.features.ids[others.items], minlength=IDS)
            left = (times > 0) & ~torch.isin(torch.arange(IDS), support)
            wanted = torch.isin(torch.arange(IDS), ids)[left]
            gains.append(
                [
                    ndcg_score(wanted[None], (scores + weight * times.log1p())[left][None], k=10)
                    for weight in (0.0, 0.1, 0.3, 1.0, 3.0)
                ]
            )
        return float(torch.tensor(gains).mean(0).max())

    regression = ItemRegression(IDS, ridge=0.03)
    regression.choose_ridge(EVENTS, WORLD.catalogue)
    assert float(regression.ridge) >= 30
    assert served(float(regression.ridge)) > served(0.03) + 0.02
    good = ItemRegression(IDS, ridge=3e5)  # as good as any other: it stays
    good.choose_ridge(EVENTS, WORLD.catalogue)
    assert good.ridge == 3e5
    few = ItemRegression(IDS, ridge=0.03)
    few.choose_ridge(EVENTS.take(torch.arange(20)), WORLD.catalogue)
    assert float(few.ridge) == pytest.approx(0.03)


def test_a_users_other_choices_look_better_to_a_regression_that_knows_them() -> None:
    regression, gains = fitted(), []
    for user in range(40):
        ids = chosen_by(user)
        if len(ids) < 4:
            continue
        own = torch.zeros(1, IDS).index_fill(1, ids, 1.0)
        given, mask = ids[None, :2], torch.ones(1, 2, dtype=torch.bool)
        knowing, taken_out = regression.scores(given, mask), regression.scores(given, mask, own)
        gains.append(float((knowing - taken_out)[0, ids[2:]].mean()))
    assert len(gains) > 20
    assert all(gain > 0 for gain in gains)


def test_the_unit_is_how_far_scores_lie_apart_after_a_few_choices() -> None:
    weak, strong = fitted(ridge=1.0), fitted(ridge=300.0)
    for regression in (weak, strong):
        scores = regression.scores(*support())
        assert 0.4 < float(scores.std()) < 2.5
    assert weak.spread > 5 * strong.spread


def test_without_support_or_events_there_is_nothing_to_say() -> None:
    ids, mask = support()
    assert not fitted().scores(ids[:, :0], mask[:, :0]).any()
    assert not fitted().scores(ids, mask & False).any()
    empty = fitted(EVENTS.take(torch.arange(0)))
    assert not empty.scores(ids, mask).any()
    assert empty.spread == 1
