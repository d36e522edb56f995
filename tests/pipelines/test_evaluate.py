"""The evaluation on small worlds: what is judged, compared, written and refused."""

import json
from pathlib import Path

import duckdb
import polars as pl
import pytest
import torch

from pipelines import evaluate
from pipelines.cost import Cost
from pipelines.evaluate import unique_names, with_query_of_others
from pipelines.inputs import read_inputs
from pipelines.judged import Judged, Tasks, Trial, trial_of
from pipelines.loading import load
from pipelines.settings import BaselineSettings, EvaluateSettings, ladder, ladders
from recsys_meta import ingest
from recsys_meta.cli import main
from recsys_meta.episodes import RandomSplits
from recsys_meta.tensors import Histories
from recsys_meta.training.building import BuildError, learner_class

SAMPLE = Path(__file__).parents[2] / "data" / "sample"

CONFIG = """
workspace: workspace
interactions: {path: interactions.parquet, value: rating, timestamp: timestamp, value_range: [1, 5]}
users: {path: users.parquet, id: user_id, categorical: [age_group, region]}
items: {path: items.parquet, id: item_id, categorical: [studio], multi: [genres], numbers: [year]}
protocol: {kind: held_out_users, share: 0.3, min_history: 12, shots: [0, 1, 5, all], clip: [1, 5], cutoff: 5}
learners: [{class_path: recsys_meta.algorithms.maml.MAML, init_args: {loss: squared, dim: 4, num_steps: 2}}]
baselines: [recsys_meta.baselines.item_mean.ItemMean, recsys_meta.baselines.user_bias.ItemMeanUserBias]
training: {max_epochs: 2, batch_size: 32, outer_lr: 0.01, validation_share: 0.2, shots: [0, 1, 5, 10]}
bootstrap_draws: 100
"""

QUESTIONNAIRE = """
workspace: workspace
interactions: {path: interactions.parquet, value: rating}
protocol: {kind: held_out_users, share: 0.5, min_history: 12, query_size: 4, shots: [0, 1, 3, 5], clip: [1, 5]}
learners: [{class_path: recsys_meta.baselines.item_mean.ItemMean}]
baselines: [recsys_meta.baselines.als.ALS]
bootstrap_draws: 100
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with 200 warm users of the sample world, and a config."""
    interactions = pl.read_parquet(SAMPLE / "interactions.parquet")
    warm = interactions.group_by("user_id").len().filter(pl.col("len") > 10).sort("user_id").head(200)
    kept = interactions.join(warm.select("user_id"), on="user_id", maintain_order="left")
    kept.write_parquet(tmp_path / "interactions.parquet")
    for name in ("users", "items"):
        pl.read_parquet(SAMPLE / f"{name}.parquet").write_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "evaluate.yaml").write_text(CONFIG)
    return tmp_path


def judgements_of(world: Path) -> pl.DataFrame:
    (file,) = (world / "workspace" / "evaluations").glob("*/judgements.parquet")
    return pl.read_parquet(file)


def histories(rows: list[list[int]]) -> Histories:
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    items = torch.tensor([item for row in rows for item in row])
    return Histories(items, torch.ones(len(items)), torch.zeros(0, dtype=torch.int64), offsets)


def run(world: Path, *overrides: tuple[str, str]) -> dict:
    loaded = load(EvaluateSettings, [world / "evaluate.yaml"], overrides)
    return evaluate.evaluate(loaded.settings, loaded.fingerprint)


def test_rows_set_aside_are_kept_beside_what_was_found(world: Path) -> None:
    file = world / "interactions.parquet"
    table = pl.read_parquet(file)
    table.vstack(table.head(1).with_columns(pl.lit(9, table.schema["rating"]).alias("rating"))).write_parquet(
        file
    )
    run(world, ("learners", "[]"))
    (folder,) = (world / "workspace" / "evaluations").glob("*")
    (row,) = pl.read_parquet(folder / "quarantine.parquet").to_dicts()
    assert (row["row"], row["column"]) == (table.height + 1, "rating")
    assert "Set aside: 1 rows (quarantine.parquet)." in (folder / "tables.md").read_text()
    assert "1 rows (quarantine.parquet)" in (folder / "report.html").read_text()


