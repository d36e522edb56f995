"""Who was chosen together with whom: counts of item pairs, and the cosines of a support set read off them.

    n_i = users who chose i,   n_ij = users who chose i and j
    cosine(S, i) = sum over j in S, j != i, of n_ij / sqrt(n_i n_j)

The counts of a user who took part in them speak of itself: they say that what it chose goes together. In meta-training its own
contribution is therefore taken out, which is exact: with o the items that the user chose, n_i becomes n_i - o_i and n_ij becomes
n_ij - o_i o_j. So every training user is served as if it had never been seen.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from recsys_meta.models.incidence import incidence, nearest_items, sparse_product
from recsys_meta.tensors import Catalogue, Histories

_ROWS = 1024  # items whose pairs with all others stand in memory at a time
_COLUMNS = 32  # support examples whose neighbours are looked up at a time


class Cooccurrence(nn.Module):
    """Counts of item pairs over a vocabulary; of each item with all others, or with its nearest alone where that is too much.

    Args:
        ids: rows of the vocabulary; row 0, the unknown, is never counted.
        largest: vocabularies up to this size keep all pairs: 6,000 items take 144 MB.
        neighbours: of larger vocabularies each item keeps the pairs with so many items of largest cosine.
    """

    occurrences: Tensor  # [ids]: n_i
    pairs: Tensor  # [ids, ids]: n_ij, or [ids, K]: of the neighbours
    neighbour: Tensor  # [ids, K] int32, or [0]

    def __init__(self, ids: int, *, largest: int = 6000, neighbours: int = 300) -> None:
        super().__init__()
        self.dense = ids <= largest
        width = ids if self.dense else min(neighbours, ids)
        self.register_buffer("occurrences", torch.zeros(ids))
        self.register_buffer("pairs", torch.zeros(ids, width))
        self.register_buffer("neighbour", torch.zeros(0 if self.dense else (ids, width), dtype=torch.int32))

    def fit(self, histories: Histories, catalogue: Catalogue) -> None:
        """Counts. Values above 0 are choices."""
        chosen = incidence(histories, catalogue, len(self.occurrences))
        self.occurrences.copy_(chosen.sum(0).to_dense())
        scale = self.occurrences.clamp(min=1).rsqrt()
        for rows in torch.split(torch.arange(len(scale)), _ROWS):
            if self.dense:
                counts = sparse_product(chosen.index_select(1, rows).T, chosen)
                counts[torch.arange(len(rows)), rows] = 0
                self.pairs[rows] = counts
            else:
                plain, most = torch.ones(len(rows)), self.pairs.shape[1]
                worth, others = nearest_items(chosen, rows, most, row_weight=plain, weight=scale)
                self.neighbour[rows] = others.to(torch.int32)
                self.pairs[rows] = (worth / scale[others]).round()  # counts are whole numbers

    @torch.no_grad()
    def cosines(
        self, ids: Tensor, mask: Tensor, own: Tensor | None = None, among: Tensor | None = None
    ) -> Tensor:
        """Of every item of the vocabulary with T support sets, [T, ids]. ids, mask: [T, S].

        own: [T, ids], 1 where the task's user chose the item and is among those counted; None: it is not.
        among: [C] ids, ascending, the support's among them: of these items alone, and ``own`` with them, [T, C].
        """
        occurrences = self.occurrences if among is None else self.occurrences[among]
        occurrences = occurrences if own is None else occurrences - own
        scale = occurrences.clamp(min=1).rsqrt()
        places = ids if among is None else torch.searchsorted(among, ids).clamp(max=len(among) - 1)
        worth = (scale[places] if own is None else scale.gather(1, places)) * mask
        sums = scale.new_zeros(len(ids), scale.shape[-1])
        met = None if own is None else torch.zeros_like(sums)  # of the pairs that are kept
        if self.dense and ids.shape[1]:
            starts = torch.arange(len(ids), device=ids.device) * ids.shape[1]
            flat = worth.flatten()
            sums = embedding_bag(ids.flatten(), self.pairs, starts, mode="sum", per_sample_weights=flat)
            sums = sums if among is None else sums[:, among]
            if met is not None:
                met = worth.sum(1, keepdim=True) - met.scatter_add(1, places, worth)
        elif ids.shape[1]:
            for some, weights in zip(
                torch.split(ids, _COLUMNS, 1), torch.split(worth, _COLUMNS, 1), strict=True
            ):
                columns, counts = self.neighbour[some].long().flatten(1), self.pairs[some].flatten(1)
                if among is not None:  # what is not asked for adds nothing, to the first of those that are
                    found = torch.searchsorted(among, columns).clamp(max=len(among) - 1)
                    columns, counts = found, counts * (among[found] == columns)
                weights = weights.repeat_interleave(self.pairs.shape[1], 1)
                sums.scatter_add_(1, columns, counts * weights)
                if met is not None:
                    met.scatter_add_(1, columns, (counts > 0) * weights)
        if met is not None and own is not None:
            sums = (sums - own * met).clamp(min=0)
        return sums.mul_(scale)
