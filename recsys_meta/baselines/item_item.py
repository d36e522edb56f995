"""Item-item recommenders: the score of an item is a sum over what the user chose; and their blend with popularity."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.popularity import Popularity
from recsys_meta.models.incidence import incidence
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, ItemCodes, Sizes

TIE_BREAK = 1e-6  # of log popularity: below any difference between scores that says something


class ItemItem(Popularity):
    """score(u, i) = sum over j in the support of u of s(j, i) + beta(shots) log popularity(i).

    Outside of a blend beta is so small that popularity decides only where nothing else does: without history it is the prior.

    Knows items by id alone: what is unknown to the vocabulary is as good as never chosen. Ratings count as events,
    whatever their value above 0.
    """

    loss = "softmax"

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Reads the similarities off who chose what."""
        self.fit_similarities(incidence(histories, catalogue, self.sizes.item.ids), catalogue)

    @abstractmethod
    def fit_similarities(self, chosen: Tensor, catalogue: Catalogue) -> None:
        """Fits s. chosen: [U, ids] sparse, 1 where the user chose the item; never the unknown item, 0."""

    @abstractmethod
    def affinities(self, ids: Tensor, weights: Tensor) -> Tensor:
        """The summed similarities of every item of the vocabulary, [T, ids]. ids, weights: [T, S]."""

    def popularity_weight(self, shots: Tensor) -> Tensor:
        """beta of these numbers of shots, [T]."""
        return torch.full(shots.shape, TIE_BREAK, device=shots.device)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"affinity": [T, ids], "popularity": [T, 1]}: the score of each item of the vocabulary, and beta."""
        ids = items.ids[support.items]
        liked = support.mask & (support.targets > 0) & (ids > 0)
        affinity = self.affinities(ids, liked.to(items.bias.dtype))
        affinity[:, 0] = 0
        return {"affinity": affinity, "popularity": self.popularity_weight(liked.sum(1)).unsqueeze(1)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        if index is None:
            return state["affinity"][:, items.ids] + state["popularity"] * items.bias
        return state["affinity"].gather(1, items.ids[index]) + state["popularity"] * items.bias[index]


class PopularityBlend(ItemItem):
    """Adds beta(shots) log popularity to the scores of the class that stands beside it among the bases.

    beta is chosen on training users held out for it: for each of some numbers of shots the one of a grid with the best
    mean NDCG@10 of what these users chose besides. Other numbers of shots take the nearest below.

    Args:
        sizes: only the number of item ids is read.
        held_out: how many training users are held out, at most a fifth of all; afterwards everything is fitted to all.
        seed: of the choice of these users, and of their support.
        settings: of the other class.
    """

    SHOTS = (1, 3, 5, 10, 20)
    # Up to 1 in steps of a third of a decade or less; never 0, so that popularity decides where nothing else does.
    GRID = (1e-4, 0.001, 0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)

    beta: Tensor  # [len(SHOTS)]

    def __init__(self, sizes: Sizes, *, held_out: int = 1000, seed: int = 0, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        self.held_out = held_out
        self.seed = seed
        self.register_buffer("beta", torch.ones(len(self.SHOTS)))

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Fits the similarities twice: without the held-out users to choose beta, then with all."""
        draw = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(histories.offsets) - 1, generator=draw)
        count = min(self.held_out, len(order) // 5)
        super().fit_statistics(histories.take(order[count:]), catalogue)
        chosen = incidence(histories.take(order[:count]), catalogue, self.sizes.item.ids).to_dense()
        popularity = torch.full_like(chosen[:1], -torch.inf).index_copy(
            1, catalogue.features.ids[catalogue.eligible], catalogue.log_popularity[catalogue.eligible][None]
        )
        for place, shots in enumerate(self.SHOTS):
            able = chosen[chosen.sum(1) > shots]
            self.beta[place:] = (
                self.best_beta(able, popularity, shots, draw) if len(able) else self.beta[place]
            )
        super().fit_statistics(histories, catalogue)

    def best_beta(self, chosen: Tensor, popularity: Tensor, shots: int, draw: torch.Generator) -> float:
        """The beta of the best mean NDCG@10. chosen: [U, ids], 1 where the user chose the item, more than ``shots``;
        popularity: [1, ids], minus infinity for what cannot be recommended.
        """
        support = (chosen * torch.rand(chosen.shape, generator=draw)).topk(shots).indices
        affinity = self.affinities(support, torch.ones(support.shape)).scatter(1, support, -torch.inf)
        wanted = chosen.scatter(1, support, 0) * popularity.isfinite()
        discounts = torch.arange(2, 12).log2().reciprocal()[: chosen.shape[1]]
        ideal = wanted.topk(len(discounts)).values @ discounts
        gains = []
        for beta in self.GRID:
            top = (affinity + beta * popularity).topk(len(discounts)).indices
            gains.append((wanted.gather(1, top) @ discounts / ideal.clamp(min=1e-9)).mean())
        return self.GRID[int(torch.stack(gains).argmax())]

    def popularity_weight(self, shots: Tensor) -> Tensor:
        """beta of the largest of SHOTS that is not above, [T]; without history that of the least."""
        steps = torch.tensor(self.SHOTS, device=shots.device)
        return self.beta[(torch.bucketize(shots, steps, right=True) - 1).clamp(min=0)]
