"""Merged lists: every toss of the coins by hand, a loop over one user as it stands in the paper, and what holds of all lists."""

from itertools import pairwise, product

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_meta.ab.interleaving import (
    NOBODY,
    A,
    B,
    Lists,
    coins,
    interleaved,
    probabilistic,
    team_draft,
)
from recsys_meta.episodes import user_keys
from recsys_meta.hashing import hashed, mixed
from recsys_meta.tables import INTERLEAVED

KEYS = mixed(torch.arange(40_000))


def tossed(size: int) -> np.ndarray:
    """Every way that the coins can fall, [2^size, size]."""
    return np.array(list(product([False, True], repeat=size)))


def drafted(first: list[int], second: list[int], size: int, **options) -> list[tuple[list[int], list[int]]]:
    """Items and teams of every toss."""
    every = tossed(size)
    lists = team_draft(*(np.array([items] * len(every)) for items in (first, second)), every, **options)
    return list(zip(lists.items.tolist(), lists.teams.tolist(), strict=True))


def test_two_rankings_without_a_common_item_are_drafted_in_rounds() -> None:
    found = drafted([1, 2, 5, 6], [3, 4, 7, 8], 4)
    by_hand = {
        (False, False): ([1, 3, 2, 4], [A, B, A, B]),
        (False, True): ([1, 3, 4, 2], [A, B, B, A]),
        (True, False): ([3, 1, 2, 4], [B, A, A, B]),
        (True, True): ([3, 1, 4, 2], [B, A, B, A]),
    }  # of rankings that go on; the test beneath has those that end
    # Coins are tossed where both teams are equally large: before the first and the third item.
    assert found == [by_hand[first, third] for first, _, third, _ in tossed(4).tolist()]


def test_of_three_items_in_two_orders_the_last_is_credited_to_each_as_often() -> None:
    """The draft's known weakness: B has item 3 higher, and does not get it more often."""
    found = drafted([1, 2, 3], [2, 3, 1], 3)
    by_hand = {
        (False, False): ([1, 2, 3], [A, B, A]),
        (False, True): ([1, 2, 3], [A, B, B]),
        (True, False): ([2, 1, 3], [B, A, A]),
        (True, True): ([2, 1, 3], [B, A, B]),
    }
    assert found == [by_hand[first, third] for first, _, third in tossed(3).tolist()]
    assert sum(teams[items.index(3)] == B for items, teams in found) == 4


def test_what_both_begin_with_counts_for_neither_unless_it_is_asked_for() -> None:
    by_hand = {False: ([1, 2, 3], [NOBODY, A, B]), True: ([1, 3, 2], [NOBODY, B, A])}
    assert drafted([1, 2, 3], [1, 3, 2], 3) == [by_hand[second] for _, second, _ in tossed(3).tolist()]
    drafts = {
        False: ([1, 3, 2], [A, B]),  # A picks 1, B's best is then 3
        True: ([1, 2, 3], [B, A]),
    }
    for (items, teams), (first, _, _) in zip(
        drafted([1, 2, 3], [1, 3, 2], 3, credit_shared=True), tossed(3).tolist(), strict=True
    ):
        assert (items, teams[:2]) == drafts[first]


def test_identical_rankings_are_shown_as_they_are_and_each_is_first_as_often() -> None:
    for items, teams in drafted([5, 7, 9], [5, 7, 9], 3):
        assert (items, teams) == ([5, 7, 9], [NOBODY] * 3)
    counted = drafted([5, 7, 9], [5, 7, 9], 3, credit_shared=True)
    assert {tuple(items) for items, _ in counted} == {(5, 7, 9)}
    for position in range(3):
        assert sum(teams[position] == A for _, teams in counted) == 4


def test_as_many_positions_count_as_the_shorter_ranking_has_items_and_the_list_goes_on() -> None:
    assert [items for items, _ in drafted([1, 2], [3, 4], 4)[::2]] == [
        [1, 3, 2, 4], [1, 3, 4, 2], [1, 3, 2, 4], [1, 3, 4, 2], [3, 1, 2, 4], [3, 1, 4, 2], [3, 1, 2, 4], [3, 1, 4, 2],
    ]  # fmt: skip
    assert {tuple(teams[2:]) for _, teams in drafted([1, 2], [3, 4], 4)} == {(NOBODY, NOBODY)}
    assert drafted([1, -1, -1], [2, 3, 4], 4)[0] == ([1, 2, 3, 4], [A, NOBODY, NOBODY, NOBODY])
    assert drafted([1, -1, -1], [2, 3, 4], 4)[-1] == ([2, 1, 3, 4], [B, NOBODY, NOBODY, NOBODY])
    assert drafted([-1], [2, 3], 3)[0] == ([2, 3, -1], [NOBODY] * 3)


# Against the paper's algorithm, one user at a time -------------------------------------------------------------------


