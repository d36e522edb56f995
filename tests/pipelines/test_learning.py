"""Tests of how a learner is chosen and fitted."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import torch

from pipelines import nightly
from pipelines.drawing import catalogue_at, clock_of, last_half, newer
from pipelines.inputs import Inputs
from pipelines.learning import newest_bundle, with_loss
from pipelines.loading import load
from pipelines.settings import EvaluateSettings, LearnerSettings, NightSettings
from recsys_meta import store
from recsys_meta.episodes import collate, split_users
from recsys_meta.tensors import EpisodeBatch, Histories
from recsys_meta.training import settling
from recsys_meta.training.bundle import Bundle, BundleError, load_bundle


def events(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"value": values})


@pytest.mark.parametrize(("values", "expected"), [((1.0, 1.0), "softmax"), ((1.0, 4.0), "squared")])
def test_the_data_say_the_loss_where_the_settings_do_not(values: tuple[float, ...], expected: str) -> None:
    choice = with_loss(LearnerSettings(init_args={"item_ids": False}), events(*values))
    assert choice.init_args == {"item_ids": False, "loss": expected}


def test_a_loss_that_is_set_stays_and_a_class_without_one_gets_none() -> None:
    for choice in (
        LearnerSettings(init_args={"loss": "bpr"}),
        LearnerSettings(class_path="recsys_meta.baselines.popularity.Popularity"),
    ):
        assert with_loss(choice, events(1.0, 4.0)) == choice


NIGHT = """
workspace: workspace
run_date: 2026-03-05
interactions: {path: clicks.parquet, timestamp: at}
cold: {below: 5}
top_k: 3
learner: {class_path: recsys_meta.algorithms.maml.MAML, init_args: {loss: softmax, dim: 4, num_steps: 2, unknown_share: 0.2}}
training: {max_epochs: 2, batch_size: 8, validation_share: 0.2, shots: [0, 2]}
"""
WARM = ("training.warm_start", "true")
TOMORROW = ("run_date", "2026-03-06")


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """A world of 60 users; on the sixth of March warm ones meet two items for the first time."""
    rows = []
    for user in range(60):
        for place in range(8 if user % 3 else 3):
            item, at = (
                (user * 5 + place * (1 + user % 4)) % 17,
                datetime(2026, 3, 1 + place % 5, 7, tzinfo=UTC),
            )
            rows.append((user, f"i{item:02}", at))
        if user % 2:
            rows.append((user, f"a{user % 3}", datetime(2026, 3, 6, 9, tzinfo=UTC)))
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row")
    table.unique(["user_id", "item_id"], maintain_order=True).write_parquet(tmp_path / "clicks.parquet")
    (tmp_path / "night.yaml").write_text(NIGHT.replace("timestamp: at", "timestamp: at, later: drop"))
    return tmp_path


def night_of(folder: Path, *overrides: tuple[str, str]) -> nightly.Run:
    loaded = load(NightSettings, [folder / "night.yaml"], overrides)
    return nightly.Run(loaded.settings, loaded.fingerprint)


def trained(folder: Path, *overrides: tuple[str, str]) -> nightly.Model:
    run = night_of(folder, *overrides)
    with run.workspace.lock():
        inputs = run.read()
        return run.fit(inputs, nightly.decide_users(run.night, inputs))


def published(folder: Path, *overrides: tuple[str, str]) -> dict:
    loaded = load(NightSettings, [folder / "night.yaml"], overrides)
    return nightly.nightly(loaded.settings, loaded.fingerprint)


def scores(run: nightly.Run, inputs: Inputs, bundle: Bundle) -> torch.Tensor:
    """Of all users, adapted on the two newest things they did, for all items."""
    features = bundle.item_encoder.encode(inputs.item_ids, inputs.items)
    catalogue = catalogue_at(clock_of(run.night, features, inputs.sightings), run.moment)
    learner, everybody = bundle.learner, torch.arange(len(inputs.user_ids))
    users = bundle.user_encoder.encode(inputs.user_ids, inputs.users)
    with torch.no_grad():
        codes = learner.encode(catalogue)
        state = learner.adapt(collate(inputs.histories, everybody, newest=2), users, codes)
        return learner.predict(state, codes)


def test_a_warm_start_that_takes_no_step_is_the_champion_on_all_that_it_knew(clicks, capsys) -> None:
    first = published(clicks)
    run = night_of(clicks)
    inputs = run.read()  # of the night before: whatever is new is not among them
    champion = load_bundle(run.workspace.model(first["model_version"]) / "bundle")
    # Steps so small that no weight in float32 notices them.
    warm = trained(clicks, TOMORROW, WARM, ("training.outer_lr", "1e-30"))
    assert len(warm.bundle.item_encoder.ids) == len(champion.item_encoder.ids) + 2
    assert torch.equal(scores(run, inputs, warm.bundle), scores(run, inputs, champion))
    cold = trained(clicks, TOMORROW, ("training.outer_lr", "1e-30"))
    assert not torch.allclose(scores(run, inputs, cold.bundle), scores(run, inputs, champion))


def test_a_warm_night_says_what_it_started_from_and_passes_the_same_gate(clicks, capsys) -> None:
    first = published(clicks)
    second = published(clicks, TOMORROW, WARM, ("training.warm_epochs", "1"))
    assert second["model_started_from"] == first["model_version"]
    assert second["metrics"]["epochs"] == 1
    champion = next(gate for gate in second["gates"] if gate["gate"] == "champion")
    assert champion["champion"] == first["model_version"]
    again = published(clicks, TOMORROW, WARM, ("training.warm_epochs", "1"))
    assert (again["model_version"], again["sha256"]) == (second["model_version"], second["sha256"])


def test_other_settings_start_cold(clicks, capsys, caplog) -> None:
    published(clicks)
    warm = trained(clicks, TOMORROW, WARM, ("learner.init_args.dim", "5"))
    assert warm.started_from is None
    assert "has other learner: the training starts cold" in caplog.text


@pytest.mark.parametrize(("before", "now"), [(pl.Int32, pl.Int64), (pl.Int64, pl.Int16)])
def test_a_warm_start_goes_on_where_ids_come_in_another_width(clicks, capsys, before, now) -> None:
    table = pl.read_parquet(clicks / "clicks.parquet")
    numbered = table.with_columns(pl.col("item_id").rank("dense"), pl.col("user_id").cast(before))
    numbered.with_columns(pl.col("item_id").cast(before)).write_parquet(clicks / "clicks.parquet")
    first = published(clicks)
    numbered.with_columns(pl.col("item_id", "user_id").cast(now)).write_parquet(clicks / "clicks.parquet")
    second = published(clicks, TOMORROW, WARM, ("training.warm_epochs", "1"))
    assert second["model_started_from"] == first["model_version"]


def test_numbers_that_have_become_text_start_cold(clicks, capsys, caplog) -> None:
    table = pl.read_parquet(clicks / "clicks.parquet").with_columns(pl.col("item_id").rank("dense"))
    table.write_parquet(clicks / "clicks.parquet")
    published(clicks)
    table.with_columns(pl.col("item_id").cast(pl.String)).write_parquet(clicks / "clicks.parquet")
    assert published(clicks, TOMORROW, WARM).get("model_started_from") is None
    assert "has other item ids: the training starts cold" in caplog.text


def test_a_damaged_bundle_is_never_used_again_whatever_is_damaged_of_it(clicks, capsys, caplog) -> None:
    first = published(clicks)
    bundle = clicks / "workspace" / "models" / first["model_version"] / "bundle"
    again = ("training.reuse_for_days", "3")
    recipe = json.loads((bundle / "bundle.json").read_bytes())["meta"]["recipe"]
    assert trained(clicks, TOMORROW, again).version == first["model_version"]
    for name in ("weights.safetensors", "bundle.json"):
        whole = (bundle / name).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            (bundle / name).write_bytes(damaged)
            run = night_of(clicks, TOMORROW, again)
            assert newest_bundle(run.workspace, recipe, run.run_date, 3) is None
        (bundle / name).write_bytes(whole)
    assert "is damaged" in caplog.text
    (bundle / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError) as raised:  # the very bundle of this night: an error, before any use
        trained(clicks)
    assert raised.value.exit_code == 3


def test_nobody_is_judged_by_a_popularity_that_counts_its_own_choices(
    clicks, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[EpisodeBatch] = []
    monkeypatch.setattr(
        settling, "settle", lambda judged, _: caught.extend((*judged[0].once, *judged[0].again))
    )
    run = night_of(clicks)
    with run.workspace.lock():
        inputs = run.read()
        who = nightly.decide_users(run.night, inputs)
        run.fit(inputs, who)
    held_out = who.training.gather(split_users(who.training, 0.2, run.night.seed)[1].numpy())
    others = inputs.events.filter(~pl.col("user_id").is_in(held_out.implode()))
    assert 0 < len(held_out) < len(who.training) < inputs.events["user_id"].n_unique()
    counts = others["item_id"].value_counts()
    expected = inputs.item_ids.to_frame("item_id").join(
        counts, on="item_id", how="left", maintain_order="left"
    )
    for batch in caught:
        assert batch.catalogue.hindsight
        torch.testing.assert_close(
            batch.catalogue.log_popularity, expected["count"].fill_null(0).cast(pl.Float32).to_torch().log1p()
        )
    assert caught


def test_new_tasks_are_those_of_users_who_did_something_since_then() -> None:
    day = 86_400_000_000
    histories = Histories(
        torch.zeros(5, dtype=torch.int64),
        torch.ones(5),
        torch.tensor([1, 3, 2, 4, 9]) * day,
        torch.tensor([0, 2, 3, 3, 5]),
    )
    since = datetime(1970, 1, 4, tzinfo=UTC)
    assert newer(histories, torch.arange(4), since).tolist() == [0, 3]
    assert newer(histories, torch.tensor([1, 2]), since).tolist() == []


def test_an_evaluation_starts_cold(clicks) -> None:
    (clicks / "evaluation.yaml").write_text(
        "workspace: w\ninteractions: {path: clicks.parquet}\nprotocol: {kind: held_out_users}\ntraining: {warm_start: true}\n"
    )
    with pytest.raises(Exception, match="an evaluation has not"):
        load(EvaluateSettings, [clicks / "evaluation.yaml"])


def test_a_fitted_model_keeps_the_log_of_its_training_and_no_checkpoints(clicks, capsys) -> None:
    version = published(clicks)["model_version"]
    folder = store.Workspace(clicks / "workspace").model(version)
    assert len(list((folder / "training").rglob("metrics.csv"))) == 1
    assert not list(folder.rglob("*.ckpt"))
    left = folder / "training" / "last.ckpt"
    left.write_bytes(b"of a night that was killed right after its bundle")
    assert trained(clicks).reused
    assert not left.exists()


def test_a_training_killed_on_a_warm_night_goes_on_from_the_same_champion(clicks, capsys) -> None:
    first = published(clicks)
    assert trained(clicks, TOMORROW, WARM).started_from == first["model_version"]
    assert trained(clicks, TOMORROW, WARM).reused
    assert store.Workspace(clicks / "workspace").latest_run() is not None


def test_of_the_users_those_that_began_last_are_the_nearest_to_who_comes_next() -> None:
    times = [[5, 9], [1], [], [7, 8], [3, 20], [6]]
    histories = Histories(
        torch.zeros(8, dtype=torch.int64),
        torch.ones(8),
        torch.tensor([time for some in times for time in some]),
        torch.tensor([0, *(len(some) for some in times)]).cumsum(0),
    )
    assert last_half(histories, torch.arange(6)).tolist() == [0, 3, 5]
    assert last_half(histories, torch.tensor([1, 2, 4])).tolist() == [1, 4]
    assert last_half(histories, torch.tensor([2])).tolist() == []
