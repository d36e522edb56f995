"""Sources: every format, separator and layout is read alike, and what is wrong is told with its place."""

import gzip
import zipfile
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_meta.ingest import InputError, Source, read_interactions, sources
from recsys_meta.ingest.sources import POSITION, read

EVENTS = pl.DataFrame({"user": ["007", "x", "007"], "item": [11, 12, 13], "rating": [4.0, 3.5, 1.0]})
COLUMNS = ("rating",)
IDS = ("user", "item")


def refusal(source: Source, columns: tuple[str, ...] = COLUMNS, ids: tuple[str, ...] = IDS) -> str:
    with pytest.raises(InputError) as caught:
        read(source, columns, ids)
    return str(caught.value)


def assert_same_events(source: Source) -> None:
    rows = read(source, COLUMNS, IDS)
    found = rows.table.select(
        pl.col("user"), pl.col("item").cast(pl.Int64), pl.col("rating").cast(pl.Float64)
    )
    assert found.equals(EVENTS)
    assert rows.origin(rows.table[POSITION])["row"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::", "<sep>", "¦", " || "])
@pytest.mark.parametrize("packed", [False, True])
def test_every_separator_is_read(tmp_path: Path, separator: str, packed: bool) -> None:
    text = "\n".join(separator.join(map(str, row)) for row in [EVENTS.columns, *EVENTS.rows()]) + "\n"
    file = tmp_path / ("events.csv.gz" if packed else "events.csv")
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert_same_events(Source(file, separator=separator))


def test_the_separator_follows_the_suffix(tmp_path: Path) -> None:
    for suffix, separator in ((".csv", ","), (".tsv", "\t"), (".txt", "\t"), (".data", "\t"), (".dat", "::")):
        file = tmp_path / f"events{suffix}"
        file.write_text("\n".join(separator.join(map(str, row)) for row in [EVENTS.columns, *EVENTS.rows()]))
        assert_same_events(Source(file))


def test_parquet_is_read_from_a_file_a_folder_and_a_glob(tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "all.parquet")
    assert_same_events(Source(tmp_path / "all.parquet"))
    parts = tmp_path / "parts"
    parts.mkdir()
    EVENTS[:2].write_parquet(parts / "part-0.parquet")
    EVENTS[2:].write_parquet(parts / "part-1.parquet")
    (parts / "_SUCCESS").touch()
    for path in (parts, parts / "part-*.parquet", tmp_path / "par*" / "*.parquet"):
        rows = read(Source(path), COLUMNS, IDS)
        assert rows.table.drop(POSITION).select(EVENTS.columns).equals(EVENTS)
        assert rows.origin(rows.table[POSITION]).rows() == [
            (str(parts / "part-0.parquet"), 1),
            (str(parts / "part-0.parquet"), 2),
            (str(parts / "part-1.parquet"), 1),
        ]


def test_a_duckdb_table_and_a_query_are_read_and_the_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "lake.duckdb"
    with duckdb.connect(str(file)) as connection:
        connection.execute('CREATE TABLE "a ""b"" c" ("user" VARCHAR, item BIGINT, rating DOUBLE)')
        connection.execute(
            """INSERT INTO "a ""b"" c" VALUES ('007', 11, 4), ('x', 12, 3.5), ('007', 13, 1)"""
        )
        connection.execute("CREATE SCHEMA s")
        connection.execute('CREATE VIEW s.v AS SELECT * FROM "a ""b"" c"')
    before = file.read_bytes()
    assert_same_events(Source(file, table='a "b" c'))
    assert_same_events(Source(file, table="s.v"))
    assert_same_events(Source(file, query='SELECT * FROM "a ""b"" c" ORDER BY item; '))
    assert "did you mean 'a \"b\" c'?" in refusal(Source(file, table='a "b" d'))
    assert "was not found" in refusal(Source(file, table='v"; DROP TABLE x; --'))
    assert str(file) in refusal(Source(file, query='DELETE FROM "a ""b"" c" RETURNING *'))
    assert "syntax error" in refusal(Source(file, query="SELEC 1"))
    assert "either a table or a query" in refusal(Source(file))
    assert file.read_bytes() == before


def test_strings_that_look_like_numbers_stay_strings(tmp_path: Path) -> None:
    for ids, dtype in ((["007", "8"], pl.String), (["1", "2"], pl.Int64), (["1", "a"], pl.String), (["-5", "0"], pl.Int64),
                       (["1.0", "2.0"], pl.String), (["+1", "2"], pl.String), (["9" * 30, "1"], pl.String)):  # fmt: skip
        (tmp_path / "x.csv").write_text("id\n" + "\n".join(ids) + "\n")
        column = read(Source(tmp_path / "x.csv"), (), ("id",)).table["id"]
        assert column.dtype == dtype
        assert column.cast(pl.String).to_list() == ids
    (tmp_path / "x.csv").write_text("id\n1\n2\n")
    assert read(Source(tmp_path / "x.csv", text_columns=("id",)), (), ("id",)).table["id"].to_list() == [
        "1",
        "2",
    ]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.Int32, pl.UInt64, pl.String])
