"""Two rankings merged into one list for each user, every item picked for one of two teams: A, the first ranking, and B.

Team draft, the default (F. Radlinski, M. Kurup & T. Joachims, How Does Clickthrough Data Reflect Retrieval Quality?, CIKM 2008,
algorithm 2): as two captains choose players, the team with fewer items picks next, a coin decides where both have as many, and
who picks takes the best item of its ranking that the list does not have yet.

Probabilistic (K. Hofmann, S. Whiteson & M. de Rijke, A Probabilistic Method for Inferring Preferences from Clicks, CIKM 2011,
without their marginalization): a coin decides at every position, and who picks draws from a softmax over the ranks r still left,

    p(r)  proportional to  r^-3.

Differences from the papers. Only so many positions are credited as the shorter ranking has items, as in Lerot and others: to
that depth both can always pick, and each team has each position with probability 1/2; further down, who still can depends on
the coins, and the length of a ranking alone would favour a team. The list goes on with what is left, credited to neither, so
that nobody is shown less. And items at the top that both rankings have in the same order are shown in that order and credited
to neither, after O. Chapelle, T. Joachims, F. Radlinski & Y. Yue, Large-scale validation and analysis of interleaved search
evaluation, TOIS 30(1), 2012: whoever picked them, the list would begin so, and a click there says nothing of a difference.
``credit_shared`` gives the draft of 2008 back.

What is known against them: a team draft can miss a difference (Hofmann et al. 2011): of the rankings 1 2 3 and 2 3 1 the second
has item 3 higher, and each team gets it as often. A probabilistic merger credits it to the second more often, but shows lists
that neither ranking would have, and its teams are not equally large. Neither method favours a team by what it is called.

Letters: U users, N and M items of the two rankings, k positions of a list.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.hashing import hashed, mixed, uniform
from recsys_meta.tables import INTERLEAVED, ITEM_ID, TEAMS, USER_ID

Method = Literal["team draft", "probabilistic"]

Items = npt.NDArray[np.int64]
Coins = npt.NDArray[np.bool_]

A, B, NOBODY = 0, 1, -1

_COINS, _ORDER = range(2)  # what the draws of one seed and day are for
_STEEPNESS = 3.0  # of the softmax over ranks, as Hofmann et al. have it


class Lists(NamedTuple):
    """What U users are shown, in order."""

    items: Items  # [U, k]; -1 where nothing was left
    teams: npt.NDArray[np.int8]  # [U, k]: A, B or NOBODY


def coins(keys: Tensor, size: int, seed: int, day: int) -> Coins:
    """A coin for every position of every user, [U, k], True for B: given by the user's key, the seed and the day alone.

    keys: [U] int64, as ``episodes.user_keys`` gives them.
    """
    mine = mixed(keys ^ hashed(seed, day, _COINS))
    return (uniform(mixed(mine.unsqueeze(1) + mixed(torch.arange(size)))) < 0.5).numpy()


def team_draft(first: Items, second: Items, tossed: Coins, *, credit_shared: bool = False) -> Lists:
    """The team draft of every user at once.

    Args:
        first, second: [U, N] and [U, M]: the rankings, best first, no item twice; -1 where they have ended.
        tossed: [U, k]: who picks at a position if both teams are equally large there; True: B.
        credit_shared: whether items at the top that both rankings have in the same order are drafted, too.
    """
    shared = np.zeros(len(first), dtype=np.int64) if credit_shared else _shared(first, second)
    return _merged(first, second, tossed, balanced=True, uncredited=shared)


def probabilistic(first: Items, second: Items, tossed: Coins, *, keys: Tensor, seed: int) -> Lists:
    """The probabilistic merger of every user at once, arguments as in ``team_draft``.

    Each ranking is drawn from as a whole, which comes to the same: its next untaken item follows the softmax over those
    that are left (``slate_policies`` says why).
    """
    orders = []
    for number, ranking in enumerate((first, second)):
        held = torch.from_numpy(ranking)
        ranks = torch.arange(1, held.shape[1] + 1, dtype=torch.float64)
        scores = (-_STEEPNESS * ranks.log()).expand(held.shape).masked_fill(held < 0, -torch.inf)
        places = PlackettLuce().draw(
            scores, held.shape[1], users=keys, items=torch.arange(held.shape[1]),
            seed=int(hashed(seed, _ORDER, number)),
        ).places  # fmt: skip
        drawn = held.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1)
        orders.append(drawn.numpy())
    nothing = np.zeros(len(first), dtype=np.int64)
    return _merged(orders[A], orders[B], tossed, balanced=False, uncredited=nothing)


def interleaved(
    first: pl.DataFrame,
    second: pl.DataFrame,
    users: pl.Series,
    keys: Tensor,
    *,
    size: int,
    day: int,
    seed: int,
    method: Method = "team draft",
    credit_shared: bool = False,
) -> pl.DataFrame:
    """Merged lists as a table: tables.INTERLEAVED without its day, in the order of users and positions.

    A user's list depends on its own two rankings, its key, the seed and the day; nobody else matters.

    Args:
        first, second: USER_ID, ITEM_ID and "order" (any number; the smallest is the best, equals in the order of their items).
        users: ids of all who occur in either, each once.
        keys: [U] int64: a key of each of these users.
        size: k; users with fewer items get shorter lists.
        day: its ordinal; each day draws anew.
        seed: of the draws.
        method: how they are merged.
        credit_shared: of a team draft, as there.

    Raises ValueError where ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is at least 1; found {size}")
    items = pl.concat([first[ITEM_ID], second[ITEM_ID]]).unique().sort()
    longest = size if method == "team draft" else None
    rankings = [_ranking(table, users, items, longest) for table in (first, second)]
    longest_merged = sum(ranking.shape[1] for ranking in rankings)
    tossed = coins(keys, min(size, longest_merged), seed, day)
    if method == "team draft":
        lists = team_draft(rankings[A], rankings[B], tossed, credit_shared=credit_shared)
    else:
        lists = probabilistic(rankings[A], rankings[B], tossed, keys=keys, seed=int(hashed(seed, day)))
    return as_table(lists, users, items)


