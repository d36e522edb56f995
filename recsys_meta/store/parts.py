"""Long work in parts: a run's tables are written as Parquet files, shard by shard, so that a rerun goes on where it was."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import polars as pl

from recsys_meta import tables
from recsys_meta.store.atomic import (
    fsync_path,
    remove_leftovers,
    write_bytes_atomically,
)
from recsys_meta.store.fingerprint import sha256_of
from recsys_meta.store.manifest import Damaged, Manifest, read_manifest

SCORES = "scores"
USER_STATUS = "user_status"
USER_VECTORS = "user_vectors"
QUARANTINE = "quarantine"
PUBLISHED = "published"
PUBLICATION = "publication-"  # begins the names of the folders that it may lead to
SCORES_FILE = "scores.duckdb"

# The tables whose columns and types are fixed; any other table may be written in parts as it comes.
SCHEMAS: Mapping[str, Mapping[str, type[pl.DataType] | pl.DataType]] = {
    SCORES: tables.SCORES,
    USER_STATUS: tables.USER_STATUS,
    USER_VECTORS: tables.USER_VECTORS,
    QUARANTINE: tables.QUARANTINE,
}

# Parts lie in this order; where they follow each other in it too, as a night writes them, nothing is left to sort.
_ORDERS: Mapping[str, list[str]] = {
    SCORES: [tables.USER_ID, "rank"],
    USER_STATUS: [tables.USER_ID],
    USER_VECTORS: [tables.USER_ID],
}

_TABLE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FINGERPRINT = "fingerprint.json"
_FINISHED = "finished"  # holds one record per finished shard


class RunFolder:
    """The folder of one run: ``parts/`` while it works, ``published/`` once it is published.

    Writing is for the process that holds the workspace's lock; reading is for everybody.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name
        self.parts = path / "parts"
        self.published = path / PUBLISHED  # a link to the publication in force
        self.scores = self.published / SCORES_FILE

    def begin(self, fingerprint: str) -> None:
        """Starts or resumes a run made from ``fingerprint`` (of config, data and model).

        Parts made from anything else are dropped; so is what a killed attempt left half-written.
        """
        self.clean()
        if self.fingerprint() != fingerprint:
            if self.parts.exists():
                # Its name first: what a kill leaves of the old parts belongs to no fingerprint.
                (self.parts / _FINGERPRINT).unlink(missing_ok=True)
                fsync_path(self.parts)
                rmtree(self.parts)
            self.parts.mkdir(parents=True)
            write_bytes_atomically(self.parts / _FINGERPRINT, json.dumps(fingerprint).encode())
        (self.parts / _FINISHED).mkdir(exist_ok=True)

    def fingerprint(self) -> str | None:
        """What the parts at hand were made from; None where there are none."""
        fingerprint: str | None = _read(self.parts / _FINGERPRINT)
        return fingerprint

    def manifest(self) -> Manifest:
        """The manifest of the publication in force of this run. Raises Damaged where it is not as it was written."""
        manifest = read_manifest(self.published)
        if manifest.record["run_id"] != self.run_id:
            raise Damaged(
                f"{self.published}: holds run {manifest.record['run_id']!r}, expected {self.run_id!r}"
            )
        return manifest

    def clean(self) -> None:
        """Removes the temporary files of killed attempts."""
        for folder in (self.path, self.parts, *(path for path in self.parts.glob("*") if path.is_dir())):
            remove_leftovers(folder)

    def write_part(self, table: str, number: int, frame: pl.DataFrame) -> None:
        """Writes what shard ``number`` gives to ``table``, by user and rank; replaces an earlier such part. Durable on return.

        Raises ValueError or TypeError where a column of a fixed table is missing, unknown or of another type, OSError where the
        disk refuses.
        """
        frame = as_declared(table, frame)
        if table in _ORDERS:
            frame = frame.sort(_ORDERS[table], maintain_order=True)
        path = self._part(table, number)
        path.parent.mkdir(exist_ok=True)
        # A part that is written again is unfinished until its new record stands.
        self._finished(number).unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        # In memory first: a disk that is full then says so with an OSError, and not in a library's own words.
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        data = buffer.getvalue()
        record = {"rows": frame.height, "sha256": hashlib.sha256(data).hexdigest()}
        write_bytes_atomically(path, data)
        write_bytes_atomically(path.with_suffix(".json"), json.dumps(record).encode())

    def finish_shard(self, number: int, summary: Mapping[str, object]) -> None:
        """Records that shard ``number`` has written all its parts. ``summary``: anything JSON, given back by ``shards``."""
        record = {
            "tables": [table for table in self.tables() if self._recorded(table, number)],
            "summary": summary,
        }
        write_bytes_atomically(self._finished(number), json.dumps(record).encode())

    def finished(self, number: int) -> bool:
        """Whether shard ``number`` has recorded its end and its parts are what was written; one that is damaged is made anew."""
        record = _read(self._finished(number))
        names = record.get("tables") if isinstance(record, dict) and "summary" in record else None
        return isinstance(names, list) and all(
            isinstance(name, str) and _TABLE.fullmatch(name) and self._intact(self._part(name, number))
            for name in names
        )

    def shards(self) -> dict[int, dict[str, Any]]:
        """The summaries of all finished shards, by number."""
        numbers = sorted(int(path.stem) for path in (self.parts / _FINISHED).glob("[0-9]*.json"))
        return {
            number: _read(self._finished(number))["summary"] for number in numbers if self.finished(number)
        }

    def tables(self) -> list[str]:
        """The tables of which a part was begun, by name."""
        folders = (path.name for path in self.parts.glob("*") if path.is_dir())
        return sorted(name for name in folders if name != _FINISHED)

    def part_files(self, table: str) -> list[Path]:
        """The recorded parts of a table, in the order of their numbers."""
        files = sorted((self.parts / _checked(table)).glob("[0-9]*.parquet"), key=lambda path: int(path.stem))
        return [path for path in files if path.with_suffix(".json").exists()]

    def scan(self, table: str) -> pl.LazyFrame:
        """The recorded parts of a table, one after the other. Raises FileNotFoundError where there is none."""
        files = self.part_files(table)
        if not files:
            raise FileNotFoundError(
                f"{self.parts}: no recorded part of table {table!r}, found {self.tables()}"
            )
        return pl.scan_parquet(files, glob=False, hive_partitioning=False)

    def verify_parts(self, table: str) -> None:
        """Raises Damaged where a recorded part is not what was written; it is dropped, so that a rerun makes it anew."""
        for path in self.part_files(table):
            if not self._intact(path):
                path.with_suffix(".json").unlink()
                raise Damaged(
                    f"{path}: not the part that was written; dropped, the same command again makes it anew"
                )

    def _part(self, table: str, number: int) -> Path:
        return self.parts / _checked(table) / f"{_counted(number):06d}.parquet"

    def _finished(self, number: int) -> Path:
        return self.parts / _FINISHED / f"{_counted(number):06d}.json"

    def _intact(self, path: Path) -> bool:
        record = _read(path.with_suffix(".json"))
        return isinstance(record, dict) and path.exists() and record.get("sha256") == sha256_of(path)

    def _recorded(self, table: str, number: int) -> bool:
        path = self._part(table, number)
        return path.exists() and path.with_suffix(".json").exists()


