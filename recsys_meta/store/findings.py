"""What a story found, as rows of one DuckDB file, each under the id of its run: a rerun replaces its own."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path
from string import Template

import duckdb
import polars as pl

from recsys_meta.store.atomic import replace_file_atomically


class _Statement(Template):
    delimiter = "@"


def write_findings(
    file: Path, schema: str, known: Sequence[str], key: str, id: str, tables: Mapping[str, pl.DataFrame]
) -> None:
    """Writes the rows of one run; rows under the same id are replaced. For the holder of the workspace's lock.

    schema: name of the .sql file that makes the tables; known: their names; key: the column of the id.
    tables: with the columns of that schema but for the key. The file is replaced by a new one, so that whoever reads it neither
    waits nor stands in the way.
    Raises ValueError for a table of another name, and duckdb.Error where columns do not fit, with the file untouched.
    """
    strange = sorted(set(tables) - set(known))
    if strange:
        raise ValueError(f"found the tables {strange}; expected some of {list(known)}")
    with replace_file_atomically(file) as temporary:
        if file.exists():
            shutil.copyfile(file, temporary)
        with closing(duckdb.connect(str(temporary))) as connection:
            connection.execute(_sql(schema))
            for name, rows in tables.items():
                connection.execute(_sql("delete_rows", table=name, key=key), {"id": id})
                connection.register("found_rows", rows.to_arrow())
                connection.execute(_sql("insert_rows", table=name, key=key), {"id": id})
                connection.unregister("found_rows")


def _sql(name: str, **values: str) -> str:
    return _Statement(resources.files(__package__).joinpath(f"{name}.sql").read_text("utf8")).substitute(
        values
    )
