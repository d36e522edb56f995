"""The story before an experiment: measured on interactions, or on figures that are known."""

import json
from pathlib import Path

import pytest

from pipelines.experiment_power import power
from pipelines.loading import load
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.settings import PowerSettings
from recsys_meta.cli import main

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
    assert {file.name for file in folder.iterdir()} == {"power.md", "power.svg", "result.json"}
    assert "<svg" in (folder / "power.svg").read_text()[:200]


def test_outcomes_are_counted_of_those_who_come(tmp_path) -> None:
    found = run(
        tmp_path,
        ("outcomes", f"{{path: {REPOSITORY / 'data' / 'experiment' / 'outcomes.parquet'}}}"),
        ("interactions", "null"),
        ("interactions.path", str(REPOSITORY / "data" / "experiment" / "exposures.parquet")),
        ("interactions.timestamp", "exposed_at"),
        ("interactions.item_id", "variant"),
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


def test_the_command_ends_with_the_figures_as_json(tmp_path, capsys) -> None:
    assert (
        main(["power", "--config", str(CONFIG), "--workspace", str(tmp_path), "--quiet", "--lifts", "[0.05]"])
        == 0
    )
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["lifts"][0]["lift"] == 0.05
