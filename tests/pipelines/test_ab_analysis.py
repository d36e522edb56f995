"""The story of off-policy evaluation: a config in, verdicts, tables, rows and a page out; the Open Bandit figures among them."""

import json
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from pipelines.ab_analysis import ope
from pipelines.loading import load
from pipelines.outcomes import ConfigError
from pipelines.settings import OffPolicySettings
from recsys_meta import cli
from recsys_meta.ab.logged_actions import LogsError
from recsys_meta.ab.synthetic_logs import WORLDS
from recsys_meta.ingest import InputError
from recsys_meta.store.evaluations import EVALUATIONS_FILE

WORLD = WORLDS["users nested"]
CONFIG = """
workspace: out
bootstrap_draws: 200
logs: {path: logs.parquet, propensity: propensity, user_id: user_id, context: [situation]}
"""
TABLE = "{kind: table, path: target.parquet, keys: [situation]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    WORLD.logs(4000, np.random.default_rng(1)).table.write_parquet(tmp_path / "logs.parquet")
    WORLD.policy.table.write_parquet(tmp_path / "target.parquet")
    write(tmp_path)
    return tmp_path


def write(folder: Path, target: str = TABLE, **replaced: str) -> None:
    """The config with this target, and some of its words replaced."""
    text = CONFIG
    for word, other in replaced.items():
        text = text.replace(f"{word}: {word}, ", other)
    (folder / "ope.yaml").write_text(f"{text}target: {target}\n")


def run(folder: Path, **changes: str) -> dict:
    loaded = load(OffPolicySettings, [folder / "ope.yaml"], list(changes.items()))
    return ope(loaded.settings, loaded.fingerprint)


def test_a_table_of_probabilities_is_valued_and_everything_is_written(folder, capsys):
    found = run(folder)["all"]
    assert found["verdict"] == "trustworthy"
    assert found["answer"]["low"] <= WORLD.value <= found["answer"]["high"]
    assert found["dr"] == found["answer"]["value"]
    (written,) = (folder / "out" / "off_policy").iterdir()
    names = {file.name for file in written.iterdir()}
    assert names == {
        "estimates.parquet",
        "diagnostics.parquet",
        "quarantine.parquet",
        "tables.md",
        "result.json",
        "report.html",
    }
    assert json.loads((written / "result.json").read_text())["all"]["ipw"] == found["ipw"]
    assert "**trustworthy.**" in capsys.readouterr().out


def test_rows_go_to_duckdb_and_a_second_run_replaces_them(folder):
    for _ in range(2):
        run(folder)
    with duckdb.connect(str(folder / "out" / EVALUATIONS_FILE), read_only=True) as connection:
        estimates = connection.sql("SELECT estimator, value, is_answer FROM off_policy_estimates").fetchall()
        ((verdict, reasons, rows),) = connection.sql(
            'SELECT verdict, reasons, "rows" FROM off_policy_diagnostics'
        ).fetchall()
    assert len(estimates) == 11
    assert [name for name, _, is_answer in estimates if is_answer] == ["DR"]
    assert (verdict, rows) == ("trustworthy", 4000)
    assert len(reasons) == 1


def test_scores_of_a_run_are_a_policy_and_users_outside_of_the_logs_are_left_out(folder):
    users = pl.read_parquet(folder / "logs.parquet")["user_id"].unique()
    more = pl.concat([users, pl.Series([10**6])]).alias("user_id").to_frame()
    scores = more.join(pl.DataFrame({"item_id": range(10), "score": np.linspace(0, 1, 10)}), how="cross")
    with duckdb.connect(str(folder / "scores.duckdb")) as connection:
        connection.register("given", scores.to_arrow())
        connection.execute("CREATE TABLE latest_scores AS SELECT * FROM given")
    target = "{kind: scores, path: %s, table: latest_scores, temperature: 0.5}" % (folder / "scores.duckdb")
    write(folder, target)
    found = run(folder)["all"]
    masses = np.exp(np.linspace(0, 1, 10) / 0.5)
    truth = float((WORLD.rewards * masses / masses.sum()).sum(axis=1).mean())
    assert found["answer"]["low"] <= truth <= found["answer"]["high"]


def test_two_policies_are_compared_in_pairs(folder):
    found = run(folder, against="{kind: uniform}")["all"]
    truth = WORLD.value - float(WORLD.rewards.mean())
    assert found["difference"]["low"] <= truth <= found["difference"]["high"]


