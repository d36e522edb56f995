"""What evaluations found, as rows of one DuckDB file in the workspace: readable by whoever keeps figures over time."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys_meta.store.findings import write_findings

EVALUATIONS_FILE = "evaluations.duckdb"
EVALUATION_TABLES = (
    "evaluations",
    "evaluation_summary",
    "evaluation_differences",
    "evaluation_breakdown",
    "evaluation_costs",
    "suite_ranks",
    "tuning_trials",
    "off_policy_estimates",
    "off_policy_diagnostics",
)


def write_evaluation(file: Path, evaluation_id: str, tables: Mapping[str, pl.DataFrame]) -> None:
    """Writes the rows of one evaluation, in the place of those of the same id. For the holder of the workspace's lock.

    tables: named as in EVALUATION_TABLES, with the columns of evaluations.sql but for the id. Raises as ``write_findings`` does.
    """
    write_findings(file, "evaluations", EVALUATION_TABLES, "evaluation_id", evaluation_id, tables)
