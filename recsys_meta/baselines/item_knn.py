"""ItemKNN: an item is worth the sum of its similarities to what the user chose, each item knowing its nearest alone.

M. Deshpande, G. Karypis: Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004.

    cos(i, j) = |users who chose both| / sqrt(|users of i| |users of j|),     N(i) = the items j != i of largest cosine
    score(u, i) = sum over j in the support of u that are in N(i) of cos(i, j), over the number of items in the support

Differs from the paper: similarities are not normalized per item. Ratings count as events, whatever their value above 0.
"""

import torch
from torch import Tensor

from recsys_meta.baselines.item_item import ItemItem, PopularityBlend
from recsys_meta.models.incidence import nearest_items, sparse_product
from recsys_meta.tensors import Catalogue, Sizes

_ROWS = 1024  # similarities of so many items to all others stand in memory at a time


class ItemKNN(ItemItem):
    """Cosine neighbours.

    Args:
        sizes: only the number of item ids is read.
        neighbours: how many similar items each item keeps, at least 1.
    """

    contract_settings = ({}, {"neighbours": 5})

    pairs: Tensor  # [2, ids * K] int64: j and i, for each j in N(i); sorted by j
    similarity: Tensor  # [ids * K], 0 where there are fewer neighbours

    def __init__(self, sizes: Sizes, neighbours: int = 200) -> None:
        super().__init__(sizes)
        if neighbours < 1:
            raise ValueError(f"found neighbours {neighbours}; expected 1 or more")
        self.neighbours = min(neighbours, sizes.item.ids)
        self.register_buffer("pairs", torch.zeros(2, sizes.item.ids * self.neighbours, dtype=torch.int64))
        self.register_buffer("similarity", torch.zeros(sizes.item.ids * self.neighbours))

    def fit_similarities(self, chosen: Tensor, catalogue: Catalogue) -> None:
        """Reads off the neighbours of each item."""
        weight = chosen.sum(0).to_dense().clamp(min=1).rsqrt()
        similarities, neighbours = [], []
        for rows in torch.split(torch.arange(len(weight)), _ROWS):
            nearest, others = nearest_items(
                chosen, rows, self.neighbours, row_weight=weight[rows], weight=weight
            )
            similarities.append(nearest.flatten())
            neighbours.append(others.flatten())
        sources, order = torch.cat(neighbours).sort(stable=True)
        self.pairs.copy_(torch.stack([sources, order // self.neighbours]))
        self.similarity.copy_(torch.cat(similarities)[order])

    def affinities(self, ids: Tensor, weights: Tensor) -> Tensor:
        """[T, ids]: of each item the mean similarity to ids [T, S], 0 to those that are none of its neighbours."""
        tasks, vocabulary = len(ids), self.sizes.item.ids
        owners = torch.arange(tasks, device=ids.device).unsqueeze(1).expand(ids.shape)
        history = torch.sparse_coo_tensor(
            torch.stack([owners.flatten(), ids.flatten()]),
            (weights / weights.sum(1, keepdim=True).clamp(min=1)).flatten(),
            (tasks, vocabulary),
            check_invariants=False,
        )
        similarity = torch.sparse_coo_tensor(
            self.pairs, self.similarity, (vocabulary, vocabulary), is_coalesced=True, check_invariants=False
        )
        return sparse_product(history, similarity)


class ItemKNNPopularity(PopularityBlend, ItemKNN):
    """Cosine neighbours and popularity."""

    contract_settings = ({}, {"neighbours": 5})
