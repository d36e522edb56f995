"""The closed form against least squares over every episode there is."""

from itertools import combinations

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from toy_world import NUM_ITEMS, histories, toy_world

from recsys_meta.algorithms.laddered_maml import LadderedMAML
from recsys_meta.models.episode_regression import EpisodeRegression
from recsys_meta.tensors import Catalogue, Features, Histories
from recsys_meta.training import bundle as bundles

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
    """B, E x and E y: least squares over all episodes, each as often as it is drawn; B[i, i] is not asked."""
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
    return b, x_mean, y_mean


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("largest", [6000, 6])
def test_it_is_least_squares_over_every_episode(shots: int, largest: int) -> None:
    """By items, and, where six users chose two things or more and there are eight items, by users."""
    model = EpisodeRegression(ITEMS, shots=shots, ridge=0.4, largest=largest)
    model.fit(*data(), cross=False)
    assert bool(model.whole.of_items.numel()) == (largest == 6)
    b, x, y = by_all_episodes(CHOSEN, shots, 0.4)
    of_one = x / x.sum() @ b
    # In an episode an item is given or asked for, never both: of pairs of an item with itself there is the centring alone.
    ids, mask = (
        torch.tensor([[2, 4], [5, 0], [0, 0]]),
        torch.tensor([[True, True], [True, False], [False, False]]),
    )
    found = model.scores(ids, mask)
    told = torch.stack([b[2] + b[4] - 2 * of_one, b[5] - of_one, torch.zeros(ITEMS)])
    likely = (1 + told / y).clamp(min=0.05)
    of_all = (likely[:, 1:] @ y[1:]) / y[1:].sum()
    expected = (likely / of_all[:, None]).log()
    torch.testing.assert_close(found[:2, 1:].double(), expected[:2, 1:], rtol=1e-4, atol=1e-4)
    assert not found[2].any()
    assert not found[:, 0].any()
    assert torch.equal(model.scores(ids, mask, among=torch.tensor([2, 6])), found[:, [2, 6]])


@pytest.mark.parametrize("largest", [6000, 6])
def test_choices_drawn_as_they_usually_fall_make_nothing_likelier(largest: int) -> None:
    """Whatever their number, on average; and what nobody chose is no choice."""
    items = ITEMS + 1  # the last of which nobody chose
    model = EpisodeRegression(items, largest=largest)
    model.fit(*data(items=items), cross=False)
    _, x, _ = by_all_episodes(CHOSEN, 3, 10.0)
    usual = torch.cat([x / x.sum(), torch.zeros(1)]).double()
    pairs = torch.cartesian_prod(torch.arange(items), torch.arange(items))
    of_pairs = model.whole.likely(pairs, torch.ones(pairs.shape)).double()
    weights = usual[pairs].prod(1)
    torch.testing.assert_close(weights @ of_pairs, torch.ones(of_pairs.shape[1]).double())
    alone, beside = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    two = torch.tensor([[2, ITEMS]])
    assert torch.equal(model.scores(two, beside), model.scores(two, alone))


