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
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

from recsys_meta.models.incidence import incidence, sparse_product
from recsys_meta.tensors import Catalogue, Histories

_NOTHING = 1e-30
_LEAST = 0.05  # how many times as likely at the least: a linear map does not stop at 0


class EpisodeRegression(nn.Module):
    """The map over a vocabulary, row 0 of which, the unknown, is never counted.

    Args:
        ids: rows of the vocabulary.
        shots: k.
        ridge: in users who chose an item: as if so many draws more had told nothing of any.
        largest: of more items so many, the most chosen: the others score 0 and tell nothing. 6,000 take 144 MB.
        most_users: of more users so many are fitted to, drawn at random.
    """

    place: Tensor  # [ids] int64: the row of each id among the N items fitted; N for those left out
    weight: Tensor  # [N + 1, N + 1]: B / E y, from the item of the row to that of the column; 0 for those left out
    start: Tensor  # [N + 1]: c / E y; 1 for those left out
    share: Tensor  # [N + 1]: E y, as shares of 1; 0 for those left out

    def __init__(
        self,
        ids: int,
        *,
        shots: int = 3,
        ridge: float = 10.0,
        largest: int = 6000,
        most_users: int = 50_000,
    ) -> None:
        super().__init__()
        self.shots, self.ridge, self.most_users = shots, ridge, most_users
        items = min(ids, largest)
        self.register_buffer("place", torch.full((ids,), items))
        self.register_buffer("weight", torch.zeros(items + 1, items + 1))
        self.register_buffer("start", torch.ones(items + 1))
        self.register_buffer("share", torch.zeros(items + 1))

    def fit(self, histories: Histories, catalogue: Catalogue) -> None:
        """Solves for B and c. Values above 0 are choices."""
        chosen = incidence(histories, catalogue, len(self.place))
        drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        users = drawn[: self.most_users].sort().values
        items = len(self.start) - 1
        kept = chosen.sum(0).to_dense().argsort(descending=True, stable=True)[:items].sort().values
        self.place.fill_(items)[kept] = torch.arange(items)
        some = chosen.index_select(0, users).coalesce()
        n = torch.bincount(some.indices()[0], minlength=len(users)).float()
        some = some.index_select(1, kept).coalesce()
        owners, places = some.indices()

        def singly(of_users: Tensor) -> Tensor:
            return torch.zeros(len(kept)).index_add(0, places, of_users[owners])

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
        self.weight = pad(solution * (asked > 0), (0, 1, 0, 1))
        self.start = pad(start, (0, 1), value=1.0)
        self.share = pad(asked / asked.sum().clamp(min=_NOTHING), (0, 1))

    @torch.no_grad()
    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Of every item of the vocabulary after T support sets, [T, ids]; 0 without support. ids, mask: [T, S]."""
        if not ids.shape[1]:
            return self.start.new_zeros(len(ids), len(self.place))
        starts = torch.arange(len(ids), device=ids.device) * ids.shape[1]
        rows, given = self.place[ids].flatten(), mask.to(self.weight.dtype).flatten()
        sums = embedding_bag(rows, self.weight, starts, mode="sum", per_sample_weights=given)
        likely = sums.add_(self.start).clamp_(min=_LEAST)
        of_all = (likely @ self.share).clamp(min=_NOTHING).unsqueeze(1)
        said = mask.any(1, keepdim=True) & (self.share > 0)
        return torch.where(said, likely.div_(of_all).log_(), 0.0)[:, self.place]
