"""The analysis of an experiment of many exposures by the command itself: seconds and peak memory, for docs/benchmarks.md.

python -m pipelines.bench_experiment --rows 10000000

20 exposures a user over two weeks, an outcome for every tenth; a mean with CUPED, a ratio and a quantile.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from recsys_meta.tables import TIMESTAMP, USER_ID

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 14
LIFT = 1.02  # what variant B truly brings
EACH = 20  # exposures of a user, in the mean
_PLAYS = 0.1  # of an exposure
_PART = 1_000_000  # rows drawn at once

CONFIG = """
workspace: workspace
exposures: {path: exposures}
outcomes: {path: outcomes}
interactions: {path: interactions, timestamp: timestamp}
control: A
planned_end: 2026-01-14
metrics:
  - {name: plays, outcome: play, covariate: interactions}
  - {name: plays per exposure, outcome: play, kind: ratio}
  - {name: 90th percentile of plays, outcome: play, kind: quantile, quantile: 0.9}
"""


def main() -> None:
    """Draws the tables, runs the command, says what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="exposures")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write(folder, rows)
        start = time.monotonic()
        command = [sys.executable, "-m", "recsys_meta.cli", "ab", "--config", str(folder / "ab.yaml")]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    print(
        f"{rows:,} exposures, {written:,} outcomes: {seconds:.0f} s, {cpu:.0f} CPU s, peak memory {peak:.2f} GiB"
    )
    print(f"true lift {LIFT - 1:+.1%}; {json.dumps(json.loads(ended.stdout.splitlines()[-1]))[:400]}")


def write(folder: Path, rows: int) -> int:
    """Exposures, outcomes and what users did before, in part files, and the config; gives the number of outcomes."""
    users = max(rows // EACH, 2)
    chance = np.random.default_rng(0)
    appetite = chance.gamma(4.0, 0.25, users)  # mean 1
    is_b = chance.random(users) < 0.5
    outcomes = 0
    for name in ("exposures", "outcomes", "interactions"):
        (folder / name).mkdir()
    for part, first in enumerate(range(0, rows, _PART)):
        size = min(_PART, rows - first)
        who = chance.integers(users, size=size)
        exposures = pl.DataFrame(
            {
                USER_ID: who,
                "experiment": pl.repeat("bench", size, eager=True),
                "variant": pl.Series(np.where(is_b[who], "B", "A")),
                "exposed_at": instants(chance.integers(DAYS * 86_400, size=size)),
            }
        )
        exposures.write_parquet(folder / "exposures" / f"{part:04}.parquet")
        plays = chance.random(size) < _PLAYS * appetite[who] * np.where(is_b[who], LIFT, 1.0)
        played = exposures.filter(pl.Series(plays)).select(
            USER_ID, metric=pl.lit("play"), value=pl.lit(1.0), occurred_at=pl.col("exposed_at")
        )
        played.write_parquet(folder / "outcomes" / f"{part:04}.parquet")
        outcomes += played.height
    past = np.repeat(np.arange(users), chance.poisson(2.0 * appetite))
    pl.DataFrame(
        {
            USER_ID: past,
            "item_id": chance.integers(1000, size=len(past)),
            TIMESTAMP: instants(-chance.integers(1, 30 * 86_400, size=len(past))),
        }
    ).write_parquet(folder / "interactions" / "0000.parquet")
    (folder / "ab.yaml").write_text(CONFIG)
    return outcomes


def instants(seconds: np.ndarray) -> pl.Series:
    """So many seconds after the start, or before it."""
    return (pl.Series(seconds) * 1_000_000 + int(START.timestamp()) * 1_000_000).cast(
        pl.Datetime("us", "UTC")
    )


if __name__ == "__main__":
    main()
