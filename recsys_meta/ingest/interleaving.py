"""Rankings that are to be merged, and lists that were: rows of any source, checked one by one."""

from collections.abc import Sequence

import polars as pl

from recsys_meta.ingest.instants import instants
from recsys_meta.ingest.quarantine import Checked, no_faults, quarantined
from recsys_meta.ingest.sources import POSITION as ROW
from recsys_meta.ingest.sources import InputError, Rows, Source, read
from recsys_meta.tables import INTERLEAVED, ITEM_ID, TEAMS, USER_ID

_Rule = tuple[str, pl.Expr, str]  # the column at fault, where it is, and why


def read_ranking(
    source: Source,
    *,
    user_id: str = "user_id",
    item_id: str = "item_id",
    score: str | None = "score",
    rank: str | None = None,
    max_quarantined_share: float = 0.01,
) -> Checked:
    """Reads what a ranker has for every user. The names are those of columns of the source.

    score: the largest is the best; rank: the smallest; exactly one of them.
    The table has ``tables.USER_ID``, ``tables.ITEM_ID`` (of the types they came with) and "order" (Float64, smallest first).

    Rows without user or item, with an order that is no finite number, and all but the first row of an item of a user go to
    quarantine. Raises InputError for missing or impossible columns and a larger share of bad rows than ``max_quarantined_share``.
    """
    if (score is None) == (rank is None):
        raise ValueError("expected either a column of scores or one of ranks")
    column = score if rank is None else rank
    assert column is not None
    rows = read(source, [column], ids=[user_id, item_id])
    table = rows.table.select(
        ROW,
        _id(rows, user_id).alias(USER_ID),
        _id(rows, item_id).alias(ITEM_ID),
        (_number(rows, column) * (1.0 if rank is not None else -1.0)).alias("order"),
    )
    rules = [
        (user_id, pl.col(USER_ID).is_null(), "is missing; expected the id of a user"),
        (item_id, pl.col(ITEM_ID).is_null(), "is missing; expected the id of an item"),
        (column, ~pl.col("order").is_finite().fill_null(False), "is no finite number"),
        (item_id, _again(USER_ID, ITEM_ID), "stands in the ranking of this user already"),
    ]
    return _checked(rows, table, rules, max_quarantined_share)


def read_interleaved(
    source: Source,
    *,
    day: str = "day",
    user_id: str = "user_id",
    item_id: str = "item_id",
    position: str = "position",
    team: str = "team",
    max_quarantined_share: float = 0.01,
) -> Checked:
    """Reads merged lists into ``tables.INTERLEAVED``. The names are those of columns of the source.

    Rows without day, user, item or position, of a team that is neither A nor B (missing: neither is credited), and all but the
    first row of an item or a position of a list go to quarantine. Raises InputError as ``read_ranking`` does.
    """
    rows = read(source, [day, position, team], ids=[user_id, item_id])
    found = rows.table
    cells = _text(found[team])
    places = _number(rows, position)
    table = found.select(
        ROW,
        instants(found[day], "auto", f"{rows.files[0]}: column {day!r}").times.dt.date().alias("day"),
        _id(rows, user_id).alias(USER_ID),
        places.set(~(places >= 1) | (places % 1 != 0) | (places >= 2**31), None)
        .cast(pl.Int32)
        .alias("position"),
        _id(rows, item_id).alias(ITEM_ID),
        cells.alias("team"),
    )
    rules = [
        (day, pl.col("day").is_null(), "is no day between the years 1 and 9999"),
        (user_id, pl.col(USER_ID).is_null(), "is missing; expected the id of a user"),
        (item_id, pl.col(ITEM_ID).is_null(), "is missing; expected the id of an item"),
        (position, pl.col("position").is_null(), "is no whole number from 1 on"),
        (team, ~pl.col("team").is_in(TEAMS), "is neither A nor B; expected one of them, or none"),
        (item_id, _again("day", USER_ID, ITEM_ID), "stands in this list already"),
        (position, _again("day", USER_ID, "position"), "stands in this list already"),
    ]
    checked = _checked(rows, table, rules, max_quarantined_share)
    return checked._replace(table=checked.table.select(INTERLEAVED.keys()))


def _again(*names: str) -> pl.Expr:
    return ~pl.struct(*names).is_first_distinct()


def _id(rows: Rows, column: str) -> pl.Series:
    """Ids; an empty text is none."""
    ids = rows.table[column]
    return ids.set(ids == "", None) if ids.dtype == pl.String else ids


def _text(cells: pl.Series) -> pl.Series:
    """Texts; an empty one is none."""
    text = cells.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _number(rows: Rows, column: str) -> pl.Series:
    """Numbers; null where a cell is none."""
    cells = rows.table[column]
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
    elif not (cells.dtype.is_numeric() or cells.dtype == pl.Null):
        raise InputError(f"{rows.files[0]}: column {column!r} is of type {cells.dtype}; expected numbers")
    return cells.cast(pl.Float64, strict=False)


def _checked(rows: Rows, table: pl.DataFrame, rules: Sequence[_Rule], max_share: float) -> Checked:
    """The rows without a fault; the others in quarantine, each with its first one."""
    found = [no_faults()]
    for column, is_wrong, reason in rules:
        at_fault = table.filter(is_wrong)
        found.append(at_fault.select(ROW, column=pl.lit(column), reason=pl.lit(reason)))
    faults = pl.concat(found).unique(ROW, keep="first", maintain_order=True)
    quarantine = quarantined(rows, faults, max_share)
    good = table.join(faults.select(ROW), on=ROW, how="anti", maintain_order="left")
    counts = {
        "rows_read": table.height,
        "rows_not_selected": rows.left_out,
        "rows_kept": good.height,
        "rows_quarantined": quarantine.height,
    }
    return Checked(good.drop(ROW), quarantine, counts)
