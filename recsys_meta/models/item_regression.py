"""What a support set says of an item by ridge regression of each item on all the others, each training user left out exactly.

H. Steck: Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019 (EASE). With X the users' choices and G = X^T X,

    P = (G + ridge I)^-1,   B_ji = -P_ji / P_ii for j != i,   score(S, i) = sum over j in S, j != i, of B_ji

Unlike cosines they know that two items chosen by the same users say the same thing once. Scores are given in units of their
spread (``models.score_spread``).

A regression that a user took part in knows what it chose besides its support. In meta-training it is therefore taken out: with x
its choices G becomes G - x x^T, and (J. Sherman, W. Morrison, Ann. Math. Statist. 21(1), 1950)

    P becomes P + h h^T / (1 - x . h),   h = P x

so that every training user is served as if it had never been seen, for the price of one product with P.

P is dense: of 30,000 items it would take 3.6 GB. Where few users chose two things or more it follows from a matrix of these users
(M. Woodbury 1950). With L = ridge I + how often each item was somebody's only choice, on the diagonal, and X the
others' choices,

    P = L^-1 - L^-1 X^T (I + X L^-1 X^T)^-1 X L^-1

Only where both are many the least chosen items are left out.

How large the ridge should be hangs on the data: films want ten times, groceries thirty times the ridge of those who maintain
packages (docs/ablation.md). Since users can be left out exactly, those counted say which: each of them is served from a
few of its choices, with popularity beside it, as if it had never been seen.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from recsys_meta.models.incidence import incidence, sparse_product
from recsys_meta.models.score_spread import spread_of
from recsys_meta.tensors import Catalogue, Histories

_LEFT = 1e-3  # least of 1 - x . h: choices that were counted in part cannot be taken out as a whole
_COLUMNS = 1024  # items of which the diagonal is read off at a time
_RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0)  # to choose from
_SHOTS = (1, 3, 10)  # choices that those who choose are served from
_POPULARITY = (1e-6, 0.1, 0.3, 1.0, 3.0)  # weights of log popularity to go with them
_SCORED, _CUTOFF = 2**23, 10  # scores at a time; of the NDCG
_FEW = 32  # fewer choices than one of so many: P's rows are summed instead of multiplied by all of them
_FEWEST, _MOST, _CHOICES = 30, 600, 2**26  # users who choose, and what a table of their choices may hold


class ItemRegression(nn.Module):
    """EASE over a vocabulary, row 0 of which, the unknown, is never counted.

    Args:
        ids: rows of the vocabulary.
        ridge: lambda of the paper; above 0. What it is fitted with unless ``choose_ridge`` finds a better one.
        largest: rows of the largest matrix to invert; 6,000 take 144 MB. Of more items, and more users with two choices or more,
            it fits only so many items, those that can be recommended first, then the most chosen: the others score 0 and tell
            nothing.
    """

    place: Tensor  # [ids] int64: the row of each id among the N items fitted; N for those left out
    inverse: Tensor  # [N + 1, N + 1]: P, and 1 for those left out; or [R, R], (I + X L^-1 X^T)^-1 of R users
    diagonal: Tensor  # [N + 1]: of P
    choices: Tensor  # [2, M] int64: user and item of the ones of X, sorted; [2, 0] where ``inverse`` is P
    by_item: Tensor  # [2, M] int64: item and user of the same
    ridges: Tensor  # [N + 1]: the diagonal of L
    spread: Tensor  # []: the unit of scores
    ridge: Tensor  # []

    def __init__(self, ids: int, *, ridge: float = 300.0, largest: int = 6000) -> None:
        super().__init__()
        self.largest = largest
        self.register_buffer("ridge", torch.tensor(ridge))
        items = min(ids, largest)
        self.register_buffer("place", torch.full((ids,), items))
        self.register_buffer("inverse", torch.eye(items + 1))
        self.register_buffer("diagonal", torch.ones(items + 1))
        self.register_buffer("choices", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("by_item", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("ridges", torch.full((items + 1,), ridge))
        self.register_buffer("spread", torch.ones(()))

    def fit(self, histories: Histories, catalogue: Catalogue) -> None:
        """Inverts in float64. Values above 0 are choices."""
        chosen = incidence(histories, catalogue, len(self.place))
        self._invert(self._counted(chosen, catalogue))
        self._put_in_units(chosen)

    def choose_ridge(self, histories: Histories, catalogue: Catalogue) -> None:
        """Sets the ridge to that of some which has the best NDCG@10 for those counted, each left out; ``fit`` is still to follow.

        It stays what it is unless another one gains more than two standard errors, and where too few users could say.
        """
        chosen = incidence(histories, catalogue, len(self.place))
        times, start = chosen.sum(0).to_dense(), self.ridge.item()
        tasks = _tasks_of(chosen, times)
        if len(tasks) < _FEWEST:
            return
        counted = self._counted(chosen, catalogue)

        def served(ridge: float) -> Tensor:
            self.ridge.fill_(ridge)
            self._invert(counted)
            self._put_in_units(chosen)
            return self._served(tasks, times)

        kept, found, best = served(start), start, 0.0
        for ridge in _RIDGES:
            if ridge == start:
                continue
            gained = served(ridge) - kept
            gain = float(gained.mean() - 2 * gained.std() / math.sqrt(len(gained)))
            if gain > best:
                found, best = ridge, gain
        self.ridge.fill_(found)

    def _counted(self, chosen: Tensor, catalogue: Catalogue) -> Tensor:
        """Decides what is to be inverted, and gives G of the N items, [N, N], or how often each was somebody's only choice, [N +
        1]; both float64.
        """
        several = torch.bincount(chosen.indices()[0], minlength=len(chosen)) > 1
        if len(self.place) > self.largest and 0 < int(several.sum()) <= self.largest:
            return self._counted_by_users(chosen, several)
        times, items = chosen.sum(0).to_dense(), min(len(self.place), self.largest)
        eligible = torch.zeros_like(times).index_fill(0, catalogue.features.ids[catalogue.eligible], 1.0)
        worth = times + len(chosen) * (eligible * (times > 0))  # more than any count
        everything = items == len(times)
        kept = torch.arange(items) if everything else worth.argsort(descending=True, stable=True)[:items]
        self.place.fill_(items)[kept] = torch.arange(items)
        self.choices, self.by_item = torch.zeros(2, 0).long(), torch.zeros(2, 0).long()
        of_kept = chosen.index_select(1, kept)
        return sparse_product(of_kept.T, of_kept).to(torch.float64)

    def _counted_by_users(self, chosen: Tensor, several: Tensor) -> Tensor:
        """several: [U] bool, who chose two things or more."""
        items = len(self.place)
        self.place.copy_(torch.arange(items))
        owners, ids = chosen.indices()
        alone, rows = ~several[owners], several.cumsum(0) - 1
        self.choices = torch.stack([rows[owners[~alone]], ids[~alone]])
        self.by_item = self.choices[:, self.choices[1].argsort(stable=True)].flip(0)
        return torch.bincount(ids[alone], minlength=items + 1).to(torch.float64)

    def _invert(self, counted: Tensor) -> None:
        """counted: of ``_counted``."""
        ridge = self.ridge.item()
        if self.choices.shape[1]:
            self._invert_by_users(counted + ridge)
            return
        items = len(counted)
        gram = counted + ridge * torch.eye(items, dtype=counted.dtype)
        self.inverse = torch.eye(items + 1)
        self.inverse[:items, :items] = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self.diagonal = self.inverse.diagonal().clone()
        self.ridges = torch.full((items + 1,), ridge)

    def _invert_by_users(self, ridges: Tensor) -> None:
        users, items = int(self.choices[0, -1]) + 1, len(self.place)
        weighted = _sparse(self.choices, (users, items + 1), ridges[self.choices[1]].rsqrt())
        met = sparse_product(weighted, weighted.T)
        met.diagonal().add_(1.0)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(met))
        explained = torch.zeros_like(ridges)  # the diagonal of X^T (I + X L^-1 X^T)^-1 X
        bounds = torch.searchsorted(self.by_item[0].contiguous(), torch.arange(0, items + _COLUMNS, _COLUMNS))
        for number, (some, of_users) in enumerate(
            zip(*(row.split(bounds.diff().tolist()) for row in self.by_item), strict=True)
        ):
            places = some - number * _COLUMNS
            ones = torch.ones(len(some), dtype=torch.float64)
            block = _sparse(torch.stack([places, of_users]), (_COLUMNS, users), ones) @ inverse
            explained.index_add_(0, some, block[places, of_users])
        self.inverse, self.ridges = inverse.float().contiguous(), ridges.float()
        self.diagonal = (1 / ridges - explained / ridges.square()).float()

    def _put_in_units(self, chosen: Tensor) -> None:
        self.spread.fill_(1.0)
        self.spread.copy_(spread_of(chosen, self.scores))

    def _served(self, tasks: Tensor, times: Tensor) -> Tensor:
        """NDCG@10 of each user left out, the mean over the numbers of choices that it is served from, [J].

        tasks: [J, ids], 1 where the user chose the item. times: [ids], how often it was chosen.
        """
        shared = tasks * (times > 1)
        order = torch.rand(tasks.shape, generator=torch.Generator().manual_seed(0)) * shared
        discounts = torch.arange(2, _CUTOFF + 2).log2().reciprocal()[: tasks.shape[1]]
        total, number = torch.zeros(len(tasks)), torch.zeros(len(tasks))
        for shots in _SHOTS:
            able = (shared.sum(1) > shots).nonzero().squeeze(1)
            if not len(able):
                break
            found = []
            for rows in torch.split(able, max(_SCORED // tasks.shape[1], 16)):
                own, support = tasks[rows], order[rows].topk(shots).indices
                wanted = shared[rows].scatter(1, support, 0.0)
                ideal = wanted.topk(len(discounts)).values @ discounts
                scores = self.scores(support, torch.ones_like(support, dtype=torch.bool), own)
                popularity = (times - own).log1p()
                out = torch.zeros_like(own).scatter(1, support, -torch.inf)
                out[times - own <= 0] = -torch.inf
                tops = [(scores + weight * popularity + out).topk(len(discounts)) for weight in _POPULARITY]
                found.append(torch.stack([wanted.gather(1, top.indices) @ discounts / ideal for top in tops]))
            of_all = torch.cat(found, 1)
            total[able] += of_all[of_all.mean(1).argmax()]
            number[able] += 1
        return total / number

    @torch.no_grad()
    def scores(
        self, ids: Tensor, mask: Tensor, own: Tensor | None = None, among: Tensor | None = None
    ) -> Tensor:
        """Of every item of the vocabulary after T support sets, in units of ``spread``, [T, ids]; 0 without support.
        ids, mask: [T, S].

        own: [T, ids], 1 where the task's user chose the item and is among those counted; None: it is not.
        among: [C] ids: of these items alone, and ``own``, which has nothing else, with them, [T, C].
        """
        tasks, items = len(ids), len(self.diagonal) - 1
        place = self.place if among is None else self.place[among]
        if not ids.shape[1]:
            return self.inverse.new_zeros(tasks, len(place))
        rows = self.place[ids]
        weights = (mask & (rows < items)).to(self.inverse.dtype)
        sums, diagonal = self._of_support(rows, weights), self.diagonal
        if own is not None:
            chosen = torch.zeros_like(sums).scatter_add(1, place.expand(tasks, -1), own.to(sums.dtype))
            chosen[:, items] = 0
            explained = self._times(chosen)
            left = (1 - (chosen * explained).sum(1, keepdim=True)).clamp(min=_LEFT)
            shared = (explained.gather(1, rows) * weights).sum(1, keepdim=True)
            sums = sums + shared / left * explained
            diagonal = diagonal + explained.square() / left
        scores = sums.div_(diagonal * -self.spread).scatter_add_(1, rows, weights / self.spread)
        return scores[:, :-1] if among is None and items == len(place) else scores[:, place]

    def _of_support(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The sums of P's rows, [T, N + 1]. rows, weights: [T, S]."""
        if self.choices.shape[1]:
            return self._times(weights.new_zeros(len(rows), len(self.diagonal)).scatter_add(1, rows, weights))
        starts = torch.arange(len(rows), device=rows.device) * rows.shape[1]
        return embedding_bag(
            rows.flatten(), self.inverse, starts, mode="sum", per_sample_weights=weights.flatten()
        )

    def _times(self, chosen: Tensor) -> Tensor:
        """The product with P, [T, N + 1]. chosen: [T, N + 1]."""
        if not self.choices.shape[1]:
            owners, rows = chosen.nonzero(as_tuple=True)
            if _FEW * len(rows) > chosen.numel():
                return chosen @ self.inverse
            starts = torch.searchsorted(owners, torch.arange(len(chosen), device=owners.device))
            weights = chosen[owners, rows]
            return embedding_bag(rows, self.inverse, starts, mode="sum", per_sample_weights=weights)
        users, items, ones = len(self.inverse), len(self.diagonal), chosen.new_ones(self.choices.shape[1])
        scaled = chosen / self.ridges
        met = _sparse(self.choices, (users, items), ones) @ scaled.T.contiguous()
        explained = _sparse(self.by_item, (items, users), ones) @ (self.inverse @ met)
        return scaled - explained.T / self.ridges


def _tasks_of(chosen: Tensor, times: Tensor) -> Tensor:
    """The choices of some users with more than one that others made too, [J, ids]. chosen: [U, ids] sparse; times: [ids]."""
    owners, ids = chosen.indices()
    shared = torch.bincount(owners[times[ids] > 1], minlength=len(chosen))
    able = (shared > 1).nonzero().squeeze(1)
    most = min(max(_CHOICES // len(times), _FEWEST), _MOST)
    return chosen.index_select(0, able[:: -(-len(able) // most) or 1]).to_dense()


def _sparse(places: Tensor, shape: tuple[int, int], values: Tensor) -> Tensor:
    """A sparse matrix. places: [2, M], sorted, each once; values: [M]."""
    return torch.sparse_coo_tensor(places, values, shape, is_coalesced=True, check_invariants=False)
