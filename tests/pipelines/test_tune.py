"""Tuning: on validation users alone, the same number of trials for each, and the best of them as an overlay."""

import json
from pathlib import Path

import duckdb
import polars as pl
import pytest
from pydantic import ValidationError

from pipelines import tune
from pipelines.judged import read_judged, trial_of
from pipelines.loading import load
from pipelines.settings import EvaluateSettings, RangeSettings, TuneSettings
from recsys_meta.store.evaluations import EVALUATIONS_FILE

KNN, EASE = "recsys_meta.baselines.item_knn.ItemKNN", "recsys_meta.baselines.ease.EASE"
CONFIG = f"""
workspace: workspace
interactions: {{path: clicks.parquet}}
protocol: {{kind: held_out_users, share: 0.5, min_history: 4, shots: [0, 2], cutoff: 3}}
learners: [{KNN}]
baselines: [{EASE}, recsys_meta.baselines.popularity.Popularity]
trials: 3
spaces:
  {KNN}: {{neighbours: {{low: 1, high: 8}}}}
  {EASE}: {{ridge: {{low: 0.1, high: 1000.0, log: true}}}}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    rows = [(user, (user * 7 + place * (1 + user % 3)) % 11) for user in range(80) for place in range(5)]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").unique().sort("user_id").write_parquet(
        tmp_path / "clicks.parquet"
    )
    (tmp_path / "tune.yaml").write_text(CONFIG)
    return tmp_path


def tuned(world: Path) -> dict:
    loaded = load(TuneSettings, [world / "tune.yaml"])
    return tune.tune(loaded.settings, loaded.fingerprint)


def test_each_has_as_many_trials_and_the_best_is_kept(world: Path) -> None:
    found = tuned(world)
    with duckdb.connect(str(world / "workspace" / EVALUATIONS_FILE), read_only=True) as connection:
        rows = connection.sql("SELECT learner, trial, parameters, value FROM tuning_trials").fetchall()
    counts = {name: sum(row[0] == name for row in rows) for name in ("ItemKNN", "EASE", "Popularity")}
    assert counts == {"ItemKNN": 3, "EASE": 3, "Popularity": 1}  # nothing of Popularity is searched
    best = max((row for row in rows if row[0] == "EASE"), key=lambda row: row[3])
    assert found["best"]["EASE"] == {"value": best[3], **json.loads(best[2])}
    assert found["trials"] == 3
    assert found["cpu_seconds"] > 0


def test_the_overlay_is_a_config_of_the_evaluation(world: Path) -> None:
    found = tuned(world)
    (world / "evaluate.yaml").write_text(CONFIG[: CONFIG.index("trials:")])
    settings = load(EvaluateSettings, [world / "evaluate.yaml", Path(found["overlay"])]).settings
    assert settings.learners[0].init_args == {"neighbours": found["best"]["ItemKNN"]["neighbours"]}
    assert settings.baselines[0].init_args == {"ridge": found["best"]["EASE"]["ridge"]}


def test_users_of_the_test_are_never_judged(world: Path, monkeypatch) -> None:
    judged: list[pl.Series] = []

    def noted(story, learner, users, tasks, *rest):
        judged.append(tasks.user_ids)
        return original(story, learner, users, tasks, *rest)

    original = tune.judge
    monkeypatch.setattr(tune, "judge", noted)
    tuned(world)
    settings = load(TuneSettings, [world / "tune.yaml"]).settings
    test_users = set(trial_of(*read_judged(settings)).tasks.user_ids)
    assert len(judged) == 7
    assert not test_users & set(pl.concat(judged))


@pytest.mark.parametrize("given", [{}, {"low": 1}, {"choices": [1], "low": 1, "high": 2}])
def test_a_range_has_choices_or_two_ends(given: dict) -> None:
    with pytest.raises(ValidationError, match="either choices, or low and high"):
        RangeSettings(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"low": 5, "high": 1}, "low is 5 and high 1; expected the least value as low"),
        ({"low": 0, "high": 5, "log": True}, "low is 0; expected it above 0"),
    ],
)
def test_the_ends_of_a_range_are_in_order_and_above_0_where_factors_count(given: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RangeSettings(**given)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [(f"  {KNN}:", "  some.Other:", "some.Other"), ("neighbours:", "training.outter_lr:", "outter_lr")],
)
def test_a_space_of_nothing_is_refused(world: Path, old: str, new: str, told: str) -> None:
    from pipelines.outcomes import ConfigError

    (world / "tune.yaml").write_text(CONFIG.replace(old, new))
    with pytest.raises(ConfigError, match=told):
        load(TuneSettings, [world / "tune.yaml"])
