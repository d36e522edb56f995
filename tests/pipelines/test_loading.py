"""Loading: what overlays what, where paths start, and that every error is told at once with its place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.loading import as_yaml, described, load
from pipelines.outcomes import ConfigError
from pipelines.settings import EvaluateSettings, HeldOutProtocol, NightSettings, PowerSettings

NIGHT = """\
workspace: ../workspace
interactions:
  path: ../data/clicks.parquet
  timestamp: at
learner:
  class_path: recsys_meta.algorithms.maml.MAML
  init_args: {dim: 16, step_size: 1e-2}
"""


@pytest.fixture
def config(tmp_path):
    """Writes a config into tmp_path/configs and gives its path."""
    (tmp_path / "configs").mkdir()

    def write(text: str = NIGHT, name: str = "night.yaml") -> Path:
        file = tmp_path / "configs" / name
        file.write_text(text)
        return file

    return write


def problems(configs, overrides=(), environment=None, model=NightSettings) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(model, configs, overrides, environment)
    return caught.value.problems


def test_paths_are_relative_to_the_config_that_names_them(config, tmp_path):
    elsewhere = tmp_path / "overlays" / "mine.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("interactions: {path: mine.parquet}")
    settings = load(NightSettings, [config(), elsewhere]).settings
    assert settings.workspace == tmp_path / "workspace"
    assert settings.interactions.path == tmp_path / "overlays" / "mine.parquet"
    assert settings.interactions.timestamp == "at"


def test_a_path_of_the_command_line_is_relative_to_the_current_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load(NightSettings, [config()], [("interactions.path", "here.csv")]).settings
    assert settings.interactions.path == tmp_path / "here.csv"


def test_the_command_line_beats_the_environment_beats_later_files_beats_earlier(config):
    files = [
        config("top_k: 1\nseed: 1\npublish: {keep: 1, parquet: true}\ncold: {below: 1}\n" + NIGHT),
        config("seed: 2\npublish: {keep: 2}\ncold: {below: 2}", "overlay.yaml"),
    ]
    environment = {
        "RECSYS_META__publish__keep": "3",
        "RECSYS_META__COLD__BELOW": "3",
        "RECSYS_META_DATASETS": "x",
    }
    settings = load(NightSettings, files, [("cold.below", "4")], environment).settings
    assert (settings.top_k, settings.seed, settings.publish.keep, settings.cold.below) == (1, 2, 3, 4)
    assert settings.publish.parquet


def test_lists_and_nulls_replace(config):
    overrides = [("training.shots", "[1, 2]"), ("learner", "null"), ("score", "all"), ("users", "null")]
    files = [config(NIGHT + "users: {path: u.csv, id: u}\nscore: {path: ids.csv, id: u}")]
    assert problems(files, overrides)[0].startswith("command line: learner: expected")
    settings = load(NightSettings, files, [pair for pair in overrides if pair[0] != "learner"]).settings
    assert settings.training.shots == (1, 2)
    assert settings.users is None
    assert settings.score == "all"


def test_another_class_does_not_inherit_arguments(config):
    same = load(NightSettings, [config()], [("learner.init_args.dim", "8")]).settings.learner
    assert same.init_args == {"dim": 8, "step_size": 0.01}
    other = load(NightSettings, [config()], [("learner.class_path", "a.B")]).settings.learner
    assert other.init_args == {}


def test_a_class_path_alone_may_be_given_arguments_later(config):
    file = config("workspace: w\ninteractions: {path: a}\nlearner: a.B")
    learner = load(NightSettings, [file], [("learner.init_args.dim", "8")]).settings.learner
    assert (learner.class_path, learner.init_args) == ("a.B", {"dim": 8})


def test_every_error_is_told_at_once_with_its_place(config):
    file = config(
        "workspace: w\n"
        "interactions:\n"
        "  path: a.parquet\n"
        "  time_unit: h\n"
        "  valu: rating\n"
        "items: {path: i.csv, multi: genres}\n"
        "candidates: {seen_within: 2}\n"
        "topk: 5\n"
    )
    overlay = config("publish:\n\n  kep: 3\n", "overlay.yaml")
    found = problems([file, overlay], [("seed", "x")], {"RECSYS_META__top_k": "0"})
    assert set(found) == {
        f"{file}:4: interactions.time_unit: expected 's', 'ms', 'us', 'iso' or 'auto'; found 'h'",
        f"{file}:5: interactions.valu: unknown key; did you mean value?",
        f"{file}:6: items.id: is missing; expected column of the id",
        f"{file}:6: items.multi: expected a list; found 'genres'",
        f"{file}:7: candidates.seen_within: "
        "expected a number with its unit, such as 30m, 24h, 2d or 1d12h (w, d, h, m, s); found 2",
        f"{file}:8: topk: unknown key; did you mean top_k?",
        f"{overlay}:3: publish.kep: unknown key; did you mean keep?",
        "environment RECSYS_META__top_k: top_k: expected greater than 0; found 0",
        "command line: seed: expected a valid integer, unable to parse string as an integer; found 'x'",
    }


def test_an_error_in_a_union_names_the_member_meant(config):
    file = config(NIGHT + "score:\n  path: ids.duckdb\n  table: t\n  idd: u\n")
    assert set(problems([file])) == {
        f"{file}:8: score.id: is missing; expected column of the id",
        f"{file}:11: score.idd: unknown key; did you mean id?",
    }
    found = problems([config(NIGHT)], [("score", "warm")])
    assert found == ("command line: score: expected 'cold' or 'all'; found 'warm'",)


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        (
            "{kind: held_out}",
            "expected rating, ranking, listed, held_out_users, temporal or next_day; found 'held_out';"
            " did you mean held_out_users?",
        ),
        (
            "{kind: 7}",
            "expected rating, ranking, listed, held_out_users, temporal or next_day; found 7",
        ),
        (
            "{share: 0.1}",
            "is missing; expected rating, ranking, listed, held_out_users, temporal or next_day",
        ),
    ],
)
def test_a_protocol_of_no_known_kind_is_told_the_kinds(config, protocol, told):
    file = config(f"workspace: w\ninteractions: {{path: a}}\nprotocol: {protocol}\n")
    with pytest.raises(ConfigError) as caught:
        load(EvaluateSettings, [file])
    assert caught.value.problems == (f"{file}:3: protocol.kind: {told}",)


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        (
            "{kind: held_out_users, moment: 2026-01-01}",
            "protocol.moment: unknown key; it belongs to kind: temporal, of kind: held_out_users expected one of clip, cutoff,",
        ),
        (
            "{kind: temporal, min_history: 3}",
            "protocol.min_history: unknown key; it belongs to kind: held_out_users, of kind: temporal expected one of clip,",
        ),
        ("{kind: temporal, momnt: 2026-01-01}", "protocol.momnt: unknown key; did you mean moment?"),
        ("{kind: held_out_users, min_hist: 3}", "protocol.min_hist: unknown key; did you mean min_history?"),
    ],
)
def test_a_key_of_another_kind_is_told_the_kind_and_near_names_are_those_of_its_own(config, protocol, told):
    file = config(f"workspace: w\ninteractions: {{path: a, timestamp: t}}\nprotocol: {protocol}\n")
    (found,) = problems([file], model=EvaluateSettings)
    assert found.startswith(f"{file}:3: {told}")


def test_a_key_that_stands_in_the_wrong_place_is_told_the_right_one(config):
    file = config(NIGHT + "max_epochs: 3\npublish: {top_k: 3, max_score_drift: 1}\n")
    assert set(problems([file])) == {
        f"{file}:8: max_epochs: unknown key; did you mean training.max_epochs?",
        f"{file}:9: publish.top_k: unknown key; did you mean top_k?",
        f"{file}:9: publish.max_score_drift: unknown key; did you mean gates.max_score_drift?",
    }


def test_the_settings_of_a_protocol_are_checked(config):
    file = config(NIGHT.replace("learner:", "protocol: {kind: rating, episods: {path: e}}\nunused:"))
    found = problems([file], model=EvaluateSettings)
    assert f"{file}:5: protocol.episods: unknown key; did you mean episodes?" in found
    assert any(line.startswith(f"{file}:5: protocol.episodes: is missing") for line in found)


def test_a_shot_that_is_neither_number_nor_all_is_one_error(config):
    file = config(
        "workspace: w\ninteractions: {path: a}\nprotocol:\n  kind: held_out_users\n  shots: [1, most]"
    )
    found = problems([file], model=EvaluateSettings)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:5: protocol.shots.1: expected")
    assert "'all'" in found[0]


@pytest.mark.parametrize(
    ("shots", "told"),
    [
        ("[]", "expected 1 at least; found 0"),
        ("[1, 3, 1]", "1 stands twice, expected each number of shots once; found a list"),
    ],
)
def test_every_number_of_shots_is_judged_once(config, shots, told):
    file = config(NIGHT.replace("learner:", f"protocol: {{kind: held_out_users, shots: {shots}}}\nunused:"))
    assert f"{file}:5: protocol.shots: {told}" in problems([file], model=EvaluateSettings)


def test_a_list_of_another_length_and_a_path_that_is_none_are_told_in_plain_words(config):
    file = config("workspace: 7\ninteractions: {path: a, value: v, value_range: [1, 2, 3]}\n")
    assert set(problems([file])) == {
        f"{file}:1: workspace: expected a path; found 7",
        f"{file}:2: interactions.value_range: expected 2 at most; found 3",
    }


def test_a_list_with_a_wrong_part_is_one_error(config):
    file = config("workspace: w\ninteractions: {path: a, timestamp: t}\ndays: [0]\n")
    assert problems([file], model=PowerSettings) == (f"{file}:3: days.0: expected greater than 0; found 0",)


def test_nothing_given_names_what_is_missing():
    assert problems([]) == (
        "command line: workspace: is missing; expected folder for everything that is written; made where absent",
        "command line: interactions: is missing; expected the interactions to learn from",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", ":2: aliases are not read"),
        ("seed: 1\ntop_k: 2\nseed: 3", ":3: seed is set twice, first at "),
        ("seed: !!python/object/apply:os.system [ls]", "python/object/apply:os.system is not read"),
        ("seed: !secret x", ":1: the tag !secret is not read"),
        ("[" * 5000, "nested too deeply"),
        ("- 1", ":1: expected settings as key: value; found a list"),
        ("seed: [1,", ":1: "),
        ("a: b: c", ":1: mapping values are not allowed here"),
        ("? [1]\n: 2", ":1: found a sequence as a key"),
        ("seed: 1\n---\nseed: 2", "expected a single document"),
        ("seed: a\0b", "#x0000"),
        ("workspace: *.csv", "expected a text that begins so to stand in quotes"),
        ("workspace: @x", "expected a text that begins so to stand in quotes"),
        ("seed: 1\n\ttop_k: 2", "expected spaces before a key, no tab"),
        ('workspace: "C:\\data"', "expected single quotes around a text with backslashes"),
    ],
)
def test_yaml_that_is_more_than_plain_settings_is_refused(config, text, message):
    file = config(text)
    found = problems([file])
    assert len(found) == 1
    assert found[0].startswith(str(file))
    assert message in found[0]


def test_text_that_is_not_utf8_is_refused(config):
    file = config()
    file.write_bytes(b"workspace: \xff\xfe")
    assert "expected a YAML file in UTF-8" in problems([file])[0]


def test_a_missing_file_is_told_with_what_lies_beside_it(config):
    file = config()
    missing = file.with_name("nigth.yaml")
    assert problems([missing]) == (f"{missing}: there is no such file; did you mean {file}?",)


def test_an_empty_file_says_nothing(config):
    assert load(NightSettings, [config(), config("# nothing yet\n", "empty.yaml")]).settings.seed == 7


def test_scalars_are_what_they_look_like(config):
    arguments = (
        "{a: no, b: 007, c: 1e-3, d: 1_000, e: 2026-01-31, f: true, g: ~, h: 0x10, i: .inf, j: '5', k: }"
    )
    file = config(NIGHT.replace("{dim: 16, step_size: 1e-2}", arguments))
    assert load(NightSettings, [file]).settings.learner.init_args == {
        "a": "no",
        "b": "007",
        "c": 0.001,
        "d": "1_000",
        "e": "2026-01-31",
        "f": True,
        "g": None,
        "h": 16,
        "i": float("inf"),
        "j": "5",
        "k": None,
    }


@pytest.mark.parametrize("comments", [False, True])
def test_a_printed_config_loads_as_the_same_settings(config, comments):
    loaded = load(
        NightSettings, [config(NIGHT + "candidates: {seen_within: 36h}\nscore: {path: ids, id: u}")]
    )
    text = as_yaml(loaded.settings, comments=comments)
    assert ("# items published per user, as many as there are at most\ntop_k: 20\n" in text) == comments
    again = load(NightSettings, [config(text, "again.yaml")])
    assert again.settings == loaded.settings
    assert again.fingerprint == loaded.fingerprint


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
    | st.just("a\n b\n\n\tc")
)
def test_any_text_survives_printing(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    settings = NightSettings(workspace=folder, interactions={"path": "a", "where": text, "separator": text})
    file = folder / "printed.yaml"
    file.write_text(as_yaml(settings), newline="")
    assert load(NightSettings, [file]).settings == settings


def test_the_fingerprint_is_of_what_is_done_not_of_when_and_where(config):
    def of(*overrides):
        return load(NightSettings, [config()], overrides).fingerprint

    assert of() == of(("run_date", "2026-01-31"), ("workspace", "elsewhere")) == of(("top_k", "20"))
    assert of() == of(("interactions.path", "b"))
    assert (
        len(
            {
                of(),
                of(("top_k", "21")),
                of(("interactions.where", "a > 1")),
                of(("learner.init_args.dim", "1")),
            }
        )
        == 4
    )


def test_help_lists_every_setting_once():
    keys = [key for key, _ in described(EvaluateSettings)]
    assert len(keys) == len(set(keys))
    assert {"interactions.path", "training.moments.every", "protocol.episodes.path", "protocol.share"} <= set(
        keys
    )
    assert dict(described(NightSettings))["training.moments.every"].endswith("[1h]")


def test_another_protocol_on_the_command_line_replaces_that_of_the_config(config):
    file = config(
        "workspace: w\ninteractions: {path: a, timestamp: at}\nlearners: [recsys_meta.baselines.popularity.Popularity]\n"
        "protocol: {kind: temporal, moment: 2026-01-01, shots: [0, 1], min_query: 3}\n"
    )
    given = [("protocol", "{kind: held_out_users, shots: [0, 2]}")]
    protocol = load(EvaluateSettings, [file], given).settings.protocol
    assert protocol == HeldOutProtocol(kind="held_out_users", shots=(0, 2))
    same = load(EvaluateSettings, [file], [("protocol", "{shots: [0, 2]}")]).settings.protocol
    assert (same.kind, same.shots, same.min_query) == ("temporal", (0, 2), 3)
