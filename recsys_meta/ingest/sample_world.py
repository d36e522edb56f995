"""The sample world: a generated streaming service whose users' tastes are known, so that a night can be judged against the truth.

    utility(u, i) = 2.3 + user bias + item bias + <taste of u, nature of i>
    rating        = utility + noise, rounded to 1..5
    next choice   ~ softmax(appeal of i + 1.2 <taste of u, nature of i>) over what is released and not yet seen

The nature of an item follows its genres, the taste of a user follows age group and region; both keep a part of
their own that only behaviour tells. Warm users have 15..45 interactions over 60 days; cold ones joined in the last
ten days and have 0..10.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_meta.tables import INSTANT, ITEM_ID, TIMESTAMP, USER_ID

WARM, COLD, ITEMS = 2_000, 1_000, 480
DIMENSIONS = 6
BASE = 2.3  # utility of the average item to the average user
CHOOSINESS = 1.2  # how far taste, beside common appeal, decides what is picked
START = datetime(2026, 9, 1, tzinfo=UTC)
DAYS = 60  # of history; the files are as of the midnight that ends the last of them
DAYS_AFTER = 7  # of the held-out future

# fmt: off
GENRES = (
    "action", "animation", "comedy", "crime", "documentary", "drama", "family", "fantasy", "history",
    "horror", "music", "romance", "science fiction", "thriller",
)
STUDIOS = (
    "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ironwood", "Juniper",
)
AGE_GROUPS = (
    "under 18", "18-24", "25-34", "35-49", "50-64", "65 and over",
)
REGIONS = (
    "centre", "east", "north", "south", "west",
)
FIRST_WORDS = (
    "Amber", "Broken", "Café", "Distant", "Empty", "Frozen", "Golden", "Hidden", "Iron", "Jade", "Last",
    "Midnight", "Náufrago", "Open", "Paper", "Quiet", "Red", "Silent", "Third", "Über", "Velvet", "Wild",
    "Yellow",
)
SECOND_WORDS = (
    "Anchor", "Bridge", "Circus", "Desert", "Engine", "Forest", "Garden", "Harbour", "Island", "Journey",
    "Kingdom", "Letter", "Market", "Mirror", "Night", "Orchard", "Promise", "River", "Signal", "Tower",
    "Voyage", "Winter",
)
# fmt: on

Array = NDArray[np.float64]


class World(NamedTuple):
    """The tables of the sample world; ids of users are strings, those of items whole numbers."""

    interactions: (
        pl.DataFrame
    )  # user_id, item_id, rating, timestamp: what is known at the end of day 60, in order of time
    holdout: pl.DataFrame  # the same columns: what the cold users did in the seven days after
    users: pl.DataFrame  # user_id, age_group, region
    items: pl.DataFrame  # item_id, title, genres, studio, year, minutes
    truth_users: pl.DataFrame  # user_id, bias, vector: the known answer, see true_scores
    truth_items: pl.DataFrame  # item_id, bias, vector


def generate(seed: int = 7) -> World:
    """The world of this seed; the same one every time."""
    random = np.random.default_rng(seed)
    users, taste, user_bias = _users(random)
    items, nature, item_bias, appeal, released = _items(random)
    affinity = _products(taste, nature)
    days = _event_days(random)
    chosen = _choices(random, days, appeal + CHOOSINESS * affinity, released)

    who, nth = np.nonzero(~np.isnan(days))
    what = chosen[who, nth]
    utility = BASE + user_bias[who] + item_bias[what] + affinity[who, what]
    seconds = np.floor(days[who, nth] * 86_400).astype(np.int64)
    events = pl.DataFrame(
        {
            USER_ID: users[USER_ID].gather(who),
            ITEM_ID: items[ITEM_ID].gather(what),
            "rating": np.clip(np.rint(utility + random.normal(0, 0.6, len(who))), 1, 5).astype(np.int8),
            TIMESTAMP: pl.Series(seconds * 1_000_000 + int(START.timestamp()) * 1_000_000).cast(INSTANT),
        }
    ).sort(TIMESTAMP, USER_ID, ITEM_ID)
    known = pl.col(TIMESTAMP) < START + timedelta(days=DAYS)
    return World(
        interactions=events.filter(known),
        holdout=events.filter(~known),
        users=users,
        items=items,
        truth_users=_truth(users[USER_ID], user_bias, taste),
        truth_items=_truth(items[ITEM_ID], item_bias, nature),
    )


def true_scores(truth_users: pl.DataFrame, truth_items: pl.DataFrame) -> Array:
    """The true utility of every item for every user, [users, items]: before noise, rounding and the bounds of the scale.

    The arguments are rows of ``truth_users.parquet`` and ``truth_items.parquet``, in any order and number.
    """
    taste = truth_users["vector"].cast(pl.Array(pl.Float64, DIMENSIONS)).to_numpy()
    nature = truth_items["vector"].cast(pl.Array(pl.Float64, DIMENSIONS)).to_numpy()
    user_bias, item_bias = (truth["bias"].cast(pl.Float64).to_numpy() for truth in (truth_users, truth_items))
    scores: Array = BASE + user_bias[:, None] + item_bias[None, :] + _products(taste, nature)
    return scores


def write(folder: Path, seed: int = 7) -> None:
    """Writes the world as one Parquet file per table, byte for byte the same for the same seed and library versions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in generate(seed)._asdict().items():
        table.write_parquet(folder / f"{name}.parquet", compression="zstd", compression_level=19)


