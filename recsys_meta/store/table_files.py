"""Tables in a DuckDB file of their own, and the same rows as Parquet beside it: for whoever reads the one or the other."""

from collections.abc import Mapping
from contextlib import closing
from importlib import resources
from pathlib import Path
from string import Template

import duckdb
import polars as pl

from recsys_meta.store.atomic import replace_file_atomically


class _Statement(Template):
    delimiter = "@"


def write_tables(folder: Path, file: str, tables: Mapping[str, pl.DataFrame]) -> None:
    """Writes ``folder/file`` with these tables and nothing else, and ``folder/NAME.parquet`` of each; replaces earlier ones.

    Raises OSError or duckdb.Error where the machine fails; a file is then the earlier one or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with replace_file_atomically(folder / f"{name}.parquet") as temporary:
            rows.write_parquet(temporary)
    create = _Statement(resources.files(__package__).joinpath("create_table.sql").read_text("utf8"))
    with (
        replace_file_atomically(folder / file) as temporary,
        closing(duckdb.connect(str(temporary))) as connection,
    ):
        for name, rows in tables.items():
            connection.register("found_rows", rows.to_arrow())
            connection.execute(create.substitute(table=name))
            connection.unregister("found_rows")
