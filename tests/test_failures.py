"""What can go wrong with a night, provoked through the command line; and that docs/failures.md names a test for each of it."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars as pl
import pytest
import torch
from file_changes import ENVIRONMENT

from recsys_meta.adaptation.recommend import recommend
from recsys_meta.algorithms.maml import MAML
from recsys_meta.cli import main
from recsys_meta.store import Workspace

START = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """
workspace: workspace
run_date: 2026-02-01
interactions: {path: clicks.csv, value: rating, timestamp: at, value_range: [1, 5]}
items: {path: items.parquet, id: item_id, categorical: [kind]}
cold: {below: 6}
top_k: 3
learner: recsys_meta.baselines.popularity.Popularity
max_quarantined_share: 0.05
"""
META = (
    "--learner",
    "{class_path: recsys_meta.algorithms.maml.MAML, init_args: {dim: 4, num_steps: 1}}",
    "--training",
    "{max_epochs: 1, batch_size: 16}",
)
NEWEST = 2


class Ended(NamedTuple):
    """How a night ended: its code, its last line, and what it said on the way."""

    code: int
    last: dict[str, Any]
    err: str


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return made(tmp_path)


def made(folder: Path) -> Path:
    """Forty users, of whom ten are cold, thirty-six items of three kinds, and a config."""
    clicks().write_csv(folder / "clicks.csv")
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(36)]})
    items.with_columns(kind=pl.Series([f"k{item % 3}" for item in range(36)])).write_parquet(
        folder / "items.parquet"
    )
    (folder / "night.yaml").write_text(CONFIG)
    return folder


def clicks() -> pl.DataFrame:
    """Each user's items, ratings and times as a text file holds them."""
    rows = [
        (
            f"u{user}",
            f"i{(user * 3 + step * 4) % 35}",
            1 + (user * step) % 5,
            f"{START + timedelta(hours=user + step):%FT%TZ}",
        )
        for user in range(40)
        for step in range(3 if user < 10 else 12)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "at"], orient="row")