def _users(random: np.random.Generator) -> tuple[pl.DataFrame, Array, Array]:
    """The users in random order of warm and cold: their table, tastes [U, D] and biases [U]."""
    count = WARM + COLD
    age = random.choice(len(AGE_GROUPS), count, p=(0.1, 0.2, 0.25, 0.25, 0.12, 0.08))
    region = random.choice(len(REGIONS), count)
    by_age = random.normal(0, 0.3, (len(AGE_GROUPS), DIMENSIONS))
    by_region = random.normal(0, 0.15, (len(REGIONS), DIMENSIONS))
    taste = by_age[age] + by_region[region] + random.normal(0, 0.55, (count, DIMENSIONS))
    table = pl.DataFrame(
        {
            USER_ID: [f"u{number:04d}" for number in range(1, count + 1)],
            "age_group": [AGE_GROUPS[code] for code in age],
            "region": [REGIONS[code] for code in region],
        }
    )
    return table, taste, random.normal(0, 0.35, count)


def _items(random: np.random.Generator) -> tuple[pl.DataFrame, Array, Array, Array, Array]:
    """The items: their table, natures [I, D], biases [I], appeal to all (a logit) [I] and the day each comes out [I]."""
    genre_nature = random.normal(0, 1.0, (len(GENRES), DIMENSIONS))
    genre_weight = random.dirichlet(np.full(len(GENRES), 3.0))
    genres = [
        np.sort(
            random.choice(
                len(GENRES), random.choice((1, 2, 3), p=(0.35, 0.45, 0.2)), replace=False, p=genre_weight
            )
        )
        for _ in range(ITEMS)
    ]
    nature = np.stack([genre_nature[list(codes)].sum(0) / np.sqrt(len(codes)) for codes in genres])
    nature = 0.8 * nature + random.normal(0, 0.6, (ITEMS, DIMENSIONS))
    studio = random.choice(len(STUDIOS), ITEMS)
    year = 2026 - np.minimum(np.floor(random.exponential(12.0, ITEMS)), 70).astype(np.int16)
    quality = random.normal(0, 0.2, len(STUDIOS))[studio] + random.normal(0, 0.3, ITEMS)
    appeal = 1.0 * quality + random.normal(0, 0.7, ITEMS) - 0.015 * (2026 - year)
    is_new = (year == 2026) & (random.random(ITEMS) < 0.9)
    released = np.where(is_new, random.uniform(0, DAYS, ITEMS), 0.0)
    titles = random.permutation([f"{first} {second}" for first in FIRST_WORDS for second in SECOND_WORDS])[
        :ITEMS
    ]
    table = pl.DataFrame(
        {
            ITEM_ID: pl.Series(
                np.sort(random.choice(np.arange(1_000, 10_000), ITEMS, replace=False)), dtype=pl.Int32
            ),
            "title": titles.tolist(),
            "genres": ["|".join(GENRES[code] for code in codes) for codes in genres],
            "studio": [STUDIOS[code] for code in studio],
            "year": year,
            "minutes": np.rint(random.normal(105, 18, ITEMS)).astype(np.int16),
        }
    )
    return table, nature, quality, appeal, released


def _event_days(random: np.random.Generator) -> Array:
    """When each user acts, in days since the start, ascending: [U, most events of one user], NaN where there is no event."""
    is_cold = random.permutation(np.arange(WARM + COLD) < COLD)
    known = np.where(is_cold, random.integers(0, 11, WARM + COLD), random.integers(15, 46, WARM + COLD))
    later = np.where(is_cold, random.integers(4, 11, WARM + COLD), 0)
    joined = np.where(
        is_cold, random.uniform(DAYS - 10, DAYS, WARM + COLD), random.uniform(0, DAYS / 2, WARM + COLD)
    )
    nth = np.arange(int((known + later).max()))[None, :]
    share = random.random((WARM + COLD, nth.shape[1]))
    before = joined[:, None] + share * (DAYS - joined[:, None])
    after = DAYS + share * DAYS_AFTER
    days = np.where(nth < known[:, None], before, np.where(nth < (known + later)[:, None], after, np.nan))
    ascending: Array = np.sort(days, axis=1)  # NaN goes last
    return ascending


def _choices(random: np.random.Generator, days: Array, logits: Array, released: Array) -> NDArray[np.int64]:
    """What each user picks at each event, [U, events]: a draw from the softmax of what is out and was not picked before."""
    chosen = np.zeros(days.shape, dtype=np.int64)
    left = logits.copy()
    for nth in range(days.shape[1]):
        acts = np.flatnonzero(~np.isnan(days[:, nth]))
        out = released[None, :] <= days[acts, nth][:, None]
        keys = np.where(
            out, left[acts] + random.gumbel(size=(len(acts), logits.shape[1])), -np.inf
        )  # the Gumbel trick
        chosen[acts, nth] = keys.argmax(1)
        left[acts, chosen[acts, nth]] = -np.inf
    return chosen


def _products(left: Array, right: Array) -> Array:
    """Inner products of all rows, [L, R]; summed in a fixed order (BLAS differs between machines in the last bits)."""
    total = np.zeros((len(left), len(right)))
    for dimension in range(left.shape[1]):
        total += left[:, dimension, None] * right[None, :, dimension]
    return total


def _truth(ids: pl.Series, bias: Array, vectors: Array) -> pl.DataFrame:
    return pl.DataFrame(
        {
            ids.name: ids,
            "bias": pl.Series(bias.round(3), dtype=pl.Float32),
            "vector": pl.Series(vectors.round(3).tolist(), dtype=pl.List(pl.Float32)),
        }
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m recsys_meta.ingest.sample_world FOLDER")
    write(Path(sys.argv[1]))
