"""Histories to padded examples: spans, sampled negatives, and each item once per batch."""

import torch
from torch import Tensor

from recsys_meta.hashing import hashed, inclusion_chances, mixed, uniform
from recsys_meta.tensors import Catalogue, Examples, Histories, Ragged


def collate(histories: Histories, rows: Tensor, *, newest: int | None = None) -> Examples:
    """The histories of these users as examples, [R, S]. rows: [R] int64.

    ``newest`` keeps only the last so many of each.
    """
    starts, stops = histories.offsets[rows], histories.offsets[rows + 1]
    if newest is not None:
        starts = torch.maximum(starts, stops - newest)
    return spans(histories, starts, stops)


def spans(histories: Histories, starts: Tensor, stops: Tensor, order: Tensor | None = None) -> Examples:
    """Interactions starts[t] up to, not including, stops[t] as the examples of task t.

    starts, stops: [T] int64. ``order``, [M] int64, lays the interactions in another order first.
    The examples are at least one column wide, so that nobody meets a tensor without elements.
    """
    width = max(int((stops - starts).max()), 1) if len(starts) else 1
    grid = starts.unsqueeze(1) + torch.arange(width)  # [T, S]
    mask = grid < stops.unsqueeze(1)
    # index_select and masked_scatter_ do the same as the brackets of torch, in a half to a quarter of the time.
    index = grid.masked_select(mask)
    if order is not None:
        index = order.index_select(0, index)
    items = torch.zeros(grid.shape, dtype=torch.int64)
    targets = torch.zeros(grid.shape, dtype=torch.float32)
    return Examples(
        items.masked_scatter_(mask, histories.items.index_select(0, index)),
        targets.masked_scatter_(mask, histories.values.index_select(0, index)),
        mask,
    )


class Negatives:
    """Draws eligible items with a probability proportional to (1 + interactions) ** tempering.

    What stands in a slot of a task depends on (seed, stream, the task's key, the slot) alone: not on the
    batch, its size or its order. Tempering 0 makes all items equal, 1 follows popularity; 0.75 is that of
    word2vec (Mikolov et al. 2013). The 1 keeps items drawable that nobody has chosen yet.
    """

    def __init__(self, catalogue: Catalogue, *, tempering: float = 0.75, seed: int = 0) -> None:
        weights = (catalogue.log_popularity.double() * tempering).exp() * catalogue.eligible
        self._cumulated = weights.cumsum(0)
        self._num_items = len(weights)
        self._seed = seed

    def draw(self, keys: Tensor, count: int, *, stream: int = 0) -> Tensor:
        """Items for ``count`` slots of each task, with replacement, [T, count] int64. keys: [T] int64.

        Raises ValueError where no item is eligible.
        """
        if not self._num_items or not float(self._cumulated[-1]) > 0:
            raise ValueError("negatives cannot be drawn: no item of the catalogue is eligible")
        total = self._cumulated[-1]
        first = mixed(keys ^ hashed(self._seed, stream))
        level = uniform(mixed(first.unsqueeze(1) + torch.arange(count))) * total
        # The product may be rounded up to the total, where no item lies.
        level = torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(self._cumulated, level, right=True)

    def append(
        self,
        examples: Examples,
        keys: Tensor,
        consumed: Ragged | Histories | None = None,
        per_positive: int = 1,
        *,
        stream: int = 0,
    ) -> Examples:
        """The examples and, for each, ``per_positive`` negatives of target 0: [T, S + S * per_positive].

        A draw that the task consumed (T lists of items; by default those of the examples) is masked out,
        so that a task may get fewer; a task without examples gets none. keys: [T] int64.
        """
        if per_positive == 0:
            return examples
        num_tasks, width = examples.items.shape
        drawn = self.draw(keys, width * per_positive, stream=stream)
        first_pair = torch.arange(num_tasks) * self._num_items
        if consumed is None:
            taken = (first_pair.unsqueeze(1) + examples.items)[examples.mask]
        else:
            items = consumed.items if isinstance(consumed, Histories) else consumed.values
            taken = torch.repeat_interleave(first_pair, consumed.lengths) + items
        mask = torch.arange(width * per_positive) < (examples.shots * per_positive).unsqueeze(1)
        mask &= ~torch.isin(first_pair.unsqueeze(1) + drawn, taken)
        return Examples(
            torch.cat([examples.items, drawn * mask], 1),
            torch.cat([examples.targets, torch.zeros(drawn.shape)], 1),
            torch.cat([examples.mask, mask], 1),
        )


class DrawnPart:
    """Draws a part of a catalogue for a softmax over more items than a step has time for.

    An eligible item is drawn with a chance proportional to (1 + interactions) ** tempering, and always where that comes to 1, so
    that ``size`` are drawn on average. Each stands for 1 / chance items in the softmax's normalizer, which is right on average
    then (D. Horvitz, D. Thompson: A generalization of sampling without replacement from a finite universe, JASA 47, 1952); the
    popular ones, which make up most of it, are always there and stand for themselves.
    """

    def __init__(self, catalogue: Catalogue, size: int, *, tempering: float = 0.75) -> None:
        weights = (catalogue.log_popularity.double() * tempering).exp() * catalogue.eligible
        self.chances = inclusion_chances(weights, size)  # [I] float64
        self._log_weight = -self.chances.clamp(min=torch.finfo(torch.float64).tiny).log().float()

    def unique_items(
        self, support: Examples, query: Examples, catalogue: Catalogue, chance: torch.Generator
    ) -> tuple[Examples, Examples, Catalogue]:
        """As the function of this name, the drawn items kept besides; what examples mention stands for itself."""
        drawn = torch.rand(self.chances.shape, generator=chance, dtype=torch.float64) < self.chances
        weighted = catalogue._replace(log_weight=self._log_weight)
        support, query, part = unique_items(support, query, weighted, keep=drawn)
        assert part.log_weight is not None
        mentioned = torch.cat([examples.items.masked_select(examples.mask) for examples in (support, query)])
        return support, query, part._replace(log_weight=part.log_weight.index_fill(0, mentioned, 0.0))


def unique_items(
    support: Examples, query: Examples, catalogue: Catalogue, *, keep: Tensor | None = None
) -> tuple[Examples, Examples, Catalogue]:
    """The same examples over a catalogue of the mentioned items alone, each once, in their old order.

    ``keep``, [I] bool, says which items stay besides. Where none would, one does, for padding points at it.
    """
    wanted = torch.zeros(len(catalogue.eligible), dtype=torch.bool) if keep is None else keep.clone()
    for examples in (support, query):
        wanted.index_fill_(0, examples.items.masked_select(examples.mask), True)
    if len(wanted) and not wanted.any():
        wanted[0] = True
    place = wanted.cumsum(0) - 1
    return _moved(support, place), _moved(query, place), catalogue.take(wanted.nonzero().squeeze(1))


def _moved(examples: Examples, place: Tensor) -> Examples:
    moved = place.index_select(0, examples.items.masked_select(examples.mask))
    return examples._replace(items=torch.zeros_like(examples.items).masked_scatter_(examples.mask, moved))
