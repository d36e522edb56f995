"""Where rows come from: Parquet, text, folders of part files, archives, DuckDB; read as one table that knows its origin."""

import difflib
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import duckdb
import polars as pl

Format = Literal["parquet", "csv", "duckdb"]

FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".duckdb": "duckdb",
}
SEPARATORS = {".csv": ",", ".dat": "::"}  # the rest: a tab
# A packed file that gives more than so many bytes, or more than so many times its own size and that is no trifle, is
# taken for a bomb. Text of clicks packs into a twentieth, text of one line over and over into a thousandth.
MAX_UNPACKED = 2 * 2**30
MAX_RATIO, TRIFLE = 250, 16 * 2**20

# How packed files begin that polars would unpack on its own, without a bound: gzip, zlib (three strengths), zstd.
_MAGIC = (b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x28\xb5\x2f\xfd")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

POSITION = "position of the row in its source"  # not a name that a file would use

# PanicException is no Exception: polars raises it where a reader of a mangled file stumbles over its own assumptions.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


class InputError(Exception):
    """The input cannot be used. The message says which file, column and row, what was found and what was expected."""


@dataclass(frozen=True)
class Source:
    """Where rows come from. Paths are used as given; the working directory is never changed."""

    path: Path  # a file (.gz too), a folder of part files, a glob of them, a zip archive (with member) or a DuckDB file
    format: Format | None = None  # None: by suffix
    separator: str | None = None  # any string; None: by suffix ("," for .csv, "::" for .dat, else a tab)
    header: bool = True
    column_names: tuple[str, ...] = ()  # where there is no header
    encoding: str = "utf8"
    table: str | None = None  # of a DuckDB file
    query: str | None = None  # SQL over a DuckDB file, opened read-only
    where: str | None = None  # a polars SQL expression over the source's own columns: "split = 'warm_state'"
    quote: str | None = '"'  # of delimited text; ignored with a separator of several characters
    text_columns: tuple[
        str, ...
    ] = ()  # ids of delimited text to keep as strings even where all of them look like numbers
    member: str | None = None  # the file inside a zip archive

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))


class Rows(NamedTuple):
    """What was read: the wanted columns, and where every row came from."""

    table: pl.DataFrame  # the wanted columns and POSITION; cells of delimited text are String, ids excepted
    files: tuple[str, ...]  # in the order read
    starts: tuple[int, ...]  # the POSITION of the first row of each file
    left_out: int  # rows that `where` did not select

    def origin(self, positions: pl.Series) -> pl.DataFrame:
        """The file ("source") and the 1-based row in it ("row") of these POSITIONs."""
        starts = pl.Series(self.starts, dtype=pl.Int64)
        part = starts.search_sorted(positions.cast(pl.Int64), side="right").cast(pl.Int64) - 1
        return pl.DataFrame(
            {
                "source": pl.Series(self.files, dtype=pl.String).gather(part),
                "row": positions.cast(pl.Int64) - starts.gather(part) + 1,
            }
        )

    def place(self, position: int) -> str:
        """File and row in words, for a message."""
        found = self.origin(pl.Series([position]))
        return f"{found['source'][0]}, row {found['row'][0]}"


class _Part(NamedTuple):
    """One file, one member of an archive, or one table."""

    name: str
    path: Path
    format: Format
    suffix: str  # without .gz


def read(source: Source, columns: Sequence[str], ids: Sequence[str] = ()) -> Rows:
    """Reads the wanted columns of all part files, in the order of their names.

    Ids come back as the integer or string type they have in the file; in delimited text they are integers where every cell is
    written as one ("007" is not). Raises InputError for what is missing, malformed, cut short or of another type than before.
    """
    wanted = tuple(dict.fromkeys((*ids, *columns)))
    tables: list[pl.DataFrame] = []
    parts = _parts(source)
    starts: list[int] = []
    length = left_out = 0
    for part in parts:
        table = _read_part(source, part, wanted, ids)
        starts.append(length)
        table = table.with_row_index(POSITION, offset=length).with_columns(pl.col(POSITION).cast(pl.Int64))
        length += table.height
        if source.where is not None:
            table, unselected = _selected(table, source.where, part.name, wanted)
            left_out += unselected
        tables.append(table)
    names = tuple(part.name for part in parts)
    return Rows(_joined(tables, names, ids), names, tuple(starts), left_out)


