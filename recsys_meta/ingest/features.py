"""Tables of users and items: declared columns brought to one type per kind of feature, and lists of ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from recsys_meta.ingest.quarantine import Checked, no_faults, quarantined
from recsys_meta.ingest.sources import POSITION, InputError, Source, read
from recsys_meta.tables import Feature

NONE: Mapping[str, Sequence[str]] = {}


def declared_features(
    *,
    categorical: Sequence[str] = (),
    multi: Sequence[str] = (),
    numbers: Sequence[str] = (),
    vectors: Sequence[str] = (),
    flags: Mapping[str, Sequence[str]] = NONE,
) -> tuple[Feature, ...]:
    """The features that ``read_features`` gives for the same arguments, in the order of its columns."""
    return (
        *(Feature(name, "categorical") for name in categorical),
        *(Feature(name, "multi") for name in (*multi, *flags)),
        *(Feature(name, "number") for name in numbers),
        *(Feature(name, "vector") for name in vectors),
    )


def read_features(
    source: Source,
    *,
    id_column: str,
    id_name: str,
    categorical: Sequence[str] = (),
    multi: Sequence[str] = (),
    numbers: Sequence[str] = (),
    vectors: Sequence[str] = (),
    flags: Mapping[str, Sequence[str]] = NONE,
    multi_separator: str | Mapping[str, str] = "|",
    max_quarantined_share: float = 0.01,
) -> Checked:
    """Reads and checks a table of users or items. ``id_name`` is ``tables.USER_ID`` or ``ITEM_ID``, the name of the ids to come.

    categorical: kept as String.
    multi: several values per row, List(String): lists, or text split by ``multi_separator`` (one for all, or one per column).
    numbers: Float32. NaN says "not known", as pandas writes it.
    vectors: List(Float32), or text such as "[0.1, 0.2]"; the length most of them have is the right one.
    flags: multi-valued features spread over columns of 0 and 1, by name: the names of the columns that hold a 1.

    Empty text says "not known" everywhere, and that is null. Rows without an id go to quarantine. A cell that cannot be read is
    null too, and reported in the quarantine while its row stays. Of rows with the same id the last stays.

    ``counts``: rows_read, rows_not_selected, rows_kept, rows_quarantined, cells_quarantined, duplicate_ids.

    Raises InputError for a column that is missing or of an impossible type, unreadable files, and where a larger share
    of the rows than ``max_quarantined_share`` has a fault.
    """
    flag_columns = [column for columns in flags.values() for column in columns]
    columns = (*categorical, *multi, *flag_columns, *numbers, *vectors)
    given = [id_name, *categorical, *multi, *flags, *numbers, *vectors]
    if twice := sorted({name for name in given if given.count(name) > 1}):
        raise InputError(f"{source.path}: column {twice[0]!r} is declared twice")
    rows = read(source, columns, ids=(id_column,))
    table = rows.table
    at = f"{rows.files[0]}: column"
    out = [table[POSITION], table[id_column].alias(id_name)]
    faults = [no_faults()]

    for name in categorical:
        out.append(_category(table[name], f"{at} {name!r}").alias(name))
    for name in multi:
        separator = multi_separator if isinstance(multi_separator, str) else multi_separator.get(name, "|")
        out.append(_values(table[name], separator, f"{at} {name!r}").alias(name))
    for name, names in flags.items():
        out.append(_flagged(table, names).alias(name))
    for name in (*numbers, *vectors):
        readable = _number if name in numbers else _vector
        cells, reason = readable(table[name], f"{at} {name!r}")
        out.append(cells.set(reason.is_not_null(), None).alias(name))
        faults.append(table.select(POSITION, column=pl.lit(name), reason=reason).drop_nulls())

    nameless = table.filter(_blank(table[id_column])).select(
        POSITION, column=pl.lit(id_column), reason=pl.lit("is missing")
    )
    all_faults = pl.concat([nameless, *faults])
    quarantine = quarantined(rows, all_faults, max_quarantined_share)
    named = pl.DataFrame(out).filter(~_blank(table[id_column]))
    kept = named.unique(id_name, keep="last", maintain_order=True)
    counts = {
        "rows_read": table.height,
        "rows_not_selected": rows.left_out,
        "rows_kept": kept.height,
        "rows_quarantined": nameless.height,
        "cells_quarantined": all_faults.height - nameless.height,
        "duplicate_ids": named.height - kept.height,
    }
    return Checked(kept.drop(POSITION), quarantine, counts)


def read_ids(source: Source, *, id_column: str) -> pl.Series:
    """The ids of a table, each once, in the order they first stand there; of the type they came with.

    Raises InputError as ``read_features`` does, and for a row without an id.
    """
    rows = read(source, (), ids=(id_column,))
    missing = rows.table.filter(_blank(rows.table[id_column]))
    if missing.height:
        raise InputError(
            f"{rows.place(missing[POSITION][0])}: column {id_column!r} is missing; expected an id in every row"
        )
    return rows.table[id_column].unique(maintain_order=True)


def _blank(ids: pl.Series) -> pl.Series:
    return ids.is_null() | (ids == "") if ids.dtype == pl.String else ids.is_null()


def _writable(dtype: Any) -> bool:
    """Whether cells of this type name a category."""
    return bool(
        dtype.is_numeric()
        or dtype in (pl.String, pl.Boolean, pl.Date, pl.Datetime, pl.Null, pl.Categorical, pl.Enum)
    )


def _category(cells: pl.Series, where: str) -> pl.Series:
    if not _writable(cells.dtype):
        raise InputError(
            f"{where} is of type {cells.dtype}; expected text or numbers (lists are declared as multi)"
        )
    text = cells.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _values(cells: pl.Series, separator: str, where: str) -> pl.Series:
    """Lists of text without empty entries; null where nothing is known."""
    if isinstance(cells.dtype, pl.Array):
        cells = cells.arr.to_list()
    if not isinstance(cells.dtype, pl.List):
        text = _category(cells, where)
        cells = text.str.split(separator)
    elif not _writable(cells.dtype.inner):
        raise InputError(
            f"{where} is of type {cells.dtype}; expected lists of text or numbers, or separated text"
        )
    text = cells.cast(pl.List(pl.String))
    value = pl.element().str.strip_chars()
    return text.list.eval(value.filter(value.is_not_null() & (value != "")))


def _flagged(table: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """The names of the columns that hold a 1, row by row."""
    is_one = (pl.col(column).cast(pl.Float64, strict=False) == 1 for column in columns)
    names = pl.concat_list(
        pl.when(one).then(pl.lit(column)) for column, one in zip(columns, is_one, strict=True)
    )
    return table.select(names.list.drop_nulls()).to_series()


def _number(cells: pl.Series, where: str) -> tuple[pl.Series, pl.Series]:
    """Float32, and the reason why a cell cannot be one."""
    if not (cells.dtype.is_numeric() or cells.dtype in (pl.String, pl.Boolean, pl.Null)):
        raise InputError(f"{where} is of type {cells.dtype}; expected numbers")
    given = cells
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
        given = cells.set(cells == "", None)
    numbers = given.cast(pl.Float32, strict=False)
    bad = (given.is_not_null() & numbers.is_null()) | numbers.is_infinite().fill_null(False)
    return numbers.fill_nan(None), _reasons(bad, "is not a finite number")


def _vector(cells: pl.Series, where: str) -> tuple[pl.Series, pl.Series]:
    """List(Float32), and the reason why a cell cannot be one, or not one of the length of the others."""
    if isinstance(cells.dtype, pl.Array):
        cells = cells.arr.to_list()
    if cells.dtype == pl.String:
        cells = cells.set(cells.str.strip_chars() == "", None).str.extract_all(r"[^\s,;|\[\]()]+")
    elif cells.dtype == pl.Null:
        cells = cells.cast(pl.List(pl.Float32))
    elif not (
        isinstance(cells.dtype, pl.List) and (cells.dtype.inner.is_numeric() or cells.dtype.inner == pl.Null)
    ):
        raise InputError(f"{where} is of type {cells.dtype}; expected lists of numbers")
    vectors = cells.cast(pl.List(pl.Float32), strict=False)
    finite = vectors.list.eval(
        (pl.element().is_not_null() & pl.element().is_finite()).fill_null(False)
    ).list.all()
    bad = (~finite | (vectors.list.len() == 0)).fill_null(False)
    lengths = vectors.set(bad, None).list.len()
    common = lengths.drop_nulls().mode()
    usual = int(common.sort()[-1]) if len(common) else 0
    other = (lengths != usual).fill_null(False)
    reasons = _reasons(bad, "is not a vector of finite numbers")
    return vectors, reasons.zip_with(~other, _reasons(other, f"is a vector of another length than {usual}"))


def _reasons(bad: pl.Series, reason: str) -> pl.Series:
    return pl.select(reason=pl.when(bad).then(pl.lit(reason))).to_series()
