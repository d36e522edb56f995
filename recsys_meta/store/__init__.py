"""Tables to DuckDB: runs, their parts, and the one set of scores in force."""

from recsys_meta.store.examine import Finding, examine, removable
from recsys_meta.store.fingerprint import file_fingerprint, fingerprint
from recsys_meta.store.manifest import DETERMINISTIC, Damaged, Manifest, RunRecord
from recsys_meta.store.parts import RunFolder
from recsys_meta.store.publish import Published, PublishRefused, publish, read_scores, runs, verify
from recsys_meta.store.reading import HeldForWriting
from recsys_meta.store.relink import relink
from recsys_meta.store.rollback import NoSuchRun, RolledBack, rollback
from recsys_meta.store.workspace import AlreadyRunning, NoWorkspace, Workspace

__all__ = [
    "DETERMINISTIC",
    "AlreadyRunning",
    "Damaged",
    "Finding",
    "HeldForWriting",
    "Manifest",
    "NoSuchRun",
    "NoWorkspace",
    "PublishRefused",
    "Published",
    "RolledBack",
    "RunFolder",
    "RunRecord",
    "Workspace",
    "examine",
    "file_fingerprint",
    "fingerprint",
    "publish",
    "read_scores",
    "relink",
    "removable",
    "rollback",
    "runs",
    "verify",
]
