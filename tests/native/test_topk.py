"""Tests of the running top-k."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_meta.native import Kernels, kernels
from recsys_meta.native.topk import Running, TieRanks
from recsys_meta.tensors import Ragged

SPECIAL = [0.0, -0.0, 1.5, -1.5, 3.4e38, -3.4e38, 1e-45, -1e-45, float("-inf")]


def found(
    scores: Tensor,
    k: int,
    tile: int,
    ranks: TieRanks,
    compiled: Kernels | None,
    unwanted: Ragged | None = None,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Items, scores, and whether a user's were all finite."""
    running = Running(ranks, len(scores), k, unwanted, compiled=compiled)
    items = torch.arange(scores.shape[1])
    for start in range(0, scores.shape[1], tile):
        part = slice(start, start + tile)
        running.add(scores[:, part], items[part], None if usable is None else usable[..., part])
    keys, sound = running.best()
    return *ranks.read(keys), sound


def tie_order(ranks: TieRanks, num_items: int) -> list[int]:
    """The items in the order in which equals are listed, asked of the object itself."""
    keys = ranks.keys(torch.zeros(1, num_items), torch.arange(num_items))
    return keys[0].argsort(descending=True).tolist()


# The laws hold for the plain path, and for the kernel where one can be built: then both are the same.
PATHS = [None, kernels()] if kernels() else [None]


@pytest.mark.parametrize("compiled", PATHS, ids=["torch", "compiled"][: len(PATHS)])
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
    compiled: Kernels | None, scores: list[list[float]], k: int, tile: int, seed: int
) -> None:
    values = torch.tensor(scores)
    num_items = values.shape[1]
    ranks = TieRanks(num_items, seed=seed)
    place = {item: rank for rank, item in enumerate(tie_order(ranks, num_items))}
    items, best, _ = found(values, k, tile, ranks, compiled)
    for row, listed, listed_scores in zip(values.tolist(), items.tolist(), best.tolist(), strict=True):
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


@pytest.mark.skipif(kernels() is None, reason="no C compiler here: there is only the plain path")
@given(
    seed=st.integers(0, 10**6),
    num_users=st.integers(1, 4),
    num_items=st.integers(1, 90),
    k=st.integers(1, 20),
    tile=st.integers(1, 91),
)
@settings(max_examples=150, deadline=None)
def test_the_kernel_lists_what_torch_lists(
    seed: int, num_users: int, num_items: int, k: int, tile: int
) -> None:
    chance = torch.Generator().manual_seed(seed)

    def share(p: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=chance) < p

    scores = torch.randn(num_users, num_items, generator=chance).mul(4).round().div(4)  # with ties
    scores[share(0.01, num_users, num_items)] = float("nan")
    scores[share(0.01, num_users, num_items)] = float("inf")
    scores[share(0.01, num_users, num_items)] = -float("inf")
    scores[share(0.02, num_users, num_items)] = -0.0
    usable = (None, share(0.9, num_items), share(0.9, num_users, num_items))[seed % 3]
    owned = share(0.2, num_users, num_items)
    ends = owned.sum(1).cumsum(0)
    unwanted = Ragged(owned.nonzero()[:, 1], torch.cat([torch.zeros(1, dtype=torch.int64), ends]))
    ranks = TieRanks(num_items, seed=seed)
    plain, fast = (found(scores, k, tile, ranks, path, unwanted, usable) for path in (None, kernels()))
    for ours, theirs in zip(fast, plain, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(kernels() is None, reason="no C compiler here: there is only the plain path")
def test_one_row_of_scores_serves_all_users() -> None:
    scores = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    ranks = TieRanks(50)
    unwanted = Ragged(torch.tensor([3, 7, 3]), torch.tensor([0, 2, 2, 3]))
    for path in PATHS:
        running = Running(ranks, 3, 5, unwanted, compiled=path)
        running.add(scores, torch.arange(50))
        items, best = ranks.read(running.best()[0])
        for user, out in enumerate(([3, 7], [], [3])):
            alone = scores[0].clone()
            alone[out] = -torch.inf
            assert torch.equal(items[user], alone.topk(5).indices)
            assert torch.equal(best[user], alone.topk(5).values)