def by_the_paper(first: list[int], second: list[int], flips: list[bool], size: int) -> tuple[list, list]:
    """Algorithm 2 of Radlinski, Kurup & Joachims 2008, with the position's coin for RandBit."""
    shown: list[int] = []
    teams: dict[int, list[int]] = {A: [], B: []}
    while len(shown) < size and set(first) - set(shown) and set(second) - set(shown):
        is_a = len(teams[A]) < len(teams[B]) or (len(teams[A]) == len(teams[B]) and not flips[len(shown)])
        ranking, team = (first, A) if is_a else (second, B)
        pick = next(item for item in ranking if item not in shown)
        shown.append(pick)
        teams[team].append(pick)
    return shown, [A if item in teams[A] else B for item in shown]


rankings = st.lists(st.integers(0, 9), unique=True, max_size=8)
users = st.lists(st.tuples(rankings, rankings), min_size=1, max_size=12)


def padded(lists: list[list[int]]) -> np.ndarray:
    return np.array([[*items, *[-1] * (8 - len(items))] for items in lists])


@given(users=users, size=st.integers(1, 9), seed=st.integers(0, 99))
def test_all_users_at_once_get_what_the_paper_gives_one(users, size, seed) -> None:
    flips = np.random.default_rng(seed).random((len(users), size)) < 0.5
    first, second = (padded([pair[side] for pair in users]) for side in (0, 1))
    found = team_draft(first, second, flips, credit_shared=True)
    for row, (a, b) in enumerate(users):
        shown, teams = by_the_paper(a, b, flips[row].tolist(), size)
        assert found.items[row, : len(shown)].tolist() == shown
        counted = min(len(a), len(b), size)  # ours: further down nothing is credited
        assert found.teams[row].tolist() == [*teams[:counted], *[NOBODY] * (size - counted)]


@given(pair=st.tuples(rankings, rankings), size=st.integers(1, 7), credit_shared=st.booleans())
def test_each_team_has_each_position_that_counts_in_half_of_the_tosses(pair, size, credit_shared) -> None:
    """So that two rankings of equal worth are credited alike, however long they are."""
    every = tossed(size)
    first, second = (padded([ranking] * len(every)) for ranking in pair)
    teams = team_draft(first, second, every, credit_shared=credit_shared).teams
    assert ((teams == A).sum(0) == (teams == B).sum(0)).all()
    assert ((teams == NOBODY).all(0) | (teams != NOBODY).all(0)).all()


@settings(max_examples=50)
@given(users=users, size=st.integers(1, 9), seed=st.integers(0, 99), credit_shared=st.booleans())
def test_what_holds_of_every_draft(users, size, seed, credit_shared) -> None:
    flips = np.random.default_rng(seed).random((len(users), size)) < 0.5
    first, second = (padded([pair[side] for pair in users]) for side in (0, 1))
    found = team_draft(first, second, flips, credit_shared=credit_shared)
    for row, (a, b) in enumerate(users):
        shown = [item for item in found.items[row].tolist() if item >= 0]
        assert len(set(shown)) == len(shown), "no item twice"
        assert len(shown) == min(size, len({*a, *b})), "nobody is shown less"
        teams = found.teams[row]
        balance = np.cumsum((teams == B).astype(int) - (teams == A).astype(int))
        assert np.abs(balance).max() <= 1, "every prefix has teams of one size, but for one"
        for ranking, team in ((a, A), (b, B)):
            mine = [
                ranking.index(item) for item, of in zip(shown, teams.tolist(), strict=False) if of == team
            ]
            assert all(above < below for above, below in pairwise(mine)), "a team picks in its order"
    swapped = team_draft(second, first, ~flips, credit_shared=credit_shared)
    assert np.array_equal(swapped.items, found.items)
    assert np.array_equal(swapped.teams, np.where(found.teams == NOBODY, NOBODY, 1 - found.teams))


# Draws --------------------------------------------------------------------------------------------------------------


def test_coins_are_fair_independent_and_those_of_user_seed_and_day() -> None:
    found = coins(KEYS, 3, seed=7, day=739_000)
    assert found.shape == (40_000, 3)
    assert np.abs(found.mean(0) - 0.5).max() < 4 * 0.5 / 200
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 4 / 200
    assert np.array_equal(coins(KEYS[100:110], 3, seed=7, day=739_000), found[100:110])
    for other in (coins(KEYS, 3, seed=8, day=739_000), coins(KEYS, 3, seed=7, day=739_001)):
        assert abs((other == found).mean() - 0.5) < 4 * 0.5 / 340


def exact_first_two(rank: dict[int, int], other: dict[int, int]) -> dict[tuple[int, int], float]:
    """How probable the first two items of a probabilistic merger are, by its definition."""

    def drawn(ranks: dict[int, int], item: int, left: set[int]) -> float:
        return ranks[item] ** -3.0 / sum(ranks[one] ** -3.0 for one in left)

    every = set(rank)
    first = {i: sum(drawn(ranks, i, every) for ranks in (rank, other)) / 2 for i in every}
    return {
        (i, j): first[i] * sum(drawn(ranks, j, every - {i}) for ranks in (rank, other)) / 2
        for i in every
        for j in every - {i}
    }


