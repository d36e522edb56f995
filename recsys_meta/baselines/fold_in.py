"""Fold-in: a ridge regression on the support set gives a new user its vector, in closed form, item vectors held fixed."""

from abc import abstractmethod

import torch
from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.item_mean import ItemMean
from recsys_meta.tensors import Catalogue, Examples, Features, ItemCodes

_GROUPS = 64  # regressions solved at a time: their examples are copied, padded to the longest


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


def ridge_solution(vectors: Tensor, targets: Tensor, mask: Tensor, precision: Tensor) -> Tensor:
    """argmin over w of sum (target - w . vector)^2 + w . precision w of each task, [T, F].

    vectors: [T, S, F]; targets, mask: [T, S]; precision: [F, F], positive definite.
    """
    vectors = vectors * mask.unsqueeze(-1)
    products = vectors.mT @ targets.unsqueeze(-1)
    return torch.cholesky_solve(products, torch.linalg.cholesky(vectors.mT @ vectors + precision)).squeeze(-1)


def ridge_by_group(
    groups: Tensor, size: int, vectors: Tensor, members: Tensor, targets: Tensor, precision: Tensor
) -> Tensor:
    """The ridge solution of each group of examples, [size, F]; 0 for an empty one.

    groups: [M], 0 .. size - 1; vectors: [N, F], of which example m has the one in row members[m]; targets: [M];
    precision: [F, F].
    """
    lengths = torch.bincount(groups, minlength=size)
    order, starts = groups.argsort(stable=True), lengths.cumsum(0) - lengths
    solutions = vectors.new_zeros(size, vectors.shape[1])
    # Groups of like length together, so that little is padded.
    for rows in torch.split(lengths.argsort()[(lengths == 0).sum() :], _GROUPS):
        place = torch.arange(int(lengths[rows].max()))
        mask = place < lengths[rows, None]
        examples = order[(starts[rows, None] + place).clamp(max=len(order) - 1)]
        solutions[rows] = ridge_solution(vectors[members[examples]], targets[examples], mask, precision)
    return solutions
