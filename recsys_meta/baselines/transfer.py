"""Transfer without meta-learning: one model trained over all users, served as it is, fine-tuned, or not pretrained at all.

    pretraining: argmin over theta of the mean over users of L(theta; all that the user did)
    JointlyTrained serves theta (multi-task learning), FineTuned takes K plain gradient steps from it on the support set,
    FromScratch takes them from a theta that nothing was learned for.

The model is that of ``MAML``, which differs by nothing but what its meta-loss asks for: there theta has to be good after the
steps, here before them. Users are told apart by their features alone, since those to come have no id.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.maml import MAML
from recsys_meta.models.heads import LinearHead
from recsys_meta.models.losses import RATING_LOSSES
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, Histories, ItemCodes, Sizes


class FineTuned(MAML):
    """Pretrained on all users jointly, then adapted by gradient steps of one fixed size (Pan & Yang 2010, transfer learning).

    Args:
        sizes: features of users and items to provide for.
        num_steps, step_size: of fine-tuning, which training does not learn; to be tuned on validation users.
        settings: of ``MAML``.
    """

    contract_settings: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "step_size": 0.02},
        {"loss": "softmax", "dim": 8, "step_size": 0.02},
    )

    def __init__(self, sizes: Sizes, *, num_steps: int = 5, step_size: float = 0.05, **settings: Any) -> None:
        plain: dict[str, Any] = {"step_sizes": "fixed", "shot_power": 0.0, "pull": 0.0}
        super().__init__(sizes, num_steps=num_steps, step_size=step_size, **plain | settings)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Mean over users of the loss on support and query together, without adaptation; a scalar."""
        items, everything = self.encode(episodes.catalogue), episodes.support.beside(episodes.query)
        return self.task_loss(self.head.start(episodes.users), everything, items).mean()


class JointlyTrained(FineTuned):
    """Pretrained on all users jointly and served as it is: what adaptation has to add to (Caruana 1997, multi-task learning)."""

    contract_settings = ()  # a law of the suite is that adaptation gains: the others are tested beside this file

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The shared weights, whatever the user did."""
        return self.head.start(users)


class FromScratch(FineTuned):
    """No pretraining: random item encoders and an empty head, from which the support set has to lead on its own.

    Of other users it knows the mean rating, or how popular items are, and no more.
    """

    meta_trained = False

    def __init__(self, sizes: Sizes, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        self.requires_grad_(False)
        if isinstance(
            self.head, LinearHead
        ):  # has no symmetry to break, so it starts at 0 instead of at noise
            for weight in self.head.parameters():
                weight.zero_()

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """The offset starts at the mean rating."""
        if self.loss in RATING_LOSSES and len(histories.values):
            self.head.offset_parameter().fill_(histories.values.mean())
