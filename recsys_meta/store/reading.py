"""Reading a published file: read-only, and with a name for what a reader who opened it for writing does to everybody else."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb


class HeldForWriting(OSError):
    """Another process holds the file for writing, so that nobody else may open it now."""


@contextmanager
def reading(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to this file, which no link need lead to any more once it is open. Raises HeldForWriting."""
    path = path.resolve(strict=True)
    try:
        connection = duckdb.connect(str(path), read_only=True)
    except duckdb.IOException as error:
        if "Could not set lock" not in str(error):
            raise
        raise HeldForWriting(str(error).splitlines()[0]) from error
    with closing(connection):
        yield connection
