"""Exposures and outcomes of an experiment: what is read, what is set aside, and what ends the reading."""

from datetime import UTC, datetime

import polars as pl
import pytest

from recsys_meta.ingest import InputError, Source, read_exposures, read_outcomes
from recsys_meta.tables import EXPOSURES, OUTCOMES

EXPOSED = """experiment,user_id,variant,exposed_at
slate,1,A,2026-01-01T10:00:00Z
slate,2,B,2026-01-01 11:00:00
other,3,A,2026-01-01T10:00:00Z
slate,,B,2026-01-01T12:00:00Z
slate,4,,2026-01-01T12:00:00Z
slate,5,B,yesterday
"""


@pytest.fixture
def file(tmp_path):
    def written(text: str, name: str = "rows.csv") -> Source:
        (tmp_path / name).write_text(text)
        return Source(tmp_path / name)

    return written


def test_the_exposures_of_one_experiment_come_with_the_columns_of_the_house(file) -> None:
    found = read_exposures(file(EXPOSED), name="slate", max_quarantined_share=1.0)
    assert set(found.table.columns) < set(EXPOSURES)
    assert found.table.rows() == [
        (1, "A", datetime(2026, 1, 1, 10, tzinfo=UTC)),
        (2, "B", datetime(2026, 1, 1, 11, tzinfo=UTC)),
    ]
    assert found.counts == {"rows_read": 5, "rows_kept": 2, "rows_quarantined": 3}


def test_a_bad_row_goes_to_quarantine_with_its_row_column_and_reason(file) -> None:
    found = read_exposures(file(EXPOSED), name="slate", max_quarantined_share=1.0).quarantine
    assert found.select("row", "column").rows() == [(4, "user_id"), (5, "variant"), (6, "exposed_at")]
    assert found["reason"].to_list() == [
        "is missing; expected the id of a user",
        "is missing; expected the name of a variant",
        "is not a time between the years 1 and 9999",
    ]
    with pytest.raises(InputError, match=r"3 of 5 rows are at fault.*rows\.csv, row 4"):
        read_exposures(file(EXPOSED), name="slate")


def test_which_experiment_is_meant_has_to_be_clear(file) -> None:
    with pytest.raises(InputError, match=r"holds 2 experiments \(other, slate\)"):
        read_exposures(file(EXPOSED))
    with pytest.raises(InputError, match=r"experiment 'slat' was not found; did you mean 'slate'"):
        read_exposures(file(EXPOSED), name="slat")
    only = read_exposures(file("user_id,variant,exposed_at\n1,0,2026-01-01\n"), experiment=None).table
    assert only["variant"].to_list() == ["0"]


def test_outcomes_may_come_under_other_names_without_value_or_metric(file) -> None:
    source = file("who,at\nu,1767225600\nv,1767225601\n")
    found = read_outcomes(
        source, called="click", user_id="who", metric=None, value=None, occurred_at="at"
    ).table
    assert set(found.columns) < set(OUTCOMES)
    assert found.rows()[0] == ("u", "click", 1.0, datetime(2026, 1, 1, tzinfo=UTC))


def test_only_the_metrics_asked_for_are_read_and_each_has_to_be_there(file) -> None:
    source = file(
        "user_id,metric,value,occurred_at\n1,click,1,2026-01-01\n1,minutes,nan,2026-01-01\n2,play,x,2026-01-01\n"
    )
    assert read_outcomes(source, metrics=["click"]).table["metric"].to_list() == ["click"]
    found = read_outcomes(source, max_quarantined_share=1.0)
    assert found.quarantine["reason"].to_list() == ["is no finite number"] * 2
    with pytest.raises(InputError, match=r"metric 'clicks' was not found; did you mean 'click'"):
        read_outcomes(source, metrics=["clicks"])


def test_a_value_or_a_time_of_another_kind_is_an_error(tmp_path) -> None:
    rows = {"user_id": ["u"], "metric": ["m"], "value": [[1.0]], "occurred_at": [datetime(2026, 1, 1)]}
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet: column 'value' is of type .*; expected numbers"):
        read_outcomes(Source(tmp_path / "rows.parquet"))
