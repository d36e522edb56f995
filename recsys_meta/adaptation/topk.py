"""The best k of a catalogue that is scored tile by tile: exact, ties and all, whatever the tiles.

Letters: T users, N items of a tile, I items of the catalogue, k wanted.

A score and the tie rank of its item make one int64 that sorts as the pair does,

    key = sortable(score) * 2^31 + (2^31 - 1 - tie rank),

so a running list is one tensor of keys [T, k]: score and item are read back from it.
"""

import torch
from torch import Tensor

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
        self._rank_of = torch.empty_like(self._item_of)
        self._rank_of[self._item_of] = torch.arange(num_items, device=device)

    def keys(self, scores: Tensor, items: Tensor) -> Tensor:
        """int64 keys of float32 scores (no NaN), of the same shape; items broadcasts against them."""
        bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: minus zero is zero
        return (torch.where(bits < 0, bits ^ _FLIP, bits) << 31) + (_LOW - self._rank_of[items])

    def read(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The items, -1 where there is none, and their scores, there minus infinity."""
        bits = keys >> 31
        scores = torch.where(bits < 0, bits ^ _FLIP, bits).to(torch.int32).view(torch.float32)
        absent = scores == -torch.inf
        return self._item_of[(_LOW - (keys & _LOW)) * ~absent].masked_fill(absent, -1), scores


def nothing_yet(num_users: int, k: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The running list before the first tile: keys of minus infinity, [T, k]."""
    lowest = torch.tensor(-torch.inf).view(torch.int32).long() ^ _FLIP
    return torch.full((num_users, k), int(lowest) << 31, device=device)


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
