"""Ridge regressions in closed form, many small ones at once: of tasks, or of groups of examples.

argmin over w of |t - V w|^2 + w . P w, with S examples of F columns, is either of

    w = (V^T V + P)^-1 V^T t  =  P^-1 V^T (V P^-1 V^T + I)^-1 t

(the second by the matrix inversion lemma, e.g. C. Bishop: Pattern Recognition and Machine Learning, 2006, (C.5)). The first
factors an F x F matrix for each task, the second an S x S one, which is much cheaper where examples are few.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Regressions solved at a time, whose examples are copied and padded to the longest: at least so many, and more while their
# examples are no more than these.
_GROUPS, _EXAMPLES = 64, 8192


def ridge_solution(vectors: Tensor, targets: Tensor, mask: Tensor, precision: Tensor) -> Tensor:
    """argmin over w of sum (target - w . vector)^2 + w . precision w of each task, [T, F].

    vectors: [T, S, F]; targets, mask: [T, S]; precision: [F, F], positive definite.
    """
    vectors = vectors * mask.unsqueeze(-1)
    tasks, examples, columns = vectors.shape
    if 2 * examples > columns:  # measured: costs cross between half of the columns and all
        products = vectors.mT @ targets.unsqueeze(-1)
        return torch.cholesky_solve(
            products, torch.linalg.cholesky(vectors.mT @ vectors + precision)
        ).squeeze(-1)
    whitener = torch.linalg.cholesky(precision)  # P = L L^T
    white = torch.linalg.solve_triangular(whitener, vectors.reshape(-1, columns).T, upper=False)
    white = white.T.reshape(tasks, examples, columns)  # rows L^-1 v
    gram = white @ white.mT + torch.eye(examples, dtype=white.dtype, device=white.device)
    weights = torch.cholesky_solve(targets.unsqueeze(-1), torch.linalg.cholesky(gram))
    solution: Tensor = torch.linalg.solve_triangular(
        whitener.T, (white.mT @ weights).squeeze(-1).T, upper=True
    )
    return solution.T


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
    for rows in _at_a_time(some, lengths[some]):
        place = torch.arange(int(lengths[rows[-1]]))
        mask = place < lengths[rows, None]
        examples = order[(starts[rows, None] + place).clamp(max=len(order) - 1)]
        solutions[rows] = ridge_solution(vectors[members[examples]], targets[examples], mask, precision)
    return solutions


def _at_a_time(groups: Tensor, lengths: Tensor) -> Iterator[Tensor]:
    """Groups in turn, so many together as are solved at a time. lengths: of theirs, ascending."""
    first = 0
    while first < len(groups):
        longest = lengths[first : first + _EXAMPLES]
        padded = longest * torch.arange(1, len(longest) + 1)
        many = max(int((padded <= _EXAMPLES).sum()), _GROUPS)
        yield groups[first : first + many]
        first += many
