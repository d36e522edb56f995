"""MAML whose initialization is personalized by a memory: users of a like profile start from what was learned to suit them.

In the spirit of M. Dong, F. Yuan, L. Yao, X. Xu, L. Zhu: MAMO: Memory-Augmented Meta-Optimization for Cold-start Recommendation,
KDD 2020, its feature-specific memory. With K slots of a profile key m_k and a value b_k each

    a_t = softmax over k of p_t . m_k / sqrt(F)         p_t: an encoding of the user's features
    theta_t = start of ``MAML`` + sum over k of a_tk b_k

for the user vector and offset of a linear head, or the first layer's bias of an MLP.

What differs from the paper: keys and values are meta-parameters that the outer loop learns, where MAMO writes them by rules of
its own after each user (so a user's start does not depend on who came before); there is no second memory for the weights
between item and user; attention is by inner product.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from recsys_meta.algorithms.maml import MAML
from recsys_meta.algorithms.scorer import no_features
from recsys_meta.models.encoders import FeatureEncoder
from recsys_meta.models.heads import LinearHead, Weights
from recsys_meta.tensors import Examples, Features, ItemCodes, Sizes


class MemoryMAML(MAML):
    """MAML, started from a memory that is addressed by the user's features.

    Args:
        sizes: features of users and items to provide for.
        slots: K, at least 1.
        profile_dim: F, columns of a profile.
        settings: of ``MAML``.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "slots": 3, "profile_dim": 4},
    )

    def __init__(self, sizes: Sizes, *, slots: int = 8, profile_dim: int = 16, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        self.profile = FeatureEncoder(sizes.user, profile_dim, spread=1.0)
        self.keys = nn.Parameter(torch.randn(slots, profile_dim))
        start = self.head.start(no_features(sizes))
        personal = self.head.adapted if isinstance(self.head, LinearHead) else ("bias_0",)
        self.memory = nn.ParameterDict(
            {name: nn.Parameter(0.1 * torch.randn(slots, *start[name].shape[1:])) for name in personal}
        )

    def theta(self, support: Examples, users: Features, items: ItemCodes) -> Weights:
        """The start of MAML and what the memory holds for users like these."""
        theta = super().theta(support, users, items)
        shares = (self.profile(users) @ self.keys.T / self.keys.shape[1] ** 0.5).softmax(1)  # [T, K]
        return theta | {name: theta[name] + shares @ values for name, values in self.memory.items()}
