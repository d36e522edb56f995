"""The workspace: one folder with all runs and models, a pointer to the scores in force, and a lock for the one who writes."""

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from recsys_meta.store.atomic import remove_leftovers, replace_symlink_atomically
from recsys_meta.store.manifest import Damaged, Manifest, RunRecord, led_to
from recsys_meta.store.parts import PUBLISHED, SCORES_FILE, RunFolder

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NO_FOLDER = {
    errno.EACCES,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
_held: set[int] = set()


def _let_go() -> None:
    """In a forked child: the lock is the parent's alone and must end with it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class AlreadyRunning(Exception):
    """Another process holds the workspace's lock."""

    exit_code: ClassVar[int] = 75


class NoWorkspace(ValueError):
    """The path of a workspace names no folder that can be written to."""

    exit_code: ClassVar[int] = 2


class Workspace:
    """``root/runs/<run_id>/``, ``root/models/<model_version>/``, and ``root/scores.duckdb``: the scores in force.

    Nothing is created before the lock is taken. Raises NoWorkspace for a root that DuckDB cannot address.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        if "?" in str(self.root):
            raise NoWorkspace(
                f"workspace {self.root}: DuckDB reads what follows a '?' as options, choose another name"
            )
        if "\0" in str(self.root):
            raise NoWorkspace(f"workspace {str(self.root)!r}: holds a zero byte, expected a path")
        self.pointer = self.root / SCORES_FILE
        self._descriptor: int | None = None

    @contextmanager
    def lock(self, run_id: str = "", *, mending: bool = False) -> Iterator[None]:
        """Holds the workspace for writing until the block or the process ends, however it ends.

        Whoever holds it may take it again through the same object. Raises AlreadyRunning at once where
        another holds it, NoWorkspace where there can be no such folder, Damaged where the lock is a link: what it
        leads to would be written over; and where links have become folders, unless it is for ``mending``
        these: what is published would count as never published.
        """
        if self._descriptor is not None:
            yield
            return
        try:
            for folder in (self.root, self.root / "runs", self.root / "models"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
            raise NoWorkspace(
                f"workspace {self.root}: expected a folder that can be written to ({error})"
            ) from error
        if (self.root / ".lock").is_symlink():
            raise Damaged(f"{self.root / '.lock'}: is a link, expected a file of its own; remove it")
        if not mending:
            self.check_links()
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise AlreadyRunning(f"{self.root}: {holder} holds the lock") from None
        _held.add(descriptor)
        self._descriptor = descriptor
        try:
            who = {
                "pid": os.getpid(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "run_id": run_id,
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(who).encode(), 0)
            # Whoever holds the lock is the only one to write: what is half written, a model or a run, is of one who was killed.
            remove_leftovers(self.root)
            for folder in _folders(self.root):
                remove_leftovers(folder)
                for inner in _folders(folder):
                    remove_leftovers(inner)
            yield
        finally:
            self._descriptor = None
            if descriptor in _held:  # not in a forked child
                _held.remove(descriptor)
                os.close(descriptor)

    def holder(self) -> str:
        """Who has taken the lock last, in words."""
        try:
            return _holder((self.root / ".lock").read_bytes()[:4096])
        except OSError:
            return "nobody"

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run, existing or not. Raises ValueError for a name that is not plain.

        For the holder of the lock, what killed writers left in it is removed.
        """
        folder = RunFolder(self.root / "runs" / _plain("run_id", run_id))
        if self._descriptor is not None:
            folder.clean()
        return folder

    def model(self, model_version: str) -> Path:
        """The folder of a model's bundle, existing or not. Raises ValueError for a name that is not plain."""
        return self.root / "models" / _plain("model_version", model_version)

    def latest(self) -> Path | None:
        """The published file in force; None before the first publication. Raises Damaged where it is gone."""
        run = self.latest_run()
        return run.scores if run else None

    def latest_run(self) -> RunFolder | None:
        """The run whose scores are in force; None before the first publication.

        Raises Damaged where the pointer leads to anything but the scores of a run in this workspace.
        """
        if not self.pointer.is_symlink():
            if self.pointer.exists():
                raise Damaged(f"{self.pointer}: expected a link to the scores of a run, found something else")
            return None
        target = self.pointer.readlink()
        match target.parts:
            case ("runs", run_id, folder, file) if (folder, file) == (
                PUBLISHED,
                SCORES_FILE,
            ) and _NAME.fullmatch(run_id):
                run = RunFolder(self.root / "runs" / run_id)
                if run.scores.is_file():
                    return run
        raise Damaged(
            f"{self.pointer}: leads to {target}, where there are no scores of a run in this workspace"
        )

    def point_at(self, run: RunFolder) -> None:
        """Puts the published scores of ``run`` in force. For the holder of the lock."""
        replace_symlink_atomically(self.pointer, str(run.scores.relative_to(self.root)))

    def runs(self) -> list[RunFolder]:
        """All runs, published or not, by name."""
        return [
            RunFolder(path)
            for path in sorted((self.root / "runs").glob("*"))
            if path.is_dir() and not path.is_symlink() and _NAME.fullmatch(path.name)
        ]

    def followed(self) -> list[Path]:
        """The folders in the place of a link to a publication: a copy of the workspace that followed links has left them."""
        folders = (run.published for run in self.runs())
        return [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]

    def check_links(self) -> None:
        """Raises Damaged where a folder stands in the place of a link."""
        if folders := self.followed():
            raise Damaged(
                f"{folders[0]}: found a folder, expected a link to a publication beside it ({len(folders)} such): the workspace"
                f" was copied with its links followed; recsys-meta doctor --fix --workspace {self.root} puts back those that"
                " are whole, or copy it again with cp -a"
            )

    def manifests(self) -> list[Manifest]:
        """The manifests of the published runs, newest first. One that is damaged is left out, and said."""
        manifests = []
        for run in self.runs():
            if run.published.is_symlink():
                try:
                    manifests.append(run.manifest())
                except Damaged as error:
                    logger.warning("run %s is left out: %s", run.run_id, error)
        return sorted(manifests, key=lambda manifest: manifest.sequence, reverse=True)

    def standing(self) -> list[Manifest]:
        """The manifest of the run in force and of those that led to it, newest first: none that was rolled back from.

        All of them where nothing good is in force.
        """
        try:
            latest = self.latest_run()
        except Damaged as error:
            logger.warning("%s", error)
            latest = None
        return led_to(None if latest is None else latest.run_id, self.manifests())

    def published(self) -> list[RunRecord]:
        """The records of the published runs, newest first."""
        return [manifest.record for manifest in self.manifests()]


def _plain(what: str, name: str) -> str:
    """A name that is one folder's name on every system and never leads elsewhere."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: expected 1 to 200 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return name


def _holder(content: bytes) -> str:
    """Who wrote the lock file."""
    try:
        who = json.loads(content)
        run = f", run {who['run_id']}" if who["run_id"] else ""
        return f"process {who['pid']} (since {who['since']}{run})"
    except (ValueError, KeyError, TypeError):  # read while it was being written
        return "another process"


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder; what a link leads to lies elsewhere."""
    return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
