"""The closed form against least squares over every episode there is."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from recsys_meta.models.episode_regression import EpisodeRegression
from recsys_meta.tensors import Catalogue, Features, Histories

# Of these users one chose a single thing.
CHOSEN = ([1, 2, 3, 4], [1, 2, 5], [2, 3, 4, 5, 6, 7], [6], [1, 7], [3, 4, 5, 6, 1], [2, 4])
ITEMS = 8


def data(chosen: tuple[list[int], ...] = CHOSEN, items: int = ITEMS) -> tuple[Histories, Catalogue]:
    """Items are the rows of the catalogue; row 0 is the unknown one."""
    offsets = torch.tensor([0, *(len(one) for one in chosen)]).cumsum(0)
    flat = torch.tensor([item for one in chosen for item in one])
    features = Features(
        torch.arange(items), torch.zeros(items, 0).long(), (), torch.zeros(items, 0), torch.zeros(items, 0)
    )
    known = Histories(flat, torch.ones(len(flat)), torch.zeros(0, dtype=torch.int64), offsets)
    return known, Catalogue(features, torch.zeros(items), torch.ones(items, dtype=torch.bool))


def by_all_episodes(chosen: tuple[list[int], ...], shots: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """B, c and E y: least squares over all episodes, each as often as it is drawn; B[i, i] is not asked."""
    supports, queries, weights = [], [], []
    for one in chosen:
        k = min(shots, len(one) // 2)
        episodes = list(combinations(one, k)) if k else []
        for support in episodes:
            supports.append(torch.zeros(ITEMS).index_fill(0, torch.tensor(support), 1.0))
            rest = torch.tensor(sorted(set(one) - set(support)))
            queries.append(torch.zeros(ITEMS).index_fill(0, rest, 1.0))
            weights.append(len(one) ** 0.5 / len(episodes))
    x, y, w = torch.stack(supports).double(), torch.stack(queries).double(), torch.tensor(weights).double()
    w = w / w.sum()
    x_mean, y_mean = w @ x, w @ y
    left, right = x - x_mean, y - y_mean
    usual = float(w @ (x.sum(1) / (x + y).sum(1))) / 6  # of those who chose two things or more
    gram = (left * w[:, None]).T @ left + ridge * usual * torch.eye(ITEMS)
    b = torch.linalg.solve(gram, (left * w[:, None]).T @ right)
    return b, y_mean - x_mean @ b, y_mean


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_it_is_least_squares_over_every_episode(shots: int) -> None:
    model = EpisodeRegression(ITEMS, shots=shots, ridge=0.4)
    model.fit(*data())
    b, c, y = by_all_episodes(CHOSEN, shots, 0.4)
    # In an episode an item is given or asked for, never both: of pairs of an item with itself there is the centring alone.
    ids, mask = (
        torch.tensor([[2, 4], [5, 0], [0, 0]]),
        torch.tensor([[True, True], [True, False], [False, False]]),
    )
    found = model.scores(ids, mask)
    likely = ((c + torch.stack([b[2] + b[4], b[5], torch.zeros(ITEMS)])) / y).clamp(min=0.05)
    of_all = (likely[:, 1:] @ y[1:]) / y[1:].sum()
    expected = (likely / of_all[:, None]).log()
    torch.testing.assert_close(found[:2, 1:].double(), expected[:2, 1:], rtol=1e-4, atol=1e-4)
    assert not found[2].any()
    assert not found[:, 0].any()


def test_after_one_choice_it_is_how_often_they_go_together() -> None:
    model = EpisodeRegression(4, ridge=1e-4)
    model.fit(*data(([1, 2], [1, 2], [1, 3], [2, 3]) * 50, items=4))
    (likely,) = model.scores(torch.tensor([[1]]), torch.tensor([[True]])).exp()
    likely = likely * (3 / 8 * 0.05 + 3 / 8 * 16 / 9 + 1 / 4 * 4 / 3)  # item 1 itself is asked for no more
    # Of those who chose 1 two thirds chose 2 and a third 3; asked for are they in 3/8 and 1/4 of all draws.
    torch.testing.assert_close(likely[2:], torch.tensor([16 / 9, 4 / 3]), rtol=1e-3, atol=1e-3)


def test_of_many_items_the_most_chosen_alone_tell_anything() -> None:
    model = EpisodeRegression(ITEMS, largest=5)
    model.fit(*data())
    left_out = (model.place == 5).nonzero().squeeze(1).tolist()
    assert len(left_out) == 3
    some = [item for item in range(ITEMS) if item not in left_out]
    mask = torch.tensor([[True, True]])
    alone = model.scores(torch.tensor([[some[0], some[0]]]), torch.tensor([[True, False]]))
    assert torch.equal(model.scores(torch.tensor([[some[0], left_out[1]]]), mask), alone)
    assert not alone[:, left_out].any()
    assert alone[:, some].any()


@pytest.mark.parametrize("chosen", [([1],), ([1], [2], [3]), ([1, 2], [1, 2])])
def test_of_next_to_nothing_it_says_something_finite(chosen: tuple[list[int], ...]) -> None:
    model = EpisodeRegression(ITEMS)
    model.fit(*data(chosen))
    ids, mask = torch.tensor([[1, 2]]), torch.tensor([[True, True]])
    assert model.scores(ids, mask).isfinite().all()
