"""Tests of the running top-k."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_meta.adaptation.topk import TieRanks, merged, nothing_yet

SPECIAL = [0.0, -0.0, 1.5, -1.5, 3.4e38, -3.4e38, 1e-45, -1e-45, float("-inf")]


def running(scores: Tensor, items: Tensor, k: int, tile: int, ranks: TieRanks) -> tuple[Tensor, Tensor]:
    keys = nothing_yet(len(scores), k)
    for start in range(0, scores.shape[1], tile):
        keys = merged(keys, scores[:, start : start + tile], items[start : start + tile], ranks)
    return ranks.read(keys)


def tie_order(ranks: TieRanks, num_items: int) -> list[int]:
    """The items in the order in which equals are listed, asked of the object itself."""
    keys = ranks.keys(torch.zeros(1, num_items), torch.arange(num_items))
    return keys[0].argsort(descending=True).tolist()


@given(
    scores=st.integers(1, 30).flatmap(
        lambda n: st.lists(
            st.lists(
                st.one_of(st.sampled_from(SPECIAL), st.integers(-2, 2).map(float)), min_size=n, max_size=n
            ),
            min_size=1,
            max_size=4,
        )
    ),
    k=st.integers(1, 12),
    tile=st.integers(1, 31),
    seed=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_any_tiles_give_what_sorting_everything_gives(
    scores: list[list[float]], k: int, tile: int, seed: int
) -> None:
    values = torch.tensor(scores)
    num_items = values.shape[1]
    ranks = TieRanks(num_items, seed=seed)
    place = {item: rank for rank, item in enumerate(tie_order(ranks, num_items))}
    items, found = running(values, torch.arange(num_items), k, tile, ranks)
    for row, listed, listed_scores in zip(values.tolist(), items.tolist(), found.tolist(), strict=True):
        wanted = [item for item in range(num_items) if row[item] > -torch.inf]
        wanted = sorted(wanted, key=lambda item: (-row[item], place[item]))[:k]
        assert listed == wanted + [-1] * (k - len(wanted))
        assert listed_scores == [row[item] for item in wanted] + [-torch.inf] * (k - len(wanted))


def test_equals_are_listed_by_seed_not_by_position() -> None:
    orders = {tuple(tie_order(TieRanks(20, seed=seed), 20)) for seed in range(5)}
    assert len(orders) == 5
    assert tuple(range(20)) not in orders


def test_the_order_of_equals_is_repeatable() -> None:
    assert tie_order(TieRanks(20, seed=3), 20) == tie_order(TieRanks(20, seed=3), 20)
