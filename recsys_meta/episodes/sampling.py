"""Episodes drawn from histories: at random within users, around moments in time, or as given."""

import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys_meta.episodes.catalogue import CatalogueClock
from recsys_meta.episodes.collate import DrawnPart, Negatives, collate, spans, unique_items
from recsys_meta.episodes.histories import is_first, select
from recsys_meta.hashing import generator, hashed
from recsys_meta.tensors import Catalogue, EpisodeBatch, Features, Histories, Ragged

# Tasks are sorted by length within so many batches: little padding is left, and company stays random.
_BATCHES_SORTED_TOGETHER = 32
_MOMENTS = 16  # of newcomers
_MOMENTS_PER_SNAPSHOT = 4
_MOMENTS_BACK = 4  # who is judged comes soon after the moment that all is known of, or later
_DRAWN = 0.25  # of the most items that a batch carries
_LATE = 0.5  # share of the tasks by time that are asked for what comes after the largest number of shots


class RandomSplits:
    """Every user once per epoch, its history split anew into support and query; given by (seed, epoch) alone.

    shots: each task draws its number of support examples from these, capped so that ``min_query`` remain
        to be judged on. None: everything but ``query_size`` is support.
    query_size, max_support: caps of the two sets. query_size None: all the rest.
    by_time: support is what came first and query what came later, instead of a fresh random order. With ``shots`` the query
        begins at a number of shots of its own, where that is larger, in every second task at the largest: what a user does
        next is not what it does in the end, and who learns to foretell the one alone forgets what everybody likes.
    whole_catalogue: batches carry the catalogue as it is, instead of the items that they mention.
    most_items: where more are eligible, batches carry a part of a quarter as many, drawn anew for each, instead of all (see
        DrawnPart); those that they mention come on top. None: never.
    negatives: sampled negatives per positive, tempered (see Negatives). Those of the support set avoid the
        support alone, for a night knows no more; those of the query set avoid all that the user consumed.
    bucket: tasks of similar length stand in one batch, which saves padding.
    keys: [U] int64 keys of the users, by which negatives are drawn; rows where not given.
    counted: [U] int64, for ``EpisodeBatch.counted``; None: the users are not among those that statistics were read off.
    listed: what the users were shown and did not choose: stands in the query with target 0, whatever the support. None: nothing.

    An item that a user met several times counts once, at the first time: support and query share none.
    Users with fewer than ``min_query`` items are left out; ``left_out`` says how many.
    """

    def __init__(
        self,
        histories: Histories,
        users: Features,
        catalogue: Catalogue,
        *,
        shots: Sequence[int] | None,
        query_size: int | None = None,
        min_query: int = 1,
        max_support: int | None = None,
        batch_size: int = 128,
        seed: int = 0,
        by_time: bool = False,
        whole_catalogue: bool = False,
        most_items: int | None = None,
        negatives: int = 0,
        tempering: float = 0.75,
        bucket: bool = True,
        keys: Tensor | None = None,
        counted: Tensor | None = None,
        listed: Histories | None = None,
    ) -> None:
        _check(shots, query_size, max_support, batch_size)
        if min_query < 1:
            raise ValueError(f"min_query is {min_query}; an episode is judged on one interaction at least")
        if shots is None and query_size is None:
            raise ValueError("shots and query_size are both None: nothing says where the support set ends")
        if by_time and len(histories.items) and not histories.timed:
            raise ValueError("by_time asks for an order in time, but these interactions have no timestamp")
        self._histories = select(histories, is_first(histories))
        self._users = users
        self._catalogue = catalogue
        self._shots = None if shots is None else torch.tensor(list(shots))
        self._query_size = query_size
        self._min_query = min_query
        self._max_support = max_support
        self._batch_size = batch_size
        self._seed = seed
        self._by_time = by_time
        self._whole_catalogue = whole_catalogue
        self._part = _part_of(catalogue, most_items) if whole_catalogue else None
        self._negatives = negatives
        self._sampler = Negatives(catalogue, tempering=tempering, seed=seed)
        self._bucket = bucket
        self._keys = torch.arange(len(histories.lengths)) if keys is None else keys
        self._counted = counted
        self._listed = listed
        self._rows = (self._histories.lengths >= min_query).nonzero().squeeze(1)
        self.left_out = len(histories.lengths) - len(self._rows)

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self._rows) / self._batch_size)

    def epoch(self, number: int) -> Iterator[EpisodeBatch]:
        """All tasks once, in an order and with splits that belong to this epoch."""
        chance = generator(self._seed, number)
        order = None if self._by_time else self._shuffled_within_users(chance)
        cuts = self._cuts(chance)
        for place, tasks in enumerate(
            _batches(cuts.stops - cuts.starts, self._batch_size, chance, bucket=self._bucket)
        ):
            rows, (starts, ends, begins, stops) = self._rows[tasks], (cut[tasks] for cut in cuts)
            support = spans(self._histories, starts, ends, order)
            query = spans(self._histories, begins, stops, order)
            if self._negatives:
                consumed = Ragged(self._histories.items, self._histories.offsets).take(rows)
                keys = self._keys[rows]
                support = self._sampler.append(support, keys, None, self._negatives, stream=2 * number)
                query = self._sampler.append(query, keys, consumed, self._negatives, stream=2 * number + 1)
            if self._listed is not None:
                shown = collate(self._listed, rows)
                query = query.beside(shown._replace(targets=torch.zeros_like(shown.targets)))
            catalogue = self._catalogue
            if self._part is not None:
                chance = generator(self._seed, number, place)
                support, query, catalogue = self._part.unique_items(support, query, catalogue, chance)
            elif not self._whole_catalogue:
                support, query, catalogue = unique_items(support, query, catalogue)
            counted = _some(self._counted, rows)
            yield EpisodeBatch(support, query, self._users.take(rows), catalogue, counted, self._keys[rows])

    def _shuffled_within_users(self, chance: torch.Generator) -> Tensor:
        """The interactions, users in place, each user's own in a random order, [M] int64."""
        random = torch.randint(1 << 32, self._histories.items.shape, generator=chance)
        return torch.argsort(self._histories.owners() << 32 | random, stable=True)

    def _cuts(self, chance: torch.Generator) -> "_Cuts":
        """Where support and query of every task lie among the interactions."""
        starts, stops = self._histories.offsets[self._rows], self._histories.offsets[self._rows + 1]
        if self._shots is None:
            assert self._query_size is not None
            begins = torch.maximum(starts, stops - max(self._query_size, self._min_query))
            if self._max_support is not None:  # those next to the query set: the newest, where order is time
                starts = torch.maximum(starts, begins - self._max_support)
            return _Cuts(starts, begins, begins, stops)
        last = stops - self._min_query
        ends = begins = torch.minimum(starts + self._drawn_shots(chance), last)
        if self._by_time:
            begins = torch.maximum(ends, torch.minimum(starts + self._drawn_begin(chance), last))
        if self._query_size is not None:
            stops = torch.minimum(stops, begins + max(self._query_size, self._min_query))
        return _Cuts(starts, ends, begins, stops)

    def _drawn_shots(self, chance: torch.Generator) -> Tensor:
        """A number of shots for every task, [E] int64."""
        assert self._shots is not None
        shots = self._shots[torch.randint(len(self._shots), self._rows.shape, generator=chance)]
        return shots if self._max_support is None else shots.clamp(max=self._max_support)

    def _drawn_begin(self, chance: torch.Generator) -> Tensor:
        """After how many interactions the query set of every task begins, [E] int64, where its support set ends before."""
        assert self._shots is not None
        drawn, latest = self._drawn_shots(chance), self._shots.max()
        if self._max_support is not None:
            latest = latest.clamp(max=self._max_support)
        return torch.where(torch.rand(drawn.shape, generator=chance) < _LATE, latest, drawn)


