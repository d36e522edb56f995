"""The simulated month on the sample world: what is written, and that it is what nights would have shown."""

import json
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipelines.loading import load
from pipelines.nightly import nightly
from pipelines.outcomes import ConfigError
from pipelines.settings import ExperimentSettings, NightSettings, OffPolicySettings, SimulateSettings
from pipelines.simulated_month import audience_of, pools_of, simulate, told, valued_of

CONFIGS = Path(__file__).parents[2] / "configs"
SIDE = {
    "learner": "recsys_meta.baselines.popularity.Popularity",
    "top_k": 3,
    "slate": {"temperature": 1.0, "exploration": 0.2, "pool": 12},
}


def settings(workspace: Path, **changes) -> tuple[SimulateSettings, str]:
    overrides = {
        "workspace": str(workspace),
        "first": "2026-10-30",
        "days": "4",
        "candidates": "12",
        "truth_draws": "5",
        "control.settings": json.dumps(SIDE),
        "treatment.settings": json.dumps(
            {**SIDE, "slate": {"temperature": 0.6, "pool": 12, "exploration": 0}}
        ),
        **changes,
    }
    loaded = load(SimulateSettings, [CONFIGS / "simulate-sample.yaml"], [*overrides.items()])
    return loaded.settings, loaded.fingerprint


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[Path, dict]:
    workspace = tmp_path_factory.mktemp("month")
    return workspace, simulate(*settings(workspace))


def test_what_is_written_is_what_the_summary_counts(simulated) -> None:
    workspace, summary = simulated
    with duckdb.connect(str(workspace / "month.duckdb"), read_only=True) as connection:
        counted = {
            name: connection.sql(f"SELECT count(*) FROM {name}").fetchall()[0][0]
            for name in ("exposures", "outcomes", "logged_actions", "pools", "truth")
        }
    assert counted["exposures"] == summary["exposures"]
    assert 2.99 < summary["exposures"] / summary["visits"] <= 3, "few have met nearly all candidates"
    assert counted["outcomes"] == summary["clicks"]
    assert counted["truth"] == 6
    assert (
        counted["logged_actions"]
        == pl.read_parquet(workspace / "exposures.parquet").filter(variant="control").height
    )
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary["users"]) == {"control", "treatment"}


def test_all_answers_stand_beside_the_truth_and_their_intervals_hold_it(simulated) -> None:
    workspace, summary = simulated
    figures: dict[str, dict[str, dict]] = {}
    for row in summary["answers"]:
        figures.setdefault(row["figure"], {})[row["who"].partition(" ")[0]] = row
    assert {figure: set(rows) for figure, rows in figures.items()} == {
        "clicks of a visit": {"the", "click", "off-policy,"},
        "clicks of a user": {"the"},
        "clicks on the first position": {"the", "click", "off-policy,"},
    }
    for figure in figures:
        rows = [row for row in summary["answers"] if row["figure"] == figure]
        truth, *others = rows
        assert truth["who"] == "the truth"
        for row in others:
            if row["low"] is not None:
                assert row["low"] < truth["difference"] < row["high"], row
            if row["treatment_low"] is not None:
                assert row["treatment_low"] < truth["treatment"] < row["treatment_high"], row
    bounded = [
        row for row in summary["answers"] if row["low"] is not None or row["treatment_low"] is not None
    ]
    assert len(bounded) == 4, "two experiments, two off-policy evaluations"
    written = pl.read_parquet(workspace / "truth.parquet").filter(figure="visit", of="difference")
    assert written["clicks"].item() == summary["answers"][0]["difference"]


def test_where_off_policy_evaluation_gives_no_answer_none_is_told() -> None:
    logged = pl.DataFrame({"reward": [1.0, 0.0]})
    answer = valued_of("clicks", logged, {"answer": None, "verdict": "not identified"})
    assert (answer.control, answer.treatment, answer.difference) == (0.5, None, None)
    last = told([answer]).splitlines()[-1]
    assert (
        last
        == "| clicks | off-policy, from the logs of control: not identified | 0.5000 | none |  | none |  |"
    )


def test_the_configs_that_are_written_are_those_of_the_commands(simulated) -> None:
    workspace, _ = simulated
    for name, slates in (("ope-top", False), ("ope-visit", True)):
        logs = load(OffPolicySettings, [workspace / f"{name}.yaml"]).settings.logs
        assert logs.path == workspace / "logged_actions.parquet"
        assert logs.slates == slates
    test = load(ExperimentSettings, [workspace / "ab.yaml"]).settings
    assert test.planned_end == date(2026, 11, 2)
    assert test.shares == {"control": 0.5, "treatment": 0.5}


def test_the_month_shows_what_nights_of_these_days_would_publish(simulated, tmp_path) -> None:
    workspace, _ = simulated
    shown = pl.read_parquet(workspace / "exposures.parquet")
    day = pl.col("exposed_at").dt.date()
    for run_date in ("2026-10-30", "2026-10-31"):
        loaded = load(
            NightSettings,
            [CONFIGS / "nightly.yaml"],
            [
                *((key, json.dumps(value)) for key, value in SIDE.items()),
                ("workspace", str(tmp_path)),
                ("run_date", run_date),
                ("score", "all"),
                (
                    "candidates.table",
                    json.dumps({"path": str(workspace / "candidates.parquet"), "id": "item_id"}),
                ),
            ],
        )
        nightly(loaded.settings, loaded.fingerprint)
        published = _scores(tmp_path)
        seen = shown.filter((pl.col("variant") == "control") & (day == pl.lit(run_date).str.to_date()))
        both = seen.join(
            published,
            left_on=["user_id", "position"],
            right_on=["user_id", "rank"],
            how="left",
            suffix="_night",
        )
        assert both.height == seen.height > 500
        assert both["item_id"].equals(both["item_id_night"])
        assert both["propensity"].to_list() == pytest.approx(both["propensity_night"].to_list())


def _scores(workspace: Path) -> pl.DataFrame:
    with duckdb.connect(str(workspace / "scores.duckdb"), read_only=True) as connection:
        return connection.sql("SELECT user_id, rank, item_id, propensity FROM scores").pl()


def test_nothing_is_as_long_as_it_was_asked_for_where_there_are_fewer_items(tmp_path) -> None:
    asked, _ = settings(tmp_path)
    audience = audience_of(asked, 10**12)
    assert len(audience.examined) == len(audience.item_ids)
    published = pl.DataFrame(
        {"user_id": audience.user_ids[:1], "item_id": audience.item_ids[:1], "rank": [1], "score": [0.5]},
        schema_overrides={"score": pl.Float32},
    )
    items, scores = pools_of(published, audience, 10**12)
    assert items.shape == scores.shape == (len(audience.user_ids), len(audience.item_ids))
    assert (items >= 0).sum() == 1


def test_sides_that_cannot_be_compared_are_told(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"control: .*nightly.yaml draws no slates"):
        simulate(*settings(tmp_path, **{"control.settings": json.dumps({**SIDE, "slate": None})}))
    longer = json.dumps({**SIDE, "top_k": 4})
    with pytest.raises(ConfigError, match="top_k is 3 in control and 4 in treatment"):
        simulate(*settings(tmp_path, **{"treatment.settings": longer}))