def test_ids_of_parquet_keep_their_type(tmp_path: Path, dtype: pl.DataType) -> None:
    pl.DataFrame({"id": pl.Series([1, 2]).cast(dtype)}).write_parquet(tmp_path / "x.parquet")
    assert read(Source(tmp_path / "x.parquet"), (), ("id",)).table["id"].dtype == dtype


@pytest.mark.parametrize("values", [[1.0, 2.0], [True, False], [[1], [2]], [b"a", b"b"]])
def test_ids_that_are_neither_whole_numbers_nor_strings_are_refused(
    tmp_path: Path, values: list[object]
) -> None:
    pl.DataFrame({"id": values}).write_parquet(tmp_path / "x.parquet")
    message = refusal(Source(tmp_path / "x.parquet"), (), ("id",))
    assert "x.parquet: column 'id'" in message
    assert "expected whole numbers or strings" in message


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ids_that_change_type_between_files_are_refused_naming_both(tmp_path: Path, suffix: str) -> None:
    for name, ids in (("a", [1, 2]), ("b", ["x", "y"])):
        table = pl.DataFrame({"id": ids})
        file = tmp_path / f"{name}.{suffix}"
        table.write_parquet(file) if suffix == "parquet" else table.write_csv(file)
    message = refusal(Source(tmp_path), (), ("id",))
    assert "a.csv" in message or "a.parquet" in message
    assert "b.csv" in message or "b.parquet" in message
    assert "'id'" in message


def test_whole_numbers_of_different_width_are_joined_while_they_fit(tmp_path: Path) -> None:
    pl.DataFrame({"id": pl.Series([1], dtype=pl.Int16)}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"id": pl.Series([2**40], dtype=pl.Int64)}).write_parquet(tmp_path / "b.parquet")
    ids = read(Source(tmp_path), (), ("id",)).table["id"]
    assert (ids.dtype, ids.to_list()) == (pl.Int64, [1, 2**40])
    pl.DataFrame({"id": pl.Series([2**63], dtype=pl.UInt64)}).write_parquet(tmp_path / "a.parquet")
    assert "column 'id'" in refusal(Source(tmp_path), (), ("id",))


def test_ids_of_a_fixed_set_of_names_are_strings(tmp_path: Path) -> None:
    names = pl.Series(["b", "a"])
    for dtype in (pl.Categorical(), pl.Enum(["a", "b"])):
        pl.DataFrame({"id": names.cast(dtype)}).write_parquet(tmp_path / "x.parquet")
        assert read(Source(tmp_path / "x.parquet"), (), ("id",)).table["id"].equals(names.alias("id"))


