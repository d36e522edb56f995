"""Rolling back: an intact run in force again, the one before or the one named, and never a damaged or unknown one."""

import json
import logging
from pathlib import Path
from types import ModuleType

import pytest

from recsys_meta.cli import main
from recsys_meta.store import Damaged, NoSuchRun, RolledBack, Workspace, rollback, runs
from recsys_meta.store.manifest import write_manifest


@pytest.fixture
def workspace(tmp_path: Path, small_night: ModuleType) -> Workspace:
    """Three nights, the last one in force."""
    for version in (1, 2, 3):
        small_night.night(tmp_path, f"night-{version}", version)
    return Workspace(tmp_path)


def in_force(workspace: Workspace) -> str | None:
    run = workspace.latest_run()
    return None if run is None else run.run_id


def damage(workspace: Workspace, run_id: str) -> None:
    """One flipped bit."""
    file = workspace.run(run_id).scores.resolve()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_run_before_comes_back_and_then_the_one_before_that(workspace: Workspace) -> None:
    assert rollback(workspace) == RolledBack("night-2", "maml-1", "night-3", {})
    assert in_force(workspace) == "night-2"
    assert rollback(workspace).run_id == "night-1"
    with pytest.raises(Damaged, match="no intact run was published before; night-1 stays in force"):
        rollback(workspace)
    assert in_force(workspace) == "night-1"
    assert rollback(workspace, "night-3").before == "night-1"
    assert in_force(workspace) == "night-3"


def test_a_damaged_run_is_passed_over_and_said(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    damage(workspace, "night-2")
    with pytest.raises(Damaged, match="sha256"):
        rollback(workspace, "night-2")
    assert in_force(workspace) == "night-3"
    with caplog.at_level(logging.WARNING):
        done = rollback(workspace)
    assert (done.run_id, list(done.skipped)) == ("night-1", ["night-2"])
    assert "run night-2 is passed over" in caplog.text


def test_a_run_whose_manifest_is_damaged_is_passed_over(workspace: Workspace) -> None:
    (workspace.run("night-2").published / "manifest.json").write_text("{}")
    assert rollback(workspace).run_id == "night-1"
    assert in_force(workspace) == "night-1"
    with pytest.raises(Damaged, match=r"manifest\.json"):
        rollback(workspace, "night-2")


def test_where_none_is_intact_all_are_named_and_what_is_in_force_stays(workspace: Workspace) -> None:
    damage(workspace, "night-1")
    damage(workspace, "night-2")
    with pytest.raises(Damaged, match="night-3 stays in force; damaged: night-1, night-2"):
        rollback(workspace)
    assert in_force(workspace) == "night-3"


@pytest.mark.parametrize("pointer", ["absent", "nowhere", "file"])
def test_where_the_pointer_leads_nowhere_the_newest_intact_run_comes_back(
    workspace: Workspace, pointer: str
) -> None:
    workspace.pointer.unlink()
    if pointer == "nowhere":
        workspace.pointer.symlink_to("nowhere")
    elif pointer == "file":
        workspace.pointer.write_text("something")
    damage(workspace, "night-3")
    done = rollback(workspace)
    assert (done.run_id, done.before, list(done.skipped)) == ("night-2", None, ["night-3"])
    assert in_force(workspace) == "night-2"


def test_a_dry_run_says_the_same_and_leaves_the_pointer(workspace: Workspace) -> None:
    dry = rollback(workspace, dry_run=True)
    assert in_force(workspace) == "night-3"
    assert rollback(workspace) == dry


def test_an_unknown_run_is_refused_with_those_there_are(workspace: Workspace) -> None:
    for run_id in ("night-9", "../night-1", ""):
        with pytest.raises(NoSuchRun, match="found night-3, night-2, night-1"):
            rollback(workspace, run_id)
    assert in_force(workspace) == "night-3"


def test_the_night_after_a_rollback_goes_on_from_there(workspace: Workspace, small_night: ModuleType) -> None:
    rollback(workspace, "night-1")
    small_night.night(workspace.root, "night-4", 4, keep=1)
    assert in_force(workspace) == "night-4"
    assert rollback(workspace).run_id == "night-1"  # it was in force before, so it has stayed


def test_what_was_rolled_back_from_does_not_come_back_unless_it_is_named(
    workspace: Workspace, small_night: ModuleType
) -> None:
    def rolled_back() -> list[str]:
        return runs(workspace).filter("rolled_back")["run_id"].to_list()

    assert rolled_back() == []
    assert rollback(workspace).run_id == "night-2"
    assert rolled_back() == ["night-3"]
    small_night.night(workspace.root, "night-4", 4)
    small_night.night(workspace.root, "night-4", 5)  # from other data: still what followed night-2
    small_night.night(workspace.root, "night-5", 6)
    assert rolled_back() == ["night-3"]
    assert [rollback(workspace).run_id for _ in range(3)] == ["night-4", "night-2", "night-1"]
    assert rollback(workspace, "night-3").run_id == "night-3"
    assert rollback(workspace).run_id == "night-2"


def test_a_run_in_force_that_is_made_anew_stays_where_it_was_in_the_line(
    tmp_path: Path, small_night: ModuleType
) -> None:
    for version in (1, 2):
        small_night.night(tmp_path, f"night-{version}", version)
    workspace = Workspace(tmp_path)
    rollback(workspace)
    small_night.night(tmp_path, "night-1", 3)  # from other data, after night-2 was rolled back from
    assert runs(workspace).filter("rolled_back")["run_id"].to_list() == ["night-2"]
    with pytest.raises(Damaged, match="no intact run was published before"):
        rollback(workspace)


def test_a_damaged_run_breaks_no_line(workspace: Workspace, small_night: ModuleType) -> None:
    rollback(workspace)
    small_night.night(workspace.root, "night-4", 4)
    (workspace.run("night-2").published / "manifest.json").write_text("{}")
    assert rollback(workspace).run_id == "night-1"


def test_a_manifest_of_before_this_was_recorded_follows_the_one_counted_before(workspace: Workspace) -> None:
    for run in workspace.runs():
        manifest = run.manifest()
        assert manifest.after == manifest.sequence - 1
        write_manifest(run.published.resolve(), manifest._replace(after=None))
    assert [rollback(workspace).run_id for _ in range(2)] == ["night-2", "night-1"]


def test_the_command_says_what_it_did_and_ends_with_json(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(workspace, "night-2")
    assert main(["rollback", "--workspace", str(workspace.root), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would be in force: night-1 (before: night-3)"
    assert json.loads(lines[-1])["status"] == "would roll back"
    assert main(["rollback", "--workspace", str(workspace.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["in force: night-1 (before: night-3)", "passed over, damaged: night-2"]
    said = json.loads(lines[-1])
    assert (said["run_id"], said["before"], list(said["skipped"])) == ("night-1", "night-3", ["night-2"])
    for arguments, code in ((["--to", "night-2"], 3), (["--to", "night-9"], 2), ([], 3)):
        assert main(["rollback", "--workspace", str(workspace.root), *arguments]) == code
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["exit_code"] == code
    assert in_force(workspace) == "night-1"


def test_while_a_night_runs_nothing_is_rolled_back(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with Workspace(workspace.root).lock("night-4"):
        assert main(["rollback", "--workspace", str(workspace.root)]) == 75
    assert "run night-4" in capsys.readouterr().err
    assert in_force(workspace) == "night-3"
