"""A linear head solved instead of stepped: the meta-learned prior and the support set give its posterior mean.

L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi: Meta-learning with Differentiable Closed-form Solvers, ICLR 2019 (R2-D2).
For user t with support scores s = b + V w and w = (user vector, offset)

    w* = argmin n_t^(1+p) L_support(w) + (w - theta_t)^T D (w - theta_t) / 2

with D the diagonal precision of the prior and p both learned. Under squared error, X being the rows (v_i, 1) and r the
residuals of theta_t, that is a linear system, solved in the smaller of two forms:

    w* = theta_t + (D + c X^T X)^-1 c X^T r = theta_t + D^-1 X^T (X D^-1 X^T + I / c)^-1 r          c = 2 n_t^p

Under the softmax it takes K Newton steps, whose curvature is that of the shared start w_0, so that one matrix serves all users:

    w_{k+1} = w_k - e_k (D + h n_t^(1+p) H)^-1 (n_t^(1+p) grad L_support(w_k) + D (w_k - theta_t))
    H = V^T (diag(pi) - pi pi^T) V          pi = softmax(b + V w_0)

What differs from the paper: the solve starts from theta_t, which holds what is known of the user, where R2-D2 pulls to 0, so
that no support gives the prior; precision is learned per dimension (a full one would add nothing: the item vectors can absorb
any rotation); the softmax, which the paper's logistic regression comes nearest to, has a shared curvature, and its share h
and the e_k are learned: with h = 0 the steps are those of ``MAML``.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.scorer import Scorer, Shelf
from recsys_meta.models.heads import LinearHead
from recsys_meta.models.losses import LossName, Pool, pool_chances
from recsys_meta.tensors import Examples, Features, ItemCodes, Sizes


class Ridge(Scorer):
    """The posterior mean of a linear head under a meta-learned Gaussian prior.

    Args:
        sizes: features of users and items to provide for.
        loss: "squared" or "softmax".
        precision: initial entries of D for the user vector, above 0.
        offset_precision: that for the offset; 8 shrinks a user's mean residual by four examples.
        shot_power: initial p; 0 counts every example in full, less counts on what they repeat of each other.
        num_steps: K, Newton steps; of the softmax alone.
        curvature: initial h, above 0; of the softmax alone.
        settings: of ``Scorer``.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8},
        {"loss": "softmax", "dim": 8},
    )

    def __init__(
        self,
        sizes: Sizes,
        *,
        loss: LossName = "squared",
        precision: float = 1.0,
        offset_precision: float = 8.0,
        shot_power: float = -0.2,
        num_steps: int = 3,
        curvature: float = 0.3,
        **settings: Any,
    ) -> None:
        if loss not in ("squared", "softmax"):
            raise ValueError(f"found loss {loss}; only squared and softmax are solved in closed form")
        super().__init__(sizes, loss=loss, **settings)
        if not isinstance(self.head, LinearHead):
            raise ValueError("only a linear head is solved in closed form; found head mlp")
        self.num_steps = num_steps
        entries = [precision] * self.item_encoder.width + [offset_precision] * (loss == "squared")
        self.log_precision = nn.Parameter(torch.tensor(entries).log())
        self.shot_power = nn.Parameter(torch.tensor(shot_power))
        if loss == "softmax":
            self.damping = nn.Parameter(torch.ones(num_steps))
            self.log_curvature = nn.Parameter(torch.tensor(curvature).log())

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"user": [T, F]}, under squared error also {"offset": [T]}: the posterior mean."""
        theta, shelf = self.head.start(users), self.shelf(items)
        evidence = support.shots.clamp(min=1).to(items.vectors.dtype) ** self.shot_power
        if self.loss == "softmax":
            return {"user": self.newton(theta["user"], support, shelf, support.shots * evidence)}
        vectors = items.vectors[support.items]
        inputs = torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=2)
        residuals = support.targets - self.predict(theta, items, support.items)
        change = posterior_change(
            inputs, residuals, support.mask, self.log_precision.exp(), (2 * evidence)[:, None]
        )
        return {"user": theta["user"] + change[:, :-1], "offset": theta["offset"] + change[:, -1]}

    def newton(self, start: Tensor, support: Examples, shelf: Shelf, evidence: Tensor) -> Tensor:
        """The user vectors after K steps, [T, F]. evidence: [T], what the mean support loss is multiplied with."""
        assert isinstance(self.head, LinearHead)
        assert shelf.part is not None
        precision, evidence = self.log_precision.exp(), evidence[:, None]
        vectors = shelf.part.vectors
        scores = torch.addmv(shelf.part.bias, vectors, self.head.user_0)
        everything = torch.ones_like(scores, dtype=torch.bool)
        chances, _ = pool_chances(Pool(scores, everything, log_weight=shelf.part.log_weight))
        mean = chances @ vectors
        curvature = vectors.T @ (chances[:, None] * vectors) - torch.outer(mean, mean)
        share = self.log_curvature.exp() * evidence[:, :, None]
        factor = cholesky(share * curvature + precision.diag())
        inputs = self.head.inputs({}, shelf.items.vectors, support.items)
        user = start
        for k in range(self.num_steps):
            slope = self.written_gradient({"user": user}, inputs, support, shelf)["user"]
            slope = evidence * slope + precision * (user - start)
            user = user - self.damping[k] * torch.cholesky_solve(slope[:, :, None], factor).squeeze(2)
        return user


def posterior_change(
    inputs: Tensor, residuals: Tensor, mask: Tensor, precision: Tensor, weight: Tensor
) -> Tensor:
    """argmin over d of sum weight (residual - d . input)^2 + d . precision d, [T, F], by the smaller of the two systems.

    inputs: [T, S, F]; residuals, mask: [T, S]; precision: [F], above 0; weight: [T, 1] or [T, S].
    """
    # In units of the prior's deviation, and of an example's weight, both matrices are I + something positive.
    scale = precision.rsqrt()
    root = torch.where(mask, weight.sqrt(), 0.0)
    inputs = inputs * scale * root[:, :, None]
    residuals = torch.where(mask, residuals, 0.0) * root
    examples, columns = inputs.shape[1:]
    if examples < columns:
        factor = cholesky(inputs @ inputs.mT + torch.eye(examples).to(inputs))
        solved = inputs.mT @ torch.cholesky_solve(residuals[:, :, None], factor)
    else:
        factor = cholesky(inputs.mT @ inputs + torch.eye(columns).to(inputs))
        solved = torch.cholesky_solve(inputs.mT @ residuals[:, :, None], factor)
    return solved.squeeze(2) * scale


def cholesky(matrices: Tensor) -> Tensor:
    """The factors of positive definite matrices, [.., N, N], with as much added to each diagonal as rounding may have taken."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    lost = 4 * torch.finfo(matrices.dtype).eps * diagonal.sum(-1)
    factors: Tensor = torch.linalg.cholesky_ex(
        matrices + lost[..., None, None] * torch.eye(matrices.shape[-1]).to(matrices)
    )[0]
    return factors
