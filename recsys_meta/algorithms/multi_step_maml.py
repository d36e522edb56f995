"""MAML's multi-step loss: the query loss after every inner step counts, less and less, until only the last one does.

A. Antoniou, H. Edwards, A. Storkey: How to Train Your MAML, ICLR 2019 (MAML++), section 4, "Multi-Step Loss Optimization".

    meta-loss = mean over tasks of sum over k = 1 .. K of v_k L_query(phi_k)
    v_k = (1 - s) / K for k < K,   v_K = 1 - (K - 1) (1 - s) / K        s = min(1, meta-steps so far / annealing)

What differs from the paper: the weights fall linearly from 1 / K to 0, where its code stops them at a small number; learned step
sizes per step are ``MAML``'s already; there is no batch normalization.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from recsys_meta.algorithms.maml import MAML
from recsys_meta.tensors import EpisodeBatch, Sizes


class MultiStepMAML(MAML):
    """MAML, the weights of whose steps are annealed.

    Args:
        sizes: features of users and items to provide for.
        annealing: meta-steps after which only the last inner step counts, at least 1.
        settings: of ``MAML``.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "annealing": 60},
    )

    trained_steps: Tensor  # meta-steps so far, a scalar; survives an interruption

    def __init__(self, sizes: Sizes, *, annealing: int = 1000, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        if annealing < 1:
            raise ValueError(f"annealing is at least 1; found {annealing}")
        self.annealing = annealing
        self.register_buffer("trained_steps", torch.tensor(0))

    def step_weights(self) -> Tensor:
        """v, [K]."""
        early = (1 - (self.trained_steps / self.annealing).clamp(max=1)) / self.num_steps
        weights = early.repeat(self.num_steps)
        weights[-1] = 1 - (self.num_steps - 1) * early
        return weights

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Mean over tasks of the weighted query losses after each step; a scalar. In training it counts the meta-steps."""
        items = self.encode(episodes.catalogue)
        theta, shelf = self.theta(episodes.support, episodes.users, items), self.shelf(items)
        total = items.bias.new_zeros(())
        for weight, phi in zip(self.step_weights(), self.path(theta, episodes.support, shelf), strict=True):
            if weight > 0:
                total = total + weight * self.task_loss(phi, episodes.query, items, episodes.support).mean()
        if self.training:
            self.trained_steps += 1
        return total
