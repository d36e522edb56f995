"""Implicit MAML: the inner problem is solved, and the meta-gradient follows from the solution, not from the way to it.

A. Rajeswaran, C. Finn, S. Kakade, S. Levine: Meta-Learning with Implicit Gradients, NeurIPS 2019.

    phi = argmin n_t^(1+p) L_support(phi) + (phi - theta_t)^T D (phi - theta_t) / 2
    (D + n_t^(1+p) H) v = grad L_query(phi)         H: second derivatives of L_support at phi; v by conjugate gradient
    meta-gradient = D v by theta_t, -v^T (derivative of n_t^(1+p) grad L_support(phi)) by everything else L_support reads

What differs from the paper: the head is linear, so that the inner problem is convex for every loss offered and has one solution,
which damped Newton steps by the same conjugate gradient come close to (the paper takes gradient steps through a network that has
many); the strength of the pull, a constant lambda there, is a learned D per entry, against which the support counts by its shots,
p learned. Under squared error this is ``Ridge``.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import vjp

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.scorer import Scorer
from recsys_meta.models.heads import LinearHead, Weights
from recsys_meta.models.losses import LossName
from recsys_meta.tensors import Examples, Features, ItemCodes, Sizes

Product = Callable[[Tensor], tuple[Tensor]]  # with the matrices of T systems: [T, P] -> [T, P]


class IMAML(Scorer):
    """MAML by implicit differentiation, on a linear head.

    Args:
        sizes: features of users and items to provide for.
        loss: any but "absolute", whose curvature is 0.
        precision, offset_precision, shot_power: initial entries of D for the user vector and the offset, and p; as of ``Ridge``.
        num_steps: Newton steps; under squared error one is enough.
        cg_steps: of conjugate gradient, in the inner problem and in the meta-gradient.
        settings: of ``Scorer``.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "num_steps": 1},
        {"loss": "logistic", "dim": 8, "num_steps": 3, "cg_steps": 6},
    )

    def __init__(
        self,
        sizes: Sizes,
        *,
        loss: LossName = "squared",
        precision: float = 1.0,
        offset_precision: float = 8.0,
        shot_power: float = -0.2,
        num_steps: int = 5,
        cg_steps: int = 10,
        **settings: Any,
    ) -> None:
        super().__init__(sizes, loss=loss, **settings)
        if loss == "absolute" or not isinstance(self.head, LinearHead):
            raise ValueError("expected a linear head and a loss with curvature (not absolute)")
        self.num_steps = num_steps
        self.cg_steps = cg_steps
        entries = [precision] * self.item_encoder.width + [offset_precision] * (self.head.offset is not None)
        self.log_precision = nn.Parameter(torch.tensor(entries).log())
        self.shot_power = nn.Parameter(torch.tensor(shot_power))

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"user": [T, F], "offset": [T]} (the latter where the loss has one): the solution of the inner problem."""
        start = self.head.start(users)
        theta, shelf, precision = flat(start), self.shelf(items), self.log_precision.exp()
        shots = support.shots.to(theta.dtype)
        evidence = (shots * shots.clamp(min=1) ** self.shot_power)[:, None]
        inputs = self.head.inputs(start, items.vectors, support.items)

        def slope(phi: Tensor) -> Tensor:
            of_support = flat(self.written_gradient(unflat(phi, start), inputs, support, shelf))
            return evidence * of_support + precision * (phi - theta)

        with torch.no_grad():
            phi = theta
            for _ in range(self.num_steps):
                # The slope is itself a derivative, so its own is symmetric: products from the left are those from the right.
                residual, product = vjp(slope, phi)[:2]
                step = conjugate_gradient(product, residual, self.cg_steps)
                # Far from the solution of a loss that is not quadratic a whole step may lead further away
                # (Nesterov: Introductory Lectures on Convex Optimization, 4.1.12).
                decrement = (residual * step).sum(1, keepdim=True).clamp(min=0).sqrt()
                phi = phi - (step if self.loss == "squared" else step / (1 + decrement))
        if torch.is_grad_enabled():
            with torch.no_grad():
                product = vjp(slope, phi)[1]
            phi = Implicit.apply(phi, slope(phi), product, self.cg_steps)  # type: ignore[no-untyped-call]
        return unflat(phi, start)


class Implicit(Function):
    """A solution of slope = 0 as a function of everything the slope reads."""

    @staticmethod
    def forward(ctx: Any, solution: Tensor, slope: Tensor, product: Product, steps: int) -> Tensor:
        """The solution. product: with the derivative of the slope by the solution."""
        ctx.product, ctx.steps = product, steps
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[None, Tensor, None, None]:
        """By the slope: what the solution has to move by for the slope to become 0 again, transposed."""
        return None, -conjugate_gradient(ctx.product, gradient[0], ctx.steps), None, None


def conjugate_gradient(product: Product, right: Tensor, steps: int) -> Tensor:
    """The x of T systems A x = right, [T, P], A positive definite and known by its products with vectors; after so many steps."""
    found, residual, direction = torch.zeros_like(right), right, right
    size = residual.square().sum(1, keepdim=True)
    enough = torch.finfo(right.dtype).eps ** 2 * size
    for _ in range(steps):
        (moved,) = product(direction)
        curvature = (direction * moved).sum(1, keepdim=True)
        # A task that is solved stays as it is.
        going = (size > enough) & (curvature > 0)
        rate = torch.where(going, size / curvature.where(going, 1.0), 0.0)
        found, residual = found + rate * direction, residual - rate * moved
        left = residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(going, left / size.where(going, 1.0), 0.0) * direction
        size = torch.where(going, left, 0.0)
    return found


def flat(weights: Weights) -> Tensor:
    """The weights of T tasks side by side, [T, P], in the order "user", "offset"."""
    return torch.cat([weights[n].reshape(len(weights[n]), -1) for n in ("user", "offset") if n in weights], 1)


def unflat(values: Tensor, like: Weights) -> Weights:
    """The inverse of ``flat``."""
    columns = like["user"].shape[1]
    return {"user": values[:, :columns]} | ({"offset": values[:, columns]} if "offset" in like else {})