def as_declared(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of a fixed table in their declared order; a frame of any other table as it is.

    Raises ValueError where a column is missing or unknown, TypeError where one is of another type.
    """
    schema = SCHEMAS.get(table)
    if schema is None:
        return frame
    if set(frame.columns) != set(schema):
        missing, unknown = sorted(set(schema) - set(frame.columns)), sorted(set(frame.columns) - set(schema))
        raise ValueError(f"table {table}: missing columns {missing}, unknown columns {unknown}")
    for name, expected in schema.items():
        found = frame.schema[name]
        if not (is_id(found) if expected == tables.ID else found == expected):
            wanted = "an integer or string type" if expected == tables.ID else expected
            raise TypeError(f"table {table}, column {name}: found {found}, expected {wanted}")
    return frame.select(list(schema))


def is_id(dtype: pl.DataType) -> bool:
    """Whether ids may be of this type: integers of up to 64 bits, and strings."""
    return dtype == pl.String or (dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128))


def _checked(table: str) -> str:
    if not _TABLE.fullmatch(table) or table == _FINISHED:
        raise ValueError(f"table {table!r}: expected lower case letters, digits and _")
    return table


def _counted(number: int) -> int:
    if number < 0:
        raise ValueError(f"shard {number}: expected 0 or more")
    return number


def _read(path: Path) -> Any:
    """The content of a JSON file; None where there is no file, or one that is damaged: it counts for nothing."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
