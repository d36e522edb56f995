"""The workspace: plain names, one writer, one pointer."""

import os
import re
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_meta.store import AlreadyRunning, Damaged, Workspace
from recsys_meta.store.workspace import NoWorkspace

HOSTILE = [
    "..",
    ".",
    ".hidden",
    "a/b",
    "/a",
    "a\\b",
    "a\n",
    "",
    "é",
    "a b",
    "-rf",
    "a'; DROP TABLE scores; --",
    "x" * 201,
]


@given(st.text() | st.text("abz09._-/"))
def test_a_name_is_plain_or_refused_and_never_leads_out_of_its_folder(name: str) -> None:
    workspace = Workspace(Path("somewhere"))
    for folder, give in (("runs", lambda name: workspace.run(name).path), ("models", workspace.model)):
        try:
            path = give(name)
        except ValueError:
            continue
        assert path.parent == workspace.root / folder
        assert path.name == name
        assert os.path.normpath(path) == str(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_and_named(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        Workspace(Path("somewhere")).run(name)


@pytest.mark.parametrize("name", ["2026-11-22-maml_1.0-3fa9", "A", "0", "x" * 200])
def test_plain_names_are_taken(name: str) -> None:
    assert Workspace(Path("somewhere")).run(name).run_id == name


def test_asking_creates_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new")
    workspace.run("night-1")
    workspace.model("maml-1")
    assert workspace.latest() is None
    assert workspace.published() == []
    assert list(tmp_path.iterdir()) == []


def test_a_second_holder_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    first, second = Workspace(tmp_path), Workspace(tmp_path)
    with first.lock("night-1"):
        with pytest.raises(
            AlreadyRunning, match=rf"process {os.getpid()} \(since .*, run night-1\)"
        ) as refused:
            second.lock("night-2").__enter__()
        assert refused.value.exit_code == 75
        with first.lock("night-1"):  # its own holder may go on
            pass
        with pytest.raises(AlreadyRunning):
            second.lock().__enter__()
    with second.lock():
        pass


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Workspace(tmp_path).lock():
        raise ZeroDivisionError
    with Workspace(tmp_path).lock():
        assert (tmp_path / ".lock").read_text().count(f'"pid": {os.getpid()}') == 1


def test_a_lock_file_that_says_nothing_still_refuses(tmp_path: Path) -> None:
    with Workspace(tmp_path).lock():
        (tmp_path / ".lock").write_text("")
        with pytest.raises(AlreadyRunning, match="another process"):
            Workspace(tmp_path).lock().__enter__()


@pytest.mark.parametrize(
    "target",
    ["../elsewhere.duckdb", "runs/night-1/other/scores.duckdb", "runs/night-9/published/scores.duckdb"],
)
def test_a_pointer_that_leads_nowhere_good_is_damaged(
    tmp_path: Path, small_night: ModuleType, target: str
) -> None:
    small_night.night(tmp_path / "w", "night-1")
    (tmp_path / "elsewhere.duckdb").touch()
    workspace = Workspace(tmp_path / "w")
    assert workspace.latest() == tmp_path / "w/runs/night-1/published/scores.duckdb"
    workspace.pointer.unlink()
    workspace.pointer.symlink_to(target)
    with pytest.raises(Damaged, match=r"scores\.duckdb: leads to"):
        workspace.latest()
    workspace.pointer.unlink()
    workspace.pointer.touch()
    with pytest.raises(Damaged, match="expected a link"):
        workspace.latest()


def test_the_workspace_can_be_moved(tmp_path: Path, small_night: ModuleType) -> None:
    small_night.night(tmp_path / "here", "night-1")
    (tmp_path / "here").rename(tmp_path / "there")
    latest = Workspace(tmp_path / "there").latest()
    assert latest is not None
    assert latest.is_file()
    assert (tmp_path / "there" / "scores.duckdb").resolve() == latest.resolve()


def test_a_root_that_duckdb_cannot_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"work\?space"):
        Workspace(Path("work?space"))


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "precious").write_text("all there is")
    (tmp_path / "w" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(Damaged, match=r"\.lock: is a link"), Workspace(tmp_path / "w").lock():
        pass
    assert (tmp_path / "precious").read_text() == "all there is"


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(NoWorkspace, match="expected a folder"), Workspace(root).lock():
            pass


def test_a_run_that_lies_elsewhere_is_none_of_this_workspace(tmp_path: Path, small_night: ModuleType) -> None:
    small_night.night(tmp_path / "other", "night-1")
    small_night.night(tmp_path / "w", "night-2")
    (tmp_path / "w" / "runs" / "night-1").symlink_to(tmp_path / "other" / "runs" / "night-1")
    assert [run.run_id for run in Workspace(tmp_path / "w").runs()] == ["night-2"]


def test_who_takes_the_lock_removes_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "workspace", tmp_path / "elsewhere"
    left = [
        root / ".tmp-a",
        root / "models" / ".tmp-b",
        root / "models" / "maml-1" / ".tmp-c-bundle",
        root / "evaluations" / "abc" / ".tmp-d-report.html",
        root / "runs" / "night" / ".tmp-e",
    ]
    stays = [
        root / "models" / "maml-1" / "bundle" / "weights",
        root / "evaluations" / "abc" / "report.html",
        elsewhere / ".tmp-f",
        elsewhere / "inner" / ".tmp-g",
    ]
    for path in (*left, *stays):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half a file")
    folders = [root / ".tmp-h", root / "models" / "maml-1" / ".tmp-i-bundle"]
    for folder in folders:
        folder.mkdir()
        (folder / "weights").write_text("half")
    (root / "linked").symlink_to(elsewhere)
    with Workspace(root).lock("night"):
        assert not any(path.exists() for path in (*left, *folders))
        assert all(path.exists() for path in stays)
