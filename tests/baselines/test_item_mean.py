"""Item mean: shrunk means by hand, and what an unknown item gets."""

import pytest
import torch
from torch import Tensor

from recsys_meta.baselines.item_mean import ItemMean
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Histories, Sizes

SIZES = Sizes(FeatureSizes(), FeatureSizes(ids=4))


def features(ids: list[int]) -> Features:
    nothing = torch.zeros(len(ids), 0)
    return Features(torch.tensor(ids), nothing.long(), (), nothing, nothing)


def catalogue(ids: list[int]) -> Catalogue:
    return Catalogue(features(ids), torch.zeros(len(ids)), torch.ones(len(ids), dtype=torch.bool))


def history(items: list[int], values: list[float]) -> Histories:
    return Histories(
        torch.tensor(items, dtype=torch.int64),
        torch.tensor(values),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([0, len(items)]),
    )


def scores(learner: ItemMean, ids: list[int]) -> Tensor:
    codes = learner.encode(catalogue(ids))
    empty = Examples(
        torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool)
    )
    return learner.predict(learner.adapt(empty, features([0]), codes), codes)[0]


def test_means_are_pulled_to_the_mean_of_all_ratings() -> None:
    learner = ItemMean(SIZES, item_shrinkage=2.0)
    # Rows of the catalogue are not ids: row 0 has id 3, row 1 id 1.
    learner.fit_statistics(history([0, 0, 1, 1], [5.0, 4.0, 2.0, 1.0]), catalogue([3, 1]))
    torch.testing.assert_close(scores(learner, [1, 2, 3]), torch.tensor([3 - 3 / 4, 3.0, 3 + 3 / 4]))


def test_an_unknown_item_gets_the_mean_of_all_ratings_whatever_pooled_there_in_training() -> None:
    learner = ItemMean(SIZES)
    learner.fit_statistics(history([0, 1], [1.0, 5.0]), catalogue([0, 1]))
    assert scores(learner, [0]).item() == 3.0


def test_before_any_rating_scores_are_finite() -> None:
    learner = ItemMean(SIZES)
    assert scores(learner, [0, 1]).tolist() == [0.0, 0.0]
    learner.fit_statistics(history([], []), catalogue([1]))
    assert scores(learner, [0, 1]).tolist() == [0.0, 0.0]


def test_the_loss_is_the_mean_squared_error_of_each_task() -> None:
    learner = ItemMean(SIZES)
    codes = learner.encode(catalogue([1, 2]))
    examples = Examples(
        torch.tensor([[0, 1], [0, 0]]),
        torch.tensor([[1.0, 3.0], [2.0, 0.0]]),
        torch.tensor([[True, True], [False, False]]),
    )
    state = learner.adapt(examples, features([0, 0]), codes)
    assert learner.task_loss(state, examples, codes).tolist() == [5.0, 0.0]


def test_a_shrinkage_that_leaves_a_mean_undefined_is_refused() -> None:
    with pytest.raises(ValueError, match=r"item_shrinkage 0\.0"):
        ItemMean(SIZES, item_shrinkage=0.0)