def not_found(what: str, name: str, among: Iterable[str]) -> str:
    """The words "what 'name' was not found", with the nearest names and all that were found."""
    found = list(among)
    near = difflib.get_close_matches(name.lower(), {other.lower() for other in found}, n=3, cutoff=0.6)
    meant = [repr(other) for low in near for other in found if other.lower() == low]
    listed = ", ".join(found[:50]) + (", ..." if len(found) > 50 else "")
    hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
    return f"{what} {name!r} was not found{hint} (found: {listed or 'nothing'})"


# ---- which files


def _parts(source: Source) -> list[_Part]:
    path = source.path
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name too long for this system, or a folder that is not ours to read
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if source.member is not None:
        _require(path)
        return [_part(source, path, source.member)]
    if is_file:
        return [_part(source, path)]
    if is_folder:
        wanted = {source.format, None} if source.format else set(FORMATS.values())
        files = [
            file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))
        ]
        files = [file for file in files if _format(file.name) in wanted]
        _refuse_links_out(path, files)
    elif any(character in str(path) for character in "*?["):
        base = Path(*_plain(path.parts))
        pattern = str(path.relative_to(base)) if base.parts else str(path)
        files = sorted(file for file in base.glob(pattern) if file.is_file())
        _refuse_links_out(base, files)
    else:
        _require(path)
        raise InputError(f"{path}: neither a file nor a folder")
    if not files:
        raise InputError(
            f"{path}: no files of a known type here (known: {', '.join(FORMATS)}, each also with .gz)"
        )
    parts = [_part(source, file) for file in files]
    if len({(part.format, part.suffix) for part in parts}) > 1:
        kinds = sorted({part.suffix for part in parts})
        raise InputError(
            f"{path}: files of different types ({', '.join(kinds)}); say which with a glob such as *{kinds[0]}"
        )
    return parts


def _part(source: Source, path: Path, member: str | None = None) -> _Part:
    name = member or path.name
    kind = source.format or ("duckdb" if source.table or source.query else _format(name))
    if kind is None:
        raise InputError(
            f"{path}: what is a {Path(name).suffix!r} file? Give format (known suffixes: {', '.join(FORMATS)})"
        )
    shown = f"{path}/{member}" if member else str(path)
    if kind == "duckdb":
        shown = f"{path}:{source.table or 'query'}"
    return _Part(shown, path, kind, Path(name.removesuffix(".gz")).suffix.lower())


def _format(name: str) -> Format | None:
    return FORMATS.get(Path(name.removesuffix(".gz")).suffix.lower())


def _hidden(path: Path) -> bool:
    return any(
        part.startswith((".", "_")) for part in path.parts
    )  # _SUCCESS, .part.crc: what engines leave beside their parts


def _plain(parts: Sequence[str]) -> list[str]:
    """The leading parts of a glob that are no pattern."""
    patterns = [index for index, part in enumerate(parts) if any(character in part for character in "*?[")]
    return list(parts[: patterns[0]])


def _refuse_links_out(folder: Path, files: Sequence[Path]) -> None:
    """Raises InputError for a file that lies elsewhere: a folder from somebody else may lead to what is not theirs."""
    inside = folder.resolve()
    for file in files:
        if not file.resolve().is_relative_to(inside):
            raise InputError(
                f"{file}: is a link that leads out of {folder}; give the file itself as the path"
            )


def _require(path: Path) -> None:
    """Raises InputError, with near matches, where nothing is at this path."""
    if path.exists():
        return
    for folder, name in (
        (path.parent, path.name),
        *((parent.parent, parent.name) for parent in path.parents),
    ):
        if folder.is_dir():
            raise InputError(
                f"{path}: "
                + not_found("the file or folder", name, (file.name for file in sorted(folder.iterdir())))
            )
    raise InputError(f"{path}: not found")


# ---- one file


