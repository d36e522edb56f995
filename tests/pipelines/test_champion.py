"""Champion and challenger: who scores the night, and what they are judged on."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import torch

from pipelines import nightly
from pipelines.champion import decided, judged_alike, reigning
from pipelines.inputs import moment_of
from pipelines.loading import load
from pipelines.settings import NightSettings
from recsys_meta import store
from recsys_meta.cli import main
from recsys_meta.episodes import FeatureEncoder
from recsys_meta.training.bundle import load_bundle, save_bundle

SAMPLE = Path(__file__).parents[2] / "data" / "sample"

CONFIG = f"""
workspace: workspace
run_date: 2026-10-30
interactions: {{path: {SAMPLE}/interactions.parquet, value: rating, timestamp: timestamp, positive_from: 4}}
items: {{path: {SAMPLE}/items.parquet, id: item_id, categorical: [studio]}}
top_k: 5
learner: {{class_path: recsys_meta.algorithms.maml.MAML, init_args: {{loss: softmax, dim: 8, num_steps: 2}}}}
training: {{max_epochs: 3, batch_size: 32, outer_lr: 0.02, validation_share: 0.2, shots: [1, 3, 5]}}
"""
NEXT = ("run_date", "2026-10-31")


def settings(folder: Path, *overrides: tuple[str, str]) -> tuple[NightSettings, str]:
    (folder / "night.yaml").write_text(CONFIG)
    loaded = load(NightSettings, [folder / "night.yaml"], overrides)
    return loaded.settings, loaded.fingerprint


def gate_of(summary: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(gate for gate in summary["gates"] if gate["gate"] == "champion")
    return found


def aliases(folder: Path) -> dict[str, str]:
    with duckdb.connect(str(folder / "workspace" / "scores.duckdb"), read_only=True) as connection:
        return dict(connection.sql("SELECT alias, model_version FROM aliases").fetchall())


def spoiled(folder: Path, version: str, spoil) -> None:
    """Another learner in the place of one that was trained, its bundle whole."""
    place = folder / "workspace" / "models" / version / "bundle"
    bundle = load_bundle(place)
    with torch.no_grad():
        for weight in bundle.learner.parameters():
            spoil(weight)
    save_bundle(
        place,
        bundle.learner,
        class_path=bundle.class_path,
        init_args=bundle.init_args,
        user_encoder=bundle.user_encoder,
        item_encoder=bundle.item_encoder,
        meta=bundle.meta,
    )


def test_the_first_night_has_no_champion_and_the_second_a_challenge(tmp_path: Path) -> None:
    first = nightly.nightly(*settings(tmp_path))
    assert gate_of(first)["reason"] == "there is no champion yet"
    assert aliases(tmp_path) == dict.fromkeys(("latest", "champion", "challenger"), first["model_version"])
    second = nightly.nightly(*settings(tmp_path, NEXT))
    gate = gate_of(second)
    assert gate["verdict"] == "promoted"
    assert (gate["champion"], gate["challenger"]) == (first["model_version"], second["model_version"])
    assert gate["metric"] == "ndcg@10"
    assert gate["users"] > 100
    assert gate["low"] <= gate["gain"] <= gate["high"] == gate["figure"]
    assert {gate["gate"] for gate in second["gates"]} == {
        "features", "champion", "quarantined", "rows", "fallen", "score_drift", "item_drift",
    }  # fmt: skip
    assert all(gate["verdict"] in ("promoted", "passed") for gate in second["gates"])
    with duckdb.connect(str(tmp_path / "workspace" / "scores.duckdb"), read_only=True) as connection:
        [(gates,)] = connection.sql("SELECT gates FROM runs WHERE run_date = '2026-10-31'").fetchall()
    assert json.loads(gates) == second["gates"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda weight: weight.normal_(generator=torch.Generator().manual_seed(0)),
            "worse than the champion by more than 1.0%",
        ),
        (lambda weight: weight.fill_(torch.nan), "not finite"),
    ],
    ids=["noise", "not a number"],
)
def test_a_worse_model_is_not_promoted_and_the_champion_scores_the_night(
    tmp_path: Path, spoil, reason: str
) -> None:
    first = nightly.nightly(*settings(tmp_path))
    trained = nightly.train(*settings(tmp_path, NEXT))
    spoiled(tmp_path, trained["model_version"], spoil)
    second = nightly.nightly(*settings(tmp_path, NEXT))
    assert second["status"] == "published"
    assert second["model_version"] == first["model_version"]
    assert (gate_of(second)["verdict"], second["aliases"]["challenger"]) == (
        "champion kept",
        trained["model_version"],
    )
    assert reason in gate_of(second)["reason"]
    assert aliases(tmp_path) == {
        "latest": first["model_version"],
        "champion": first["model_version"],
        "challenger": trained["model_version"],
    }
    again = nightly.nightly(*settings(tmp_path, NEXT))
    assert (again["sha256"], again["gates"]) == (second["sha256"], second["gates"])


def cli(
    folder: Path, capsys: pytest.CaptureFixture[str], *overrides: tuple[str, str]
) -> tuple[int, dict[str, Any]]:
    """How the command ends, and its last line."""
    settings(folder)
    words = [f"--{key}={value}" for key, value in overrides]
    code = main(["nightly", "--config", str(folder / "night.yaml"), *words])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, found


def test_a_night_whose_scores_have_jumped_is_refused_unless_the_setting_lets_it_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = nightly.nightly(*settings(tmp_path))
    trained = nightly.train(*settings(tmp_path, NEXT))
    spoiled(tmp_path, trained["model_version"], lambda weight: weight.mul_(10))
    all_promoted = ("gates.champion_margin", "null")
    code, refused = cli(tmp_path, capsys, NEXT, all_promoted)
    assert (code, refused["status"]) == (4, "refused")
    verdicts = {gate["gate"]: gate["verdict"] for gate in refused["gates"]}
    assert verdicts == {
        "features": "passed",
        "champion": "promoted",
        "quarantined": "passed",
        "rows": "passed",
        "fallen": "passed",
        "score_drift": "refused",
        "item_drift": "passed",
    }
    assert "gates.max_score_drift" in refused["reason"]
    assert aliases(tmp_path)["latest"] == first["model_version"]
    code, published = cli(tmp_path, capsys, NEXT, all_promoted, ("gates.max_score_drift", "null"))
    assert (code, published["run_id"]) == (0, refused["run_id"])
    assert aliases(tmp_path)["latest"] == trained["model_version"]


def test_without_a_champion_a_model_that_adapts_nobody_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = nightly.train(*settings(tmp_path))
    spoiled(tmp_path, trained["model_version"], lambda weight: weight.fill_(torch.nan))
    code, refused = cli(tmp_path, capsys)
    assert code == 4
    assert "gates.max_fallen_share" in refused["reason"]
    assert not (tmp_path / "workspace" / "scores.duckdb").exists()


def test_a_champion_that_is_damaged_or_gone_is_said_and_the_challenger_scores(tmp_path: Path) -> None:
    first = nightly.nightly(*settings(tmp_path))
    weights = tmp_path / "workspace" / "models" / first["model_version"] / "bundle" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    second = nightly.nightly(*settings(tmp_path, NEXT))
    assert second["model_version"] != first["model_version"]
    assert "cannot be used" in gate_of(second)["reason"]


def test_a_champion_of_other_features_cannot_be_judged_and_is_replaced(tmp_path: Path) -> None:
    nightly.nightly(*settings(tmp_path))
    second = nightly.nightly(*settings(tmp_path, NEXT, ("items.multi", "[genres]")))
    assert (
        gate_of(second)["reason"]
        == "not comparable with the champion: it was trained on other features of items"
    )


def retyped(folder: Path, dtype: type[pl.DataType], column: str = "item_id") -> tuple[tuple[str, str], ...]:
    """The sample world with other ids."""
    overrides = []
    for name in ("interactions", "items"):
        table = pl.read_parquet(SAMPLE / f"{name}.parquet")
        if column in table.columns:
            table = table.with_columns(pl.col(column).rank("dense").cast(dtype))
        table.write_parquet(folder / f"{name}.parquet")
        overrides.append((f"{name}.path", str(folder / f"{name}.parquet")))
    return tuple(overrides)


def test_ids_of_another_width_are_the_same_ids_to_the_champion_and_the_gates(tmp_path: Path) -> None:
    nightly.nightly(*settings(tmp_path, *retyped(tmp_path, pl.Int32)))
    second = nightly.nightly(*settings(tmp_path, NEXT, *retyped(tmp_path, pl.Int64)))
    assert gate_of(second)["users"] > 100
    drift = {gate["gate"]: gate for gate in second["gates"] if "drift" in gate["gate"]}
    assert [gate["verdict"] for gate in drift.values()] == ["passed", "passed"]
    assert drift["item_drift"]["figure"] < 0.9


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_numbers_that_have_become_text_are_other_ids_and_that_is_said(tmp_path: Path, column: str) -> None:
    nightly.nightly(*settings(tmp_path, *retyped(tmp_path, pl.Int32, column)))
    second = nightly.nightly(*settings(tmp_path, NEXT, *retyped(tmp_path, pl.String, column)))
    said = f"ids of {column.removesuffix('_id')}s were Int32 to it, tonight they are String"
    assert gate_of(second)["reason"] == f"not comparable with the champion: {said}"


def test_a_champion_of_another_algorithm_is_judged_all_the_same(tmp_path: Path) -> None:
    nightly.nightly(*settings(tmp_path))
    popular = ("learner", "{class_path: recsys_meta.baselines.popularity.Popularity}")
    assert gate_of(nightly.nightly(*settings(tmp_path, NEXT, popular)))["users"] > 100


def test_no_model_of_a_later_day_is_a_champion(tmp_path: Path) -> None:
    nightly.nightly(*settings(tmp_path, NEXT))
    workspace = store.Workspace(tmp_path / "workspace")
    assert reigning(workspace, "another", date(2026, 10, 31)).model is not None
    assert reigning(workspace, "another", date(2026, 10, 30)).model is None


def test_where_no_model_comes_of_the_training_the_champion_scores_the_night_and_without_one_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exploding = ("learner.init_args.step_size", "1e30")
    code, refused = cli(tmp_path, capsys, exploding)
    assert code == 4
    assert "not finite" in refused["reason"]
    first = nightly.nightly(*settings(tmp_path))
    second = nightly.nightly(*settings(tmp_path, NEXT, exploding))
    assert second["model_version"] == first["model_version"]
    assert gate_of(second)["verdict"] == "champion kept"
    assert "the training gave no model" in gate_of(second)["reason"]
    assert aliases(tmp_path) == dict.fromkeys(("latest", "champion"), first["model_version"])


def test_whoever_rolls_back_has_the_model_of_then_as_the_champion(tmp_path: Path) -> None:
    first, second = nightly.nightly(*settings(tmp_path)), nightly.nightly(*settings(tmp_path, NEXT))
    workspace, later = store.Workspace(tmp_path / "workspace"), date(2026, 11, 1)
    for summary, rolled_back in ((second, False), (first, True)):
        if rolled_back:
            store.rollback(workspace, first["run_id"])
        model = reigning(workspace, "another", later).model
        assert model is not None
        assert model.version == summary["model_version"]
    spoiled(tmp_path, first["model_version"], lambda weight: weight.mul_(2))
    assert "not the bundle that was published" in reigning(workspace, "another", later).reason


def test_vocabularies_in_another_order_are_judged_the_same_since_each_bundle_reads_the_night_itself(
    tmp_path: Path,
) -> None:
    night, fingerprint = settings(tmp_path)
    summary = nightly.nightly(night, fingerprint)
    place = tmp_path / "workspace" / "models" / summary["model_version"] / "bundle"
    bundle, other = load_bundle(place), load_bundle(place)
    encoder = other.item_encoder
    order = torch.randperm(len(encoder.ids), generator=torch.Generator().manual_seed(1))
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), order + 1])
    with torch.no_grad():
        for name, weight in other.learner.named_parameters():
            if name.endswith("ids.weight"):
                weight.copy_(weight[rows])
    shuffled = FeatureEncoder(
        encoder.features,
        encoder.ids.gather(order.numpy()),
        encoder.vocabularies,
        encoder.scales,
        encoder.widths,
    )
    run = nightly.Run(night, fingerprint)
    inputs = run.read()
    pair = {"one": bundle, "other": bundle.__class__(**{**vars(other), "item_encoder": shuffled})}
    users = nightly.decide_users(night, inputs).training
    judgements = judged_alike(night, pair, inputs, users, moment=moment_of(night), max_users=50)
    one, same = (judgements.filter(learner=name).drop("learner") for name in pair)
    assert one["user_id"].n_unique() == 50
    assert one.filter(metric="ndcg@10")["value"].mean() > 0.01
    assert np.allclose(one["value"], same["value"], atol=1e-6, equal_nan=True)


def test_the_outcome_of_a_challenge_is_believed_only_as_it_was_written(tmp_path: Path) -> None:
    nightly.nightly(*settings(tmp_path))
    second = nightly.nightly(*settings(tmp_path, NEXT))
    [file] = (tmp_path / "workspace" / "models").glob("*/challenge.json")
    kept = json.loads(file.read_bytes())
    kept["answer"] |= {"promoted": False, "reason": "so somebody wrote"}
    file.write_text(json.dumps(kept))
    assert gate_of(nightly.nightly(*settings(tmp_path, NEXT))) == gate_of(second)
    assert json.loads(file.read_bytes())["answer"]["promoted"]


def judgements(champion: list[float], challenger: list[float], metric: str = "ndcg@10") -> pl.DataFrame:
    pages = [
        pl.DataFrame({"user_id": range(len(values)), "value": values}).with_columns(
            learner=pl.lit(name), draw=0, shot=pl.lit("all"), metric=pl.lit(metric)
        )
        for name, values in (("champion", champion), ("challenger", challenger))
    ]
    return pl.concat(pages)


def test_a_paired_difference_decides_not_the_spread_of_the_users() -> None:
    spread = [0.1 * n for n in range(1, 41)]
    slightly = decided(judgements(spread, [value * 0.97 for value in spread]), 0.01, 0)
    assert not slightly.promoted
    assert slightly.gain == pytest.approx(-0.03)
    assert decided(judgements(spread, [value * 0.97 for value in spread]), 0.05, 0).promoted
    assert decided(judgements(spread, [value * 1.5 for value in spread]), 0.0, 0).promoted


def test_a_difference_that_may_be_chance_promotes() -> None:
    chance = np.random.default_rng(0)
    champion = chance.random(40)
    found = decided(judgements(champion.tolist(), chance.permutation(champion).tolist()), 0.01, 0)
    assert found.promoted
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high


def test_with_less_evidence_asked_for_a_difference_that_may_be_chance_keeps_the_champion() -> None:
    chance = np.random.default_rng(3)
    champion = chance.random(40)
    noise = chance.standard_normal(40)
    challenger = champion - 0.05 + 0.25 * (noise - noise.mean())
    table = judgements(champion.tolist(), challenger.tolist())
    assert decided(table, 0.01, 0, 0.95).promoted
    assert not decided(table, 0.01, 0, 0.5).promoted


def test_a_single_user_keeps_no_champion() -> None:
    found = decided(judgements([0.9], [0.1]), 0.01, 0)
    assert found.promoted
    assert (found.users, found.low, found.high) == (1, None, None)
    assert found.reason.startswith("a single user tells nothing of others: -88.89%")


def test_of_errors_less_is_better() -> None:
    errors = [0.5 + 0.01 * n for n in range(40)]
    worse = [error + 0.1 for error in errors]
    assert not decided(judgements(errors, worse, "mae"), 0.01, 0).promoted
    assert decided(judgements(worse, errors, "mae"), 0.01, 0).promoted


def test_users_whom_the_challenger_cannot_score_are_not_passed_over() -> None:
    found = decided(judgements([0.1] * 20, [0.9] * 19 + [float("nan")]), 0.01, 0)
    assert not found.promoted
    assert "not finite" in found.reason


def test_without_users_to_judge_on_the_challenger_is_promoted_and_that_is_said() -> None:
    found = decided(pl.DataFrame(schema={"learner": pl.String, "metric": pl.String}), 0.01, 0)
    assert found.promoted
    assert "validation_share" in found.reason
