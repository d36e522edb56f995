"""Off-policy evaluation of many logged rows by the command itself: seconds and peak memory, for docs/benchmarks.md.

python -m pipelines.bench_off_policy --rows 10000000
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from recsys_meta.ab.synthetic_logs import SITUATION, World, world
from recsys_meta.tables import USER_ID

_PART = 1_000_000  # rows drawn at once

CONFIG = f"""
workspace: workspace
logs: {{path: logs, propensity: propensity, user_id: user_id, context: [{SITUATION}]}}
target: {{kind: table, path: target.parquet, keys: [{SITUATION}]}}
"""


def main() -> None:
    """Draws the logs, runs the command, says what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    drawn = world(0.05, 0.5, 0.8, nested=True, situations=200, actions=50)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, drawn, rows)
        start = time.monotonic()
        command = [sys.executable, "-m", "recsys_meta.cli", "ope", "--config", str(folder / "ope.yaml")]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - start
    found = json.loads(ended.stdout.splitlines()[-1])["all"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{rows:,} rows: {seconds:.0f} s, peak memory {peak:.2f} GiB; value {drawn.value:.5f}, answer {found['answer']}"
    )


def write(folder: Path, drawn: World, rows: int) -> None:
    """Logs in part files, the target policy, and the config."""
    (folder / "logs").mkdir()
    for part, first in enumerate(range(0, rows, _PART)):
        size = min(_PART, rows - first)
        table = drawn.logs(size, np.random.default_rng(part)).table
        table = table.with_columns(pl.col(USER_ID) + first)
        table.write_parquet(folder / "logs" / f"{part:04}.parquet")
    drawn.policy.table.write_parquet(folder / "target.parquet")
    (folder / "ope.yaml").write_text(CONFIG)


if __name__ == "__main__":
    main()
