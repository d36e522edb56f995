"""A small experiment on the users of the sample world, with a known answer: ``data/experiment``.

Two weeks after the sample's 60 days a new slate is tried on half of the users. A user visits as often as its past suggests, times
a factor of its own; each visit shows one slate (a row of exposures) and ends in a play, a skip or nothing:

    play with probability .30 * own appetite under ``old``, LIFT times that under ``new``;
    minutes of a play: exponential, mean 30; skip with probability .12 under both.

So ``new`` truly brings 12 % more plays and minutes, and as many skips. A user's variant is drawn once, half and half.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from recsys_meta.tables import TIMESTAMP, USER_ID

START = datetime(2026, 10, 31, tzinfo=UTC)
DAYS = 14
LIFT = 1.12
_PLAY, _SKIP, _MINUTES = 0.30, 0.12, 30.0
_VISITS = 0.7  # a day, of the average user


def sample_experiment(
    interactions: pl.DataFrame, users: pl.DataFrame, seed: int = 7
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Exposures and outcomes, in order of time. interactions, users: of the sample world; the former only of before START."""
    random = np.random.default_rng(seed)
    known = interactions.filter(pl.col(TIMESTAMP) < START).group_by(USER_ID).len()
    people = users.select(USER_ID).sort(USER_ID).join(known, on=USER_ID, how="left", maintain_order="left")
    past = people["len"].fill_null(0).to_numpy() + 3.0
    rate = _VISITS * past / past.mean() * random.gamma(4.0, 0.25, len(past))
    appetite = random.uniform(0.5, 1.5, len(past))
    is_new = random.random(len(past)) < 0.5
    visits = random.poisson(rate * DAYS)
    who = np.repeat(np.arange(len(past)), visits)
    seconds = random.integers(0, DAYS * 86_400, len(who))
    order = np.argsort(seconds, kind="stable")
    who, seconds = who[order], seconds[order]
    ending = random.random(len(who))  # plays are at one end, skips at the other: the lift takes from neither
    play = ending < _PLAY * appetite[who] * np.where(is_new[who], LIFT, 1.0)
    skip = ending > 1.0 - _SKIP
    minutes = np.ceil(random.exponential(_MINUTES, len(who)))
    times = pl.Series(seconds) * 1_000_000 + int(START.timestamp()) * 1_000_000
    rows = pl.DataFrame(
        {
            USER_ID: people[USER_ID].gather(who),
            "variant": np.where(is_new[who], "new", "old"),
            "at": times.cast(pl.Datetime("us", "UTC")),
            "play": play,
            "skip": skip,
            "minutes": minutes,
        }
    )
    exposures = rows.select(
        USER_ID, "variant", experiment=pl.lit("new-slate"), exposed_at=pl.col("at")
    ).select("experiment", USER_ID, "variant", "exposed_at")
    happened = rows.with_columns(
        pl.col("at") + pl.duration(seconds=5), plays=pl.lit(1.0), skips=pl.lit(1.0)
    )  # fmt: skip
    outcomes = pl.concat(
        happened.filter(pl.col(on)).select(
            USER_ID, metric=pl.lit(name), value=pl.col(column), occurred_at=pl.col("at")
        )
        for name, on, column in (("play", "play", "plays"), ("minutes", "play", "minutes"), ("skip", "skip", "skips"))
    ).sort("occurred_at", "metric", maintain_order=True)  # fmt: skip
    return exposures, outcomes


def write(sample: Path, folder: Path) -> None:
    """Writes exposures.parquet and outcomes.parquet. sample: the folder of the sample world."""
    folder.mkdir(parents=True, exist_ok=True)
    interactions, users = (pl.read_parquet(sample / f"{name}.parquet") for name in ("interactions", "users"))
    for name, table in zip(("exposures", "outcomes"), sample_experiment(interactions, users), strict=True):
        table.write_parquet(folder / f"{name}.parquet", compression_level=19)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m recsys_meta.ingest.sample_experiment SAMPLE FOLDER")
    write(Path(sys.argv[1]), Path(sys.argv[2]))