def _read_part(source: Source, part: _Part, wanted: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
    """The wanted columns and those that `where` speaks of."""
    needed = tuple(dict.fromkeys((*wanted, *_where_columns(source))))
    readers = {"parquet": _read_parquet, "csv": _read_text, "duckdb": _read_duckdb}
    table = readers[part.format](source, part, needed)
    table = table.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    for name in ids:
        if part.format == "csv" and name not in source.text_columns:
            table = table.with_columns(_as_integers(table[name]))
        dtype = table[name].dtype
        if not (dtype.is_integer() or dtype in (pl.String, pl.Null)) or dtype in (pl.Int128, pl.UInt128):
            raise InputError(
                f"{part.name}: column {name!r} holds ids of type {dtype}; expected whole numbers or strings"
            )
    return table


def _read_parquet(source: Source, part: _Part, needed: Sequence[str]) -> pl.DataFrame:
    payload = part.path if source.member is None and part.path.suffix != ".gz" else _bytes(source, part)
    try:
        schema = pl.read_parquet_schema(payload)
        _check_columns(part, needed, schema)
        return pl.read_parquet(payload, columns=list(needed), glob=False, hive_partitioning=False)
    except UNREADABLE as error:
        raise InputError(
            f"{part.name}: not a readable Parquet file (damaged or cut short?): {_first_line(error)}"
        ) from error


def _read_text(source: Source, part: _Part, needed: Sequence[str]) -> pl.DataFrame:
    separator = source.separator or SEPARATORS.get(part.suffix, "\t")
    quote = source.quote
    payload: Path | bytes = part.path
    if (
        source.member is not None
        or part.path.suffix == ".gz"
        or source.encoding not in ("utf8", "utf-8")
        or len(separator.encode()) > 1
    ):
        payload = _utf8(_bytes(source, part), source.encoding, part.name)
    if _begins_packed(payload):
        what = "is packed, though its name does not say so; name it .gz, or unpack it"
        raise InputError(
            f"{part.name}: {'is packed once more inside' if isinstance(payload, bytes) else what}"
        )
    if isinstance(payload, bytes) and len(separator.encode()) > 1:
        unused = next((byte for byte in b"\x1f\x1e\x1d\x1c\x01\x02\x03" if byte not in payload), None)
        if unused is None:
            raise InputError(f"{part.name}: binary, not text separated by {separator!r}")
        payload, separator, quote = payload.replace(separator.encode(), bytes([unused])), chr(unused), None
    options: dict[str, Any] = {
        "has_header": source.header,
        "separator": separator,
        "quote_char": quote,
        "infer_schema": False,
        "glob": False,
    }
    if (payload.stat().st_size if isinstance(payload, Path) else len(payload)) == 0:
        if source.header:
            raise InputError(f"{part.name}: empty, there is not even a header")
        return pl.DataFrame(schema=dict.fromkeys(source.column_names, pl.String)).select(*needed)
    if source.encoding in ("utf8", "utf-8") and _first_bytes(payload).startswith(_UTF16):
        raise InputError(f"{part.name}: begins as UTF-16 does, expected UTF-8; is it encoding: utf-16?")
    try:
        found = pl.read_csv(payload, n_rows=1, **options).columns
        if source.header:
            _check_separator(source, part, needed, found)
        names = _names(source, part, found)
        _check_columns(part, needed, names)
        chosen = [found[names.index(name)] for name in needed]
        table = pl.read_csv(payload, columns=chosen, **options).select(chosen)
    except UNREADABLE as error:
        raise InputError(_text_fault(payload, part, separator, quote, source.header, error)) from error
    _check_end(payload, part, separator, quote, len(found), table.height)
    table.columns = list(needed)
    for _ in range(_blank_lines_at_end(payload)):  # which polars takes for rows
        if table.height and table.row(-1) == (None,) * table.width:
            table = table.head(-1)
    return table


def _read_duckdb(source: Source, part: _Part, needed: Sequence[str]) -> pl.DataFrame:
    if (source.table is None) == (source.query is None):
        raise InputError(f"{part.path}: of a DuckDB file, name either a table or a query")
    _require(part.path)
    try:
        if _format(part.path.name) not in ("duckdb", None) and not _is_duckdb(part.path):
            raise InputError(
                f"{part.path}: is no DuckDB file, of which table and query are; expected neither here"
            )
        # A view or a query of somebody else's must not reach other files.
        with duckdb.connect(str(part.path), read_only=True, config=_NO_REACH) as connection:
            if source.table is not None:
                listed = connection.sql(
                    "SELECT table_schema, table_name FROM information_schema.tables"
                    " WHERE table_catalog = current_database() ORDER BY ALL"
                )
                tables = [(str(schema), str(name)) for schema, name in listed.fetchall()]
                known = {
                    (name if schema == "main" else f"{schema}.{name}"): (schema, name)
                    for schema, name in tables
                }
                if source.table not in known:
                    raise InputError(f"{part.path}: " + not_found("the table", source.table, known))
                relation = f"SELECT * FROM {'.'.join(_quoted(name) for name in known[source.table])}"
            else:
                relation = f"SELECT * FROM ({_one_select(part, str(source.query))}\n)"
            found = connection.sql(relation)
            _check_columns(part, needed, found.columns)
            chosen = ", ".join(_quoted(name) for name in needed)
            table: pl.DataFrame = connection.sql(f"SELECT {chosen} FROM ({relation})").pl()
            return table
    except (duckdb.Error, *UNREADABLE) as error:
        raise InputError(f"{part.name}: {_first_line(error)}") from error


def _is_duckdb(path: Path) -> bool:
    """Whether it says so: behind a checksum of eight bytes."""
    with path.open("rb") as file:
        return file.read(12)[8:] == b"DUCK"


_NO_REACH: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "lock_configuration": True,
}


