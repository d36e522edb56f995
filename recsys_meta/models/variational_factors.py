"""Factors of ratings with their uncertainty: a matrix factorization fitted by variational Bayes, every variance learned.

Y. J. Lim, Y. W. Teh: Variational Bayesian Approach to Movie Rating Prediction, KDD Cup and Workshop 2007; with biases as in
Y. Koren, R. Bell, C. Volinsky, IEEE Computer 42(8), 2009.

    r_ui = mean + b_i + b_u + p_u . q_i + noise          b_u ~ N(0, 1 / offset_precision),  p_u ~ N(0, I)
    q(b_u, p_u), q(b_i, q_i) Gaussian, updated in turn; the prior variances of items (one per factor) and of the noise follow

ALS puts point estimates in the place of these Gaussians, so that an item rated twice counts as much in a fold-in as one rated a
thousand times, and it needs its ridge tuned; here the ridge is what the data say. With F factors and D = F + 1 a round costs
D^2 operations per rating and D^3 per user and item.

b_i is estimated beside p_u . q_i, for users whose p_u is known. The marginal bias is that of the model without factors: what an
item's raters give it, whatever their tastes, which foretells more of users of whom nothing is known.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

_USERS = 8192  # whose covariances stand in memory at a time
_LEAST_NOISE = 1e-6  # variance: ratings that are all the same, or a single one, have none
_TURNS = 10  # of items and users, for the marginal biases


class VariationalFactors(NamedTuple):
    """Posterior means of N items, how uncertain their factors are, and what a new user is folded in with."""

    mean: Tensor  # [] of all ratings
    bias: Tensor  # [N]
    marginal_bias: Tensor  # [N]: where the factors of the user are unknown
    vectors: Tensor  # [N, F]
    variance: Tensor  # [N, F]: of the entries of vectors
    noise: Tensor  # [] variance
    offset_precision: Tensor  # []


def variational_factors(
    owners: Tensor,
    users: int,
    items: Tensor,
    size: int,
    ratings: Tensor,
    *,
    factors: int,
    rounds: int,
    seed: int = 0,
) -> VariationalFactors:
    """Fits ``rounds`` times in turn. owners, items, ratings: [M], owners ascending, 0 .. users - 1, items 0 .. size - 1."""
    mean, width = ratings.mean(), factors + 1
    counts = torch.bincount(items, minlength=size).to(ratings.dtype)
    moments = torch.zeros(size, width, width)  # posterior covariances of (b_i, q_i)
    centre = 0.1 * torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
    centre[:, 0] = torch.zeros(size).index_add(0, items, ratings - mean) / (counts + 5)
    noise = ratings.var().nan_to_num(0.0).clamp(min=_LEAST_NOISE)
    user_precision = torch.ones(width)
    item_precision = torch.full((width,), 10.0)
    stops = torch.bincount(owners, minlength=users).cumsum(0)
    for _ in range(rounds):
        regressors, second, shift = _seen_from_the_other_side(centre, moments)
        of_items, toward = torch.zeros(size, width * width), torch.zeros(size, width)
        user_second, squares = torch.zeros(width), ratings.new_zeros(())
        for first in range(0, users, _USERS):
            some = min(_USERS, users - first)
            begin = int(stops[first - 1]) if first else 0
            part = slice(begin, int(stops[first + some - 1]))
            rows, columns = owners[part] - first, items[part]
            left = ratings[part] - mean - centre[columns, 0]
            met = _sparse(rows, columns, torch.ones_like(left), (some, size))
            quadratic = (met @ second.flatten(1)).view(some, width, width)
            linear = _sparse(rows, columns, left, (some, size)) @ regressors - met @ shift
            users_centre, spread = _posterior(quadratic / noise, linear / noise, user_precision)
            full = users_centre.unsqueeze(2) * users_centre.unsqueeze(1) + spread
            squares += (left.square() + moments[columns, 0, 0]).sum() - 2 * (users_centre * linear).sum()
            squares += (quadratic * full).sum()
            user_second += full.diagonal(dim1=1, dim2=2).sum(0)
            back = _sparse(columns, rows, torch.ones_like(left), (size, some))
            regressors_u, second_u, shift_u = _seen_from_the_other_side(users_centre, spread)
            of_items += back @ second_u.flatten(1)
            left = ratings[part] - mean - users_centre[rows, 0]
            toward += _sparse(columns, rows, left, (size, some)) @ regressors_u - back @ shift_u
        noise = (squares / len(ratings)).clamp(min=_LEAST_NOISE)
        centre, moments = _posterior(
            of_items.view(size, width, width) / noise, toward / noise, item_precision
        )
        # Factors of users keep the variance 1, and those of items take it over.
        scale = (user_second / users).sqrt()
        user_precision[0] = scale[0] ** -2
        scale[0] = 1
        centre, moments = centre * scale, moments * scale * scale[:, None]
        rated = counts > 0
        item_precision = 1 / (centre.square() + moments.diagonal(dim1=1, dim2=2))[rated].mean(0)
    variance = moments.diagonal(dim1=1, dim2=2)[:, 1:]
    taste = (centre[:, 1:].square() + variance).sum(1)  # the variance of p_u . q_i
    marginal = _biases(
        owners,
        items,
        ratings - mean,
        centre[:, 0],
        (noise + taste) * item_precision[0],
        (noise + taste[items].mean()) * user_precision[0],
        torch.bincount(owners, minlength=users),
    )
    return VariationalFactors(mean, centre[:, 0], marginal, centre[:, 1:], variance, noise, user_precision[0])


def _biases(
    owners: Tensor,
    items: Tensor,
    ratings: Tensor,
    bias: Tensor,
    of_item: Tensor,
    of_user: Tensor,
    rated: Tensor,
) -> Tensor:
    """The biases of items, [N], beside those of users, fitted in turn from ``bias`` on. ratings: above the mean; of_item [N],
    of_user []: how many ratings at a bias of 0 their priors are worth; rated: [U], how many ratings users have.
    """
    counts = torch.bincount(items, minlength=len(bias))
    for _ in range(_TURNS):
        left = torch.zeros(len(rated)).index_add(0, owners, ratings - bias[items])
        of_owners = (left / (rated + of_user))[owners]
        bias = torch.zeros(len(bias)).index_add(0, items, ratings - of_owners) / (counts + of_item)
    return bias


def _seen_from_the_other_side(centre: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (bias, factors) with these means and covariances: the means of the regressors (1, factors), [N, D], their second
    moments, [N, D, D], and how they go with the bias, [N, D].
    """
    regressors = torch.cat([torch.ones_like(centre[:, :1]), centre[:, 1:]], 1)
    second = regressors.unsqueeze(2) * regressors.unsqueeze(1)
    second[:, 1:, 1:] += moments[:, 1:, 1:]
    shift = torch.cat([torch.zeros_like(centre[:, :1]), moments[:, 0, 1:]], 1)
    return regressors, second, shift


def _posterior(quadratic: Tensor, linear: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N, D] and covariance [N, D, D] of N Gaussians with these terms and this diagonal prior precision."""
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(quadratic + precision.diag()))
    return (covariance @ linear.unsqueeze(2)).squeeze(2), covariance


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix in the layout that multiplies fast."""
    with warnings.catch_warnings():
        # Torch says of the compressed layout that it is a beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        whole = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape, check_invariants=False)
        return whole.coalesce().to_sparse_csr()
