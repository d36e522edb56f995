"""Who chose what: training interactions as a sparse matrix of users and item ids; products of such."""

import warnings

import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys_meta.tensors import Catalogue, Histories, Ragged

_SPARSE = 32  # a product that holds less than one value of so many is cheaper left sparse


def incidence(histories: Histories, catalogue: Catalogue, ids: int) -> Tensor:
    """[U, ids] sparse: 1 where the user chose the item (value above 0), however often.

    The column of the unknown item is empty: what pools there in training says nothing of the next newcomer.
    """
    places, _ = _pairs(histories, catalogue, ids)
    return torch.sparse_coo_tensor(
        torch.stack([places // ids, places % ids]),
        torch.ones(len(places)),
        (len(histories.offsets) - 1, ids),
        is_coalesced=True,
        check_invariants=False,
    )


def choices_of(histories: Histories, catalogue: Catalogue, ids: int) -> Ragged:
    """What ``incidence`` holds of each user, U lists of item ids and how often the user chose them, [M, 2] int64."""
    places, times = _pairs(histories, catalogue, ids)
    counts = torch.bincount(places // ids, minlength=len(histories.offsets) - 1)
    return Ragged(torch.stack([places % ids, times], 1), pad(counts.cumsum(0), (1, 0)))


def _pairs(histories: Histories, catalogue: Catalogue, ids: int) -> tuple[Tensor, Tensor]:
    """user * ids + item of whatever was chosen, ascending, and how often."""
    columns = catalogue.features.ids[histories.items]
    chosen = (histories.values > 0) & (columns > 0)
    pairs = (histories.owners() * ids + columns)[chosen]
    places, times = torch.unique(pairs, return_counts=True)
    return places, times


def sparse_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, dense. left: [A, B], right: [B, C], both sparse; costs what their non-zeros meet in."""
    return _product(left, right).to_dense()


def nearest_items(
    chosen: Tensor, rows: Tensor, most: int, *, row_weight: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each of these items the others that go with it most, by n_ij v_i w_j with n_ij users who chose both: these values and
    the items, [R, most] each. chosen: of ``incidence``; row_weight, v: [R]; weight, w: [ids].
    """
    product = _product(chosen.index_select(1, rows).T, chosen)
    if product._nnz() * _SPARSE > product.numel():
        values = product.to_dense() * row_weight.unsqueeze(1) * weight
        values[torch.arange(len(rows)), rows] = 0
        top = values.topk(most)
        return top.values, top.indices
    counts = product.coalesce()
    here, others = counts.indices()
    values = counts.values() * (rows[here] != others) * row_weight[here] * weight[others]
    return largest_of_rows(
        torch.sparse_coo_tensor(
            counts.indices(), values, counts.shape, is_coalesced=True, check_invariants=False
        ),
        most,
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # Torch multiplies by way of the compressed layout, of which it says that it is a beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        product: Tensor = torch.sparse.mm(left, right)
    return product


def largest_of_rows(matrix: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row of a sparse matrix, and their columns, [R, most] each, in no order; 0, and columns that
    are free, where a row has fewer. matrix: [R, C], coalesced, C at least ``most``, nothing below 0.

    Only rows with more values than wanted are looked at as a whole: the others cost what they hold, however many columns.
    """
    (rows, columns), held = matrix.indices(), matrix.values()
    lengths = torch.bincount(rows, minlength=len(matrix))
    taken = torch.zeros(len(matrix), min(2 * most, matrix.shape[1]), dtype=torch.uint8)
    near = columns < taken.shape[1]
    taken[rows[near], columns[near]] = 1
    free = taken.argsort(stable=True)
    found = free.gather(1, (torch.arange(most) - lengths.unsqueeze(1)).clamp(min=0))
    values = held.new_zeros(len(matrix), most)

    place = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows]
    whole = lengths[rows] <= most
    values[rows[whole], place[whole]] = held[whole]
    found[rows[whole], place[whole]] = columns[whole]
    longer = (lengths > most).nonzero().squeeze(1)
    if len(longer):
        values[longer], found[longer] = matrix.index_select(0, longer).to_dense().topk(most)
    return values, found
