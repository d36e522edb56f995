"""Ridge regressions in closed form, many small ones at once: of tasks, or of groups of examples."""

import torch
from torch import Tensor

_GROUPS = 64  # regressions solved at a time: their examples are copied, padded to the longest


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
    some = lengths.argsort()[(lengths == 0).sum() :]
    for rows in torch.split(some, _GROUPS) if len(some) else ():
        place = torch.arange(int(lengths[rows].max()))
        mask = place < lengths[rows, None]
        examples = order[(starts[rows, None] + place).clamp(max=len(order) - 1)]
        solutions[rows] = ridge_solution(vectors[members[examples]], targets[examples], mask, precision)
    return solutions
