"""The best k of a catalogue that is scored tile by tile: exact, ties and all, whatever the tiles.

Letters: T users, N items of a tile, I items of the catalogue, k wanted.

A score and the tie rank of its item make one int64 that sorts as the pair does,

    key = sortable(score) * 2^31 + (2^31 - 1 - tie rank),

so a running list is one tensor of keys [T, k]: score and item are read back from it. On the CPU a compiled kernel takes tiles
into it, where there is one: the lists are the same, and a linear head serves 50,000 items in half the time.
"""

from typing import Self

import torch
from torch import Tensor

from recsys_meta.native.library import Kernels
from recsys_meta.tensors import Ragged

_LOW = 2**31 - 1
_FLIP = 0x7FFFFFFF


class TieRanks:
    """A seeded order of the items of a catalogue, for those that score the same.

    Args:
        num_items: I, below 2^31.
        seed: of the order.
        device: where the scores are.
    """

    def __init__(self, num_items: int, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        chance = torch.Generator().manual_seed(seed)
        self._item_of = torch.randperm(num_items, generator=chance).to(device)
        self._rank_of = _inverse(self._item_of)

    @classmethod
    def of(cls, places: Tensor) -> Self:
        """Those of a permutation: of equal items the one of the lower place is listed first. places: [I]."""
        ranks = cls(0, device=places.device)
        ranks._rank_of = places.long()
        ranks._item_of = _inverse(ranks._rank_of)
        return ranks

    def keys(self, scores: Tensor, items: Tensor) -> Tensor:
        """int64 keys of float32 scores (no NaN), of the same shape; items broadcasts against them."""
        bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: minus zero is zero
        return (torch.where(bits < 0, bits ^ _FLIP, bits) << 31) + self.low(items)

    def low(self, items: Tensor) -> Tensor:
        """The low halves of the keys of these items."""
        return _LOW - self._rank_of[items]

    def read(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The items, -1 where there is none, and their scores, there minus infinity."""
        scores = score_of(keys)
        absent = scores == -torch.inf
        return self._item_of[(_LOW - (keys & _LOW)) * ~absent].masked_fill(absent, -1), scores


def _inverse(permutation: Tensor) -> Tensor:
    return torch.empty_like(permutation).scatter_(
        0, permutation, torch.arange(len(permutation), device=permutation.device)
    )


def score_of(keys: Tensor) -> Tensor:
    """The float32 scores in int64 keys, of the same shape."""
    bits = keys >> 31
    return torch.where(bits < 0, bits ^ _FLIP, bits).to(torch.int32).view(torch.float32)


class Running:
    """The best k of T users so far: tiles go in one after the other, in the order of their places.

    Args:
        ranks: the order of equals.
        num_users: T.
        k: how many are wanted.
        unwanted: T lists of places that are not to be listed, ascending within a list; None: all may be.
        device: where the scores are.
        compiled: the kernels to use on the CPU; None: torch alone.
    """

    def __init__(
        self,
        ranks: TieRanks,
        num_users: int,
        k: int,
        unwanted: Ragged | None,
        *,
        device: torch.device | str = "cpu",
        compiled: Kernels | None = None,
    ) -> None:
        lowest = torch.tensor(-torch.inf).view(torch.int32).long() ^ _FLIP
        self._keys = torch.full((num_users, k), int(lowest) << 31, device=device)
        self._sound = torch.ones(num_users, dtype=torch.bool, device=device)
        self._ranks = ranks
        self._start = 0
        self._compiled = compiled
        nothing = (torch.zeros(n, dtype=torch.int64, device=device) for n in (0, num_users + 1))
        self._unwanted = unwanted or Ragged(*nothing)
        if compiled is None:
            owners = torch.arange(num_users, device=device).repeat_interleave(self._unwanted.lengths)
            self._places, order = self._unwanted.values.sort()
            self._owners = owners[order]
        else:
            self._cursor = self._unwanted.offsets[:-1].clone()

    def add(self, scores: Tensor, items: Tensor, usable: Tensor | None = None) -> None:
        """Takes the next tile.

        Args:
            scores: [T, N] float32, or [1, N] for all users alike.
            items: [N] their rows in the catalogue.
            usable: [N] bool, or [T, N]: which may be listed at all; None: all.
        """
        start, self._start = self._start, self._start + len(items)
        if self._compiled is None:
            self._add(scores, items, usable, start)
        else:
            self._compiled.merge(
                self._keys,
                self._sound,
                scores,
                low=self._ranks.low(items),
                usable=usable,
                unwanted=self._unwanted,
                cursor=self._cursor,
                start=start,
            )

    def _add(self, scores: Tensor, items: Tensor, usable: Tensor | None, start: int) -> None:
        """The same in torch."""
        scores = scores.expand(len(self._keys), -1).clone()
        if usable is not None:
            usable = usable.expand(len(scores), -1)
            scores.masked_fill_(~usable, -torch.inf)
        # One pass over a tile; only a user whose sum is not finite is looked at closely.
        suspects = (~scores.sum(1).isfinite()).nonzero().squeeze(1)
        if len(suspects):
            finite = scores[suspects].isfinite()
            self._sound[suspects] &= (finite if usable is None else finite | ~usable[suspects]).all(1)
            scores.nan_to_num_(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        ends = torch.tensor([start, start + len(items)], device=scores.device)
        first, last = torch.searchsorted(self._places, ends).tolist()
        scores[self._owners[first:last], self._places[first:last] - start] = -torch.inf
        self._keys = merged(self._keys, scores, items, self._ranks)

    def least(self) -> Tensor:
        """The score that an item has to reach to be listed, by what has been seen, [T]; minus infinity at first."""
        return score_of(self._keys.min(1).values)

    def best(self) -> tuple[Tensor, Tensor]:
        """Keys of the best, [T, k], best first, and whether all usable scores of a user were finite, [T] bool."""
        return self._keys.sort(descending=True).values, self._sound


def merged(running: Tensor, scores: Tensor, items: Tensor, ranks: TieRanks) -> Tensor:
    """The running list [T, k], best first, after a tile.

    scores: [T, N] float32, minus infinity for what is not wanted, no NaN; items: [N] rows of the catalogue.
    """
    k = running.shape[1]
    if scores.shape[1] <= k:
        best = ranks.keys(scores, items)
    else:
        values, places = scores.topk(
            k + 1
        )  # one more than wanted shows whether the border runs between equals
        best = ranks.keys(values[:, :k], items[places[:, :k]])
        split = ((values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)).nonzero().squeeze(1)
        if len(split):
            best[split] = ranks.keys(scores[split], items).topk(k).values
    return torch.cat([running, best], dim=1).topk(k).values
