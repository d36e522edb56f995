"""Interactions: rows of any source, checked one by one, as one row per event with the columns of ``tables``."""

import logging
from datetime import UTC, datetime
from typing import Any, Literal

import dataframely as dy
import polars as pl

from recsys_meta.ingest.instants import TimeUnit, instants
from recsys_meta.ingest.quarantine import Checked, no_faults, quarantined
from recsys_meta.ingest.sources import POSITION, InputError, Rows, Source, read
from recsys_meta.tables import ITEM_ID, TIMESTAMP, USER_ID, VALUE

Duplicates = Literal["newest", "first", "mean", "keep"]

logger = logging.getLogger(__name__)

LARGEST = 3.4028234663852886e38  # of Float32


def read_interactions(
    source: Source,
    *,
    user_id: str = "user_id",
    item_id: str = "item_id",
    value: str | None = None,
    timestamp: str | None = None,
    time_unit: TimeUnit = "auto",
    value_range: tuple[float, float] | None = None,
    moment: datetime | None = None,
    later: Literal["quarantine", "drop"] = "quarantine",
    duplicates: Duplicates = "newest",
    max_quarantined_share: float = 0.01,
) -> Checked:
    """Reads and checks interactions. ``user_id``, ``item_id``, ``value`` and ``timestamp`` name the columns of the source.

    The table has ``tables.USER_ID`` and ``ITEM_ID`` (of the type they came with), ``VALUE`` (Float32; 1.0 without a value column)
    and, where a timestamp column is named, ``TIMESTAMP``; its rows keep the order of the source.

    time_unit: of numbers; "auto" guesses s, ms or us by their size. Times without a zone are read as UTC; both is counted.
    value_range: values outside it, bounds included, go to quarantine, as do missing ids, missing or unreadable values and times,
        NaN and infinity; each row once, with the first of its faults.
    moment: rows later than it are not of tonight (a naive one is read as UTC): set aside, or dropped and only counted.
    duplicates: rows alike in everything are collapsed. Of rows of the same user and item that differ in value or time stays the
        newest (the last row where time is unknown or the same), the first (oldest; first row), or their mean value at the newest
        time; "keep" keeps them all, as befits repeated clicks.

    ``counts``: rows_read (= rows_kept + rows_quarantined + exact_duplicates + merged_duplicates, + later_than_moment if dropped),
    rows_not_selected (by ``where``), later_than_moment, timestamps_read_as_<unit>, naive_timestamps_read_as_utc.

    Raises InputError for a column that is missing or of an impossible type, unreadable files, and where a larger share
    of the rows than ``max_quarantined_share`` is at fault. An empty source is no error.
    """
    names = {USER_ID: user_id, ITEM_ID: item_id}
    names |= {VALUE: value} if value is not None else {}
    names |= {TIMESTAMP: timestamp} if timestamp is not None else {}
    rows = read(source, tuple(names.values()), ids=(user_id, item_id))
    told: dict[str, int] = {}
    columns = [rows.table[POSITION], rows.table[user_id].alias(USER_ID), rows.table[item_id].alias(ITEM_ID)]
    if value is not None:
        columns.append(_numbers(rows.table[value], f"{rows.files[0]}: column {value!r}").alias(VALUE))
    if timestamp is not None:
        read_times = instants(rows.table[timestamp], time_unit, f"{rows.files[0]}: column {timestamp!r}")
        columns.append(read_times.times.alias(TIMESTAMP))
        told[f"timestamps_read_as_{read_times.unit}"] = len(read_times.times) - read_times.times.null_count()
        told["naive_timestamps_read_as_utc"] = read_times.naive
        logger.info("%s: column %r read as %s", rows.files[0], timestamp, read_times.unit)
        newest = read_times.times.max()
        if isinstance(newest, datetime) and time_unit == "auto" and newest.year == 1970:
            logger.warning(
                "%s: column %r: read as %s, all times lie in 1970, the last one at %s; expected numbers since 1970, no dates such"
                " as 20180604 (if it is right, say interactions.time_unit)",
                rows.files[0],
                timestamp,
                read_times.unit,
                newest,
            )
        if read_times.naive:
            logger.warning(
                "%s: column %r: %s times have no zone and are read as UTC",
                rows.files[0],
                timestamp,
                f"{read_times.naive:,}",
            )

    typed = pl.DataFrame(columns)
    later_rows = 0
    if moment is not None and timestamp is not None:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        is_later = (typed[TIMESTAMP] > moment).fill_null(False)
        later_rows = int(is_later.sum())
        if later == "drop":
            typed = typed.filter(~is_later)
    schema = _schema(typed.schema, value_range or (-LARGEST, LARGEST), moment)
    good, failure = schema.filter(typed)
    faults = _faults(failure.details(), names, rows, value_range)
    quarantine = quarantined(rows, faults, max_quarantined_share)

    table, exact, merged = _once(good, duplicates)
    if VALUE not in table.columns:
        table = table.with_columns(pl.lit(1.0).alias(VALUE))
    order = [name for name in (USER_ID, ITEM_ID, VALUE, TIMESTAMP) if name in table.columns]
    counts = {
        "rows_read": rows.table.height,
        "rows_not_selected": rows.left_out,
        "rows_kept": table.height,
        "rows_quarantined": quarantine.height,
        "exact_duplicates": exact,
        "merged_duplicates": merged,
        "later_than_moment": later_rows,
        **told,
    }
    return Checked(table.select(order).with_columns(pl.col(VALUE).cast(pl.Float32)), quarantine, counts)


