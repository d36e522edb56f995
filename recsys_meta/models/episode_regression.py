"""The linear map from a few choices to all others that errs least over every episode that could be drawn, in closed form.

EASE regresses each item on all that a user chose; a newcomer is known by a few choices. So ask for the map that meta-training
would end with: draw a user with weight w, k of its n choices at random as the support x, let y be the rest, and minimize over
B and c

    E |y - c - B^T x|^2 + ridge |B|^2

The expectation over all such draws is exact. With X the choices, 0 or 1, and j != i,

    E x_j = sum of w k/n X_j            E x_j x_i = sum of w k (k - 1) / (n (n - 1)) X_j X_i
    E y_i = sum of w (n - k)/n X_i      E x_j y_i = sum of w k (n - k) / (n (n - 1)) X_j X_i
    B = (Cov x + ridge I)^-1 Cov(x, y),   c = E y - B^T E x

k is ``shots``, or half of n, rounded down, where that is less; who chose one thing alone says nothing. w is the root of n: who
chose much says more of what goes with what, but not in proportion. This is the linear estimator of least squared error
(N. Wiener), or a denoising autoencoder without hidden layer (H. Steck: Autoencoders that don't overfit towards the Identity,
NeurIPS 2020) whose dropout leaves a support set.

Of a support of m choices as many were expected: c holds for the E|x| of the draws on average, E y - B^T E x m / E|x| for these.
With c itself one choice alone would speak against all that goes with what is chosen most, and was not among it: the more so the
larger k.

What it says of an item is the logarithm of how many times more likely the support makes it,

    1 + B^T (x - E x m / E|x|) / E y

by how much it makes all of them: who chose more chooses more of everything.

As of ``ImplicitFactors``, who is to learn how far this can be trusted is cross-fitted.

B is dense: of 30,000 items it would take 3.6 GB. Where few users chose two things or more it follows from a matrix of these users
(M. Woodbury 1950). With g = E x, p and q what is summed over users in both covariances, D what else stands on the diagonal and

    Z = (P^1/2 X over g^T),   K = diag(1, .., 1, -1) + Z D^-1 Z^T,   (Cov x + ridge I)^-1 = D^-1 - D^-1 Z^T K^-1 Z D^-1

no more is kept than K^-1 and X. Only where both are many the least chosen items are left out.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

from recsys_meta.models.incidence import incidence, sparse_product
from recsys_meta.tensors import Catalogue, Histories

_NOTHING = 1e-30
_LEAST = 0.05  # how many times as likely at the least: a linear map does not stop at 0


class _Weights(NamedTuple):
    """What w, k and n make of R users, float64, [R] each."""

    given: Tensor  # w k / n
    asked: Tensor  # w (n - k) / n
    both_given: Tensor  # p = w k (k - 1) / (n (n - 1))
    given_asked: Tensor  # q = w k (n - k) / (n (n - 1))

    @classmethod
    def of(cls, n: Tensor, shots: int) -> Self:
        """n: how many things each of them chose, [R]; whoever chose one alone weighs nothing."""
        several, k = n > 1, (n / 2).floor().clamp(max=shots).double()
        n = n.clamp(min=2).double()
        w = several * n.sqrt()
        w = w / w.sum().clamp(min=_NOTHING)
        pair = w * k / (n * (n - 1))
        return cls(w * k / n, w * (n - k) / n, pair * (k - 1), pair * (n - k))

    def usual(self) -> Tensor:
        """What a user adds to E x of what it chose, the mean; []."""
        return (self.given.sum() / (self.given > 0).sum().clamp(min=1)).clamp(min=_NOTHING)


class _Map(nn.Module):
    """B and c of one fit over N items, by items or by R users.

    Args:
        items: N, until it is fitted.
    """

    share: Tensor  # [N + 1]: E y, as shares of 1; 0 for those left out, the last one among them
    weight: Tensor  # [N + 1, N + 1]: (B - its mean by E x) / E y, from the row's item to the column's; or K^-1, [R + 1, R + 1]
    choices: Tensor  # [2, M] int64: user and item of the ones of X, sorted
    by_item: Tensor  # [2, M] int64: item and user of the same
    of_users: Tensor  # [2, R]: the root of p, and q
    of_items: Tensor  # [4, N + 1]: D, E x, E y, and the sum of q over the users who chose the item; [4, 0] where ``weight`` is B

    def __init__(self, items: int) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(items + 1))
        self.register_buffer("weight", torch.zeros(items + 1, items + 1))
        for name in ("choices", "by_item"):
            self.register_buffer(name, torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("of_users", torch.zeros(2, 0))
        self.register_buffer("of_items", torch.ones(4, 0))

    def fit(self, chosen: Tensor, of: _Weights, ridge: float) -> None:
        """By items. chosen: [R, N] sparse."""
        owners = chosen.indices()[0]

        def in_pairs(of_users: Tensor) -> Tensor:
            weighed = _sparse(chosen.indices(), chosen.shape, of_users[owners].float())
            return sparse_product(weighed.T, chosen).fill_diagonal_(0)

        given, asked = (_by_item(chosen, some).float() for some in (of.given, of.asked))
        covariance = in_pairs(of.both_given).addr_(given, given, alpha=-1)
        covariance.diagonal().add_(given + ridge * of.usual().float())
        crossed = in_pairs(of.given_asked).addr_(given, asked, alpha=-1)
        unit = asked.clamp(min=_NOTHING)  # of an item that nobody chose nothing is said
        solution = torch.cholesky_solve(crossed, torch.linalg.cholesky(covariance)) / unit
        solution.sub_((given / given.sum().clamp(min=_NOTHING)) @ solution).mul_(asked > 0)
        self.weight = pad(solution.mul_((given > 0).unsqueeze(1)), (0, 1, 0, 1))
        self.share = pad(asked / asked.sum().clamp(min=_NOTHING), (0, 1))
        self.choices, self.by_item = torch.zeros(2, 0).long(), torch.zeros(2, 0).long()
        self.of_users, self.of_items = torch.zeros(2, 0), torch.ones(4, 0)

    def fit_by_users(self, chosen: Tensor, of: _Weights, ridge: float) -> None:
        """By users. chosen: [R, N] sparse."""
        given, asked, both, crossed = (_by_item(chosen, some) for some in of)
        diagonal = given - both + ridge * of.usual()
        owners, places = chosen.indices()
        root = of.both_given.sqrt()
        scaled = _sparse(chosen.indices(), chosen.shape, root[owners] * diagonal[places].rsqrt())
        of_given = (given * diagonal.rsqrt()).unsqueeze(1)
        met = torch.cat([sparse_product(scaled, scaled.T), scaled @ of_given], 1)
        last = torch.cat([met[:, -1], of_given.square().sum().unsqueeze(0) - 1])
        met.diagonal().add_(1.0)
        self.weight = torch.linalg.inv(torch.cat([met, last.unsqueeze(0)])).float()
        self.choices = chosen.indices().contiguous()
        self.by_item = self.choices[:, places.argsort(stable=True)].flip(0)
        self.of_users = torch.stack([root, of.given_asked]).float()
        self.of_items = pad(torch.stack([diagonal, given, asked, crossed]), (0, 1), value=1.0).float()
        self.of_items[1:, -1] = 0.0
        self.share = pad(asked / asked.sum().clamp(min=_NOTHING), (0, 1)).float()

    def likely(self, rows: Tensor, given: Tensor) -> Tensor:
        """1 + B^T (x - E x m / E|x|) / E y after T supports, [T, N + 1]. rows, given: [T, S], given 1 or, of what does not count,
        0. What nobody chose tells nothing, and does not count in m.
        """
        if not self.of_items.shape[1]:
            starts = torch.arange(len(rows), device=rows.device) * rows.shape[1]
            weights = given.flatten()
            sums = embedding_bag(rows.flatten(), self.weight, starts, mode="sum", per_sample_weights=weights)
            return sums.add_(1)
        diagonal, expected, asked, crossed = self.of_items.unsqueeze(2)
        root, of_pairs = self.of_users.unsqueeze(2)
        shape, ones = (len(root), len(diagonal)), root.new_ones(self.choices.shape[1])
        of_user, of_item = _sparse(self.choices, shape, ones), _sparse(self.by_item, shape[::-1], ones)
        # [N + 1, T] and in place: of 50,000 items each of these is memory more than arithmetic.
        of_each = given * (expected.squeeze(1)[rows] > 0)
        beyond = given.new_zeros(len(diagonal), len(rows)).scatter_add_(0, rows.T, of_each.T)
        beyond.addcmul_(expected, of_each.sum(1) / expected.sum().clamp(min=_NOTHING), value=-1)
        scaled = beyond.div_(diagonal)
        met = torch.cat([root * (of_user @ scaled), expected.T @ scaled])
        told = self.weight @ met
        explained = (of_item @ (root * told[:-1])).addcmul_(expected, told[-1])
        solved = scaled.sub_(explained.div_(diagonal))
        pulled = (of_item @ (of_pairs * (of_user @ solved))).addcmul_(crossed, solved, value=-1)
        found = pulled.div_(asked.clamp(min=_NOTHING)).add_(1 - expected.T @ solved)
        return torch.where(asked > 0, found, 1.0).T.contiguous()


class EpisodeRegression(nn.Module):
    """The map over a vocabulary, row 0 of which, the unknown, is never counted, and its cross-fitted versions.

    Args:
        ids: rows of the vocabulary.
        shots: k.
        ridge: in users who chose an item: as if so many draws more had told nothing of any.
        largest: rows of the largest matrix to solve with; 6,000 take 144 MB. Of more items, and more users with two choices or
            more, it fits only so many items, those that can be recommended first, then the most chosen: the others score 0 and
            tell nothing.
        folds, most_users: of ``ImplicitFactors``.
    """

    place: Tensor  # [ids] int64: the row of each id among the N items fitted; N for those left out

    def __init__(
        self,
        ids: int,
        *,
        shots: int = 3,
        ridge: float = 10.0,
        largest: int = 6000,
        folds: int = 4,
        most_users: int = 50_000,
    ) -> None:
        super().__init__()
        self.shots, self.ridge, self.largest = shots, ridge, largest
        self.folds, self.most_users = folds, most_users
        items = min(ids, largest)
        self.register_buffer("place", torch.full((ids,), items))
        self.whole = _Map(items)
        self.parts: list[
            _Map
        ] = []  # without the users of each fold: of training alone, no bundle carries them

    def fit(self, histories: Histories, catalogue: Catalogue, *, cross: bool) -> None:
        """The map of everybody, and those of the folds where they are asked for (``cross``). Values above 0 are choices."""
        chosen = incidence(histories, catalogue, len(self.place))
        drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        users = drawn[: self.most_users].sort().values
        n = torch.bincount(chosen.indices()[0], minlength=len(chosen))
        several = int((n[users] > 1).sum())
        by_users = len(self.place) > self.largest and 0 < several <= self.largest
        kept = torch.arange(len(self.place)) if by_users else self._kept(chosen, catalogue)
        self.place.fill_(len(kept))[kept] = torch.arange(len(kept))

        def fitted(some: Tensor) -> _Map:
            some = some[n[some] > 1] if by_users else some
            of_some = chosen.index_select(0, some).index_select(1, kept).coalesce()
            found = _Map(0)
            fit = found.fit_by_users if by_users else found.fit
            fit(of_some, _Weights.of(n[some], self.shots), self.ridge)
            return found

        self.whole = fitted(users)
        served = range(self.folds if cross else 0)
        self.parts = [fitted(users[users % self.folds != fold]) for fold in served]

    def _kept(self, chosen: Tensor, catalogue: Catalogue) -> Tensor:
        times, items = chosen.sum(0).to_dense(), min(len(self.place), self.largest)
        eligible = torch.zeros_like(times).index_fill(0, catalogue.features.ids[catalogue.eligible], 1.0)
        worth = times + len(chosen) * (eligible * (times > 0))  # more than any count
        return worth.argsort(descending=True, stable=True)[:items].sort().values

    @torch.no_grad()
    def scores(
        self, ids: Tensor, mask: Tensor, counted: Tensor | None = None, among: Tensor | None = None
    ) -> Tensor:
        """Of every item of the vocabulary after T support sets, [T, ids]; 0 without support. ids, mask: [T, S].

        counted, among: of ``ImplicitFactors.scores``.
        """
        place = self.place if among is None else self.place[among]
        lift = self.whole.share.new_zeros(len(ids), len(self.whole.share))
        if not ids.shape[1]:
            return lift[:, place]
        if counted is None or not self.parts:
            lift = _lift(self.whole, self.place[ids], mask)
        else:
            fold = counted % self.folds
            for number, part in enumerate(self.parts):
                rows = (fold == number).nonzero().squeeze(1)
                lift[rows] = _lift(part.to(ids.device), self.place[ids[rows]], mask[rows])
        everything = among is None and lift.shape[1] == len(place) + 1
        return lift[:, :-1] if everything else lift[:, place]


def _lift(fitted: _Map, rows: Tensor, mask: Tensor) -> Tensor:
    """[T, N + 1]: log of how many times as likely T support sets make each item. rows, mask: [T, S]."""
    likely = fitted.likely(rows, mask.to(fitted.share.dtype)).clamp_(min=_LEAST)
    # Not by ``@``, which sums in another order in batches of another size: what is as likely would rank otherwise there.
    of_all = (likely * fitted.share).sum(1, keepdim=True).clamp_(min=_NOTHING)
    said = mask.any(1, keepdim=True) & (fitted.share > 0)
    return torch.where(said, likely.div_(of_all).log_(), 0.0)


def _by_item(chosen: Tensor, of_users: Tensor) -> Tensor:
    """The sum of what the users who chose it have, [N]. chosen: [R, N] sparse; of_users: [R]."""
    owners, places = chosen.indices()
    return of_users.new_zeros(chosen.shape[1]).index_add(0, places, of_users[owners])


def _sparse(places: Tensor, shape: Sequence[int], values: Tensor) -> Tensor:
    """A sparse matrix. places: [2, M], sorted, each once; values: [M]."""
    return torch.sparse_coo_tensor(places, values, tuple(shape), is_coalesced=True, check_invariants=False)