def _one_select(part: _Part, query: str) -> str:
    """The query, where it is one statement that reads. Raises InputError otherwise."""
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise InputError(f"{part.path}: query: {_first_line(error)}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        found = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise InputError(f"{part.path}: query: expected one SELECT, found {found}")
    return query.strip().rstrip(";")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _check_columns(part: _Part, needed: Sequence[str], found: Iterable[str]) -> None:
    found = list(found)
    missing = [not_found(f"{part.name}: column", name, found) for name in needed if name not in found]
    if missing:
        raise InputError("\n".join(missing))


def _check_separator(source: Source, part: _Part, needed: Sequence[str], found: Sequence[str]) -> None:
    """Raises InputError where the header is a single column that another separator parts into some of those needed."""
    separator = source.separator or SEPARATORS.get(part.suffix, "\t")
    for other in (",", ";", "\t", "|", "::"):
        parted = [name.strip(" \"'") for name in found[0].split(other)]
        if len(found) == 1 and len(parted) > 1 and not set(needed).isdisjoint(parted):
            raise InputError(
                f"{part.name}: the header is one column, {found[0]!r}, where {separator!r} separates columns; is it separator:"
                f" {json.dumps(other)}?"
            )


def _names(source: Source, part: _Part, found: list[str]) -> list[str]:
    """The names of the columns of a text file."""
    if source.header and source.quote is not None:  # polars undoubles quotes in cells, not in the header
        found = [name.replace(source.quote * 2, source.quote) for name in found]
    if source.header or not source.column_names:
        return found
    if len(found) != len(source.column_names):
        names = f"{len(source.column_names)} names are given ({', '.join(source.column_names)})"
        raise InputError(f"{part.name}: row 1 has {len(found)} columns, but {names}")
    return list(source.column_names)


def _as_integers(cells: pl.Series) -> pl.Series:
    """The same ids as Int64 where each one is written as a whole number and would be written back just so; else as they are."""
    numbers = cells.cast(pl.Int64, strict=False)
    same = numbers.null_count() == cells.null_count() and (numbers.cast(pl.String) == cells).all()
    return numbers if same and numbers.null_count() < len(cells) else cells


# ---- bytes, and what may be wrong with them


def _bytes(source: Source, part: _Part) -> bytes:
    """The unpacked bytes of a part; nothing is written to disk, so no name inside an archive can lead anywhere."""
    try:
        if source.member is None:
            packed = part.path.read_bytes()
        else:
            with zipfile.ZipFile(part.path) as archive:
                if source.member not in archive.namelist():
                    raise InputError(
                        f"{part.path}: " + not_found("the member", source.member, archive.namelist())
                    )
                member = archive.getinfo(source.member)
                if member.file_size > MAX_UNPACKED:  # as it declares itself; what it holds is counted below
                    raise InputError(_bomb(part))
                with archive.open(member) as file:
                    packed = _limited(file, part, member.compress_size)
        if not (source.member or part.path.name).endswith(".gz"):
            return packed
        with gzip.open(io.BytesIO(packed)) as unpacked:
            return _limited(unpacked, part, len(packed))
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,  # of zipfile: a password, or a packing that it does not know
    ) as error:
        raise InputError(f"{part.name}: damaged or cut short: {_first_line(error)}") from error


