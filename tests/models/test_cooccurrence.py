"""Counts of pairs against numbers, and against counts that were never taken of a user."""

import pytest
import torch

from recsys_meta.models.cooccurrence import Cooccurrence
from recsys_meta.tensors import Catalogue, Features, Histories


def catalogue(items: int) -> Catalogue:
    nothing = torch.zeros(items, 0)
    features = Features(torch.arange(1, items + 1), nothing.long(), (), nothing, nothing)
    return Catalogue(features, torch.zeros(items), torch.ones(items, dtype=torch.bool))


def of_lists(lists: list[list[int]]) -> Histories:
    lengths = torch.tensor([0, *(len(chosen) for chosen in lists)])
    items = torch.tensor([item for chosen in lists for item in chosen])
    return Histories(items, torch.ones(len(items)), items[:0], lengths.cumsum(0))


def random_lists(users: int, items: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    chosen = torch.rand(users, items, generator=draw) < 0.3
    return [row.nonzero().squeeze(1).tolist() for row in chosen]


def test_cosines_are_those_counted_by_hand() -> None:
    counted = Cooccurrence(4)
    counted.fit(of_lists([[0, 1], [0, 1, 2], [0]]), catalogue(3))
    cosines = counted.cosines(torch.tensor([[1, 3]]), torch.ones(1, 2, dtype=torch.bool))
    # n = 3, 2, 1; the pairs 01, 02 and 12 were met 2, 1 and 1 times.
    expected = [0.0, 1 / 3**0.5, 2 / 6**0.5 + 1 / 2**0.5, 1 / 3**0.5]
    torch.testing.assert_close(cosines[0], torch.tensor(expected))


@pytest.mark.parametrize("largest", [0, 6000])
def test_taking_a_user_out_gives_the_counts_of_all_others(largest: int) -> None:
    lists = sorted(random_lists(40, 12), key=len, reverse=True)
    everybody, others = (Cooccurrence(13, largest=largest, neighbours=13) for _ in range(2))
    everybody.fit(of_lists(lists), catalogue(12))
    others.fit(of_lists(lists[1:]), catalogue(12))
    ids = torch.tensor(lists[0])[None] + 1
    support, mask = ids[:, :3], torch.tensor([[True, False, True]])
    own = torch.zeros(1, 13).scatter(1, ids, 1.0)
    expected = others.cosines(support, mask)
    assert (everybody.cosines(support, mask) - expected).abs().max() > 0.01
    torch.testing.assert_close(everybody.cosines(support, mask, own), expected)


def test_the_nearest_neighbours_are_those_of_the_full_matrix() -> None:
    lists = random_lists(60, 20)
    full, few = Cooccurrence(21), Cooccurrence(21, largest=0, neighbours=5)
    for counted in (full, few):
        counted.fit(of_lists(lists), catalogue(20))
    ids, one = torch.arange(1, 21)[:, None], torch.ones(20, 1, dtype=torch.bool)
    kept, whole = few.cosines(ids, one), full.cosines(ids, one)
    assert ((kept > 0).sum(1) <= 5).all()
    torch.testing.assert_close(kept.sort(1).values[:, -5:], whole.sort(1).values[:, -5:])


def test_the_unknown_item_goes_with_nothing() -> None:
    counted = Cooccurrence(4)
    known = catalogue(3)
    counted.fit(
        of_lists([[0, 1], [0, 1, 2]]),
        known._replace(features=known.features._replace(ids=torch.tensor([0, 1, 2]))),
    )
    assert not counted.cosines(torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool)).any()
    assert not counted.pairs[0].any()
