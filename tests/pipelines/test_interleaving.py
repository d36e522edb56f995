"""The story of interleaving: rankings merged day by day, users who do something with their lists, and the verdict."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from scipy import stats

from pipelines.interleaving import interleave
from pipelines.loading import load
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.settings import InterleaveSettings
from recsys_meta.cli import main
from recsys_meta.ingest import InputError

DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")
USERS = 150


def run(folder: Path, *overrides: tuple[str, str], config: str = "merge.yaml") -> dict:
    loaded = load(InterleaveSettings, [folder / config], list(overrides))
    return interleave(loaded.settings, loaded.fingerprint)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Rankings of 150 users (and one of A alone): B likes even items; and the config of merging."""
    random = np.random.default_rng(0)
    scores = [(f"u{user}", item, float(random.random())) for user in range(USERS) for item in range(12)]
    names = ["user_id", "item_id", "score"]
    table = pl.DataFrame(scores, schema=names, orient="row")
    table.vstack(pl.DataFrame([("only-a", 1, 1.0)], schema=names, orient="row")).write_parquet(
        tmp_path / "a.parquet"
    )
    ranked = table.with_columns(score=pl.col("score") + (pl.col("item_id") % 2 == 0)).with_columns(
        place=pl.col("score").rank(descending=True).over("user_id").cast(pl.Int32)
    )
    with duckdb.connect(str(tmp_path / "b.duckdb")) as connection:
        connection.register("found", ranked.select("user_id", "item_id", "place").to_arrow())
        connection.execute("CREATE TABLE published AS SELECT * FROM found")
    (tmp_path / "merge.yaml").write_text(
        "workspace: workspace\n"
        "name: live against new\n"
        "a: {path: a.parquet}\n"
        "b: {path: b.duckdb, table: published, rank: place}\n"
        "positions: 4\n"
        "planned_end: 2026-11-03\n"
        "planned_days: 3\n"
    )
    return tmp_path


def merged(folder: Path) -> pl.DataFrame:
    """The lists of three days."""
    for day in DAYS:
        run(folder, ("day", day))
    return pl.read_parquet(folder / "workspace" / "interleaved" / "*" / "interleaved.parquet")


def clicks(
    folder: Path, lists: pl.DataFrame, *, even: float = 0.3, odd: float = 0.1, seed: int = 5
) -> tuple[str, str]:
    """Clicks of users who like even items, as an override of the config."""
    chance = pl.when(pl.col("item_id") % 2 == 0).then(even).otherwise(odd)
    drawn = pl.Series(np.random.default_rng(seed).random(lists.height))
    rows = lists.filter(drawn < lists.select(chance).to_series()).select(
        "user_id", "item_id", occurred_at=pl.col("day").cast(pl.Datetime("us", "UTC")) + timedelta(hours=9)
    )
    # And one of each that does not count.
    at = datetime(2026, 11, 2, 12, tzinfo=UTC)
    others = [
        ("u1", 999, at),
        ("nobody", 1, at),
        ("u1", 1, at - timedelta(days=9)),
        ("u1", 1, at + timedelta(days=9)),
    ]
    table = rows.vstack(pl.DataFrame(others, schema=rows.schema, orient="row"))
    table.with_columns(kind=pl.lit("click")).write_csv(folder / "clicks.csv")
    return ("outcomes", "{path: " + str(folder / "clicks.csv") + ", metric: kind, value: null}")


def test_lists_are_written_day_by_day_as_parquet_and_into_duckdb(folder, capsys) -> None:
    summary = run(folder, ("day", DAYS[0]))
    assert (summary["users"], summary["users_of_a_alone"], summary["users_of_b_alone"]) == (USERS + 1, 1, 0)
    assert (
        summary["rows"] == summary["rows_a"] + summary["rows_b"] + summary["rows_of_neither"] == 4 * USERS + 1
    )
    assert "1 in A alone" in capsys.readouterr().out
    place = folder / "workspace" / "interleaved" / DAYS[0]
    rows = pl.read_parquet(place / "interleaved.parquet")
    with duckdb.connect(str(place / "interleaved.duckdb"), read_only=True) as connection:
        assert connection.sql("FROM interleaved").pl().equals(rows)
    again = run(folder, ("day", DAYS[0]))
    assert pl.read_parquet(place / "interleaved.parquet").equals(rows)
    assert again == summary
    run(folder, ("day", DAYS[1]))
    other = pl.read_parquet(folder / "workspace" / "interleaved" / DAYS[1] / "interleaved.parquet")
    assert not other.drop("day").equals(rows.drop("day")), "each day draws anew"


def test_the_ranking_that_users_prefer_is_told(folder, capsys) -> None:
    lists = merged(folder)
    given = clicks(folder, lists)
    capsys.readouterr()
    summary = run(folder, given)
    assert summary["verdict"] == "better"
    assert summary["reading"] == "once"
    assert summary["rows"]["not_listed"] == summary["rows"]["users_not_listed"] == 1
    assert (summary["rows"]["too_early"], summary["rows"]["too_late"], summary["rows"]["of_others"]) == (
        1,
        1,
        1,
    )
    printed = capsys.readouterr().out
    assert "**B: better**" in printed
    assert "1 rows of 1 users on items that their lists did not have" in printed

    (place,) = (folder / "workspace" / "interleaving").iterdir()
    users = pl.read_parquet(place / "users.parquet")
    test = stats.ttest_1samp(users["preference"].to_numpy(), 0.0)
    assert summary["preference"]["p_value"] == pytest.approx(test.pvalue, abs=1e-9)
    assert json.loads((place / "result.json").read_text()) == json.loads(json.dumps(summary, default=str))
    with duckdb.connect(str(folder / "workspace" / "experiments.duckdb"), read_only=True) as connection:
        (row,) = connection.sql("FROM interleavings").pl().to_dicts()
        days = connection.sql("SELECT count(*) FROM interleaving_looks").fetchall()
    assert (row["verdict"], row["effect"]) == ("better", summary["preference"]["effect"])
    assert days == [(pl.read_parquet(place / "looks.parquet").height,)]
    page = (place / "report.html").read_text()
    assert "<h1>live against new</h1>" in page
    assert "B: better." in page
    assert "http" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL), "no network"


