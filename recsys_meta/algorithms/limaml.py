"""LiMAML: what is adapted to a user ends up in a vector of fixed size, the meta-embedding, for a scorer shared by all.

R. Wang, P. Prabhakar, G. Srivastava et al.: LiMAML: Personalization of Deep Recommender Models via Meta Learning, KDD 2024.
The meta block, two layers W = (W_0, c_0, W_1, c_1), turns what is known of user t, p_t, into its vector:

    e(W) = p_t + W_1 relu(W_0 p_t + c_0) + c_1          score = b_i + e . (v_i, 1)
    W^{k+1} = W^k - a_k n_t^p grad_W L_support(e(W^k))          k = 0 .. K-1, W^0 shared

Only e(W^K) leaves adaptation: nobody stores a network per user, and an online ranker needs a table of vectors.

What differs from the paper: the shared scorer is an inner product with the item code and not a deep ranker, so that the
vectors serve retrieval as well; the block adds to p_t; step sizes are learned per tensor and step, as is p; meta-gradients
are of second order. Under a loss that shifts do not change there is no last column.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.scorer import Scorer
from recsys_meta.models.heads import LinearHead, Weights
from recsys_meta.tensors import Examples, Features, ItemCodes, Sizes


class LiMAML(Scorer):
    """A user vector by an adapted block, scored by a shared inner product.

    Args:
        sizes: features of users and items to provide for.
        units: of the block's hidden layer.
        num_steps: K.
        step_size: initial a.
        shot_power: initial p.
        settings: of ``Scorer``; the head is linear.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "units": 8, "num_steps": 3},
        {"loss": "softmax", "dim": 8, "units": 8, "num_steps": 2},
    )

    def __init__(
        self,
        sizes: Sizes,
        *,
        units: int = 64,
        num_steps: int = 5,
        step_size: float = 0.1,
        shot_power: float = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__(sizes, **settings)
        if not isinstance(self.head, LinearHead):
            raise ValueError("the shared scorer is linear; found head mlp")
        self.num_steps = num_steps
        columns = self.item_encoder.width + (self.head.offset is not None)
        self.block = nn.ParameterDict(
            {
                "weight_0": torch.randn(units, columns) * columns**-0.5,
                "bias_0": torch.zeros(units),
                "weight_1": torch.randn(columns, units) * 0.1 * units**-0.5,
                "bias_1": torch.zeros(columns),
            }
        )
        self.step_size = nn.ParameterDict({name: torch.full((num_steps,), step_size) for name in self.block})
        self.shot_power = nn.Parameter(torch.tensor(shot_power))

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The meta-embedding of T tasks: {"user": [T, F], "offset": [T]} (the latter where the loss has one)."""
        start, shelf = self.head.start(users), self.shelf(items)
        profile = vector_of(start)
        inputs = self.head.inputs(start, items.vectors, support.items)
        shots = support.shots.to(profile.dtype)
        scale = torch.where(shots > 0, shots.clamp(min=1) ** self.shot_power, 0.0)
        block = {name: weight.expand(len(profile), *weight.shape) for name, weight in self.block.items()}
        vector, hidden = embedded(block, profile)
        for k in range(self.num_steps):
            of_vector = vector_of(self.written_gradient(parts_of(vector, start), inputs, support, shelf))
            slopes = block_gradient(block, profile, hidden, of_vector)
            for name, slope in slopes.items():
                rate = (scale * self.step_size[name][k]).reshape(-1, *[1] * (slope.dim() - 1))
                block[name] = block[name] - rate * slope
            vector, hidden = embedded(block, profile)
        return parts_of(vector, start)

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The meta-embedding by the shared block."""
        return self.adapt(support.emptied(), users, items)

    def user_vectors(self, state: TaskState) -> Tensor:
        """The meta-embedding, [T, P]: score = item bias + vector . (item code, 1), the 1 where the loss has an offset."""
        return vector_of(state)


def embedded(block: Weights, profile: Tensor) -> tuple[Tensor, Tensor]:
    """e, [T, P], and the hidden layer, [T, H]. profile: [T, P]."""
    hidden = torch.relu((block["weight_0"] @ profile[:, :, None]).squeeze(2) + block["bias_0"])
    return profile + (block["weight_1"] @ hidden[:, :, None]).squeeze(2) + block["bias_1"], hidden


def block_gradient(block: Weights, profile: Tensor, hidden: Tensor, slope: Tensor) -> Weights:
    """The derivative by the block's weights, given that by e, [T, P]: the chain rule written out."""
    below = (slope[:, None] @ block["weight_1"]).squeeze(1) * hidden.detach().sign()
    return {
        "weight_0": below[:, :, None] * profile[:, None],
        "bias_0": below,
        "weight_1": slope[:, :, None] * hidden[:, None],
        "bias_1": slope,
    }


def vector_of(weights: Weights) -> Tensor:
    """User vector and offset side by side, [T, P]."""
    return torch.cat([weights["user"], *(weights[n][:, None] for n in ("offset",) if n in weights)], dim=1)


def parts_of(vector: Tensor, like: Weights) -> Weights:
    """The inverse of ``vector_of``."""
    columns = like["user"].shape[1]
    return {"user": vector[:, :columns]} | ({"offset": vector[:, columns]} if "offset" in like else {})