def test_learners_and_baselines_are_judged_at_every_shot_and_compared(world, capsys) -> None:
    result = run(world)
    assert list(result["shots"]) == ["0", "1", "5", "all"]
    assert result["metric"] == "mae"
    assert not result["higher_is_better"]
    for shot in result["shots"].values():
        assert shot["best_baseline_name"] in {"ItemMean", "ItemMeanUserBias"}
        middle = shot["best_baseline"] - shot["default"]
        assert shot["difference_low"] <= middle <= shot["difference_high"]
    printed = capsys.readouterr().out
    assert "| MAML |" in printed
    assert "mae at shot" in printed
    (folder,) = (world / "workspace" / "evaluations").iterdir()
    judgements = pl.read_parquet(folder / "judgements.parquet")
    assert set(judgements["learner"]) == {"MAML", "ItemMean", "ItemMeanUserBias"}
    assert json.loads((folder / "result.json").read_text())["shots"] == result["shots"]
    means = pl.read_parquet(folder / "summary.parquet").filter(learner="ItemMean", metric="mae")["mean"]
    assert means.n_unique() == 1  # whatever the shots, an item mean stays what it is


def test_one_judged_user_gives_figures_without_intervals_and_nothing_is_decided(world, capsys) -> None:
    arguments = ["evaluate", "--config", str(world / "evaluate.yaml"), "--quiet", "--protocol.share", "0.005"]
    arguments += ["--learners", "[recsys_meta.baselines.user_bias.ItemMeanUserBias]"]
    assert main([*arguments, "--baselines", "[recsys_meta.baselines.item_mean.ItemMean]"]) == 0
    *printed, last = capsys.readouterr().out.splitlines()
    assert "[no interval]" in "\n".join(printed)
    for shot in json.loads(last)["shots"].values():
        assert shot["default"] is not None
        assert (shot["difference_low"], shot["difference_high"]) == (None, None)
    (result,) = (world / "workspace" / "evaluations").glob("*/result.json")
    assert "NaN" not in result.read_text()
    with duckdb.connect(str(world / "workspace" / "evaluations.duckdb"), read_only=True) as connection:
        found = connection.sql("SELECT DISTINCT users, low, high, verdict FROM evaluation_differences")
        assert found.fetchall() == [(1, None, None, "undecided")]


def test_a_rerun_finds_the_same_replaces_its_rows_and_tells_what_the_fit_cost_when_it_was_done(world) -> None:
    first, result = run(world), run(world)
    assert first == result
    assert set(result) == {"metric", "higher_is_better", "shots"}
    keys = {"default", "best_baseline", "best_baseline_name", "difference_low", "difference_high"}
    assert all(set(shot) == keys for shot in result["shots"].values())
    (folder,) = (world / "workspace" / "evaluations").iterdir()
    written = {"judgements.parquet", "summary.parquet", "tables.md", "result.json", "report.html"}
    written.add("quarantine.parquet")
    assert {file.name for file in folder.iterdir()} == written
    with duckdb.connect(str(world / "workspace" / "evaluations.duckdb"), read_only=True) as connection:
        counts = dict(
            connection.sql("SELECT against, count(*) FROM evaluation_differences GROUP BY ALL").fetchall()
        )
        seconds = dict(connection.sql("SELECT learner, fit_seconds FROM evaluation_costs").fetchall())
    assert counts["its prior"] == 3  # shots of the learner
    (kept,) = (world / "workspace" / "models").glob("maml*/cost.json")
    assert seconds["MAML"] == json.loads(kept.read_text())["seconds"]
    assert set(seconds) == {"MAML", "ItemMean", "ItemMeanUserBias"}


