"""Factors that a user helped to shape, and those that it did not."""

import pytest
import torch
from toy_world import episodes, histories, toy_world

from recsys_meta.baselines.ials import IALS
from recsys_meta.models.implicit_factors import ImplicitFactors
from recsys_meta.tensors import Histories

WORLD = toy_world()
EVENTS = histories(WORLD, torch.arange(120), implicit=True)
SETTINGS = {"factors": 8, "ridge": 2.0, "rounds": 3}
IDS = WORLD.sizes.item.ids


def fitted(some: Histories = EVENTS, *, cross: bool = False, most_users: int = 1000) -> ImplicitFactors:
    factors = ImplicitFactors(IDS, **SETTINGS, folds=3, most_users=most_users)
    factors.fit(some, WORLD.catalogue, cross=cross)
    return factors


def support() -> tuple[torch.Tensor, torch.Tensor]:
    batch = episodes(WORLD, torch.arange(120, 126), implicit=True, shots=4, query=3, seed=0)
    return WORLD.catalogue.features.ids[batch.support.items], batch.support.mask


def test_scores_are_those_of_the_baseline() -> None:
    baseline = IALS(WORLD.sizes, **SETTINGS)
    baseline.fit_statistics(EVENTS, WORLD.catalogue)
    codes = baseline.encode(WORLD.catalogue)
    batch = episodes(WORLD, torch.arange(120, 126), implicit=True, shots=4, query=3, seed=0)
    state = baseline.adapt(batch.support, batch.users, codes)
    expected = baseline.predict(state, codes._replace(bias=0 * codes.bias))
    factors = fitted()
    torch.testing.assert_close(factors.scores(*support())[:, codes.ids] * factors.spread, expected)


def test_whoever_was_counted_is_served_by_factors_of_the_other_folds_alone() -> None:
    ids, mask = support()
    counted = torch.tensor([0, 1, 2, 3, 4, 119])
    scores = fitted(cross=True).scores(ids, mask, counted)
    for row, user in enumerate(counted.tolist()):
        others = (torch.arange(120) % 3 != user % 3).nonzero().squeeze(1)
        alone = fitted(EVENTS.take(others)).scores(ids[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(scores[row : row + 1], alone)
    everybody = fitted(cross=True).scores(ids, mask)
    assert (everybody - scores).abs().max() > 0.01
    torch.testing.assert_close(everybody, fitted().scores(ids, mask))


def test_a_users_other_choices_look_better_to_factors_that_know_them() -> None:
    known, cross = fitted(), fitted(cross=True)
    gains = []
    for user in range(40):
        chosen = WORLD.catalogue.features.ids[EVENTS.take(torch.tensor([user])).items][None]
        if chosen.shape[1] < 4:
            continue
        given, asked = chosen[:, :2], chosen[0, 2:]
        mask = torch.ones_like(given, dtype=torch.bool)
        gain = known.scores(given, mask) - cross.scores(given, mask, torch.tensor([user]))
        gains.append(gain[0, asked].mean())
    assert len(gains) > 20
    assert torch.stack(gains).mean() > 0.005


def test_without_history_nothing_is_said_and_the_unknown_item_is_worth_nothing() -> None:
    ids, mask = support()
    factors = fitted()
    assert (factors.scores(ids, torch.zeros_like(mask)) == 0).all()
    assert (factors.scores(ids[:, :0], mask[:, :0]) == 0).all()
    assert (factors.scores(ids, mask)[:, 0] == 0).all()


def test_of_too_many_users_a_part_is_fitted_on() -> None:
    drawn = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:40].sort().values
    torch.testing.assert_close(fitted(most_users=40).factor, fitted(EVENTS.take(drawn)).factor)


@pytest.mark.parametrize("most_users", [30, 40, 60])
def test_of_too_many_users_each_fold_is_left_out_of_what_serves_it_and_has_some_in_the_others(
    most_users: int,
) -> None:
    """Every third or sixth user would be of one fold alone, and leave nobody to shape the factors that serve it."""
    factors = fitted(cross=True, most_users=most_users)
    drawn = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:most_users].sort().values
    for fold in range(3):
        others = fitted(EVENTS.take(drawn[drawn % 3 != fold]))
        assert factors.fold_factor[fold].any()
        torch.testing.assert_close(factors.fold_factor[fold], others.factor)
        assert not torch.allclose(factors.fold_factor[fold], factors.factor)


@pytest.mark.parametrize("ridge", [0.5, 5.0, 50.0])
def test_scores_lie_about_one_apart_whatever_the_ridge(ridge: float) -> None:
    factors = ImplicitFactors(IDS, factors=8, ridge=ridge, rounds=3, folds=3)
    factors.fit(EVENTS, WORLD.catalogue, cross=True)
    batch = episodes(WORLD, torch.arange(40), implicit=True, shots=8, query=1, seed=0)
    ids = WORLD.catalogue.features.ids[batch.support.items]
    for counted in (None, torch.arange(40)):
        spread = factors.scores(ids, batch.support.mask, counted)[:, 1:].std(1)
        assert 0.5 < float(spread.square().mean().sqrt()) < 2.0


def test_factors_that_a_ridge_has_put_out_say_nothing() -> None:
    factors = ImplicitFactors(IDS, factors=8, ridge=1e6, rounds=5)
    factors.fit(EVENTS, WORLD.catalogue, cross=False)
    assert factors.spread == 1
    assert factors.scores(*support()).abs().max() < 1e-6


def test_what_training_alone_needs_is_in_no_bundle() -> None:
    factors = fitted(cross=True)
    assert set(factors.state_dict()) == {"factor", "precision", "spread"}
    factors.fit(EVENTS, WORLD.catalogue, cross=False)
    assert len(factors.fold_factor) == 0
