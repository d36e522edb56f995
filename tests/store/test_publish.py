"""What is published is what was written, checked, complete and in the types it came in; anything else is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import polars as pl
import pytest
from file_changes import ENVIRONMENT
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal, assert_series_equal

from recsys_meta import tables
from recsys_meta.store import (
    AlreadyRunning,
    Damaged,
    NoSuchRun,
    PublishRefused,
    RunFolder,
    Workspace,
    publish,
    read_scores,
    rollback,
    runs,
    verify,
)

HOSTILE = [
    "it's",
    '"quoted"',
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "line\nbreak\r\n",
    "tab\t,;|::",
    "'; DROP TABLE scores; --",
    "<script>",
    "007",
    "7",
    "",
    " ",
    "NULL",
    "ünïcödé 漢字 🦆",
    "a\\b",
    "%s{0}$1",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(HOSTILE)
INTEGERS = [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64]
Change = Callable[[pl.DataFrame], pl.DataFrame]


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        connection.execute(sql)
        return connection.fetchall()


def begun(workspace: Workspace, run_id: str = "night-1") -> RunFolder:
    run = workspace.run(run_id)
    run.begin("f")
    return run


def ids(dtype: type[pl.DataType]) -> st.SearchStrategy[pl.Series]:
    """A few different ids of this type."""
    if dtype == pl.String:
        values: st.SearchStrategy[Any] = TEXTS
    else:
        lowest, highest = (pl.select(bound(dtype)).item() for bound in (lambda t: t.min(), lambda t: t.max()))
        values = st.integers(lowest, highest)
    return st.lists(values, min_size=1, max_size=4, unique=True).map(
        lambda found: pl.Series(found, dtype=dtype)
    )


@st.composite
def user_and_item_ids(draw: st.DrawFn) -> tuple[pl.Series, pl.Series]:
    dtypes = st.sampled_from([pl.String, *INTEGERS])
    return draw(dtypes.flatmap(ids)), draw(dtypes.flatmap(ids))


@settings(max_examples=6)
@given(user_and_item_ids())
def test_ids_of_every_type_and_spelling_come_back_as_they_were(
    small_night: ModuleType, tmp_path_factory: pytest.TempPathFactory, found: tuple[pl.Series, pl.Series]
) -> None:
    users, items = found
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    run = begun(workspace)
    scores = small_night.scores(run.run_id, users, items).with_columns(
        pl.col("user_id").cast(users.dtype), pl.col("item_id").cast(items.dtype)
    )
    status = small_night.status(users)
    run.write_part("scores", 0, scores)
    run.write_part("user_status", 0, status)
    published = small_night.publish(workspace, run, users, parquet=True, top_k=len(items))
    expected = scores.select(list(tables.SCORES)).sort("user_id", "rank")
    assert published.rows == scores.height
    assert_frame_equal(read_scores(workspace.pointer), expected)
    assert_frame_equal(pl.read_parquet(run.published / "scores.parquet"), expected)
    assert_frame_equal(
        pl.read_parquet(run.published / "user_status.parquet"),
        status.select(list(tables.USER_STATUS)).sort("user_id"),
    )
    assert_frame_equal(
        read_scores(workspace.pointer, users[-1:]), expected.filter(pl.col("user_id") == users[-1])
    )


@pytest.mark.parametrize("name", ["it's; -- $(x) `y` =1+1", '[odd] *names{a,b} "b" %s @table ü 漢'])
def test_a_workspace_may_have_any_name(small_night: ModuleType, tmp_path: Path, name: str) -> None:
    for version in (1, 2):
        small_night.night(tmp_path / name, f"night-{version}", version, parquet=True)
    assert set(read_scores(tmp_path / name / "scores.duckdb")["item_id"]) == {20, 21, 22}
    assert query(tmp_path / name / "scores.duckdb", "SELECT count(*) FROM previous_ranks") == [(12,)]


def test_the_tables_have_the_declared_columns_and_types(small_night: ModuleType, tmp_path: Path) -> None:
    published = small_night.night(tmp_path, "night-1")
    with duckdb.connect(str(published.path), read_only=True) as connection:
        for table, schema in (
            ("scores", tables.SCORES),
            ("user_status", tables.USER_STATUS),
            ("user_vectors", tables.USER_VECTORS),
            ("quarantine", tables.QUARANTINE),
        ):
            found = connection.sql(f"FROM {table}").pl().schema
            assert list(found) == list(schema), table
            for name, dtype in schema.items():
                if dtype == tables.ID:
                    assert found[name] == pl.Int64
                elif dtype == tables.INSTANT:
                    assert isinstance(found[name], pl.Datetime)
                else:
                    assert found[name] == dtype, (table, name)
        assert connection.sql("SELECT count(*) FROM duckdb_indexes()").fetchall() == [(0,)]


def test_instants_and_json_come_back_whatever_the_time_zone_of_the_machine(
    small_night: ModuleType, tmp_path: Path
) -> None:
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('small_night', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.night(pathlib.Path(sys.argv[2]), 'night-1', parquet=True)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(small_night.__file__), str(tmp_path)],
        env=ENVIRONMENT | {"TZ": "America/New_York"},
        check=True,
    )
    assert set(read_scores(tmp_path / "scores.duckdb")["generated_at"]) == {small_night.NOW}
    [(epoch, seconds, metrics, expires_at)] = query(
        tmp_path / "scores.duckdb",
        "SELECT epoch(started_at), seconds->>'$.adapt', metrics->>'$.mae', expires_at FROM runs",
    )
    assert datetime.fromtimestamp(epoch, UTC) == small_night.NOW
    assert (seconds, metrics, expires_at) == ("1.5", "0.75", None)


def test_user_vectors_and_quarantine_are_published(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    small_night.write(run, [[1, 2]], [10])
    vectors = pl.DataFrame(
        {"run_id": run.run_id, "user_id": [2, 1], "vector": [[0.5, 1.5], [2.0, 3.0]]},
        schema_overrides={"vector": pl.List(pl.Float32)},
    )
    run.write_part("user_vectors", 0, vectors)
    quarantine = pl.DataFrame(
        {"source": ["a.csv"], "row": [3], "column": [None], "reason": ["=1+1"], "raw": ['{"a": "\'"}']},
        schema={name: dtype for name, dtype in tables.QUARANTINE.items() if name != "run_id"},
    )
    published = small_night.publish(workspace, run, [1, 2], quarantine=quarantine)
    assert query(published.path, "FROM user_vectors") == [
        (run.run_id, 1, [2.0, 3.0]),
        (run.run_id, 2, [0.5, 1.5]),
    ]
    assert query(published.path, "FROM quarantine") == [(run.run_id, "a.csv", 3, None, "=1+1", '{"a": "\'"}')]


@pytest.mark.parametrize("interlaced", [True, False], ids=["parts interlaced", "part after part"])
def test_rows_lie_in_the_order_of_users_and_ranks(
    small_night: ModuleType, tmp_path: Path, *, interlaced: bool
) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    users = list(range(3000, 0, -1))
    small_night.write(
        run, [users[::2], users[1::2]] if interlaced else [users[1500:], users[:1500]], [30, 10, 20]
    )
    published = small_night.publish(workspace, run, users)
    assert query(published.path, "SELECT user_id, rank FROM scores") == [
        (user, rank) for user in sorted(users) for rank in (1, 2, 3)
    ]


def test_what_was_drawn_is_published_in_the_order_it_is_shown_in(
    small_night: ModuleType, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    rising = small_night.scores("night-1", [1], [30, 10, 20]).with_columns(
        score=pl.Series([1.0, 3.0, 2.0], dtype=pl.Float32), propensity=pl.Series([0.2, 0.7, 1.0])
    )
    run.write_part("scores", 0, rising)
    run.write_part("user_status", 0, small_night.status([1]))
    drawn = {"name": "plackett_luce", "temperature": 0.5, "exploration": 0.0, "pool": 3, "seed": 7}
    published = small_night.publish(
        workspace, run, [1], run_record=small_night.record("night-1", policy=drawn)
    )
    assert query(published.path, "SELECT item_ids, propensities FROM latest_user_lists") == [
        ([30, 10, 20], [0.2, 0.7, 1.0])
    ]
    assert query(published.path, "SELECT policy->>'$.name', (policy->>'$.pool')::INTEGER FROM runs") == [
        ("plackett_luce", 3)
    ]


def test_the_views_answer(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for run_id, shown in (
        ("night-1", {1: [10, 11], 2: [10, 11], 3: [10]}),
        ("night-2", {1: [11, 12], 2: [10, 11], 4: [5]}),
    ):
        run = begun(workspace, run_id)
        for number, (user, items) in enumerate(shown.items()):
            run.write_part("scores", number, small_night.scores(run_id, [user], items))
        support = pl.Series("n_support", range(len(shown)), dtype=pl.Int32)
        run.write_part("user_status", 0, small_night.status(list(shown)).with_columns(support))
        small_night.publish(workspace, run, list(shown), cold_below=2)
    path = workspace.pointer
    assert query(path, "SELECT user_id, item_ids, scores FROM latest_user_lists ORDER BY user_id") == [
        (1, [11, 12], [0.5, 0.25]),
        (2, [10, 11], [0.5, 0.25]),
        (4, [5], [0.5]),
    ]
    assert query(path, "SELECT count(*) FROM latest_scores") == [(5,)]
    assert query(path, "SELECT user_id FROM cold_users ORDER BY user_id") == [(1,), (2,)]
    assert query(path, "FROM run_diff ORDER BY user_id") == [
        (1, 1, 1, 1, [11], [12], [10]),
        (2, 2, 0, 0, [10, 11], [], []),
        (3, 0, 0, 1, [], [], [10]),
        (4, 0, 1, 0, [], [5], []),
    ]
    assert query(path, "FROM aliases") == [("latest", "night-2", "maml-1")]
    assert query(path, "SELECT run_id FROM runs") == [("night-2",), ("night-1",)]


def test_without_a_bound_every_user_counts_as_cold(small_night: ModuleType, tmp_path: Path) -> None:
    published = small_night.night(tmp_path, "night-1")
    assert query(published.path, "SELECT count(*) FROM cold_users") == [(4,)]


def test_a_comparison_needs_the_same_types_and_an_intact_file_and_is_left_out_on_request(
    small_night: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace(tmp_path)

    def previous_ranks(run_id: str, users: Sequence[Any], **settings: Any) -> int:
        run = begun(workspace, run_id)
        small_night.write(run, [users], [10])
        small_night.publish(workspace, run, users, **settings)
        [(rows,)] = query(workspace.pointer, "SELECT count(*) FROM previous_ranks")
        return int(rows)

    assert previous_ranks("night-1", [1, 2]) == 0
    assert previous_ranks("night-2", ["1", "002"]) == 0
    assert "its ids are BIGINT and BIGINT, those of this run VARCHAR and BIGINT" in caplog.text
    assert previous_ranks("night-3", ["1", "2"]) == 2
    assert previous_ranks("night-4", ["1", "2"], compare_with_previous=False) == 0
    scores = workspace.run("night-4").scores.resolve()
    scores.write_bytes(scores.read_bytes()[:-1])
    assert previous_ranks("night-5", ["1", "2"]) == 0
    assert "no comparison with run night-4" in caplog.text


def test_ids_of_another_width_are_compared_by_value_and_those_that_do_not_fit_are_said(
    small_night: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace(tmp_path)

    def kept(run_id: str, user_type: pl.DataType, item_type: pl.DataType, users: list[int]) -> list[Any]:
        run = begun(workspace, run_id)
        ids = pl.Series(users, dtype=user_type)
        run.begin("f")
        frame = small_night.scores(run_id, users, [10, 11])
        run.write_part("scores", 0, frame.cast({"user_id": user_type, "item_id": item_type}))
        run.write_part("user_status", 0, small_night.status(ids))
        run.finish_shard(0, {})
        small_night.publish(workspace, run, ids)
        return query(
            workspace.pointer, "SELECT user_id, n_kept, n_entered, n_left FROM run_diff ORDER BY ALL"
        )

    kept("night-1", pl.Int32(), pl.Int32(), [1, 2])
    assert kept("night-2", pl.Int64(), pl.UInt16(), [1, 3]) == [(1, 2, 0, 0), (2, 0, 0, 2), (3, 0, 2, 0)]
    assert kept("night-3", pl.Int32(), pl.Int64(), [1]) == [(1, 2, 0, 0), (3, 0, 0, 2)]
    kept("night-4", pl.Int64(), pl.Int64(), [1, 2**40])
    assert "no comparison" not in caplog.text
    assert kept("night-5", pl.Int32(), pl.Int64(), [1]) == [(1, 0, 2, 0)]
    assert "night-4: the ids of 2 of its rows do not fit INTEGER and BIGINT" in caplog.text


# Each change makes two good tables bad in one way; beside it the checks that have to say so.
BAD: dict[str, tuple[Change | None, Change | None, set[str]]] = {
    "a NaN": (
        lambda scores: scores.with_columns(score=pl.lit(float("nan"), pl.Float32)),
        None,
        {"a score is not finite"},
    ),
    "an infinity": (
        lambda scores: scores.with_columns(
            score=pl.when(rank=1).then(float("inf")).otherwise("score").cast(pl.Float32)
        ),
        None,
        {"a score is not finite"},
    ),
    "a null score": (
        lambda scores: scores.with_columns(score=pl.lit(None, pl.Float32)),
        None,
        {"scores have an empty cell"},
    ),
    "a gap in the ranks": (
        lambda scores: scores.with_columns(rank=pl.when(rank=2).then(3).otherwise("rank").cast(pl.Int32)),
        None,
        {"ranks are not 1, 2, 3, ..", "a rank is beyond top_k"},
    ),
    "ranks from zero": (
        lambda scores: scores.with_columns(pl.col("rank") - 1),
        None,
        {"ranks are not 1, 2, 3, .."},
    ),
    "a row twice": (
        lambda scores: pl.concat([scores, scores[:1]]),
        None,
        {"ranks are not 1, 2, 3, ..", "a user has an item twice"},
    ),
    "one item in two ranks": (
        lambda scores: scores.with_columns(item_id=pl.lit(10, pl.Int64)),
        None,
        {"a user has an item twice"},
    ),
    "a better score further down": (
        lambda scores: scores.with_columns(-pl.col("score")),
        None,
        {"a score is above that of the rank before"},
    ),
    "another source": (
        lambda scores: scores.with_columns(source=pl.lit("guessed")),
        lambda status: status.with_columns(source=pl.lit("'; --")),
        {"scores have an unknown source", "a status has an unknown source"},
    ),
    "another run": (
        lambda scores: scores.with_columns(run_id=pl.lit("night-0")),
        None,
        {"scores belong to another run"},
    ),
    "a propensity of nothing": (
        lambda scores: scores.with_columns(propensity=pl.lit(0.0)),
        None,
        {"a propensity is not above 0 and at most 1"},
    ),
    "an impossible propensity": (
        lambda scores: scores.with_columns(propensity=pl.lit(1.5)),
        None,
        {"a propensity is not above 0 and at most 1"},
    ),
    "a negative number of examples": (
        None,
        lambda status: status.with_columns(n_support=pl.lit(-1, pl.Int32)),
        {"a number of examples is negative"},
    ),
    "no scores for one user": (
        lambda scores: scores.filter(pl.col("user_id") != 2),
        None,
        {"a user has no scores and no reason that says why"},
    ),
    "no status for one user": (
        None,
        lambda status: status[1:],
        {"a requested user has no status", "a user has scores and no status"},
    ),
    "a status twice": (
        None,
        lambda status: pl.concat([status, status[:1]]),
        {"a user has more than one status"},
    ),
    "a user nobody asked for": (
        lambda scores: scores.with_columns(user_id=pl.when(user_id=1).then(9).otherwise("user_id")),
        lambda status: status.with_columns(user_id=pl.when(user_id=1).then(9).otherwise("user_id")),
        {"a requested user has no status", "a user has a status and was not requested"},
    ),
    "a status without source": (
        None,
        lambda status: status.with_columns(source=pl.lit(None, pl.String)),
        {"a status has an empty cell"},
    ),
}


@pytest.fixture(scope="module")
def in_force(small_night: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with one good night."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    small_night.night(workspace.root, "night-0")
    return workspace


@pytest.mark.parametrize("case", BAD)
def test_what_fails_a_check_is_refused_and_the_last_good_scores_stay(
    small_night: ModuleType, in_force: Workspace, case: str
) -> None:
    change_scores, change_status, checks = BAD[case]
    run = begun(in_force, case.replace(" ", "-"))
    scores, status = small_night.scores(run.run_id, [1, 2], [10, 11]), small_night.status([1, 2])
    run.write_part("scores", 0, change_scores(scores) if change_scores else scores)
    run.write_part("user_status", 0, change_status(status) if change_status else status)
    with pytest.raises(PublishRefused) as refused:
        small_night.publish(in_force, run, [1, 2], top_k=2)
    assert set(refused.value.checks) == checks
    assert all(violations > 0 for violations in refused.value.checks.values())
    assert refused.value.exit_code == 4
    assert all(name in str(refused.value) for name in checks)
    assert in_force.latest() == in_force.run("night-0").scores
    assert sorted(path.name for path in run.path.iterdir()) == ["parts"]


def test_what_was_refused_is_published_once_it_is_right(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    small_night.write(run, [[1, 2]], [10, 11])
    with pytest.raises(PublishRefused):
        small_night.publish(workspace, run, [1, 2], top_k=1)
    assert workspace.latest() is None
    assert small_night.publish(workspace, run, [1, 2], top_k=2).rows == 4


@pytest.mark.parametrize(
    ("vectors", "check"),
    [
        ([[1.0], [float("nan")]], "a vector is empty or not finite"),
        ([[1.0], []], "a vector is empty or not finite"),
        ([[1.0], None], "a vector is empty or not finite"),
        ([[1.0], [None]], "a vector is empty or not finite"),
        ([[1.0], [1.0], [2.0]], "a user has a vector twice or no status"),
    ],
)
def test_a_bad_vector_is_refused(
    small_night: ModuleType, tmp_path: Path, vectors: list[Any], check: str
) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    small_night.write(run, [[1, 2]], [10])
    frame = pl.DataFrame(
        {"run_id": run.run_id, "user_id": [1, 2, 2][: len(vectors)], "vector": vectors},
        schema_overrides={"vector": pl.List(pl.Float32)},
    )
    run.write_part("user_vectors", 0, frame)
    with pytest.raises(PublishRefused) as refused:
        small_night.publish(workspace, run, [1, 2])
    assert refused.value.checks == {check: 1}


def test_a_named_reason_excuses_a_user_without_scores(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    run.write_part("scores", 0, small_night.scores(run.run_id, [1], [10]))
    reasons = pl.Series("reason", [None, "no_candidates"], dtype=pl.String)
    run.write_part("user_status", 0, small_night.status([1, 2]).with_columns(reasons))
    with pytest.raises(PublishRefused):
        small_night.publish(workspace, run, [1, 2], reasons_without_scores=["history_too_long"])
    assert small_night.publish(workspace, run, [1, 2], reasons_without_scores=["no_candidates"]).rows == 1


def test_a_loss_that_is_not_finite_is_published_as_unknown(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    small_night.write(run, [[1]], [10])
    bad = small_night.status([1]).with_columns(support_loss_after=pl.lit(float("nan"), pl.Float32))
    run.write_part("user_status", 0, bad)
    published = small_night.publish(workspace, run, [1])
    assert query(published.path, "SELECT support_loss_before, support_loss_after FROM user_status") == [
        (1.0, None)
    ]


def test_ids_that_change_their_type_are_refused(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    small_night.write(run, [[1]], [10])
    with pytest.raises(TypeError, match=r"requested users: .* String, expected none and Int64"):
        small_night.publish(workspace, run, ["1"])
    with pytest.raises(TypeError, match="found 1 nulls"):
        small_night.publish(workspace, run, [1, None])
    run.write_part("scores", 1, small_night.scores(run.run_id, [2], ["10"]))
    with pytest.raises(TypeError, match=r"column item_id: .*Int64 in .*000000.*String in .*000001"):
        small_night.publish(workspace, run, [1])
    assert workspace.latest() is None


def test_what_cannot_be_published_says_why(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = workspace.run("night-1")
    with pytest.raises(ValueError, match="nothing begun"):
        small_night.publish(workspace, run, [1])
    run.begin("f")
    with pytest.raises(FileNotFoundError, match="no recorded part of table 'scores'"):
        small_night.publish(workspace, run, [1])
    small_night.write(run, [[1]], [10])
    with pytest.raises(ValueError, match="keep: expected 1 or more, found 0"):
        small_night.publish(workspace, run, [1], keep=0)
    with pytest.raises(ValueError, match="run record of 'night-2' given for run 'night-1'"):
        small_night.publish(workspace, run, [1], run_record=small_night.record("night-2"))
    with pytest.raises(ValueError, match=r"table quarantine: missing columns \['raw'\]"):
        small_night.publish(workspace, run, [1], quarantine=small_night.NOTHING_QUARANTINED.drop("raw"))
    assert workspace.latest() is None


def test_a_part_that_changed_on_disk_is_not_published(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    small_night.write(run, [[1], [2]], [10])
    part = run.part_files("scores")[1]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(Damaged, match=r"scores/000001\.parquet"):
        small_night.publish(workspace, run, [1, 2])
    small_night.write(run, [[1], [2]], [10])
    assert small_night.publish(workspace, run, [1, 2]).rows == 2


def test_the_same_run_again_changes_nothing(small_night: ModuleType, tmp_path: Path) -> None:
    first = small_night.night(tmp_path, "night-1")
    assert small_night.night(tmp_path, "night-1") == first
    assert [path.name for path in sorted(first.path.parent.parent.glob("pub*"))] == [
        "publication-0001",
        "published",
    ]


def test_the_same_run_again_adds_the_parquet_files_that_are_now_wanted(
    small_night: ModuleType, tmp_path: Path
) -> None:
    first = small_night.night(tmp_path, "night-1")
    assert not (first.path.parent / "scores.parquet").exists()
    again = small_night.night(tmp_path, "night-1", parquet=True)
    assert_frame_equal(pl.read_parquet(again.path.parent / "scores.parquet"), read_scores(again.path))


def test_the_same_run_from_other_data_replaces_what_it_published(
    small_night: ModuleType, tmp_path: Path
) -> None:
    small_night.night(tmp_path, "night-0", version=1)
    for version in (2, 3, 4):
        published = small_night.night(tmp_path, "night-1", version)
        assert set(read_scores(tmp_path / "scores.duckdb")["item_id"] // 10) == {version}
        assert query(published.path, "SELECT DISTINCT item_id // 10 FROM previous_ranks") == [(1,)]
    assert runs(Workspace(tmp_path))["run_id"].to_list() == ["night-1", "night-0"]
    # The one before stays for readers that are just opening it; older ones go.
    assert len(list((tmp_path / "runs" / "night-1").glob("publication-*"))) == 2


def test_a_damaged_publication_is_found_and_made_again(small_night: ModuleType, tmp_path: Path) -> None:
    first = small_night.night(tmp_path, "night-1")
    run = Workspace(tmp_path).run("night-1")
    assert verify(run).files["scores.duckdb"].sha256 == first.sha256
    data = bytearray(first.path.read_bytes())
    data[len(data) // 2] ^= 4
    first.path.write_bytes(data)
    with pytest.raises(Damaged, match=r"scores\.duckdb: expected .* bytes"):
        verify(run)
    with pytest.raises(Damaged):
        read_scores(tmp_path / "scores.duckdb")
    small_night.night(tmp_path, "night-1")
    verify(run)
    assert read_scores(tmp_path / "scores.duckdb").height == 12


def test_the_newest_runs_and_the_one_in_force_before_stay(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for number in (1, 2, 3, 4):
        small_night.night(tmp_path, f"night-{number}", number, keep=2)
    assert [run.run_id for run in workspace.runs()] == ["night-3", "night-4"]
    rollback(workspace, "night-3")
    small_night.night(tmp_path, "night-5", 5, keep=1)
    assert [record["run_id"] for record in workspace.published()] == ["night-5", "night-3"]
    assert [run.run_id for run in workspace.runs()] == ["night-3", "night-5"]


def test_a_run_that_was_never_published_goes_once_it_is_older_than_all_kept_ones(
    small_night: ModuleType, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    begun(workspace, "failed")
    os.utime(workspace.run("failed").path, (1, 1))
    begun(workspace, "later")
    os.utime(workspace.run("later").path, (2**33, 2**33))
    small_night.night(tmp_path, "night-1", keep=2)
    assert {run.run_id for run in workspace.runs()} == {"failed", "later", "night-1"}
    small_night.night(tmp_path, "night-2", keep=2)
    assert {run.run_id for run in workspace.runs()} == {"later", "night-1", "night-2"}


def test_a_rollback_puts_an_earlier_run_in_force(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for version in (1, 2):
        small_night.night(tmp_path, f"night-{version}", version)
    rollback(workspace, "night-1")
    assert set(read_scores(workspace.pointer)["item_id"]) == {10, 11, 12}
    assert runs(workspace)["is_latest"].to_list() == [False, True]
    with pytest.raises(NoSuchRun):
        rollback(workspace, "night-3")
    assert set(read_scores(workspace.pointer)["item_id"]) == {10, 11, 12}
    small_night.night(tmp_path, "night-2", 2)  # the same night again is in force again
    assert set(read_scores(workspace.pointer)["item_id"]) == {20, 21, 22}


def test_a_broken_pointer_or_manifest_does_not_stop_the_next_night(
    small_night: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_night.night(tmp_path, "night-1")
    (tmp_path / "runs" / "night-1" / "published" / "manifest.json").write_text("{}")
    small_night.night(tmp_path, "night-2", 2)
    assert "run night-1 is left out" in caplog.text
    (tmp_path / "scores.duckdb").unlink()
    (tmp_path / "scores.duckdb").symlink_to("nowhere")
    small_night.night(tmp_path, "night-3", 3)
    assert "the pointer is replaced" in caplog.text
    assert set(read_scores(tmp_path / "scores.duckdb")["item_id"] // 10) == {3}


def test_a_file_is_read_while_the_next_one_is_published(small_night: ModuleType, tmp_path: Path) -> None:
    small_night.night(tmp_path, "night-1", 1)
    with duckdb.connect(str(tmp_path / "scores.duckdb"), read_only=True) as reader:
        small_night.night(tmp_path, "night-2", 2, keep=1)
        small_night.night(tmp_path, "night-3", 3, keep=1)
        reader.execute("SELECT DISTINCT item_id // 10 FROM scores")
        assert reader.fetchall() == [(1,)]
    assert set(read_scores(tmp_path / "scores.duckdb")["item_id"] // 10) == {3}
    assert not (tmp_path / "runs" / "night-1").exists()


def test_runs_lists_what_is_published_newest_first(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    empty = runs(workspace)
    for run_id in ("night-b", "night-a"):
        small_night.night(tmp_path, run_id)
    found = runs(workspace)
    assert found.schema == empty.schema
    assert found["run_id"].to_list() == ["night-a", "night-b"]
    assert found["is_latest"].to_list() == [True, False]
    assert found.row(0, named=True) | {"finished_at": None, "run_date": None} == {
        "run_id": "night-a",
        "run_date": None,
        "status": "published",
        "users": 4,
        "rows": 12,
        "model_version": "maml-1",
        "finished_at": None,
        "is_latest": True,
        "rolled_back": False,
    }


def test_scores_are_read_for_the_users_asked_for_and_text_is_no_number(
    small_night: ModuleType, tmp_path: Path
) -> None:
    path = small_night.night(tmp_path, "night-1").path
    assert read_scores(path, [3, 1, 3, 99])["user_id"].to_list() == [1, 1, 1, 3, 3, 3]
    assert read_scores(path, []).height == 0
    assert read_scores(path, pl.Series([2], dtype=pl.UInt8)).height == 3
    assert_series_equal(read_scores(path, [2])["user_id"], pl.Series("user_id", [2, 2, 2], dtype=pl.Int64))
    with pytest.raises(TypeError, match="user_ids: found String, expected Int64"):
        read_scores(path, ["2"])
    with pytest.raises(FileNotFoundError):
        read_scores(tmp_path / "absent.duckdb")


def test_the_record_of_the_manifest_is_the_row_of_runs(small_night: ModuleType, tmp_path: Path) -> None:
    published = small_night.night(tmp_path, "night-1")
    manifest = json.loads((published.path.parent / "manifest.json").read_text())["content"]
    with duckdb.connect(str(published.path), read_only=True) as connection:
        [row] = connection.sql("FROM runs").pl().to_dicts()
    for name, value in manifest["record"].items():
        found = json.loads(row[name]) if isinstance(value, dict | list) else row[name]
        if isinstance(found, dict | list):
            assert found == value, name
        elif isinstance(found, datetime):
            assert found == datetime.fromisoformat(value)
        else:
            assert str(found) == str(value), name
    assert list(row) == list(small_night.record("night-1"))


def test_publishing_needs_the_lock(small_night: ModuleType, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = begun(workspace)
    small_night.write(run, [[1]], [10])
    with Workspace(tmp_path).lock("other"), pytest.raises(AlreadyRunning, match="run other"):
        publish(
            workspace,
            run,
            run_record=small_night.record(run.run_id),
            quarantine=small_night.NOTHING_QUARANTINED,
            requested=pl.Series([1]),
            top_k=1,
        )
    assert workspace.latest() is None


def test_models_stay_with_the_runs_that_need_them_and_go_with_the_last_of_them(
    small_night: ModuleType, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)

    def night(number: int, model: str, challenger: str, keep: int = 2) -> None:
        for name in (model, challenger):
            workspace.model(name).mkdir(parents=True, exist_ok=True)
        gates = [{"gate": "champion", "champion": model, "challenger": challenger}]
        record = small_night.record(f"night-{number}", model_version=model, gates=gates)
        small_night.night(tmp_path, f"night-{number}", number, keep=keep, run_record=record)

    def models() -> set[str]:
        return {path.name for path in (tmp_path / "models").iterdir()}

    workspace.model("of-an-evaluation").mkdir(parents=True)
    night(1, "a", "a")
    night(2, "a", "b")  # the champion goes on
    night(3, "a", "c")
    assert models() == {"a", "b", "c", "of-an-evaluation"}
    night(4, "d", "d")  # night 2 goes, and with it the challenger that lost
    assert models() == {"a", "c", "d", "of-an-evaluation"}
    rollback(workspace, "night-3")
    night(5, "e", "e", keep=1)  # night 3 was in force, and may be again
    assert models() == {"a", "c", "e", "of-an-evaluation"}
    night(6, "e", "e", keep=1)
    (workspace.run("night-5").published / "manifest.json").write_text("{}")
    night(7, "f", "f", keep=1)  # whom night 5 needs nobody can tell
    assert models() == {"e", "f", "of-an-evaluation"}
    assert workspace.run("night-6").scores.is_file()
