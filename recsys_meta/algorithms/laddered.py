"""The default learner: one name for what to meta-train, chosen by what the loss says of the data.

Ratings are solved for (``LadderedRidge``), events are ranked by gradient steps beside cosines, a regression and iALS
(``LadderedMAML``). Both are a shared initialization adapted per user from the support set, start where the strongest simple
recommenders stand, and depart from there only where users not trained on gain.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from recsys_meta.algorithms.base import Judging, Learner, TaskState
from recsys_meta.algorithms.laddered_maml import LadderedMAML
from recsys_meta.algorithms.laddered_ridge import LadderedRidge
from recsys_meta.models.losses import RATING_LOSSES, LossName
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, Histories, ItemCodes, Sizes


class Laddered(Learner):
    """``LadderedRidge`` under a loss that rates, ``LadderedMAML`` under one that ranks.

    Args:
        sizes: features of users and items to provide for.
        loss: see ``models.losses``; of those that rate the ridge takes "squared" alone.
        item_ids: whether items are known by their ids; to be turned off where they rise and fall within hours.
        counts: of ``LadderedMAML``.

    Raises:
        ValueError: the loss is "absolute".
    """

    contract_settings = ({"loss": "squared"}, {"loss": "softmax"})

    def __init__(
        self, sizes: Sizes, *, loss: LossName = "squared", item_ids: bool = True, counts: bool | None = None
    ) -> None:
        super().__init__(sizes)
        if loss == "absolute":
            raise ValueError("found loss 'absolute'; expected squared, or one that ranks")
        self.loss = loss
        self.chosen: LadderedRidge | LadderedMAML = (
            LadderedRidge(sizes, item_ids=item_ids)
            if loss in RATING_LOSSES
            else LadderedMAML(sizes, loss=loss, item_ids=item_ids, counts=counts)
        )
        self.averaged = self.chosen.averaged
        self.foretells = self.chosen.foretells
        self.whole_catalogue = self.chosen.whole_catalogue
        self.negatives = self.chosen.negatives
        self.tempering = self.chosen.tempering

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Of the chosen one; and so on."""
        self.chosen.fit_statistics(histories, catalogue)

    def fit_snapshots(self, snapshots: Sequence[tuple[Histories, Catalogue]]) -> None:
        self.chosen.fit_snapshots(snapshots)

    def fit_forecast(self, asked: Sequence[tuple[Catalogue, Tensor]]) -> None:
        self.chosen.fit_forecast(asked)

    def refit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        self.chosen.refit_statistics(histories, catalogue)

    def settle(self, gains: Judging, fellows: Sequence[Self] = ()) -> None:
        of_fellows: list[Any] = [fellow.chosen for fellow in fellows]  # all of them of one kind
        self.chosen.settle(gains, of_fellows)

    def continue_from(self, state: Mapping[str, Tensor]) -> None:
        self.chosen.continue_from(_of_chosen(state))

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        return self.chosen.encode(catalogue)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        return self.chosen.adapt(support, users, items)

    def evidence(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        return self.chosen.evidence(support, users, items)

    def weighed(self, evidence: TaskState) -> TaskState:
        return self.chosen.weighed(evidence)

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        return self.chosen.prior(support, users, items)

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        return self.chosen.predict(state, items, index)

    def contenders(self, state: TaskState, items: ItemCodes, least: Tensor) -> Tensor:
        return self.chosen.contenders(state, items, least)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        return self.chosen.meta_loss(episodes)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        return self.chosen.task_loss(state, examples, items, excluded)

    def user_vectors(self, state: TaskState) -> Tensor:
        return self.chosen.user_vectors(state)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Of the chosen one."""
        return self.chosen.parameter_groups(weight_decay)


def _of_chosen(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("chosen."): value for name, value in state.items()}
