"""Rankings and merged lists at the door: what is kept, and what is set aside with its place and reason."""

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from recsys_meta.ingest import InputError, Source, read_interleaved, read_outcomes, read_ranking
from recsys_meta.tables import INTERLEAVED


def write(folder: Path, text: str, name: str = "rows.csv") -> Source:
    (folder / name).write_text(text)
    return Source(folder / name)


def faults(checked) -> list[tuple[int, str, str]]:
    return checked.quarantine.select("row", "column", "reason").rows()


def test_scores_put_the_largest_first_and_ranks_the_smallest(tmp_path) -> None:
    source = write(tmp_path, "user_id,item_id,score,rank\nu,1,0.5,2\nu,2,0.9,1\n")
    by_score = read_ranking(source)
    assert by_score.table.rows() == [("u", 1, -0.5), ("u", 2, -0.9)]
    assert read_ranking(source, score=None, rank="rank").table.rows() == [("u", 1, 2.0), ("u", 2, 1.0)]
    assert by_score.counts == {"rows_read": 2, "rows_not_selected": 0, "rows_kept": 2, "rows_quarantined": 0}
    with pytest.raises(ValueError, match="either a column of scores or one of ranks"):
        read_ranking(source, rank="rank")


def test_bad_rows_of_a_ranking_are_set_aside_with_row_column_and_reason(tmp_path) -> None:
    text = "user_id,item_id,score\nu,1,0.5\nu,1,0.9\n,2,1\nu,,1\nu,3,high\nu,4,inf\nv,1,2\n"
    found = read_ranking(write(tmp_path, text), max_quarantined_share=1.0)
    assert found.table.rows() == [("u", 1, -0.5), ("v", 1, -2.0)]
    assert faults(found) == [
        (2, "item_id", "stands in the ranking of this user already"),
        (3, "user_id", "is missing; expected the id of a user"),
        (4, "item_id", "is missing; expected the id of an item"),
        (5, "score", "is no finite number"),
        (6, "score", "is no finite number"),
    ]
    with pytest.raises(InputError, match=r"5 of 7 rows are at fault.*column 'score' is no finite number"):
        read_ranking(Source(tmp_path / "rows.csv"))


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path) -> None:
    with pytest.raises(InputError, match=r"column 'scores' was not found; did you mean 'score'"):
        read_ranking(write(tmp_path, "user_id,item_id,score\nu,1,0.5\n"), score="scores")
    pl.DataFrame({"user_id": ["u"], "item_id": [1], "score": [[1.0]]}).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(InputError, match="column 'score' is of type List"):
        read_ranking(Source(tmp_path / "r.parquet"))


def test_merged_lists_are_read_as_they_are_written(tmp_path) -> None:
    rows = pl.DataFrame(
        [(date(2026, 11, 1), "u", 1, 7, "A"), (date(2026, 11, 1), "u", 2, 8, None)],
        schema={
            "day": pl.Date, "user_id": pl.String, "position": pl.Int32, "item_id": pl.Int64, "team": pl.String,
        },
        orient="row",
    )  # fmt: skip
    rows.write_parquet(tmp_path / "lists.parquet")
    rows.write_csv(tmp_path / "lists.csv")
    for name in ("lists.parquet", "lists.csv"):
        found = read_interleaved(Source(tmp_path / name))
        assert found.table.equals(rows), name
        assert found.table.columns == list(INTERLEAVED)


def test_bad_rows_of_merged_lists_are_set_aside_with_row_column_and_reason(tmp_path) -> None:
    text = """day,user_id,position,item_id,team
2026-11-01,u,1,7,A
2026-11-01,u,2,7,B
2026-11-01,u,1,8,B
2026-11-01,u,0,9,B
2026-11-01,u,1.5,9,B
2026-11-01,u,3,9,C
soon,u,3,9,A
2026-11-01,,3,9,A
2026-11-01,u,3,,A
2026-11-02,u,1,7,
"""
    found = read_interleaved(write(tmp_path, text), max_quarantined_share=1.0)
    assert found.table.rows() == [
        (date(2026, 11, 1), "u", 1, 7, "A"),
        (date(2026, 11, 2), "u", 1, 7, None),
    ]
    assert faults(found) == [
        (2, "item_id", "stands in this list already"),
        (3, "position", "stands in this list already"),
        (4, "position", "is no whole number from 1 on"),
        (5, "position", "is no whole number from 1 on"),
        (6, "team", "is neither A nor B; expected one of them, or none"),
        (7, "day", "is no day between the years 1 and 9999"),
        (8, "user_id", "is missing; expected the id of a user"),
        (9, "item_id", "is missing; expected the id of an item"),
    ]


def test_outcomes_have_their_items_where_they_are_asked_for(tmp_path) -> None:
    text = "user_id,item_id,metric,value,occurred_at\nu,7,click,1,2026-11-01\nu,,click,1,2026-11-01\n"
    source = write(tmp_path, text)
    assert "item_id" not in read_outcomes(source).table.columns
    found = read_outcomes(source, item_id="item_id")
    assert found.table["item_id"].to_list() == [7, None], "an event may be about no item"
    assert found.quarantine.is_empty()
