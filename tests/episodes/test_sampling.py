"""Laws of episodes: what is drawn, that nothing is drawn twice, and that nothing is known too early."""

import math
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from recsys_meta.episodes import (
    CatalogueClock,
    MomentSplits,
    NewcomerSplits,
    RandomSplits,
    Sightings,
    fixed_splits,
    newcomer_moments,
)
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, Histories

HOUR = 3_600_000_000  # microseconds
NUM_ITEMS = 12
LISTS = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9), min_size=1, max_size=8)
# Of each user: (hour, item) of every event.
EVENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=8), min_size=1, max_size=6
)


def features(n: int) -> Features:
    """Ids are row + 1000, so that a row can be known again wherever it went."""
    return Features(
        torch.arange(n) + 1000, torch.zeros(n, 0, dtype=torch.int64), (), torch.zeros(n, 0), torch.zeros(n, 0)
    )


def catalogue() -> Catalogue:
    return Catalogue(features(NUM_ITEMS), torch.arange(NUM_ITEMS) * 0.1, torch.arange(NUM_ITEMS) != 3)


def histories(lists: list[list[int]], times: list[list[int]] | None = None) -> Histories:
    """The value of an interaction is 1 + its place among all."""
    items = torch.tensor([item for each in lists for item in each], dtype=torch.int64)
    moments = [time for each in times for time in each] if times is not None else range(len(items))
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    return Histories(
        items, torch.arange(len(items)) + 1.0, torch.tensor(list(moments), dtype=torch.int64), offsets
    )


def timed(events: list[list[tuple[int, int]]]) -> Histories:
    ordered = [sorted(each, key=lambda event: event[0]) for each in events]
    return histories(
        [[i for _, i in each] for each in ordered], [[h * HOUR for h, _ in each] for each in ordered]
    )


def random_splits(lists: list[list[int]], **options: object) -> RandomSplits:
    return RandomSplits(
        histories(lists), features(len(lists)), catalogue(), **{"shots": (0, 1, 3), "batch_size": 3} | options
    )


Episode = tuple[int, list[tuple[int, float]], list[tuple[int, float]]]


def pairs(examples: Examples, row: int, items: Features) -> list[tuple[int, float]]:
    """Items of the whole catalogue and targets of one task."""
    mask = examples.mask[row]
    originals = items.ids[examples.items[row][mask]] - 1000
    return list(zip(originals.tolist(), examples.targets[row][mask].tolist(), strict=True))


def episodes(batches: Iterable[EpisodeBatch]) -> list[Episode]:
    """(user, support, query) of every task, in order."""
    return [
        (
            int(batch.users.ids[row]) - 1000,
            pairs(batch.support, row, batch.catalogue.features),
            pairs(batch.query, row, batch.catalogue.features),
        )
        for batch in batches
        for row in range(len(batch.users.ids))
    ]


def once_each(items: list[int]) -> list[int]:
    return list(dict.fromkeys(items))