def _limited(file: IO[bytes] | gzip.GzipFile, part: _Part, packed: int) -> bytes:
    """What it unpacks to, read piece by piece, so that a bomb is noticed before it fills the memory. packed: its own size."""
    payload = bytearray()
    while piece := file.read(2**20):
        payload += piece
        if len(payload) > MAX_UNPACKED:
            raise InputError(_bomb(part))
        if len(payload) > max(TRIFLE, MAX_RATIO * packed):
            raise InputError(
                f"{part.name}: unpacks to more than {MAX_RATIO} times its packed size; unpack it by hand if that is right"
            )
    return bytes(payload)


def _bomb(part: _Part) -> str:
    return f"{part.name}: unpacks to more than {MAX_UNPACKED:,} bytes; unpack it by hand if that is right"


def _begins_packed(payload: Path | bytes) -> bool:
    """Whether it is no text but packed, as its first bytes say."""
    return _first_bytes(payload).startswith(_MAGIC)


def _first_bytes(payload: Path | bytes) -> bytes:
    if isinstance(payload, bytes):
        return payload[:4]
    with payload.open("rb") as file:
        return file.read(4)


def _utf8(payload: bytes, encoding: str, name: str) -> bytes:
    if encoding in ("utf8", "utf-8"):
        return payload
    try:
        return payload.decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}, line {payload.count(10, 0, error.start) + 1}: not {encoding} text ({error.reason})"
        ) from error
    except (LookupError, ValueError) as error:  # ValueError: what codecs of names and other oddities raise
        raise InputError(f"{name}: cannot be read as {encoding!r}: {error}") from error


def _text_fault(
    payload: Path | bytes, part: _Part, separator: str, quote: str | None, header: bool, error: BaseException
) -> str:
    """What is wrong with a text file that polars refuses, and in which row."""
    raw = payload.read_bytes() if isinstance(payload, Path) else payload
    try:
        text = raw.decode()
    except UnicodeDecodeError as fault:
        row = raw.count(b"\n", 0, fault.start) + (0 if header else 1)
        where = f"row {row}" if row else "the header"
        byte = raw[fault.start : fault.start + 1]
        return (
            f"{part.name}, {where}: not UTF-8 text (byte {fault.start}: {byte!r}); is it encoding: latin-1?"
        )
    lines = pl.Series(text.split("\n"))
    fields = _unquoted(lines, quote).str.count_matches(separator, literal=True) + 1
    long = (fields > fields[0]).arg_true()
    if len(long):
        row = int(long[0]) + (0 if header else 1)
        return f"{part.name}, row {row}: {fields[int(long[0])]} columns where {fields[0]} were expected"
    if quote is not None and text.count(quote) % 2:
        open_after = (lines.str.count_matches(quote, literal=True).cum_sum() % 2 == 1).cast(pl.Int8)
        even = (open_after == 0).arg_true()
        row = (int(even[-1]) + 1 if len(even) else 0) + (0 if header else 1)
        return f"{part.name}, row {row}: a quote is opened and never closed (say quote: null if quotes mean nothing here)"
    return f"{part.name}: cannot be read as text separated by {separator!r}: {_first_line(error)}"


def _check_end(
    payload: Path | bytes, part: _Part, separator: str, quote: str | None, columns: int, rows: int
) -> None:
    """Raises InputError where the last line has neither all columns nor an end: the mark of a file cut short."""
    last = _tail(payload).rsplit(b"\n", 1)[-1].decode(errors="replace")
    if not last.strip() or (
        quote is not None and last.count(quote) % 2
    ):  # a quoted field of several lines ends here
        return
    found = int(_unquoted(pl.Series([last]), quote).str.count_matches(separator, literal=True)[0]) + 1
    if found < columns:
        raise InputError(
            f"{part.name}, row {rows}: cut short, the last line has {found} of {columns} columns and no end"
        )