def test_what_the_fit_of_a_night_cost_is_not_known(tmp_path: Path) -> None:
    spent = Cost(1.5, 1.25, 300)
    unknown = {"seconds": None, "cpu_seconds": None, "peak_mib": None}
    assert evaluate.kept_cost(tmp_path / "cost.json", spent, anew=False) == unknown
    told = {"seconds": 1.5, "cpu_seconds": 1.25, "peak_mib": 300}
    assert evaluate.kept_cost(tmp_path / "cost.json", spent, anew=True) == told
    assert evaluate.kept_cost(tmp_path / "cost.json", Cost(9.0, 9.0, 9), anew=False) == told


def test_a_baseline_may_have_a_popularity_window_of_its_own(world) -> None:
    popularity = "recsys_meta.baselines.popularity.Popularity"
    run(
        world,
        ("interactions.positive_from", "4"),
        ("learners", "[recsys_meta.baselines.item_knn.ItemKNN]"),
        ("baselines", f"[{popularity}, {{class_path: {popularity}, popularity_window: 1h}}]"),
        ("protocol", "{kind: held_out_users, share: 0.3, min_history: 8, shots: [0]}"),
    )
    at_once = judgements_of(world).filter(metric="ndcg@5").group_by("learner").agg(pl.col("value").mean())
    means = dict(at_once.iter_rows())
    assert set(means) == {"ItemKNN", "Popularity", "Popularity(1h)"}
    assert means["Popularity"] != means["Popularity(1h)"]


def test_where_no_baselines_are_named_the_ladder_that_suits_the_data_is_judged(world) -> None:
    found = run(world, ("baselines", "null"), ("protocol.shots", "[1]"))
    assert set(judgements_of(world)["learner"]) == {"MAML", "ItemMean", "ItemMeanUserBias", "ALS"}
    assert "best_baseline" in found["shots"]["1"]
    alone = run(world, ("baselines", "[]"), ("protocol.shots", "[1]"), ("workspace", str(world / "alone")))
    assert "best_baseline" not in alone["shots"]["1"]


def test_two_classes_of_one_name_are_told_apart_by_their_paths() -> None:
    paths = ["one.Mean", "another.Mean", "one.Other"]
    assert unique_names([BaselineSettings(class_path=path) for path in paths]) == [*paths[:2], "Other"]


def test_of_the_ladder_is_left_out_what_is_judged_as_a_learner(world) -> None:
    learner = ("learners", "[recsys_meta.baselines.item_mean.ItemMean]")
    run(world, learner, ("baselines", "null"), ("protocol.shots", "[1]"))
    found = judgements_of(world)
    assert set(found["learner"]) == {"ItemMean", "ItemMeanUserBias", "ALS"}
    assert found.filter(metric="mae").group_by("learner").len()["len"].n_unique() == 1


def test_the_ladder_of_rankings_has_the_popularity_of_some_windows_where_time_is_cut() -> None:
    names = unique_names(ladder(rated=False, protocol="held_out_users"))
    assert names == ["Popularity", "ItemKNN", "ItemKNNPopularity", "EASEPopularity", "IALS"]
    recent = unique_names(ladder(rated=False, protocol="temporal"))
    assert recent == [names[0], "Popularity(1d)", "Popularity(7d)", "Popularity(30d)", *names[1:]]
    assert unique_names(ladder(rated=False, protocol="next_day"))[1:5] == [
        "Popularity(10m)",
        "Popularity(1h)",
        "Popularity(3h)",
        "Popularity(1d)",
    ]
    for choice in ladders():
        learner_class(choice.class_path)


