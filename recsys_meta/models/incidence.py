"""Who chose what: training interactions as a sparse matrix of users and item ids; products of such."""

import warnings

import torch
from torch import Tensor

from recsys_meta.tensors import Catalogue, Histories


def incidence(histories: Histories, catalogue: Catalogue, ids: int) -> Tensor:
    """[U, ids] sparse: 1 where the user chose the item (value above 0), however often.

    The column of the unknown item is empty: what pools there in training says nothing of the next newcomer.
    """
    columns = catalogue.features.ids[histories.items]
    chosen = (histories.values > 0) & (columns > 0)
    places = torch.unique((histories.owners() * ids + columns)[chosen])
    return torch.sparse_coo_tensor(
        torch.stack([places // ids, places % ids]),
        torch.ones(len(places)),
        (len(histories.offsets) - 1, ids),
        is_coalesced=True,
        check_invariants=False,
    )


def sparse_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, dense. left: [A, B], right: [B, C], both sparse; costs what their non-zeros meet in."""
    with warnings.catch_warnings():
        # Torch multiplies by way of the compressed layout, of which it says that it is a beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        product: Tensor = torch.sparse.mm(left, right).to_dense()
    return product