class _Cuts(NamedTuple):
    """Places among the interactions, [E] int64 each: support is starts..ends, query begins..stops, what is between neither."""

    starts: Tensor
    ends: Tensor
    begins: Tensor
    stops: Tensor


def newcomer_moments(histories: Histories) -> tuple[list[int], list[int]]:
    """Moments between which equally many users begin, the first after a quarter of them; and those of them that what is
    known of users is read off at. Ascending both, in microseconds since 1970 UTC.
    """
    begun = histories.times[histories.offsets[:-1][histories.lengths > 0]].sort().values
    places = torch.arange(_MOMENTS // 4, _MOMENTS) * len(begun) // _MOMENTS
    moments = sorted(set(begun[places].tolist()))
    return moments, moments[::_MOMENTS_PER_SNAPSHOT]


class NewcomerSplits:
    """Every user once per epoch, as one who came after a moment that everything known of the items lies before.

    Users are dealt to moments, each to one at which it had not begun; what is asked for, and seen, are items met by anybody
    before the moment, and the catalogue is that of the moment. Splits as in RandomSplits by time, whose ``settings`` these are.

    histories: of U users, with times; the clock's items. moments, snapshots: of ``newcomer_moments``; users who began before
        the first are left out.
    """

    def __init__(
        self,
        histories: Histories,
        users: Features,
        clock: CatalogueClock,
        *,
        moments: Sequence[int],
        snapshots: Sequence[int],
        seed: int = 0,
        keys: Tensor | None = None,
        **settings: Any,
    ) -> None:
        if len(histories.items) and not histories.timed:
            raise ValueError("episodes of newcomers need times, but these interactions have none")
        keys = torch.arange(len(histories.lengths)) if keys is None else keys
        dealt = _dealt(histories, moments, seed)
        self._seed = seed
        self._parts = []
        for place, moment in enumerate(moments):
            rows = (dealt == place).nonzero().squeeze(1)
            known = sum(snapshot <= moment for snapshot in snapshots) - 1
            catalogue = clock.at(moment)._replace(snapshot=torch.tensor(known))
            candidates = catalogue.eligible & clock.seen(moment)
            mine = histories.take(rows)
            mine = select(mine, candidates[mine.items])
            mine = mine._replace(items=(candidates.cumsum(0) - 1)[mine.items])
            part = RandomSplits(
                mine,
                users.take(rows),
                catalogue.take(candidates.nonzero().squeeze(1)),
                by_time=True,
                seed=seed + place,
                keys=keys[rows],
                **settings,
            )
            if len(part):
                self._parts.append(part)
        self.left_out = len(histories.lengths) - sum(len(part._rows) for part in self._parts)

    def __len__(self) -> int:
        """Batches per epoch."""
        return sum(map(len, self._parts))

    def epoch(self, number: int) -> Iterator[EpisodeBatch]:
        """All tasks once, the batches of all moments in a random order."""
        turns = torch.arange(len(self._parts)).repeat_interleave(
            torch.tensor([len(part) for part in self._parts], dtype=torch.int64)
        )
        epochs = [part.epoch(number) for part in self._parts]
        for turn in turns[torch.randperm(len(turns), generator=generator(self._seed, number))].tolist():
            yield next(epochs[turn])


def _dealt(histories: Histories, moments: Sequence[int], seed: int) -> Tensor:
    """The place of the moment of each user, [U] int64: one of the last few before it begins; -1 for who began before all."""
    begun = torch.full(histories.lengths.shape, -1)
    active = histories.lengths > 0
    begun[active] = histories.times[histories.offsets[:-1][active]]
    last = torch.searchsorted(torch.tensor(list(moments)), begun, right=True) - 1
    back = torch.randint(_MOMENTS_BACK, last.shape, generator=generator(seed, len(last)))
    return torch.where(last >= 0, (last - back).clamp(min=0), last)


class MomentSplits:
    """Episodes around moments in time: support before, query in the horizon after, the catalogue as of then.

    Each batch has one moment. Its tasks are the users who in [moment, moment + horizon) meet for the first
    time an item that could have been recommended: eligible, and seen by anybody before. The query set is
    these items; the support set is the newest interactions strictly before the moment, possibly none.

    histories: of all users, with times; the clock's items. moments: microseconds since 1970 UTC.
    history_below, history_at_least: only users with at most and at least so many interactions before the moment.
    shots: each task draws from these how many support examples it is shown; None: all.
    query_size, max_support: caps of the two sets; the query set keeps the earliest.
    batches_per_moment: visit only so many batches of each moment's tasks in an epoch; None: all.
    whole_catalogue: batches carry all candidates of the moment and the support items; ``eligible`` tells which
        is which. Otherwise the mentioned items alone. No batch carries an item that nobody had seen.
    most_items: as in RandomSplits, of the candidates.
    negatives: sampled negatives per positive, tempered by popularity before the moment. Those of the support
        set avoid what the user met before the moment, those of the query set the query as well.
    bucket, keys, counted: as in RandomSplits.
    """

    def __init__(
        self,
        histories: Histories,
        users: Features,
        clock: CatalogueClock,
        *,
        moments: Sequence[int],
        horizon: timedelta,
        history_below: int | None = None,
        history_at_least: int = 0,
        shots: Sequence[int] | None = None,
        max_support: int | None = None,
        query_size: int | None = None,
        batch_size: int = 128,
        batches_per_moment: int | None = None,
        seed: int = 0,
        whole_catalogue: bool = False,
        most_items: int | None = None,
        negatives: int = 0,
        tempering: float = 0.75,
        bucket: bool = True,
        keys: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        _check(shots, query_size, max_support, batch_size)
        if len(histories.items) and not histories.timed:
            raise ValueError("episodes around moments need times, but these interactions have no timestamp")
        if not moments or horizon <= timedelta(0):
            raise ValueError(
                f"{len(moments)} moments and a horizon of {horizon}; more than nothing was expected"
            )
        self._histories = histories
        self._users = users
        self._clock = clock
        self._moments = tuple(moments)
        self._horizon = horizon // timedelta(microseconds=1)
        self._history_below = history_below
        self._history_at_least = history_at_least
        self._shots = None if shots is None else torch.tensor(list(shots))
        self._max_support = max_support
        self._query_size = query_size
        self._batch_size = batch_size
        self._batches_per_moment = batches_per_moment
        self._seed = seed
        self._whole_catalogue = whole_catalogue
        self._most_items = most_items
        self._negatives = negatives
        self._tempering = tempering
        self._bucket = bucket
        self._keys = torch.arange(len(histories.lengths)) if keys is None else keys
        self._counted = counted
        self._owners = histories.owners()
        self._first = is_first(histories)
        # As in CatalogueClock: (user, rank in time) as one ascending key, since histories are oldest first.
        self._times, self._in_time = torch.sort(histories.times, stable=True)
        ranks = torch.empty_like(self._in_time)
        ranks[self._in_time] = torch.arange(len(ranks))
        self._user_keys = self._owners * (len(ranks) + 1) + ranks

    @cached_property
    def num_tasks(self) -> tuple[int, ...]:
        """The number of tasks at each moment."""
        return tuple(len(self._tasks(moment).rows) for moment in self._moments)

    def __len__(self) -> int:
        """Batches per epoch."""
        return sum(len(range(0, n, self._batch_size)[: self._batches_per_moment]) for n in self.num_tasks)

    def epoch(self, number: int) -> Iterator[EpisodeBatch]:
        """All moments in random order, with all of their tasks (or as many batches of them as wanted)."""
        for index in torch.randperm(len(self._moments), generator=generator(self._seed, number)).tolist():
            yield from self._batches_at(self._moments[index], number, generator(self._seed, number, index))

    def asked(self) -> Iterator[tuple[Catalogue, Tensor]]:
        """The candidates of each moment, and how many of its tasks ask for each of them, [I]."""
        for moment in self._moments:
            catalogue = self._clock.at(moment)
            candidates = (catalogue.eligible & self._clock.seen(moment)).nonzero().squeeze(1)
            items = self._histories.items[self._tasks(moment).query.values]
            counts = torch.bincount(items, minlength=len(catalogue.eligible))
            yield catalogue.take(candidates), counts[candidates]

    def _batches_at(self, moment: int, number: int, chance: torch.Generator) -> Iterator[EpisodeBatch]:
        tasks = self._tasks(moment)
        starts = self._support_starts(tasks, chance)
        asked_from, asked_to = tasks.query.offsets[:-1], tasks.query.offsets[1:]
        if self._query_size is not None:
            asked_to = torch.minimum(asked_to, asked_from + self._query_size)
        catalogue = self._clock.at(moment)
        catalogue = catalogue._replace(eligible=catalogue.eligible & self._clock.seen(moment))
        sampler = Negatives(catalogue, tempering=self._tempering, seed=self._seed)
        part = _part_of(catalogue, self._most_items) if self._whole_catalogue else None
        lengths = tasks.before - starts + asked_to - asked_from
        for batch in _batches(lengths, self._batch_size, chance, bucket=self._bucket)[
            : self._batches_per_moment
        ]:
            rows = tasks.rows[batch]
            support = spans(self._histories, starts[batch], tasks.before[batch])
            query = spans(self._histories, asked_from[batch], asked_to[batch], tasks.query.values)
            if self._negatives:
                known = _between(self._histories.items, self._histories.offsets[rows], tasks.before[batch])
                asked = tasks.query.take(batch)
                consumed = _side_by_side(known, asked._replace(values=self._histories.items[asked.values]))
                keys = self._keys[rows] ^ hashed(moment)
                support = sampler.append(support, keys, known, self._negatives, stream=2 * number)
                query = sampler.append(query, keys, consumed, self._negatives, stream=2 * number + 1)
            if part is not None:
                support, query, mentioned = part.unique_items(support, query, catalogue, chance)
            else:
                keep = catalogue.eligible if self._whole_catalogue else None
                support, query, mentioned = unique_items(support, query, catalogue, keep=keep)
            counted = _some(self._counted, rows)
            yield EpisodeBatch(support, query, self._users.take(rows), mentioned, counted, self._keys[rows])

    def _tasks(self, moment: int) -> "_Tasks":
        """Who has a query set at the moment, which one, and where the history before it ends."""
        span = torch.searchsorted(self._times, torch.tensor([moment, moment + self._horizon])).tolist()
        events = self._in_time[span[0] : span[1]].sort().values  # users together again, oldest first
        candidates = self._clock.eligible(moment) & self._clock.seen(moment)
        events = events[self._first[events] & candidates[self._histories.items[events]]]
        rows, counts = torch.unique_consecutive(self._owners[events], return_counts=True)
        query = Ragged(events, pad(counts.cumsum(0), (1, 0)))
        before = torch.searchsorted(self._user_keys, rows * (len(self._times) + 1) + span[0])
        lengths = before - self._histories.offsets[rows]
        suited = lengths >= self._history_at_least
        if self._history_below is not None:
            suited &= lengths <= self._history_below
        kept = suited.nonzero().squeeze(1)
        return _Tasks(rows[kept], before[kept], query.take(kept))

    def _support_starts(self, tasks: "_Tasks", chance: torch.Generator) -> Tensor:
        starts = self._histories.offsets[tasks.rows]
        if self._max_support is not None:
            starts = torch.maximum(starts, tasks.before - self._max_support)
        if self._shots is not None:
            shots = self._shots[torch.randint(len(self._shots), starts.shape, generator=chance)]
            starts = torch.maximum(starts, tasks.before - shots)
        return starts


class _Tasks(NamedTuple):
    """The tasks at a moment, in terms of positions in the histories."""

    rows: Tensor  # [T] users
    before: Tensor  # [T] where the interactions before the moment end
    query: Ragged  # T lists of the interactions asked for


def fixed_splits(
    support: Histories,
    query: Histories,
    users: Features,
    catalogue: Catalogue,
    *,
    batch_size: int = 128,
    max_support: int | None = None,
    whole_catalogue: bool = False,
    negatives: int = 0,
    tempering: float = 0.75,
    seed: int = 0,
    keys: Tensor | None = None,
) -> Iterator[EpisodeBatch]:
    """Episodes as given: one per row of the two histories and of the users, in the order of the rows.

    ``max_support`` keeps the last ones of each support set. Negatives are the same in every call; those of
    the support set avoid the support history, those of the query set both histories.
    Raises ValueError where the histories and the users differ in number.
    """
    _check(None, None, max_support, batch_size)
    if not len(support.lengths) == len(query.lengths) == len(users.ids):
        raise ValueError(
            f"{len(support.lengths)} users have a support set, {len(query.lengths)} a query set and"
            f" {len(users.ids)} features; one number was expected"
        )
    sampler = Negatives(catalogue, tempering=tempering, seed=seed)
    keys = torch.arange(len(users.ids)) if keys is None else keys
    for rows in torch.split(torch.arange(len(users.ids)), batch_size):
        given, asked = collate(support, rows, newest=max_support), collate(query, rows)
        if negatives:
            known = Ragged(support.items, support.offsets).take(rows)
            consumed = _side_by_side(known, Ragged(query.items, query.offsets).take(rows))
            given = sampler.append(given, keys[rows], known, negatives, stream=0)
            asked = sampler.append(asked, keys[rows], consumed, negatives, stream=1)
        if whole_catalogue:
            yield EpisodeBatch(given, asked, users.take(rows), catalogue)
        else:
            given, asked, mentioned = unique_items(given, asked, catalogue)
            yield EpisodeBatch(given, asked, users.take(rows), mentioned)


def _some(values: Tensor | None, rows: Tensor) -> Tensor | None:
    """These rows, where there is anything."""
    return None if values is None else values[rows]


def _check(
    shots: Sequence[int] | None, query_size: int | None, max_support: int | None, batch_size: int
) -> None:
    if shots is not None and (not shots or min(shots) < 0):
        raise ValueError(f"shots are {list(shots)}; at least one number >= 0 was expected")
    if query_size is not None and query_size < 1:
        raise ValueError(f"query_size is {query_size}; an episode is judged on one interaction at least")
    if max_support is not None and max_support < 0:
        raise ValueError(f"max_support is {max_support}; a number >= 0 was expected")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; a number >= 1 was expected")


def _part_of(catalogue: Catalogue, most_items: int | None) -> DrawnPart | None:
    """What draws a part of the catalogue, where more items are eligible; those that users chose come on top."""
    if most_items is None or int(catalogue.eligible.sum()) <= most_items:
        return None
    return DrawnPart(catalogue, max(round(_DRAWN * most_items), 1))


def _batches(lengths: Tensor, batch_size: int, chance: torch.Generator, *, bucket: bool) -> list[Tensor]:
    """The tasks 0 .. len(lengths) - 1 in random order, cut into batches, these in random order too."""
    order = torch.randperm(len(lengths), generator=chance)
    if not len(order):
        return []
    if bucket:
        together = torch.arange(len(order)) // (_BATCHES_SORTED_TOGETHER * batch_size)
        order = order[torch.argsort(together * (int(lengths.max()) + 1) + lengths[order], stable=True)]
    batches = torch.split(order, batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=chance).tolist()]


def _side_by_side(first: Ragged, second: Ragged) -> Ragged:
    """Each list of the first followed by that of the second."""
    rows = torch.arange(len(first.lengths))
    owners = torch.cat([rows.repeat_interleave(first.lengths), rows.repeat_interleave(second.lengths)])
    order = torch.argsort(owners, stable=True)
    return Ragged(torch.cat([first.values, second.values])[order], first.offsets + second.offsets)


def _between(values: Tensor, starts: Tensor, stops: Tensor) -> Ragged:
    """The lists values[starts[t] : stops[t]]."""
    offsets = pad((stops - starts).cumsum(0), (1, 0))
    shift = torch.repeat_interleave(starts - offsets[:-1], stops - starts)
    return Ragged(values[shift + torch.arange(len(shift))], offsets)
