"""The command line: what it prints where, and the code it ends with."""

import errno
import json
import logging
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from types import ModuleType
from typing import NamedTuple

import polars as pl
import pytest

from pipelines.outcomes import NothingToDo
from recsys_meta import __version__
from recsys_meta.cli import VERBS, main

CONFIG = "workspace: workspace\ninteractions: {path: clicks.parquet}\n"


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "night.yaml"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture
def story(monkeypatch):
    """Puts a story in the place of the real one; gives the list of what it was called with."""

    def told(verb: str, ending: object) -> list:
        calls = []

        def run(settings, fingerprint):
            calls.append((settings, fingerprint))
            if isinstance(ending, Exception):
                raise ending
            return ending

        module = ModuleType(VERBS[verb].module)
        setattr(module, VERBS[verb].function, run)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return calls

    return told


def last_line(captured) -> dict:
    return json.loads(captured.out.splitlines()[-1])


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].settings == "NightSettings"])
def test_each_verb_calls_its_story_with_the_settings(verb, config, story, capsys):
    calls = story(verb, {"run_id": "r", "seconds": {"read": 1.5}})
    assert main([verb, "--config", config, "--top_k", "5", "--training.max_epochs=3"]) == 0
    ((settings, fingerprint),) = calls
    assert (settings.top_k, settings.training.max_epochs) == (5, 3)
    assert int(fingerprint, 16) >= 0
    assert last_line(capsys.readouterr()) == {"run_id": "r", "seconds": {"read": 1.5}}


def test_evaluate_has_settings_of_its_own(config, story, capsys):
    calls = story("evaluate", {"learners": 1})
    assert (
        main(["evaluate", "--config", config, "--protocol.kind", "held_out_users", "--protocol.draws", "2"])
        == 0
    )
    assert calls[0][0].protocol.draws == 2


def test_the_environment_is_read(config, story, monkeypatch):
    calls = story("nightly", {})
    monkeypatch.setenv("RECSYS_META__TOP_K", "6")
    assert main(["nightly", "--config", config]) == 0
    assert calls[0][0].top_k == 6


def test_the_last_line_on_stdout_is_json_whatever_the_summary_holds(config, story, capsys):
    class Summary(NamedTuple):
        run_date: date
        at: datetime
        metrics: dict

    at = datetime(2026, 1, 31, tzinfo=UTC)
    story("nightly", Summary(at.date(), at, {"ndcg": float("nan"), "curve": (1.0, float("inf"))}))
    assert main(["nightly", "--config", config]) == 0
    summary = last_line(capsys.readouterr())
    assert summary["metrics"] == {"ndcg": None, "curve": [1.0, None]}
    assert summary["run_date"] == "2026-01-31"


def test_logs_go_to_stderr(config, monkeypatch, capsys):
    module = ModuleType("pipelines.nightly")

    def nightly(settings, fingerprint):
        logging.getLogger("pipelines.nightly").info("reading")
        logging.getLogger("recsys_meta.ingest").warning("naive times are read as UTC")
        logging.getLogger("somebody.else").info("chatter")
        return {}

    module.nightly = nightly
    monkeypatch.setitem(sys.modules, "pipelines.nightly", module)
    before = list(logging.getLogger().handlers)
    assert main(["nightly", "--config", config]) == 0
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    assert "Z INFO pipelines.nightly: reading\n" in captured.err
    assert "chatter" not in captured.err
    assert main(["nightly", "--config", config, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "reading" not in captured.err
    assert "Z WARNING recsys_meta.ingest: naive times" in captured.err
    assert logging.getLogger().handlers == before


def the_endings():
    import duckdb

    from recsys_meta.ingest import InputError
    from recsys_meta.store import AlreadyRunning, Damaged, PublishRefused

    return [
        (InputError("clicks.csv, row 3: found x"), 3, "data error"),
        (Damaged("manifest.json: changed"), 3, "data error"),
        (PublishRefused("r", {"rows": 1}), 4, "refused"),
        (AlreadyRunning("pid 1 holds the lock"), 75, "already running"),
        (NothingToDo("no interactions"), 99, "nothing to do"),
        (OSError(errno.ENOSPC, "No space left on device", "scores.duckdb"), 74, "machine error"),
        (duckdb.IOException("Could not write file: File too large"), 74, "machine error"),
        (MemoryError("no more"), 74, "machine error"),
        (RuntimeError("surprise"), 1, "failed"),
    ]


@pytest.mark.parametrize(("ending", "code", "status"), the_endings())
def test_each_ending_has_its_code_and_is_said(ending, code, status, config, story, capsys):
    story("nightly", ending)
    assert main(["nightly", "--config", config]) == code
    captured = capsys.readouterr()
    assert last_line(captured) == {"status": status, "exit_code": code, "reason": str(ending)}
    assert str(ending) in captured.err
    assert ("Traceback" in captured.err) == (code == 1)


def test_an_interrupt_is_no_failure(config, monkeypatch, capsys):
    module = ModuleType("pipelines.nightly")

    def nightly(settings, fingerprint):
        raise KeyboardInterrupt

    module.nightly = nightly
    monkeypatch.setitem(sys.modules, "pipelines.nightly", module)
    assert main(["nightly", "--config", config]) == 130
    assert last_line(capsys.readouterr())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["nightly"], ["workspace: is missing", "interactions: is missing"]),
        (
            ["nightly", "--config", "CONFIG", "--topk", "5"],
            ["command line: topk: unknown key; did you mean top_k?"],
        ),
        (["nightly", "--config", "CONFIG", "--top_k"], ["--top_k needs a value"]),
        (["nightly", "--config", "CONFIG", "--top_k", "--seed", "1"], ["--top_k needs a value"]),
        (["nightly", "--config", "CONFIG", "now"], ["'now' is not understood"]),
        (
            ["nightly", "--config", "CONFIG", "--learner.init_args.losss", "5"],
            ["init_args.losss", "did you mean loss?"],
        ),
        (["nightly", "--config", "nowhere.yaml"], ["nowhere.yaml: there is no such file"]),
        (["nightly", "--config"], ["argument --config: expected one argument"]),
        (["nigthly"], ["invalid choice: 'nigthly'"]),
        ([], ["the following arguments are required: VERB"]),
        (["runs"], ["either --workspace or --config"]),
        (["runs", "--workspace", "nowhere"], ["there is no workspace nowhere"]),
    ],
)
def test_what_cannot_be_run_ends_with_code_2_and_the_reason(arguments, messages, config, story, capsys):
    calls = story("nightly", {})
    assert main([config if word == "CONFIG" else word for word in arguments]) == 2
    assert calls == []
    captured = capsys.readouterr()
    for message in messages:
        assert message in captured.err
        assert message in last_line(captured)["reason"]


