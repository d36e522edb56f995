"""Laws of padded examples, sampled negatives and catalogues of unique items."""

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_meta.episodes import DrawnPart, Negatives, collate, spans, unique_items
from recsys_meta.hashing import generator
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, Ragged

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6)


def histories(lists: list[list[int]]) -> Histories:
    items = torch.tensor([item for each in lists for item in each], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    return Histories(items, items + 0.5, items[:0], offsets)


def catalogue(counts: list[int], eligible: list[bool] | None = None) -> Catalogue:
    n = len(counts)
    features = Features(
        torch.arange(n) + 100,
        torch.zeros(n, 0, dtype=torch.int64),
        (),
        torch.arange(n).unsqueeze(1) * 1.0,
        torch.zeros(n, 0),
    )
    allowed = torch.ones(n, dtype=torch.bool) if eligible is None else torch.tensor(eligible)
    return Catalogue(features, torch.tensor(counts).float().log1p(), allowed)


def lists_of(examples: Examples) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(examples.items, examples.mask, strict=True)]


@given(lists=LISTS, newest=st.none() | st.integers(0, 7), data=st.data())
@settings(deadline=None, max_examples=40)
def test_examples_are_the_histories_of_the_rows_padded_with_zeros(
    lists: list[list[int]], newest: int | None, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8))
    examples = collate(histories(lists), torch.tensor(rows, dtype=torch.int64), newest=newest)
    wanted = [
        lists[row] if newest is None else lists[row][max(0, len(lists[row]) - newest) :] for row in rows
    ]
    assert lists_of(examples) == wanted
    assert examples.items.shape == (len(rows), max([1, *map(len, wanted)]))
    assert torch.equal(examples.targets, torch.where(examples.mask, examples.items + 0.5, 0))
    assert not examples.items[~examples.mask].any()


def test_spans_read_the_interactions_in_another_order_when_told_to() -> None:
    order = torch.tensor([2, 1, 0, 3])
    examples = spans(histories([[5, 6, 7], [8]]), torch.tensor([0, 3]), torch.tensor([2, 4]), order)
    assert lists_of(examples) == [[7, 6], [8]]


@given(seed=st.integers(0, 10), stream=st.integers(0, 3), data=st.data())
@settings(deadline=None, max_examples=40)
def test_the_negatives_of_a_task_depend_on_its_key_and_not_on_the_batch(
    seed: int, stream: int, data: st.DataObject
) -> None:
    keys = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
    lists = data.draw(
        st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=len(keys), max_size=len(keys))
    )
    sampler = Negatives(catalogue(list(range(10))), seed=seed)
    told = histories(lists)
    together = sampler.append(
        collate(told, torch.arange(len(keys))), torch.tensor(keys), told, 3, stream=stream
    )
    for row, key in enumerate(keys):
        alone = collate(told, torch.tensor([row]))
        alone = sampler.append(alone, torch.tensor([key]), told.take(torch.tensor([row])), 3, stream=stream)
        assert lists_of(alone) == [lists_of(together)[row]]


def test_negatives_differ_between_keys_seeds_streams_and_slots() -> None:
    told = catalogue([0] * 1_000)
    keys = torch.tensor([1, 2])
    drawn = [
        Negatives(told, seed=0).draw(keys, 50),
        Negatives(told, seed=1).draw(keys, 50),
        Negatives(told, seed=0).draw(keys, 50, stream=1),
    ]
    everything = torch.cat(drawn)  # six sequences that have nothing to do with one another
    assert (everything.unsqueeze(0) == everything.unsqueeze(1)).float().mean((0, 2)).max() < 0.25
    assert len(everything.unique()) > 220


@pytest.mark.parametrize("tempering", [0.0, 0.75, 1.0])
def test_negatives_come_in_proportion_to_tempered_popularity(tempering: float) -> None:
    counts = [0, 1, 3, 10, 30, 100, 1_000]
    told = catalogue(counts, [True, True, True, False, True, True, True])
    drawn = Negatives(told, tempering=tempering, seed=5).draw(torch.arange(2_000), 20)
    weights = (torch.tensor(counts) + 1.0).double() ** tempering
    weights[3] = 0
    wanted = weights / weights.sum() * drawn.numel()
    found = torch.bincount(drawn.flatten(), minlength=len(counts))
    assert found[3] == 0
    chi_square = ((found - wanted) ** 2 / wanted)[weights > 0].sum()
    assert chi_square < 20.5  # the 0.1 % point for 5 degrees of freedom


def test_a_draw_never_falls_outside_the_eligible_items() -> None:
    told = catalogue([1_000_000, 0, 5, 0, 0], [False, True, False, True, False])
    assert set(Negatives(told).draw(torch.arange(500), 10).flatten().tolist()) == {1, 3}


