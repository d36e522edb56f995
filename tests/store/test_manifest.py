"""A manifest comes back as it was written, or says that it does not."""

import hashlib
import json
import random
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recsys_meta.store.manifest import (
    Damaged,
    Manifest,
    file_records,
    read_manifest,
    verify_files,
    write_manifest,
)


@pytest.fixture
def written(small_night: ModuleType, tmp_path: Path) -> Manifest:
    (tmp_path / "scores.duckdb").write_bytes(bytes(range(256)) * 20)
    record = small_night.record(
        "night-1", metrics={"mae": 1e-05, "rmse": 0.1}, expires_at=datetime(2027, 1, 1, tzinfo=UTC)
    )
    manifest = Manifest(3, "f", {"scores": 12}, file_records(tmp_path), record)
    write_manifest(tmp_path, manifest)
    return manifest


def test_a_manifest_comes_back_as_it_was_written(written: Manifest, tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == written
    verify_files(tmp_path, written)


def test_every_flipped_bit_is_found(written: Manifest, tmp_path: Path) -> None:
    choice = random.Random(7)
    for name in ("manifest.json", "scores.duckdb"):
        path = tmp_path / name
        data = path.read_bytes()
        for bit in choice.sample(range(8 * len(data)), 60):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(Damaged, match=name):
                verify_files(tmp_path, read_manifest(tmp_path))
        path.write_bytes(data)


def test_a_missing_or_truncated_file_is_found(written: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "scores.duckdb"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match="5119 bytes"):
        verify_files(tmp_path, written)
    path.unlink()
    with pytest.raises(Damaged, match="no file"):
        verify_files(tmp_path, written)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(Damaged, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"content": 1, "sha256": ""}', b"\xff", b"null"])
def test_anything_else_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"surprise": 1}, "unknown columns .'surprise'"),
        ({"started_at": datetime(2026, 1, 1)}, "without a time zone"),
        ({"metrics": {"mae": object()}}, "not JSON serializable"),
    ],
)
def test_a_record_that_would_not_come_back_is_refused(
    small_night: ModuleType, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        write_manifest(tmp_path, Manifest(1, "f", {}, {}, small_night.record("night-1", **change)))
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_become_null_and_instants_keep_their_moment(
    small_night: ModuleType, tmp_path: Path
) -> None:
    east = datetime(2026, 11, 22, 5, tzinfo=timezone(timedelta(hours=2)))
    record = small_night.record(
        "night-1", metrics={"mae": float("nan"), "loss": float("inf")}, started_at=east
    )
    write_manifest(tmp_path, Manifest(1, "f", {}, {}, record))
    found = read_manifest(tmp_path).record
    assert found["metrics"] == {"mae": None, "loss": None}
    assert found["started_at"] == east


def test_a_night_of_before_there_were_policies_showed_the_best(
    small_night: ModuleType, tmp_path: Path
) -> None:
    record = small_night.record("night-1")
    write_manifest(tmp_path, Manifest(1, "f", {}, {}, record))
    content = json.loads((tmp_path / "manifest.json").read_bytes())["content"]
    del content["record"]["policy"], content["record"]["gates"]
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    old = json.dumps({"content": content, "sha256": sha256}, indent=1, sort_keys=True)
    (tmp_path / "manifest.json").write_text(old)
    assert read_manifest(tmp_path).record == record | {"gates": []}
    assert record["policy"] == {"name": "deterministic"}
