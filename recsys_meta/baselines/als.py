"""ALS: a factorization of the ratings with biases, fitted by alternating ridge regressions; a new user is folded in.

Y. Koren, R. Bell, C. Volinsky: Matrix Factorization Techniques for Recommender Systems, IEEE Computer 42(8), 2009.

    score(u, i) = mean + bias_i + bias_u + p_u . q_i
    argmin of sum (r - score)^2 + bias_ridge (sum bias_i^2 + sum bias_u^2) + ridge (sum |p_u|^2 + sum |q_i|^2)

Each round solves (bias_u, p_u) of all users, then (bias_i, q_i) of all items; a new user is solved as one more of the former.
Ridge, rounds and factors are those that give the row of evaluation.md on MeLU's split of MovieLens-1M. The ridge is of ratings in
their unit (``models.rating_unit``; 1 for stars): of ratings to 100 it would hold nothing back.
"""

import torch
from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.fold_in import FoldIn, diagonal, with_constant
from recsys_meta.baselines.item_mean import shrunk_means
from recsys_meta.models.rating_unit import unit_of
from recsys_meta.models.ridge_solutions import ridge_by_group
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, ItemCodes, Sizes


class ALS(FoldIn):
    """Factors of the ratings. An item that is unknown to the vocabulary has the mean of all ratings and factors of 0.

    Args:
        sizes: only the number of item ids is read.
        factors: columns of p and q, at least 1.
        ridge, bias_ridge: above 0.
        rounds: of the alternating fit, at least 1.
        seed: of the factors that the fit starts from.
    """

    contract_settings = ({"factors": 3, "ridge": 1.0},)

    factor: Tensor  # [ids, F]: q, in units
    unit: Tensor  # []

    def __init__(
        self,
        sizes: Sizes,
        factors: int = 16,
        ridge: float = 8.0,
        bias_ridge: float = 3.0,
        rounds: int = 15,
        seed: int = 0,
    ) -> None:
        super().__init__(sizes, item_shrinkage=bias_ridge)
        if factors < 1 or rounds < 1 or not ridge > 0:
            raise ValueError(
                f"found factors {factors}, rounds {rounds}, ridge {ridge}; expected 1 or more, 1 or more, more than 0"
            )
        self.ridge = ridge
        self.bias_ridge = bias_ridge
        self.rounds = rounds
        self.seed = seed
        self.register_buffer("factor", torch.zeros(sizes.item.ids, factors))
        self.register_buffer("unit", torch.ones(()))

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Alternates; nothing is learned of the unknown item."""
        ids = catalogue.features.ids[histories.items]
        known = ids > 0
        owners, ids, ratings = histories.owners()[known], ids[known], histories.values[known]
        if len(ratings) == 0:
            return
        self.unit.copy_(unit_of(ratings))
        ratings = ratings / self.unit
        users, vocabulary = len(histories.offsets) - 1, len(self.factor)
        mean = ratings.mean()
        item_bias = shrunk_means(ids, ratings - mean, vocabulary, self.bias_ridge)
        factor = 0.1 * torch.randn(self.factor.shape, generator=torch.Generator().manual_seed(self.seed))
        precision = diagonal(self.bias_ridge, self.ridge, with_constant(factor))
        for _ in range(self.rounds):
            left = ratings - mean - item_bias[ids]
            of_users = ridge_by_group(owners, users, with_constant(factor), ids, left, precision)
            left = ratings - mean - of_users[owners, 0]
            of_items = ridge_by_group(
                ids, vocabulary, with_constant(of_users[:, 1:]), owners, left, precision
            )
            item_bias, factor = of_items[:, 0], of_items[:, 1:]
        self.mean.copy_(self.unit * mean)
        self.item_bias.copy_(self.unit * item_bias)
        self.factor.copy_(factor)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """As of a fold-in, solved in units."""
        given = support._replace(targets=support.targets / self.unit)
        state = super().adapt(given, users, items._replace(bias=items.bias / self.unit))
        return {name: self.unit * value for name, value in state.items()}

    def item_vectors(self, catalogue: Catalogue) -> Tensor:
        """q, [I, F]."""
        return self.factor[catalogue.features.ids]
