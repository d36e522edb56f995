"""What a check leaves: the good rows, the bad ones with file, row, column and reason, and the counts of both."""

from typing import NamedTuple

import polars as pl

from recsys_meta.ingest.sources import POSITION, InputError, Rows
from recsys_meta.tables import QUARANTINE


class Checked(NamedTuple):
    """Checked rows, the rows set aside, and what was counted on the way."""

    table: pl.DataFrame
    quarantine: pl.DataFrame  # tables.QUARANTINE without run_id, in the order of the input
    counts: dict[str, int]


def quarantined(rows: Rows, faults: pl.DataFrame, max_share: float) -> pl.DataFrame:
    """The quarantine of these faults (POSITION, "column", "reason"), each with its file, row and the row as JSON.

    Raises InputError, with the most frequent reasons and an example of each, where more than ``max_share`` of the rows
    are at fault.
    """
    faults = faults.sort(POSITION, maintain_order=True)
    bad = faults.select(POSITION).unique(maintain_order=True)
    if bad.height > max_share * rows.table.height:
        _refuse(rows, faults, bad.height, max_share)
    content = bad.join(rows.table, on=POSITION, how="left", maintain_order="left")
    raw = content.select(POSITION, raw=pl.struct(pl.exclude(POSITION)).struct.json_encode())
    table = rows.origin(faults[POSITION]).with_columns(
        faults["column"],
        faults["reason"],
        faults.join(raw, on=POSITION, how="left", maintain_order="left")["raw"],
    )
    types = {name: dtype for name, dtype in QUARANTINE.items() if name != "run_id"}
    return table.select(pl.col(name).cast(dtype) for name, dtype in types.items())


def no_faults() -> pl.DataFrame:
    """An empty table of faults."""
    return pl.DataFrame(schema={POSITION: pl.Int64, "column": pl.String, "reason": pl.String})


def _refuse(rows: Rows, faults: pl.DataFrame, bad: int, max_share: float) -> None:
    reasons = (
        faults.group_by("column", "reason", maintain_order=True)
        .agg(pl.len(), pl.col(POSITION).first())
        .sort("len", descending=True, maintain_order=True)
        .head(3)
    )
    told = []
    for column, reason, count, position in reasons.iter_rows():
        row = rows.table.filter(pl.col(POSITION) == position).drop(POSITION).to_dicts()[0]
        told.append(f"{count} times column {column!r} {reason} (first in {rows.place(position)}: {row})")
    files = f"{rows.files[0]}{' and the files beside it' if len(rows.files) > 1 else ''}"
    raise InputError(
        f"{files}: {bad} of {rows.table.height} rows are at fault, more than the share of {max_share:.2%} that"
        f" max_quarantined_share allows: {'; '.join(told)}"
    )
