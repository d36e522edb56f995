"""The manifest of a publication: its files with their sizes and sha256, and the record of the run they come from."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict

from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.store.fingerprint import sha256_of

MANIFEST = "manifest.json"

# The policy that shows the best, in order: that of every night of before there were others.
DETERMINISTIC: Mapping[str, Any] = {"name": "deterministic"}


class Damaged(Exception):
    """A published file, its manifest or the pointer to it is not what was written."""

    exit_code: ClassVar[int] = 3


class RunRecord(TypedDict):
    """One row of the table ``runs``. Instants carry their time zone."""

    run_id: str
    run_date: date
    status: str
    started_at: datetime
    finished_at: datetime
    model_version: str
    model_fingerprint: str
    config_fingerprint: str
    data_fingerprint: str
    seed: int
    versions: Mapping[str, str]
    counts: Mapping[str, int]
    metrics: Mapping[str, float | None]
    seconds: Mapping[str, float]
    gates: Sequence[Mapping[str, Any]]  # each with its figure, limit and verdict
    policy: Mapping[str, Any]  # what chose the lists from the scores: its name and settings
    expires_at: datetime | None


class FileRecord(NamedTuple):
    """What one file of a publication has to be."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What a publication consists of."""

    sequence: (
        int  # counts the publications of a workspace; the newest has the largest, whatever the clock says
    )
    fingerprint: str  # of what the run was made from
    rows: Mapping[str, int]  # table -> rows
    files: Mapping[str, FileRecord]  # name -> size and sha256
    record: RunRecord
    after: int | None = None  # sequence of the publication in force before it, 0 for none; None: not recorded


def led_to(run_id: str | None, published: Sequence[Manifest]) -> list[Manifest]:
    """The publication of this run and those that led to it, newest first: the one in force when it was published, and so on.

    What was rolled back from in between is left out. All of them where the run is not among them. published: newest first.
    """
    names = [manifest.record["run_id"] for manifest in published]
    if run_id not in names:
        return list(published)
    line: list[Manifest] = []
    for manifest in published[names.index(run_id) :]:
        if not line or manifest.sequence <= _after(line[-1]):
            line.append(manifest)
    return line


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of the publication in ``folder``.

    Raises ValueError where the record lacks a column, has an unknown one, or has an instant without time zone.
    """
    check_record(manifest.record)
    write_bytes_atomically(
        folder / MANIFEST, _dump(manifest._asdict() | {"record": jsonable(manifest.record)})
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the publication in ``folder``. Raises Damaged where it is not as it was written."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        content: dict[str, Any] = json.loads(data)["content"]
        if data != _dump(content):
            raise ValueError("the content does not match its sha256")
        record = content["record"]
        instants = {
            name: value and datetime.fromisoformat(value)
            for name, value in record.items()
            if name.endswith("_at")
        }
        return Manifest(
            content["sequence"],
            content["fingerprint"],
            content["rows"],
            {name: FileRecord(*file) for name, file in content["files"].items()},
            {"gates": [], "policy": DETERMINISTIC}
            | record
            | instants
            | {"run_date": date.fromisoformat(record["run_date"])},
            content.get("after"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: not a manifest as it was written ({error})") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Reads every file of the publication in ``folder``; raises Damaged naming all that differ."""
    found = {name: _file_record(folder / name) for name in manifest.files}
    wrong = [
        f"{folder / name}: expected {expected.bytes} bytes with sha256 {expected.sha256}, found "
        + (f"{actual.bytes} bytes with sha256 {actual.sha256}" if (actual := found[name]) else "no file")
        for name, expected in manifest.files.items()
        if found[name] != expected
    ]
    if wrong:
        raise Damaged("\n".join(wrong))


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of every file in ``folder``, by name."""
    return {
        path.name: FileRecord(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def check_record(record: RunRecord) -> None:
    """Raises ValueError where a record lacks a column, has an unknown one, or an instant without time zone.

    Raises TypeError where a cell cannot be written as JSON.
    """
    expected, found = set(RunRecord.__annotations__), set(record)
    if expected != found:
        raise ValueError(
            f"run record: missing columns {sorted(expected - found)}, unknown columns {sorted(found - expected)}"
        )
    for name, value in record.items():
        if isinstance(value, datetime) and value.tzinfo is None:
            raise ValueError(
                f"run record: {name} is {value} without a time zone, expected an instant such as UTC"
            )
    json.dumps(jsonable(record))


def jsonable(value: object) -> object:
    """The same in what JSON knows; a number that is not finite becomes null."""
    match value:
        case Mapping():
            return {str(key): jsonable(content) for key, content in value.items()}
        case list() | tuple():
            return [jsonable(content) for content in value]
        case date():
            return value.isoformat()
        case float() if not math.isfinite(value):
            return None
    return value


def _after(manifest: Manifest) -> int:
    return manifest.sequence - 1 if manifest.after is None else manifest.after


def _file_record(path: Path) -> FileRecord | None:
    return FileRecord(path.stat().st_size, sha256_of(path)) if path.is_file() else None


def _dump(content: Mapping[str, object]) -> bytes:
    """The bytes of a manifest: its content and the sha256 of that, the same bytes for the same content."""
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()
    return json.dumps({"content": content, "sha256": sha256}, indent=1, sort_keys=True).encode("ascii")