def _blank_lines_at_end(payload: Path | bytes) -> int:
    end = re.search(rb"(\r?\n)+\Z", _tail(payload))
    return end[0].count(b"\n") - 1 if end else 0


def _tail(payload: Path | bytes, size: int = 2**16) -> bytes:
    if isinstance(payload, bytes):
        return payload[-size:]
    with payload.open("rb") as file:
        file.seek(max(0, payload.stat().st_size - size))
        return file.read()


def _unquoted(lines: pl.Series, quote: str | None) -> pl.Series:
    """The lines without what stands in quotes."""
    return (
        lines
        if quote is None
        else lines.str.replace_all(f"{re.escape(quote)}[^{re.escape(quote)}]*{re.escape(quote)}", "")
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# ---- where, and joining the parts


def _where_columns(source: Source) -> list[str]:
    if source.where is None:
        return []
    if re.search(r"\bselect\b", re.sub(r"'[^']*'|\"[^\"]*\"", "", source.where), re.IGNORECASE):
        raise InputError(  # polars would let it read any file
            f"where: {source.where!r} holds a query; expected a condition on the columns of the source"
        )
    try:
        return list(pl.sql_expr(source.where).meta.root_names())
    except UNREADABLE as error:
        raise InputError(f"where: {source.where!r} is no SQL expression: {_first_line(error)}") from error


def _selected(table: pl.DataFrame, where: str, name: str, wanted: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """The rows that the expression selects, and the number of the others."""
    expression = pl.sql_expr(where)
    asked = table.select(_as_numbers(table[column]) for column in dict.fromkeys(expression.meta.root_names()))
    try:
        mask = (
            asked.select(expression.alias("mask"))["mask"]
            if asked.width
            else table.select(expression.alias("mask"))["mask"]
        )
        kept = table.filter(mask.new_from_index(0, table.height) if len(mask) == 1 != table.height else mask)
    except UNREADABLE as error:
        types = ", ".join(f"{column} {dtype}" for column, dtype in asked.schema.items())
        raise InputError(
            f"{name}: where {where!r} cannot be applied to {types}: {_first_line(error)}"
        ) from error
    return kept.select(*wanted, POSITION), table.height - kept.height


def _as_numbers(cells: pl.Series) -> pl.Series:
    """Text that is all numbers, as numbers: so that ``rating >= 4`` says the same of a CSV file as of a Parquet file."""
    for dtype in (pl.Int64(), pl.Float64()) if cells.dtype == pl.String else ():
        numbers = cells.cast(dtype, strict=False)
        if numbers.null_count() == cells.null_count():
            return numbers
    return cells


def _joined(tables: Sequence[pl.DataFrame], names: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
    """The parts as one table; raises InputError, naming both files, where a column changes its kind between them."""
    first: dict[str, tuple[pl.DataType, str]] = {}
    for table, name in zip(tables, names, strict=True):
        for column, dtype in table.schema.items():
            if dtype == pl.Null or (table.height == 0 and len(tables) > 1):
                continue
            before, file = first.setdefault(column, (dtype, name))
            both_numbers = (
                (before.is_integer() and dtype.is_integer())
                if column in ids
                else (before.is_numeric() and dtype.is_numeric())
            )
            if before != dtype and not both_numbers:
                hint = " (list it under text_columns to read it as strings)" if column in ids else ""
                raise InputError(
                    f"column {column!r} changes its type: {before} in {file}, {dtype} in {name}{hint}"
                )
    known = [
        table.with_columns(
            pl.col(column).cast(dtype) for column, (dtype, _) in first.items() if not table.height
        )
        for table in tables
    ]
    joined = pl.concat(known, how="vertical_relaxed")
    for column in ids:
        if joined[column].dtype == pl.Null:
            joined = joined.with_columns(pl.col(column).cast(pl.String))
        if joined[column].dtype in (pl.Int128, pl.Float64):  # UInt64 in one file, Int64 in another
            files = f"{names[0]} and the files beside it"
            raise InputError(f"column {column!r}: the whole numbers of {files} fit no type of 64 bits")
    return joined
