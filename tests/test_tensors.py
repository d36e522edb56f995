"""Laws of the tensors that pass between rooms."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, Histories, ItemCodes, Ragged

LISTS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6)


def ragged(lists: list[list[int]]) -> Ragged:
    lengths = torch.tensor([0, *map(len, lists)])
    return Ragged(torch.tensor([x for each in lists for x in each], dtype=torch.int64), lengths.cumsum(0))


def lists_of(values: Tensor, offsets: Tensor) -> list[list[int]]:
    bounds = offsets.tolist()
    return [values[a:b].tolist() for a, b in pairwise(bounds)]


def features(n: int) -> Features:
    rows = torch.arange(n)
    bags = Ragged(torch.repeat_interleave(rows, rows), torch.nn.functional.pad(rows.cumsum(0), (1, 0)))
    return Features(rows, rows.unsqueeze(1) * 2, (bags,), rows.unsqueeze(1) * 0.5, rows.unsqueeze(1) * 0.25)


def catalogue(n: int) -> Catalogue:
    return Catalogue(features(n), torch.arange(n) * 0.1, torch.arange(n) % 2 == 0)


@given(lists=LISTS, data=st.data())
@settings(deadline=None, max_examples=60)
def test_taking_rows_of_a_ragged_gives_those_lists_in_that_order(
    lists: list[list[int]], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    taken = ragged(lists).take(torch.tensor(rows, dtype=torch.int64))
    assert lists_of(*taken) == [lists[row] for row in rows]
    assert taken.offsets[0] == 0
    assert taken.offsets[-1] == len(taken.values)


def test_the_lengths_of_a_ragged_are_those_of_its_lists() -> None:
    assert ragged([[1, 2], [], [3]]).lengths.tolist() == [2, 0, 1]


def test_a_ragged_of_rows_with_several_columns_keeps_them_together() -> None:
    vectors = Ragged(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 1, 3]))
    assert vectors.take(torch.tensor([1])).values.tolist() == [[3.0, 4.0], [5.0, 6.0]]


def test_taking_rows_of_features_takes_them_from_every_field() -> None:
    taken = features(5).take(torch.tensor([3, 1]))
    assert taken.ids.tolist() == [3, 1]
    assert taken.categorical.tolist() == [[6], [2]]
    assert lists_of(*taken.multi[0]) == [[3, 3, 3], [1]]
    assert taken.numbers.tolist() == [[1.5], [0.5]]
    assert taken.vectors.tolist() == [[0.75], [0.25]]


def test_taking_rows_of_a_catalogue_takes_popularity_and_eligibility_along() -> None:
    taken = catalogue(5).take(torch.tensor([4, 1]))
    assert taken.features.ids.tolist() == [4, 1]
    assert torch.equal(taken.log_popularity, torch.tensor([0.4, 0.1]))
    assert taken.eligible.tolist() == [True, False]


def test_emptied_examples_are_the_same_tasks_with_no_shots() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    examples = Examples(torch.tensor([[4, 2], [1, 0]]), torch.tensor([[1.0, 3.0], [5.0, 0.0]]), mask)
    assert examples.shots.tolist() == [2, 1]
    assert examples.emptied().shots.tolist() == [0, 0]
    assert torch.equal(examples.emptied().items, examples.items)


def test_examples_beside_others_are_both() -> None:
    some = Examples(torch.tensor([[3], [4]]), torch.ones(2, 1), torch.tensor([[True], [False]]))
    more = Examples(torch.tensor([[5, 6], [7, 8]]), torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    both = some.beside(more)
    assert both.items.tolist() == [[3, 5, 6], [4, 7, 8]]
    assert both.targets.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert both.shots.tolist() == [3, 2]


@given(lists=LISTS, timed=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_taking_users_of_histories_takes_values_and_times_along(
    lists: list[list[int]], timed: bool, data: st.DataObject
) -> None:
    items, offsets = ragged(lists)
    histories = Histories(items, items * 0.5, items + 1000 if timed else items[:0], offsets)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    taken = histories.take(torch.tensor(rows, dtype=torch.int64))
    assert lists_of(taken.items, taken.offsets) == [lists[row] for row in rows]
    assert torch.equal(taken.values, taken.items * 0.5)
    assert torch.equal(taken.times, taken.items + 1000 if histories.timed else items[:0])


def test_owners_name_the_user_of_every_interaction() -> None:
    items, offsets = ragged([[7, 7], [], [7]])
    histories = Histories(items, items.float(), items[:0], offsets)
    assert histories.owners().tolist() == [0, 0, 2]
    assert histories.lengths.tolist() == [2, 0, 1]
    assert not histories.timed


def test_item_codes_are_taken_by_rows_and_by_slices() -> None:
    codes = ItemCodes(torch.arange(4), torch.arange(4.0).unsqueeze(1), torch.arange(4.0), torch.arange(4) > 1)
    assert codes.take(slice(1, 3)).ids.tolist() == [1, 2]
    assert codes.take(torch.tensor([3, 0])).vectors.tolist() == [[3.0], [0.0]]
    assert codes.take(torch.tensor([3, 0])).eligible.tolist() == [True, False]


def test_moving_a_batch_moves_every_tensor_of_it() -> None:
    examples = Examples(
        torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
    )
    past = catalogue(3)._replace(snapshot=torch.tensor(1), hindsight=True, log_weight=torch.zeros(3))
    moved = EpisodeBatch(examples, examples, features(2), past, torch.arange(2), torch.arange(2)).to("meta")
    leaves, _ = torch.utils._pytree.tree_flatten(moved)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    assert len(tensors) == len(leaves) - 1 == 6 + 6 + 10 + 2
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.catalogue.hindsight
    assert past.take(torch.tensor([0])).hindsight
    without = EpisodeBatch(examples, examples, features(2), catalogue(3)).to("meta")
    assert without.counted is without.keys is None
