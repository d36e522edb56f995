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

What it says of an item is the logarithm of how many times more likely the support makes it, (c + B^T x) / E y, by how much it
makes all of them: who chose more chooses more of everything.

As of ``ImplicitFactors``, who is to learn how far this can be trusted is cross-fitted.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

from recsys_meta.models.incidence import incidence, sparse_product
from recsys_meta.tensors import Catalogue, Histories

_NOTHING = 1e-30
_LEAST = 0.05  # how many times as likely at the least: a linear map does not stop at 0


class EpisodeRegression(nn.Module):
    """The map over a vocabulary, row 0 of which, the unknown, is never counted, and its cross-fitted versions.

    Args:
        ids: rows of the vocabulary.
        shots: k.
        ridge: in users who chose an item: as if so many draws more had told nothing of any.
        largest: of more items so many, the most chosen: the others score 0 and tell nothing. 6,000 take 144 MB.
        folds, most_users: of ``ImplicitFactors``.
    """

    place: Tensor  # [ids] int64: the row of each id among the N items fitted; N for those left out
    weight: Tensor  # [N + 1, N + 1]: B / E y, from the item of the row to that of the column; 0 for those left out
    start: Tensor  # [N + 1]: c / E y; 1 for those left out
    share: Tensor  # [N + 1]: E y, as shares of 1; 0 for those left out
    fold_weight: Tensor  # [folds, N + 1, N + 1]: without the users of the fold; [0, ..] where nobody is to be served by them
    fold_start: Tensor  # [folds, N + 1]
    fold_share: Tensor  # [folds, N + 1]

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
        self.shots, self.ridge, self.folds, self.most_users = shots, ridge, folds, most_users
        items = min(ids, largest)
        self.register_buffer("place", torch.full((ids,), items))
        self.register_buffer("weight", torch.zeros(items + 1, items + 1))
        self.register_buffer("start", torch.ones(items + 1))
        self.register_buffer("share", torch.zeros(items + 1))
        # Of use in training alone: no bundle carries them.
        self.register_buffer("fold_weight", torch.zeros(0, items + 1, items + 1), persistent=False)
        self.register_buffer("fold_start", torch.zeros(0, items + 1), persistent=False)
        self.register_buffer("fold_share", torch.zeros(0, items + 1), persistent=False)

    def fit(self, histories: Histories, catalogue: Catalogue, *, cross: bool) -> None:
        """The map of everybody, and those of the folds where they are asked for (``cross``). Values above 0 are choices."""
        chosen = incidence(histories, catalogue, len(self.place))
        drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        users = drawn[: self.most_users].sort().values
        items = len(self.start) - 1
        kept = chosen.sum(0).to_dense().argsort(descending=True, stable=True)[:items].sort().values
        self.place.fill_(items)[kept] = torch.arange(items)
        self.weight, self.start, self.share = self._fitted(chosen, users, kept)
        served = range(self.folds if cross else 0)
        parts = [self._fitted(chosen, users[users % self.folds != fold], kept) for fold in served]
        if parts:
            self.fold_weight, self.fold_start, self.fold_share = map(torch.stack, zip(*parts, strict=True))
        else:
            self.fold_weight, self.fold_start = self.fold_weight[:0], self.fold_start[:0]
            self.fold_share = self.fold_share[:0]

    def _fitted(self, chosen: Tensor, users: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B and c in units of E y, and the latter, of these users' choices among the kept items."""
        some = chosen.index_select(0, users).coalesce()
        n = torch.bincount(some.indices()[0], minlength=len(users)).float()
        some = some.index_select(1, kept).coalesce()
        owners, items = some.indices()

        def singly(of_users: Tensor) -> Tensor:
            return torch.zeros(len(kept)).index_add(0, items, of_users[owners])

        def in_pairs(of_users: Tensor) -> Tensor:
            weighed = torch.sparse_coo_tensor(
                some.indices(), of_users[owners], some.shape, is_coalesced=True, check_invariants=False
            )
            return sparse_product(weighed.T, some).fill_diagonal_(0)

        several, k = n > 1, (n / 2).floor().clamp(max=self.shots)
        n = n.clamp(min=2)
        w = several * n.sqrt()
        w = w / w.sum().clamp(min=_NOTHING)
        given, asked, pair = singly(w * k / n), singly(w * (n - k) / n), w * k / (n * (n - 1))
        covariance = in_pairs(pair * (k - 1)).addr_(given, given, alpha=-1)
        usual = (w * k / n).sum() / several.sum().clamp(min=1)  # what a user adds to E x of what it chose
        covariance.diagonal().add_(given + self.ridge * usual.clamp(min=_NOTHING))
        crossed = in_pairs(pair * (n - k)).addr_(given, asked, alpha=-1)
        unit = asked.clamp(min=_NOTHING)  # of an item that nobody chose nothing is said
        solution = torch.cholesky_solve(crossed, torch.linalg.cholesky(covariance)) / unit
        start = torch.where(asked > 0, 1 - given @ solution, 1.0)
        share = pad(asked / asked.sum().clamp(min=_NOTHING), (0, 1))
        return pad(solution * (asked > 0), (0, 1, 0, 1)), pad(start, (0, 1), value=1.0), share

    @torch.no_grad()
    def scores(
        self, ids: Tensor, mask: Tensor, counted: Tensor | None = None, among: Tensor | None = None
    ) -> Tensor:
        """Of every item of the vocabulary after T support sets, [T, ids]; 0 without support. ids, mask: [T, S].

        counted, among: of ``ImplicitFactors.scores``.
        """
        place = self.place if among is None else self.place[among]
        if not ids.shape[1]:
            return self.start.new_zeros(len(ids), len(place))
        if counted is None or not len(self.fold_start):
            return _lift(self.weight, self.start, self.share, self.place[ids], mask, place)
        lift, fold = self.start.new_zeros(len(ids), len(place)), counted % self.folds
        of_folds = zip(self.fold_weight, self.fold_start, self.fold_share, strict=True)
        for number, (weight, start, share) in enumerate(of_folds):
            rows = (fold == number).nonzero().squeeze(1)
            lift[rows] = _lift(weight, start, share, self.place[ids[rows]], mask[rows], place)
        return lift


def _lift(weight: Tensor, start: Tensor, share: Tensor, rows: Tensor, mask: Tensor, place: Tensor) -> Tensor:
    """[T, C]: log of how many times as likely T support sets make the items at these places. rows, mask: [T, S]."""
    items = len(start) - 1
    starts = torch.arange(len(rows), device=rows.device) * rows.shape[1]
    given = mask.to(weight.dtype).flatten()
    sums = embedding_bag(rows.flatten(), weight, starts, mode="sum", per_sample_weights=given)
    likely = sums.add_(start).clamp_(min=_LEAST)
    of_all = (likely @ share).clamp(min=_NOTHING).unsqueeze(1)
    said = mask.any(1, keepdim=True) & (share > 0)
    lift = torch.where(said, likely.div_(of_all).log_(), 0.0)
    return lift[:, :-1] if items == len(place) else lift[:, place]
