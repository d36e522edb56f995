"""The story before an experiment: measured on interactions, or on figures that are known."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from pipelines.experiment_power import power
from pipelines.loading import load
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.settings import PowerSettings
from recsys_meta.cli import main
from recsys_meta.ingest import InputError

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs" / "ab_power.yaml"


def run(folder: Path, *overrides: tuple[str, str], config: Path | None = CONFIG) -> dict:
    configs = [] if config is None else [config]
    loaded = load(PowerSettings, configs, [("workspace", str(folder / "workspace")), *overrides])
    return power(loaded.settings, loaded.fingerprint)


def test_a_test_is_measured_on_the_last_days_of_the_interactions(tmp_path, capsys) -> None:
    found = run(tmp_path)
    week, fortnight = found["horizons"][:2]
    assert (week["days"], fortnight["days"]) == (7, 14)
    assert week["users"] < fortnight["users"]
    assert week["mean"] < fortnight["mean"]
    assert 0.0 < fortnight["reduction"] < 1.0
    assert week["minimum_detectable_always"] > week["minimum_detectable"]
    assert "| +10.0% |" in capsys.readouterr().out
    (folder,) = (tmp_path / "workspace" / "power").iterdir()
    assert {file.name for file in folder.iterdir()} == {
        "power.md",
        "power.svg",
        "quarantine.parquet",
        "result.json",
    }
    assert "<svg" in (folder / "power.svg").read_text()[:200]


def test_outcomes_are_counted_of_those_who_come(tmp_path) -> None:
    found = run(
        tmp_path,
        ("outcomes", f"{{path: {REPOSITORY / 'data' / 'experiment' / 'outcomes.parquet'}}}"),
        ("interactions", "null"),
        ("interactions.path", str(REPOSITORY / "data" / "experiment" / "exposures.parquet")),
        ("interactions.timestamp", "exposed_at"),
        ("interactions.item_id", "variant"),
        ("run_date", "2026-11-30"),
        ("metric", "{name: plays per slate, outcome: play, kind: ratio}"),
        ("days", "[14, 28]"),
    )
    (fortnight,) = found["horizons"]
    assert fortnight["users"] == 2857
    assert fortnight["mean"] == pytest.approx(0.32, abs=0.02)


def test_stated_figures_will_do(tmp_path) -> None:
    stated = "{mean: 2.0, standard_deviation: 4.0, users_a_day: 1000, covariate_correlation: 0.6}"
    found = run(tmp_path, ("stated", stated), ("lifts", "[0.1]"), config=None)
    assert [at["users"] for at in found["horizons"]] == [7000, 14000, 21000, 28000]
    assert found["horizons"][0]["deviation"] == pytest.approx(3.2)
    (lift,) = found["lifts"]
    assert lift["users"] == pytest.approx(4 * (1.96 + 0.8416) ** 2 * (3.2 / 0.2) ** 2, rel=0.001)
    assert lift["days"] == 14


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("stated", "{mean: 1, standard_deviation: 1, users_a_day: 1}")], "either interactions"),
        ([("interactions.timestamp", "null")], "measured in days"),
        ([("metric", "{name: p90, kind: quantile, quantile: 0.9, covariate: null}")], "a mean or a ratio"),
    ],
)
def test_settings_that_do_not_fit_together_are_errors(overrides, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *overrides)


def test_a_test_longer_than_the_data_cannot_be_measured(tmp_path) -> None:
    with pytest.raises(NothingToDo, match="span 60 days; expected 90"):
        run(tmp_path, ("days", "[90]"))


def visits(folder: Path, *rows: tuple[str, int]) -> tuple[str, str]:
    """Interactions of these users on these days of October, as an override."""
    table = pl.DataFrame(
        [(user, "an item", datetime(2026, 10, day, 9, tzinfo=UTC)) for user, day in rows],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )
    table.write_parquet(folder / "visits.parquet")
    return "interactions.path", str(folder / "visits.parquet")


CROWD = [(f"user {number}", day) for number in range(20) for day in range(1, 1 + number % 4)]


@pytest.mark.parametrize("rows", [[("alone", 1)], [("alone", 1), ("alone", 9)], [*CROWD, ("alone", 30)]])
def test_a_single_user_shows_no_spread_and_the_error_says_where(rows, tmp_path, capsys) -> None:
    path = visits(tmp_path, *rows)
    days = ("--days", "[1]") if len(rows) == 1 else ("--days", "[1, 7]")
    arguments = ["power", "--config", str(CONFIG), "--workspace", str(tmp_path / "workspace"), "--quiet"]
    assert main([*arguments, f"--{path[0]}", path[1], *days]) == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert re.search(
        r"visits.parquet: column 'timestamp': the last \d days?, to 2026-10-\d\d, hold a single user; expected two at least",
        json.loads(line)["reason"],
    )


def test_horizons_of_a_single_user_are_left_out_and_said(tmp_path, caplog) -> None:
    found = run(tmp_path, visits(tmp_path, *CROWD, ("alone", 30)), ("days", "[1, 30]"))
    assert [at["days"] for at in found["horizons"]] == [30]
    assert "1 days are left out: the last 1 days, to 2026-10-30, hold a single user" in caplog.text


def test_a_ratio_of_nothing_is_an_error_that_says_what_it_is_divided_by(tmp_path) -> None:
    path = visits(tmp_path, *CROWD)
    outcomes = pl.DataFrame(
        {
            "user_id": ["user 1", "user 2"],
            "metric": ["play", "shown"],
            "value": [1.0, 0.0],
            "occurred_at": [datetime(2026, 10, 3, 10, tzinfo=UTC)] * 2,
        }
    )
    outcomes.write_parquet(tmp_path / "outcomes.parquet")
    with pytest.raises(InputError, match="hold no 'shown' other than 0; expected some, which 'rate' is div"):
        run(
            tmp_path,
            path,
            ("outcomes.path", str(tmp_path / "outcomes.parquet")),
            ("metric", "{name: rate, outcome: play, kind: ratio, per: shown, covariate: null}"),
            ("days", "[3]"),
        )


def test_what_is_set_aside_is_kept_and_said(tmp_path, capsys) -> None:
    path = visits(tmp_path, *CROWD, *[("", 3)])
    found = run(tmp_path, path, ("days", "[3]"), ("max_quarantined_share", "0.1"))
    assert found["rows_quarantined"] == 1
    assert "Set aside: 1 rows (quarantine.parquet)." in capsys.readouterr().out
    (kept,) = (tmp_path / "workspace" / "power").glob("*/quarantine.parquet")
    assert pl.read_parquet(kept).select("row", "column").rows() == [(31, "user_id")]


def test_a_row_of_the_future_does_not_say_where_the_days_end(tmp_path, caplog) -> None:
    path = visits(tmp_path, *CROWD, ("alone", 30))
    until = [("days", "[3]"), ("max_quarantined_share", "0.1"), ("run_date", "2026-10-29")]
    found = run(tmp_path, path, *until)
    assert found["rows_quarantined"] == 1
    assert "row 31, column 'timestamp': is later than the moment of the run" in caplog.text
    visits(tmp_path, *CROWD)
    assert found["horizons"] == run(tmp_path, path, *until)["horizons"]


def test_without_a_day_of_the_run_it_is_today(tmp_path) -> None:
    table = pl.read_parquet(REPOSITORY / "data" / "sample" / "interactions.parquet")
    behind = datetime.now(UTC).date() - datetime(2026, 10, 30, tzinfo=UTC).date()
    table = table.with_columns(pl.col("timestamp") + behind)
    stray = table.head(1).with_columns(pl.col("timestamp") + pl.duration(weeks=2000))
    pl.concat([table, stray]).write_parquet(tmp_path / "visits.parquet")
    found = run(tmp_path, ("interactions.path", str(tmp_path / "visits.parquet")), ("run_date", "null"))
    assert found["rows_quarantined"] == 1
    assert found["horizons"] == run(tmp_path)["horizons"]


def test_stated_figures_that_leave_nothing_to_count_are_told_apart(tmp_path) -> None:
    few = "{mean: 2.0, standard_deviation: 4.0, users_a_day: 0.1}"
    with pytest.raises(ConfigError, match=r"users_a_day: 0.1 a day make 0.7 users in 7 days; expected two"):
        run(tmp_path, ("stated", few), config=None)
    small = "{mean: 1.0e-300, standard_deviation: 1.0, users_a_day: 100}"
    found = run(tmp_path, ("stated", small), config=None)
    assert {lift["users"] for lift in found["lifts"]} == {None}


def test_the_command_ends_with_the_figures_as_json(tmp_path, capsys) -> None:
    assert (
        main(["power", "--config", str(CONFIG), "--workspace", str(tmp_path), "--quiet", "--lifts", "[0.05]"])
        == 0
    )
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["lifts"][0]["lift"] == 0.05
