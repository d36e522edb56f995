"""Feature tables and lists of ids: one type per kind of feature, unknown is null, unreadable is told."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys_meta.ingest import Checked, InputError, Source, declared_features, read_features, read_ids
from recsys_meta.tables import ITEM_ID, USER_ID, Feature


def checked(folder: Path, columns: dict[str, Any], **arguments: Any) -> Checked:
    pl.DataFrame(columns).write_parquet(folder / "x.parquet")
    settings = {"id_column": "id", "id_name": ITEM_ID, "max_quarantined_share": 1.0, **arguments}
    return read_features(Source(folder / "x.parquet"), **settings)


def faults(result: Checked) -> list[tuple[int, str, str]]:
    return list(result.quarantine.select("row", "column", "reason").iter_rows())


def test_every_kind_has_its_type_and_the_columns_follow_the_declaration(tmp_path: Path) -> None:
    columns = {"id": ["a"], "v": [[1, 2]], "n": [3], "m": [["x"]], "c": [7], "unused": [0]}
    kinds: dict[str, Any] = {"categorical": ("c",), "multi": ("m",), "numbers": ("n",), "vectors": ("v",)}
    result = checked(tmp_path, columns, **kinds)
    assert result.table.schema == {
        ITEM_ID: pl.String, "c": pl.String, "m": pl.List(pl.String), "n": pl.Float32, "v": pl.List(pl.Float32),
    }  # fmt: skip
    assert result.table.rows() == [("a", "7", ["x"], 3.0, [1.0, 2.0])]
    assert declared_features(**kinds) == (
        Feature("c", "categorical"), Feature("m", "multi"), Feature("n", "number"), Feature("v", "vector"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        ["x| y||", None, ""],
        [["x", " y", "", None], None, None],
        pl.Series([["x", "y"], None, None], dtype=pl.Array(pl.String, 2)),
    ],
)
def test_several_values_come_as_lists_or_separated_text(tmp_path: Path, values: Any) -> None:
    result = checked(tmp_path, {"id": [1, 2, 3], "m": values}, multi=("m",))
    assert result.table["m"].to_list() == [["x", "y"], None, None]


def test_each_column_may_have_its_own_separator(tmp_path: Path) -> None:
    columns = {"id": [1], "genres": ["a|b, c"], "actors": ["a|b, c"]}
    result = checked(tmp_path, columns, multi=("genres", "actors"), multi_separator={"actors": ","})
    assert result.table.row(0) == (1, ["a", "b, c"], ["a|b", "c"])


def test_flags_become_the_names_of_their_columns(tmp_path: Path) -> None:
    columns = {"id": [1, 2, 3], "war": [1, 0, None], "crime": [1.0, 0.0, 1.0]}
    result = checked(tmp_path, columns, flags={"genres": ("crime", "war")})
    assert result.table["genres"].to_list() == [["crime", "war"], [], ["crime"]]
    assert declared_features(flags={"genres": ("crime", "war")}) == (Feature("genres", "multi"),)


def test_a_number_that_cannot_be_read_is_null_and_told_while_its_row_stays(tmp_path: Path) -> None:
    text = checked(tmp_path, {"id": [1, 2, 3, 4], "n": [" 1.5", "many", "", "-inf"]}, numbers=("n",))
    assert text.table["n"].to_list() == [1.5, None, None, None]
    assert faults(text) == [(2, "n", "is not a finite number"), (4, "n", "is not a finite number")]
    assert text.counts["cells_quarantined"] == 2
    assert text.counts["rows_quarantined"] == 0
    floats = checked(tmp_path, {"id": [1, 2, 3], "n": [float("nan"), float("inf"), 1e300]}, numbers=("n",))
    assert floats.table["n"].to_list() == [None, None, None]
    assert [row for row, _, _ in faults(floats)] == [2, 3]


def test_vectors_that_are_not_finite_or_of_another_length_are_null_and_told(tmp_path: Path) -> None:
    vectors = [[1.0, 2.0], [1.0], [1.0, float("nan")], None, [], [3.0, 4.0], [1.0, None]]
    result = checked(tmp_path, {"id": list(range(7)), "v": vectors}, vectors=("v",))
    assert result.table["v"].to_list() == [[1.0, 2.0], None, None, None, None, [3.0, 4.0], None]
    assert faults(result) == [
        (2, "v", "is a vector of another length than 2"),
        (3, "v", "is not a vector of finite numbers"),
        (5, "v", "is not a vector of finite numbers"),
        (7, "v", "is not a vector of finite numbers"),
    ]
    text = checked(tmp_path, {"id": [1, 2, 3], "v": ["[1, 2]", "3 4", "x y"]}, vectors=("v",))
    assert text.table["v"].to_list() == [[1.0, 2.0], [3.0, 4.0], None]
    unknown = checked(tmp_path, {"id": [1], "v": [None]}, vectors=("v",))
    assert unknown.table["v"].to_list() == [None]


def test_rows_without_id_are_set_aside_and_of_the_same_id_the_last_stays(tmp_path: Path) -> None:
    result = checked(
        tmp_path, {"id": ["a", None, "b", "a", ""], "c": ["1", "2", "3", "4", "5"]}, categorical=("c",)
    )
    assert result.table.rows() == [("b", "3"), ("a", "4")]
    assert faults(result) == [(2, "id", "is missing"), (5, "id", "is missing")]
    assert result.counts["duplicate_ids"] == 1
    assert result.counts["rows_quarantined"] == 2
    with pytest.raises(InputError, match="2 of 5 rows are at fault"):
        checked(tmp_path, {"id": ["a", None, "b", "a", ""]}, max_quarantined_share=0.3)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("categorical", [timedelta(1)]),
        ("multi", [[b"a"]]),
        ("categorical", [["a"]]),
        ("multi", [[["a"]]]),
        ("numbers", [["a"]]),
        ("vectors", [1.0]),
        ("vectors", [["a"]]),
    ],
)
def test_a_column_of_an_impossible_type_is_refused(tmp_path: Path, kind: str, values: list[Any]) -> None:
    with pytest.raises(InputError, match=r"x\.parquet: column 'f' is of type"):
        checked(tmp_path, {"id": [1], "f": values}, **{kind: ("f",)})


def test_a_missing_column_and_one_declared_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'genre' was not found; did you mean 'genres'"):
        checked(tmp_path, {"id": [1], "genres": ["a"]}, multi=("genre",))
    with pytest.raises(InputError, match="'genres' is declared twice"):
        checked(tmp_path, {"id": [1], "genres": ["a"]}, multi=("genres",), categorical=("genres",))


def test_a_table_of_nothing_but_ids_will_do(tmp_path: Path) -> None:
    assert checked(tmp_path, {"id": [3, 1]}, id_name=USER_ID).table.rows() == [(3,), (1,)]


def test_ids_come_each_once_in_their_order_and_type(tmp_path: Path) -> None:
    file = tmp_path / "ids.csv"
    file.write_text("user\n007\nb\n007\n1\n")
    assert read_ids(Source(file), id_column="user").to_list() == ["007", "b", "1"]
    file.write_text("user,x\n1,1\n,2\n")
    with pytest.raises(InputError, match=r"ids\.csv, row 2: column 'user' is missing"):
        read_ids(Source(file), id_column="user")