def test_an_empty_part_does_not_change_the_type_of_ids(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n")
    (tmp_path / "b.csv").write_text("id\n1\n")
    assert read(Source(tmp_path), (), ("id",)).table["id"].to_list() == [1]


def test_a_misspelt_column_is_told_with_what_was_found(tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "x.parquet")
    message = refusal(Source(tmp_path / "x.parquet"), ("ratin",), ("User",))
    assert (
        "x.parquet: column 'ratin' was not found; did you mean 'rating'? (found: user, item, rating)"
        in message
    )
    assert "did you mean 'user'?" in message


@pytest.mark.parametrize(
    ("found", "meant", "said"),
    [(",", ";", '";"'), (",", "\t", '"\\t"'), (";", ",", '","'), (";;", "::", '"::"')],
)
def test_another_separator_than_the_one_in_the_header_is_told(tmp_path: Path, found, meant, said) -> None:
    file = _written(tmp_path / "x.csv", f"user{meant}item{meant}rating\n1{meant}2{meant}3\n")
    told = refusal(Source(file, separator=found))
    assert f"where {found!r} separates columns; is it separator: {said}?" in told
    assert read(Source(file, separator=meant), COLUMNS, IDS).table.height == 1


def test_a_header_of_other_names_is_no_matter_of_the_separator(tmp_path: Path) -> None:
    assert "column 'user' was not found" in refusal(Source(_written(tmp_path / "x.csv", "some,thing\n1,2\n")))
    assert "column 'user' was not found" in refusal(Source(_written(tmp_path / "x.csv", "some;thing\n1;2\n")))


def test_utf_16_is_told_with_what_to_say(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(EVENTS.write_csv().encode("utf-16"))
    assert "x.csv: begins as UTF-16 does, expected UTF-8; is it encoding: utf-16?" in refusal(
        Source(tmp_path / "x.csv")
    )
    assert_same_events(Source(tmp_path / "x.csv", encoding="utf-16"))


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_table_or_query_of_another_file_than_duckdb_is_told(tmp_path: Path, name: str) -> None:
    (EVENTS.write_csv if name == "x.csv" else EVENTS.write_parquet)(tmp_path / name)
    for asked in ({"table": "events"}, {"query": "SELECT 1"}):
        assert f"{name}: is no DuckDB file" in refusal(Source(tmp_path / name, **asked))


def test_a_missing_path_is_told_with_near_names(tmp_path: Path) -> None:
    (tmp_path / "ratings.parquet").touch()
    assert "did you mean 'ratings.parquet'?" in refusal(Source(tmp_path / "rating.parquet"))
    assert "did you mean" not in refusal(Source(tmp_path / "nowhere" / "deep" / "x.parquet"))
    assert "no files of a known type" in refusal(Source(tmp_path / "*.csv"))
    assert "what is a '.xyz' file?" in refusal(Source(_written(tmp_path / "a.xyz", "1")))


def test_files_of_several_types_in_a_folder_are_refused(tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "x.parquet")
    EVENTS.write_csv(tmp_path / "y.csv")
    assert "files of different types (.csv, .parquet)" in refusal(Source(tmp_path))
    assert_same_events(Source(tmp_path, format="parquet"))
    assert_same_events(Source(tmp_path / "*.csv"))


def test_where_selects_alike_in_text_and_parquet_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "x.parquet")
    EVENTS.write_csv(tmp_path / "x.csv")
    for name in ("x.parquet", "x.csv"):
        rows = read(Source(tmp_path / name, where="rating >= 4 OR item = 13"), (), IDS)
        assert rows.table["item"].to_list() == [11, 13]
        assert rows.origin(rows.table[POSITION])["row"].to_list() == [1, 3]
        assert rows.left_out == 1
        assert read(Source(tmp_path / name, where="1 = 2"), (), IDS).table.height == 0
        assert read(Source(tmp_path / name, where="1 = 1"), (), IDS).table.height == 3
        assert "did you mean 'rating'?" in refusal(Source(tmp_path / name, where="ratin > 1"))
        assert "cannot be applied" in refusal(Source(tmp_path / name, where='"user" > 1'))
        assert "is no SQL expression" in refusal(Source(tmp_path / name, where="rating >"))


def test_a_file_without_header_takes_the_names_given(tmp_path: Path) -> None:
    file = _written(tmp_path / "u.data", "1\t2\t3\n4\t5\t6\n")
    names = ("user", "item", "rating")
    assert read(Source(file, header=False, column_names=names), COLUMNS, IDS).table["rating"].to_list() == [
        "3",
        "6",
    ]
    message = refusal(Source(file, header=False, column_names=("user", "item")))
    assert "row 1 has 3 columns, but 2 names are given" in message
    empty = _written(tmp_path / "v.data", "")
    assert read(Source(empty, header=False, column_names=names), COLUMNS, IDS).table.height == 0


def test_latin_1_is_read_and_wrong_utf8_is_told_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "movies.dat"
    file.write_bytes("1::Toy Story\n2::Misérables, Les\n".encode("latin-1"))
    source = Source(file, header=False, column_names=("item", "title"), encoding="latin-1")
    assert read(source, ("title",), ("item",)).table["title"].to_list() == ["Toy Story", "Misérables, Les"]
    bare = Source(file, header=False, column_names=("item", "title"))
    assert "movies.dat, row 2: not UTF-8" in refusal(bare, ("title",), ("item",))
    assert "cannot be read as 'klingon'" in refusal(Source(file, encoding="klingon"), ("title",), ("item",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("user,item,rating\n1,2,3\n1,2,3,4\n1,2,3\n", "row 2: 4 columns where 3 were expected"),
        ('user,item,rating\n1,2,3\n1,"2,3\n1,2,3\n', "row 2: a quote is opened and never closed"),
        ("user,item,rating\n1,2,3\n1,2,3\n1,2", "row 3: cut short, the last line has 2 of 3 columns"),
        ("", "empty, there is not even a header"),
    ],
)
def test_malformed_text_is_refused_with_file_and_row(tmp_path: Path, text: str, told: str) -> None:
    message = refusal(Source(_written(tmp_path / "x.csv", text)))
    assert str(tmp_path / "x.csv") in message
    assert told in message
    packed = tmp_path / "y.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert told in refusal(Source(packed))


def test_a_last_line_without_end_and_empty_lines_at_the_end_are_no_fault(tmp_path: Path) -> None:
    for end in ("", "\n", "\n\n\n", "\r\n\r\n"):
        assert (
            read(
                Source(_written(tmp_path / "x.csv", "user,item,rating\n1,2,3\n4,5,6" + end)), COLUMNS, IDS
            ).table.height
            == 2
        )
    rows = read(Source(_written(tmp_path / "x.csv", "user,item,rating\n1,2,3\n,,\n")), COLUMNS, IDS)
    assert rows.table.height == 2  # a row of nothing is a row: it will be set aside


def test_quoted_fields_may_hold_separators_and_line_ends(tmp_path: Path) -> None:
    file = _written(tmp_path / "x.csv", 'user,item,rating\n"a,b",1,2\n"c\nd",3,4\n')
    assert read(Source(file), COLUMNS, IDS).table["user"].to_list() == ["a,b", "c\nd"]


def test_truncated_packed_files_are_refused(tmp_path: Path) -> None:
    payload = gzip.compress(EVENTS.write_csv().encode())
    (tmp_path / "x.csv.gz").write_bytes(payload[:-12])
    assert "x.csv.gz: damaged or cut short" in refusal(Source(tmp_path / "x.csv.gz"))
    EVENTS.write_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-20])
    assert "x.parquet: not a readable Parquet file" in refusal(Source(tmp_path / "x.parquet"))


