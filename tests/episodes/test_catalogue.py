"""Laws of the catalogue as of a moment."""

import math
from datetime import timedelta

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_meta.episodes import CatalogueClock, Sightings, num_derived
from recsys_meta.tensors import Features

HOUR = 3_600_000_000  # microseconds
NUM_ITEMS = 4
HOURS = st.integers(0, 30)
EVENTS = st.lists(st.tuples(st.integers(0, NUM_ITEMS - 1), HOURS), max_size=20)
WINDOWS = (timedelta(hours=2), timedelta(hours=10))


def features(n: int) -> Features:
    return Features(
        torch.arange(n), torch.zeros(n, 0, dtype=torch.int64), (), torch.full((n, 1), 0.5), torch.zeros(n, 0)
    )


def columns(events: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([i for i, _ in events], dtype=torch.int64), torch.tensor(
        [h for _, h in events], dtype=torch.int64
    ) * HOUR


def clock(events: list[tuple[int, int]], **options: object) -> CatalogueClock:
    items, times = columns(events)
    return CatalogueClock(features(NUM_ITEMS), Sightings(items, times, NUM_ITEMS), **options)


@given(events=EVENTS, hour=st.none() | HOURS)
@settings(deadline=None, max_examples=60)
def test_everything_is_counted_strictly_before_the_moment(
    events: list[tuple[int, int]], hour: int | None
) -> None:
    catalogue = clock(
        events, windows=WINDOWS, popularity_window=timedelta(hours=5), candidate_window=timedelta(hours=7)
    ).at(None if hour is None else hour * HOUR)
    # "now" is one microsecond after the last event where no moment is given
    now = float(hour) if hour is not None else max((h for _, h in events), default=0) + 1 / HOUR
    for item in range(NUM_ITEMS):
        ages = sorted(now - h for i, h in events if i == item and h < now)
        counts = [sum(age <= window for age in ages) for window in (2, 10, 5, 7)]
        never = math.log1p(10 * 365.25 * 24) / 10
        wanted = [
            0.5,
            math.log1p(counts[0]) / 5,
            math.log1p(counts[1]) / 5,
            math.log1p(ages[-1]) / 10 if ages else never,
            math.log1p(ages[0]) / 10 if ages else never,
        ]
        assert catalogue.features.numbers[item].tolist() == pytest.approx(wanted, abs=1e-6)
        assert catalogue.log_popularity[item].item() == pytest.approx(math.log1p(counts[2]), abs=1e-6)
        assert catalogue.eligible[item].item() == (counts[3] > 0)


@given(events=EVENTS, later=EVENTS, hour=HOURS)
@settings(deadline=None, max_examples=50)
def test_events_at_or_after_the_moment_change_nothing(
    events: list[tuple[int, int]], later: list[tuple[int, int]], hour: int
) -> None:
    known = [(i, h) for i, h in events if h < hour]
    added = [(i, h + hour) for i, h in later]
    options = {"windows": WINDOWS, "candidate_window": timedelta(hours=7)}
    before, after = (clock(each, **options).at(hour * HOUR) for each in (known, added + known))
    assert torch.equal(before.features.numbers, after.features.numbers)
    assert torch.equal(before.log_popularity, after.log_popularity)
    assert torch.equal(before.eligible, after.eligible)


@given(events=EVENTS, hour=HOURS)
@settings(deadline=None, max_examples=50)
def test_eligible_and_seen_answer_as_the_whole_catalogue_does(
    events: list[tuple[int, int]], hour: int
) -> None:
    told = clock(events, candidate_window=timedelta(hours=3))
    assert torch.equal(told.eligible(hour * HOUR), told.at(hour * HOUR).eligible)
    assert torch.equal(told.seen(hour * HOUR), told.at(hour * HOUR).log_popularity > 0)


@given(events=EVENTS, hour=HOURS)
@settings(deadline=None, max_examples=60)
def test_mixed_popularity_shares_all_events_out_by_the_counts_of_each_window(
    events: list[tuple[int, int]], hour: int
) -> None:
    mix = [(timedelta(hours=10), 0.3), (timedelta(hours=2), 0.5)]
    mixed = clock(events, popularity_mix=mix).at(hour * HOUR).log_popularity
    ages = [(item, hour - h) for item, h in events if h < hour]
    for item in range(NUM_ITEMS):
        count = sum(i == item for i, _ in ages)
        expected = 0.2 * count
        for window, share in ((10, 0.3), (2, 0.5)):
            recent = [i for i, age in ages if age <= window]
            part = recent.count(item) / len(recent) * len(ages) if recent else count
            expected += share * part
        assert mixed[item].item() == pytest.approx(math.log1p(expected), abs=1e-5)


@given(
    events=st.lists(st.tuples(st.integers(0, NUM_ITEMS - 1), HOURS, st.integers(0, 5)), max_size=20),
    hour=HOURS,
)
@settings(deadline=None, max_examples=60)
def test_what_users_meet_late_is_a_part_of_popularity(events: list[tuple[int, int, int]], hour: int) -> None:
    items, times = columns([(item, h) for item, h, _ in events])
    met = torch.tensor([n for _, _, n in events], dtype=torch.int64)
    told = Sightings(items, times, NUM_ITEMS, lambda: met)
    mix = [(3, 0.6)]
    mixed = CatalogueClock(features(NUM_ITEMS), told, popularity_mix=mix).at(hour * HOUR).log_popularity
    known = [item for item, h, _ in events if h < hour]
    late = [item for item, h, n in events if h < hour and n >= 3]
    for item in range(NUM_ITEMS):
        part = late.count(item) / len(late) * len(known) if late else known.count(item)
        wanted = math.log1p(0.4 * known.count(item) + 0.6 * part)
        assert mixed[item].item() == pytest.approx(wanted, abs=1e-5)


def test_without_users_nothing_is_known_to_come_late() -> None:
    with pytest.raises(ValueError, match="users are not known"):
        clock([(0, 1)], popularity_mix=[(3, 0.6)]).at(2 * HOUR)


@given(events=EVENTS)
@settings(deadline=None, max_examples=20)
def test_episodes_of_any_time_are_drawn_with_counts_of_all_time(events: list[tuple[int, int]]) -> None:
    mix = [(timedelta(hours=2), 0.5)]
    plain, mixed = (clock(events, popularity_mix=m).at(None) for m in ((), mix))
    assert torch.equal(plain.log_popularity, mixed.log_popularity)
    assert plain.hindsight
    assert mixed.hindsight
    served = clock(events, popularity_mix=mix).served(None)
    after = max((h for _, h in events), default=0) * HOUR + 1
    assert torch.equal(served.log_popularity, clock(events, popularity_mix=mix).at(after).log_popularity)
    assert torch.equal(clock(events).served(None).log_popularity, plain.log_popularity)


def test_without_times_there_is_the_total_count_and_no_moment() -> None:
    sightings = Sightings(torch.tensor([2, 0, 2]), torch.zeros(0, dtype=torch.int64), 3)
    untimed = CatalogueClock(features(3), sightings)
    catalogue = untimed.at(None)
    assert catalogue.log_popularity.tolist() == pytest.approx([math.log(2), 0, math.log(3)])
    assert catalogue.eligible.all()
    assert catalogue.features.numbers.shape == (3, 1)
    with pytest.raises(ValueError, match="needs times"):
        untimed.at(HOUR)
    with pytest.raises(ValueError, match="need times"):
        CatalogueClock(features(3), sightings, windows=WINDOWS)
    with pytest.raises(ValueError, match="need times"):
        CatalogueClock(features(3), sightings, popularity_mix=[(timedelta(hours=1), 0.5)])
    with pytest.raises(ValueError, match="needs times"):
        CatalogueClock(features(3), sightings, popularity_mix=[(2, 0.5)])


def test_items_that_may_not_be_recommended_never_become_eligible() -> None:
    allowed = torch.tensor([True, False, True, False])
    assert clock([(0, 1), (1, 1)], eligible=allowed).at(None).eligible.tolist() == [True, False, True, False]
    recent = clock([(0, 1), (1, 1)], eligible=allowed, candidate_window=timedelta(hours=9)).at(2 * HOUR)
    assert recent.eligible.tolist() == [True, False, False, False]


@pytest.mark.parametrize("windows", [(), WINDOWS])
def test_the_number_of_derived_numbers_is_known_beforehand(windows: tuple[timedelta, ...]) -> None:
    told = clock([(0, 1)], windows=windows)
    assert told.num_derived == num_derived(windows) == told.at(None).features.numbers.shape[1] - 1


def test_a_span_of_centuries_and_many_items_does_not_overflow() -> None:
    century = 100 * 365 * 24 * HOUR
    items = torch.tensor([999_999, 0, 999_999, 999_999])
    times = torch.tensor([-century, 0, century, 2 * century])
    told = CatalogueClock(features(1_000_000), Sightings(items, times, 1_000_000))
    catalogue = told.at(century + 1)
    assert catalogue.log_popularity[[0, 999_998, 999_999]].tolist() == pytest.approx(
        [math.log(2), 0, math.log(3)]
    )


def test_a_misfit_of_sizes_or_an_empty_window_is_refused() -> None:
    items, times = columns([(0, 1), (1, 2)])
    with pytest.raises(ValueError, match="1 times for 2 interactions"):
        Sightings(items, times[:1], 2)
    sightings = Sightings(items, times, 2)
    with pytest.raises(ValueError, match="of 2 items, the features of 3"):
        CatalogueClock(features(3), sightings)
    with pytest.raises(ValueError, match="3 items, the features of 2"):
        CatalogueClock(features(2), sightings, eligible=torch.ones(3, dtype=torch.bool))
    half = (timedelta(hours=1), 0.6)
    with pytest.raises(ValueError, match="no more than 1"):
        CatalogueClock(features(2), sightings, popularity_mix=[half, half])
    with pytest.raises(ValueError, match="of all time"):
        CatalogueClock(features(2), sightings, popularity_mix=[half], popularity_window=timedelta(hours=1))
    with pytest.raises(ValueError, match="longer than nothing"):
        CatalogueClock(features(2), sightings, popularity_window=timedelta(0))
