"""What evaluations found, as rows of one DuckDB file in the workspace: readable by whoever keeps figures over time."""

import shutil
from collections.abc import Mapping
from contextlib import closing
from importlib import resources
from pathlib import Path
from string import Template

import duckdb
import polars as pl

from recsys_meta.store.atomic import replace_file_atomically

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


class _Statement(Template):
    delimiter = "@"


def write_evaluation(file: Path, evaluation_id: str, tables: Mapping[str, pl.DataFrame]) -> None:
    """Writes the rows of one evaluation; rows under the same id are replaced. For the holder of the workspace's lock.

    tables: named as in EVALUATION_TABLES, with the columns of evaluations.sql but for the id. The file is replaced by a new
    one, so that whoever reads it neither waits nor stands in the way.
    Raises ValueError for a table of another name, and duckdb.Error where columns do not fit, with the file untouched.
    """
    strange = sorted(set(tables) - set(EVALUATION_TABLES))
    if strange:
        raise ValueError(f"found the tables {strange}; expected some of {list(EVALUATION_TABLES)}")
    with replace_file_atomically(file) as temporary:
        if file.exists():
            shutil.copyfile(file, temporary)
        with closing(duckdb.connect(str(temporary))) as connection:
            connection.execute(_sql("evaluations"))
            for name, rows in tables.items():
                connection.execute(
                    _sql("delete_evaluation_rows", table=name), {"evaluation_id": evaluation_id}
                )
                connection.register("evaluation_rows", rows.to_arrow())
                connection.execute(
                    _sql("insert_evaluation_rows", table=name), {"evaluation_id": evaluation_id}
                )
                connection.unregister("evaluation_rows")


def _sql(name: str, **values: str) -> str:
    return _Statement(resources.files(__package__).joinpath(f"{name}.sql").read_text("utf8")).substitute(
        values
    )
