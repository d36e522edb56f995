"""The regression on few choices, in closed form, as a recommender of its own.

    score(u, i) = log popularity(i) + l_i(S)

with l_i(S) the logarithm of how many times more likely the support S makes item i: see ``models.episode_regression``, where the
equations and the sources stand. Of more choices than the map is fitted to the sum says too much: scores are then tempered by the
root of the one number over the other, which no ranking notices.

What meta-learning would arrive at if a learner were one linear map from any support set, without a single step of training: a
measure of what the others' gradients are worth.
"""

from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.popularity import Popularity
from recsys_meta.models.episode_regression import EpisodeRegression
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, ItemCodes, Sizes


class FewShotRegression(Popularity):
    """Popularity, times what a least-squares map from few choices makes of it; without history popularity itself.

    Ratings count as events, whatever their value above 0. Items are known by their ids alone.

    Args:
        sizes: only the number of item ids is read.
        shots, ridge, largest: of ``EpisodeRegression``.

    Raises:
        ValueError: fewer than one shot, or a ridge that is not above 0.
    """

    loss = "softmax"
    contract_settings = ({}, {"shots": 5, "largest": 20})

    def __init__(self, sizes: Sizes, *, shots: int = 3, ridge: float = 10.0, largest: int = 6000) -> None:
        super().__init__(sizes)
        if shots < 1 or not ridge > 0:
            raise ValueError(f"found shots {shots}, ridge {ridge}; expected 1 or more, and more than 0")
        self.regression = EpisodeRegression(sizes.item.ids, shots=shots, ridge=ridge, largest=largest)

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Solves for the map."""
        self.regression.fit(histories, catalogue, cross=False)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"lift": [T, ids], of every item of the vocabulary, 0 without history; "tempering": [T, 1]}."""
        ids = items.ids[support.items]
        liked = support.mask & (support.targets > 0) & (ids > 0)
        shots = self.regression.shots
        tempering = (shots / liked.sum(1, keepdim=True).clamp(min=shots)).sqrt()
        return {"lift": self.regression.scores(ids, liked), "tempering": tempering}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        if index is None:
            return state["tempering"] * (state["lift"][:, items.ids] + items.bias)
        return state["tempering"] * (state["lift"].gather(1, items.ids[index]) + items.bias[index])
