"""What a support set says of an item by ridge regression of each item on all the others, each training user left out exactly.

H. Steck: Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019 (EASE). With X the users' choices and G = X^T X,

    P = (G + ridge I)^-1,   B_ji = -P_ji / P_ii for j != i,   score(S, i) = sum over j in S, j != i, of B_ji

Unlike cosines they know that two items chosen by the same users say the same thing once. Scores are given in units of their
spread (``models.score_spread``).

A regression that a user took part in knows what it chose besides its support. In meta-training it is therefore taken out: with x
its choices G becomes G - x x^T, and (J. Sherman, W. Morrison, Ann. Math. Statist. 21(1), 1950)

    P becomes P + h h^T / (1 - x . h),   h = P x

so that every training user is served as if it had never been seen, for the price of one product with P.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from recsys_meta.models.incidence import incidence, sparse_product
from recsys_meta.models.score_spread import spread_of
from recsys_meta.tensors import Catalogue, Histories

_LEFT = 1e-3  # least of 1 - x . h: choices that were counted in part cannot be taken out as a whole


class ItemRegression(nn.Module):
    """EASE over a vocabulary, row 0 of which, the unknown, is never counted.

    Args:
        ids: rows of the vocabulary.
        ridge: lambda of the paper; above 0.
        largest: fits only so many items, those that can be recommended first, then the most chosen: 6,000 take 144 MB. The
            others score 0 and tell nothing.
    """

    place: Tensor  # [ids] int64: the row of each id among the N items fitted; N for those left out
    inverse: Tensor  # [N + 1, N + 1]: P, and 1 for those left out
    spread: Tensor  # []: the unit of scores

    def __init__(self, ids: int, *, ridge: float = 300.0, largest: int = 6000) -> None:
        super().__init__()
        self.ridge = ridge
        items = min(ids, largest)
        self.register_buffer("place", torch.full((ids,), items))
        self.register_buffer("inverse", torch.eye(items + 1))
        self.register_buffer("spread", torch.ones(()))

    def fit(self, histories: Histories, catalogue: Catalogue) -> None:
        """Inverts in float64. Values above 0 are choices."""
        chosen = incidence(histories, catalogue, len(self.place))
        items, times = len(self.inverse) - 1, chosen.sum(0).to_dense()
        eligible = torch.zeros_like(times).index_fill(0, catalogue.features.ids[catalogue.eligible], 1.0)
        worth = times + len(chosen) * (eligible * (times > 0))  # more than any count
        everything = items == len(times)
        kept = torch.arange(items) if everything else worth.argsort(descending=True, stable=True)[:items]
        self.place.fill_(items)[kept] = torch.arange(items)
        of_kept = chosen.index_select(1, kept)
        gram = sparse_product(of_kept.T, of_kept).to(torch.float64)
        gram.diagonal().add_(self.ridge)
        self.inverse[:items, :items] = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self.spread.fill_(1.0)
        self.spread.copy_(spread_of(chosen, self.scores))

    @torch.no_grad()
    def scores(self, ids: Tensor, mask: Tensor, own: Tensor | None = None) -> Tensor:
        """Of every item of the vocabulary after T support sets, in units of ``spread``, [T, ids]; 0 without support.
        ids, mask: [T, S].

        own: [T, ids], 1 where the task's user chose the item and is among those counted; None: it is not.
        """
        tasks, items = len(ids), len(self.inverse) - 1
        if not ids.shape[1]:
            return self.inverse.new_zeros(tasks, len(self.place))
        rows = self.place[ids]
        weights = (mask & (rows < items)).to(self.inverse.dtype)
        starts = torch.arange(tasks, device=ids.device) * ids.shape[1]
        sums = embedding_bag(
            rows.flatten(), self.inverse, starts, mode="sum", per_sample_weights=weights.flatten()
        )
        diagonal = self.inverse.diagonal()
        if own is not None:
            chosen = torch.zeros_like(sums).scatter_add(1, self.place.expand(tasks, -1), own.to(sums.dtype))
            chosen[:, items] = 0
            explained = chosen @ self.inverse
            left = (1 - (chosen * explained).sum(1, keepdim=True)).clamp(min=_LEFT)
            shared = (explained.gather(1, rows) * weights).sum(1, keepdim=True)
            sums = sums + shared / left * explained
            diagonal = diagonal + explained.square() / left
        scores = sums.div_(diagonal * -self.spread).scatter_add_(1, rows, weights / self.spread)
        return scores[:, :-1] if items == len(self.place) else scores[:, self.place]
