"""What analyses of experiments found, as rows of one DuckDB file in the workspace."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys_meta.store.findings import write_findings

EXPERIMENTS_FILE = "experiments.duckdb"
EXPERIMENT_TABLES = (
    "experiments",
    "experiment_effects",
    "experiment_looks",
    "experiment_aa",
    "interleavings",
    "interleaving_looks",
)


def write_experiment(file: Path, experiment_id: str, tables: Mapping[str, pl.DataFrame]) -> None:
    """Writes the rows of one analysis, in the place of those of the same id. For the holder of the workspace's lock.

    tables: named as in EXPERIMENT_TABLES, with the columns of experiments.sql but for the id. Raises as ``write_findings`` does.
    """
    write_findings(file, "experiments", EXPERIMENT_TABLES, "experiment_id", experiment_id, tables)
