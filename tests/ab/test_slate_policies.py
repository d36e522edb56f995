"""Tests of slates drawn at random: probabilities against the enumeration of all slates, draws against probabilities."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from scipy.stats import chi2
from torch import Tensor

from recsys_meta.ab.slate_policies import PlackettLuce

SCORES = torch.tensor([[2.0, 1.5, 0.0, -1.0, -torch.inf]])  # four candidates and a place without one
POLICIES = [
    PlackettLuce(1.0),
    PlackettLuce(0.4),
    PlackettLuce(1.0, exploration=0.3),
    PlackettLuce(0.0, exploration=0.3),
    PlackettLuce(5.0, exploration=1.0),
]
named = pytest.mark.parametrize("policy", POLICIES, ids=str)


def by_definition(policy: PlackettLuce, scores: list[float], slate: tuple[int, ...]) -> float:
    """The probability of a slate, position by position, in plain numbers."""
    left = [item for item, score in enumerate(scores) if score > -torch.inf]
    probability = 1.0
    for item in slate:
        if policy.temperature == 0:
            best = float(item == max(left, key=lambda other: scores[other]))
        else:
            weights = [math.exp(scores[other] / policy.temperature) for other in left]
            best = weights[left.index(item)] / sum(weights)
        probability *= (1 - policy.exploration) * best + policy.exploration / len(left)
        left.remove(item)
    return probability


def all_slates(items: int, size: int) -> list[tuple[int, ...]]:
    return list(permutations(range(items), size))


def drawn(policy: PlackettLuce, scores: Tensor, size: int, count: int, seed: int = 3) -> Tensor:
    """Slates of so many users with the same scores."""
    users, items = torch.arange(count) * 7919, torch.arange(scores.shape[1])
    return policy.draw(scores.expand(count, -1), size, users=users, items=items, seed=seed).places


@named
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_slate_is_as_probable_as_the_product_of_its_propensities_and_all_slates_make_one(
    policy, size
) -> None:
    slates = all_slates(4, size)
    found = policy.propensities(SCORES.expand(len(slates), -1), torch.tensor(slates)).prod(1)
    expected = [by_definition(policy, SCORES[0].tolist(), slate) for slate in slates]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)


@named
def test_slates_come_as_often_as_they_are_probable(policy) -> None:
    count = 40_000
    places = drawn(policy, SCORES, 3, count)
    slates = all_slates(4, 3)
    codes = places @ torch.tensor([16, 4, 1])
    counts = torch.bincount(codes, minlength=64).double()
    expected = torch.tensor([by_definition(policy, SCORES[0].tolist(), slate) for slate in slates]) * count
    found = counts[torch.tensor(slates) @ torch.tensor([16, 4, 1])]
    assert found.sum() == count, "a slate with an item twice, or with a place that has no candidate"
    possible = expected > 0
    assert (found[~possible] == 0).all()
    statistic = ((found - expected)[possible] ** 2 / expected[possible]).sum().item()
    assert statistic < chi2.ppf(0.999, int(possible.sum()) - 1)


@named
def test_what_is_drawn_comes_with_the_propensities_of_given_slates(policy) -> None:
    scores = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    slates = policy.draw(scores, 5, users=torch.arange(50), items=torch.arange(12), seed=0)
    assert torch.equal(slates.propensity, policy.propensities(scores, slates.places))
    assert ((slates.propensity > 0) & (slates.propensity <= 1)).all()


@named
@given(
    scores=st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=7, unique=True),
    above=st.integers(0, 6),
)
@settings(max_examples=15, deadline=None)
def test_at_every_position_the_pool_makes_one_and_agrees_with_the_propensity(policy, scores, above) -> None:
    above = min(above, len(scores) - 1)
    taken = torch.arange(len(scores)) < above
    likely = policy.next_shown(torch.tensor([scores]), taken.unsqueeze(0))[0]
    assert likely.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (likely[taken] == 0).all()
    for item in range(above, len(scores)):
        slate = torch.tensor([[*range(above), item]])
        found = policy.propensities(torch.tensor([scores]), slate)[0, -1].item()
        assert found == pytest.approx(likely[item].item(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("temperature", [0.0, 1e-12, 1e-200, 1e-300, 5e-324])
def test_without_temperature_the_slate_is_the_order_of_the_scores(temperature) -> None:
    scores = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    slates = PlackettLuce(temperature).draw(scores, 8, users=torch.arange(20), items=torch.arange(30), seed=0)
    assert torch.equal(slates.places, scores.argsort(1, descending=True)[:, :8])
    assert (slates.propensity == 1).all()


@pytest.mark.parametrize("temperature", [1e-15, 1e-18, 1e-100, 1e-300, 5e-324])
def test_however_cold_equals_are_drawn_alike_and_have_the_propensity_that_they_are_drawn_with(
    temperature,
) -> None:
    policy = PlackettLuce(temperature)
    scores = torch.tensor([[2.0, 1.0, 1.0, 0.0, -3e38]])
    slates = drawn(policy, scores, 5, 20_000)
    found = policy.propensities(scores.expand(20_000, -1), slates)
    assert (found == torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0])).all()
    assert set(map(tuple, slates.tolist())) == {(0, 1, 2, 3, 4), (0, 2, 1, 3, 4)}
    assert (slates[:, 1] == 1).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 20_000**0.5)
    assert policy.next_shown(scores, scores == 2.0)[0].tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]


def test_equals_keep_the_order_of_their_columns_without_temperature() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    policy = PlackettLuce(0.0, exploration=0.5)
    places = torch.tensor([[1, 3, 0, 2, 4]])
    assert drawn(PlackettLuce(0.0), scores, 5, 1).tolist() == places.tolist()
    assert policy.propensities(scores, places)[0].tolist() == pytest.approx(
        [0.5 + 0.5 / left for left in (5, 4, 3, 2, 1)]
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_tensor_grows_with_the_square_of_a_slate(temperature) -> None:
    users, pool, size = 3, 60, 50
    scores = torch.rand(users, pool, generator=torch.Generator().manual_seed(0))
    with LargestTensor() as tensors:
        policy = PlackettLuce(temperature, exploration=0.1)
        policy.draw(scores, size, users=torch.arange(users), items=torch.arange(pool), seed=1)
    assert tensors.largest <= users * (pool + 1)


def test_a_high_temperature_shows_everything_alike() -> None:
    scores = torch.tensor([[300.0, 0.0, -300.0]])
    assert PlackettLuce(1e9).propensities(scores, torch.tensor([[2, 0, 1]]))[0].tolist() == pytest.approx(
        [1 / 3, 1 / 2, 1.0], rel=1e-6
    )


@named
def test_a_user_gets_the_same_slate_alone_in_any_company_and_in_any_order_of_the_pool(policy) -> None:
    random = torch.Generator().manual_seed(4)
    scores, users = torch.randn(300, 25, generator=random), torch.randint(2**60, (300,), generator=random)
    items = torch.randint(2**60, (25,), generator=random)
    whole = policy.draw(scores, 6, users=users, items=items, seed=9)
    order = torch.randperm(300, generator=random)
    shuffled = policy.draw(scores[order], 6, users=users[order], items=items, seed=9)
    assert torch.equal(shuffled.places, whole.places[order])
    for user in (0, 17, 299):
        some = slice(user, user + 1)
        alone = policy.draw(scores[some], 6, users=users[some], items=items, seed=9)
        assert torch.equal(alone.places, whole.places[some])
        torch.testing.assert_close(alone.propensity, whole.propensity[some], rtol=1e-12, atol=0)
    columns = torch.randperm(25, generator=random)
    moved = policy.draw(scores[:, columns], 6, users=users, items=items[columns], seed=9)
    assert torch.equal(columns[moved.places], whole.places)
    torch.testing.assert_close(moved.propensity, whole.propensity, rtol=1e-12, atol=0)


def test_each_seed_and_each_user_draws_anew_and_a_repetition_does_not() -> None:
    policy, scores = PlackettLuce(1.0, exploration=0.1), torch.zeros(1, 40)
    first = drawn(policy, scores, 10, 50)
    assert torch.equal(first, drawn(policy, scores, 10, 50))
    assert (first != drawn(policy, scores, 10, 50, seed=4)).float().mean() > 0.9
    assert len({tuple(slate) for slate in first.tolist()}) == 50


@named
def test_fewer_candidates_than_positions_give_shorter_slates(policy) -> None:
    scores = torch.tensor([[1.0, -torch.inf, 0.0], [-torch.inf] * 3, [3.0, 2.0, 1.0]])
    slates = policy.draw(scores, 5, users=torch.arange(3), items=torch.arange(3), seed=1)
    assert [sorted(slate) for slate in slates.places.tolist()] == [
        [-1, -1, -1, 0, 2],
        [-1] * 5,
        [-1, -1, 0, 1, 2],
    ]
    shown = slates.places >= 0
    assert (slates.propensity[~shown] == 0).all()
    assert (slates.propensity[shown] > 0).all()
    last = shown.sum(1) - 1
    assert [slates.propensity[user, last[user]].item() for user in (0, 2)] == pytest.approx([1.0, 1.0])


@named
def test_an_item_from_outside_the_pool_is_impossible_and_takes_nothing_from_the_others(policy) -> None:
    within = policy.propensities(SCORES, torch.tensor([[0, 2]]))[0].tolist()
    for stranger in (-1, 4):
        found = policy.propensities(SCORES, torch.tensor([[0, stranger, 2, stranger if stranger < 0 else 1]]))
        assert found[0, [0, 2]].tolist() == pytest.approx(within)
        assert found[0, 1].item() == 0.0


@pytest.mark.parametrize("policy", [PlackettLuce(0.7), PlackettLuce(0.7, exploration=0.4)], ids=str)
def test_marginals_are_those_of_all_slates_within_their_error(policy) -> None:
    size, slates = 3, all_slates(4, 3)
    exact = torch.zeros(size, 5, dtype=torch.float64)
    for slate in slates:
        for position, item in enumerate(slate):
            exact[position, item] += by_definition(policy, SCORES[0].tolist(), slate)
    users, draws = 500, 8
    found = policy.marginals(SCORES.expand(users, -1), size, users=torch.arange(users), draws=draws, seed=5)
    mean, spread = found.probability.mean(0), found.probability.std(0)
    assert ((mean - exact).abs() <= 4 * spread / math.sqrt(users) + 1e-12).all()
    # The error told by each estimate is that of the estimates, 500 of which are at hand.
    told = (found.standard_error**2).mean(0).sqrt()
    assert told[1:, :4].tolist() == [pytest.approx(row, rel=0.2) for row in spread[1:, :4].tolist()]
    assert told[0].max() < 1e-7, "nothing stands above the first position"
    assert found.probability.sum(1)[:, :4].min() > 0
    assert mean.sum(1).tolist() == pytest.approx([1.0] * size)


def test_marginals_do_not_depend_on_the_company() -> None:
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(8))
    policy, users = PlackettLuce(1.0), torch.tensor([5, 6, 7, 8])
    whole = policy.marginals(scores, 2, users=users, draws=5, seed=0).probability
    alone = policy.marginals(scores[2:3], 2, users=users[2:3], draws=5, seed=0).probability
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: PlackettLuce(-1.0), "temperature is a finite number, 0 or"),
        (lambda: PlackettLuce(float("nan")), "temperature is a finite number, 0 or"),
        (lambda: PlackettLuce(1.0, exploration=1.5), "exploration is a share"),
        (lambda: drawn(PlackettLuce(), SCORES, 0, 1), "size is at least 1"),
        (lambda: drawn(PlackettLuce(), torch.tensor([[torch.nan]]), 1, 1), "NaN or infinite"),
        (lambda: drawn(PlackettLuce(), torch.zeros(1, 0), 1, 1), "one candidate at least"),
        (lambda: PlackettLuce().propensities(SCORES, torch.tensor([[0, 5]])), r"0\.\.5 found in a pool of 5"),
        (lambda: PlackettLuce().propensities(SCORES, torch.tensor([[1, 1]])), "slate 0 has an item twice"),
        (
            lambda: PlackettLuce().marginals(SCORES, 1, users=torch.tensor([0]), draws=1, seed=0),
            "draws are 2 or more",
        ),
    ],
)
def test_what_cannot_be_is_told(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()
