"""Rows of analyses of experiments in the workspace."""

import duckdb
import polars as pl
import pytest

from recsys_meta.store.experiments import EXPERIMENTS_FILE, write_experiment

ROW = {
    "metric": "plays",
    "analysis": "by user",
    "draws": 10,
    "users": 5,
    "false_positives": 1,
    "rate": 0.1,
    "rate_low": 0.0,
    "rate_high": 0.4,
    "uniform_p_value": 0.5,
}


def test_a_rerun_replaces_its_own_rows_and_leaves_the_others(tmp_path) -> None:
    file = tmp_path / EXPERIMENTS_FILE
    for id, draws in (("one", 10), ("two", 20), ("one", 30)):
        write_experiment(file, id, {"experiment_aa": pl.DataFrame([{**ROW, "draws": draws}])})
    with duckdb.connect(str(file), read_only=True) as connection:
        rows = connection.sql("SELECT experiment_id, draws FROM experiment_aa ORDER BY ALL").fetchall()
    assert rows == [("one", 30), ("two", 20)]


def test_a_table_of_another_name_is_refused_with_the_file_untouched(tmp_path) -> None:
    file = tmp_path / EXPERIMENTS_FILE
    with pytest.raises(ValueError, match="experiment_effects"):
        write_experiment(file, "one", {"effects": pl.DataFrame([ROW])})
    assert not file.exists()
