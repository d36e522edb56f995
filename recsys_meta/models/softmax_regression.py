"""What is asked for next, by numbers of the items alone: a softmax regression over the candidates of some moments.

D. McFadden: Conditional logit analysis of qualitative choice behavior, 1974.

    argmin over w of the mean over moments of  - sum_i share_i log softmax(X w)_i  + ridge/2 |w|^2

X [I, F] are the numbers of the I candidates of a moment, share_i how much of what was asked for then fell on candidate i. Convex,
with as many unknowns as there are numbers: Newton's method needs some ten steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_STEPS, _HALVINGS = 50, 30
_SOLVED = 1e-10  # what a step would gain, in nats


def softmax_regression(inputs: Sequence[Tensor], counts: Sequence[Tensor], ridge: float = 1e-6) -> Tensor:
    """w, [F] float64; zeros where nothing was asked for.

    Args:
        inputs: X of each moment, [I, F].
        counts: how often each of these candidates was asked for, [I]; a moment at which none was says nothing.
        ridge: above 0: keeps w finite where what is asked for can be told apart for certain, and numbers that say the same apart.
    """
    asked = [
        (numbers.double(), count.double() / count.sum())
        for numbers, count in zip(inputs, counts, strict=True)
        if count.sum() > 0
    ]
    weights = torch.zeros(inputs[0].shape[1] if inputs else 0, dtype=torch.float64)
    if not asked:
        return weights
    loss = _loss(weights, asked, ridge)
    for _ in range(_STEPS):
        gradient, curvature = _derivatives(weights, asked, ridge)
        step = torch.linalg.solve(curvature, gradient)
        gain, size = float(gradient @ step), 1.0
        if gain < _SOLVED:
            break
        for _ in range(_HALVINGS):
            moved = _loss(weights - size * step, asked, ridge)
            if moved <= loss - 0.25 * size * gain:
                break
            size /= 2
        weights, loss = weights - size * step, moved
    return weights


def _loss(weights: Tensor, asked: Sequence[tuple[Tensor, Tensor]], ridge: float) -> float:
    surprise = [-(share * (numbers @ weights).log_softmax(0)).sum() for numbers, share in asked]
    return float(torch.stack(surprise).mean() + ridge / 2 * weights @ weights)


def _derivatives(
    weights: Tensor, asked: Sequence[tuple[Tensor, Tensor]], ridge: float
) -> tuple[Tensor, Tensor]:
    """The gradient, [F], and the curvature, [F, F]: the spread of the numbers under the chances."""
    gradient, curvature = ridge * weights, ridge * torch.eye(len(weights), dtype=torch.float64)
    for numbers, share in asked:
        chances = (numbers @ weights).softmax(0)
        mean = chances @ numbers
        gradient = gradient + (mean - share @ numbers) / len(asked)
        away = numbers - mean
        curvature = curvature + away.T @ (chances.unsqueeze(1) * away) / len(asked)
    return gradient, curvature
