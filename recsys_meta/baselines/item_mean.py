"""Item mean: everybody is predicted the mean rating of the item, pulled to the mean of all ratings where few have rated.

    bias_i = sum over ratings of i (r - mean) / (n_i + shrinkage),   score(u, i) = mean + bias_i

On MeLU's split of MovieLens-1M, shrinkage 5 gives the MAE .7765 and RMSE .9748 of evaluation.md.
"""

import torch
from torch import Tensor
from torch.func import vmap

from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.models.losses import Scored, task_loss
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, ItemCodes, Sizes


class ItemMean(Learner):
    """The shrunk mean of each item; the mean of all ratings for an item that is unknown to the vocabulary.

    Args:
        sizes: only the number of item ids is read.
        item_shrinkage: imagined ratings at the mean that every item starts with; above 0.
    """

    meta_trained = False

    mean: Tensor  # []
    item_bias: Tensor  # [ids of the item vocabulary]

    def __init__(self, sizes: Sizes, item_shrinkage: float = 5.0) -> None:
        super().__init__(sizes)
        if not item_shrinkage > 0:
            raise ValueError(
                f"found item_shrinkage {item_shrinkage}; expected more than 0, or an unrated item has no mean"
            )
        self.item_shrinkage = item_shrinkage
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("item_bias", torch.zeros(sizes.item.ids))

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Reads off the means; the mean of no rating at all is 0."""
        values = histories.values.to(torch.float64)
        mean = values.mean() if len(values) else values.sum()
        self.mean.copy_(mean)
        self.item_bias.copy_(
            self.fitted_item_bias(histories, catalogue.features.ids[histories.items], values - mean)
        )

    def fitted_item_bias(self, histories: Histories, ids: Tensor, residuals: Tensor) -> Tensor:
        """The bias of each id of the vocabulary, [ids] float64. ids, residuals (rating - mean): [M]."""
        return self.known(shrunk_means(ids, residuals, len(self.item_bias), self.item_shrinkage))

    def known(self, item_bias: Tensor) -> Tensor:
        """The same biases, 0 for the unknown item: what pools there in training says nothing of the next newcomer."""
        return item_bias.index_fill(0, torch.zeros(1, dtype=torch.int64, device=item_bias.device), 0)

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """The bias is the mean rating; vectors [I, 0]."""
        ids = catalogue.features.ids
        return ItemCodes(
            ids, self.item_bias.new_zeros(len(ids), 0), self.mean + self.item_bias[ids], catalogue.eligible
        )

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"offset": [T, 1]}, 0 whatever the user did."""
        return {"offset": items.bias.new_zeros(len(support.items), 1)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``; in the units of the ratings."""
        return state["offset"] + (items.bias if index is None else items.bias[index])

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """The mean squared error of each task, [T]."""
        scores = self.predict(state, items, examples.items)
        return vmap(one_task_loss)(scores, examples.targets, examples.mask)


def one_task_loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of one task, a scalar. All arguments [S]."""
    return task_loss("squared", Scored(scores, targets, mask))


def shrunk_means(groups: Tensor, values: Tensor, size: int, shrinkage: float) -> Tensor:
    """sum / (count + shrinkage) of the values of each group, [size]; 0 for an empty group. groups, values: [M]."""
    counts = values.new_zeros(size).index_add(0, groups, torch.ones_like(values))
    return values.new_zeros(size).index_add(0, groups, values) / (counts + shrinkage)
