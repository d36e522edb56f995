"""The whole night on a part of the sample world: what is published, for whom, and what a killed night comes to."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest
import torch
from file_changes import ENVIRONMENT

from pipelines import nightly
from pipelines.inputs import cast_ids
from pipelines.loading import load
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.settings import NightSettings
from recsys_meta import ingest, store
from recsys_meta.ab.slate_policies import PlackettLuce

SAMPLE = Path(__file__).parents[2] / "data" / "sample"

CONFIG = """
workspace: workspace
run_date: 2026-10-30
interactions: {path: interactions.parquet, value: rating, timestamp: timestamp, value_range: [1, 5], positive_from: 4}
users: {path: users.parquet, id: user_id, categorical: [age_group, region]}
items: {path: items.parquet, id: item_id, categorical: [studio], multi: [genres], numbers: [year]}
top_k: 5
learner: {class_path: recsys_meta.algorithms.maml.MAML, init_args: {loss: softmax, dim: 8, num_steps: 2}}
training: {max_epochs: 2, batch_size: 32, outer_lr: 0.01, validation_share: 0.2, shots: [0, 1, 3, 5]}
adaptation: {batch_size: 16, shard_size: 20}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with the first 100 warm and 60 cold users of the sample world, and a config."""
    interactions = pl.read_parquet(SAMPLE / "interactions.parquet")
    users = pl.read_parquet(SAMPLE / "users.parquet").join(
        interactions.group_by("user_id").len("n"), on="user_id", how="left"
    )
    users = users.with_columns(pl.col("n").fill_null(0)).sort("user_id")
    some = pl.concat([users.filter(pl.col("n") > 10).head(100), users.filter(pl.col("n") <= 10).head(60)])
    interactions.join(some.select("user_id"), on="user_id", maintain_order="left").write_parquet(
        tmp_path / "interactions.parquet"
    )
    some.drop("n").write_parquet(tmp_path / "users.parquet")
    pl.read_parquet(SAMPLE / "items.parquet").write_parquet(tmp_path / "items.parquet")
    (tmp_path / "night.yaml").write_text(CONFIG)
    return tmp_path


def settings(world: Path, *overrides: tuple[str, str]) -> tuple[NightSettings, str]:
    loaded = load(NightSettings, [world / "night.yaml"], overrides)
    return loaded.settings, loaded.fingerprint


def published(world: Path, table: str, workspace: str = "workspace") -> pl.DataFrame:
    """A published table, without the time it was made at."""
    with duckdb.connect(str(world / workspace / "scores.duckdb"), read_only=True) as connection:
        found = connection.sql(f"FROM {table}").pl()
    return found.drop("generated_at", strict=False)


def test_every_cold_user_gets_one_status_and_a_list_of_what_it_has_not_met(world) -> None:
    summary = nightly.nightly(*settings(world))
    interactions = pl.read_parquet(world / "interactions.parquet")
    status, scores = published(world, "user_status"), published(world, "scores")
    cold = pl.read_parquet(world / "users.parquet").filter(
        ~pl.col("user_id").is_in(
            interactions["user_id"].value_counts().filter(pl.col("count") >= 11)["user_id"].implode()
        )
    )
    assert sorted(status["user_id"]) == sorted(cold["user_id"])
    assert summary["users_requested"] == 60
    assert summary["users_adapted"] + summary["users_prior"] == 60
    assert summary["users_popularity"] == 0
    assert summary["rows_published"] == scores.height == 60 * 5
    assert scores.schema["user_id"] == pl.String
    assert scores.schema["item_id"] == pl.Int32
    assert (
        scores.group_by("user_id")
        .agg(pl.col("rank").sort())
        .select(pl.col("rank").list.eval(pl.element() == pl.int_range(1, 6)).list.all())
        .to_series()
        .all()
    )
    assert scores.join(interactions, on=["user_id", "item_id"]).is_empty()
    likes = interactions.filter(pl.col("rating") >= 4)["user_id"].unique()
    assert set(status.filter(source="adapted")["user_id"]) == set(cold["user_id"]) & set(likes)
    assert set(status.filter(source="prior")["reason"]) == {"no history"}


def test_the_summary_says_what_the_issue_asks_for(world) -> None:
    summary = nightly.nightly(*settings(world))
    wanted = {
        "run_id",
        "status",
        "users_requested",
        "users_adapted",
        "rows_published",
        "scores_path",
        "metrics",
        "seconds",
    }
    assert wanted <= set(summary)
    assert json.loads(json.dumps(summary)) == summary
    assert Path(summary["scores_path"]).exists()
    assert summary["run_id"].startswith("2026-10-30-maml-")
    assert summary["metrics"]["validation_loss"] <= summary["metrics"]["prior_validation_loss"]


def test_the_same_command_again_reuses_the_model_and_changes_nothing(world) -> None:
    first = nightly.nightly(*settings(world))
    rows = published(world, "scores")
    again = nightly.nightly(*settings(world))
    assert again["model_reused"]
    assert not first["model_reused"]
    assert again["sha256"] == first["sha256"]
    assert published(world, "scores").equals(rows)


def test_rows_depend_on_neither_batches_nor_tiles_nor_shards(world) -> None:
    nightly.nightly(*settings(world))
    rows = published(world, "scores").drop("run_id")
    shape = (("adaptation.batch_size", "7"), ("adaptation.tile_size", "33"), ("adaptation.shard_size", "11"))
    nightly.nightly(*settings(world, *shape))
    other = published(world, "scores").drop("run_id")
    assert rows.drop("score").equals(other.drop("score"))
    assert (rows["score"] - other["score"]).abs().max() < 1e-4


SLATE = ("slate", "{temperature: 0.5, exploration: 0.1, pool: 12}")


def test_drawn_lists_carry_the_propensities_of_the_policy_over_the_pool(world) -> None:
    users = pl.read_parquet(world / "users.parquet")
    nightly.nightly(*settings(world, ("top_k", "12"), ("workspace", str(world / "apart"))))
    pools = published(world, "scores", "apart")
    summary = nightly.nightly(*settings(world, SLATE))
    scores, status = published(world, "scores"), published(world, "user_status")
    assert summary["rows_published"] == scores.height == 60 * 5
    assert set(status["source"]) == {"adapted", "prior"}
    assert users["user_id"].is_in(status["user_id"].implode()).sum() == 60
    policy = PlackettLuce(0.5, exploration=0.1)
    in_order = 0
    for (user,), shown in scores.group_by("user_id"):
        pool = pools.filter(user_id=user)
        places = [pool["item_id"].to_list().index(item) for item in shown["item_id"]]
        expected = policy.propensities(torch.tensor([pool["score"].to_list()]), torch.tensor([places]))[0]
        assert shown["propensity"].to_list() == pytest.approx(expected.tolist(), rel=1e-4)
        assert pool["score"].gather(places).to_list() == pytest.approx(shown["score"].to_list(), rel=1e-4)
        in_order += places == sorted(places)
    assert in_order < 30
    assert scores["propensity"].is_between(0, 1, closed="right").all()
    [policy_of_the_run] = published(world, "runs").filter(run_id=summary["run_id"])["policy"]
    described = json.loads(policy_of_the_run)
    assert described.pop("seed") != 7
    assert described == {"name": "plackett_luce", "temperature": 0.5, "exploration": 0.1, "pool": 12}
    lists = published(world, "latest_user_lists").sort("user_id")
    assert lists["propensities"].to_list() == (
        scores.sort("user_id", "rank").group_by("user_id", maintain_order=True).all()["propensity"].to_list()
    )


def test_a_night_draws_the_same_again_whatever_the_batches_and_the_next_one_anew(world) -> None:
    nightly.nightly(*settings(world, SLATE))
    rows = published(world, "scores")
    shape = (("adaptation.batch_size", "7"), ("adaptation.shard_size", "11"), ("adaptation.tile_size", "33"))
    nightly.nightly(*settings(world, SLATE, *shape, ("workspace", str(world / "apart"))))
    again = published(world, "scores", "apart")
    assert again.select("user_id", "rank", "item_id").equals(rows.select("user_id", "rank", "item_id"))
    assert again["propensity"].to_list() == pytest.approx(rows["propensity"].to_list(), rel=1e-3)
    nightly.nightly(*settings(world, SLATE, ("run_date", "2026-10-31"), ("training.reuse_for_days", "1")))
    tomorrow = published(world, "scores")
    assert (tomorrow["model_version"] == rows["model_version"]).all()
    assert (tomorrow["item_id"] != rows["item_id"]).mean() > 0.3


def test_without_temperature_and_exploration_a_slate_is_the_list_of_the_best(world) -> None:
    nightly.nightly(*settings(world))
    best = published(world, "scores")
    assert (best["propensity"] == 1).all()
    [policy] = published(world, "runs")["policy"]
    assert json.loads(policy) == {"name": "deterministic"}
    nightly.nightly(*settings(world, ("slate", "{temperature: 0, pool: 9}")))
    drawn = published(world, "scores")
    assert drawn.drop("run_id", "model_version").equals(best.drop("run_id", "model_version"))


def test_the_steps_one_by_one_come_to_the_whole_night(world) -> None:
    nightly.nightly(*settings(world))
    rows = published(world, "scores")
    assert nightly.validate(*settings(world))["status"] == "valid"
    apart = ("workspace", str(world / "apart"))
    with pytest.raises(NothingToDo, match="train or adapt with the same settings first"):
        nightly.publish(*settings(world, apart))
    assert nightly.train(*settings(world, apart))["status"] == "trained"
    with pytest.raises(NothingToDo, match="3 of 3 parts are not adapted yet"):
        nightly.publish(*settings(world, apart))
    assert nightly.adapt(*settings(world, apart))["users_adapted"] > 0
    assert not (world / "apart" / "scores.duckdb").exists()
    assert nightly.publish(*settings(world, apart))["status"] == "published"
    scores = store.read_scores(world / "apart" / "scores.duckdb").drop("generated_at")
    assert scores.sort("user_id", "rank").equals(rows.sort("user_id", "rank"))


def test_a_bundle_of_yesterday_is_used_again_where_that_is_allowed(world) -> None:
    first = nightly.nightly(*settings(world))
    today = ("run_date", "2026-10-31")
    reusing = nightly.nightly(*settings(world, today, ("training.reuse_for_days", "3")))
    assert reusing["model_reused"]
    assert reusing["model_version"] == first["model_version"]
    assert reusing["run_id"].startswith("2026-10-31")
    late = nightly.train(*settings(world, ("run_date", "2026-11-09"), ("training.reuse_for_days", "3")))
    assert late["model_version"] != first["model_version"]


def test_all_users_or_those_of_a_table_can_be_scored(world) -> None:
    everybody = nightly.validate(*settings(world, ("score", "all")))
    assert everybody["users_requested"] == everybody["users_known"] == 160
    ids = pl.DataFrame(
        {"user_id": ["stranger", *pl.read_parquet(world / "users.parquet")["user_id"].head(3)]}
    )
    ids.write_parquet(world / "ids.parquet")
    listed = nightly.nightly(*settings(world, ("score", f"{{path: {world}/ids.parquet, id: user_id}}")))
    assert listed["users_requested"] == 4
    assert set(published(world, "user_status")["user_id"]) == set(ids["user_id"])
    assert published(world, "user_status").filter(user_id="stranger")["source"].to_list() == ["prior"]


def test_only_candidates_are_recommended(world) -> None:
    pl.DataFrame({"item_id": [3, 5, 7, 11, 13, 17]}).write_parquet(world / "eligible.parquet")
    nightly.nightly(
        *settings(world, ("candidates.table", f"{{path: {world}/eligible.parquet, id: item_id}}"))
    )
    assert set(published(world, "scores")["item_id"]) <= {3, 5, 7, 11, 13, 17}
    recent = pl.read_parquet(world / "interactions.parquet").filter(
        pl.col("timestamp") >= pl.lit("2026-10-29").str.to_datetime(time_zone="UTC")
    )
    nightly.nightly(*settings(world, ("candidates.seen_within", "2d")))
    liked = set(recent.filter(pl.col("rating") >= 4)["item_id"])
    assert set(published(world, "scores")["item_id"]) <= liked


@pytest.mark.parametrize(
    "learner",
    [
        "{class_path: recsys_meta.algorithms.maml.MAML, init_args: {loss: bpr, dim: 4, num_steps: 1}}",
        "{class_path: recsys_meta.algorithms.maml.FOMAML, init_args: {loss: softmax, head: mlp, dim: 4, hidden: [8]}}",
        "{class_path: recsys_meta.baselines.popularity.Popularity}",
    ],
    ids=["negatives", "mlp", "baseline"],
)
def test_other_learners_go_the_same_way(world, learner) -> None:
    summary = nightly.nightly(*settings(world, ("learner", learner), ("training.max_epochs", "1")))
    assert summary["rows_published"] == 60 * 5


def test_ratings_are_learned_around_moments_in_time_with_items_as_of_then(world) -> None:
    summary = nightly.nightly(
        *settings(
            world,
            ("interactions.positive_from", "null"),
            ("learner.init_args", "{loss: squared, dim: 4, num_steps: 2}"),
            ("item_windows", "[1d, 7d]"),
            ("training.split", "moment"),
            ("training.moments", "{every: 5d, over: 30d, horizon: 10d}"),
        )
    )
    assert summary["rows_published"] == 60 * 5
    assert published(world, "scores")["score"].is_between(-5, 10).all()


def test_an_empty_night_is_nothing_to_do(world) -> None:
    pl.read_parquet(world / "interactions.parquet").clear().write_parquet(world / "interactions.parquet")
    with pytest.raises(NothingToDo, match="no interactions"):
        nightly.nightly(*settings(world))


def test_a_night_without_warm_users_says_what_to_do(world) -> None:
    with pytest.raises(ingest.InputError, match=r"lower cold\.below"):
        nightly.nightly(*settings(world, ("cold.below", "1000")))


def test_a_night_that_lost_most_of_its_rows_is_refused_and_the_last_one_stays(world) -> None:
    nightly.nightly(*settings(world))
    before = published(world, "scores")
    users = pl.read_parquet(world / "users.parquet")
    cold = users.filter(pl.col("user_id").is_in(before["user_id"].unique().implode()))
    gone = cold.head(40)["user_id"]
    for table in ("users", "interactions"):
        rows = pl.read_parquet(world / f"{table}.parquet")
        rows.filter(~pl.col("user_id").is_in(gone.implode())).write_parquet(world / f"{table}.parquet")
    tomorrow = ("run_date", "2026-10-31")
    with pytest.raises(
        store.PublishRefused, match=r"100 rows are -66\.7% against the last night, 300; max_row_drop 30%"
    ):
        nightly.nightly(*settings(world, tomorrow))
    assert published(world, "scores").equals(before)
    config, fingerprint = settings(world, tomorrow, ("publish.max_row_drop", "0.9"))
    assert nightly.nightly(config, fingerprint)["rows_published"] == 20 * 5
    # The night that was let through is not what is usual.
    with pytest.raises(
        store.PublishRefused,
        match=r"-66\.7% against the last night, 300 \(1 let through beyond this limit not counted\); max_row_drop 30%",
    ):
        nightly.nightly(*settings(world, ("run_date", "2026-11-01")))


def test_a_night_without_any_row_is_refused(world) -> None:
    pl.DataFrame({"item_id": [1_000_000]}).write_parquet(world / "none.parquet")
    only = ("candidates.table", f"{{path: {world}/none.parquet, id: item_id}}")
    everything = ("learner", "{class_path: recsys_meta.baselines.popularity.Popularity}")
    shown = nightly.nightly(*settings(world, only, everything))
    assert shown["rows_published"] == 60  # an item that nobody has met is a candidate where it is listed
    long_ago = ("candidates.seen_within", "1s")
    with pytest.raises(store.PublishRefused, match="no user has a candidate left"):
        nightly.nightly(*settings(world, long_ago, everything, ("workspace", str(world / "apart"))))


def test_events_are_not_predicted_like_ratings(world) -> None:
    with pytest.raises(ConfigError, match="expected softmax"):
        nightly.nightly(*settings(world, ("learner.init_args.loss", "squared")))


def test_moments_without_a_single_episode_are_told(world) -> None:
    far = ("training.moments", "{every: 1d, over: 1d, horizon: 300d}")
    with pytest.raises(ingest.InputError, match=r"see training\.moments"):
        nightly.nightly(*settings(world, ("training.split", "moment"), far))


def test_ids_of_two_kinds_are_refused(world) -> None:
    pl.DataFrame({"user_id": [1, 2]}).write_parquet(world / "ids.parquet")
    with pytest.raises(
        ingest.InputError,
        match=r"ids\.parquet: user_id is Int64, in the interactions it is String; expected one type of id",
    ):
        nightly.validate(*settings(world, ("score", f"{{path: {world}/ids.parquet, id: user_id}}")))


def test_an_integer_id_that_does_not_fit_the_width_of_the_interactions_is_told() -> None:
    interactions = pl.DataFrame({"item_id": [1, 2]}, schema={"item_id": pl.Int32})
    fitting = pl.Series("item_id", [1, 2**31 - 1, None])
    assert cast_ids(fitting, interactions, None).dtype == pl.Int32
    with pytest.raises(ingest.InputError, match="item_id 3000000000 does not fit Int32"):
        cast_ids(pl.Series("item_id", [1, 3_000_000_000]), interactions, None)


@pytest.mark.parametrize("broken", ["writing", "scoring"])
def test_an_error_while_writing_or_scoring_ends_the_night_and_the_next_goes_on_where_it_was(
    world, monkeypatch, broken
) -> None:
    calls = []

    def breaking(function):
        def called(*args, **kwargs):
            calls.append(args)
            if len(calls) == (3 if broken == "writing" else 2):  # of the second part the first table
                raise OSError("no space left")
            return function(*args, **kwargs)

        return called

    with monkeypatch.context() as patched:
        if broken == "writing":
            patched.setattr(store.RunFolder, "write_part", breaking(store.RunFolder.write_part))
        else:
            patched.setattr(nightly, "recommend", breaking(nightly.recommend))
        with pytest.raises(OSError, match="no space left"):
            nightly.nightly(*settings(world))
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    assert not (world / "workspace" / "scores.duckdb").exists()
    [run] = store.Workspace(world / "workspace").runs()
    assert list(run.shards()) == [0]
    assert nightly.nightly(*settings(world))["rows_published"] == 60 * 5


def test_a_night_of_slates_that_broke_off_goes_on_with_the_same_draws(world, monkeypatch) -> None:
    calls = []

    def breaking(run, table, number, frame):
        calls.append(number)
        if number == 1:
            raise OSError("no space left")
        written(run, table, number, frame)

    written = store.RunFolder.write_part
    with monkeypatch.context() as patched:
        patched.setattr(store.RunFolder, "write_part", breaking)
        with pytest.raises(OSError, match="no space left"):
            nightly.nightly(*settings(world, SLATE))
    [run] = store.Workspace(world / "workspace").runs()
    assert list(run.shards()) == [0]
    nightly.nightly(*settings(world, SLATE))
    nightly.nightly(*settings(world, SLATE, ("workspace", str(world / "undisturbed"))))
    assert published(world, "scores").equals(published(world, "scores", "undisturbed"))


# What a kill leaves behind is on disk: a night killed right before each of these steps has been through every state between
# them. Words of the change that the process was about to make.
MOMENTS = (
    ["os.rename", "last.new", "last.ckpt"],  # one epoch trained, no checkpoint yet
    ["os.rename", "last.ckpt", "previous.ckpt"],  # a second, and the checkpoint of the first
    ["os.rename", "last.new", "last.ckpt"],  # the same, under its other name
    ["os.rename", "-bundle"],  # trained
    ["open", "user_status", "000000.parquet"],  # a part whose scores are written
    ["os.rename", "finished", "000001.json"],  # a part written whole, but not said to be
    ["os.rename", "publication-0001"],  # the file built
    ["os.rename", "workspace/scores.duckdb"],  # published, but not in force
)


@pytest.fixture
def nights(world: Path) -> Iterator[Callable[..., int]]:
    """Runs a night in a process of its own: workspace, where it is to be killed, settings; gives how the process ended."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killed_night.py"))],
        cwd=world,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def night(workspace: str, die_before: list[str] | None = None, *settings: tuple[str, str]) -> int:
            task = {"workspace": workspace, "settings": settings, "die_before": die_before}
            stdin.write(json.dumps(task) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield night
        stdin.close()


def test_a_night_killed_anywhere_and_run_again_publishes_what_an_undisturbed_one_does(world, nights) -> None:
    assert nights("undisturbed") == 0
    for moment in MOMENTS:  # each time it goes on where it was
        assert not (world / "workspace" / "scores.duckdb").exists()
        assert nights("workspace", moment) == -signal.SIGKILL, moment
    assert nights("workspace") == 0
    for name in ("scores", "user_status"):
        assert published(world, name).equals(published(world, name, "undisturbed"))


def test_a_night_of_slates_killed_between_its_parts_shows_the_slates_of_an_undisturbed_one(
    world, nights
) -> None:
    assert nights("undisturbed", None, SLATE) == 0
    for moment, parts in (
        (["os.rename", "finished", "000000.json"], []),  # the first part drawn, but not said to be
        (["open", "scores", "000001.parquet"], [0]),  # between the first part and the second
        (["open", "user_status", "000001.parquet"], [0]),  # the slates of the second written
        (["open", "scores", "000002.parquet"], [0, 1]),
        (["os.rename", "publication-0001"], [0, 1, 2]),
    ):
        assert nights("workspace", moment, SLATE) == -signal.SIGKILL, moment
        [run] = store.Workspace(world / "workspace").runs()
        assert sorted(run.shards()) == parts
    assert nights("workspace", None, SLATE) == 0
    slates = published(world, "scores")
    assert slates["propensity"].n_unique() > 60  # drawn, and not the lists of the best
    assert slates.equals(published(world, "scores", "undisturbed"))
    assert published(world, "user_status").equals(published(world, "user_status", "undisturbed"))
