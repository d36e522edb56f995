"""Tests of sealed checkpoints."""

import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_meta.training.checkpoints import PREVIOUS, DamagedCheckpoint, Keeper, read_sealed, write_sealed

CONTENT: dict[str, Any] = {
    "weights": torch.arange(6.0),
    "epoch": 3,
    "callbacks": {"keeper": {"fingerprint": "f"}},
}


def test_what_is_read_is_what_was_written_and_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "fit" / "last.ckpt"
    write_sealed(CONTENT, path)
    write_sealed(CONTENT | {"epoch": 4}, path)
    assert read_sealed(path)["epoch"] == 4
    assert torch.equal(read_sealed(path)["weights"], CONTENT["weights"])
    assert read_sealed(path.with_name(PREVIOUS))["epoch"] == 3
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["last.ckpt", PREVIOUS]


def test_a_full_disk_leaves_the_checkpoint_so_far_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_sealed(CONTENT, path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_sealed(CONTENT | {"epoch": 4}, path)
    assert read_sealed(path)["epoch"] == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_sealed(CONTENT, path)
    content = path.read_bytes()
    chance = torch.Generator().manual_seed(0)
    for _ in range(200):
        place = int(torch.randint(len(content), (), generator=chance))
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(torch.randint(8, (), generator=chance))
        for damaged in (bytes(flipped), content[:place]):
            path.write_bytes(damaged)
            with pytest.raises(DamagedCheckpoint):
                read_sealed(path)


class Payload:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("packed_by", ["pickle", "torch"])
def test_a_payload_under_a_good_seal_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed_by: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if packed_by == "torch":
        torch.save(Payload(), "content")
    else:
        Path("content").write_bytes(pickle.dumps(Payload(), protocol=2))
    content = Path("content").read_bytes()
    Path("last.ckpt").write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(DamagedCheckpoint):
        read_sealed(Path("last.ckpt"))
    assert not Path("executed").exists()


def test_a_missing_file_is_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"nowhere\.ckpt"):
        read_sealed(tmp_path / "nowhere.ckpt")


def test_only_a_checkpoint_of_the_same_fit_is_resumed_from(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_epochs": 3, "patience": None}
    keeper = Keeper(tmp_path, fingerprint="one", **settings)
    assert keeper.resumable() is None
    keeper.epochs = 2
    write_sealed({"callbacks": {"keeper": keeper.state_dict()}}, tmp_path / "last.ckpt")
    again = Keeper(tmp_path, fingerprint="one", **settings)
    assert again.resumable() == tmp_path / "last.ckpt"
    assert again.epochs == 2
    assert Keeper(tmp_path, fingerprint="other", **settings).resumable() is None
    write_sealed({"epoch": 3}, tmp_path / "last.ckpt")
    assert Keeper(tmp_path, fingerprint="one", **settings).resumable() == tmp_path / PREVIOUS