def test_a_member_of_an_archive_is_read_without_unpacking_and_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped/x.csv", EVENTS.write_csv())
        archive.writestr("bomb.csv", "user,item,rating\n" + "1,2,3\n" * 100_000)
    assert_same_events(Source(file, member="../../escaped/x.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert not (tmp_path.parent.parent / "escaped").exists()
    assert "the member 'y.csv' was not found" in refusal(Source(file, member="y.csv"))
    monkeypatch.setattr(sources, "MAX_UNPACKED", 10_000)
    assert "a.zip/bomb.csv: unpacks to more than 10,000 bytes" in refusal(Source(file, member="bomb.csv"))
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"user,item,rating\n" + b"1,2,3\n" * 100_000))
    assert "unpacks to more than 10,000 bytes" in refusal(Source(tmp_path / "bomb.csv.gz"))


def _written(file: Path, text: str) -> Path:
    file.write_bytes(text.encode())
    return file


GOOD = pl.DataFrame(
    {
        "user_id": [f"u{row % 7}" for row in range(40)],
        "item_id": list(range(40)),
        "value": [float(row % 5) for row in range(40)],
        "timestamp": [1_600_000_000 + row for row in range(40)],
    }
)
NAMES = tuple(GOOD.columns)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["x.csv", "x.dat", "x.parquet", "x.csv.gz"]),
    edits=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=6
    ),
    cut=st.none() | st.integers(0, 5_000),
)
def test_mangled_files_are_refused_or_read_and_never_break(
    tmp_path_factory: pytest.TempPathFactory, kind: str, edits: list[tuple[int, int, bytes]], cut: int | None
) -> None:
    file = tmp_path_factory.mktemp("mangled") / kind
    if kind == "x.parquet":
        GOOD.write_parquet(file)
        payload = bytearray(file.read_bytes())
    else:
        text = GOOD.write_csv(include_header=kind != "x.dat").encode()
        payload = bytearray(
            gzip.compress(text)
            if kind == "x.csv.gz"
            else text.replace(b",", b"::")
            if kind == "x.dat"
            else text
        )
    for place, length, replacement in edits:
        start = place % max(1, len(payload))
        payload[start : start + length] = replacement
    file.write_bytes(payload[:cut])
    source = Source(file, header=False, column_names=NAMES) if kind == "x.dat" else Source(file)
    try:
        checked = read_interactions(
            source, value="value", timestamp="timestamp", value_range=(0, 5), max_quarantined_share=1.0
        )
    except InputError as refused:
        message = str(refused)
    else:
        message = ""
        assert checked.table["value"].is_finite().all()
        assert checked.counts["rows_kept"] == checked.table.height
        assert checked.quarantine["reason"].null_count() == 0
    assert message == "" or str(file) in message