def test_settings_that_one_of_them_refuses_end_it_before_any_is_fitted(world) -> None:
    refusing = "{class_path: recsys_meta.baselines.ease.EASE, init_args: {ridge: -1}}"
    with pytest.raises(BuildError, match="EASE refuses its settings: found ridge -1"):
        run(world, ("baselines", f"[recsys_meta.baselines.item_mean.ItemMean, {refusing}]"))
    assert not [*(world / "workspace").glob("models/*")]
    assert BuildError.exit_code == 2  # an error of the config: told without a traceback


def test_support_comes_before_query_and_held_out_users_are_not_trained_on(world) -> None:
    loaded = load(EvaluateSettings, [world / "evaluate.yaml"])
    inputs = read_inputs(loaded.settings, None)
    tasks, learned, training = trial_of(loaded.settings, inputs)[:3]
    assert not set(tasks.user_ids) & set(learned.interactions["user_id"])
    assert set(training) == set(learned.interactions["user_id"])
    assert set(training) | set(tasks.user_ids) <= set(inputs.interactions["user_id"])
    for task in range(len(tasks.user_ids)):
        support = tasks.support.times[tasks.support.offsets[task] : tasks.support.offsets[task + 1]]
        query = tasks.query.times[tasks.query.offsets[task] : tasks.query.offsets[task + 1]]
        assert len(query)
        assert support.max() <= query.min()


def test_the_ranking_of_the_whole_catalogue_is_judged_by_ndcg(world) -> None:
    result = run(
        world,
        ("interactions.positive_from", "4"),
        (
            "learners",
            "[{class_path: recsys_meta.algorithms.maml.MAML, init_args: {loss: softmax, dim: 4, num_steps: 2}}]",
        ),
        ("baselines", "[recsys_meta.baselines.popularity.Popularity]"),
        (
            "protocol",
            "{kind: held_out_users, share: 0.3, min_history: 8, shots: [0, 3], query_size: 4, draws: 2}",
        ),
    )
    assert result["metric"] == "ndcg@5"
    assert result["higher_is_better"]
    assert set(judgements_of(world)["draw"]) == {0, 1}


def fixed_episodes(world: Path) -> None:
    """Episodes of the first five users, and a config that judges them."""
    interactions = pl.read_parquet(world / "interactions.parquet")
    users = interactions["user_id"].unique().sort().head(5)
    rows = interactions.filter(pl.col("user_id").is_in(users.implode())).unique(
        ["user_id", "item_id"], maintain_order=True
    )
    rows = rows.with_columns(position=pl.int_range(pl.len()).over("user_id"), draw=pl.lit(0))
    rows = rows.with_columns(
        role=pl.when(pl.col("position") < 6).then(pl.lit("support")).otherwise(pl.lit("query"))
    )
    rows.with_columns(pl.col("item_id").cast(pl.Int64)).write_parquet(world / "episodes.parquet")
    text = CONFIG.replace(
        "protocol: {kind: held_out_users, share: 0.3, min_history: 12, shots: [0, 1, 5, all], clip: [1, 5], cutoff: 5}",
        "protocol: {kind: rating, episodes: {path: episodes.parquet}, shots: [1, all], clip: [1, 5]}",
    )
    (world / "evaluate.yaml").write_text(text)


