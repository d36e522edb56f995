"""Reptile: the initialization moves towards where plain gradient steps on each user lead. No second derivatives, no query set.

A. Nichol, J. Achiam, J. Schulman: On First-Order Meta-Learning Algorithms, arXiv 1803.02999, 2018.

    phi_{k+1} = phi_k - a grad L(phi_k)          k = 0 .. K-1, phi_0 = theta_t, L: on all examples of the episode
    meta-gradient of theta_t = (theta_t - phi_K) / (a K) = mean over k of grad L(phi_k)

The right-hand side is also what a body shared by all users would be moved by if it took the same K steps, up to first order in a.
So one loss has the whole meta-gradient, that of encoders and user features included:

    meta-loss = mean over tasks and k of L(theta_t + constant(phi_k - theta_t))

What differs from the paper: encoders do not move in the inner loop; the outer loop is any optimizer on the meta-gradient,
as its section 7 allows; the inner loop takes all examples of an episode in every step. a and K are settings, to be tuned on
validation users.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from recsys_meta.algorithms.maml import MAML
from recsys_meta.algorithms.meta_sgd import refuse
from recsys_meta.tensors import EpisodeBatch, Sizes


class Reptile(MAML):
    """MAML's inner loop with one fixed step size; the initialization follows the mean of the gradients along it.

    Args:
        sizes: features of users and items to provide for.
        num_steps: K.
        step_size: a.
        settings: of ``MAML``, but those of its step rule.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8},
        {"loss": "sampled_softmax", "dim": 8},
    )

    def __init__(self, sizes: Sizes, *, num_steps: int = 5, step_size: float = 0.1, **settings: Any) -> None:
        rule: dict[str, Any] = {"step_sizes": "fixed", "shot_power": 0.0, "pull": 0.0}
        refuse(settings, rule)
        super().__init__(sizes, num_steps=num_steps, step_size=step_size, **settings, **rule)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Mean over users and steps of the loss on support and query together, along the inner loop; a scalar."""
        items, everything = self.encode(episodes.catalogue), episodes.support.beside(episodes.query)
        theta, shelf = self.head.start(episodes.users), self.shelf(items)
        with torch.no_grad():
            points = [theta, *self.path(theta, everything, shelf)][:-1]
        losses = []
        for phi in points:
            shifted = {
                name: theta[name] + (weight - theta[name]).detach()
                if name in self.adapted_weights()
                else weight
                for name, weight in (theta | {n: phi[n] for n in self.adapted_weights()}).items()
            }
            losses.append(self.task_loss(shifted, everything, items).mean())
        return torch.stack(losses).mean()
