"""Settings: durations, paths, and what does not go together."""

from dataclasses import fields
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.settings import (
    CandidateSettings,
    EvaluateSettings,
    Located,
    NightSettings,
    SourceSettings,
    duration_text,
)

NIGHT = {"workspace": "w", "interactions": {"path": "clicks.parquet"}}


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("30m", timedelta(minutes=30)),
        ("24h", timedelta(days=1)),
        ("1d12h", timedelta(hours=36)),
        ("2 w", timedelta(weeks=2)),
        ("1.5s", timedelta(seconds=1.5)),
    ],
)
def test_a_duration_is_numbers_with_units(text, duration):
    assert CandidateSettings(seen_within=text).seen_within == duration


@pytest.mark.parametrize("text", ["2", 2, "2 days", "d", "", "-1d", "0h", [1]])
def test_a_duration_without_a_unit_is_no_duration(text):
    with pytest.raises(ValidationError, match=r"number with its unit|longer than nothing"):
        CandidateSettings(seen_within=text)


@given(st.integers(min_value=1, max_value=10**8))
def test_a_duration_is_written_as_it_is_read(seconds):
    duration = timedelta(seconds=seconds)
    assert CandidateSettings(seen_within=duration_text(duration)).seen_within == duration


def test_a_path_is_relative_to_the_folder_of_its_config(tmp_path):
    source = SourceSettings(path=Located("../data/a.csv", tmp_path / "configs"))
    assert source.path == tmp_path / "data" / "a.csv"


def test_a_path_of_its_own_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert SourceSettings(path="a.csv").path == tmp_path / "a.csv"


def test_a_link_in_a_path_stays_a_link(tmp_path):
    (tmp_path / "newest").symlink_to(tmp_path / "run-1")
    assert SourceSettings(path=tmp_path / "newest").path == tmp_path / "newest"


def test_shared_data_sets_may_live_elsewhere(tmp_path, monkeypatch):
    written = Located("../../shared/datasets/ml-1m/ratings.parquet", tmp_path / "project" / "configs")
    assert SourceSettings(path=written).path == tmp_path / "shared" / "datasets" / "ml-1m" / "ratings.parquet"
    monkeypatch.setenv("RECSYS_META_DATASETS", str(tmp_path / "elsewhere"))
    assert SourceSettings(path=written).path == tmp_path / "elsewhere" / "ml-1m" / "ratings.parquet"
    other = tmp_path / "mine" / "ratings.parquet"
    assert SourceSettings(path=other).path == other


def test_a_source_has_the_settings_of_ingest():
    from recsys_meta.ingest import Source

    assert set(SourceSettings.model_fields) == {field.name for field in fields(Source)}
    settings = SourceSettings(path="a.csv")
    source = Source(**settings.model_dump())
    assert source == Source(Path(settings.path))


@pytest.mark.parametrize(
    ("timestamp", "split", "expected"),
    [
        (None, "auto", "random"),
        ("at", "auto", "time"),
        ("at", "random", "random"),
        ("at", "moment", "moment"),
    ],
)
def test_where_time_is_known_training_asks_for_what_comes_later(timestamp, split, expected):
    changes = {"interactions": {"path": "a", "timestamp": timestamp}, "training": {"split": split}}
    assert NightSettings(**{**NIGHT, **changes}).split == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interactions": {"path": "a", "table": "t", "query": "q"}}, "table and query"),
        ({"interactions": {"path": "a", "column_names": ["a"]}}, "header: false"),
        ({"interactions": {"path": "a", "value": "v", "value_range": [5, 1]}}, "upside down"),
        ({"interactions": {"path": "a", "user_id": "u", "item_id": "u"}}, "'u' is named twice"),
        ({"interactions": {"path": "a", "value": "t", "timestamp": "t"}}, "'t' is named twice"),
        ({"interactions": {"path": "a", "positive_from": 4}}, "expected value"),
        ({"users": {"path": "a", "id": "u", "numbers": ["x"], "categorical": ["x"]}}, "x declared twice"),
        ({"item_windows": ["1h"]}, "item_windows need to know the time"),
        ({"candidates": {"seen_within": "2d"}}, "candidates.seen_within need to know the time"),
        ({"training": {"split": "moment"}}, "training.split need to know the time"),
        ({"training": {"outer_lr": float("nan")}}, "finite number"),
        ({"training": {"validation_share": 1.0}}, "less than 1"),
        ({"top_k": 10, "slate": {"pool": 9}}, r"slate\.pool is 9 and top_k 10"),
        ({"slate": {"temperature": -0.1}}, "greater than or equal to 0"),
        ({"slate": {"exploration": 1.1}}, "less than or equal to 1"),
        ({"slate": {"policy": "softmax"}}, "plackett_luce"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        NightSettings(**{**NIGHT, **changes})


ONE = "recsys_meta.baselines.popularity.Popularity"
ANOTHER = {"class_path": ONE, "popularity_window": "1h"}


@pytest.mark.parametrize(
    ("learners", "baselines"),
    [([ONE], [ANOTHER, ONE]), ([ONE, {"class_path": ONE}], []), ([], [ANOTHER, ANOTHER])],
)
def test_nobody_is_judged_twice_as_learner_and_as_baseline(learners, baselines):
    given = {"workspace": "w", "interactions": {"path": "a", "timestamp": "t"}}
    given |= {"protocol": {"kind": "held_out_users"}, "learners": learners}
    with pytest.raises(ValidationError, match="Popularity stands twice with the same settings"):
        EvaluateSettings(**given, baselines=baselines)
    assert EvaluateSettings(**given | {"learners": [ONE]}, baselines=[ANOTHER])


def test_ten_lines_suffice():
    night = NightSettings(**NIGHT)
    assert night.run_date is None
    assert (night.score, night.cold.below, night.top_k, night.publish.keep) == ("cold", 11, 20, 7)
    assert night.learner.class_path == "recsys_meta.algorithms.laddered.Laddered"


def test_every_setting_says_what_it_does():
    def undescribed(model, seen):
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{model.__name__}.{name}"
            for part in getattr(field.annotation, "__args__", (field.annotation,)):
                if hasattr(part, "model_fields") and part not in seen:
                    seen.add(part)
                    yield from undescribed(part, seen)

    assert list(undescribed(NightSettings, set())) == []
    assert list(undescribed(EvaluateSettings, set())) == []


def test_dates_and_who_is_scored():
    night = NightSettings(**NIGHT, run_date="2026-01-31", score={"path": "ids.csv", "id": "user"})
    assert night.run_date == date(2026, 1, 31)
    assert night.score.id == "user"


@pytest.mark.parametrize("kind", ["rating", "ranking", "held_out_users"])
def test_each_protocol_has_its_own_settings(kind):
    protocol = (
        {"kind": kind} if kind == "held_out_users" else {"kind": kind, "episodes": {"path": "e.parquet"}}
    )
    evaluation = EvaluateSettings(
        **NIGHT, protocol=protocol, baselines=["recsys_meta.baselines.popularity.Popularity"]
    )
    assert evaluation.protocol.kind == kind
    assert evaluation.baselines[0].init_args == {}