@pytest.mark.parametrize(
    ("protocol", "judged", "least"),
    [
        ("{kind: held_out_users, share: 0.3, min_history: 12, shots: [0, 1]}", "ranking", 12),
        ("{kind: held_out_users, share: 0.3, min_history: 12, shots: [0, 1]}", "rating", "auto"),
        ("{kind: temporal, share: 0.4, shots: [0, 1, 5], min_query: 3}", "ranking", 2),
        ("{kind: temporal, share: 0.4, shots: [0, 1, 20], min_query: 5}", "ranking", 8),
        ("{kind: temporal, share: 0.4, shots: [0, 1, 20], min_query: 5}", "rating", "auto"),
        ("{kind: temporal, share: 0.4, shots: [0, 1, 3], min_query: 2}", "ranking", "auto"),
        ("{kind: next_day, day: 2026-01-10, shots: [0, 1]}", "ranking", "auto"),
    ],
)
def test_trained_on_are_users_with_as_many_events_as_the_judged(
    world, protocol: str, judged: Judged, least: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(EvaluateSettings, [world / "evaluate.yaml"], [("protocol", protocol)]).settings
    known = read_inputs(loaded, None)
    nothing = known.histories.take(torch.empty(0, dtype=torch.int64))
    tasks = Tasks(pl.Series([], dtype=pl.String), torch.empty(0, dtype=torch.int64), nothing, nothing, judged)
    trial = Trial(tasks, known, known.interactions["user_id"].unique(), known.item_ids)
    enough = int(
        (known.interactions.group_by("user_id").len()["len"] >= (0 if least == "auto" else least)).sum()
    )
    for fewest, told in ((enough, least), (enough + 1, "auto")):
        monkeypatch.setattr(evaluate, "_ENOUGH_ALIKE", fewest)
        assert evaluate.with_tasks_like(loaded, trial).training.min_history == told
        said = loaded.model_copy(update={"training": loaded.training.model_copy(update={"min_history": 3})})
        assert evaluate.with_tasks_like(said, trial).training.min_history == 3


def test_ratings_of_others_are_asked_for_items_outside_of_the_support_alone() -> None:
    tasks = Tasks(
        pl.Series("user_id", [1, 2, 3]),
        torch.zeros(3, dtype=torch.int64),
        histories([[0, 1], [2], [3]]),
        histories([[2, 3], [0, 1, 4], [1, 2]]),
        judged="rating",
    )
    of_others = with_query_of_others(tasks, 1)
    assert [of_others.query.take(torch.tensor([row])).items.tolist() for row in range(3)] == [
        [2],
        [3],
        [0, 1, 4],
    ]
    # Of a ranking they are no candidates anyway, and fewer to be found would be found more easily.
    ranked = with_query_of_others(tasks._replace(judged="ranking"), 1)
    assert ranked.query.items.tolist() == [1, 2, 2, 3, 0, 1, 4]


@pytest.mark.parametrize("draws", [1, 3, 5])
@pytest.mark.parametrize("places", [1, 2, 3, 4, 9])
def test_nobody_is_asked_what_it_is_asked_in_another_draw(draws: int, places: int) -> None:
    users = [user for user in range(4) for _ in range(draws)]
    tasks = Tasks(
        pl.Series("user_id", users),
        torch.arange(draws).repeat(4),
        histories([[9] for _ in users]),
        histories([[user * 10 + place] for place, user in enumerate(users)]),
        judged="ranking",
    )
    query = with_query_of_others(tasks, places).query
    assert query.lengths.tolist() == [1] * len(users)
    asked = query.items.tolist()
    of = {item: user for user, item in zip(users, tasks.query.items.tolist(), strict=True)}
    assert all(of[item] != user for user, item in zip(users, asked, strict=True))
    assert len(set(asked)) == len(users)  # and everything is asked of somebody


def test_a_small_catalogue_that_everybody_rates_is_judged(tmp_path: Path) -> None:
    # A questionnaire: who adapts to answers of nobody errs on what it was told of, and most of what others are asked is that.
    generator = torch.Generator().manual_seed(0)
    people, questions = torch.randn(1500, 3, generator=generator), torch.randn(3, 12, generator=generator)
    noise = torch.randn(1500, 12, generator=generator)
    answers = (3 + torch.linspace(-2, 2, 12) + people @ questions + noise).round().clamp(1, 5)
    users, items = torch.cartesian_prod(torch.arange(1500), torch.arange(12)).T.tolist()
    table = pl.DataFrame({"user_id": users, "item_id": items, "rating": answers.flatten().tolist()})
    table.write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "evaluate.yaml").write_text(QUESTIONNAIRE)
    figures = run(tmp_path)["shots"]
    assert figures["1"]["best_baseline_name"] == "ALS"
    assert figures["5"]["best_baseline"] < 0.9 * figures["5"]["default"]


