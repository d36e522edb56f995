"""A unit for scores whose scale means nothing: how far they usually lie apart, from item to item, after a few choices."""

from collections.abc import Callable

import torch
from torch import Tensor

# Of how many users, after how many choices each.
_SCORED, _FEWEST, _MOST, _CHOICES = 2**23, 16, 500, 10
_NOTHING = 1e-9  # a spread of scores that a ridge has put out


def spread_of(chosen: Tensor, scores: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The spread, a scalar; 1 where there is none.

    chosen: [U, ids] sparse, 1 where the user chose the item. scores: of support sets, ids and mask [T, S], gives [T, ids].
    """
    met = torch.bincount(chosen.indices()[1], minlength=chosen.shape[1]) > 0  # of the others nothing is known
    if not met.any():
        return torch.ones(())
    few = min(max(_SCORED // chosen.shape[1], _FEWEST), _MOST)
    some = chosen.index_select(0, torch.arange(0, len(chosen), -(-len(chosen) // few)))
    spread = scores(*_few_choices(some))[:, met].var(1, correction=0).mean().sqrt()
    return torch.where(spread > _NOTHING, spread, 1.0)


def _few_choices(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """At most so many choices of each user, drawn at random: ids and mask, [U, _CHOICES]. chosen: [U, ids] sparse."""
    owners, ids = chosen.coalesce().indices()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    order = order[owners[order].argsort(stable=True)]
    owners, ids = owners[order], ids[order]
    place = torch.arange(len(ids)) - torch.searchsorted(owners, owners)
    kept = place < _CHOICES
    table = torch.zeros(len(chosen), _CHOICES, dtype=torch.int64)
    table[owners[kept], place[kept]] = ids[kept]
    return table, torch.zeros_like(table, dtype=torch.bool).index_put(
        (owners[kept], place[kept]), torch.tensor(True)
    )