def test_after_one_choice_it_is_how_often_they_go_together() -> None:
    model = EpisodeRegression(4, ridge=1e-4)
    model.fit(*data(([1, 2], [1, 2], [1, 3], [2, 3]) * 50, items=4), cross=False)
    (likely,) = model.scores(torch.tensor([[1]]), torch.tensor([[True]])).exp()
    likely = likely * (3 / 8 * 0.05 + 3 / 8 * 16 / 9 + 1 / 4 * 4 / 3)  # item 1 itself is asked for no more
    # Of those who chose 1 two thirds chose 2 and a third 3; asked for are they in 3/8 and 1/4 of all draws.
    torch.testing.assert_close(likely[2:], torch.tensor([16 / 9, 4 / 3]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("largest", [6000, 20])
def test_a_user_is_served_as_if_it_had_never_been_seen(largest: int) -> None:
    world = toy_world()
    known = histories(world, torch.arange(20), implicit=True)
    model, other = (EpisodeRegression(NUM_ITEMS + 1, largest=largest) for _ in range(2))
    model.fit(known, world.catalogue, cross=True)
    values = known.values.clone()
    values[int(known.offsets[5]) : int(known.offsets[6]) : 2] = 0.0  # what user 5 did is another thing
    other.fit(known._replace(values=values), world.catalogue, cross=True)
    ids, mask = torch.tensor([[3, 9]]), torch.tensor([[True, True]])
    for user, same in ((5, True), (9, True), (6, False)):  # 5 and 9 are of one fold
        counted = torch.tensor([user])
        assert torch.equal(model.scores(ids, mask, counted), other.scores(ids, mask, counted)) == same
    assert not torch.equal(model.scores(ids, mask), model.scores(ids, mask, torch.tensor([5])))
    model.fit(known, world.catalogue, cross=False)
    assert torch.equal(model.scores(ids, mask), model.scores(ids, mask, torch.tensor([5])))
    assert {name.split(".")[0] for name in model.state_dict()} == {"place", "whole"}


def test_of_many_items_the_most_chosen_alone_tell_anything() -> None:
    model = EpisodeRegression(ITEMS, largest=5)
    model.fit(*data(), cross=True)
    left_out = (model.place == 5).nonzero().squeeze(1).tolist()
    assert len(left_out) == 3
    some = [item for item in range(ITEMS) if item not in left_out]
    mask = torch.tensor([[True, True]])
    alone = model.scores(torch.tensor([[some[0], some[0]]]), torch.tensor([[True, False]]))
    assert torch.equal(model.scores(torch.tensor([[some[0], left_out[1]]]), mask), alone)
    assert not alone[:, left_out].any()
    assert alone[:, some].any()
    # Those that can be recommended come first.
    known, catalogue = data()
    eligible = catalogue.eligible & (torch.arange(ITEMS) != some[0])
    model.fit(known, catalogue._replace(eligible=eligible), cross=False)
    assert model.place[some[0]] == 5


def test_scores_are_the_same_to_the_bit_in_batches_of_any_size() -> None:
    """By items; else what is as likely stands in one order in one batch and in another one in the next."""
    chance = torch.Generator().manual_seed(0)
    chosen = tuple(torch.randperm(999, generator=chance)[:6].add(1).tolist() for _ in range(60))
    model = EpisodeRegression(1000)
    model.fit(*data(chosen, items=1000), cross=False)
    ids = torch.tensor(chosen)[:, :2]
    mask = torch.ones(ids.shape, dtype=torch.bool)
    together = model.scores(ids, mask)
    assert together.any()
    for size in (1, 7, 17):
        parts = [model.scores(ids[i : i + size], mask[i : i + size]) for i in range(0, len(ids), size)]
        assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize("largest", [NUM_ITEMS + 1, 20, 10])
def test_what_was_fitted_goes_into_a_bundle_and_out_of_it_whatever_its_size(largest: int) -> None:
    """By all items, by the 20 users, by the ten items chosen most."""
    world = toy_world()
    known = histories(world, torch.arange(20), implicit=True)
    learner, loaded = (LadderedMAML(world.sizes, dim=4, regressed=largest) for _ in range(2))
    learner.fit_statistics(known, world.catalogue)
    weights = {name: value.contiguous() for name, value in learner.state_dict().items()}
    bundles._load_weights(loaded, load(save(weights)))
    ids, mask = torch.tensor([[3, 9], [4, 0]]), torch.tensor([[True, True], [True, False]])
    model, other = learner.known.regression, loaded.known.regression
    assert bool(other.whole.of_items.numel()) == (largest == 20)
    assert torch.equal(other.scores(ids, mask), model.scores(ids, mask))
    assert model.scores(ids, mask).any()
    everybody, again = (
        histories(world, torch.arange(80), implicit=True),
        EpisodeRegression(NUM_ITEMS + 1, largest=largest),
    )
    for one in (other, again):
        one.fit(everybody, world.catalogue, cross=False)
    assert torch.equal(other.scores(ids, mask), again.scores(ids, mask))


@pytest.mark.parametrize("chosen", [([1],), ([1], [2], [3]), ([1, 2], [1, 2]), ([1], [2, 3])])
@pytest.mark.parametrize("largest", [6000, 2])
def test_of_next_to_nothing_it_says_something_finite(chosen: tuple[list[int], ...], largest: int) -> None:
    """By items and by users, of whom a fold may be left with none."""
    model = EpisodeRegression(ITEMS, largest=largest)
    model.fit(*data(chosen), cross=True)
    ids, mask = torch.tensor([[1, 2]]), torch.tensor([[True, True]])
    assert model.scores(ids, mask).isfinite().all()
    assert model.scores(ids, mask, torch.tensor([0])).isfinite().all()
