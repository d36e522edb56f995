"""The story of an experiment, on the one that ships with the project and on files of one's own."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipelines.experiment_analysis import experiment
from pipelines.loading import load
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.settings import ExperimentSettings
from recsys_meta.cli import main
from recsys_meta.ingest import InputError
from recsys_meta.ingest.sample_experiment import LIFT, sample_experiment

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs" / "ab_experiment.yaml"


def run(folder: Path, *overrides: tuple[str, str], config: Path = CONFIG) -> dict:
    loaded = load(ExperimentSettings, [config], [("workspace", str(folder / "workspace")), *overrides])
    return experiment(loaded.settings, loaded.fingerprint)


def test_the_experiment_of_the_sample_world_finds_the_truth(tmp_path, capsys) -> None:
    summary = run(tmp_path)
    assert summary["reading"] == "once"
    (new,) = summary["treatments"].values()
    assert new["verdict"] == "better"
    plays = new["metrics"]["plays per slate"]
    truth = (LIFT - 1.0) * plays["control"]
    assert plays["low"] < truth < plays["high"]
    assert new["metrics"]["plays"]["variance_reduction"] > 0.15
    assert new["metrics"]["skips per slate"]["verdict"] == "kept"
    printed = capsys.readouterr().out
    assert "**new: better**" in printed
    (folder,) = (tmp_path / "workspace" / "experiments").iterdir()
    assert json.loads((folder / "result.json").read_text())["treatments"] == summary["treatments"]
    with duckdb.connect(str(tmp_path / "workspace" / "experiments.duckdb"), read_only=True) as connection:
        assert connection.sql("SELECT treatment, verdict FROM experiments").fetchall() == [("new", "better")]
        days = connection.sql("SELECT count(*) FROM experiment_looks WHERE metric = 'plays'").fetchall()
    assert days == [(14,)]


def test_before_the_planned_end_always_valid_intervals_decide(tmp_path) -> None:
    once, always = (
        run(tmp_path, ("planned_end", end))["treatments"]["new"]["metrics"]["plays"]
        for end in ("2026-11-13", "2026-11-30")
    )
    assert once["effect"] == always["effect"]
    assert always["high"] - always["low"] > once["high"] - once["low"]


def test_rows_after_the_planned_end_do_not_count(tmp_path) -> None:
    summary = run(tmp_path, ("planned_end", "2026-11-05"), ("planned_days", "6"))
    assert summary["reading"] == "once"
    short = summary["treatments"]["new"]["metrics"]["plays"]
    assert short["control"] < run(tmp_path)["treatments"]["new"]["metrics"]["plays"]["control"]
    with pytest.raises(NothingToDo, match="nobody was exposed before 2026-10-02"):
        run(tmp_path, ("planned_end", "2026-10-01"))


def errors_of_one_variant(folder: Path, variant: str) -> dict:
    """The experiment of 300 users of A and B each on five days, of whom those of B click more; one has an error per user."""
    users = [f"u{place}" for place in range(600)]
    start = datetime(2026, 11, 10, 9, tzinfo=UTC)
    exposures = pl.DataFrame(
        {
            "user_id": users,
            "variant": ["A", "B"] * 300,
            "exposed_at": [start + timedelta(days=place % 5) for place in range(600)],
        }
    )
    clicks = [
        (user, "click", at + timedelta(hours=1))
        for place, (user, arm, at) in enumerate(exposures.iter_rows())
        for _ in range(place % 3 + 2 * (arm == "B"))
    ]
    errors = [(user, "error", at) for user, arm, at in exposures.iter_rows() if arm == variant]
    outcomes = pl.DataFrame(clicks + errors, schema=["user_id", "metric", "occurred_at"], orient="row")
    exposures.write_parquet(folder / "exposures.parquet")
    outcomes.with_columns(value=1.0).write_parquet(folder / "outcomes.parquet")
    (folder / "errors.yaml").write_text(
        "workspace: workspace\n"
        "exposures: {path: exposures.parquet, experiment: null}\n"
        "outcomes: {path: outcomes.parquet}\n"
        "control: A\n"
        "planned_end: 2026-11-14\n"
        "metrics:\n"
        "  - {name: clicks, outcome: click, aggregate: count}\n"
        "  - {name: errors, outcome: error, better: lower, guardrail: .05}\n"
    )
    return run(folder, config=folder / "errors.yaml")


def test_a_guardrail_that_every_user_of_the_treatment_breaks_is_broken(tmp_path) -> None:
    (found,) = errors_of_one_variant(tmp_path, "B")["treatments"].values()
    assert found["verdict"] == "mixed"
    assert found["metrics"]["errors"]["verdict"] == "broken"
    assert (
        "Guardrail errors: (+1), worse by more than 5.0%, constant in each arm: no interval."
        in found["reasons"]
    )
    (found,) = errors_of_one_variant(tmp_path, "A")["treatments"].values()
    assert (found["verdict"], found["metrics"]["errors"]["verdict"]) == ("better", "kept")


@pytest.mark.parametrize("who", ["nobody", "u1"])
def test_a_stray_row_of_the_future_does_not_end_an_experiment(who, tmp_path) -> None:
    errors_of_one_variant(tmp_path, "B")
    end = ("planned_end", "2026-11-16")
    before = run(tmp_path, end, config=tmp_path / "errors.yaml")
    outcomes = pl.read_parquet(tmp_path / "outcomes.parquet")
    stray = outcomes.head(1).with_columns(
        user_id=pl.lit(who), occurred_at=pl.col("occurred_at") + timedelta(days=60)
    )
    outcomes.vstack(stray).write_parquet(tmp_path / "outcomes.parquet")
    after = run(tmp_path, end, config=tmp_path / "errors.yaml")
    assert (after["reading"], after["days"]) == ("always", 5)
    assert after == before


def with_both_variants(folder: Path, users: int) -> tuple[tuple[str, str], ...]:
    """The experiment of ``errors_of_one_variant``, whose first users are exposed to both; as overrides."""
    errors_of_one_variant(folder, "B")
    exposures = pl.read_parquet(folder / "exposures.parquet")
    other = exposures.head(users).with_columns(pl.col("variant").replace({"A": "B", "B": "A"}))
    exposures.vstack(other).write_parquet(folder / "exposures.parquet")
    return (("planned_end", "2026-11-14"),)


@pytest.mark.parametrize("flags", [[], ["--planned_end", "null"], ["--aa"]])
def test_where_everybody_saw_two_variants_nothing_is_compared_and_a_line_says_so(
    flags, tmp_path, capsys
) -> None:
    with_both_variants(tmp_path, 600)
    capsys.readouterr()
    assert main(["ab", "--config", str(tmp_path / "errors.yaml"), "--quiet", *flags]) == 3
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert json.loads(printed.out)["reason"].endswith(
        "exposures.parquet: column 'variant': 600 of 600 users were exposed to more than one variant, and crossed: exclude leaves"
        " them out; expected users of one variant alone (or crossed: first)"
    )


def test_everybody_of_two_variants_can_count_for_the_first(tmp_path) -> None:
    (end,) = with_both_variants(tmp_path, 600)
    found = run(tmp_path, end, ("crossed", "first"), config=tmp_path / "errors.yaml")
    assert found["users_crossed"] == 600
    assert found["treatments"]["B"]["verdict"] == "not to be trusted"


@pytest.mark.parametrize("aa", ["false", "true"])
def test_what_is_set_aside_is_kept_with_its_place_and_said(aa, tmp_path, capsys) -> None:
    errors_of_one_variant(tmp_path, "B")
    for name, column in (("exposures", "variant"), ("outcomes", "value")):
        table = pl.read_parquet(tmp_path / f"{name}.parquet")
        bad = table.head(1).with_columns(pl.lit(None, table.schema[column]).alias(column))
        table.vstack(bad).write_parquet(tmp_path / f"{name}.parquet")
    capsys.readouterr()
    found = run(tmp_path, ("aa", aa), ("aa_draws", "20"), config=tmp_path / "errors.yaml")
    assert found["rows_quarantined"] == 2
    assert "Set aside: 2 rows (quarantine.parquet)." in capsys.readouterr().out
    folders = sorted(
        (tmp_path / "workspace" / "experiments").iterdir(), key=lambda path: path.stat().st_mtime
    )
    kept = pl.read_parquet(folders[-1] / "quarantine.parquet")
    assert kept["source"].str.split("/").list.last().to_list() == ["exposures.parquet", "outcomes.parquet"]
    assert kept["column"].to_list() == ["variant", "value"]
    assert kept["raw"].str.contains('"user_id":"u').all()


def test_the_sample_experiment_is_what_its_generator_makes() -> None:
    sample = REPOSITORY / "data" / "sample"
    made = sample_experiment(
        *(pl.read_parquet(sample / f"{name}.parquet") for name in ("interactions", "users"))
    )
    for name, table in zip(("exposures", "outcomes"), made, strict=True):
        assert pl.read_parquet(REPOSITORY / "data" / "experiment" / f"{name}.parquet").equals(table)


def test_a_duckdb_table_with_other_names_will_do_and_one_metric_of_its_own_file(tmp_path) -> None:
    exposures = pl.read_parquet(REPOSITORY / "data" / "experiment" / "exposures.parquet").to_arrow()
    clicks = pl.read_parquet(REPOSITORY / "data" / "experiment" / "outcomes.parquet").filter(metric="play")
    with duckdb.connect(str(tmp_path / "logs.duckdb")) as connection:
        connection.register("found", exposures)
        connection.execute(
            'CREATE TABLE shown AS SELECT user_id AS who, variant AS arm, exposed_at AS "at" FROM found'
        )
    clicks.select(pl.col("user_id").alias("who"), pl.col("occurred_at").alias("at")).write_parquet(
        tmp_path / "clicks.parquet"
    )
    (tmp_path / "own.yaml").write_text(
        "workspace: workspace\n"
        "exposures: {path: logs.duckdb, table: shown, experiment: null, user_id: who, variant: arm, exposed_at: at}\n"
        "outcomes: {path: clicks.parquet, user_id: who, metric: null, called: click, value: null, occurred_at: at}\n"
        "control: old\n"
        "metrics: [click, {name: clickers, outcome: click, aggregate: any}]\n"
        "min_users: 50\n"
    )
    summary = run(tmp_path, config=tmp_path / "own.yaml")
    assert set(summary["treatments"]["new"]["metrics"]) == {"click", "clickers"}
    expected = run(tmp_path, ("planned_end", "null"), ("metrics", "[play]"))["treatments"]["new"]["metrics"][
        "play"
    ]
    assert summary["treatments"]["new"]["metrics"]["click"]["effect"] == expected["effect"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("shares", "null"), ("control", "odl")], "control 'odl' was not found"),
        ([("shares", "null"), ("shares", "{old: 1, newer: 1}")], "found new; expected old, newer"),
        ([("exposures.variant", "varient")], "column 'varient' was not found; did you mean 'variant'"),
        ([("metrics", "[plays]")], "metric 'plays' was not found; did you mean 'play'"),
    ],
)
def test_what_the_data_cannot_answer_is_an_error_that_says_why(overrides, message, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("metrics", "[{name: a, guardrail: 0.1}]")], "all metrics are guardrails"),
        ([("metrics", "[a, a]")], "metrics a stand twice"),
        ([("metrics", "[{name: a, per: b}]")], "per belongs to kind: ratio"),
        ([("interactions", "null")], "covariates of plays, minutes are taken from interactions"),
        ([("segments", "[colour]")], "no users.categorical"),
        ([("control", "older")], "control 'older' is none of shares"),
    ],
)
def test_settings_that_do_not_fit_together_are_errors(overrides, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *overrides)


def test_the_command_ends_with_the_verdict_as_json(tmp_path, capsys) -> None:
    assert (
        main(["ab", "--config", str(CONFIG), "--workspace", str(tmp_path), "--segments", "[]", "--quiet"])
        == 0
    )
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["treatments"]["new"]["verdict"] == "better"


def test_random_splits_of_the_same_users_tell_what_the_analysis_is_worth(tmp_path, capsys) -> None:
    arguments = ["ab", "--config", str(CONFIG), "--workspace", str(tmp_path), "--quiet", "--aa"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    rates = summary["false_positives"]
    assert set(rates) == {"plays", "plays per slate", "minutes", "skips per slate"}
    for found in rates.values():
        assert 0.04 <= found["by_user"]["rate"] <= 0.06
    assert rates["plays per slate"]["by_row"]["rate"] > 0.10
    assert "| plays per slate | by row | 2,000 |" in printed
    assert "**off**" in printed
    with duckdb.connect(str(tmp_path / "experiments.duckdb"), read_only=True) as connection:
        assert connection.sql("SELECT count(*), min(draws) FROM experiment_aa").fetchall() == [(8, 2000)]


def test_the_experiment_that_the_documents_show_is_a_config(tmp_path) -> None:
    page = (REPOSITORY / "docs" / "experiments.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "shown.yaml").write_text(shown)
    settings = load(ExperimentSettings, [tmp_path / "shown.yaml"]).settings
    assert [metric.guardrail for metric in settings.metrics] == [None, None, 0.05]
