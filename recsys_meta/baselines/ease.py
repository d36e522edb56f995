"""EASE: the linear item-item model that reconstructs who chose what best, an item never from itself; in closed form.

H. Steck: Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019. With X the users' choices and G = X^T X,

    B = argmin |X - X B|^2 + ridge |B|^2 with diag B = 0;     P = (G + ridge I)^-1,   B_ji = -P_ji / P_ii,   B_ii = 0
    score(u, i) = sum over j in the support of u of B_ji

The inverse is dense: 20,000 items take 3.2 GB in float64 and minutes. Beyond that ``most_chosen`` leaves out the rest.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recsys_meta.baselines.item_item import ItemItem, PopularityBlend
from recsys_meta.models.incidence import sparse_product
from recsys_meta.tensors import Catalogue, Sizes

LARGEST = 20_000  # items in the inverse


class EASE(ItemItem):
    """The shallow autoencoder.

    Args:
        sizes: only the number of item ids is read.
        ridge: lambda of the paper; above 0.
        most_chosen: fits only so many items, those that can be recommended at the time of the fit first, then the most
            chosen; the others score 0 and tell nothing. By default all.

    Raises:
        ValueError: there are more than 20,000 items to fit.
    """

    contract_settings = ({"ridge": 10.0}, {"ridge": 10.0, "most_chosen": 20})

    place: Tensor  # [ids] int64: the row of each id among the N items fitted; N for those left out
    weight: Tensor  # [N + 1, N + 1]: B, with zeros for those left out

    def __init__(self, sizes: Sizes, ridge: float = 1000.0, most_chosen: int | None = None) -> None:
        super().__init__(sizes)
        if not ridge > 0:
            raise ValueError(f"found ridge {ridge}; expected more than 0, or there is no inverse")
        items = sizes.item.ids if most_chosen is None else min(most_chosen, sizes.item.ids)
        if items > LARGEST:
            raise ValueError(
                f"found {items} items; expected at most {LARGEST}, or the dense inverse gets out of hand: "
                "set most_chosen to fit fewer"
            )
        self.ridge = ridge
        self.register_buffer("place", torch.full((sizes.item.ids,), items))
        self.register_buffer("weight", torch.zeros(items + 1, items + 1))

    def fit_similarities(self, chosen: Tensor, catalogue: Catalogue) -> None:
        """Inverts in float64."""
        items = len(self.weight) - 1
        worth = chosen.sum(0).to_dense()
        worth[catalogue.features.ids[catalogue.eligible]] += len(chosen)  # more than any count
        kept = worth.argsort(descending=True, stable=True)[:items]
        self.place.fill_(items)[kept] = torch.arange(items)
        chosen = chosen.index_select(1, kept)
        gram = sparse_product(chosen.T, chosen).to(torch.float64)
        gram.diagonal().add_(self.ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        inverse /= -inverse.diagonal().clone()
        inverse.fill_diagonal_(0)
        self.weight[:items, :items] = inverse

    def affinities(self, ids: Tensor, weights: Tensor) -> Tensor:
        """[T, ids]: the rows of B of ids [T, S], summed."""
        starts = torch.arange(len(ids), device=ids.device) * ids.shape[1]
        rows, counts = self.place[ids].flatten(), weights.flatten()
        sums = embedding_bag(rows, self.weight, starts, mode="sum", per_sample_weights=counts)
        return sums[:, self.place]


class EASEPopularity(PopularityBlend, EASE):
    """EASE and popularity."""

    contract_settings = ({"ridge": 10.0}, {"ridge": 10.0, "held_out": 5})
