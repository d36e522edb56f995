"""What passes between rooms as tensors: ragged lists, features, examples, episodes.

Letters: T tasks (users), S support and Q query examples, I items of a catalogue, F features, M all examples laid end to end.
Every type is a NamedTuple, so that it is a pytree for ``torch.func`` and pinned by Lightning as it stands.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Ragged(NamedTuple):
    """N lists of different lengths, laid end to end."""

    values: Tensor  # [M, ...]
    offsets: Tensor  # [N + 1] int64, from 0 to M

    @property
    def lengths(self) -> Tensor:
        """The length of each list, [N]."""
        return self.offsets.diff()

    def take(self, rows: Tensor) -> "Ragged":
        """The lists of these rows, in this order. rows: [R] int64."""
        index, offsets = _places(self.offsets, rows)
        return Ragged(self.values.index_select(0, index), offsets)

    def to(self, device: torch.device | str) -> "Ragged":
        """The same lists on another device."""
        return Ragged(self.values.to(device), self.offsets.to(device))


def _places(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where the elements of these lists stand, end to end, and their new offsets. Takes time by the lists asked for alone."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    taken = torch.zeros(len(rows) + 1, dtype=torch.int64, device=offsets.device)
    torch.cumsum(lengths, 0, out=taken[1:])
    shift = torch.repeat_interleave(starts - taken[:-1], lengths)
    return shift + torch.arange(len(shift), device=shift.device), taken


class FeatureSizes(NamedTuple):
    """How many rows and columns the encoders of users or items have to provide. Row 0 of every vocabulary is the unknown."""

    ids: int = 1  # rows of the id vocabulary, the unknown row counted
    categorical: tuple[int, ...] = ()  # rows of each categorical vocabulary
    multi: tuple[int, ...] = ()  # rows of each multi-valued vocabulary
    numbers: int = 0  # columns
    vectors: int = 0  # columns, all vector features side by side


class Sizes(NamedTuple):
    """Sizes of both sides: what every learner is constructed from."""

    user: FeatureSizes
    item: FeatureSizes


class Features(NamedTuple):
    """What is known about N users or N items."""

    ids: Tensor  # [N] int64, 0 = unknown to the vocabulary
    categorical: Tensor  # [N, C] int64, 0 = unknown
    multi: tuple[Ragged, ...]  # one per multi-valued feature: N lists of int64, 0 = unknown
    numbers: Tensor  # [N, D] float, scaled; 0 where not known
    vectors: Tensor  # [N, V] float; 0 where not known

    def take(self, rows: Tensor) -> "Features":
        """The features of these rows, in this order. rows: [R] int64."""
        return Features(
            self.ids.index_select(0, rows),
            self.categorical.index_select(0, rows),
            tuple(bag.take(rows) for bag in self.multi),
            self.numbers.index_select(0, rows),
            self.vectors.index_select(0, rows),
        )

    def to(self, device: torch.device | str) -> "Features":
        """The same features on another device."""
        return Features(
            self.ids.to(device),
            self.categorical.to(device),
            tuple(bag.to(device) for bag in self.multi),
            self.numbers.to(device),
            self.vectors.to(device),
        )


class Catalogue(NamedTuple):
    """The items at one moment."""

    features: Features  # I rows; derived numbers (counts, ages) are as of the moment
    log_popularity: Tensor  # [I] float: log of (1 + interactions before the moment, in the window in use)
    eligible: Tensor  # [I] bool: may be recommended at the moment; a softmax normalizes over these
    snapshot: Tensor | None = None  # [] int64: which of ``Learner.fit_snapshots`` was known; None: everything
    hindsight: bool = False  # whether popularity counts all there is: what episodes ask for too
    log_weight: Tensor | None = (
        None  # [I] float: log of how many items each stands for in a softmax; None: for itself alone
    )

    def take(self, rows: Tensor) -> "Catalogue":
        """The catalogue of these rows alone. rows: [R] int64."""
        popularity, eligible = (field.index_select(0, rows) for field in (self.log_popularity, self.eligible))
        weight = None if self.log_weight is None else self.log_weight.index_select(0, rows)
        return Catalogue(
            self.features.take(rows), popularity, eligible, self.snapshot, self.hindsight, weight
        )

    def to(self, device: torch.device | str) -> "Catalogue":
        """The same catalogue on another device."""
        snapshot = None if self.snapshot is None else self.snapshot.to(device)
        popularity, eligible = (field.to(device) for field in (self.log_popularity, self.eligible))
        weight = None if self.log_weight is None else self.log_weight.to(device)
        return Catalogue(self.features.to(device), popularity, eligible, snapshot, self.hindsight, weight)


class Examples(NamedTuple):
    """Support or query sets of T tasks, padded to the longest."""

    items: Tensor  # [T, S] int64: rows of the catalogue at hand; 0 where padded
    targets: Tensor  # [T, S] float: rating or weight of an event; 0 for a sampled negative, and where padded
    mask: Tensor  # [T, S] bool: True where an example stands

    @property
    def shots(self) -> Tensor:
        """The number of examples of each task, [T] int64."""
        return self.mask.sum(-1)

    @property
    def lists(self) -> Tensor:
        """Whether a task holds what was not chosen (target 0) beside what was, [T] bool."""
        return (self.mask & (self.targets <= 0)).any(-1)

    def emptied(self) -> "Examples":
        """The same tasks with nothing observed: adapting on it gives the prior."""
        return Examples(self.items, self.targets, torch.zeros_like(self.mask))

    def beside(self, others: "Examples") -> "Examples":
        """Both of the same tasks, [T, S + S']."""
        return Examples(*(torch.cat(pair, dim=1) for pair in zip(self, others, strict=True)))

    def to(self, device: torch.device | str) -> "Examples":
        """The same examples on another device."""
        return Examples(self.items.to(device), self.targets.to(device), self.mask.to(device))


class EpisodeBatch(NamedTuple):
    """T episodes at one moment. Support and query index the rows of ``catalogue``, each item standing there once."""

    support: Examples
    query: Examples
    users: Features  # T rows
    catalogue: Catalogue
    counted: Tensor | None = (
        None  # [T] int64: rows of the histories that statistics were read off; None: not among them
    )
    keys: Tensor | None = None  # [T] int64: equal for episodes of one user; None: each is of another

    def to(self, device: torch.device | str) -> "EpisodeBatch":
        """The same episodes on another device."""
        return EpisodeBatch(
            self.support.to(device),
            self.query.to(device),
            self.users.to(device),
            self.catalogue.to(device),
            None if self.counted is None else self.counted.to(device),
            None if self.keys is None else self.keys.to(device),
        )


class Histories(NamedTuple):
    """Interactions of U users laid end to end, grouped by user; within a user oldest first where time is known."""

    items: Tensor  # [M] int64: rows of the catalogue
    values: Tensor  # [M] float32
    times: Tensor  # [M] int64, microseconds since 1970 UTC; of length 0 where time is unknown
    offsets: Tensor  # [U + 1] int64

    @property
    def lengths(self) -> Tensor:
        """The number of interactions of each user, [U]."""
        return self.offsets.diff()

    @property
    def timed(self) -> bool:
        """Whether time is known."""
        return len(self.times) == len(self.items) and len(self.items) > 0

    def owners(self) -> Tensor:
        """The user row of every interaction, [M] int64."""
        return torch.repeat_interleave(torch.arange(len(self.offsets) - 1), self.lengths)

    def take(self, rows: Tensor) -> "Histories":
        """The histories of these user rows, in this order. rows: [R] int64."""
        index, offsets = _places(self.offsets, rows)
        times = self.times.index_select(0, index) if self.timed else self.times[:0]
        return Histories(
            self.items.index_select(0, index), self.values.index_select(0, index), times, offsets
        )


class ItemCodes(NamedTuple):
    """What a learner keeps of each item: computed once per catalogue, read by adaptation and scoring."""

    ids: Tensor  # [I] int64, 0 = unknown
    vectors: Tensor  # [I, F] float
    bias: Tensor  # [I] float
    eligible: Tensor  # [I] bool
    log_popularity: Tensor | None = None  # [I] float; for losses that correct for how negatives are drawn
    snapshot: Tensor | None = None  # of the catalogue
    log_weight: Tensor | None = None  # [I] float, of the catalogue

    def take(self, rows: Tensor | slice) -> "ItemCodes":
        """The codes of these rows, in this order."""

        def some(field: Tensor) -> Tensor:
            return field[rows] if isinstance(rows, slice) else field.index_select(0, rows)

        popularity = None if self.log_popularity is None else some(self.log_popularity)
        weight = None if self.log_weight is None else some(self.log_weight)
        ids, vectors, bias, eligible = map(some, (self.ids, self.vectors, self.bias, self.eligible))
        return ItemCodes(ids, vectors, bias, eligible, popularity, self.snapshot, weight)
