"""Reading a published file: who holds it for writing is told apart from a file that cannot be read at all."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from recsys_meta.store.reading import HeldForWriting, reading

HOLDER = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_a_file_that_another_process_holds_for_writing_has_a_name_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a.duckdb"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldForWriting, match="Could not set lock") as held, reading(file):
            pass
        assert "\n" not in str(held.value)
        holder.communicate("")
    with reading(file) as connection:
        assert connection.sql("SELECT 1").fetchall() == [(1,)]


def test_what_is_no_database_is_told_in_the_words_of_duckdb(tmp_path: Path) -> None:
    (tmp_path / "none.duckdb").write_bytes(b"no database" * 1000)
    with pytest.raises(duckdb.Error, match="not a valid DuckDB"), reading(tmp_path / "none.duckdb"):
        pass
