"""What follows from how fast items come and go: in evaluations it is done, in nights it is said."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import torch

from pipelines import evaluate, nightly, tune
from pipelines.inputs import read_inputs
from pipelines.learning import at_pace
from pipelines.loading import load
from pipelines.outcomes import ConfigError
from pipelines.settings import EvaluateSettings, NightSettings, TuneSettings, duration_text

FIRST, DAYS = datetime(2026, 3, 1, tzinfo=UTC), 8
MAPPING = "interactions: {path: clicks.parquet, timestamp: at}\nworkspace: workspace\n"
EVALUATION = (
    MAPPING
    + """
protocol: {kind: next_day, day: 2026-03-07, shots: [0, 1], cutoff: 3}
cold: {below: 4}
learners: [{class_path: recsys_meta.algorithms.laddered.Laddered}]
baselines: [recsys_meta.baselines.popularity.Popularity]
training: {max_epochs: 2}
bootstrap_draws: 50
"""
)


def clicks(folder: Path, lives: int) -> Path:
    """A new item every three hours; each is asked for by ten users for so many hours."""
    draw, rows = torch.Generator().manual_seed(0), []
    items = DAYS * 8
    for item in range(items):
        at = torch.rand(30, generator=draw) * min(lives, 3 * (items - item))
        for user, hours in enumerate(at.tolist()):
            if torch.rand((), generator=draw) < 0.4:
                rows.append(
                    (user + 30 * (item % 5), f"i{item:02}", FIRST + timedelta(hours=3 * item + hours))
                )
    pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row").write_parquet(
        folder / "clicks.parquet"
    )
    return folder


def settings_of(folder: Path, text: str, *overrides: tuple[str, str]) -> EvaluateSettings:
    (folder / "evaluate.yaml").write_text(text)
    return load(EvaluateSettings, [folder / "evaluate.yaml"], overrides).settings


def paced(settings: EvaluateSettings):
    moment = FIRST + timedelta(days=7)
    inputs = read_inputs(settings, None)
    return at_pace(settings, settings.learners[0], inputs, moment, timedelta(days=1))


def test_where_items_live_for_hours_training_looks_forward_from_moments(tmp_path) -> None:
    found = paced(settings_of(clicks(tmp_path, lives=8), EVALUATION))
    assert found.story.split == "moment"
    assert found.learner.init_args == {"item_ids": False}
    assert [duration_text(window) for window in found.story.item_windows] == [
        "10m",
        "20m",
        "1h",
        "3h",
        "6h",
        "1d",
    ]
    assert found.story.popularity_window is not None
    assert "items come and go" in found.why
    assert "item_windows: [10m, 20m, 1h, 3h, 6h, 1d]" in str(found)


def test_where_they_stay_and_where_settings_say_otherwise_nothing_changes(tmp_path) -> None:
    settings = settings_of(clicks(tmp_path, lives=8), EVALUATION, ("training.split", "time"))
    assert paced(settings) == (settings, settings.learners[0], "")
    settings = settings_of(clicks(tmp_path, lives=200), EVALUATION)
    assert paced(settings) == (settings, settings.learners[0], "")


def test_an_evaluation_fits_its_learners_so_and_leaves_the_baselines_alone(tmp_path, caplog) -> None:
    settings = settings_of(clicks(tmp_path, lives=8), EVALUATION)
    with caplog.at_level(logging.INFO):
        result = evaluate.evaluate(settings, "abcdefgh")
    assert "Laddered: items come and go" in caplog.text
    assert "Popularity: items come and go" not in caplog.text
    # By now the most clicked of all time are of no use; the learner knows what is new.
    assert result["shots"]["0"]["default"] > 2 * result["shots"]["0"]["best_baseline"]


def test_tuning_fits_its_trials_as_the_evaluation_will(tmp_path, caplog) -> None:
    maml = "recsys_meta.algorithms.maml.MAML"
    text = EVALUATION.replace("recsys_meta.algorithms.laddered.Laddered", maml)
    text += f"trials: 2\nspaces: {{{maml}: {{dim: {{choices: [4]}}}}}}\n"
    (clicks(tmp_path, lives=8) / "tune.yaml").write_text(text)
    loaded = load(TuneSettings, [tmp_path / "tune.yaml"], ())
    with caplog.at_level(logging.INFO):
        found = tune.tune(loaded.settings, loaded.fingerprint)
    assert caplog.text.count("MAML: items come and go") == 2
    best = {name: row["value"] for name, row in found["best"].items()}
    assert best["MAML"] > 2 * best["Popularity"]


def test_a_night_says_which_settings_would_suit(tmp_path, caplog) -> None:
    (clicks(tmp_path, lives=8) / "night.yaml").write_text(
        MAPPING + "run_date: 2026-03-09\ncold: {below: 4}\n"
    )
    loaded = load(NightSettings, [tmp_path / "night.yaml"], ())
    with caplog.at_level(logging.WARNING):
        nightly.validate(loaded.settings, loaded.fingerprint)
    assert "items come and go" in caplog.text
    assert "try training: {split: moment, moments: {every: 2h, over: 2d, horizon: 12h}}" in caplog.text


NEWCOMERS = (
    MAPPING
    + """
