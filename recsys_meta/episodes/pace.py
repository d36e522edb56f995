"""How fast items come and go, read off the events alone: where they live for hours, what matters is what they are by now."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_meta.episodes.catalogue import Sightings
from recsys_meta.episodes.histories import is_first, met_before
from recsys_meta.tensors import Histories

_LISTED = 10
_MOMENTS = 8  # looked back to, a quarter of a horizon from one to the next
# Parts of a horizon, windows that popularity may be counted in: of a day 10 minutes to the whole.
_PARTS = (144, 72, 24, 8, 4, 1)
# Of a trend: moments at these shares of all events, and windows as parts of all time.
_LATER = (0.5, 0.6, 0.7, 0.8, 0.9)
_FEWEST_MOMENTS, _FEWEST_NEWCOMERS = 3, 30
_PARTS_OF_ALL = (4, 16, 64, 256, 1024)
# Of a mixture: windows as parts of all time, rounds of EM, and the share below which a window is left out.
_PARTS_MIXED, _ROUNDS, _LEAST_SHARE = (4, 16, 64), 100, 0.01
# Of what comes late: parts of how much was met before, and how much likelier it has to be, in nats an event.
_PARTS_OF_MET, _WORTH = (4, 2, 1), 0.01
_MET_BEFORE = 3  # of a newcomer's items, after which it is asked what comes: the first ones are those of its first minute
_NEARLY = 0.9
_MORE = 0.02  # of the items that newcomers meet: below that popularity says little, whenever it is counted
_GAIN = 1.25  # times as many events on the list have to be worth giving up counts of all time


class Pace(NamedTuple):
    """What a while ago would have foretold of what came then."""

    window: timedelta | None  # in which what was most popular is most asked for next; None: that of all time
    hits: float  # share of later events on the ten items most popular in this window
    hits_of_all_time: float  # the same, popularity counted since the beginning
    age: timedelta  # median time since its item was first met, of these events

    def fleeting(self, horizon: timedelta) -> bool:
        """Whether recent counts foretell much more than all, and most of what is asked for did not exist a horizon before."""
        return self.window is not None and self.hits > _GAIN * self.hits_of_all_time and self.age < horizon


def pace_of(sightings: Sightings, moment: int, horizon: timedelta) -> Pace | None:
    """Of the events before a moment, in microseconds since 1970 UTC, looking ahead for a horizon from each of some moments
    before it. None where time is unknown, or less than two horizons of it.
    """
    span = horizon // timedelta(microseconds=1)
    known = sightings.times_before(moment)
    if not len(known) or span <= 0 or moment - int(known[0]) < 2 * span:
        return None
    last = moment - span
    moments = [some for n in range(_MOMENTS) if (some := last - n * span // 4) - int(known[0]) >= span // 2]
    windows: list[timedelta | None] = [None, *(horizon / part for part in _PARTS)]
    hits, ages, weights = torch.zeros(len(windows)), [], []
    asked = 0
    for some in moments:
        query = sightings.counts(some + span, horizon)
        asked += int(query.sum())
        before = sightings.counts(some, None)
        for place, window in enumerate(windows):
            hits[place] += query[_most_popular(sightings.counts(some, window), before)].sum()
        ages.append((some - sightings.first_times()).clamp(min=0))
        weights.append(query)
    if not asked:
        return None
    best = int(hits.argmax())
    age = _weighted_median(torch.cat(ages), torch.cat(weights))
    return Pace(windows[best], float(hits[best]) / asked, float(hits[0]) / asked, timedelta(microseconds=age))


class Trend(NamedTuple):
    """What recent counts would have foretold of newcomers, after each of some moments."""

    window: timedelta  # in which what was most popular was most met by newcomers
    windows: tuple[timedelta, ...]  # those looked at, ascending
    hits: float  # share of a newcomer's items on the ten items most popular in this window
    hits_of_all_time: float  # the same, popularity counted since the beginning


def trend_of(histories: Histories, sightings: Sightings, moment: int) -> Trend | None:
    """Whether recent counts foretell what newcomers do: more than those of all time, and after each of some moments no less.

    What only some moments say is a season or an accident. None where counts of all time are as good, or where time or newcomers
    are too few.

    histories: of all users, with times; items of the sightings. moment: what lies before it is looked at, in microseconds since
        1970 UTC.
    """
    windows = _windows(sightings, moment, _PARTS_OF_ALL)
    found = []
    for newcomers in _newcomers(histories, sightings, moment, met_before=_MET_BEFORE):
        each = torch.bincount(newcomers.place)
        hits = []
        for window in windows:
            counts = sightings.counts(newcomers.moment, window)
            listed = torch.isin(newcomers.items, _most_popular(counts, newcomers.before))
            hits.append((torch.bincount(newcomers.place, listed.double()) / each).mean())
        found.append(torch.stack(hits))
    if len(found) < _FEWEST_MOMENTS:
        return None
    at_each = torch.stack(found)  # [moments, windows]
    means = at_each.mean(0).masked_fill((at_each < at_each[:, :1]).any(0), 0.0)
    # The longest of those that are nearly as good as the best: it also says what comes later.
    best = int((means >= _NEARLY * means.max()).nonzero()[0])
    window = windows[best]
    if window is None or not means[best] > max(_GAIN * means[0], means[0] + _MORE):
        return None
    return Trend(window, tuple(sorted(some for some in windows if some)), float(means[best]), float(means[0]))


class Mix(NamedTuple):
    """Of what popularity would best have been mixed for newcomers, after each of some moments."""

    windows: tuple[timedelta, ...]  # descending
    shares: tuple[float, ...]  # of the counts of each window; the rest is that of all time


def mix_of(histories: Histories, sightings: Sightings, moment: int) -> Mix | None:
    """The mixture of what was met of late and of all time that makes what newcomers of the past met likeliest.

    Each window, and all time, is a distribution over items, that of its counts; the shares are those of the largest likelihood,
    newcomers weighing as much as NDCG@10 has them (EM, which ends in the one maximum there is: A. Dempster, N. Laird, D. Rubin,
    JRSS B 39(1), 1977). Likelihood, for a list of ten tells little: a few items that rise or fall turn its verdict.

    histories, sightings, moment: of ``trend_of``. None where time or newcomers are too few.
    """
    windows, chances, weights = _windows(sightings, moment, _PARTS_MIXED), [], []
    for newcomers in _newcomers(histories, sightings, moment):
        each = torch.bincount(newcomers.place).double()
        weight = (each.clamp(max=_LISTED) / each)[newcomers.place]
        wanted = torch.bincount(newcomers.items, weight, minlength=sightings.num_items)
        met = wanted.nonzero().squeeze(1)
        at_each = torch.stack([_shares(sightings, newcomers.moment, window) for window in windows])
        chances.append(at_each[:, met])
        weights.append(wanted[met] / wanted.sum())
    if len(chances) < _FEWEST_MOMENTS:
        return None
    shares = _likeliest(torch.cat(chances, 1), torch.cat(weights) / len(weights))
    found = zip(windows, shares.tolist(), strict=True)
    kept = [(window, share) for window, share in found if window is not None and share >= _LEAST_SHARE]
    return Mix(*map(tuple, zip(*kept, strict=True))) if kept else None


class Late(NamedTuple):
    """Of what it would best be mixed what users meet late."""

    after: tuple[int, ...]  # of what users meet after so many other things; ascending
    shares: tuple[float, ...]  # the rest is that of all they meet


def late_of(histories: Histories, num_items: int, moment: int, met: int) -> Late | None:
    """The mixture of what all users meet, whenever, and of what they meet after some and after many other things, that makes what
    they meet after so many likeliest: first everybody buys bread, and there are more beginners than others.

    As in ``mix_of``, but each event is foretold by all others. None where these foretell hardly more than counts of all, or users
    are too few.

    histories: of all users, in order. moment: what lies before it is looked at, in microseconds since 1970 UTC. met: after how
        many things it is asked what comes.
    """
    if not histories.timed or not met:
        return None
    known = is_first(histories) & (histories.times < moment)
    items, before = histories.items[known], met_before(histories)[known]
    late = before >= met
    place = torch.unique(histories.owners()[known][late], return_inverse=True)[1]
    each = torch.bincount(place).double()
    if len(each) < _FEWEST_NEWCOMERS:
        return None
    after = sorted({0, *(-(-met // part) for part in _PARTS_OF_MET)})
    counts = torch.stack([torch.bincount(items[before >= n], minlength=num_items) for n in after]).double()
    wanted = torch.bincount(items[late], (each.clamp(max=_LISTED) / each)[place], minlength=num_items)
    wanted[counts[0] < 2] = 0  # met by nobody else
    asked = wanted.nonzero().squeeze(1)
    if not len(asked):
        return None
    wanted = wanted[asked] / wanted.sum()
    chance = ((counts[:, asked] - 1) / (counts.sum(1, keepdim=True) - 1)).clamp(min=0)
    shares = _likeliest(chance, wanted)
    if not (shares @ chance / chance[0]).log() @ wanted > _WORTH:
        return None
    kept = [
        (n, share) for n, share in zip(after, shares.tolist(), strict=True) if n and share >= _LEAST_SHARE
    ]
    return Late(*map(tuple, zip(*kept, strict=True)))


def _likeliest(chance: Tensor, weight: Tensor) -> Tensor:
    """The shares of the mixture of largest likelihood, [K]. chance: of M things in each of K parts, [K, M]; weight: [M]."""
    shares = torch.full((len(chance),), 1 / len(chance), dtype=torch.float64)
    for _ in range(_ROUNDS):
        parts = shares.unsqueeze(1) * chance
        shares = (parts / parts.sum(0)) @ weight
    return shares


def _shares(sightings: Sightings, moment: int, window: timedelta | None) -> Tensor:
    """Of each item in the events of the window, or of all time where it holds none, [I]."""
    counts = sightings.counts(moment, window)
    counts = counts if counts.any() else sightings.counts(moment, None)
    return counts.double() / counts.sum()


class _Newcomers(NamedTuple):
    """What users who begin at a moment or later meet of what was there."""

    moment: int
    before: Tensor  # [I], events of each item
    place: Tensor  # [M], whose it is, ascending
    items: Tensor  # [M]


def _newcomers(
    histories: Histories, sightings: Sightings, moment: int, met_before: int = 0
) -> Iterator[_Newcomers]:
    """Those after each of some moments, until the moment, where there are enough. met_before: items of each left out at first."""
    known = sightings.times_before(moment)
    if not histories.timed or not len(known):
        return
    first = is_first(histories) & (histories.times < moment)
    owners, times, items = histories.owners()[first], histories.times[first], histories.items[first]
    begun = torch.full((len(histories.lengths),), torch.iinfo(torch.int64).max)
    begun.scatter_reduce_(0, owners, times, "amin")
    for share in _LATER:
        some = int(known[int(share * len(known))])
        before = sightings.counts(some, None)
        asked = (begun[owners] >= some) & (before[items] > 0)
        nth = asked.cumsum(0) - 1
        start = torch.full_like(begun, len(asked)).scatter_reduce_(0, owners[asked], nth[asked], "amin")
        asked &= nth - start[owners] >= met_before
        place = torch.unique_consecutive(owners[asked], return_inverse=True)[1]  # owners are in order
        if len(place) and int(place[-1]) + 1 >= _FEWEST_NEWCOMERS:
            yield _Newcomers(some, before, place, items[asked])


def _windows(sightings: Sightings, moment: int, parts: Sequence[int]) -> list[timedelta | None]:
    """All time, and parts of it; nothing where nothing lies before the moment."""
    known = sightings.times_before(moment)
    span = timedelta(microseconds=moment - int(known[0]) if len(known) else 0)
    return [None, *(span / part for part in parts)]


def _most_popular(counts: Tensor, before: Tensor) -> Tensor:
    """Rows of the items counted most, those of all time deciding between equals, [10] or fewer."""
    keys = counts.double() + before.double() / (before.sum() + 1)
    return keys.topk(min(_LISTED, len(keys))).indices


def _weighted_median(values: Tensor, weights: Tensor) -> int:
    order = values.argsort()
    reached = weights[order].cumsum(0)
    return int(values[order[int(torch.searchsorted(reached, (reached[-1] + 1) // 2))]])
