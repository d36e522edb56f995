"""What two items have in common beside the factors of a factorization: covariances of pairs, where ratings prove them.

Factors say what runs through a whole catalogue. What a few items share alone, as the parts of a series do, is lost on them, and
foretells a rating where one of these few was rated (Y. Koren: Factorization Meets the Neighborhood, KDD 2008). So what a
user's ratings are beyond mean and biases has a covariance R besides that of the factorization,

    y ~ N(0, Sigma + R)      Sigma = 1 / offset_precision + Q Q^T + D,   D = diag(noise + the variances of an item's factors)

and R is 0 for most pairs. From there one step of Fisher scoring, with A = Sigma^-1 and a = A y of each user who rated both:

    G_ij = sum of (a_i a_j - A_ij)      H_ij = sum of (A_ii A_jj + A_ij^2)
    R_ij = 2 sign(G_ij) max(|G_ij| - 2 sqrt(H_ij), 0) / (H_ij + 200 / noise^2)

A pair within two standard errors of nothing shares nothing; the last term is a prior, as if 200 more users had rated both and
shown nothing. Twice, for the factors were fitted to the same ratings and have taken their part of what is left (measured:
docs/closed-forms.md).
"""

import torch
from torch import Tensor

from recsys_meta.models.variational_factors import VariationalFactors

_CHANCE = 2.0  # standard errors
_PRIOR = 200.0  # users
_TIMES = 2.0
_USERS, _RATINGS = 20_000, 500  # who is asked, and ratings of each, at most
_ROWS = 1024  # items whose pairs are looked through at a time


def residual_covariances(
    owners: Tensor,
    users: int,
    items: Tensor,
    ratings: Tensor,
    found: VariationalFactors,
    *,
    neighbours: int,
    largest: int,
) -> tuple[Tensor, Tensor]:
    """R, sparse: of each of N items K others, [N, K] int64, and their covariances with it, [N, K]; 0 where fewer share anything.

    Args:
        owners, items, ratings: [M], owners ascending, 0 .. users - 1: what ``found`` was fitted to.
        neighbours: K, or N where that is less; those with the largest covariances.
        largest: the most rated items that are looked at, others share nothing; 6,000 take 288 MB.
    """
    size = len(found.bias)
    kept = torch.bincount(items, minlength=size).argsort(descending=True, stable=True)[:largest]
    place = torch.full((size,), -1).index_copy(0, kept, torch.arange(len(kept)))
    left = ratings - found.mean - found.bias[items]
    slope, information = _scores(owners, users, place[items], left, found, kept)
    neighbour = torch.zeros(size, min(neighbours, size), dtype=torch.int64)
    covariance = torch.zeros(neighbour.shape)
    columns = min(neighbours, len(kept))
    for rows in torch.split(torch.arange(len(kept)), _ROWS):
        beyond = (slope[rows].abs() - _CHANCE * information[rows].sqrt()).clamp(min=0)
        top = (beyond / (information[rows] + _PRIOR / found.noise.square())).topk(columns, dim=1)
        neighbour[kept[rows], :columns] = kept[top.indices]
        covariance[kept[rows], :columns] = _TIMES * top.values * slope[rows].gather(1, top.indices).sign()
    return neighbour, covariance


def _scores(
    owners: Tensor, users: int, places: Tensor, left: Tensor, found: VariationalFactors, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """G and H of the kept items, [P, P] each, 0 on the diagonal. places: [M] among the kept, -1 elsewhere; left: y, [M]."""
    size, draw = len(kept), torch.Generator().manual_seed(0)
    slope, information = torch.zeros(size, size), torch.zeros(size, size)
    regressors = torch.cat([torch.ones(size, 1), found.vectors[kept]], 1)
    own = 1 / (found.noise + found.variance[kept].sum(1))  # D^-1
    precision = torch.cat([found.offset_precision.reshape(1), torch.ones(found.vectors.shape[1])]).diag()
    stops = torch.bincount(owners, minlength=users).cumsum(0).tolist()
    for user in torch.randperm(users, generator=draw)[:_USERS].tolist():
        mine = slice(stops[user - 1] if user else 0, stops[user])
        rated = (places[mine] >= 0).nonzero().squeeze(1)
        if len(rated) < 2:
            continue
        rated = rated[torch.randperm(len(rated), generator=draw)[:_RATINGS]]
        at = places[mine][rated]
        # A by way of the factors (M. Woodbury 1950), which are fewer.
        weighed = regressors[at] * own[at].unsqueeze(1)
        root = torch.linalg.cholesky(precision + weighed.T @ regressors[at])
        shared = torch.linalg.solve_triangular(root, weighed.T, upper=False)
        inverse = own[at].diag() - shared.T @ shared
        a, diagonal = inverse @ left[mine][rated], inverse.diagonal()
        pairs = (at.unsqueeze(1) * size + at).flatten()
        slope.view(-1).index_add_(0, pairs, (torch.outer(a, a) - inverse).flatten())
        information.view(-1).index_add_(
            0, pairs, (torch.outer(diagonal, diagonal) + inverse.square()).flatten()
        )
    return slope.fill_diagonal_(0), information.fill_diagonal_(0)