protocol: {kind: temporal, moment: 2026-03-08, shots: [0, 1], min_query: 2, cutoff: 3}
learners: [{class_path: recsys_meta.algorithms.laddered.Laddered}]
baselines: [recsys_meta.baselines.popularity.Popularity]
training: {max_epochs: 2}
bootstrap_draws: 50
"""
)


def readers(folder: Path, *, of_news: bool) -> Path:
    """Every hour an item and a few readers come, who read eight of the last sixteen, or of sixty that never go."""
    draw, rows = torch.Generator().manual_seed(0), []
    for hour in range(16, DAYS * 24):
        for reader in range(6):
            newest = hour - torch.randperm(16, generator=draw)[:8]
            if not of_news:
                newest = torch.multinomial(1 / torch.arange(1.0, 61), 8, generator=draw)
            at = FIRST + timedelta(hours=hour, minutes=9 * reader)
            rows += [
                (f"u{hour}-{reader}", f"i{item}", at + timedelta(minutes=minute))
                for minute, item in enumerate(newest.tolist())
            ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row").write_parquet(
        folder / "clicks.parquet"
    )
    return folder


def test_where_newcomers_read_what_is_new_training_looks_at_newcomers_of_the_past(tmp_path, caplog) -> None:
    settings = settings_of(readers(tmp_path, of_news=True), NEWCOMERS)
    moment = FIRST + timedelta(days=7)
    inputs = read_inputs(settings, None)
    found = at_pace(settings, settings.learners[0], inputs, moment, None)
    assert found.story.split == "newcomers"
    assert found.learner.init_args == {"item_ids": False, "counts": True}
    assert found.story.popularity_window in found.story.item_windows
    assert "training: {split: newcomers}" in str(found)
    with caplog.at_level(logging.INFO):
        result = evaluate.evaluate(settings, "abcdefgh")
    assert "Laddered: items rise and fall" in caplog.text
    assert result["shots"]["0"]["default"] > 2 * result["shots"]["0"]["best_baseline"]


def test_where_newcomers_read_what_was_always_there_popularity_alone_is_mixed(tmp_path) -> None:
    settings = settings_of(readers(tmp_path, of_news=False), NEWCOMERS)
    inputs, moment = read_inputs(settings, None), FIRST + timedelta(days=7)
    found = at_pace(settings, settings.learners[0], inputs, moment, None)
    assert found.learner == settings.learners[0]
    assert found.story.model_copy(update={"popularity_mix": ()}) == settings
    assert 0 < sum(part.share for part in found.story.popularity_mix) <= 0.5
    said = settings_of(tmp_path, NEWCOMERS, ("popularity_window", "1d"))
    assert at_pace(said, said.learners[0], inputs, moment, None) == (said, said.learners[0], "")


def seasons(folder: Path) -> Path:
    """A few readers come every hour and read eight of sixty items: more often of the twenty that are liked that day."""
    draw, rows = torch.Generator().manual_seed(0), []
    for hour in range(DAYS * 24):
        liked = torch.ones(60)
        liked[torch.arange(20) + 3 * (hour // 24)] = 2.5  # seventeen of these the next day too
        for reader in range(4):
            at = FIRST + timedelta(hours=hour, minutes=10 * reader)
            rows += [
                (f"u{hour}-{reader}", f"i{item}", at + timedelta(minutes=minute))
                for minute, item in enumerate(torch.multinomial(liked, 8, generator=draw).tolist())
            ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row").write_parquet(
        folder / "clicks.parquet"
    )
    return folder


def test_newcomers_without_history_get_what_is_popular_by_now(tmp_path, caplog) -> None:
    settings = settings_of(seasons(tmp_path), NEWCOMERS, ("baselines", "null"))
    with caplog.at_level(logging.INFO):
        result = evaluate.evaluate(settings, "abcdefgh")
    assert "Laddered: newcomers of the past are foretold best with" in caplog.text
    assert "fitted with popularity_mix: [{window: 1d18h, share: " in caplog.text
    rows = json.loads(next(tmp_path.glob("workspace/evaluations/*/result.json")).read_text())
    assert rows == json.loads(json.dumps(result))
    table = next(tmp_path.glob("workspace/evaluations/*/tables.md")).read_text()
    popular = float(table.split("| Popularity | ")[1].split(" ")[0])  # of all time, without history
    assert result["shots"]["0"]["default"] > 1.05 * popular


def test_what_the_log_says_is_a_setting(tmp_path) -> None:
    settings = settings_of(seasons(tmp_path), NEWCOMERS)
    inputs, moment = read_inputs(settings, None), FIRST + timedelta(days=7)
    found = at_pace(settings, settings.learners[0], inputs, moment, None)
    said = settings_of(tmp_path, NEWCOMERS + f"{found}\n")
    assert said.popularity_mix == found.story.popularity_mix
    assert at_pace(said, said.learners[0], inputs, moment, None) == (said, said.learners[0], "")


@pytest.mark.parametrize(
    ("mix", "told"),
    [
        ("[{window: 1d, share: 0.6}, {window: 1h, share: 0.6}]", "1.2 together; expected 1 at most"),
        ("[{window: 1d, share: 0.6}]\npopularity_window: 1d", "expected no popularity_window beside it"),
        ("[{window: 1d, share: 1.6}]", "popularity_mix"),
        ("[{window: 1d, after: 3, share: 0.6}]", "expected window or after, one of the two"),
        ("[{share: 0.6}]", "expected window or after, one of the two"),
    ],
)
def test_a_mixture_that_is_none_is_refused(tmp_path, mix, told) -> None:
    with pytest.raises(ConfigError, match=told):
        settings_of(seasons(tmp_path), NEWCOMERS + f"popularity_mix: {mix}\n")


def test_a_baseline_with_a_window_of_its_own_has_no_mixture(tmp_path) -> None:
    popularity = "recsys_meta.baselines.popularity.Popularity"
    windows = f"[{{class_path: {popularity}, popularity_window: 6h}}, {popularity}]"
    of_all, rows = seasons(tmp_path), []
    for mix in ("", "popularity_mix: [{window: 6h, share: 0.9}]\n"):
        settings = settings_of(of_all, NEWCOMERS + mix, ("baselines", windows), ("learners", "[]"))
        evaluate.evaluate(settings, f"abcdefg{len(rows)}")
        table = tmp_path / "workspace" / "evaluations" / f"abcdefg{len(rows)}" / "tables.md"
        lines = table.read_text().splitlines()[:4]
        rows.append({line.split(" | ")[0]: line for line in lines if line.startswith("| Pop")})
    assert rows[0]["| Popularity(6h)"] == rows[1]["| Popularity(6h)"]
    assert rows[0]["| Popularity"] != rows[1]["| Popularity"]


def beginners(folder: Path) -> Path:
    """Every hour a few come, and buy six of eight staples first, then six of forty other things, of which ten are liked most."""
    draw, rows = torch.Generator().manual_seed(0), []
    liked = torch.cat([torch.full((10,), 8.0), torch.ones(30)])
    for hour in range(DAYS * 24):
        for reader in range(4):
            at = FIRST + timedelta(hours=hour, minutes=10 * reader)
            staples = torch.randperm(8, generator=draw)[:6].tolist()
            others = (8 + torch.multinomial(liked, 6, generator=draw)).tolist()
            rows += [
                (f"u{hour}-{reader}", f"i{item}", at + timedelta(minutes=minute))
                for minute, item in enumerate([*staples, *(others if reader else [])])
            ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row").write_parquet(
        folder / "clicks.parquet"
    )
    return folder


def test_newcomers_asked_for_what_comes_late_get_what_comes_late_to_others(tmp_path, caplog) -> None:
    text = NEWCOMERS.replace("shots: [0, 1]", "shots: [0, 6]")
    settings = settings_of(beginners(tmp_path), text, ("training.max_epochs", "1"))
    with caplog.at_level(logging.INFO):
        result = evaluate.evaluate(settings, "abcdefgh")
    assert "what users meet after 6 things differs from what they all meet" in caplog.text
    assert "after: 6, share: " in caplog.text
    found = at_pace(
        settings, settings.learners[0], read_inputs(settings, None), FIRST + timedelta(days=7), None, 6
    )
    assert 0.97 < sum(part.share for part in found.story.popularity_mix) <= 1
    assert result["shots"]["0"]["default"] > 2 * result["shots"]["0"]["best_baseline"]
    said = settings_of(tmp_path, text, ("training.split", "time"), ("training.max_epochs", "1"))
    plain = evaluate.evaluate(said, "abcdefgi")
    assert result["shots"]["6"]["default"] >= plain["shots"]["6"]["default"]


def test_who_is_held_out_by_time_and_asked_for_what_comes_late_gets_it_too(tmp_path, caplog) -> None:
    text = NEWCOMERS.replace(
        "{kind: temporal, moment: 2026-03-08, shots: [0, 1], min_query: 2, cutoff: 3}",
        "{kind: held_out_users, share: 0.2, min_history: 9, shots: [0, 6], cutoff: 3}",
    )
    settings = settings_of(beginners(tmp_path), text, ("training.max_epochs", "1"))
    with caplog.at_level(logging.INFO):
        result = evaluate.evaluate(settings, "abcdefgh")
    assert (
        "what users meet after 6 things differs from what they all meet; fitted with popularity_mix"
        in caplog.text
    )
    assert "window: " not in caplog.text
    assert result["shots"]["0"]["default"] > 2 * result["shots"]["0"]["best_baseline"]
    untimed = settings_of(tmp_path, text.replace(", timestamp: at", ""))
    inputs = read_inputs(untimed, None)
    assert at_pace(untimed, untimed.learners[0], inputs, None, None, 6) == (untimed, untimed.learners[0], "")


def test_of_ratings_popularity_is_not_mixed(tmp_path) -> None:
    clicks = pl.read_parquet(beginners(tmp_path) / "clicks.parquet")
    stars = clicks.with_columns(stars=1.0 + pl.int_range(pl.len()) % 5)
    stars.write_parquet(tmp_path / "clicks.parquet")
    settings = settings_of(tmp_path, NEWCOMERS.replace("timestamp: at", "timestamp: at, value: stars"))
    inputs, moment = read_inputs(settings, None), FIRST + timedelta(days=7)
    same = (settings, settings.learners[0], "")
    assert at_pace(settings, settings.learners[0], inputs, moment, None, 6) == same
    chosen = settings_of(
        tmp_path, NEWCOMERS.replace("timestamp: at", "timestamp: at, value: stars, positive_from: 1")
    )
    inputs = read_inputs(chosen, None)
    assert at_pace(chosen, chosen.learners[0], inputs, moment, None, 6).story.popularity_mix