def test_negative_values_and_values_with_blanks_are_values(config, story):
    calls = story("nightly", {})
    overrides = ["--interactions.value", "rating", "--interactions.positive_from", "-1"]
    overrides += ["--interactions.where", "split = 'warm'", "--training.shots", "[0, 3]"]
    assert main(["nightly", "--config", config, *overrides]) == 0
    settings = calls[0][0]
    assert settings.interactions.positive_from == -1.0
    assert settings.interactions.where == "split = 'warm'"
    assert settings.training.shots == (0, 3)


@pytest.mark.parametrize("comments", [[], ["comments"]])
def test_print_config_prints_all_settings_and_runs_nothing(comments, config, story, capsys, tmp_path):
    calls = story("nightly", {})
    assert main(["nightly", "--config", config, "--top_k", "5", "--print_config", *comments]) == 0
    printed = capsys.readouterr().out
    assert calls == []
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert main(["nightly", "--config", str(again)]) == 0
    assert calls[0][0].top_k == 5
    assert calls[0][0].workspace == tmp_path / "workspace"
    assert ("# items published per user" in printed) == bool(comments)


def test_a_reader_of_the_output_that_has_seen_enough_leaves_no_traceback(config):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "recsys_meta.cli", "nightly", "--config", config, "--print_config"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert ended.returncode == 74
    assert "Traceback" not in ended.stderr
    assert "Broken pipe" in ended.stderr


def test_runs_of_an_empty_workspace_are_none(tmp_path, config, capsys):
    (tmp_path / "workspace").mkdir()
    assert main(["runs", "--config", config]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("run_id")
    assert last_line(captured) == {"workspace": str(tmp_path / "workspace"), "runs": 0, "latest": None}
    assert main(["runs", "--workspace", str(tmp_path / "workspace"), "--json"]) == 0
    assert last_line(capsys.readouterr())["runs"] == []


def test_runs_are_listed_newest_first_as_the_store_gives_them(tmp_path, monkeypatch, capsys):
    from recsys_meta import store

    listed = store.runs(store.Workspace(tmp_path))
    row = {
        "run_id": "2026-01-31-maml-1",
        "run_date": date(2026, 1, 31),
        "status": "published",
        "model_version": "m",
        "finished_at": datetime(2026, 2, 1, 3, 4, 5, tzinfo=UTC),
        "users": 1000,
        "rows": 20000,
        "is_latest": True,
        "rolled_back": False,
    }
    monkeypatch.setattr(store, "runs", lambda workspace: pl.DataFrame([row], schema=listed.schema))
    assert main(["runs", "--workspace", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    line = captured.out.splitlines()[1]
    assert all(
        cell in line
        for cell in ("2026-01-31-maml-1", "published", "1,000", "20,000", "2026-02-01 03:04:05Z", "yes")
    )
    assert last_line(captured) == {"workspace": str(tmp_path), "runs": 1, "latest": "2026-01-31-maml-1"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nightly", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    heavy = ("torch", "polars", "lightning", "duckdb", "numpy", "sklearn")
    program = (
        "import sys\n"
        "from recsys_meta.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr == "[]\n"
    if arguments == ["--version"]:
        assert ended.stdout == f"recsys-meta {__version__}\n"
    elif arguments == ["--help"]:
        assert all(verb in ended.stdout for verb in VERBS)
        assert "99 nothing to do" in ended.stdout
    else:
        assert "--training.max_epochs" in ended.stdout
