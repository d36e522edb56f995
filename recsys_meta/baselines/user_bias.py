"""Item mean + shrunk user bias: the user's mean deviation from the items it rated is added to every item.

    bias_u = sum over the support (r - mean - bias_i) / (n_u + user_shrinkage),   score(u, i) = mean + bias_i + bias_u

In training both biases are fitted in turn, ``rounds`` times: items on what the users' biases leave, then users on what the
items' biases leave (Koren 2009, section 2.1, alternating ridge). On MeLU's split of MovieLens-1M shrinkages of 5 and 10 rounds
give every figure of the row in evaluation.md to its fourth digit.
"""

from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.item_mean import ItemMean, shrunk_means
from recsys_meta.tensors import Examples, Features, Histories, ItemCodes, Sizes


class ItemMeanUserBias(ItemMean):
    """Item mean plus a bias of the user, which the support set tells.

    Args:
        item_shrinkage, user_shrinkage: imagined ratings at a bias of 0; above 0.
        rounds: of the alternating fit, at least 1; with 1 the item biases are those of ``ItemMean``.
    """

    def __init__(
        self, sizes: Sizes, item_shrinkage: float = 5.0, user_shrinkage: float = 5.0, rounds: int = 10
    ) -> None:
        super().__init__(sizes, item_shrinkage)
        if not user_shrinkage > 0:
            raise ValueError(
                f"found user_shrinkage {user_shrinkage}; expected more than 0, or no history has no bias"
            )
        if rounds < 1:
            raise ValueError(f"found rounds {rounds}; expected 1 or more")
        self.user_shrinkage = user_shrinkage
        self.rounds = rounds

    def fitted_item_bias(self, histories: Histories, ids: Tensor, residuals: Tensor) -> Tensor:
        """The item biases that stand beside the biases of the training users, [ids] float64."""
        owners = histories.owners()
        users = len(histories.offsets) - 1
        user_bias = residuals.new_zeros(users)
        for _ in range(self.rounds):
            item_bias = super().fitted_item_bias(histories, ids, residuals - user_bias[owners])
            user_bias = shrunk_means(owners, residuals - item_bias[ids], users, self.user_shrinkage)
        return item_bias

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"offset": [T, 1]}: the bias of each user; 0 without a history."""
        deviations = (support.targets - items.bias[support.items]).masked_fill(~support.mask, 0)
        return {
            "offset": deviations.sum(1, keepdim=True) / (support.shots.unsqueeze(1) + self.user_shrinkage)
        }
