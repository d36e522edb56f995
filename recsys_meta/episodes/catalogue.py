"""The catalogue as of a moment: what the interactions before it say about each item, and nothing later."""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property

import torch
from torch import Tensor

from recsys_meta.tensors import Catalogue, Features

_MICROSECOND = timedelta(microseconds=1)
_HOUR = timedelta(hours=1) // _MICROSECOND
# Scales bring the numbers to the order of 1: e^5 clicks in a window, and e^10 hours (2.5 years) of age, are much.
_COUNT_SCALE = 5.0
_AGE_SCALE = 10.0
_NEVER = math.log1p(10 * 365.25 * 24) / _AGE_SCALE  # the age of an item without events: ten years


def num_derived(windows: Sequence[timedelta]) -> int:
    """How many numbers CatalogueClock appends for these windows: what FeatureEncoder takes as ``extra_numbers``."""
    return len(windows) + 2 if windows else 0


class Sightings:
    """When each item was met: interactions sorted once, for any number of clocks.

    items: [M] int64, rows of a catalogue of ``num_items``. times: [M] int64 in microseconds since 1970 UTC, or of
        length 0 where time is unknown. met_before: gives [M] int64, how many things its user had met before
        each, and is asked when it is needed; None: not known.
    """

    def __init__(
        self, items: Tensor, times: Tensor, num_items: int, met_before: Callable[[], Tensor] | None = None
    ) -> None:
        if len(times) not in (0, len(items)):
            raise ValueError(
                f"{len(times)} times for {len(items)} interactions; one each was expected, or none"
            )
        self.timed = len(times) == len(items)
        self.num_items = num_items
        # Events are known by their rank in time, and item * (M + 1) + rank is sorted within each item:
        # with ranks instead of times it stays within 64 bits whatever the span of time.
        self._times, self._items = times, items
        self._unsorted, self._met_before = times, met_before
        if self.timed:
            self._times, order = torch.sort(times, stable=True)
            self._items = items.index_select(0, order)
        self._stride = len(items) + 1
        self._keys, by_item = torch.sort(self._items * self._stride + torch.arange(len(items)))
        self._times_by_item = self._times.index_select(0, by_item) if self.timed else times
        self._begins = torch.searchsorted(self._keys, torch.arange(num_items) * self._stride)

    def known(self, moment: int | None) -> int | None:
        """The moment; without one that after the last event, or None where time is unknown.

        Raises ValueError where a moment is given but time is unknown.
        """
        if moment is not None and not self.timed:
            raise ValueError("a catalogue as of a moment needs times, but these interactions have none")
        if moment is None and self.timed:
            return int(self._times[-1]) + 1 if len(self._times) else 0
        return moment

    def counts(self, moment: int | None, window: timedelta | None) -> Tensor:
        """The number of events of each item in the window before a known moment, [I] int64."""
        if window is None or moment is None:
            return self._ends(moment) - self._begins
        recent = self._items[self._rank(moment - window // _MICROSECOND) : self._rank(moment)]
        return torch.bincount(recent, minlength=self.num_items)

    def counts_after(self, met: int, moment: int | None) -> Tensor:
        """The number of events of each item before a known moment whose user had met so many things or more, [I] int64.

        Raises ValueError where it is not known what users had met.
        """
        rank = self._rank(moment)
        late = self._items[:rank][self._met_before_in_time[:rank] >= met]
        return torch.bincount(late, minlength=self.num_items)

    @cached_property
    def _met_before_in_time(self) -> Tensor:
        """What users had met before each event, in the order of time, [M] int64."""
        if self._met_before is None:
            raise ValueError(
                "what users meet late needs histories, but of these interactions the users are not known"
            )
        met = self._met_before()
        return met.index_select(0, torch.sort(self._unsorted, stable=True).indices) if self.timed else met

    def ages(self, moment: int) -> tuple[Tensor, Tensor]:
        """Scaled log hours since the first and since the last event of each item, [I] both."""
        ends = self._ends(moment)
        ages = torch.full((2, len(ends)), _NEVER)
        seen = ends > self._begins
        events = torch.stack([self._times_by_item[self._begins[seen]], self._times_by_item[ends[seen] - 1]])
        ages[:, seen] = ((moment - events).double() / _HOUR).log1p().float() / _AGE_SCALE
        return ages[0], ages[1]

    def times_before(self, moment: int) -> Tensor:
        """Of all events before the moment, ascending, [M]; none where time is unknown."""
        return self._times[: self._rank(moment)] if self.timed else self._times[:0]

    def first_times(self) -> Tensor:
        """When each item was first met, [I]; the largest int64 for one that never was."""
        first = torch.full((self.num_items,), torch.iinfo(torch.int64).max)
        met = self._ends(None) > self._begins
        first[met] = self._times_by_item[self._begins[met]]
        return first

    def _rank(self, moment: int | None) -> int:
        """How many events are before the moment; None: all."""
        return len(self._items) if moment is None else int(torch.searchsorted(self._times, moment))

    def _ends(self, moment: int | None) -> Tensor:
        """Where each item's events before the moment end in ``_keys``, [I] int64."""
        return torch.searchsorted(
            self._keys, torch.arange(self.num_items) * self._stride + self._rank(moment)
        )


class CatalogueClock:
    """Gives the catalogue of any moment from all interactions known; each look costs milliseconds.

    features: I items. sightings: of the same items.
    windows: for each one the log count of the events in it becomes a number of the item; with any window the
        ages since the first and the last event do too. popularity_window: what ``log_popularity`` counts in;
        None: all time. popularity_mix: pairs of a part and its share; as of a moment ``log_popularity`` is that of as many events
        as in all time, shared out by the counts of each part, and the rest by those of all time. A part is a window, or what
        users meet after so many other things, whenever.
    candidate_window: only items with an event in the last so much time are eligible; None: all.
    eligible: [I] bool, which items may be recommended at all; None: all.
    """

    def __init__(
        self,
        features: Features,
        sightings: Sightings,
        *,
        windows: Sequence[timedelta] = (),
        popularity_window: timedelta | None = None,
        popularity_mix: Sequence[tuple[timedelta | int, float]] = (),
        candidate_window: timedelta | None = None,
        eligible: Tensor | None = None,
    ) -> None:
        self.timed = sightings.timed
        mixed = [part for part, _ in popularity_mix]
        recent = [part for part in mixed if isinstance(part, timedelta)]
        limits = [*windows, *recent, *(w for w in (popularity_window, candidate_window) if w is not None)]
        if limits and not self.timed:
            raise ValueError(
                f"windows {[str(w) for w in limits]} need times, but these interactions have none"
            )
        if mixed and not self.timed:
            raise ValueError("a mixture as of a moment needs times, but these interactions have none")
        if any(window <= timedelta(0) for window in limits):
            raise ValueError(f"windows {[str(w) for w in limits]} have to be longer than nothing")
        if mixed and (popularity_window is not None or sum(share for _, share in popularity_mix) > 1):
            raise ValueError("a mixture is of all time and of parts that are no more than 1 together")
        num_items = len(features.ids)
        if sightings.num_items != num_items:
            raise ValueError(f"the sightings are of {sightings.num_items} items, the features of {num_items}")
        if eligible is not None and len(eligible) != num_items:
            raise ValueError(f"eligible says something of {len(eligible)} items, the features of {num_items}")
        self.num_derived = num_derived(windows)
        self._features = features
        self._sightings = sightings
        self._windows = tuple(windows)
        self._popularity_window = popularity_window
        self._popularity_mix = tuple(popularity_mix)
        self._candidate_window = candidate_window
        self._eligible = torch.ones(num_items, dtype=torch.bool) if eligible is None else eligible

    def at(self, moment: int | None) -> Catalogue:
        """The catalogue as of events strictly before the moment, in microseconds since 1970 UTC.

        None: as of all events, the moment after the last one. Without times only None can be answered.
        Raises ValueError where a moment is given but time is unknown.
        """
        return self._at(moment, mixed=moment is not None)

    def served(self, moment: int | None) -> Catalogue:
        """As ``at``, for users who are served: popularity is mixed, where it is, without a moment too."""
        return self._at(moment, mixed=True)

    def _at(self, moment: int | None, *, mixed: bool) -> Catalogue:
        hindsight = moment is None and self._popularity_window is None
        moment = self._sightings.known(moment)
        counts = (
            self._mixed_counts(moment)
            if mixed and self._popularity_mix
            else self._sightings.counts(moment, self._popularity_window)
        )
        popularity = counts.float().log1p()
        features = self._features
        if self._windows:
            assert moment is not None  # windows are there with times alone
            recent = [self._sightings.counts(moment, w).float().log1p() / _COUNT_SCALE for w in self._windows]
            derived = torch.stack([*recent, *self._sightings.ages(moment)], 1)
            features = features._replace(numbers=torch.cat([features.numbers, derived], 1))
        return Catalogue(features, popularity, self.eligible(moment), hindsight=hindsight)

    def _mixed_counts(self, moment: int | None) -> Tensor:
        """As many events as in all time, shared out as in the mixture, [I] float64; a part without events says what all do."""
        counts = self._sightings.counts(moment, None).double()
        mixed: Tensor = counts * (1 - sum(share for _, share in self._popularity_mix))
        for part, share in self._popularity_mix:
            some = (
                self._sightings.counts(moment, part)
                if isinstance(part, timedelta)
                else self._sightings.counts_after(part, moment)
            ).double()
            mixed += share * (some * (counts.sum() / some.sum()) if some.any() else counts)
        return mixed

    def eligible(self, moment: int | None) -> Tensor:
        """Which items may be recommended at the moment, [I] bool: ``at(moment).eligible`` alone."""
        if self._candidate_window is None:
            return self._eligible
        moment = self._sightings.known(moment)
        return self._eligible & (self._sightings.counts(moment, self._candidate_window) > 0)

    def seen(self, moment: int | None) -> Tensor:
        """Which items have any event before the moment, [I] bool."""
        return self._sightings.counts(self._sightings.known(moment), None) > 0