def test_fixed_episodes_are_read_off_the_given_rows(world) -> None:
    fixed_episodes(world)
    quoted = ", ".join(
        f"'{user}'" for user in pl.read_parquet(world / "episodes.parquet")["user_id"].unique()
    )
    result = run(world, ("interactions.where", f"user_id not in ({quoted})"))
    judgements = judgements_of(world)
    assert judgements["user_id"].n_unique() == 5
    assert list(result["shots"]) == ["1", "all"]


@pytest.mark.parametrize("kind", ["listed", "ranking"])
def test_who_is_judged_on_lists_is_trained_on_lists(world, kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a training user rated below ``positive_from`` stands in its query then, and else nowhere."""
    fixed_episodes(world)
    text = (world / "evaluate.yaml").read_text().replace("kind: rating", f"kind: {kind}")
    text = text.replace(", clip: [1, 5]}", "}").replace("loss: squared", "loss: softmax")
    text = text.replace("value: rating,", "value: rating, positive_from: 4,")
    (world / "evaluate.yaml").write_text(text.replace("baselines: [", "baselines: [] #"))
    drawn = []

    def draw(*arguments, **settings):
        sampler = RandomSplits(*arguments, **settings)
        drawn.extend(sampler.epoch(0))
        return sampler

    monkeypatch.setattr("pipelines.drawing.RandomSplits", draw)
    episodes = pl.read_parquet(world / "episodes.parquet").with_columns(
        rating=(pl.col("rating") >= 4).cast(pl.Float64)
    )
    episodes.write_parquet(world / "episodes.parquet")
    quoted = ", ".join(f"'{user}'" for user in episodes["user_id"].unique())
    result = run(world, ("interactions.where", f"user_id not in ({quoted})"))
    assert result["metric"].startswith("ndcg_of_listed@" if kind == "listed" else "ndcg@")
    low = pl.read_parquet(world / "interactions.parquet").filter(
        (pl.col("rating") < 4) & ~pl.col("user_id").is_in(episodes["user_id"].unique().implode())
    )
    shown = low.group_by("user_id").len()["len"].sort().to_list()
    lengths = sorted(
        int(number)
        for batch in drawn
        for number in (batch.query.mask & (batch.query.targets <= 0)).sum(1)
        if number
    )
    if kind == "ranking":
        assert not lengths
    else:
        assert set(lengths) <= set(shown)
        assert sum(lengths) >= 0.9 * sum(shown)  # everybody but those who chose nothing
    assert not any((batch.support.mask & (batch.support.targets <= 0)).any() for batch in drawn)


def test_judged_users_among_the_training_data_are_refused(world) -> None:
    fixed_episodes(world)
    with pytest.raises(ingest.InputError, match="judged users stand among the interactions"):
        run(world)


def test_episodes_that_break_the_protocol_are_refused_with_their_file(world) -> None:
    fixed_episodes(world)
    rows = pl.read_parquet(world / "episodes.parquet")
    rows.with_columns(role=pl.lit("support")).write_parquet(world / "episodes.parquet")
    with pytest.raises(ingest.InputError, match=r"episodes\.parquet: .* no query row"):
        run(world)


def test_a_share_that_leaves_nobody_to_judge_is_refused(world) -> None:
    with pytest.raises(ingest.InputError, match=r"lower protocol\.min_history"):
        run(world, ("protocol.min_history", "5000"))
    with pytest.raises(ingest.InputError, match=r"none of 200 users is held out; raise protocol\.share"):
        run(world, ("protocol.share", "1e-9"))


def test_a_value_that_nothing_reaches_is_told(world) -> None:
    with pytest.raises(
        ingest.InputError, match=r"'rating': the largest value is 5.0; expected some from .*is 10"
    ):
        run(world, ("interactions.positive_from", "10"))
