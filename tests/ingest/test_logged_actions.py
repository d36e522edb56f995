"""Logged actions at the door: columns mapped, bad rows set aside with their reason, bad files refused."""

import duckdb
import polars as pl
import pytest

from recsys_meta.ingest import InputError, Source, read_logged_actions

HEADER = "who,what,place,list,click,p,hour\n"
GOOD = "u1,a,1,s1,1,0.5,am\nu1,b,2,s1,0,0.25,am\nu2,a,1,s2,0,0.5,pm\n"
NAMES = {
    "user_id": "who",
    "item_id": "what",
    "position": "place",
    "slate_id": "list",
    "reward": "click",
    "propensity": "p",
    "context": ["hour"],
}


def read(tmp_path, lines: str, **changes):
    (tmp_path / "logs.csv").write_text(HEADER + lines)
    return read_logged_actions(
        Source(tmp_path / "logs.csv"), **{**NAMES, "max_quarantined_share": 1.0, **changes}
    )


def test_columns_are_mapped_and_the_order_stays(tmp_path):
    found = read(tmp_path, GOOD)
    assert found.table.to_dict(as_series=False) == {
        "item_id": ["a", "b", "a"],
        "user_id": ["u1", "u1", "u2"],
        "position": [1, 2, 1],
        "slate_id": ["s1", "s1", "s2"],
        "reward": [1.0, 0.0, 0.0],
        "propensity": [0.5, 0.25, 0.5],
        "hour": ["am", "am", "pm"],
    }
    assert found.counts == {"rows_read": 3, "rows_not_selected": 0, "rows_kept": 3, "rows_quarantined": 0}


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("u3,a,1,s3,1,0,am", "p", "outside (0, 1]"),
        ("u3,a,1,s3,1,1.5,am", "p", "outside (0, 1]"),
        ("u3,a,1,s3,1,-0.1,am", "p", "outside (0, 1]"),
        ("u3,a,1,s3,1,,am", "p", "missing or no number"),
        ("u3,a,1,s3,1,nan,am", "p", "outside (0, 1]"),
        ("u3,a,1,s3,yes,0.5,am", "click", "missing or no number"),
        ("u3,a,1,s3,inf,0.5,am", "click", "not finite"),
        ("u3,,1,s3,1,0.5,am", "what", "is missing"),
        (",a,1,s3,1,0.5,am", "who", "is missing"),
        ("u3,a,,s3,1,0.5,am", "place", "is missing"),
        ("u1,c,1,s1,1,0.5,am", "place", "stands in this slate already"),
    ],
)
def test_a_bad_row_goes_to_quarantine_with_its_place_and_reason(tmp_path, line, column, reason):
    found = read(tmp_path, GOOD + line + "\n")
    assert found.table.height == 3
    (row,) = found.quarantine.to_dicts()
    assert (row["row"], row["column"]) == (4, column)
    assert reason in row["reason"]
    assert row["source"].endswith("logs.csv")


def test_an_item_that_is_no_action_goes_to_quarantine(tmp_path):
    found = read(tmp_path, GOOD, actions=pl.Series(["a", "c"]))
    assert found.table["item_id"].to_list() == ["a", "a"]
    assert found.quarantine["reason"].to_list() == ["is none of the 2 actions"]


def test_actions_of_another_type_are_refused(tmp_path):
    with pytest.raises(InputError, match="item ids are String, and Int64 in the table of actions"):
        read(tmp_path, GOOD, actions=pl.Series([1, 2]))


def test_too_many_bad_rows_stop_the_run_and_show_one(tmp_path):
    with pytest.raises(
        InputError, match=r"1 of 4 rows .* column 'p' is outside \(0, 1\].*first in .*logs.csv, row 4"
    ):
        read(tmp_path, GOOD + "u3,a,1,s3,1,7,am\n", max_quarantined_share=0.1)


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"'clock' was not found.*did you mean 'click'"):
        read(tmp_path, GOOD, reward="clock")


def test_a_context_may_not_take_the_name_of_a_column_of_the_logs(tmp_path):
    (tmp_path / "logs.csv").write_text("item_id,reward,propensity\n1,0,0.5\n")
    with pytest.raises(InputError, match=r"\['propensity'\] are called as the logs' own"):
        read_logged_actions(Source(tmp_path / "logs.csv"), propensity="reward", context=["propensity"])


def test_columns_that_are_not_named_are_not_asked_for(tmp_path):
    found = read_logged_actions(Source(write(tmp_path)), item_id="what", reward="click")
    assert found.table.columns == ["item_id", "reward"]


def write(tmp_path):
    (tmp_path / "logs.csv").write_text(HEADER + GOOD)
    return tmp_path / "logs.csv"


def test_a_table_of_duckdb_is_read_alike(tmp_path):
    expected = read_logged_actions(Source(write(tmp_path)), **NAMES).table
    with duckdb.connect(str(tmp_path / "logs.duckdb")) as connection:
        connection.execute(f"CREATE TABLE shown AS SELECT * FROM read_csv('{tmp_path / 'logs.csv'}')")
    found = read_logged_actions(Source(tmp_path / "logs.duckdb", table="shown", where="place = 1"), **NAMES)
    assert found.table.equals(expected.filter(pl.col("position") == 1))
    assert found.counts["rows_not_selected"] == 1
