"""The suite: several evaluations under one roof, each with what the suite says instead of its config."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipelines.loading import load
from pipelines.outcomes import ConfigError
from pipelines.settings import SuiteSettings
from pipelines.suite import outcome, standings, suite
from recsys_meta.reports.suite import standings_picture, standings_table
from recsys_meta.store.evaluations import EVALUATIONS_FILE

EVALUATION = """
workspace: workspace
name: first
interactions: {path: clicks.parquet}
protocol: {kind: held_out_users, share: 0.5, min_history: 4, shots: [0, 2], cutoff: 3}
learners: [recsys_meta.baselines.item_knn.ItemKNN]
baselines: [recsys_meta.baselines.popularity.Popularity]
bootstrap_draws: 20
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    rows = [(user, (user * 7 + place * (1 + user % 3)) % 11) for user in range(40) for place in range(5)]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").unique().write_parquet(
        tmp_path / "clicks.parquet"
    )
    (tmp_path / "one.yaml").write_text(EVALUATION)
    return tmp_path


def test_every_evaluation_runs_and_its_learners_are_ranked(world: Path, capsys) -> None:
    (world / "suite.yaml").write_text(
        "workspace: ranks\nevaluations: [one.yaml, {config: one.yaml, settings: {name: second, protocol.cutoff: 5}}]\n"
    )
    loaded = load(SuiteSettings, [world / "suite.yaml"])
    found = suite(loaded.settings, loaded.fingerprint)
    assert {name: result["metric"] for name, result in found["evaluations"].items()} == {
        "first": "ndcg@3",
        "second": "ndcg@5",
    }
    assert found["wins"] + found["ties"] + found["losses"] == 4
    assert set(found["mean_ranks"]) == {"ItemKNN", "Popularity"}
    assert sum(found["mean_ranks"].values()) == 3  # of two learners
    (folder,) = (world / "ranks" / "suites").iterdir()
    assert json.loads((folder / "result.json").read_text())["mean_ranks"] == found["mean_ranks"]
    assert "ItemKNN" in (folder / "standings.svg").read_text()
    assert "2 evaluations" in (folder / "report.html").read_text()
    assert (world / "ranks" / EVALUATIONS_FILE).exists()
    assert "| second, ndcg@5 | 2 |" in capsys.readouterr().out


def test_a_config_that_is_wrong_stops_the_suite_before_anything_runs(world: Path) -> None:
    (world / "suite.yaml").write_text(
        "workspace: ranks\nevaluations: [one.yaml, {config: one.yaml, settings: {protocol.cutof: 5}}]\n"
    )
    loaded = load(SuiteSettings, [world / "suite.yaml"])
    with pytest.raises(ConfigError, match="cutof"):
        suite(loaded.settings, loaded.fingerprint)
    assert not (world / "workspace").exists()


def test_a_win_is_an_interval_above_zero_and_a_loss_one_below() -> None:
    def shot(low: float, high: float) -> dict:
        return {
            "default": 0.1,
            "best_baseline": 0.1,
            "best_baseline_name": "P",
            "difference_low": low,
            "difference_high": high,
        }

    shots = {"0": shot(0.1, 0.2), "1": shot(-0.1, 0.1), "3": shot(-0.2, -0.1), "5": {"default": 0.1}}
    results = {"x": {"metric": "mae", "shots": shots}}
    stands = standings(results)
    assert outcome(stands) == {"wins": 1, "ties": 1, "losses": 1}
    assert stands["verdict"].to_list() == ["win", "tie", "loss", "alone"]
    assert [line.rsplit("|", 2)[1].strip() for line in standings_table(stands).splitlines()[2:]] == [
        "win",
        "tie",
        "loss",
        "alone",
    ]


def test_a_single_user_decides_no_shot() -> None:
    alone = {"default": 0.1, "best_baseline": 0.2, "best_baseline_name": "P"}
    shots = {"0": {**alone, "difference_low": None, "difference_high": None}}
    stands = standings({"x": {"metric": "mae", "shots": shots}})
    assert outcome(stands) == {"wins": 0, "ties": 1, "losses": 0}
    assert standings_table(stands).splitlines()[-1].endswith("| 0.2000 P | no interval | tie |")
    assert "<svg" in standings_picture(stands, "learner")


def test_two_evaluations_of_one_name_stop_the_suite_before_anything_runs(world: Path) -> None:
    (world / "suite.yaml").write_text("workspace: ranks\nevaluations: [one.yaml, one.yaml]\n")
    loaded = load(SuiteSettings, [world / "suite.yaml"])
    with pytest.raises(ConfigError, match="'first' more than once"):
        suite(loaded.settings, loaded.fingerprint)
    assert not (world / "workspace").exists()
