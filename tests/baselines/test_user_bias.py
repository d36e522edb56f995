"""Item mean + shrunk user bias: adaptation by hand, and a fit that tells strict users from bad items."""

import pytest
import torch
from torch import Tensor

from recsys_meta.baselines.item_mean import ItemMean
from recsys_meta.baselines.user_bias import ItemMeanUserBias
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Histories, Sizes


def features(ids: Tensor) -> Features:
    nothing = torch.zeros(len(ids), 0)
    return Features(ids, nothing.long(), (), nothing, nothing)


def catalogue(items: int) -> Catalogue:
    return Catalogue(
        features(torch.arange(1, items + 1)), torch.zeros(items), torch.ones(items, dtype=torch.bool)
    )


def sizes(items: int) -> Sizes:
    return Sizes(FeatureSizes(), FeatureSizes(ids=items + 1))


def test_the_bias_is_the_shrunk_mean_deviation_of_the_support() -> None:
    learner = ItemMeanUserBias(sizes(3), user_shrinkage=2.0)
    learner.mean.fill_(3.0)
    learner.item_bias.copy_(torch.tensor([0.0, 1.0, 0.0, -1.0]))
    codes = learner.encode(catalogue(3))
    support = Examples(
        torch.tensor([[0, 1], [2, 0], [0, 0]]),
        torch.tensor([[5.0, 5.0], [1.0, 0.0], [0.0, 0.0]]),
        torch.tensor([[True, True], [True, False], [False, False]]),
    )
    state = learner.adapt(support, features(torch.zeros(3, dtype=torch.int64)), codes)
    biases = torch.tensor([(1 + 2) / 4, -1 / 3, 0.0])
    torch.testing.assert_close(learner.predict(state, codes), torch.tensor([4.0, 3.0, 2.0]) + biases[:, None])


def test_with_one_round_the_items_are_those_of_the_item_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    ratings = Histories(
        torch.randint(6, (40,), generator=draw),
        torch.rand(40, generator=draw),
        torch.zeros(0, dtype=torch.int64),
        torch.arange(0, 41, 4),
    )
    one_round, mean = ItemMeanUserBias(sizes(6), rounds=1), ItemMean(sizes(6))
    one_round.fit_statistics(ratings, catalogue(6))
    mean.fit_statistics(ratings, catalogue(6))
    torch.testing.assert_close(one_round.item_bias, mean.item_bias)


def test_an_item_that_only_strict_users_rated_is_not_taken_for_a_bad_one() -> None:
    # Items 0..19 are rated by everybody, 20 by the strict half only, 21 by the lenient half only; all items are alike.
    everybody = torch.arange(20).repeat(40, 1)
    items = torch.cat([everybody, torch.where(torch.arange(40) < 20, 20, 21)[:, None]], 1)
    values = torch.where(torch.arange(40) < 20, 2.0, 4.0)[:, None].expand(40, 21)
    ratings = Histories(
        items.flatten(), values.flatten(), torch.zeros(0, dtype=torch.int64), torch.arange(0, 40 * 21 + 1, 21)
    )
    naive, fitted = ItemMean(sizes(22)), ItemMeanUserBias(sizes(22))
    for learner in (naive, fitted):
        learner.fit_statistics(ratings, catalogue(22))
    assert (naive.item_bias[22] - naive.item_bias[21]).item() > 1.5
    assert (fitted.item_bias[22] - fitted.item_bias[21]).item() < 0.75


@pytest.mark.parametrize(
    ("settings", "message"), [({"user_shrinkage": 0.0}, "user_shrinkage"), ({"rounds": 0}, "rounds")]
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemMeanUserBias(sizes(1), **settings)  # type: ignore[arg-type]