def _numbers(cells: pl.Series, where: str) -> pl.Series:
    """Values as Float64; null where a cell of text is no number."""
    if cells.dtype == pl.String:
        return cells.str.strip_chars().cast(pl.Float64, strict=False)
    if cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null):
        return cells.cast(pl.Float64)
    raise InputError(f"{where} is of type {cells.dtype}; expected numbers")


def _schema(types: pl.Schema, value_range: tuple[float, float], moment: datetime | None) -> type[dy.Schema]:
    """The checks, for ids of these types."""
    columns: dict[str, Any] = {POSITION: dy.Int64()}
    for name in (USER_ID, ITEM_ID):
        columns[name] = (
            dy.String(min_length=1) if types[name] == pl.String else getattr(dy, str(types[name]))()
        )
    if VALUE in types:
        columns[VALUE] = dy.Float64(min=value_range[0], max=value_range[1], allow_inf=False, allow_nan=False)
    if TIMESTAMP in types:
        columns[TIMESTAMP] = dy.Datetime(time_unit="us", time_zone="UTC", max=moment)
    return type("Interactions", (dy.Schema,), columns)


def _faults(
    details: pl.DataFrame, names: dict[str, str], rows: Rows, value_range: tuple[float, float] | None
) -> pl.DataFrame:
    """The first fault of every row that failed: POSITION, the column of the source, the reason."""
    allowed = (
        f"is outside {value_range[0]:g} to {value_range[1]:g}" if value_range else "is too large for 32 bits"
    )
    reasons = {
        f"{VALUE}|nan": "is NaN",
        f"{VALUE}|inf": "is infinite",
        f"{VALUE}|min": allowed,
        f"{VALUE}|max": allowed,
        f"{TIMESTAMP}|max": "is later than the moment of the run",
        **{f"{name}|min_length": "is empty" for name in (USER_ID, ITEM_ID)},
    }
    failed = rows.table.filter(pl.col(POSITION).is_in(details[POSITION].implode()))
    found = [no_faults()]
    for name, column in names.items():
        empty = details.join(
            failed.select(POSITION, raw=pl.col(column).cast(pl.String, strict=False)), on=POSITION
        )
        missing = empty["raw"].is_null() | (empty["raw"].str.strip_chars() == "")
        unread = "is not a number" if name == VALUE else "is not a time between the years 1 and 9999"
        rules = [f"{name}|nullability", *(rule for rule in reasons if rule.startswith(f"{name}|"))]
        reason = pl.coalesce(
            pl.when(pl.col(rule) == "invalid").then(
                pl.when(missing).then(pl.lit("is missing")).otherwise(pl.lit(unread))
                if rule.endswith("|nullability")
                else pl.lit(reasons[rule])
            )
            for rule in rules
            if rule in details.columns
        )
        found.append(empty.select(POSITION, column=pl.lit(column), reason=reason).drop_nulls())
    return pl.concat(found).unique(POSITION, keep="first", maintain_order=True)


def _once(table: pl.DataFrame, duplicates: Duplicates) -> tuple[pl.DataFrame, int, int]:
    """The table without duplicates and POSITION, the number of exact ones taken out, and of those merged by the rule."""
    pair = [USER_ID, ITEM_ID]
    # A sorted hash finds the few pairs that may stand twice, much faster than comparing all of them would.
    hashes = table.select(pl.struct(pair).hash()).to_series()
    in_order = hashes.sort()
    twice = in_order.filter(in_order == in_order.shift(1)).unique()
    if twice.is_empty():
        return table.drop(POSITION), 0, 0
    several = hashes.is_in(twice.implode())
    suspects = table.filter(several)
    distinct = suspects.unique(
        [name for name in table.columns if name != POSITION], keep="first", maintain_order=True
    )
    by_age = [name for name in (TIMESTAMP, POSITION) if name in table.columns]
    match duplicates:
        case "newest":
            settled = distinct.sort(by_age).unique(pair, keep="last", maintain_order=True)
        case "first":
            settled = distinct.sort(by_age).unique(pair, keep="first", maintain_order=True)
        case "mean":
            newest = [pl.col(TIMESTAMP).max()] if TIMESTAMP in table.columns else []
            mean = [pl.col(VALUE).mean()] if VALUE in table.columns else []
            settled = distinct.group_by(pair, maintain_order=True).agg(
                pl.col(POSITION).first(), *mean, *newest
            )
        case "keep":
            settled = distinct
    exact, merged = suspects.height - distinct.height, distinct.height - settled.height
    if duplicates == "mean":
        kept = pl.concat([table.filter(~several), settled.select(table.columns)]).sort(POSITION)
    else:
        kept = table.filter(~several | table[POSITION].is_in(settled[POSITION].implode()))
    return kept.drop(POSITION), exact, merged
