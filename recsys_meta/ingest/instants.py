"""Times as files write them (datetimes, dates, ISO text, counts of seconds or parts of it) read as instants in UTC."""

from typing import Literal, NamedTuple

import polars as pl

from recsys_meta.ingest.sources import InputError
from recsys_meta.tables import INSTANT

TimeUnit = Literal["s", "ms", "us", "iso", "auto"]

EARLIEST, LATEST = (
    -62_135_596_800_000_000,
    253_402_300_799_999_999,
)  # microseconds: the years 1 to 9999, what datetime can hold
PER_MICROSECOND = {"s": 1_000_000, "ms": 1_000, "us": 1}
# With and without an offset from UTC; the space of SQL and the T of ISO 8601; seconds or parts of them may be left out.
ISO_FORMATS = tuple(
    (f"%Y-%m-%d{between}{clock}{offset}", offset != "")
    for offset in ("", "%#z", " %#z")
    for between, clock in (("T", "%H:%M:%S%.f"), (" ", "%H:%M:%S%.f"), ("T", "%H:%M"), (" ", "%H:%M"))
)


class Instants(NamedTuple):
    """The times read, and how."""

    times: pl.Series  # tables.INSTANT; null where a cell is missing or no time
    unit: str  # "s", "ms", "us", "iso", or "datetime" where the column held datetimes
    naive: int  # datetimes without a zone, read as UTC


def instants(cells: pl.Series, unit: TimeUnit, where: str) -> Instants:
    """Reads a column of times. Numbers are of this unit; "auto" guesses it by their size. ``where`` names the column in messages.

    Raises InputError for a type that holds no times, and for numbers too large for every unit.
    """
    dtype = cells.dtype
    if isinstance(dtype, pl.Datetime):
        naive = len(cells) - cells.null_count() if dtype.time_zone is None else 0
        ticks = cells.to_physical()
        times = (
            _from_numbers(ticks // 1_000, "us")
            if dtype.time_unit == "ns"
            else _from_numbers(ticks, dtype.time_unit)
        )
        return Instants(times, "datetime", naive)
    if dtype == pl.Date:
        return Instants(_from_numbers(cells.to_physical().cast(pl.Int64) * 86_400, "s"), "datetime", 0)
    if dtype == pl.Null:
        return Instants(cells.cast(INSTANT), "datetime", 0)
    if dtype == pl.String:
        text = cells.str.strip_chars()
        numbers = text.cast(
            pl.Float64, strict=False
        )  # exact: microseconds stay below 2**53 until the year 2255
        if unit == "iso" or (unit == "auto" and 2 * numbers.null_count() > len(numbers) + text.null_count()):
            return _from_text(text)
        cells = numbers
    elif not dtype.is_numeric():
        raise InputError(
            f"{where} is of type {dtype}; expected a time (datetime, date, ISO text or a number of s, ms or us)"
        )
    elif unit == "iso":
        raise InputError(
            f"{where} holds numbers ({dtype}), but time_unit is 'iso'; expected 's', 'ms', 'us' or 'auto'"
        )
    if cells.dtype.is_float():
        cells = cells.set(~cells.is_finite(), None)
    known = _guessed(cells, where) if unit == "auto" else unit
    return Instants(_from_numbers(cells, known), known, 0)


def _guessed(numbers: pl.Series, where: str) -> str:
    """The unit in which the median lies between 1970 and about the year 5000."""
    median = numbers.cast(pl.Float64).abs().median()
    size = float(median) if isinstance(median, (int, float)) else 0.0
    for unit, limit in (("s", 1e11), ("ms", 1e14), ("us", 1e17)):
        if size < limit:
            return unit
    raise InputError(
        f"{where}: {size:.3g} is too large for a time in s, ms or us (nanoseconds? divide by 1000 first)"
    )


def _from_numbers(numbers: pl.Series, unit: str) -> pl.Series:
    """Instants of these numbers; null outside the years 1 to 9999, so that nothing overflows."""
    per = PER_MICROSECOND[unit]
    inside = numbers.is_between(EARLIEST / per, LATEST / per)
    if numbers.dtype.is_integer():
        ticks = numbers.set(~inside, None).cast(pl.Int64) * per
    else:
        ticks = (numbers.set(~inside, None).cast(pl.Float64) * per).round().cast(pl.Int64)
    return ticks.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _from_text(text: pl.Series) -> Instants:
    """Instants of ISO 8601 text, UTC or GMT behind it for Z; each format is tried on what the ones before left."""
    text = text.str.replace(r"\s*(?:UTC|GMT)$", "Z")
    times = pl.Series(text.name, [None], dtype=INSTANT).new_from_index(0, len(text))
    naive = 0
    for format, zoned in ISO_FORMATS:
        missing = times.null_count()
        if missing == text.null_count():
            break
        if zoned:
            parsed = text.str.to_datetime(format, strict=False, time_unit="us", time_zone="UTC")
        else:
            parsed = text.str.to_datetime(format, strict=False, time_unit="us").dt.replace_time_zone("UTC")
        times = times.zip_with(times.is_not_null(), parsed)
        naive += 0 if zoned else missing - times.null_count()
    if times.null_count() > text.null_count():
        days = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        times = times.zip_with(times.is_not_null(), days)
    return Instants(times, "iso", naive)
