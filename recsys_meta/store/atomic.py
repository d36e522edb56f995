"""Files and folders that exist whole or not at all: written under a temporary name, fsynced, then renamed.

After a kill at any moment the target is the old one or the new one; what is left over begins with
``TEMPORARY`` and is removed by ``remove_leftovers``.
"""

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def temporary_sibling(path: Path) -> Path:
    """A free temporary name beside ``path``, so that a rename to ``path`` stays on one file system."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}")


def fsync_path(path: Path) -> None:
    """Forces one file, or the entries of one folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replace_file_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; on leaving without an exception its file replaces ``path``.

    Durable on return. Raises OSError (a full disk, say) with ``path`` untouched.
    """
    temporary = temporary_sibling(path)
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Replaces the content of ``path``, durably."""
    with replace_file_atomically(path) as temporary:
        temporary.write_bytes(data)


def replace_symlink_atomically(path: Path, target: str) -> None:
    """Lets the symbolic link ``path`` lead to ``target`` (relative to the link's folder), durably."""
    temporary = temporary_sibling(path)
    temporary.symlink_to(target)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def replace_folder_by_symlink(path: Path, target: str) -> None:
    """Puts a symbolic link to ``target`` (relative to the link's folder) in the place of the folder ``path``, durably.

    The folder goes. In one step where ``replace_folder_atomically`` needs one.
    """
    temporary = temporary_sibling(path)
    temporary.symlink_to(target)
    try:
        folder = _exchanged(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)
    shutil.rmtree(folder)


@contextmanager
def replace_folder_atomically(path: Path) -> Iterator[Path]:
    """Yields a new temporary folder to fill; on leaving without an exception it replaces the folder ``path``.

    Durable on return. Where ``path`` exists the two are exchanged in one step (Linux). On a file system without
    that step (NFS) two renames do it, and a kill between them leaves no ``path``: what must never be absent
    there lies behind a symbolic link. The parent folder must exist.
    """
    temporary = temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                fsync_path(Path(folder, name))
            fsync_path(Path(folder))
        if path.exists():
            temporary = _exchanged(temporary, path)
        else:
            temporary.rename(path)
        fsync_path(path.parent)
    finally:
        if temporary.exists():  # a failed attempt, or what was replaced
            shutil.rmtree(temporary)


def remove_folder(path: Path) -> None:
    """Removes a folder such that nobody sees half of it: out of sight first."""
    temporary = temporary_sibling(path)
    path.rename(temporary)
    shutil.rmtree(temporary)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers left directly in ``folder``. Only for the one who may write there."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _exchanged(temporary: Path, path: Path) -> Path:
    """Lets ``temporary`` take the place of ``path``; where the latter lies now."""
    if _exchange(temporary, path):
        return temporary
    aside = temporary_sibling(path)
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    return aside


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where this system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return (
        renameat2 is not None
        and renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    )
