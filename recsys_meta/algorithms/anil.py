"""ANIL: almost no inner loop. Only the last layer is adapted; the features that it reads are the same for all users.

A. Raghu, M. Raghu, S. Bengio, O. Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML,
ICLR 2020, section 4. With w the weights of the last layer and f the layers below it

    score = b_i + w . f(item, user)        phi: as in MAML, for w alone; f and all else learned by the outer loop

What differs from the paper is what differs in ``MAML``, and that layers were shared by all users there already: the encoders.
A linear head has one layer only; with it ANIL is MAML.
"""

from typing import Any, ClassVar, Literal

from torch import Tensor

from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.algorithms.maml import MAML
from recsys_meta.models.heads import MLPHead, Weights
from recsys_meta.tensors import Examples, Features, ItemCodes, Sizes


class ANIL(MAML):
    """MAML on the last layer of an MLP.

    Args:
        sizes: features of users and items to provide for.
        head: "mlp", or "linear", of which nothing is spared.
        settings: of ``MAML``.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "hidden": (16,)},
        {"loss": "softmax", "dim": 8, "hidden": (16,), "num_steps": 2},
    )

    def __init__(self, sizes: Sizes, *, head: Literal["linear", "mlp"] = "mlp", **settings: Any) -> None:
        super().__init__(sizes, head=head, **settings)

    def adapted_weights(self) -> tuple[str, ...]:
        """Weight and bias of the last layer."""
        if not isinstance(self.head, MLPHead):
            return self.head.adapted
        last = len(self.head.layers) - 1
        return tuple(name for name in self.head.adapted if name.endswith(f"_{last}"))

    def theta(self, support: Examples, users: Features, items: ItemCodes) -> Weights:
        """The shared layers as they are: the first one stays, so there is nothing to span."""
        return self.head.start(users)

    def user_vectors(self, state: TaskState) -> Tensor:
        """[T, P]: what differs between users, which are the adapted weights and what is known of the user."""
        own = {name: state[name] for name in ("user", *self.adapted_weights())}
        return Learner.user_vectors(self, own)
