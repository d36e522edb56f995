"""Fold-in: a ridge regression on the support set gives a new user its vector, in closed form, item vectors held fixed."""

from abc import abstractmethod

import torch
from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.item_mean import ItemMean
from recsys_meta.models.ridge_solutions import ridge_solution
from recsys_meta.tensors import Catalogue, Examples, Features, ItemCodes


class FoldIn(ItemMean):
    """score(u, i) = mean + bias_i + bias_u + u . v_i, with (bias_u, u) the ridge solution on the user's support set:

    argmin over (bias_u, u) of sum over the support (r - score)^2 + bias_ridge bias_u^2 + ridge |u|^2
    """

    ridge: float
    bias_ridge: float

    @abstractmethod
    def item_vectors(self, catalogue: Catalogue) -> Tensor:
        """v, [I, F]."""

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """The bias is the mean rating; vectors [I, F]."""
        return super().encode(catalogue)._replace(vectors=self.item_vectors(catalogue))

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"offset": [T, 1], "user": [T, F]}; 0 without a history."""
        residuals = support.targets - items.bias[support.items]
        vectors = with_constant(items.vectors)
        precision = diagonal(self.bias_ridge, self.ridge, vectors)
        solution = ridge_solution(vectors[support.items], residuals, support.mask, precision)
        return {"offset": solution[:, :1], "user": solution[:, 1:]}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``; in the units of the ratings."""
        liking = state["user"] @ items.vectors.T
        return super().predict(state, items, index) + (liking if index is None else liking.gather(1, index))


def with_constant(vectors: Tensor) -> Tensor:
    """The same vectors with a 1 before each: what a bias is multiplied by. [N, F] -> [N, 1 + F]."""
    return torch.cat([vectors.new_ones(len(vectors), 1), vectors], 1)


def diagonal(first: float, others: float, vectors: Tensor) -> Tensor:
    """diag(first, others, others, ..) as wide as the vectors, [F, F]."""
    precision = vectors.new_full((vectors.shape[1],), others)
    precision[0] = first
    return precision.diag()
