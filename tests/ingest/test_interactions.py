"""Interactions: what is kept comes out as it came in, what is not says where it stood and why."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_meta.ingest import Checked, InputError, Source, read_interactions
from recsys_meta.tables import INSTANT, ITEM_ID, QUARANTINE, TIMESTAMP, USER_ID, VALUE

MIDNIGHT = datetime(2026, 11, 1, tzinfo=UTC)


def checked(folder: Path, columns: dict[str, Any], suffix: str = "parquet", **arguments: Any) -> Checked:
    table, file = pl.DataFrame(columns), folder / f"x.{suffix}"
    table.write_parquet(file) if suffix == "parquet" else table.write_csv(file)
    return read_interactions(Source(file), **{"max_quarantined_share": 1.0, **arguments})


def faults(result: Checked) -> list[tuple[int, str, str]]:
    return list(result.quarantine.select("row", "column", "reason").iter_rows())


def test_ids_keep_their_type_and_values_become_float32(tmp_path: Path) -> None:
    columns = {"u": ["007", "7"], "i": pl.Series([1, 2], dtype=pl.UInt16), "r": [1, 5], "t": [0, 1]}
    result = checked(tmp_path, columns, user_id="u", item_id="i", value="r", timestamp="t")
    assert result.table.schema == {
        USER_ID: pl.String,
        ITEM_ID: pl.UInt16,
        VALUE: pl.Float32,
        TIMESTAMP: INSTANT,
    }
    assert result.table[USER_ID].to_list() == ["007", "7"]
    assert result.table[VALUE].to_list() == [1.0, 5.0]


def test_without_value_and_time_columns_every_event_weighs_one_and_time_is_unknown(tmp_path: Path) -> None:
    result = checked(tmp_path, {"user_id": [1, 2], "item_id": [1, 1]})
    assert result.table.columns == [USER_ID, ITEM_ID, VALUE]
    assert result.table[VALUE].to_list() == [1.0, 1.0]


def test_an_empty_source_is_no_error(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        columns = {
            "user_id": pl.Series([], dtype=pl.Int64),
            "item_id": pl.Series([], dtype=pl.Int64),
            "t": pl.Series([], dtype=pl.Int64),
        }
        result = checked(tmp_path, columns, suffix, timestamp="t", moment=MIDNIGHT)
        assert result.table.height == 0
        assert result.counts["rows_read"] == result.counts["rows_kept"] == 0
        assert result.table.columns == [USER_ID, ITEM_ID, VALUE, TIMESTAMP]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_bad_rows_go_to_quarantine_with_file_row_column_and_reason(tmp_path: Path, suffix: str) -> None:
    columns = {
        "user_id": ["a", None, "c", "d", "e", "f", "g"],
        "item_id": [1, 2, None, 4, 5, 6, 7],
        "r": [5.0, 1.0, 1.0, float("nan"), float("inf"), 9.0, None],
    }
    result = checked(tmp_path, columns, suffix, value="r", value_range=(1, 5))
    assert faults(result) == [
        (2, "user_id", "is missing"),
        (3, "item_id", "is missing"),
        (4, "r", "is NaN"),
        (5, "r", "is infinite"),
        (6, "r", "is outside 1 to 5"),
        (7, "r", "is missing"),
    ]
    assert result.table.rows() == [("a", 1, 5.0)]
    assert set(result.quarantine["source"]) == {str(tmp_path / f"x.{suffix}")}
    assert dict(result.quarantine.schema) == {
        name: dtype for name, dtype in QUARANTINE.items() if name != "run_id"
    }
    raw = json.loads(result.quarantine["raw"][4])
    assert (raw["user_id"], float(raw["item_id"]), float(raw["r"])) == ("f", 6, 9)


def test_a_few_bad_cells_of_a_text_file_take_only_their_rows(tmp_path: Path) -> None:
    text = "user_id,item_id,r,t\n1,1,4,2026-01-01\n2,2,four,2026-01-01\n3,3,4,yesterday\n4,4, 3.5 ,2026-01-02 10:00:00\n"
    (tmp_path / "x.csv").write_text(text)
    result = read_interactions(
        Source(tmp_path / "x.csv"), value="r", timestamp="t", max_quarantined_share=0.5
    )
    assert faults(result) == [
        (2, "r", "is not a number"),
        (3, "t", "is not a time between the years 1 and 9999"),
    ]
    assert result.table[USER_ID].to_list() == [1, 4]
    assert result.table[VALUE].to_list() == [4.0, 3.5]
    assert json.loads(result.quarantine["raw"][0]) == {
        "user_id": 2,
        "item_id": 2,
        "r": "four",
        "t": "2026-01-01",
    }


def test_the_row_is_that_of_its_own_part_file_whatever_where_selects(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,r\n1,1,1\n2,2,2\n")
    (tmp_path / "b.csv").write_text("user_id,item_id,r\n3,3,3\n4,4,bad\n5,5,5\n")
    result = read_interactions(Source(tmp_path, where="user_id > 1"), value="r", max_quarantined_share=0.5)
    assert result.quarantine.select("source", "row").rows() == [(str(tmp_path / "b.csv"), 2)]
    assert result.table[USER_ID].to_list() == [2, 3, 5]
    assert result.counts["rows_not_selected"] == 1
    assert result.counts["rows_read"] == 4


def test_above_the_allowed_share_the_reasons_are_told_with_an_example(tmp_path: Path) -> None:
    columns = {"user_id": list(range(100)), "item_id": [1] * 100, "r": [1.0] * 97 + [7.0, 7.0, float("nan")]}
    with pytest.raises(InputError) as refused:
        checked(tmp_path, columns, value="r", value_range=(1, 5), max_quarantined_share=0.02)
    message = str(refused.value)
    assert "3 of 100 rows are at fault" in message
    assert "2 times column 'r' is outside 1 to 5 (first in " in message
    assert f"{tmp_path / 'x.parquet'}, row 98: {{'user_id': 97" in message
    assert (
        checked(tmp_path, columns, value="r", value_range=(1, 5), max_quarantined_share=0.03).counts[
            "rows_quarantined"
        ]
        == 3
    )


def test_a_misspelt_column_is_told_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"column 'ratin' was not found; did you mean 'rating'\? \(found: user_id, item_id, rating",
    ):
        checked(tmp_path, {"user_id": [1], "item_id": [1], "rating": [1]}, value="ratin")


def test_columns_of_an_impossible_type_are_refused(tmp_path: Path) -> None:
    columns = {"user_id": [1], "item_id": [1], "r": [[1.0]]}
    with pytest.raises(InputError, match="column 'r' is of type List"):
        checked(tmp_path, columns, value="r")
    with pytest.raises(InputError, match="column 'r' is of type List"):
        checked(tmp_path, columns, timestamp="r")


# ---- time

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECONDS = int(NOON.timestamp())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (1_000, "ms"), (1_000_000, "us")])
def test_the_unit_of_whole_numbers_is_guessed_by_their_size(
    tmp_path: Path, suffix: str, factor: int, unit: str
) -> None:
    columns = {"user_id": [1, 2], "item_id": [1, 2], "t": [SECONDS * factor, (SECONDS + 1) * factor]}
    for time_unit in ("auto", unit):
        result = checked(tmp_path, columns, suffix, timestamp="t", time_unit=time_unit)
        assert result.table[TIMESTAMP].to_list() == [NOON, NOON + timedelta(seconds=1)]
        assert result.counts[f"timestamps_read_as_{unit}"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:00:00Z",
        "2026-03-01T12:00:00.000000Z",
        "2026-03-01T14:00:00+02:00",
        "2026-03-01 13:00:00+0100",
        "2026-03-01 12:00:00 UTC",
        "2026-03-01T12:00:00.000GMT",
        "2026-03-01 12:00:00",
        "2026-03-01T12:00:00.000",
        "2026-03-01 12:00",
    ],
)
def test_iso_text_is_read_and_a_missing_zone_is_utc_and_counted(tmp_path: Path, text: str) -> None:
    for time_unit in ("iso", "auto"):
        result = checked(
            tmp_path, {"user_id": [1], "item_id": [1], "t": [text]}, "csv", timestamp="t", time_unit=time_unit
        )
        assert result.table[TIMESTAMP].to_list() == [NOON]
        assert result.counts["naive_timestamps_read_as_utc"] == int(
            not text.endswith(("Z", "00+02:00", "+0100", "UTC", "GMT"))
        )


def test_one_column_may_mix_the_forms_of_iso(tmp_path: Path) -> None:
    columns = {
        "user_id": [1, 2, 3],
        "item_id": [1, 2, 3],
        "t": ["2026-03-01", "2026-03-01T12:00:00Z", "2026-03-01 12:00:00.5"],
    }
    result = checked(tmp_path, columns, timestamp="t")
    assert result.table[TIMESTAMP].to_list() == [
        NOON - timedelta(hours=12),
        NOON,
        NOON + timedelta(milliseconds=500),
    ]


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([NOON.replace(tzinfo=None)], dtype=pl.Datetime("ns")),
        pl.Series([NOON.replace(tzinfo=None)], dtype=pl.Datetime("ms")),
        pl.Series([NOON.astimezone(timezone(timedelta(hours=9)))], dtype=pl.Datetime("us", "Asia/Tokyo")),
    ],
)
def test_datetimes_of_any_precision_and_zone_become_utc(tmp_path: Path, times: pl.Series) -> None:
    result = checked(tmp_path, {"user_id": [1], "item_id": [1], "t": times}, timestamp="t")
    assert result.table[TIMESTAMP].to_list() == [NOON]
    assert result.table[TIMESTAMP].dtype == INSTANT


def test_a_date_is_its_first_instant_in_utc(tmp_path: Path) -> None:
    result = checked(tmp_path, {"user_id": [1], "item_id": [1], "t": [date(2026, 3, 1)]}, timestamp="t")
    assert result.table[TIMESTAMP].to_list() == [datetime(2026, 3, 1, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("time", "unit", "told"), [(20180604, "auto", True), (20180604, "s", False), (1.6e9, "auto", False)]
)
def test_times_that_all_lie_in_1970_are_doubted(tmp_path: Path, caplog, time, unit, told) -> None:
    checked(
        tmp_path, {"user_id": [1, 2], "item_id": [1, 1], "t": [time, time]}, timestamp="t", time_unit=unit
    )
    assert ("all times lie in 1970" in caplog.text) == told


def test_a_number_too_large_for_the_unit_goes_to_quarantine_and_does_not_overflow(tmp_path: Path) -> None:
    columns = {"user_id": [1, 2, 3], "item_id": [1, 2, 3], "t": [SECONDS, 2**62, -(2**62)]}
    result = checked(tmp_path, columns, timestamp="t", time_unit="s")
    assert result.table[TIMESTAMP].to_list() == [NOON]
    assert [row for row, _, _ in faults(result)] == [2, 3]


def test_nanoseconds_and_a_wrong_unit_are_refused(tmp_path: Path) -> None:
    columns = {"user_id": [1], "item_id": [1], "t": [SECONDS * 10**9]}
    with pytest.raises(InputError, match="nanoseconds"):
        checked(tmp_path, columns, timestamp="t")
    with pytest.raises(InputError, match="time_unit is 'iso'"):
        checked(tmp_path, columns, timestamp="t", time_unit="iso")


@pytest.mark.parametrize(
    "moment", [MIDNIGHT, MIDNIGHT.replace(tzinfo=None), MIDNIGHT.astimezone(timezone(timedelta(hours=-5)))]
)
def test_rows_later_than_the_moment_are_set_aside_or_dropped(tmp_path: Path, moment: datetime) -> None:
    columns = {
        "user_id": [1, 2, 3],
        "item_id": [1, 2, 3],
        "t": [MIDNIGHT - timedelta(days=1), MIDNIGHT, MIDNIGHT + timedelta(microseconds=1)],
    }
    aside = checked(tmp_path, columns, timestamp="t", moment=moment)
    assert faults(aside) == [(3, "t", "is later than the moment of the run")]
    dropped = checked(
        tmp_path, columns, timestamp="t", moment=moment, later="drop", max_quarantined_share=0.0
    )
    assert dropped.quarantine.height == 0
    for result in (aside, dropped):
        assert result.table[USER_ID].to_list() == [1, 2]
        assert result.counts["later_than_moment"] == 1


# ---- duplicates

# user, item, value, day: (1, 1) contradicts itself three times and repeats a row; (2, 1) stands once.
REPEATED = [(1, 1, 2.0, 5), (1, 1, 4.0, 9), (2, 1, 3.0, 1), (1, 1, 4.0, 9), (1, 1, 3.0, 7)]


@pytest.mark.parametrize(
    ("rule", "kept", "merged"),
    [
        ("newest", [(1, 1, 4.0, 9), (2, 1, 3.0, 1)], 2),
        ("first", [(1, 1, 2.0, 5), (2, 1, 3.0, 1)], 2),
        ("mean", [(1, 1, 3.0, 9), (2, 1, 3.0, 1)], 2),
        ("keep", [(1, 1, 2.0, 5), (1, 1, 4.0, 9), (2, 1, 3.0, 1), (1, 1, 3.0, 7)], 0),
    ],
)
def test_duplicates_are_settled_by_the_rule(
    tmp_path: Path, rule: str, kept: list[tuple[Any, ...]], merged: int
) -> None:
    user, item, value, day = (list(column) for column in zip(*REPEATED, strict=True))
    columns = {"user_id": user, "item_id": item, "r": value, "t": [number * 86_400 for number in day]}
    result = checked(tmp_path, columns, value="r", timestamp="t", time_unit="s", duplicates=rule)
    found = [
        (user, item, value, time.toordinal() - date(1970, 1, 1).toordinal())
        for user, item, value, time in result.table.rows()
    ]
    assert found == kept
    assert result.counts["exact_duplicates"] == 1
    assert result.counts["merged_duplicates"] == merged


@pytest.mark.parametrize(("rule", "value"), [("newest", 3.0), ("first", 2.0), ("mean", 2.5)])
def test_where_time_is_unknown_the_order_of_rows_decides(tmp_path: Path, rule: str, value: float) -> None:
    columns = {"user_id": [1, 1, 1], "item_id": [1, 1, 1], "r": [2.0, 3.0, 2.0]}
    result = checked(tmp_path, columns, value="r", duplicates=rule)
    assert result.table[VALUE].to_list() == [value]
    assert (result.counts["exact_duplicates"], result.counts["merged_duplicates"]) == (1, 1)


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 3), st.sampled_from([1.0, 2.0, 9.0, None]), st.integers(0, 4)
        ),
        max_size=30,
    ),
    rule=st.sampled_from(["newest", "first", "mean", "keep"]),
)
def test_every_row_read_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, float | None, int]], rule: str
) -> None:
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "r": pl.Float64, "t": pl.Int64}
    columns = pl.DataFrame(rows, schema=schema, orient="row").to_dict()
    result = checked(
        tmp_path_factory.mktemp("rows"),
        columns,
        value="r",
        timestamp="t",
        value_range=(0, 5),
        duplicates=rule,
    )
    counts = result.counts
    parts = ("rows_kept", "rows_quarantined", "exact_duplicates", "merged_duplicates")
    assert counts["rows_read"] == len(rows) == sum(counts[name] for name in parts)
    assert counts["rows_quarantined"] == sum(value not in (1.0, 2.0) for _, _, value, _ in rows)
    good = {(user, item) for user, item, value, _ in rows if value in (1.0, 2.0)}
    pairs = list(result.table.select(USER_ID, ITEM_ID).iter_rows())
    assert set(pairs) == good
    if rule != "keep":
        assert len(pairs) == len(good)
