"""How fast items come and go, read off the events alone: where they live for hours, what matters is what they are by now."""

from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_meta.episodes.catalogue import Sightings

_LISTED = 10
_MOMENTS = 8  # looked back to, a quarter of a horizon from one to the next
# Parts of a horizon, windows that popularity may be counted in: of a day 20 minutes to the whole.
_PARTS = (72, 24, 8, 4, 1)
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


def _most_popular(counts: Tensor, before: Tensor) -> Tensor:
    """Rows of the items counted most, those of all time deciding between equals, [10] or fewer."""
    keys = counts.double() + before.double() / (before.sum() + 1)
    return keys.topk(min(_LISTED, len(keys))).indices


def _weighted_median(values: Tensor, weights: Tensor) -> int:
    order = values.argsort()
    reached = weights[order].cumsum(0)
    return int(values[order[int(torch.searchsorted(reached, (reached[-1] + 1) // 2))]])
