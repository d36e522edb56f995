"""Tables to DuckDB: runs, their parts, and the one set of scores in force."""

from recsys_meta.store.fingerprint import file_fingerprint, fingerprint
from recsys_meta.store.manifest import DETERMINISTIC, Damaged, Manifest, RunRecord
from recsys_meta.store.parts import RunFolder
from recsys_meta.store.publish import Published, PublishRefused, publish, read_scores, rollback, runs, verify
from recsys_meta.store.workspace import AlreadyRunning, Workspace

__all__ = [
    "DETERMINISTIC",
    "AlreadyRunning",
    "Damaged",
    "Manifest",
    "PublishRefused",
    "Published",
    "RunFolder",
    "RunRecord",
    "Workspace",
    "file_fingerprint",
    "fingerprint",
    "publish",
    "read_scores",
    "rollback",
    "runs",
    "verify",
]
