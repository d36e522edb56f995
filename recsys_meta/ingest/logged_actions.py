"""Logged actions: rows of any source, checked one by one, with the columns that off-policy evaluation knows."""

from collections.abc import Mapping, Sequence

import polars as pl

from recsys_meta.ingest.quarantine import Checked, no_faults, quarantined
from recsys_meta.ingest.sources import POSITION as ROW
from recsys_meta.ingest.sources import InputError, Source, read
from recsys_meta.tables import ITEM_ID, USER_ID

_IDS = (ITEM_ID, USER_ID, "position", "slate_id")


def read_logged_actions(
    source: Source,
    *,
    item_id: str = "item_id",
    reward: str = "reward",
    propensity: str | None = None,
    user_id: str | None = None,
    position: str | None = None,
    slate_id: str | None = None,
    context: Sequence[str] = (),
    embedding: Sequence[str] = (),
    probabilities: Sequence[str] = (),
    actions: pl.Series | None = None,
    max_quarantined_share: float = 0.01,
) -> Checked:
    """Reads and checks logged actions; the arguments name the columns of the source, None says that there is no such column.

    The table has ``item_id``, ``reward`` (Float64) and, where named, ``propensity`` (Float64), ``user_id``, ``position`` and
    ``slate_id`` under these names; context and embedding (of the item) under the names they have. Rows keep their order.

    probabilities: columns of what other policies make of the logged actions, read as numbers under the names they have.
    actions: every item that could be shown; None: whatever occurs.

    To quarantine go rows without an item, user, position or slate; with a reward that is missing, no number or infinite; with
    a propensity that is missing or outside (0, 1]; with an item that is no action; and all but the first row of a position of
    a slate. Raises InputError for a column that is missing or of an impossible type, unreadable files, and where a larger share
    of the rows than ``max_quarantined_share`` is at fault.
    """
    ids = {ITEM_ID: item_id} | {
        name: column
        for name, column in ((USER_ID, user_id), ("position", position), ("slate_id", slate_id))
        if column is not None
    }
    numbers = {"reward": reward} | ({"propensity": propensity} if propensity is not None else {})
    numbers |= {column: column for column in probabilities}
    others = tuple(dict.fromkeys((*context, *embedding)))
    strange = sorted(set(others) & {*ids, *numbers} - {*ids.values(), *numbers.values()})
    if strange:
        raise InputError(
            f"context or embedding columns {strange} are called as the logs' own; expected other names"
        )
    rows = read(source, (*numbers.values(), *others), ids=tuple(ids.values()))
    where = rows.files[0]
    for column in numbers.values():
        dtype = rows.table.schema[column]
        if not (dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.Null)):
            raise InputError(f"{where}: column {column!r} is of type {dtype}; expected numbers")
    table = rows.table.select(
        ROW,
        *(pl.col(column).alias(name) for name, column in ids.items()),
        *(_number(rows.table.schema[column], column).alias(name) for name, column in numbers.items()),
        *(pl.col(column) for column in others if column not in ids),
    )
    faults = _faults(table, {**ids, **numbers}, actions, where)
    quarantine = quarantined(rows, faults, max_quarantined_share)
    good = table.join(faults.select(ROW), on=ROW, how="anti", maintain_order="left") if len(faults) else table
    counts = {
        "rows_read": rows.table.height,
        "rows_not_selected": rows.left_out,
        "rows_kept": good.height,
        "rows_quarantined": quarantine.height,
    }
    return Checked(good.drop(ROW), quarantine, counts)


def read_rows(source: Source, columns: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
    """Rows as they stand, for tables that somebody else checks, as those of a policy. Raises InputError as ``read`` does."""
    return read(source, columns, ids=ids).table.drop(ROW)


def _number(dtype: pl.DataType, column: str) -> pl.Expr:
    cells = pl.col(column)
    return (cells.str.strip_chars() if dtype == pl.String else cells).cast(pl.Float64, strict=False)


def _faults(
    table: pl.DataFrame, columns: Mapping[str, str], actions: pl.Series | None, where: str
) -> pl.DataFrame:
    """The first fault of every row at fault: its place, the column of the source, the reason."""
    rules: list[tuple[str, pl.Expr, str]] = [
        (
            name,
            pl.col(name).is_null(),
            "is missing" if name in _IDS else "is missing or no number",
        )
        for name in columns
    ]
    rules.append(("reward", ~pl.col("reward").is_finite(), "is not finite"))
    for name in sorted(set(columns) - {*_IDS, "reward", "propensity"}):
        rules.append((name, ~pl.col(name).is_between(0, 1), "is outside [0, 1]: no probability"))
    if "propensity" in columns:
        inside = (pl.col("propensity") > 0) & (pl.col("propensity") <= 1)
        rules.append(("propensity", ~inside, "is outside (0, 1]: no probability of something that happened"))
    if actions is not None:
        dtype = table.schema[ITEM_ID]
        if actions.dtype != dtype and not (actions.dtype.is_integer() and dtype.is_integer()):
            raise InputError(
                f"{where}: item ids are {dtype}, and {actions.dtype} in the table of actions; expected one type"
            )
        known = (
            actions.cast(dtype, strict=False).drop_nulls().implode()
        )  # what does not fit is nothing that was logged
        rules.append((ITEM_ID, ~pl.col(ITEM_ID).is_in(known), f"is none of the {len(actions):,} actions"))
    if "slate_id" in columns and "position" in columns:
        again = ~pl.struct("slate_id", "position").is_first_distinct()
        rules.append(("position", again, "stands in this slate already"))
    found = [no_faults()]
    for name, is_wrong, reason in rules:
        at_fault = table.filter(is_wrong)
        found.append(at_fault.select(ROW, column=pl.lit(columns[name]), reason=pl.lit(reason)))
    return pl.concat(found).unique(ROW, keep="first", maintain_order=True)