def test_a_rerun_replaces_its_rows_and_before_the_end_the_band_decides(folder) -> None:
    given = clicks(folder, merged(folder))
    run(folder, given)
    run(folder, given)
    later = run(folder, given, ("planned_end", "2026-12-24"))
    assert later["reading"] == "always"
    once, always = (run(folder, given, *more)["deciding"] for more in ([], [("planned_end", "2026-12-24")]))
    assert always["high"] - always["low"] > once["high"] - once["low"]
    with duckdb.connect(str(folder / "workspace" / "experiments.duckdb"), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM interleavings").fetchall() == [(2,)]


def test_a_stray_row_of_the_future_does_not_end_it(folder) -> None:
    given, end = clicks(folder, merged(folder)), ("planned_end", "2026-11-05")
    before = run(folder, given, end)
    names = ("user_id", "item_id", "occurred_at", "kind")
    assert tuple((folder / "clicks.csv").read_text().splitlines()[0].split(",")) == names
    with (folder / "clicks.csv").open("a") as file:
        # Of nobody with a list, after the end and before; and of one with a list, on another item.
        file.write("nobody,1,2027-01-02T09:00:00.000000+0000,click\n")
        file.write("nobody,1,2026-11-05T09:00:00.000000+0000,click\n")
        file.write("u1,999,2026-11-05T09:00:00.000000+0000,click\n")
    after = run(folder, given, end)
    assert after["rows"]["of_others"] == before["rows"]["of_others"] + 1
    assert (after["reading"], before["reading"]) == ("always", "always")
    assert after["deciding"] == before["deciding"]
    with duckdb.connect(str(folder / "workspace" / "experiments.duckdb"), read_only=True) as connection:
        (found,) = connection.sql("SELECT DISTINCT epoch(last_row) FROM interleavings").fetchall()
    assert found[0] == datetime(2026, 11, 3, 9, tzinfo=UTC).timestamp()


def test_the_sides_exchanged_exchange_the_verdict(folder) -> None:
    text = (
        (folder / "merge.yaml")
        .read_text()
        .replace("\na: ", "\nx: ")
        .replace("\nb: ", "\na: ")
        .replace("\nx: ", "\nb: ")
    )
    (folder / "merge.yaml").write_text(text)
    assert run(folder, clicks(folder, merged(folder)))["verdict"] == "worse"


def test_where_users_like_all_items_alike_nothing_is_shown(folder) -> None:
    summary = run(folder, clicks(folder, merged(folder), even=0.2, odd=0.2, seed=1000))
    assert summary["verdict"] == "no difference shown"
    assert "would have been seen" in summary["reasons"][0]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ([("a", "null")], ConfigError, "either a and b, to be merged, or outcomes"),
        ([("b.score", "s")], ConfigError, "score and rank are both given"),
        ([("a.score", "scor")], InputError, r"a.parquet: column 'scor' was not found; did you mean 'score'"),
        ([("a.where", "item_id < 0")], NothingToDo, "there is no ranking of any user"),
        ([("b.where", "item_id < 0")], NothingToDo, "b.duckdb: there is no ranking of any user"),
    ],
)
def test_what_cannot_be_merged_is_told(overrides, error, message, folder) -> None:
    with pytest.raises(error, match=message):
        run(folder, *overrides)
    assert not (folder / "workspace" / "interleaved").exists()


def test_ids_of_two_kinds_are_told_with_both_files(folder) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [1], "score": [1.0]}).write_parquet(folder / "b.parquet")
    with pytest.raises(InputError, match=r"b.parquet: user_id is Int64, in .*a.parquet it is String"):
        run(folder, ("b.path", str(folder / "b.parquet")), ("b.table", "null"), ("b.rank", "null"))


def test_bad_rows_are_kept_beside_the_lists_and_said(folder, capsys) -> None:
    table = pl.read_parquet(folder / "a.parquet")
    table.vstack(table.head(1)).write_parquet(folder / "a.parquet")
    assert run(folder, ("day", DAYS[0]))["rows_quarantined"] == 1
    kept = pl.read_parquet(folder / "workspace" / "interleaved" / DAYS[0] / "quarantine.parquet")
    assert kept["row"].to_list() == [table.height + 1]
    assert "| set aside | 1 rows (quarantine.parquet) |" in capsys.readouterr().out


def test_the_command_ends_with_the_verdict_as_json(folder, capsys) -> None:
    config = ["interleave", "--config", str(folder / "merge.yaml"), "--quiet"]
    for day in DAYS:
        assert main([*config, "--day", day]) == 0
    lists = pl.read_parquet(folder / "workspace" / "interleaved" / "*" / "interleaved.parquet")
    clicks(folder, lists)
    given = [
        "--outcomes.path",
        str(folder / "clicks.csv"),
        "--outcomes.metric",
        "kind",
        "--outcomes.value",
        "null",
    ]
    assert main([*config, *given]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["verdict"] == "better"
    assert main([*config, *given, "--outcome", "play"]) == 3
    assert "metric 'play' was not found" in json.loads(capsys.readouterr().out.splitlines()[-1])["reason"]
