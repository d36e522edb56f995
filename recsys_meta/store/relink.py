"""Links that a copy of the workspace has followed, put back where what stands in their place lies beside it, byte for byte."""

from pathlib import Path

from recsys_meta.store.atomic import replace_folder_by_symlink
from recsys_meta.store.fingerprint import sha256_of
from recsys_meta.store.manifest import MANIFEST, Damaged, read_manifest, verify_files
from recsys_meta.store.parts import PUBLICATION, SCORES_FILE, RunFolder
from recsys_meta.store.workspace import Workspace


def relink(workspace: Workspace) -> list[Path]:
    """Puts the links to publications back, and the pointer; gives their places. For the holder of the lock.

    A folder that is not what a publication beside it is stays, and so does a pointer that is no copy of published scores.
    """
    put_back = []
    for folder in workspace.followed():
        twin = next(
            (path for path in sorted(folder.parent.glob(f"{PUBLICATION}*")) if _same(folder, path)), None
        )
        if twin is not None:
            replace_folder_by_symlink(folder, twin.name)
            put_back.append(folder)
    run = _copied(workspace)
    if run is not None:
        workspace.point_at(run)
        put_back.append(workspace.pointer)
    return put_back


def _same(one: Path, other: Path) -> bool:
    """Whether two folders are one publication, every byte of both as its manifest says."""
    try:
        manifest = read_manifest(one)
        verify_files(one, manifest)
        verify_files(other, manifest)
    except Damaged:
        return False
    return (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()


def _copied(workspace: Workspace) -> RunFolder | None:
    """The run whose scores stand where the pointer should."""
    if workspace.pointer.is_symlink() or not workspace.pointer.is_file():
        return None
    sha256 = sha256_of(workspace.pointer)
    copied = (one for one in workspace.manifests() if one.files[SCORES_FILE].sha256 == sha256)
    run = next((workspace.run(manifest.record["run_id"]) for manifest in copied), None)
    return run if run is not None and run.scores.is_file() else None
