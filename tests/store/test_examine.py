"""Examining a workspace: every damage is found and said with what to do, and nothing is ever changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import duckdb
import pytest

from recsys_meta.store import Finding, Workspace, examine, removable
from recsys_meta.store.manifest import MANIFEST, file_records, read_manifest, write_manifest


@pytest.fixture
def root(tmp_path: Path, small_night: ModuleType) -> Path:
    """Two nights and their model."""
    (tmp_path / "models" / "maml-1" / "bundle").mkdir(parents=True)
    versions = {"duckdb": duckdb.__version__}
    for version in (1, 2):
        record = small_night.record(f"night-{version}", versions=versions)
        small_night.night(tmp_path, f"night-{version}", version, run_record=record)
    return tmp_path


def found(root: Path, *levels: str) -> list[Finding]:
    """What is found of these levels; all but ok without any."""
    return [
        finding for finding in examine(Workspace(root)) if finding.level in (levels or ("warning", "error"))
    ]


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Every path with its time and size."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(root.rglob("*"))
    }


def rewritten(root: Path, *statements: str) -> None:
    """Changes the file in force and seals it again: what somebody else might have published."""
    folder = (root / "scores.duckdb").resolve().parent
    with duckdb.connect(str(folder / "scores.duckdb")) as connection:
        for statement in statements:
            connection.execute(statement)
    manifest = read_manifest(folder)
    (folder / MANIFEST).unlink()
    write_manifest(folder, manifest._replace(files=file_records(folder)))


def test_an_intact_workspace_is_well_and_stays_as_it_is(root: Path) -> None:
    rewritten(root, "UPDATE scores SET score = score + user_id")
    before = state(root)
    assert found(root) == []
    assert {finding.check for finding in found(root, "ok")} == {
        "pointer", "runs", "leftovers", "models", "lock", "disk", "versions", "schema", "scores",
    }  # fmt: skip
    assert state(root) == before


def test_an_empty_folder_is_well(tmp_path: Path) -> None:
    assert {finding.level for finding in examine(Workspace(tmp_path))} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without_pointer(root: Path) -> None:
    (root / "scores.duckdb").unlink()


def pointer_elsewhere(root: Path) -> None:
    (root / "scores.duckdb").unlink()
    (root / "scores.duckdb").symlink_to("elsewhere")


def never_published(root: Path) -> None:
    (root / "runs" / "night-3" / "parts" / "scores").mkdir(parents=True)
    (root / "runs" / "night-3" / "parts" / "scores" / "000000.parquet").write_bytes(b"0" * 2**21)


def leftovers(root: Path) -> None:
    (root / "runs" / "night-2" / ".tmp-abc-publication-0002").mkdir()
    for training in ("training", "training/part-2"):  # alone, or one of several
        (root / "models" / "maml-1" / training).mkdir()
        (root / "models" / "maml-1" / training / "last.new").touch()


def of_another_version(root: Path) -> None:
    rewritten(root, "ALTER TABLE user_status RENAME reason TO why")


def not_by_us(root: Path) -> None:
    folder = (root / "scores.duckdb").resolve().parent
    (folder / "scores.duckdb").write_bytes(b"no database")
    manifest = read_manifest(folder)
    (folder / MANIFEST).unlink()
    write_manifest(folder, manifest._replace(files=file_records(folder)))


def rewriting(*statements: str) -> Callable[[Path], None]:
    return lambda root: rewritten(root, *statements)


DAMAGES: tuple[tuple[Callable[[Path], object], str, str, str, str], ...] = (
    (
        lambda root: flipped((root / "runs/night-1/published").resolve() / "scores.duckdb"),
        "error",
        "runs",
        "run night-1 is damaged",
        "again",
    ),
    (
        lambda root: (root / "runs/night-1/published/manifest.json").write_text("{"),
        "error",
        "runs",
        "manifest.json",
        "again",
    ),
    (
        lambda root: flipped((root / "scores.duckdb").resolve()),
        "error",
        "pointer",
        "leads to run night-2, which is damaged",
        "rollback",
    ),
    (without_pointer, "error", "pointer", "is missing", "rollback"),
    (pointer_elsewhere, "error", "pointer", "leads to elsewhere", "rollback"),
    (
        never_published,
        "warning",
        "parts",
        "run night-3 was begun and never published, 2 MiB",
        "the same command again",
    ),
    (leftovers, "warning", "leftovers", "3 temporary files", "doctor --fix"),
    (
        lambda root: shutil.rmtree(root / "models" / "maml-1"),
        "error",
        "models",
        "model maml-1 of run night-2 is gone",
        "no champion",
    ),
    (
        lambda root: (root / "models" / "stray").mkdir(),
        "warning",
        "models",
        "1 that no published run refers to, 0 MiB: stray",
        "remove",
    ),
    (
        lambda root: ((root / ".lock").unlink(), (root / ".lock").symlink_to("x")),
        "error",
        "lock",
        "is a link",
        "remove it",
    ),
    (of_another_version, "error", "schema", "table user_status has columns", "another version"),
    (not_by_us, "error", "schema", "cannot be examined", "again"),
    (
        rewriting("UPDATE scores SET rank = rank + 1"),
        "error",
        "scores",
        "ranks of a user are not 1, 2, 3, ..: 4 times",
        "again",
    ),
    (
        rewriting("UPDATE scores SET score = rank + user_id"),
        "error",
        "scores",
        "above that of the rank before: 8 times",
        "again",
    ),
    (
        rewriting("UPDATE scores SET item_id = 20, score = score + user_id"),
        "error",
        "scores",
        "an item twice: 8 times",
        "",
    ),
    (
        rewriting("DELETE FROM user_status WHERE user_id = 1", "UPDATE scores SET score = score + user_id"),
        "error",
        "scores",
        "no status: 1 times",
        "again",
    ),
    (
        rewriting("INSERT INTO user_status FROM user_status WHERE user_id = 1"),
        "error",
        "scores",
        "more than one status",
        "",
    ),
    (
        lambda root: None,
        "warning",
        "scores",
        "each of 3 items has one score, whomever it is shown to",
        "Popularity",
    ),
    (
        rewriting("UPDATE scores SET score = user_id"),
        "warning",
        "scores",
        "each of 4 adapted users has one score",
        "training",
    ),
)


@pytest.mark.parametrize(
    ("damage", "level", "check", "said", "advice"), DAMAGES, ids=[case[3] for case in DAMAGES]
)
def test_each_damage_is_found_with_what_to_do(
    root: Path, damage: Callable[[Path], object], level: str, check: str, said: str, advice: str
) -> None:
    damage(root)
    before = state(root)
    hits = [
        one for one in found(root, level) if one.check == check and said in one.said and advice in one.advice
    ]
    assert len(hits) == 1, examine(Workspace(root))
    assert state(root) == before


def test_other_versions_are_said(tmp_path: Path, small_night: ModuleType) -> None:
    record = small_night.record("night-1", versions={"duckdb": "1.4.0", "polars": "0.1", "gone": "3"})
    small_night.night(tmp_path, "night-1", run_record=record)
    (warning,) = [finding for finding in found(tmp_path) if finding.check == "versions"]
    assert f"duckdb 1.4.0 (here {duckdb.__version__})" in warning.said
    assert "gone" not in warning.said


def test_a_disk_without_room_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "runs" / "night-1" / "ballast").write_bytes(b"0" * 2**22)
    for free, level in ((10 * 2**22, "ok"), (2 * 2**22, "warning"), (2**20, "error")):
        usage = shutil.disk_usage(root)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        (disk,) = [finding for finding in examine(Workspace(root)) if finding.check == "disk"]
        assert disk.level == level


def test_who_holds_the_lock_is_said_and_their_files_are_their_own(root: Path) -> None:
    leftovers(root)
    assert [finding.check for finding in found(root) if finding.check == "leftovers"] == ["leftovers"]
    assert {path.name for path in removable(Workspace(root))} == {".tmp-abc-publication-0002", "last.new"}
    with Workspace(root).lock("night-3"):
        findings = {finding.check: finding for finding in examine(Workspace(root))}
    assert f"process {os.getpid()}" in findings["lock"].said
    assert "run night-3" in findings["lock"].said
    assert findings["leftovers"].level == "ok"
