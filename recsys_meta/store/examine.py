"""Examining a workspace: what is published, what it leads to, what was left behind; nothing is changed."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb

from recsys_meta.store.atomic import TEMPORARY
from recsys_meta.store.manifest import Damaged, Manifest
from recsys_meta.store.parts import SCHEMAS, SCORES, USER_STATUS, RunFolder
from recsys_meta.store.publish import models_of, verify
from recsys_meta.store.reading import HeldForWriting, reading
from recsys_meta.store.workspace import Workspace

Level = Literal["ok", "warning", "error"]

_MIB = 2**20
_FIRST_NIGHT = 2**30  # bytes that should be free where no run says how large one is
_ROOM = 3  # runs that should fit beside: its parts, its file, and another to come


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: Level
    check: (
        str  # what was looked at: pointer, runs, parts, leftovers, models, lock, disk, versions, scores, ..
    )
    said: str  # what was found, and where
    advice: str = ""  # what to do about it


def examine(workspace: Workspace) -> list[Finding]:
    """Everything that can be told of a workspace from its files. Every byte of every publication is read."""
    try:
        workspace.check_links()
    except Damaged as error:  # nothing else can be told of what is published
        what, _, advice = str(error).rpartition("; ")
        return [Finding("error", "links", what, advice), _lock(workspace), _disk(workspace)]
    intact, runs = _published(workspace)
    in_force, pointer = _pointer(workspace, intact)
    return [
        pointer,
        *runs,
        *_never_published(workspace),
        *_leftovers(workspace),
        *_models(workspace, intact, in_force),
        _lock(workspace),
        _disk(workspace),
        *(_file(workspace.run(in_force), intact[in_force]) if in_force in intact else ()),
    ]


def removable(workspace: Workspace) -> list[Path]:
    """What killed writers left behind, and nobody reads: temporary files and folders."""
    root = workspace.root
    places = [
        root,
        root / "runs",
        root / "models",
        *(path for path in root.glob("models/*") if path.is_dir()),
    ]
    for run in workspace.runs():
        places += [run.path, run.parts, *(path for path in run.parts.glob("*") if path.is_dir())]
    left = [path for place in places for path in place.glob(f"{TEMPORARY}*")]
    return sorted({*left, *root.glob("models/*/training/**/*.new")})


def _published(workspace: Workspace) -> tuple[dict[str, Manifest], list[Finding]]:
    """The manifests of the intact runs, and what is wrong with the others."""
    intact: dict[str, Manifest] = {}
    findings = []
    for run in workspace.runs():
        if not run.published.is_symlink():
            continue
        try:
            intact[run.run_id] = verify(run)
        except Damaged as error:
            advice = "run that night again with the same command, which makes it anew"
            findings.append(Finding("error", "runs", f"run {run.run_id} is damaged: {error}", advice))
    names = f": {', '.join(sorted(intact))}" if intact else ""
    return intact, [Finding("ok", "runs", f"{len(intact)} published and intact{names}"), *findings]


def _pointer(workspace: Workspace, intact: Mapping[str, Manifest]) -> tuple[str | None, Finding]:
    """The run in force, and whether it can be."""
    back = f"recsys-meta rollback --workspace {workspace.root}"
    try:
        run = workspace.latest_run()
    except Damaged as error:
        return None, Finding("error", "pointer", str(error), f"{back}, or run the night again")
    if run is None:
        if intact:
            return None, Finding(
                "error", "pointer", f"{workspace.pointer} is missing, readers find nothing", back
            )
        return None, Finding("ok", "pointer", "nothing is published yet")
    if run.run_id not in intact:
        return run.run_id, Finding("error", "pointer", f"leads to run {run.run_id}, which is damaged", back)
    return run.run_id, Finding("ok", "pointer", f"leads to run {run.run_id}")


def _never_published(workspace: Workspace) -> Iterator[Finding]:
    """Runs that were begun and never came to an end."""
    for run in workspace.runs():
        if not run.published.is_symlink():
            said = (
                f"run {run.run_id} was begun and never published, {_size(run.path) // _MIB} MiB in {run.path}"
            )
            advice = (
                "the same command again goes on with it; it goes once it is older than all published runs"
            )
            yield Finding("warning", "parts", said, advice)


def _leftovers(workspace: Workspace) -> Iterator[Finding]:
    """What nobody reads."""
    left = removable(workspace)
    if left and not _held(workspace):
        some = ", ".join(str(path.relative_to(workspace.root)) for path in left[:3])
        said = f"{len(left)} temporary files of killed writers, {sum(map(_size, left)) // _MIB} MiB: {some}"
        yield Finding("warning", "leftovers", said, "the next night removes them, or doctor --fix")
    else:
        yield Finding(
            "ok", "leftovers", "a command is at work, its temporary files are its own" if left else "none"
        )


def _models(workspace: Workspace, intact: Mapping[str, Manifest], in_force: str | None) -> Iterator[Finding]:
    """Models that runs refer to and that are gone, and models that none refers to."""
    there = {path.name for path in (workspace.root / "models").glob("*") if path.is_dir()}
    there = {name for name in there if not name.startswith(".")}
    needed = {model for manifest in intact.values() for model in models_of(manifest.record)}
    scoring = {name: manifest.record["model_version"] for name, manifest in intact.items()}
    for run_id, model in scoring.items():
        if not (workspace.root / "models" / model / "bundle").is_dir():
            level: Level = "error" if run_id == in_force else "warning"
            advice = "its scores stay good; the next night has no champion and promotes what it trains"
            yield Finding(level, "models", f"model {model} of run {run_id} is gone", advice)
    strangers = sorted(there - needed)
    if strangers:
        size = sum(_size(workspace.root / "models" / name) for name in strangers)
        said = f"{len(strangers)} that no published run refers to, {size // _MIB} MiB: {', '.join(strangers[:5])}"
        advice = (
            "of evaluations, or of trainings that were cut short: remove those that neither will go on with"
        )
        yield Finding("warning", "models", said, advice)
    yield Finding("ok", "models", f"{len(there & needed)} that published runs refer to")


def _held(workspace: Workspace) -> bool:
    """Whether somebody holds the lock; asks by holding it, shared, for an instant."""
    try:
        descriptor = os.open(workspace.root / ".lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(workspace: Workspace) -> Finding:
    lock = workspace.root / ".lock"
    if lock.is_symlink():
        return Finding("error", "lock", f"{lock} is a link, expected a file of its own", "remove it")
    if _held(workspace):
        return Finding("ok", "lock", f"held: {workspace.holder()}")
    return Finding("ok", "lock", "free")


def _disk(workspace: Workspace) -> Finding:
    free = shutil.disk_usage(workspace.root).free
    largest = max([_size(run.path) for run in workspace.runs() if run.published.is_symlink()], default=0)
    wanted = _ROOM * largest or _FIRST_NIGHT
    said = (
        f"{free // _MIB:,} MiB free, a run takes {largest // _MIB:,}"
        if largest
        else f"{free // _MIB:,} MiB free"
    )
    if free >= wanted:
        return Finding("ok", "disk", said)
    level: Level = "error" if free < (largest or _FIRST_NIGHT // 8) else "warning"
    return Finding(level, "disk", said, "make room, or lower publish.keep")


def _file(run: RunFolder, manifest: Manifest) -> Iterator[Finding]:
    """The file in force: made by which versions, with which tables, and what its scores look like."""
    ours = {name: here for name in manifest.record["versions"] if (here := _installed(name))}
    other = [
        f"{name} {made} (here {ours[name]})"
        for name, made in manifest.record["versions"].items()
        if name in ours and made != ours[name]
    ]
    if other:
        said = f"run {run.run_id} was made with {', '.join(other)}"
        yield Finding(
            "warning", "versions", said, "expected after an update; the next night is made with what is here"
        )
    else:
        yield Finding("ok", "versions", f"run {run.run_id} was made with what is installed here")
    try:
        with reading(run.scores) as connection:
            yield _schema(connection)
            yield from _scores(connection)
    except HeldForWriting as error:
        said = f"the file of run {run.run_id} cannot be read: {error}"
        advice = "close what holds it for writing; readers open it read-only (duckdb -readonly)"
        yield Finding("error", "schema", said, advice)
    except duckdb.Error as error:
        said = f"the file of run {run.run_id} cannot be examined: {str(error).splitlines()[0]}"
        yield Finding("error", "schema", said, "it is not one that this version writes; run the night again")


def _schema(connection: duckdb.DuckDBPyConnection) -> Finding:
    """Whether the published tables have the columns that readers are promised."""
    for table in (SCORES, USER_STATUS):
        expected = list(SCHEMAS[table])
        found = connection.sql(f"FROM {table} LIMIT 0").columns
        if found != expected:
            said = f"table {table} has columns {', '.join(found)}; expected {', '.join(expected)}"
            return Finding("error", "schema", said, "made by another version: run the night again")
    return Finding("ok", "schema", "tables and columns are those of this version")


def _scores(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Whether the scores are what they claim to be: sound, and different from user to user."""
    broken = [(name, int(n)) for name, n in connection.sql(_sql("examine_scores")).fetchall() if n]
    for name, violations in broken:
        yield Finding("error", "scores", f"{name}: {violations:,} times", "run the night again")
    shared, same, users, flat = connection.sql(_sql("examine_sameness")).fetchall()[0]
    suspects = []
    if shared and same == shared:
        suspects.append(f"each of {shared:,} items has one score, whomever it is shown to")
    if users and flat == users:
        suspects.append(f"each of {users:,} adapted users has one score for all items")
    for said in suspects:
        advice = "right for a learner that adapts to nobody, such as Popularity; of any other, look at its training"
        yield Finding("warning", "scores", said, advice)
    if not broken and not suspects:
        yield Finding("ok", "scores", "finite, ranked, each item once a user, and not the same for everybody")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_file() or path.is_symlink():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath(f"{name}.sql").read_text("utf8")