def test_another_behaviour_is_estimated_from_its_logs(folder):
    found = run(folder, target="{kind: logged, path: %s, keys: [situation]}" % (folder / "logs.parquet"))[
        "all"
    ]
    assert found["mean_weight"] == pytest.approx(1.0, abs=0.02)
    assert found["ipw"] == pytest.approx(pl.read_parquet(folder / "logs.parquet")["reward"].mean(), abs=0.01)


def test_without_propensities_nothing_is_identified(folder):
    write(folder, propensity="")
    found = run(folder)["all"]
    assert found["verdict"] == "not identified"
    assert found["answer"] is None
    assert set(found) & {"ipw", "dr"} == set()


def test_stated_propensities_are_uniform_over_the_actions(folder):
    write(folder, "{kind: uniform}", propensity="propensities: stated, ")
    assert run(folder)["all"]["mean_weight"] == pytest.approx(1.0)


def test_estimators_that_are_named_are_all_that_is_computed(folder):
    found = run(folder, estimators="[SNIPS, IPS]")["all"]
    assert {"snipw", "ipw"} <= set(found)
    assert "dr" not in found
    with pytest.raises(ConfigError, match="SNIPPS"):
        run(folder, estimators="[SNIPPS]")


def test_a_setting_that_is_fixed_is_not_tuned_and_told(folder, capsys):
    found = run(folder, fixed="{Switch-DR: 0.0, clipped IPS: 1000000}")["all"]
    assert found["switch_dr"] == pytest.approx(found["dm"], rel=1e-12)
    assert found["clipped_ips"] == pytest.approx(found["ipw"], rel=1e-12)
    assert "threshold fixed at 0: the interval does not know the bias" in capsys.readouterr().out
    with pytest.raises(ConfigError) as told:
        run(folder, estimators="[IPS, SNIPPS]", fixed="{Switch-DR: -1, IPS: 1}")
    assert [problem.split(":")[0] for problem in told.value.problems] == ["estimators", "fixed", "fixed"]


def test_where_the_verdict_is_not_trustworthy_every_row_says_what_its_interval_is_worth(folder):
    def notes() -> dict[str, str]:
        (written,) = (folder / "out" / "off_policy").glob("*/estimates.parquet")
        table = pl.read_parquet(written)
        written.unlink()
        return dict(table.select(pl.concat_str("policy", "estimator", separator=": "), "note").iter_rows())

    assert run(folder)["all"]["verdict"] == "trustworthy"
    assert not any("nominal" in note for note in notes().values())
    pl.read_parquet(folder / "logs.parquet").head(250).write_parquet(folder / "logs.parquet")
    found = run(folder, against="{kind: uniform}")["all"]
    assert found["verdict"] == "doubtful"
    said = notes()
    assert len(said) == 33
    assert all("nominal: " in note for note in said.values())


def test_a_policy_of_another_kind_takes_the_place_of_the_whole_policy(folder):
    assert run(folder, **{"target.kind": "uniform"})["all"] == run(folder, target="{kind: uniform}")["all"]
    (folder / "over.yaml").write_text("target: {kind: uniform}\nanalyses: {one: {target: {kind: uniform}}}\n")
    loaded = load(
        OffPolicySettings,
        [folder / "ope.yaml", folder / "over.yaml"],
        [
            ("analyses.one.target.keys", "[situation]"),  # before the kind that it belongs to, or after
            ("analyses.one.target.kind", "table"),
            ("analyses.one.target.path", str(folder / "target.parquet")),
        ],
    ).settings
    assert loaded.target.kind == "uniform"
    assert loaded.analyses["one"].target.keys == ("situation",)
    with pytest.raises(ConfigError, match=r"target\.path: is missing"):
        run(folder, **{"target.kind": "scores"})
    assert run(folder, **{"reward_model.kind": "none"})["all"]["answer"]["estimator"] == "SNIPS"


def test_policies_are_called_by_their_file_or_as_they_are_told(folder, capsys):
    run(folder, against=f"{{kind: table, path: {folder}/target.parquet, keys: [situation], name: yesterday}}")
    said = capsys.readouterr().out
    assert "'target.parquet' would earn" in said
    assert "'target.parquet' cannot be told from 'yesterday'" in said
    run(folder, against=f"{{kind: table, path: {folder}/target.parquet, keys: [situation]}}")
    assert "'target.parquet' cannot be told from 'target.parquet (against)'" in capsys.readouterr().out


