"""Exposures and outcomes of an experiment: rows of any source, checked one by one, with the columns of ``tables``."""

from collections.abc import Collection, Mapping

import polars as pl

from recsys_meta.ingest.instants import TimeUnit, instants
from recsys_meta.ingest.quarantine import Checked, quarantined
from recsys_meta.ingest.sources import POSITION, InputError, Rows, Source, not_found, read
from recsys_meta.tables import ITEM_ID, USER_ID


def read_exposures(
    source: Source,
    *,
    name: str | None = None,
    experiment: str | None = "experiment",
    user_id: str = "user_id",
    variant: str = "variant",
    exposed_at: str = "exposed_at",
    time_unit: TimeUnit = "auto",
    max_quarantined_share: float = 0.01,
) -> Checked:
    """Reads the exposures of one experiment. The last five names are those of columns of the source.

    name: of the experiment; None: the only one that the table holds. experiment: None where the table has no such column.
    The table has ``tables.USER_ID`` (of the type it came with), "variant" and "exposed_at"; variants of numbers become texts.

    Rows without user, variant or time go to quarantine. Raises InputError for missing or impossible columns, an experiment that
    is not there, several where none is named, and a larger share of bad rows than ``max_quarantined_share``.
    """
    texts = [variant] if experiment is None else [variant, experiment]
    rows = read(source, [exposed_at], ids=[user_id, *texts])
    chosen = _one_experiment(rows, name, experiment)
    typed = chosen.select(
        POSITION,
        pl.col(user_id).alias(USER_ID),
        _text(variant).alias("variant"),
        _instants(chosen, rows, exposed_at, time_unit).alias("exposed_at"),
    )
    told = {USER_ID: user_id, "variant": variant, "exposed_at": exposed_at}
    return _checked(rows._replace(table=chosen), typed, told, max_quarantined_share)


def read_outcomes(
    source: Source,
    *,
    metrics: Collection[str] | None = None,
    called: str | None = None,
    user_id: str = "user_id",
    metric: str | None = "metric",
    value: str | None = "value",
    occurred_at: str = "occurred_at",
    item_id: str | None = None,
    time_unit: TimeUnit = "auto",
    max_quarantined_share: float = 0.01,
) -> Checked:
    """Reads outcomes. The last six names are those of columns of the source.

    metrics: only rows of these; None: all. called: the metric of every row, where ``metric`` is None. value: None: 1 each.
    item_id: None: nobody asks for items.
    The table has ``tables.USER_ID`` (of the type it came with), "metric", "value" and "occurred_at", and where asked for
    ``tables.ITEM_ID``, null where a row is about no item.

    Rows without user, metric or time, or with a value that is no finite number, go to quarantine. Raises InputError for missing
    or impossible columns, a metric without a single row, and a larger share of bad rows than ``max_quarantined_share``.
    """
    if (metric is None) == (called is None):
        raise ValueError("expected either a column of metrics or the name of the only one")
    ids = [name for name in (user_id, metric, item_id) if name is not None]
    rows = read(source, [name for name in (value, occurred_at) if name is not None], ids=ids)
    table = rows.table
    if metric is not None and metrics is not None:
        known = table.select(_text(metric)).to_series()
        for wanted in sorted(metrics):
            if not (known == wanted).any():
                raise InputError(
                    not_found(
                        f"{rows.files[0]}: column {metric!r}: metric",
                        wanted,
                        known.drop_nulls().unique().sort(),
                    )
                )
        # A row that names no metric is a fault, whatever is asked for.
        table = table.filter(known.is_in(list(metrics)) | known.is_null())
    typed = table.select(
        POSITION,
        pl.col(user_id).alias(USER_ID),
        (pl.lit(called) if metric is None else _text(metric)).alias("metric"),
        (pl.lit(1.0) if value is None else _number(table, rows, value)).alias("value"),
        _instants(table, rows, occurred_at, time_unit).alias("occurred_at"),
        *([] if item_id is None else [pl.col(item_id).alias(ITEM_ID)]),
    )
    told = {USER_ID: user_id, "occurred_at": occurred_at}
    told |= {} if metric is None else {"metric": metric}
    told |= {} if value is None else {"value": value}
    return _checked(rows._replace(table=table), typed, told, max_quarantined_share)


def _one_experiment(rows: Rows, name: str | None, column: str | None) -> pl.DataFrame:
    """The rows of the experiment that is meant."""
    if column is None:
        return rows.table
    found = rows.table.select(_text(column)).to_series()
    known: list[str] = found.drop_nulls().unique().sort().to_list()
    if name is None and len(known) > 1:
        raise InputError(
            f"{rows.files[0]}: column {column!r} holds {len(known)} experiments ({', '.join(known[:20])});"
            " expected the setting experiment to name one"
        )
    if name is not None and name not in known:
        raise InputError(not_found(f"{rows.files[0]}: column {column!r}: experiment", name, known))
    return rows.table if name is None else rows.table.filter(found == name)


def _text(column: str) -> pl.Expr:
    """Numbers as texts; an empty text is no name."""
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _number(table: pl.DataFrame, rows: Rows, column: str) -> pl.Series:
    """Finite numbers; null where a cell is none."""
    cells = table[column]
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars().cast(pl.Float64, strict=False)
    elif not (cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null)):
        raise InputError(f"{rows.files[0]}: column {column!r} is of type {cells.dtype}; expected numbers")
    numbers = cells.cast(pl.Float64)
    return numbers.set(~numbers.is_finite(), None)


def _instants(table: pl.DataFrame, rows: Rows, column: str, unit: TimeUnit) -> pl.Series:
    return instants(table[column], unit, f"{rows.files[0]}: column {column!r}").times


_EXPECTED: Mapping[str, str] = {
    USER_ID: "is missing; expected the id of a user",
    "variant": "is missing; expected the name of a variant",
    "metric": "is missing; expected the name of a metric",
    "value": "is no finite number",
    "exposed_at": "is not a time between the years 1 and 9999",
    "occurred_at": "is not a time between the years 1 and 9999",
}


def _checked(rows: Rows, typed: pl.DataFrame, names: Mapping[str, str], max_share: float) -> Checked:
    """The rows without a null; the others in quarantine, each with its first fault. names: of the columns in the source."""
    if typed.schema[USER_ID] == pl.String:
        typed = typed.with_columns(pl.when(pl.col(USER_ID) != "").then(pl.col(USER_ID)))
    reason = pl.coalesce(
        pl.when(pl.col(name).is_null()).then(pl.struct(column=pl.lit(column), reason=pl.lit(_EXPECTED[name])))
        for name, column in names.items()
    )
    faulty = typed.filter(pl.any_horizontal(pl.col(name).is_null() for name in names))
    faults = faulty.select(POSITION, reason.alias("fault")).unnest("fault")
    quarantine = quarantined(rows, faults, max_share)
    good = typed.drop_nulls(list(names)).drop(POSITION)
    counts = {
        "rows_read": rows.table.height + rows.left_out,
        "rows_kept": good.height,
        "rows_quarantined": quarantine.height,
    }
    return Checked(good, quarantine, counts)