@pytest.mark.parametrize("level", [0.0, 1 - 2.0**-53])
def test_the_outermost_numbers_draw_eligible_items_too(level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def outermost(bits: torch.Tensor) -> torch.Tensor:
        return torch.full(bits.shape, level, dtype=torch.float64)

    # The room's name for the function hides the file, so that the file is asked for by its own.
    monkeypatch.setattr(import_module("recsys_meta.episodes.collate"), "uniform", outermost)
    told = catalogue([5, 2, 2, 2, 5], [False, True, True, True, False])
    assert Negatives(told).draw(torch.tensor([1]), 1).item() == (1 if level == 0 else 3)


def test_a_drawn_part_sums_to_the_whole_on_average_and_always_holds_what_is_popular_or_mentioned() -> None:
    counts = [10_000, 5_000, *[30, 20, 10, 5] * 10]
    told = catalogue(counts, [True] * 40 + [False] * 2)
    part = DrawnPart(told, 12)
    support, query = (collate(histories([items]), torch.arange(1)) for items in ([7], [41, 9]))
    values = torch.linspace(1, 3, len(counts)).double()
    sums, sizes = [], []
    for number in range(3_000):
        mine, asked, drawn = part.unique_items(support, query, told, generator(number))
        ids = drawn.features.ids - told.features.ids[0]
        assert {0, 1, 7, 9, 41} <= set(ids.tolist())
        assert 40 not in ids  # not eligible, and not mentioned
        weight = drawn.log_weight.double().exp()
        assert [ids[mine.items[0, 0]], *ids[asked.items[0]]] == [7, 41, 9]
        for item in (0, 1, 7, 9, 41):
            assert float(weight[ids == item]) == pytest.approx(1)
        sums.append(float((weight * values[ids] * drawn.eligible).sum()))
        sizes.append(len(ids))
    expected = float((values * told.eligible).sum())
    error = torch.tensor(sums).std() / len(sums) ** 0.5
    assert abs(sum(sums) / len(sums) - expected) < 4 * error
    assert error < 0.01 * expected
    assert 12 < sum(sizes) / len(sizes) < 15  # with those that are mentioned


def test_without_an_eligible_item_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no item of the catalogue is eligible"):
        Negatives(catalogue([1, 2], [False, False])).draw(torch.tensor([1]), 1)


@given(lists=LISTS, per_positive=st.integers(0, 3), more=LISTS)
@settings(deadline=None, max_examples=40)
def test_negatives_never_hit_what_the_task_consumed_and_follow_its_positives(
    lists: list[list[int]], per_positive: int, more: list[list[int]]
) -> None:
    consumed = [each + (more[row] if row < len(more) else []) for row, each in enumerate(lists)]
    before = collate(histories(lists), torch.arange(len(lists)))
    told = histories(consumed)
    after = Negatives(catalogue([3] * 10)).append(
        before, torch.arange(len(lists)), Ragged(told.items, told.offsets), per_positive
    )
    width = before.items.shape[1]
    assert torch.equal(after.items[:, :width], before.items)
    assert torch.equal(after.targets[:, :width], before.targets)
    assert torch.equal(after.mask[:, :width], before.mask)
    negatives = lists_of(Examples(*(field[:, width:] for field in after)))
    for each, mine, known in zip(negatives, lists, consumed, strict=True):
        assert not set(each) & set(known)
        assert len(each) <= per_positive * len(mine)
    assert not after.targets[:, width:].any()
    assert not after.items[~after.mask].any()


def test_every_draw_that_hits_nothing_is_kept() -> None:
    before = collate(histories([[0, 1], [2], []]), torch.arange(3))
    sampler = Negatives(catalogue([0] * 3 + [10**6] * 7), tempering=1.0)
    assert sampler.append(before, torch.arange(3), per_positive=4).shots.tolist() == [2 + 8, 1 + 4, 0]


def test_a_task_that_consumed_everything_gets_no_negatives() -> None:
    before = collate(histories([[0, 1]]), torch.arange(1))
    after = Negatives(catalogue([1, 1])).append(before, torch.tensor([9]), per_positive=5)
    assert lists_of(after) == [[0, 1]]


@given(support=LISTS, data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_catalogue_of_unique_items_has_each_mentioned_item_once_and_examples_point_at_it(
    support: list[list[int]], data: st.DataObject
) -> None:
    query = data.draw(
        st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=len(support), max_size=len(support))
    )
    keep = data.draw(st.none() | st.lists(st.booleans(), min_size=10, max_size=10))
    told = catalogue(list(range(10)), [n % 3 == 0 for n in range(10)])
    rows = torch.arange(len(support))
    given_, asked = collate(histories(support), rows), collate(histories(query), rows)
    new_given, new_asked, small = unique_items(
        given_, asked, told, keep=None if keep is None else torch.tensor(keep)
    )
    kept = {n for n in range(10) if keep is not None and keep[n]}
    mentioned = {item for each in support + query for item in each} | kept
    assert small.features.ids.tolist() == [n + 100 for n in sorted(mentioned or {0})]
    assert torch.equal(small.log_popularity, told.log_popularity[small.features.ids - 100])
    assert torch.equal(small.eligible, told.eligible[small.features.ids - 100])
    for new, old in ((new_given, given_), (new_asked, asked)):
        assert torch.equal(new.mask, old.mask)
        assert torch.equal(new.targets, old.targets)
        assert torch.equal(small.features.ids[new.items[new.mask]] - 100, old.items[old.mask])
        assert not new.items[~new.mask].any()