@given(
    lists=LISTS,
    shots=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    query_size=st.none() | st.integers(1, 4),
    min_query=st.integers(1, 3),
    max_support=st.none() | st.integers(0, 4),
    by_time=st.booleans(),
    whole=st.booleans(),
    bucket=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_an_epoch_has_every_user_once_with_disjoint_sets_of_the_sizes_asked_for(
    lists: list[list[int]],
    shots: list[int],
    query_size: int | None,
    min_query: int,
    max_support: int | None,
    by_time: bool,
    whole: bool,
    bucket: bool,
) -> None:
    splits = random_splits(
        lists,
        shots=shots,
        query_size=query_size,
        min_query=min_query,
        max_support=max_support,
        by_time=by_time,
        whole_catalogue=whole,
        bucket=bucket,
    )
    batches = list(splits.epoch(0))
    drawn = episodes(batches)
    able = [user for user, each in enumerate(lists) if len(set(each)) >= min_query]
    assert sorted(user for user, _, _ in drawn) == able
    assert splits.left_out == len(lists) - len(able)
    assert len(splits) == len(batches)
    for user, support, query in drawn:
        items = [item for item, _ in support + query]
        assert len(set(items)) == len(items)
        assert set(items) <= set(lists[user])
        limit = len(set(lists[user])) - min_query
        cap = limit if max_support is None else min(limit, max_support)
        assert len(support) in {min(shot, cap) for shot in shots}
        begins = {max(len(support), min(shot, cap)) for shot in shots} if by_time else {len(support)}
        rests = {len(set(lists[user])) - begin for begin in begins}
        most = max(query_size or math.inf, min_query)
        assert len(query) in {min(rest, most) for rest in rests}


@given(
    lists=LISTS,
    query_size=st.integers(1, 4),
    max_support=st.none() | st.integers(0, 4),
    by_time=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_without_shots_the_support_set_is_everything_but_the_query_set(
    lists: list[list[int]], query_size: int, max_support: int | None, by_time: bool
) -> None:
    splits = random_splits(lists, shots=None, query_size=query_size, max_support=max_support, by_time=by_time)
    for user, support, query in episodes(splits.epoch(0)):
        distinct = once_each(lists[user])
        assert len(query) == min(query_size, len(distinct))
        rest = len(distinct) - len(query)
        assert len(support) == (rest if max_support is None else min(rest, max_support))
        if by_time:
            assert [item for item, _ in support + query] == distinct[
                len(distinct) - len(support) - len(query) :
            ]


@given(lists=LISTS)
@settings(deadline=None, max_examples=50)
def test_by_time_the_support_set_comes_first_and_the_query_set_is_in_one_piece_later(
    lists: list[list[int]],
) -> None:
    for user, support, query in episodes(random_splits(lists, by_time=True, query_size=2).epoch(4)):
        in_time, asked = once_each(lists[user]), [item for item, _ in query]
        assert [item for item, _ in support] == in_time[: len(support)]
        begin = in_time.index(asked[0])
        assert begin >= len(support)
        assert asked == in_time[begin : begin + len(asked)]


def test_by_time_the_query_set_begins_at_once_or_at_a_number_of_shots_of_its_own() -> None:
    found = Counter(
        (len(support), query[0][0])
        for number in range(200)
        for _, support, query in episodes(
            random_splits([[*range(9)]], shots=[0, 2, 5], by_time=True).epoch(number)
        )
    )
    # Of 18: of three supports each, four queries in six begin at 5, one each at 0 and at 2.
    expected = {(0, 0): 1, (0, 2): 1, (0, 5): 4, (2, 2): 2, (2, 5): 4, (5, 5): 6}
    assert set(found) == set(expected)
    wanted = [200 * share / 18 for share in expected.values()]
    assert chisquare([found[pair] for pair in expected], wanted).pvalue > 1e-3


def test_by_time_needs_times() -> None:
    untimed = histories([[1, 2]])._replace(times=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="no timestamp"):
        RandomSplits(untimed, features(1), catalogue(), shots=(1,), by_time=True)


def test_values_stay_with_their_items() -> None:
    lists = [[4, 2, 7], [9, 0]]
    for user, support, query in episodes(random_splits(lists).epoch(0)):
        before = sum(len(each) for each in lists[:user])
        assert all(target == before + lists[user].index(item) + 1 for item, target in support + query)


def test_an_epoch_is_given_by_the_seed_and_its_number() -> None:
    lists = [[(user + n) % NUM_ITEMS for n in range(9)] for user in range(40)]
    first, again = (list(random_splits(lists, seed=1, negatives=2).epoch(5)) for _ in range(2))
    assert episodes(first) == episodes(again)
    others = [
        episodes(random_splits(lists, seed=seed, negatives=2).epoch(number))
        for seed, number in [(1, 6), (2, 5)]
    ]
    assert all(sorted(other) != sorted(episodes(first)) for other in others)
    assert all([user for user, _, _ in other] != [user for user, _, _ in episodes(first)] for other in others)


def test_over_epochs_every_item_and_every_number_of_shots_is_drawn_equally_often() -> None:
    splits = random_splits([list(range(10))] * 50, shots=(0, 2, 4), batch_size=50)
    drawn = [episode for number in range(60) for episode in episodes(splits.epoch(number))]
    shots = Counter(len(support) for _, support, _ in drawn)
    items = Counter(item for _, support, _ in drawn for item, _ in support)
    assert sum((shots[n] - 1_000) ** 2 / 1_000 for n in (0, 2, 4)) < 13.8  # 0.1 % points of chi-square:
    expected = sum(items.values()) / 10
    assert sum((items[n] - expected) ** 2 / expected for n in range(10)) < 27.9  # 2 and 9 degrees of freedom


def test_tasks_of_similar_length_stand_together() -> None:
    lists = [list(range(1 + user % NUM_ITEMS)) for user in range(120)]
    padded = {
        bucket: sum(
            int((~batch.query.mask).sum())
            for batch in random_splits(lists, batch_size=10, bucket=bucket).epoch(0)
        )
        for bucket in (True, False)
    }
    assert padded[True] < padded[False] / 2


@given(lists=LISTS, negatives=st.integers(1, 2))
@settings(deadline=None, max_examples=30)
def test_negatives_of_the_support_avoid_the_support_and_those_of_the_query_all_that_was_consumed(
    lists: list[list[int]], negatives: int
) -> None:
    for user, support, query in episodes(random_splits(lists, negatives=negatives).epoch(1)):
        for examples, known in ((support, {i for i, t in support if t > 0}), (query, set(lists[user]))):
            sampled = [item for item, target in examples if target == 0]
            assert not set(sampled) & known
            assert 3 not in sampled  # not eligible
            assert len(sampled) <= negatives * sum(target > 0 for _, target in examples)


def test_a_support_negative_may_be_what_the_query_asks_for() -> None:
    # At night nobody knows what the user will choose next; training is to know no more.
    drawn = episodes(random_splits([list(range(NUM_ITEMS))], shots=(6,), negatives=3).epoch(0))
    assert {i for i, t in drawn[0][1] if t == 0} <= {i for i, t in drawn[0][2] if t > 0}
    assert any(t == 0 for _, t in drawn[0][1])


def test_the_negatives_of_a_user_depend_on_its_key_and_not_on_who_else_is_there() -> None:
    lists, keys = [[0, 1, 2], [4, 5], [6, 7, 8]], torch.tensor([70, 80, 90])
    options = {"shots": (1,), "by_time": True, "negatives": 4}
    everybody = {user: rest for user, *rest in episodes(random_splits(lists, keys=keys, **options).epoch(2))}
    ((_, *alone),) = episodes(random_splits(lists[2:], keys=keys[2:], **options).epoch(2))
    assert [[item for item, _ in each] for each in alone] == [
        [item for item, _ in each] for each in everybody[2]
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_a_batch_carries_the_whole_catalogue_or_what_it_mentions(whole: bool) -> None:
    (batch,) = random_splits([[1, 2], [2, 5]], whole_catalogue=whole).epoch(0)
    assert (batch.catalogue.features.ids - 1000).tolist() == (list(range(NUM_ITEMS)) if whole else [1, 2, 5])


def test_where_more_items_are_eligible_a_batch_carries_a_part_drawn_for_it_alone() -> None:
    lists = [[1, 2], [2, 5], [0, 3], [4, 6]]
    options = {"whole_catalogue": True, "batch_size": 2}
    whole = list(random_splits(lists, most_items=NUM_ITEMS, **options).epoch(0))
    assert [len(batch.catalogue.eligible) for batch in whole] == [NUM_ITEMS] * 2
    assert all(batch.catalogue.log_weight is None for batch in whole)
    splits = random_splits(lists, most_items=1, **options)
    seen = set()
    for epoch in range(20):
        drawn = (some.epoch(epoch) for some in (splits, splits, random_splits(lists, **options)))
        for batch, again, full in zip(*drawn, strict=True):
            ids = batch.catalogue.features.ids
            assert torch.equal(ids, again.catalogue.features.ids)
            assert len(ids) < NUM_ITEMS
            for mine, same in ((batch.support, full.support), (batch.query, full.query)):
                assert torch.equal(
                    ids[mine.items][mine.mask], full.catalogue.features.ids[same.items][same.mask]
                )
            seen.add(tuple(ids.tolist()))
    assert len(seen) > 20


def test_nobody_able_gives_no_batches() -> None:
    splits = random_splits([[], [1]], min_query=2)
    assert (len(splits), list(splits.epoch(0)), splits.left_out) == (0, [], 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": None}, "both None"),
        ({"shots": ()}, "at least one number"),
        ({"shots": (1, -1)}, "at least one number >= 0"),
        ({"query_size": 0}, "query_size is 0"),
        ({"min_query": 0}, "min_query is 0"),
        ({"max_support": -1}, "max_support is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_splits([[1, 2]], **options)


def test_a_million_interactions_are_split_without_losing_one() -> None:
    users, each = 50_000, 20
    items = torch.arange(users * each) * 7919 % 1_000_003
    told = Histories(items, torch.ones(len(items)), items[:0], torch.arange(users + 1) * each)
    plain = Catalogue(features(1_000_003), torch.zeros(1_000_003), torch.ones(1_000_003, dtype=torch.bool))
    splits = RandomSplits(told, features(users), plain, shots=(5,), batch_size=10_000, whole_catalogue=True)
    batches = list(splits.epoch(0))
    assert torch.cat([batch.users.ids for batch in batches]).sort().values.equal(torch.arange(users) + 1000)
    drawn = torch.cat([torch.cat([b.support.items, b.query.items], 1).sort().values for b in batches])
    assert drawn.shape == (users, each)
    assert torch.equal(drawn.flatten().sort().values, items.sort().values)


def moment_splits(events: list[list[tuple[int, int]]], **options: object) -> MomentSplits:
    told = timed(events)
    clock_options = {
        name: options.pop(name) for name in ("candidate_window", "eligible", "windows") if name in options
    }
    clock = CatalogueClock(features(6), Sightings(told.items, told.times, 6), **clock_options)
    settled = {"moments": [10 * HOUR], "horizon": timedelta(hours=6), "batch_size": 2} | options
    return MomentSplits(told, features(len(events)), clock, **settled)


@given(
    events=EVENTS,
    hour=st.integers(0, 21),
    window=st.none() | st.integers(1, 8),
    below=st.none() | st.integers(0, 4),
    at_least=st.integers(0, 2),
    max_support=st.none() | st.integers(0, 3),
    query_size=st.none() | st.integers(1, 2),
    whole=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_tasks_at_a_moment_are_those_that_its_definition_names(
    events: list[list[tuple[int, int]]],
    hour: int,
    window: int | None,
    below: int | None,
    at_least: int,
    max_support: int | None,
    query_size: int | None,
    whole: bool,
) -> None:
    eligible = [True, True, False, True, True, True]
    splits = moment_splits(
        events,
        moments=[hour * HOUR],
        history_below=below,
        history_at_least=at_least,
        max_support=max_support,
        query_size=query_size,
        whole_catalogue=whole,
        eligible=torch.tensor(eligible),
        candidate_window=None if window is None else timedelta(hours=window),
    )
    earliest = -1 if window is None else hour - window
    seen = {i for each in events for h, i in each if earliest <= h < hour}
    candidates = {i for i in seen if eligible[i]}
    wanted = {}
    for user, each in enumerate(events):
        ordered = sorted(each, key=lambda event: event[0])
        before = [i for h, i in ordered if h < hour]
        after = once_each(
            [i for h, i in ordered if hour <= h < hour + 6 and i in candidates and i not in before]
        )
        if after and at_least <= len(before) and (below is None or len(before) <= below):
            support = before if max_support is None else before[max(0, len(before) - max_support) :]
            wanted[user] = (support, after[:query_size])
    batches = list(splits.epoch(3))
    found = {user: ([i for i, _ in s], [i for i, _ in q]) for user, s, q in episodes(batches)}
    assert found == wanted
    assert len(batches) == len(splits)
    assert splits.num_tasks == (len(wanted),)
    for batch in batches:
        rows = (batch.catalogue.features.ids - 1000).tolist()
        mentioned = {i for user in (batch.users.ids - 1000).tolist() for each in wanted[user] for i in each}
        assert set(rows) == (mentioned | candidates if whole else mentioned)
        assert batch.catalogue.eligible.tolist() == [row in candidates for row in rows]


def test_a_small_moment_is_read_as_by_hand() -> None:
    # Before hour 10 items 0, 1 and 2 were seen; item 5 never is, and item 4 is first seen after the moment.
    events = [
        [(1, 0), (8, 1), (11, 1), (12, 2)],  # 1 is nothing new
        [(2, 2), (13, 4)],  # 4 was not there to be recommended
        [(10, 0), (15, 1), (16, 2)],  # nobody knew this user before; hour 16 is beyond the horizon
        [(9, 1)],  # does not come back
    ]
    splits = moment_splits(events, candidate_window=None, whole_catalogue=True)
    (batch,) = splits.epoch(0)
    drawn = sorted((user, [i for i, _ in s], [i for i, _ in q]) for user, s, q in episodes([batch]))
    assert drawn == [(0, [0, 1], [2]), (2, [], [0, 1])]
    assert batch.catalogue.features.ids.tolist() == [1000, 1001, 1002]
    assert batch.catalogue.eligible.tolist() == [True, True, True]


@given(events=EVENTS, later=EVENTS, whole=st.booleans())
@settings(deadline=None, max_examples=40)
def test_nothing_at_or_after_the_moment_reaches_support_or_catalogue(
    events: list[list[tuple[int, int]]], later: list[list[tuple[int, int]]], whole: bool
) -> None:
    known = [[event for event in each if event[0] < 10] for each in events]
    options = {
        "negatives": 2,
        "windows": (timedelta(hours=3),),
        "candidate_window": timedelta(hours=9),
        "whole_catalogue": whole,
    }
    # The two worlds agree before hour 10. In one everybody then meets everything at once; in the other, anything.
    worlds = [
        [each + [(10, item) for item in range(6)] for each in known],
        [
            each + [(h + 10, i) for h, i in (later[n] if n < len(later) else [])]
            for n, each in enumerate(known)
        ],
    ]
    supports: list[dict[int, list[tuple[int, float]]]] = []
    numbers: list[dict[int, list[float]]] = []
    for world in worlds:
        batches = list(moment_splits(world, batch_size=1, bucket=False, **options).epoch(0))
        supports.append(
            {user: [(i, float(t > 0)) for i, t in support] for user, support, _ in episodes(batches)}
        )
        rows = [batch.catalogue for batch in batches]
        numbers.append(
            {
                int(item): [*row.tolist(), popularity.item(), bool(allowed)]
                for told in rows
                for item, row, popularity, allowed in zip(
                    told.features.ids, told.features.numbers, told.log_popularity, told.eligible, strict=True
                )
            }
        )
        if whole:
            sets = {frozenset((told.features.ids[told.eligible]).tolist()) for told in rows}
            assert len(sets) <= 1
    assert all(supports[0][user] == supports[1][user] for user in supports[0].keys() & supports[1].keys())
    assert all(numbers[0][item] == numbers[1][item] for item in numbers[0].keys() & numbers[1].keys())


@given(events=EVENTS, shots=st.lists(st.integers(0, 5), min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_at_a_moment_the_newest_shots_are_shown(
    events: list[list[tuple[int, int]]], shots: list[int]
) -> None:
    for user, support, _ in episodes(moment_splits(events, shots=shots).epoch(0)):
        before = [i for h, i in sorted(events[user], key=lambda event: event[0]) if h < 10]
        assert len(support) in {min(shot, len(before)) for shot in shots}
        assert [i for i, _ in support] == before[len(before) - len(support) :]


# Six users who all meet something known at every moment from hour 3 on.
BUSY = [[(hour, (hour + user) % 6) for hour in range(user % 2, 8)] for user in range(6)]


def test_every_batch_has_one_moment_and_every_moment_is_visited_once() -> None:
    moments = [3 * HOUR, 4 * HOUR, 5 * HOUR]
    splits = moment_splits(BUSY, moments=moments, horizon=timedelta(hours=1), windows=(timedelta(hours=1),))
    batches = list(splits.epoch(0))
    assert len(batches) == len(splits)
    visited: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        # With a click per user and hour, the newest click before the moment tells which moment it is.
        newest = {int(times) for times in batch.support.shots + batch.users.ids % 2}
        assert len(newest) == 1
        visited.update((user, *newest) for user in batch.users.ids.tolist())
    assert set(visited.values()) == {1}
    assert len(visited) == sum(splits.num_tasks)


def test_no_more_batches_of_a_moment_are_visited_than_wanted() -> None:
    options = {"moments": [3 * HOUR, 4 * HOUR], "horizon": timedelta(hours=1), "batch_size": 2}
    everything = moment_splits(BUSY, **options)
    some = moment_splits(BUSY, **options, batches_per_moment=1)
    assert len(everything) > 2
    assert len(some) == len(list(some.epoch(0))) == 2


def test_epochs_around_moments_are_given_by_the_seed_and_their_number() -> None:
    options = {
        "moments": [3 * HOUR, 4 * HOUR, 5 * HOUR],
        "horizon": timedelta(hours=1),
        "negatives": 1,
        "shots": (0, 1, 2),
    }
    first, again, other = (episodes(moment_splits(BUSY, **options).epoch(number)) for number in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_moment_without_tasks_gives_no_batch() -> None:
    splits = moment_splits(BUSY, moments=[0, 500 * HOUR])
    assert (len(splits), list(splits.epoch(0)), splits.num_tasks) == (0, [], (0, 0))


def test_where_more_are_candidates_at_a_moment_a_part_of_them_is_drawn() -> None:
    one_thing = {"batch_size": 1, "max_support": 1, "query_size": 1, "whole_catalogue": True}
    options = {"moments": [4 * HOUR], "horizon": timedelta(hours=2), **one_thing}
    weights = set()
    for epoch in range(20):
        drawn = (moment_splits(BUSY, most_items=most, **options).epoch(epoch) for most in (None, 1))
        for whole, batch in zip(*drawn, strict=True):
            ids, all_ids = batch.catalogue.features.ids, whole.catalogue.features.ids
            assert set(ids[batch.catalogue.eligible].tolist()) <= set(
                all_ids[whole.catalogue.eligible].tolist()
            )
            for mine, same in ((batch.support, whole.support), (batch.query, whole.query)):
                assert torch.equal(ids[mine.items][mine.mask], all_ids[same.items][same.mask])
            assert len(ids) <= len(all_ids)
            assert batch.catalogue.log_weight is not None
            weights.add(tuple(batch.catalogue.log_weight.tolist()))
    assert {len(some) for some in weights} > {2}
    assert any(max(some) > 0 for some in weights)


def test_negatives_at_a_moment_were_candidates_and_not_consumed() -> None:
    splits = moment_splits(BUSY, moments=[4 * HOUR], horizon=timedelta(hours=2), negatives=3, max_support=1)
    drawn = episodes(splits.epoch(0))
    sampled_in_all = 0
    for user, support, query in drawn:
        before = {i for h, i in BUSY[user] if h < 4}
        for examples, known in ((support, before), (query, before | {i for i, t in query if t > 0})):
            sampled = {item for item, target in examples if target == 0}
            assert not sampled & known
            sampled_in_all += len(sampled)
    assert sampled_in_all > 0


def test_support_and_query_do_not_draw_the_same_negatives() -> None:
    many = Catalogue(features(500), torch.zeros(500), torch.ones(500, dtype=torch.bool))
    splits = RandomSplits(histories([[0, 1]]), features(1), many, shots=(1,), negatives=30)
    ((_, support, query),) = episodes(splits.epoch(0))
    assert len({i for i, t in support if t == 0} & {i for i, t in query if t == 0}) < 15


def test_a_user_meets_other_negatives_at_another_moment() -> None:
    told = timed([[(1, 0), (5, 1), (9, 2)], [(0, item) for item in range(3)]])
    met = torch.cat([torch.arange(200), told.items])
    clock = CatalogueClock(features(200), Sightings(met, torch.zeros(206).long(), 200))
    splits = MomentSplits(
        told,
        features(2),
        clock,
        moments=[4 * HOUR, 8 * HOUR],
        horizon=timedelta(hours=2),
        negatives=30,
        shots=(1,),
    )
    first, second = ({i for i, t in query if t == 0} for _, _, query in episodes(splits.epoch(0)))
    assert len(first & second) < 15


def test_moments_need_times_and_a_horizon() -> None:
    with pytest.raises(ValueError, match="horizon"):
        moment_splits(BUSY, horizon=timedelta(0))
    with pytest.raises(ValueError, match="0 moments"):
        moment_splits(BUSY, moments=[])
    told = histories([[1]])
    untimed = told._replace(times=told.times[:0])
    clock = CatalogueClock(features(6), Sightings(untimed.items, untimed.times, 6))
    with pytest.raises(ValueError, match="need times"):
        MomentSplits(untimed, features(1), clock, moments=[0], horizon=timedelta(days=1))


@given(support=LISTS, data=st.data(), max_support=st.none() | st.integers(0, 4), whole=st.booleans())
@settings(deadline=None, max_examples=30)
def test_fixed_episodes_come_as_given_in_the_order_of_the_rows(
    support: list[list[int]], data: st.DataObject, max_support: int | None, whole: bool
) -> None:
    query = data.draw(
        st.lists(st.lists(st.integers(0, 11), max_size=5), min_size=len(support), max_size=len(support))
    )
    batches = fixed_splits(
        histories(support),
        histories(query),
        features(len(support)),
        catalogue(),
        batch_size=3,
        max_support=max_support,
        whole_catalogue=whole,
    )
    found = [(user, [i for i, _ in s], [i for i, _ in q]) for user, s, q in episodes(batches)]
    newest = [each if max_support is None else each[max(0, len(each) - max_support) :] for each in support]
    assert found == [(user, *each) for user, each in enumerate(zip(newest, query, strict=True))]


def test_fixed_negatives_are_the_same_in_every_call_and_for_every_batch_size() -> None:
    support, query = [[0, 1, 2], [], [4]], [[5], [6, 7], [8, 8]]

    def drawn(batch_size: int) -> list[Episode]:
        options = {"batch_size": batch_size, "negatives": 20, "max_support": 2, "seed": 4}
        return episodes(
            fixed_splits(histories(support), histories(query), features(3), catalogue(), **options)
        )

    assert drawn(1) == drawn(3) == drawn(3)
    for user, given_, asked in drawn(3):
        assert not {i for i, t in given_ if t == 0} & set(support[user])
        assert not {i for i, t in asked if t == 0} & set(support[user] + query[user])
    assert not drawn(3)[1][1]  # nobody is told what a user without support did not choose


def test_fixed_episodes_of_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 users have a support set, 1 a query set and 2 features"):
        next(fixed_splits(histories([[1], [2]]), histories([[1]]), features(2), catalogue()))


def test_episodes_say_which_rows_of_the_statistics_their_users_are() -> None:
    lists = [[0, 1], [], [2, 3], [4, 5, 6]]
    told = []
    for batch in random_splits(lists, shots=[1], counted=torch.tensor([10, 11, 12, 13])).epoch(0):
        assert batch.counted is not None
        told += list(zip((batch.users.ids - 1000).tolist(), batch.counted.tolist(), strict=True))
    assert sorted(told) == [(0, 10), (2, 12), (3, 13)]
    assert all(batch.counted is None for batch in random_splits(lists, shots=[1]).epoch(0))


def test_episodes_say_which_are_of_one_user() -> None:
    keys = torch.tensor([70, 71, 72, 73])
    lists = [[0, 1], [], [2, 3], [4, 5, 6]]
    splits = random_splits(lists, shots=[1], keys=keys)
    for number in (0, 1):
        batches = [batch for batch in splits.epoch(number) if batch.keys is not None]
        told = [(batch.users.ids - 1000, batch.keys - 70) for batch in batches]
        assert all(torch.equal(user, key) for user, key in told)
        assert sum(len(user) for user, _ in told) == 3
    around = moment_splits(
        [[(1, 0), (11, 1)], [(2, 1), (12, 0)]], moments=[8 * HOUR, 10 * HOUR], keys=keys[:2]
    )
    found = [(batch.users.ids - 1000, batch.keys) for batch in around.epoch(0)]
    assert found
    assert all(key is not None and torch.equal(user, key - 70) for user, key in found)


def newcomer_splits(data: Histories, **options: object) -> NewcomerSplits:
    moments, snapshots = newcomer_moments(data)
    clock = CatalogueClock(features(6), Sightings(data.items, data.times, 6), windows=(timedelta(hours=3),))
    options = {"shots": (0, 1, 3), "batch_size": 3, "whole_catalogue": True} | options
    return NewcomerSplits(
        data, features(len(data.lengths)), clock, moments=moments, snapshots=snapshots, **options
    )  # type: ignore[arg-type]


@given(events=EVENTS)
@settings(deadline=None, max_examples=60)
def test_newcomers_are_served_from_what_was_known_before_they_came(
    events: list[list[tuple[int, int]]],
) -> None:
    data = timed(events)
    if not len(data.items):
        return
    moments, snapshots = newcomer_moments(data)
    assert moments == sorted(set(moments))
    assert set(snapshots) <= set(moments)
    first: dict[int, int] = {}
    for hour, item in sorted(event for each in events for event in each):
        first.setdefault(item, hour * HOUR)
    begun = [min((h for h, _ in each), default=None) for each in events]
    drawn: list[int] = []
    for batch in newcomer_splits(data).epoch(0):
        popularity = batch.catalogue.log_popularity.expm1().round()
        known = (batch.catalogue.features.ids - 1000).tolist()
        # The catalogue is that of one of the moments: so many events of its items lay before it.
        fitting = [
            moment
            for moment in moments
            if [sum(h * HOUR < moment and i == item for each in events for h, i in each) for item in known]
            == popularity.tolist()
            and {item for item, met in first.items() if met < moment} == set(known)
        ]
        assert fitting
        for user, support, query in episodes([batch]):
            drawn.append(user)
            mine = [item for _, item in sorted(events[user], key=lambda event: event[0])]
            seen = [item for item in once_each(mine) if item in known]
            chosen = [item for item, _ in (*support, *query)]
            assert len(set(chosen)) == len(chosen)
            assert [item for item in seen if item in chosen] == chosen  # in order, support first
            hour = begun[user]
            assert hour is not None
            assert any(moment <= hour * HOUR for moment in fitting)
            assert batch.catalogue.snapshot is not None
            assert any(snapshots[int(batch.catalogue.snapshot)] <= moment for moment in fitting)
    assert len(set(drawn)) == len(drawn)


def test_newcomers_are_dealt_to_moments_near_and_far_and_the_same_in_every_epoch() -> None:
    generator = torch.Generator().manual_seed(0)
    begins = torch.randint(1000, (400,), generator=generator).sort().values.tolist()
    data = timed([[(begin + step, step % 6) for step in range(5)] for begin in begins])
    splits = newcomer_splits(data)
    moments, _ = newcomer_moments(data)
    assert len(moments) == 12
    drawn = Counter(user for user, _, _ in episodes(splits.epoch(0)))
    assert drawn == Counter(user for user, _, _ in episodes(splits.epoch(1)))
    came_early = sum(begin * HOUR < moments[0] for begin in begins)
    assert len(drawn) == len(begins) - came_early == len(begins) - splits.left_out
    assert len(splits) == len(list(splits.epoch(0)))


def test_what_was_shown_and_not_chosen_stands_in_the_query_with_target_0() -> None:
    chosen = [[0, 1, 2, 4], [5], [6, 7]]
    shown = [[8, 9], [], [10]]
    splits = random_splits(chosen, listed=histories(shown), shots=(1,), whole_catalogue=True)
    found = {user: (support, query) for user, support, query in episodes(splits.epoch(0))}
    assert sorted(found) == [0, 1, 2]
    for user, (support, query) in found.items():
        assert all(target > 0 for _, target in support)
        assert [item for item, target in query if target == 0] == shown[user]
        asked = [item for item, target in query if target > 0]
        assert sorted([item for item, _ in support] + asked) == chosen[user]


@given(events=EVENTS)
@settings(deadline=None, max_examples=30)
def test_what_is_asked_for_at_a_moment_is_what_its_tasks_ask_for(
    events: list[list[tuple[int, int]]],
) -> None:
    splits = moment_splits(events, moments=[10 * HOUR], whole_catalogue=True, history_below=2)
    ((catalogue, counts),) = splits.asked()
    asked = Counter(item for _, _, query in episodes(splits.epoch(0)) for item, _ in query)
    assert Counter(dict(zip((catalogue.features.ids - 1000).tolist(), counts.tolist(), strict=True))) == asked
    for batch in splits.epoch(0):
        kept = batch.catalogue.take(batch.catalogue.eligible.nonzero().squeeze(1))
        assert torch.equal(kept.features.ids, catalogue.features.ids)
        assert torch.equal(kept.log_popularity, catalogue.log_popularity)
