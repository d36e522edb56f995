"""Hypernetworks: a network reads the support set and writes the head, in one pass and without a gradient step.

D. Ha, A. Dai, Q. Le: HyperNetworks, ICLR 2017; amortized for few-shot tasks as by J. Requeima et al.: Fast and Flexible
Multi-Task Classification Using Conditional Neural Adaptive Processes, NeurIPS 2019. For user t with examples (v_j, s_j)

    z_j = relu(A [v_j; s_j v_j; s_j] + c)            s_j: residual of the rating under theta_t, or +-1 for an event
    r_t = pool of {z_j}                              by attention, asked by theta_t, or by a recurrent network
    phi = theta_t + B relu(C r_t)                    of every weight of the head

What differs from the papers: they write weights anew or scale the layers of a fixed network, here the change from theta_t is
written, so that a user without support (r_t = 0) has the prior; the outer loop trains everything, encoders included.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.scorer import Scorer, no_features
from recsys_meta.models.heads import Weights
from recsys_meta.models.support_sets import AttentionPool, RecurrentPool, SupportTokens, signal_of
from recsys_meta.tensors import Examples, Features, ItemCodes, Sizes


class Hypernetwork(Scorer):
    """The head's weights as a function of the support set; what they have in common that differ in how they read it.

    Args:
        sizes: features of users and items to provide for.
        width: W, of tokens, of what is pooled, and of the hidden layer.
        settings: of ``Scorer``.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "width": 16},
        {"loss": "softmax", "dim": 8, "width": 16},
    )

    def __init__(self, sizes: Sizes, *, width: int = 64, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        self.tokens = SupportTokens(self.item_encoder.width, width)
        self.hidden = nn.Linear(width, width, bias=False)
        start = self.head.start(no_features(sizes))
        self.writers = nn.ModuleDict(
            {name: nn.Linear(width, start[name][0].numel(), bias=False) for name in self.head.adapted}
        )
        for writer in self.writers.values():
            assert isinstance(writer, nn.Linear)
            nn.init.normal_(writer.weight, std=0.1 * width**-0.5)

    @abstractmethod
    def pooled(self, theta: Weights, tokens: Tensor, mask: Tensor) -> Tensor:
        """r of T tasks, [T, W]; 0 without examples. tokens: [T, S, W]; mask: [T, S]."""

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """T tasks at once: {name: [T, ...]}, the weights of the head."""
        theta = self.head.start(users)
        scores = self.predict(theta, items, support.items)
        signal = signal_of(self.loss, scores, support.targets)
        tokens = self.tokens(items.vectors[support.items], signal, support.mask)
        hidden = torch.relu(self.hidden(self.pooled(theta, tokens, support.mask)))
        return theta | {
            name: theta[name] + writer(hidden).reshape(theta[name].shape)
            for name, writer in self.writers.items()
        }


class AttentiveHypernetwork(Hypernetwork):
    """The support set is read by multi-head attention: in any order.

    Args:
        sizes: features of users and items to provide for.
        heads: of the attention; ``width`` is a multiple of them.
        settings: of ``Hypernetwork``.
    """

    def __init__(self, sizes: Sizes, *, heads: int = 4, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        user_dim = self.head.start(no_features(sizes))["user"].shape[1]
        self.pool = AttentionPool(user_dim, self.tokens.width, heads)

    def pooled(self, theta: Weights, tokens: Tensor, mask: Tensor) -> Tensor:
        """Asked by what is known of the user."""
        pooled: Tensor = self.pool(theta["user"], tokens, mask)
        return pooled


class RecurrentHypernetwork(Hypernetwork):
    """The support set is read by a gated recurrent unit: in its order, the newest last.

    Args:
        sizes: features of users and items to provide for.
        settings: of ``Hypernetwork``.
    """

    order_matters = "a recurrent network reads a history in its order: what came last counts more"

    def __init__(self, sizes: Sizes, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        self.pool = RecurrentPool(self.tokens.width)

    def pooled(self, theta: Weights, tokens: Tensor, mask: Tensor) -> Tensor:
        """The state after the last example."""
        pooled: Tensor = self.pool(tokens, mask)
        return pooled
