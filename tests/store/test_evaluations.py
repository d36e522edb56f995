"""Rows of evaluations in DuckDB: replaced by a rerun, kept beside those of others."""

from pathlib import Path

import duckdb
import polars as pl
import pytest

from recsys_meta.store.evaluations import write_evaluation


def summary(mean: float | None, learners: tuple[str, ...] = ("A", "B")) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "learner": learners,
            "shot": "all",
            "metric": "mae",
            "mean": pl.Series([mean] * len(learners), dtype=pl.Float64),
            "low": 0.0,
            "high": 1.0,
            "users": 7,
            "users_without_relevant": 0,
        }
    )


def rows(file: Path) -> list[tuple[str, str, float | None]]:
    with duckdb.connect(str(file), read_only=True) as connection:
        return connection.sql(
            "SELECT evaluation_id, learner, mean FROM evaluation_summary ORDER BY ALL"
        ).fetchall()


def test_a_rerun_replaces_its_own_rows_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.duckdb"
    write_evaluation(file, "one", {"evaluation_summary": summary(0.5)})
    write_evaluation(file, "two", {"evaluation_summary": summary(0.6, ("A",))})
    write_evaluation(file, "one", {"evaluation_summary": summary(None, ("A",))})
    assert rows(file) == [("one", "A", None), ("two", "A", 0.6)]


def test_rows_that_do_not_fit_leave_everything_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.duckdb"
    write_evaluation(file, "one", {"evaluation_summary": summary(0.5, ("A",))})
    with pytest.raises(duckdb.Error, match="surprise"):
        write_evaluation(file, "one", {"evaluation_summary": summary(0.7).with_columns(surprise=1)})
    assert rows(file) == [("one", "A", 0.5)]
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.duckdb"]


def test_who_reads_the_file_neither_waits_nor_stands_in_the_way(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.duckdb"
    write_evaluation(file, "one", {"evaluation_summary": summary(0.5, ("A",))})
    with duckdb.connect(str(file), read_only=True) as reader:
        write_evaluation(file, "one", {"evaluation_summary": summary(0.7, ("A",))})
        assert reader.sql("SELECT mean FROM evaluation_summary").fetchall() == [(0.5,)]
    assert rows(file) == [("one", "A", 0.7)]
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.duckdb"]


def test_a_table_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="summaries"):
        write_evaluation(tmp_path / "evaluations.duckdb", "one", {"summaries": summary(0.5)})