def merged_at_random(first: list[int], second: list[int], seed: int = 1) -> Lists:
    pair = [np.array([items] * len(KEYS)) for items in (first, second)]
    return probabilistic(*pair, coins(KEYS, 3, seed, 1), keys=KEYS, seed=int(hashed(seed, 1)))


def test_a_probabilistic_merger_follows_the_softmax_over_the_ranks_that_are_left() -> None:
    found = merged_at_random([0, 1, 2], [1, 2, 0])
    pairs, counts = np.unique(found.items[:, :2], axis=0, return_counts=True)
    shares = {tuple(pair): count / len(KEYS) for pair, count in zip(pairs.tolist(), counts, strict=True)}
    exact = exact_first_two({0: 1, 1: 2, 2: 3}, {1: 1, 2: 2, 0: 3})
    assert sum(exact.values()) == pytest.approx(1.0)
    assert shares == pytest.approx(exact, abs=4 * 0.5 / 200)
    assert (np.sort(found.items, axis=1) == [0, 1, 2]).all()


def test_a_probabilistic_merger_credits_the_ranking_that_has_an_item_higher() -> None:
    """Where the draft gives each as often (above)."""
    found = merged_at_random([0, 1, 2], [1, 2, 0])
    is_b = found.teams[found.items == 2] == B
    assert is_b.mean() > 0.55


def test_of_a_user_without_a_ranking_nothing_is_drawn() -> None:
    found = probabilistic(
        np.array([[-1, -1]]), np.array([[3, 4]]), np.array([[False] * 3]), keys=KEYS[:1], seed=1
    )
    assert sorted(found.items[0].tolist()) == [-1, 3, 4]
    assert (found.teams == NOBODY).all()


# Tables -------------------------------------------------------------------------------------------------------------


def ranking(rows: list[tuple[str, int, float]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "order"], orient="row")


FIRST = ranking([("u", 30, 2.0), ("u", 10, 1.0), ("v", 20, 5.0), ("v", 10, 5.0), ("v", 40, 9.0)])
SECOND = ranking([("u", 40, -1.0), ("u", 10, 0.0), ("w", 30, 1.0)])


def merged(first: pl.DataFrame, second: pl.DataFrame, **options) -> pl.DataFrame:
    ids = pl.concat([first["user_id"], second["user_id"]]).unique().sort()
    settings = {"size": 3, "day": 739_000, "seed": 7, **options}
    return interleaved(first, second, ids, user_keys(ids), **settings)


@pytest.mark.parametrize("method", ["team draft", "probabilistic"])
def test_a_merged_list_is_as_long_as_there_are_items_however_long_it_was_asked_for(method) -> None:
    whole = merged(FIRST, SECOND, size=20, method=method)
    assert merged(FIRST, SECOND, size=10**12, method=method).equals(whole)


def test_a_table_has_the_columns_of_merged_lists_in_the_order_of_users_and_positions() -> None:
    found = merged(FIRST, SECOND)
    assert found.columns == [name for name in INTERLEAVED if name != "day"]
    assert found.schema["position"] == INTERLEAVED["position"]
    assert found.schema["team"] == pl.String
    u = found.filter(user_id="u")
    assert set(u["item_id"]) == {10, 40, 30}
    assert u["item_id"][0] == (10 if u["team"][0] == "A" else 40)
    assert set(u["team"][:2]) == {"A", "B"}
    v = found.filter(user_id="v")
    assert v["item_id"].to_list() == [10, 20, 40], "equals in the order of their items"
    assert v["team"].null_count() == 3
    assert found.filter(user_id="w").rows() == [("w", 1, 30, None)]


@pytest.mark.parametrize("method", ["team draft", "probabilistic"])
def test_a_list_depends_on_its_user_seed_and_day_alone(method) -> None:
    random = np.random.default_rng(0)
    first, second = (
        ranking([(f"u{user}", item, float(random.random())) for user in range(60) for item in range(8)])
        for _ in range(2)
    )
    everybody = merged(first, second, method=method)
    shuffled = merged(first.sample(fraction=1.0, shuffle=True, seed=3), second, method=method)
    assert shuffled.equals(everybody)
    some = [f"u{user}" for user in range(0, 60, 7)]
    few = [table.filter(pl.col("user_id").is_in(some)) for table in (first, second)]
    assert merged(*few, method=method).equals(everybody.filter(pl.col("user_id").is_in(some)))
    for change in ({"day": 739_001}, {"seed": 8}):
        assert not merged(first, second, method=method, **change).equals(everybody)


def test_a_list_has_one_position_at_least() -> None:
    with pytest.raises(ValueError, match="size is at least 1; found 0"):
        merged(FIRST, SECOND, size=0)