@pytest.fixture
def night(world: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a night; nothing that a user can cause may end it with a traceback, and its last line is JSON."""

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        code = main(["nightly", "--config", str(world / "night.yaml"), *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(code, json.loads(captured.out.splitlines()[-1]), captured.err)

    return run


def shown(world: Path, table: str = "scores") -> pl.DataFrame:
    with duckdb.connect(str(world / "workspace" / "scores.duckdb"), read_only=True) as connection:
        return connection.sql(f"FROM {table} ORDER BY ALL").pl()


@pytest.fixture
def good(world: Path, night: Callable[..., Ended]) -> pl.DataFrame:
    """The scores of a night before, which must stay."""
    assert night("--run_date", "2026-01-31").code == 0
    return shown(world)


# ---- the model


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night of a meta-learner that meets a stranger, an item and a kind that training never saw, and a long history."""
    world = made(tmp_path_factory.mktemp("met"))
    new = pl.DataFrame({"item_id": ["never-met"], "kind": ["never-heard-of"]})
    pl.concat([pl.read_parquet(world / "items.parquet"), new]).write_parquet(world / "items.parquet")
    more = clicks().head(1).with_columns(user_id=pl.lit("u0"), item_id=pl.lit("never-met"))
    pl.concat([clicks(), more]).write_csv(world / "clicks.csv")
    asked = pl.DataFrame({"user_id": ["stranger", *(f"u{user}" for user in range(10))]})
    asked.write_parquet(world / "asked.parquet")
    score = (
        "--score",
        f"{{path: {world}/asked.parquet, id: user_id}}",
        "--exclude_consumed",
        "false",
        "--top_k",
        "40",
    )
    newest = ("--adaptation.newest", str(NEWEST))
    assert main(["nightly", "--config", str(world / "night.yaml"), *META, *score, *newest, "--quiet"]) == 0
    return world


def test_a_user_without_history_gets_the_prior_and_the_reason(met: Path) -> None:
    row = shown(met, "user_status").filter(user_id="stranger").row(0, named=True)
    assert (row["source"], row["n_support"], row["reason"]) == ("prior", 0, "no history")
    assert shown(met).filter(user_id="stranger").height == 37


def test_an_item_of_a_kind_that_nobody_trained_on_is_adapted_on_and_scored(met: Path) -> None:
    assert shown(met, "user_status").filter(user_id="u0")["source"].item() == "adapted"
    scores = shown(met).filter(item_id="never-met")["score"]
    assert len(scores) == 11
    assert scores.is_finite().all()


def test_of_a_long_history_the_newest_are_taken_and_that_is_noted(met: Path) -> None:
    status = shown(met, "user_status").filter(pl.col("user_id") != "stranger")
    assert set(status["n_support"]) == {NEWEST}
    assert all("newest" in reason for reason in status["reason"])


def test_weights_that_are_not_finite_are_never_published(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(learner: MAML, *arguments: Any, **settings: Any) -> Any:
        for weight in learner.parameters():
            weight.data.fill_(torch.nan)
        return recommend(learner, *arguments, **settings)

    monkeypatch.setattr(
        "pipelines.nightly.recommend", planted
    )  # after training and judging, which would notice
    ended = night(*META)
    assert ended.code == 4
    assert "10 of 10 users fell back since their adaptation was not finite, at most 1.0% may" in ended.err
    assert shown(world).equals(good)
    assert night(*META, "--gates.max_fallen_share", "1", "--gates.max_score_drift", "null").code == 0
    assert set(shown(world)["source"]) == {"popularity"}
    assert shown(world)["score"].is_finite().all()
    assert shown(world, "user_status")["reason"].null_count() == 0


# ---- the data


def test_bad_rows_are_set_aside_with_file_row_column_and_reason_and_the_night_goes_on(
    world: Path, night: Callable[..., Ended]
) -> None:
    lines = (world / "clicks.csv").read_text().splitlines()
    lines[5:5] = ["u0,i34,NaN,2026-01-03T00:00:00Z", "u0,i33,9,2026-01-03T00:00:00Z"]
    lines += [
        "u1,i34,3,2031-01-01T00:00:00Z",
        "u1,,3,2026-01-03T00:00:00Z",
        lines[1],
        "u2,i34,1,2026-01-03 00:00:00",
    ]
    lines += ["u2,i34,5,2026-01-04 00:00:00"]
    (world / "clicks.csv").write_text("\n".join(lines) + "\n")
    ended = night("--top_k", "36")
    assert ended.code == 0
    assert ended.last["quarantined"] == 4
    found = shown(world, "quarantine").sort("row")
    assert found["row"].to_list() == [5, 6, len(lines) - 5, len(lines) - 4]
    assert found["column"].to_list() == ["rating", "rating", "at", "item_id"]
    assert found["reason"].to_list() == [
        "is NaN",
        "is outside 1 to 5",
        "is later than the moment of the run",
        "is missing",
    ]
    assert set(found["source"]) == {str(world / "clicks.csv")}
    counts = json.loads(shown(world, "runs")["counts"].item())
    assert counts["interactions_exact_duplicates"] == 1
    assert counts["interactions_merged_duplicates"] == 1
    assert "2 times have no zone and are read as UTC" in ended.err


def broken(change: Callable[[Path], object], *words: str, code: int = 3) -> tuple[Any, ...]:
    return change, words, code


def replaced(old: str, new: str, count: int = 1) -> Callable[[Path], object]:
    return lambda world: (world / "clicks.csv").write_text(
        (world / "clicks.csv").read_text().replace(old, new, count)
    )


def as_parts(world: Path) -> None:
    """Two part files, in one of which the ids of items are numbers."""
    (world / "clicks.csv").unlink()
    (world / "clicks.csv").mkdir()
    clicks().write_parquet(world / "clicks.csv" / "a.parquet")
    clicks().with_columns(item_id=pl.lit(7)).write_parquet(world / "clicks.csv" / "b.parquet")


def as_parquet(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def build(world: Path) -> None:
        (world / "clicks.csv").unlink()
        (world / "clicks.csv").mkdir()
        file = world / "clicks.csv" / "a.parquet"
        clicks().write_parquet(file)
        file.write_bytes(change(file.read_bytes()))

    return build


def cut(world: Path) -> None:
    text = (world / "clicks.csv").read_text()
    (world / "clicks.csv").write_text(text[: text.rindex(",")])


BROKEN = {
    "a misspelt column": broken(
        replaced("rating", "ratign"), "clicks.csv", "'rating'", "did you mean 'ratign'?"
    ),
    "a column that is gone": broken(replaced("user_id,", ""), "clicks.csv"),
    "a row with a cell too many": broken(
        replaced("i0,1", "i0,1,extra"), "clicks.csv, row 1: 5 columns where 4 were expected"
    ),
    "a quote that is never closed": broken(
        replaced("u5,", '"u5,'), "clicks.csv, row 16: a quote is opened and never closed"
    ),
    "a file cut short": broken(cut, "clicks.csv, row 390: cut short"),
    "text that is not UTF-8": broken(
        lambda world: (world / "clicks.csv").write_bytes(b"user_id,item_id,rating,at\n\xff,i1,2,3\n"),
        "row 1: not UTF-8 text",
    ),
    "values that are words": broken(
        replaced(",1,2026", ",one,2026", -1), "is not a number", "max_quarantined_share allows"
    ),
    "ids that change their type between files": broken(
        as_parts, "'item_id' changes its type", "a.parquet", "b.parquet"
    ),
    "a Parquet file cut short": broken(
        as_parquet(lambda raw: raw[:-20]), "a.parquet: not a readable Parquet file"
    ),
    "a Parquet file with a broken page": broken(
        as_parquet(lambda raw: raw[:40] + b"\xff" * 400 + raw[440:]), "a.parquet"
    ),
    "no file at all": broken(lambda world: (world / "clicks.csv").unlink(), "clicks.csv", "was not found"),
    "a night without a row": broken(replaced("\n", "\n", 0), "no interactions", code=99),
}


@pytest.mark.parametrize("name", BROKEN)
def test_data_that_cannot_be_used_end_the_night_and_the_last_good_scores_stay(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame, name: str
) -> None:
    change, words, code = BROKEN[name]
    change(world)
    if code == 99:
        (world / "clicks.csv").write_text("user_id,item_id,rating,at\n")
    ended = night()
    assert (ended.code, ended.last["exit_code"]) == (code, code), ended.err
    assert all(word in ended.err for word in words), ended.err
    assert shown(world).equals(good)


def test_a_column_that_nobody_names_is_not_read(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame
) -> None:
    clicks().with_columns(extra=pl.lit("x")).write_csv(world / "clicks.csv")
    assert night("--run_date", "2026-01-31").code == 0
    assert shown(world).drop("generated_at").equals(good.drop("generated_at"))


def test_a_night_that_lost_many_rows_is_refused_unless_that_is_allowed(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame
) -> None:
    clicks().filter(~pl.col("user_id").is_in([f"u{user}" for user in range(4)])).write_csv(
        world / "clicks.csv"
    )
    ended = night()
    assert ended.code == 4
    assert (
        "18 rows are -40.0% against the last night, 30; max_row_drop 30% (see publish.max_row_drop)"
        in ended.err
    )
    assert shown(world).equals(good)
    assert night("--publish.max_row_drop", "0.5").code == 0
    assert shown(world).height == 18


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_features_that_lost_its_rows_is_refused_before_training_unless_that_is_allowed(
    world: Path, night: Callable[..., Ended], kind: str
) -> None:
    file = world / f"things.{kind}"
    things = pl.DataFrame({"item_id": range(36), "kind": [f"k{item % 3}" for item in range(36)]})
    clicks().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int32)).write_parquet(
        world / "clicks.parquet"
    )

    def tonight(rows: int, *arguments: str) -> Ended:
        write = pl.DataFrame.write_csv if kind == "csv" else pl.DataFrame.write_parquet
        write(things.head(rows), file)
        return night(
            "--items.path", str(file), "--interactions.path", str(world / "clicks.parquet"), *arguments
        )

    assert tonight(36, "--run_date", "2026-01-31").code == 0
    good, models = shown(world), set((world / "workspace" / "models").iterdir())
    for rows, change in ((0, "-100.0%"), (20, "-44.4%")):
        ended = tonight(rows)
        assert ended.code == 4
        told = f"items of {file}: {rows} rows are {change} against the last night, 36; max_feature_drop 30%"
        assert f"{told} (see gates.max_feature_drop)" in ended.err
        assert shown(world).equals(good)
        assert set((world / "workspace" / "models").iterdir()) == models
    ended = tonight(0, "--gates.max_feature_drop", "null")
    assert ended.code == 0
    assert f"{file}: no rows, so nothing is known of any of the items" in ended.err


def test_after_a_rollback_a_night_is_held_against_what_is_in_force(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame
) -> None:
    some = clicks().filter(~pl.col("user_id").is_in([f"u{user}" for user in range(5)]))
    some.write_csv(world / "clicks.csv")
    assert night("--publish.max_row_drop", "1").code == 0
    assert main(["rollback", "--workspace", str(world / "workspace")]) == 0
    ended = night("--run_date", "2026-02-02")
    assert ended.code == 4
    assert "15 rows are -50.0% against the last night, 30" in ended.err


def test_a_panic_of_polars_ends_the_night_with_its_last_line(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def panicking(*_: object, **__: object) -> None:
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr("pipelines.nightly.decide_users", panicking)  # where no reader of files is at work
    assert main(["nightly", "--config", str(world / "night.yaml")]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["status"], last["reason"]) == ("failed", "index out of bounds")
    monkeypatch.undo()
    monkeypatch.setattr(pl, "read_csv", panicking)  # where one is
    assert main(["nightly", "--config", str(world / "night.yaml")]) == 3
    captured = capsys.readouterr()
    assert "clicks.csv: cannot be read as text" in captured.err
    assert "Traceback" not in captured.err


# ---- operations

FULL = """
import resource, sys
from recsys_meta.cli import main
import pipelines.nightly, recsys_meta.training.fitting
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in map(int, sys.argv[1].split(",")):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    code = main(["nightly", *sys.argv[2:]])
    print(limit, code, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
print(0, main(["nightly", *sys.argv[2:]]), flush=True)
"""


def test_a_full_disk_ends_the_night_in_a_line_wherever_it_strikes_and_the_same_command_goes_on(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame
) -> None:
    """Files cannot grow beyond so many bytes: records and parts, then weights, checkpoints, and last the published file."""
    arguments = ["--config", str(world / "night.yaml"), "--gates.max_score_drift", "null", *META]
    ended = subprocess.run(
        [sys.executable, "-c", FULL, "400,6000,700000", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if re.fullmatch(r"\d+ \d+", line)]
    assert [line.split()[1] for line in lines] == ["74"] * 3 + ["0"], ended.stderr
    reasons = [
        json.loads(line)["reason"]
        for line in ended.stdout.splitlines()
        if line.startswith('{"status": "machine error"')
    ]
    assert len(reasons) == 3
    assert not list((world / "workspace").rglob(".tmp-*"))
    assert shown(world).height == good.height


def test_while_a_night_runs_another_one_leaves(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame
) -> None:
    with Workspace(world / "workspace").lock("the-other"):
        ended = night()
    assert (ended.code, ended.last["status"]) == (75, "already running")
    assert "run the-other" in ended.err
    assert shown(world).equals(good)


def test_a_reader_that_holds_the_scores_for_writing_costs_the_comparison_and_not_the_night(
    world: Path, night: Callable[..., Ended], good: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who opens the file without saying read-only locks everybody else out of it."""
    script = "import duckdb, sys\nheld = duckdb.connect(sys.argv[1])\nprint('held', flush=True)\nsys.stdin.read()\n"
    scores = world / "workspace" / "scores.duckdb"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(scores)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "held\n"
        doctored = main(["doctor", "--config", str(world / "night.yaml")])
        said = capsys.readouterr()
        ended = night("--run_date", "2026-02-01")
        reader.communicate("")
    assert doctored != 0
    assert "close what holds it for writing" in said.out + said.err
    assert ended.code == 0, ended.err
    assert "no comparison with run 2026-01-31" in ended.err
    assert shown(world, "run_diff")["n_kept"].sum() == 0  # as on the first night
    assert set(shown(world)["run_id"]) == {ended.last["run_id"]}


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_where_there_is_no_gpu_the_cpu_works_and_a_line_says_so(
    night: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    ended = night("--training.accelerator", accelerator)
    assert ended.code == 0
    assert f"training.accelerator is {accelerator}, but there is none here: working on the CPU" in ended.err


@pytest.mark.parametrize(("room", "code"), [(8, 0), (4, 74)])
def test_out_of_memory_in_training_halves_the_users_of_a_step_once_and_is_then_an_error(
    world: Path,
    night: Callable[..., Ended],
    good: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    code: int,
) -> None:
    meta_loss = MAML.meta_loss

    def hungry(self: MAML, episodes: Any) -> Any:
        if len(episodes.users.ids) > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return meta_loss(self, episodes)

    monkeypatch.setattr(MAML, "meta_loss", hungry)
    ended = night(*META, "--gates.max_score_drift", "null")
    assert ended.code == code, ended.err
    assert ended.err.count("out of memory in training: once more with 8 users per step, not 16") == 1
    if code:
        assert "can't allocate memory" in ended.last["reason"]
        assert shown(world).equals(good)
    else:
        assert set(shown(world)["source"]) == {"adapted"}


def test_a_run_has_its_name_from_the_day_it_is_for_whatever_the_clock_says(
    world: Path, night: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 5, 5, tzinfo=tz)

    first = night()
    for module in ("pipelines.nightly", "pipelines.inputs"):
        monkeypatch.setattr(f"{module}.datetime", Later)
    again = night()
    assert first.last["run_id"].startswith("2026-02-01-")
    assert (again.last["run_id"], again.last["sha256"]) == (first.last["run_id"], first.last["sha256"])


# ---- the page


def rows_of_page(repository: Path) -> list[list[str]]:
    """The cells of every row of docs/failures.md."""
    text = (repository / "docs" / "failures.md").read_text()
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith(("| what ", "| ---"))
    ]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_row_of_the_page_names_tests_that_exist(repository: Path) -> None:
    rows = rows_of_page(repository)
    assert len(rows) > 30
    defined: dict[str, set[str]] = {}
    for row in rows:
        assert len(row) == 4, row
        named = re.findall(r"`(\w+(?:/\w+)*\.py)::(\w+)`", row[3])
        assert named, f"no test is named: {row}"
        for file, test in named:
            tree = ast.parse((repository / "tests" / file).read_text())
            names = defined.setdefault(
                file, {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            )
            assert test in names, f"tests/{file} has no {test}"
