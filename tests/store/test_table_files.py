"""Tests of tables written as DuckDB and as Parquet."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from recsys_meta.store.table_files import write_tables
from recsys_meta.tables import INSTANT

ROWS = pl.DataFrame(
    {
        "user_id": ["007", "ü"],
        "item_id": pl.Series([1, 2], dtype=pl.Int32),
        "at": pl.Series([datetime(2026, 11, 1, tzinfo=UTC)] * 2, dtype=INSTANT),
        "propensity": [0.25, None],
    }
)


def test_both_files_hold_the_same_rows_and_nothing_of_before(tmp_path: Path) -> None:
    write_tables(tmp_path / "new", "logs.duckdb", {"old": ROWS, "shown": ROWS})
    write_tables(tmp_path / "new", "logs.duckdb", {"shown": ROWS.head(1), "nothing": ROWS.clear()})
    with duckdb.connect(str(tmp_path / "new" / "logs.duckdb"), read_only=True) as connection:
        assert sorted(connection.sql("SELECT table_name FROM duckdb_tables()").fetchall()) == [
            ("nothing",),
            ("shown",),
        ]
        found = connection.sql("FROM shown").pl().with_columns(pl.col("at").dt.convert_time_zone("UTC"))
    assert found.equals(ROWS.head(1))
    assert found.schema == ROWS.schema
    assert pl.read_parquet(tmp_path / "new" / "shown.parquet").equals(ROWS.head(1))


def test_what_cannot_be_written_leaves_the_file_of_before(tmp_path: Path) -> None:
    write_tables(tmp_path, "logs.duckdb", {"shown": ROWS})
    before = (tmp_path / "logs.duckdb").read_bytes()
    with pytest.raises(duckdb.Error):
        write_tables(tmp_path, "logs.duckdb", {"no name": ROWS})
    assert (tmp_path / "logs.duckdb").read_bytes() == before
