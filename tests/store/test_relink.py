"""A workspace copied with its links followed: refused with what to do, nothing of it changed, and mended byte for byte."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from recsys_meta.cli import main
from recsys_meta.store import Damaged, Workspace, atomic, examine, relink, rollback, runs


@pytest.fixture
def copied(tmp_path: Path, small_night: ModuleType) -> Workspace:
    """Three nights, the second one in force, copied as ``cp -rL`` does."""
    for version in (1, 2, 3):
        small_night.night(tmp_path / "original", f"night-{version}", version)
    rollback(Workspace(tmp_path / "original"))
    shutil.copytree(tmp_path / "original", tmp_path / "copy", symlinks=False)
    return Workspace(tmp_path / "copy")


def files(root: Path) -> dict[str, bytes | str]:
    """Every file and link but the lock, and what it holds or leads to."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if (path.is_file() or path.is_symlink()) and path.name != ".lock"
    }


def test_it_is_refused_with_what_to_do_and_nothing_is_lost(
    copied: Workspace, small_night: ModuleType
) -> None:
    before = files(copied.root)
    told = r"night-1/published: found a folder, expected a link .* \(3 such\).*doctor --fix"
    with pytest.raises(Damaged, match=told):
        small_night.night(copied.root, "night-4", 4, keep=1)
    with pytest.raises(Damaged, match=told):
        rollback(copied)
    with pytest.raises(Damaged, match=told):
        runs(copied)
    errors = [finding for finding in examine(copied) if finding.level != "ok"]
    assert [(finding.level, finding.check) for finding in errors] == [("error", "links")]
    assert "doctor --fix" in errors[0].advice
    assert files(copied.root) == before


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_doctor_puts_the_links_back_and_the_copy_is_as_the_original(
    copied: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exchange: bool,
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    main(["doctor", "--fix", "--workspace", str(copied.root)])
    findings = json.loads(capsys.readouterr().out.splitlines()[-1])["findings"]
    assert any("put back 4 links" in finding["said"] for finding in findings)
    assert files(copied.root) == files(copied.root.with_name("original"))
    assert rollback(copied).run_id == "night-1"


def test_what_is_not_what_lies_beside_it_stays(copied: Workspace) -> None:
    for run_id, folder in (("night-1", "published"), ("night-2", "publication-0001")):
        file = copied.run(run_id).path / folder / "scores.duckdb"
        file.write_bytes(file.read_bytes()[:-1])
    before = files(copied.root)
    with copied.lock(mending=True):
        assert relink(copied) == [copied.run("night-3").published]
    assert {
        path: content for path, content in files(copied.root).items() if "night-3/published" not in path
    } == {path: content for path, content in before.items() if "night-3/published" not in path}


def test_a_pointer_alone_that_was_followed_comes_back_and_one_that_is_no_copy_stays(
    copied: Workspace,
) -> None:
    with copied.lock(mending=True):
        relink(copied)
        scores = copied.run("night-1").scores.read_bytes()
        for content, put_back in ((scores, [copied.pointer]), (b"something", [])):
            copied.pointer.unlink()
            copied.pointer.write_bytes(content)
            assert relink(copied) == put_back
    assert copied.pointer.read_bytes() == b"something"
