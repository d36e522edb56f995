"""Files and folders are replaced whole or not at all."""

from pathlib import Path

import pytest

from recsys_meta.store import atomic


def write_half_a_file(path: Path) -> None:
    with atomic.replace_file_atomically(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise ZeroDivisionError


def write_half_a_folder(path: Path) -> None:
    with atomic.replace_folder_atomically(path) as temporary:
        (temporary / "new").touch()
        raise ZeroDivisionError


def test_a_written_file_holds_exactly_the_bytes_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for data in (b"first", b"\x00\xff second"):
        atomic.write_bytes_atomically(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_replacement_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    atomic.write_bytes_atomically(tmp_path / "file", b"old")
    with pytest.raises(ZeroDivisionError):
        write_half_a_file(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_replaced_with_all_that_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    for name in ("old", "new"):
        with atomic.replace_folder_atomically(tmp_path / "folder") as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / name).write_text(name)
    assert [path.name for path in (tmp_path / "folder" / "inner").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic.replace_folder_atomically(tmp_path / "folder") as temporary:
        (temporary / "old").touch()
    with pytest.raises(ZeroDivisionError):
        write_half_a_folder(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_where_the_second_of_two_renames_fails_the_old_folder_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    with atomic.replace_folder_atomically(folder) as temporary:
        (temporary / "old").touch()
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == folder and (self / "new").exists():
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"), atomic.replace_folder_atomically(folder) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_is_moved_in_one_step(tmp_path: Path) -> None:
    for target in ("one", "other"):
        (tmp_path / target).write_text(target)
        atomic.replace_symlink_atomically(tmp_path / "link", target)
        assert (tmp_path / "link").read_text() == target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "one", "other"]


def test_leftovers_of_killed_writers_go_and_all_else_stays(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    atomic.temporary_sibling(tmp_path / "file").touch()
    folder = atomic.temporary_sibling(tmp_path / "folder")
    folder.mkdir()
    (folder / "inner").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "inner").touch()
    atomic.temporary_sibling(tmp_path / "link").symlink_to(outside)
    atomic.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "inner", "outside"]
