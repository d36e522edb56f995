"""Rolling back: an earlier published run in force again, the newest one that is intact, or the one that is named."""

import logging
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from recsys_meta.store.manifest import Damaged, Manifest, led_to
from recsys_meta.store.publish import verify
from recsys_meta.store.workspace import Workspace

logger = logging.getLogger(__name__)


class NoSuchRun(Exception):
    """The run that is asked for is not published in this workspace."""

    exit_code: ClassVar[int] = 2


class RolledBack(NamedTuple):
    """What is in force now, and what was."""

    run_id: str
    model_version: str
    before: str | None  # None where nothing was in force, or the pointer led nowhere good
    skipped: Mapping[str, str]  # runs that were passed over, and what is wrong with each


def rollback(workspace: Workspace, run_id: str | None = None, *, dry_run: bool = False) -> RolledBack:
    """Puts the scores of an earlier published run in force again, every byte of them checked first.

    Args:
        run_id: the run; None: the newest intact one of those that led to the run in force: none that was itself rolled back
            from. One that is damaged is passed over. Where the pointer leads nowhere good, the newest intact one of all.
        dry_run: say what would be done, and leave the pointer.

    Raises NoSuchRun for a name that no published run has, Damaged where the named run is not intact, or none of the
    earlier ones is, and AlreadyRunning where another process holds the lock. What was in force stays then.
    """
    with workspace.lock(run_id or "rollback"):
        before = _in_force(workspace)
        skipped: dict[str, str] = {}
        published = _published(workspace, skipped)
        if run_id is not None:
            if run_id not in (*(_name(manifest) for manifest in published), *skipped):
                known = ", ".join(map(_name, published)) or "none at all"
                raise NoSuchRun(f"{workspace.root}: no published run {run_id!r}; found {known}")
            candidates, skipped = [run_id], {}
        else:
            candidates = [name for name in map(_name, led_to(before, published)) if name != before]
        for candidate in candidates:
            run = workspace.run(candidate)
            try:
                manifest = verify(run)
            except Damaged as error:
                if run_id is not None:
                    raise
                skipped[candidate] = str(error)
                logger.warning("run %s is passed over: %s", candidate, error)
                continue
            if not dry_run:
                workspace.point_at(run)
            return RolledBack(candidate, manifest.record["model_version"], before, skipped)
    stays = f"{before} stays in force" if before else "nothing is in force"
    damaged = f"; damaged: {', '.join(sorted(skipped))}" if skipped else ""
    raise Damaged(f"{workspace.root}: no intact run was published before; {stays}{damaged}")


def _in_force(workspace: Workspace) -> str | None:
    try:
        latest = workspace.latest_run()
    except Damaged as error:
        logger.warning("%s", error)
        return None
    return None if latest is None else latest.run_id


def _published(workspace: Workspace, skipped: dict[str, str]) -> list[Manifest]:
    """The manifests, newest first; runs whose manifest cannot be read go to ``skipped``."""
    found = []
    for run in workspace.runs():
        if run.published.is_symlink():
            try:
                found.append(run.manifest())
            except Damaged as error:
                skipped[run.run_id] = str(error)
                logger.warning("run %s is passed over: %s", run.run_id, error)
    return sorted(found, key=lambda manifest: manifest.sequence, reverse=True)


def _name(manifest: Manifest) -> str:
    return manifest.record["run_id"]