def test_logs_that_are_still_to_be_written_say_by_which_command(folder):
    with pytest.raises(InputError, match=r"none.parquet: not found; first run .*: recsys-meta simulate"):
        run(folder, **{"logs.path": "none.parquet", "logs.written_by": "recsys-meta simulate"})
    assert run(folder, **{"logs.written_by": "recsys-meta simulate"})["all"]["verdict"] == "trustworthy"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logs.where": "reward > 5"}, InputError, "no logged actions where"),
        ({"target.keys": "[day]"}, InputError, "'day' was not found"),
        ({"logs.context": "[]"}, LogsError, "depends on .*'situation'.*do not have"),
        ({"logs.reward": "clicks"}, InputError, "'clicks' was not found"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_says_where(folder, changes, error, message):
    with pytest.raises(error, match=message):
        run(folder, **changes)


def test_a_propensity_origin_that_contradicts_the_columns_is_a_config_error(folder):
    write(folder, propensity="propensities: logged, ")
    with pytest.raises(ConfigError, match="no column holds them"):
        run(folder)


def test_the_open_bandit_figures_are_those_of_the_field(datasets, repository, tmp_path, capsys):
    arguments = [
        "ope",
        "--config",
        str(repository / "configs" / "ab_open_bandit.yaml"),
        "--workspace",
        str(tmp_path),
    ]
    assert cli.main([*arguments, "--bootstrap_draws", "200"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    men, women = found["men"], found["women"]
    assert men["ess"] == pytest.approx(655.7, abs=0.05)
    assert men["mean_weight"] == pytest.approx(0.9433, abs=5e-5)
    assert men["ipw"] == pytest.approx(0.003009, abs=1e-6)
    assert men["snipw"] == pytest.approx(0.003189, abs=1e-6)
    # With learners of their own: in kind. DM leans to what was logged (.0069), DR to IPW.
    assert 0.003 < men["dm"] < 0.0075
    assert 0.002 < men["dr"] < 0.004
    assert men["verdict"] == "doubtful"
    assert women["ess"] == pytest.approx(2.1, abs=0.05)
    assert women["mean_weight"] == pytest.approx(3.134, abs=5e-4)
    assert women["largest_weight"] == pytest.approx(21_739, abs=0.5)
    assert women["ipw"] == pytest.approx(0.007438, abs=1e-6)
    assert women["snipw"] == pytest.approx(0.002373, abs=1e-6)
    assert women["verdict"] == "not identified"
    assert women["answer"] is None


def test_slates_of_scores_drawn_without_replacement_are_a_story_too(tmp_path):
    generator = np.random.default_rng(0)
    scores = np.linspace(0.0, 1.0, 5)
    rows = []
    for slate in range(1500):
        for place, item in enumerate(np.argsort(-generator.gumbel(size=5))[:3]):
            rows.append(
                (
                    slate // 3,
                    slate,
                    place + 1,
                    int(item),
                    float(generator.random() < 0.1 + 0.1 * item),
                    1 / (5 - place),
                )
            )
    names = ["user_id", "slate_id", "position", "item_id", "reward", "propensity"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "logs.parquet")
    users = pl.DataFrame({"user_id": range(500)})
    users.join(pl.DataFrame({"item_id": range(5), "score": scores}), how="cross").write_parquet(
        tmp_path / "scores.parquet"
    )
    (tmp_path / "ope.yaml").write_text(
        "workspace: out\nbootstrap_draws: 200\n"
        "logs: {path: logs.parquet, propensity: propensity, user_id: user_id, slate_id: slate_id, position: position}\n"
        "target: {kind: scores, path: scores.parquet}\nagainst: {kind: uniform}\n"
    )
    found = run(tmp_path)["all"]
    logged = pl.read_parquet(tmp_path / "logs.parquet")["reward"].sum() / 1500
    assert found["answer"]["estimator"] == "Cascade-DR"
    assert found["answer"]["value"] > logged
    assert found["difference"]["low"] > 0
    with pytest.raises(ConfigError, match="SNIPS"):
        run(tmp_path, estimators="[SNIPS]")


def test_a_column_of_the_logs_is_a_policy_and_bad_cells_are_set_aside(folder):
    logs = pl.read_parquet(folder / "logs.parquet")
    target = WORLD.target[logs["situation"].cast(pl.Int64), logs["item_id"]]
    target[0] = 1.5
    logs.with_columns(new=pl.Series(target)).write_parquet(folder / "logs.parquet")
    write(folder, "{kind: column, column: new}")
    found = run(folder, against="{kind: column, column: propensity}")["all"]
    assert found["answer"]["estimator"] == "SNIPS"
    assert found["support"] is None
    truth = WORLD.value - WORLD.logged_value
    assert found["difference"]["low"] <= truth <= found["difference"]["high"]
    (quarantine,) = (folder / "out" / "off_policy").glob("*/quarantine.parquet")
    assert pl.read_parquet(quarantine)["reason"].to_list() == ["is outside [0, 1]: no probability"]