def as_table(lists: Lists, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    """Lists with the ids of their users (rows) and items (numbers in the lists): tables.INTERLEAVED without its day."""
    owner, position = (lists.items >= 0).nonzero()
    team = pl.Series(lists.teams[owner, position])
    return pl.DataFrame(
        {
            USER_ID: users.gather(pl.Series(owner)),
            "position": pl.Series(position + 1, dtype=pl.Int32),
            ITEM_ID: items.gather(pl.Series(lists.items[owner, position])),
            "team": team.replace_strict({A: TEAMS[A], B: TEAMS[B], NOBODY: None}, return_dtype=pl.String),
        }
    ).select(name for name in INTERLEAVED if name != "day")


def _merged(
    first: Items, second: Items, tossed: Coins, *, balanced: bool, uncredited: npt.NDArray[np.int64]
) -> Lists:
    """Position by position: who picks, and what. uncredited: [U], positions at the top that neither team is credited with."""
    rankings = [np.pad(ranking, ((0, 0), (0, 1)), constant_values=-1) for ranking in (first, second)]
    left = [ranking >= 0 for ranking in rankings]
    items = np.full(tossed.shape, -1, dtype=np.int64)
    teams = np.full(tossed.shape, NOBODY, dtype=np.int8)
    ahead = np.zeros(len(tossed), dtype=np.int64)  # items that B has picked less those of A
    shorter = np.minimum(*(free.sum(1) for free in left))
    everybody = np.arange(len(tossed))
    for position in range(tossed.shape[1]):
        best = [free.argmax(1) for free in left]  # where nothing is left: any
        able = [free[everybody, column] for free, column in zip(left, best, strict=True)]
        picks = [ranking[everybody, column] for ranking, column in zip(rankings, best, strict=True)]
        coin = tossed[:, position]
        turn = np.where(balanced & (ahead != 0), ahead < 0, coin)
        both = able[A] & able[B]
        is_b = np.where(both, turn, able[B])
        now = np.where(able[A] | able[B], np.where(is_b, picks[B], picks[A]), -1)
        picked = both & (position >= uncredited)
        items[:, position] = now
        teams[:, position] = np.where(picked & (position < shorter), np.where(is_b, B, A), NOBODY)
        ahead += np.where(picked, np.where(is_b, 1, -1), 0)
        left = [free & (ranking != now[:, None]) for free, ranking in zip(left, rankings, strict=True)]
    return Lists(items, teams)


def _shared(first: Items, second: Items) -> npt.NDArray[np.int64]:
    """How many items at the top both rankings have in the same order, [U]."""
    width = min(first.shape[1], second.shape[1])
    same = (first[:, :width] == second[:, :width]) & (first[:, :width] >= 0)
    count: npt.NDArray[np.int64] = np.logical_and.accumulate(same, axis=1).sum(1)
    return count


def _ranking(table: pl.DataFrame, users: pl.Series, items: pl.Series, longest: int | None) -> Items:
    """The rankings of these users as rows of ``items``, [U, N], best first; -1 where they have ended."""
    numbered = (
        table.sort(USER_ID, "order", ITEM_ID)
        .with_columns(place=pl.int_range(pl.len()).over(USER_ID))
        .filter(pl.lit(longest is None) | (pl.col("place") < (longest or 0)))
        .join(pl.DataFrame({USER_ID: users}).with_row_index("owner"), on=USER_ID, how="left")
        .join(pl.DataFrame({ITEM_ID: items}).with_row_index("item"), on=ITEM_ID, how="left")
    )
    width = 0 if numbered.is_empty() else int(numbered["place"].max()) + 1  # type: ignore[arg-type]
    ranking = np.full((len(users), max(width, 1)), -1, dtype=np.int64)
    ranking[numbered["owner"].to_numpy(), numbered["place"].to_numpy()] = numbered["item"].to_numpy()
    return ranking
