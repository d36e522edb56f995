"""Publishing: the parts of a run become one validated DuckDB file, and only then what readers see.

A publication is a folder of its own in the run's folder, complete with its manifest before it gets its name; the link
``published`` of the run and the pointer of the workspace are then replaced, one after the other, each in one step.
Killed anywhere in between, the last good scores are in force, and the same call again ends where it would have ended.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from shutil import rmtree
from string import Template
from typing import Any, ClassVar, NamedTuple

import duckdb
import polars as pl

from recsys_meta import tables
from recsys_meta.store.atomic import (
    remove_folder,
    replace_folder_atomically,
    replace_symlink_atomically,
    temporary_sibling,
)
from recsys_meta.store.manifest import (
    MANIFEST,
    Damaged,
    Manifest,
    RunRecord,
    check_record,
    file_records,
    jsonable,
    led_to,
    read_manifest,
    verify_files,
    write_manifest,
)
from recsys_meta.store.parts import (
    PUBLICATION,
    QUARANTINE,
    SCORES,
    SCORES_FILE,
    USER_STATUS,
    USER_VECTORS,
    RunFolder,
    as_declared,
)
from recsys_meta.store.reading import HeldForWriting, reading
from recsys_meta.store.workspace import Workspace

logger = logging.getLogger(__name__)

_SQL_TYPES: Mapping[pl.DataType, str] = {
    pl.Int8(): "TINYINT",
    pl.Int16(): "SMALLINT",
    pl.Int32(): "INTEGER",
    pl.Int64(): "BIGINT",
    pl.UInt8(): "UTINYINT",
    pl.UInt16(): "USMALLINT",
    pl.UInt32(): "UINTEGER",
    pl.UInt64(): "UBIGINT",
    pl.String(): "VARCHAR",
}


class PublishRefused(Exception):
    """The run did not pass the checks; ``checks`` maps the name of each failed one to the violations found."""

    exit_code: ClassVar[int] = 4

    def __init__(self, run_id: str, checks: Mapping[str, int]) -> None:
        self.checks = dict(checks)
        found = "; ".join(f"{name}: {violations}" for name, violations in checks.items())
        super().__init__(f"run {run_id} is not published, the last good scores stay: {found}")


class Published(NamedTuple):
    """What readers now see."""

    path: Path  # of the DuckDB file, in the run's folder
    rows: int  # of the table scores
    sha256: str  # of the DuckDB file


def publish(
    workspace: Workspace,
    run: RunFolder,
    *,
    run_record: RunRecord,
    quarantine: pl.DataFrame,
    requested: pl.Series,
    top_k: int,
    keep: int = 7,
    parquet: bool = False,
    compare_with_previous: bool = True,
    reasons_without_scores: Collection[str] = (),
    cold_below: int | None = None,
    aliases: Mapping[str, str] | None = None,
    memory_limit: str = "2GB",
) -> Published:
    """Publishes the parts of ``run`` and puts them in force; returns at once where just that is published already.

    Args:
        run_record: this run's row of the table ``runs``.
        quarantine: the columns of tables.QUARANTINE, ``run_id`` being optional.
        requested: the ids of the users that must have exactly one status row, in the type of the parts.
        top_k: the largest rank allowed.
        keep: published runs that stay on disk with their models, this one counted. The one in force before this one
            always stays: readers may be opening it.
        parquet: whether to write scores.parquet and user_status.parquet beside the DuckDB file.
        compare_with_previous: whether ``run_diff`` compares with the run in force before this one.
        reasons_without_scores: the reasons in ``user_status`` that excuse a user without a single row.
        cold_below: users with fewer examples appear in the view ``cold_users``; None for all users.
        aliases: names and the model versions that they stand for tonight, besides ``latest``, the model of this run.
        memory_limit: of DuckDB, which spills to the run's folder beyond it.

    Raises PublishRefused where a check fails, Damaged where a part is not what was written, AlreadyRunning where
    another process holds the lock, TypeError where ids changed their type, OSError or duckdb.Error where the
    machine fails. The last good scores stay in force in every case.
    """
    if keep < 1:
        raise ValueError(f"keep: expected 1 or more, found {keep}")
    if run_record["run_id"] != run.run_id:
        raise ValueError(f"run record of {run_record['run_id']!r} given for run {run.run_id!r}")
    check_record(run_record)
    with workspace.lock(run.run_id):
        run.clean()
        fingerprint = run.fingerprint()
        if fingerprint is None:
            raise ValueError(f"run {run.run_id}: nothing begun in {run.parts}")
        published = workspace.manifests()
        others = [manifest for manifest in published if _run_id(manifest) != run.run_id]
        previous = _in_force(workspace, run, published)
        kept = [
            manifest
            for place, manifest in enumerate(others)
            if place < keep - 1 or _run_id(manifest) == previous
        ]
        before = run.published.readlink().name if run.published.is_symlink() else None
        if not _is_published(run, fingerprint, parquet):
            number = max([0, *(_number(path) for path in run.path.glob(f"{PUBLICATION}*"))]) + 1
            folder = run.path / f"{PUBLICATION}{number:04d}"
            with replace_folder_atomically(folder) as temporary:
                rows = _build(
                    temporary,
                    run,
                    records=[run_record, *(manifest.record for manifest in kept)],
                    quarantine=quarantine,
                    requested=requested,
                    previous=workspace.run(previous) if previous and compare_with_previous else None,
                    top_k=top_k,
                    parquet=parquet,
                    reasons_without_scores=reasons_without_scores,
                    cold_below=cold_below,
                    aliases={"latest": run_record["model_version"]} | dict(aliases or {}),
                    memory_limit=memory_limit,
                )
                newest = max([0, *(manifest.sequence for manifest in others)])
                # Of a run in force whose manifest cannot be read the place is not known: it counts as the newest.
                after = (
                    next((one.sequence for one in others if _run_id(one) == previous), newest)
                    if previous
                    else 0
                )
                files = file_records(temporary)
                write_manifest(temporary, Manifest(newest + 1, fingerprint, rows, files, run_record, after))
            replace_symlink_atomically(run.published, folder.name)
        workspace.point_at(run)
        _prune(workspace, run, kept, previous, before, full=len(kept) + 1 >= keep)
        _prune_models(
            workspace,
            gone=[manifest.record for manifest in others if manifest not in kept],
            stay=[run_record, *(manifest.record for manifest in kept)],
        )
        manifest = run.manifest()
        logger.info("run %s is published: %s", run.run_id, dict(manifest.rows))
        return Published(run.scores, manifest.rows[SCORES], manifest.files[SCORES_FILE].sha256)


def verify(run: RunFolder) -> Manifest:
    """The manifest of a published run, every file of it read and found intact. Raises Damaged otherwise."""
    manifest = run.manifest()
    verify_files(run.published, manifest)
    return manifest


def read_scores(
    path: Path, user_ids: pl.Series | Sequence[Any] | None = None, *, check: bool = True
) -> pl.DataFrame:
    """The scores of a published file (or of the pointer to one), of all users or of those given, by user and rank.

    ``check`` first compares the file with its manifest, and raises Damaged where they differ. Raises TypeError where
    ``user_ids`` are of another type than the ids in the file: text is never read as a number.
    """
    path = path.resolve(strict=True)  # the pointer may move meanwhile; what it led to is read to the end
    if check:
        verify_files(path.parent, read_manifest(path.parent))
    with reading(path) as connection:
        if user_ids is None:
            rows: pl.DataFrame = connection.sql(_sql("read_scores")).pl()
        else:
            dtype = connection.sql(_sql("ids", table=SCORES)).pl().schema[tables.USER_ID]
            connection.register("wanted", _ids(user_ids, dtype).unique().to_frame(tables.USER_ID))
            rows = connection.sql(_sql("read_scores_of")).pl()
    # DuckDB names the reader's own time zone; the instants are the same.
    return rows.with_columns(pl.col("generated_at").dt.convert_time_zone("UTC"))


def runs(workspace: Workspace) -> pl.DataFrame:
    """The published runs, newest first: run_id, run_date, status, users, rows, model_version, finished_at, is_latest, and
    rolled_back: whether a rollback returns to it only where it is named. Raises Damaged where it cannot be told.
    """
    workspace.check_links()
    latest = workspace.latest_run()
    published = workspace.manifests()
    standing = led_to(None if latest is None else latest.run_id, published)
    return pl.DataFrame(
        [
            {
                **{
                    name: manifest.record[name]
                    for name in ("run_id", "run_date", "status", "model_version", "finished_at")
                },
                "users": manifest.rows[USER_STATUS],
                "rows": manifest.rows[SCORES],
                "is_latest": latest is not None and latest.run_id == manifest.record["run_id"],
                "rolled_back": manifest not in standing,
            }
            for manifest in published
        ],
        schema={
            "run_id": pl.String,
            "run_date": pl.Date,
            "status": pl.String,
            "users": pl.Int64,
            "rows": pl.Int64,
            "model_version": pl.String,
            "finished_at": tables.INSTANT,
            "is_latest": pl.Boolean,
            "rolled_back": pl.Boolean,
        },
    )


def _build(
    folder: Path,
    run: RunFolder,
    *,
    records: Sequence[RunRecord],
    quarantine: pl.DataFrame,
    requested: pl.Series,
    previous: RunFolder | None,
    top_k: int,
    parquet: bool,
    reasons_without_scores: Collection[str],
    cold_below: int | None,
    aliases: Mapping[str, str],
    memory_limit: str,
) -> dict[str, int]:
    """Checks the parts and writes them to ``folder``; returns the rows of each table."""
    for table in (SCORES, USER_STATUS, USER_VECTORS):
        run.verify_parts(table)
    user_type, item_type = _id_types(run)
    if requested.dtype != user_type or requested.null_count():
        raise TypeError(
            f"requested users: found {requested.null_count()} nulls among ids of type {requested.dtype}, "
            f"expected none and {user_type} as in the parts of {run.path}"
        )
    spill = temporary_sibling(folder)
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "temp_directory": str(spill),
    }
    path = folder / SCORES_FILE
    try:
        with closing(duckdb.connect(str(path), config=config)) as connection:
            _stage(connection, run, quarantine, requested, user_type)
            _check(connection, run.run_id, top_k, reasons_without_scores)
            connection.begin()  # one transaction: the disk is waited for once
            types = {"user_id_type": _SQL_TYPES[user_type], "item_id_type": _SQL_TYPES[item_type]}
            connection.execute(_sql("schema", **types))
            connection.execute(_sql("fill"))
            for record in records:
                connection.execute(_sql("insert_run"), _cells(record))
            for alias, version in aliases.items():
                named = {"alias": alias, "run_id": run.run_id, "model_version": version}
                connection.execute(_sql("insert_alias"), named)
            if previous is not None:
                _compare(connection, previous, types)
            connection.execute(
                _sql("views", cold_below="NULL" if cold_below is None else str(int(cold_below)))
            )
            rows = _built_rows(connection, run.run_id)
            if parquet:
                for table in (SCORES, USER_STATUS):
                    connection.execute(_sql("copy", table=table, path=_quoted(folder / f"{table}.parquet")))
            connection.commit()
            connection.execute("CHECKPOINT")
    except (duckdb.IOException, duckdb.FatalException) as error:  # a full disk, say: fatal to the file alone
        raise OSError(f"{path}: could not be written: {error}") from error
    finally:
        rmtree(spill, ignore_errors=True)
    if (log := path.with_name(f"{path.name}.wal")).exists():
        raise RuntimeError(f"{log}: the file was closed with a write-ahead log, expected a checkpointed one")
    return rows


def _stage(
    connection: duckdb.DuckDBPyConnection,
    run: RunFolder,
    quarantine: pl.DataFrame,
    requested: pl.Series,
    user_type: pl.DataType,
) -> None:
    """Makes all that goes into the file visible to SQL: ``staged_*``, the scores by user and rank, and ``requested_users``."""
    for table in (SCORES, USER_STATUS, USER_VECTORS):
        parts = [str(path) for path in run.part_files(table)]
        connection.execute(_sql("set_parts", table=table), {"parts": parts})
    connection.execute(_sql("stage"))
    if run.part_files(USER_VECTORS):
        connection.execute(_sql("stage_user_vectors"))
    else:
        none = pl.DataFrame(schema=dict(tables.USER_VECTORS) | {tables.USER_ID: user_type})
        connection.register("staged_user_vectors", none)
    if connection.sql(_sql("disorder")).fetchall() != [(0,)]:
        connection.execute(_sql("stage_in_order"))
    if "run_id" not in quarantine.columns:
        quarantine = quarantine.with_columns(run_id=pl.lit(run.run_id))
    connection.register("staged_quarantine", as_declared(QUARANTINE, quarantine))
    connection.register("requested_users", requested.unique().to_frame(tables.USER_ID))


def _check(
    connection: duckdb.DuckDBPyConnection, run_id: str, top_k: int, reasons_without_scores: Collection[str]
) -> None:
    """Raises PublishRefused with every check of checks.sql that fails."""
    connection.execute(
        _sql("checks"),
        {
            "run_id": run_id,
            "top_k": top_k,
            "sources": list(tables.SOURCES),
            "reasons_without_scores": sorted(reasons_without_scores),
        },
    )
    failed = {name: int(violations) for name, violations in connection.fetchall() if violations}
    if failed:
        raise PublishRefused(run_id, failed)


def _compare(connection: duckdb.DuckDBPyConnection, previous: RunFolder, types: Mapping[str, str]) -> None:
    """Keeps the ranks of the previous run for ``run_diff``; none where it is damaged, held for writing by another process, or its
    ids are text and these numbers, or beyond what these types hold. Integers of another width are compared by value.

    types: of the ids of this run, as schema.sql has them.
    """
    path = previous.scores.resolve()
    try:
        verify(previous)
        with reading(path):  # an ATTACH that fails would end the transaction
            pass
    except (Damaged, HeldForWriting) as error:
        logger.warning("no comparison with run %s: %s", previous.run_id, error)
        return
    connection.execute(_sql("attach_previous", path=_quoted(path)))
    there = [str(dtype) for dtype in connection.sql(_sql("ids", table=f"previous.{SCORES}")).types]
    text = _SQL_TYPES[pl.String()]
    if any((one == text) != (other == text) for one, other in zip(types.values(), there, strict=True)):
        # DuckDB would match '007' to 7.
        found = f"its ids are {' and '.join(there)}, those of this run {' and '.join(types.values())}"
        logger.warning("no comparison with run %s: %s", previous.run_id, found)
    elif (beyond := connection.sql(_sql("previous_beyond", **types)).fetchall()[0][0]) > 0:
        found = f"the ids of {beyond} of its rows do not fit {' and '.join(types.values())}"
        logger.warning("no comparison with run %s: %s", previous.run_id, found)
    else:
        connection.execute(_sql("previous"))


def _built_rows(connection: duckdb.DuckDBPyConnection, run_id: str) -> dict[str, int]:
    """The rows of each published table. Raises PublishRefused where they are not those of the parts."""
    connection.execute(_sql("built_rows"))
    counts: list[tuple[str, int, int]] = connection.fetchall()
    wrong = {f"rows of {name} lost or doubled": found - expected for name, found, expected in counts}
    if any(wrong.values()):
        raise PublishRefused(run_id, {name: rows for name, rows in wrong.items() if rows})
    return {name: found for name, found, _ in counts}


def _id_types(run: RunFolder) -> tuple[pl.DataType, pl.DataType]:
    """The types of user and item ids, the same in all parts. Raises TypeError where they differ."""
    found: dict[str, dict[pl.DataType, Path]] = {tables.USER_ID: {}, tables.ITEM_ID: {}}
    for table in (SCORES, USER_STATUS, USER_VECTORS):
        if table != USER_VECTORS:
            run.scan(table)  # says so where there is no part
        for path in run.part_files(table):
            with path.open("rb") as file:
                schema = pl.read_parquet_schema(file)
            for name in found.keys() & schema.keys():
                found[name].setdefault(schema[name], path)
    for name, types in found.items():
        if len(types) > 1:
            places = ", ".join(f"{dtype} in {path}" for dtype, path in types.items())
            raise TypeError(f"column {name}: expected one type in all parts, found {places}")
    (user_type,), (item_type,) = found[tables.USER_ID], found[tables.ITEM_ID]
    return user_type, item_type


def _in_force(workspace: Workspace, run: RunFolder, published: Sequence[Manifest]) -> str | None:
    """The run that readers saw before this one; where that is this one, the newest of the others that led to it."""
    try:
        latest = workspace.latest_run()
    except Damaged as error:
        logger.warning("the pointer is replaced: %s", error)
        latest = None
    if latest is not None and latest.run_id != run.run_id:
        return latest.run_id
    line = led_to(None if latest is None else latest.run_id, published)
    return next((name for name in map(_run_id, line) if name != run.run_id), None)


def _is_published(run: RunFolder, fingerprint: str, parquet: bool) -> bool:
    """Whether the run is published from this very fingerprint, intact, with all files wanted."""
    try:
        manifest = verify(run)
    except Damaged:
        return False
    return manifest.fingerprint == fingerprint and (not parquet or f"{SCORES}.parquet" in manifest.files)


def _prune(
    workspace: Workspace,
    run: RunFolder,
    kept: Sequence[Manifest],
    previous: str | None,
    before: str | None,
    *,
    full: bool,
) -> None:
    """Removes published runs beyond the kept ones, and publications that were replaced long ago.

    Readers may just be opening ``previous``, the run in force before, and ``before``, the publication of this run
    that was in force before. With all places ``full``, runs that were never published go as well, once they are
    older than all kept ones.
    """
    stays = {run.run_id, previous, *(_run_id(manifest) for manifest in kept)}
    dates = {
        other.run_id: (other.published / MANIFEST).stat().st_mtime
        for other in workspace.runs()
        if other.run_id in stays and (other.published / MANIFEST).exists()
    }
    for other in workspace.runs():
        if other.run_id in stays:
            in_use = {other.published.readlink().name} if other.published.is_symlink() else set()
            for publication in other.path.glob(f"{PUBLICATION}*"):
                if publication.name not in in_use and (other.run_id, publication.name) != (
                    run.run_id,
                    before,
                ):
                    remove_folder(publication)
        elif other.published.is_symlink() or (full and other.path.stat().st_mtime < min(dates.values())):
            remove_folder(other.path)


def _prune_models(workspace: Workspace, *, gone: Sequence[RunRecord], stay: Sequence[RunRecord]) -> None:
    """Removes the models that nobody but runs which are gone refers to.

    Models of trainings and evaluations that no run refers to are not of its business. Where a manifest cannot be read,
    nobody knows whom its run needs, and all stay.
    """
    if len(workspace.manifests()) < sum(run.published.is_symlink() for run in workspace.runs()):
        return
    needed = {model for record in stay for model in models_of(record)}
    for model in sorted({model for record in gone for model in models_of(record)} - needed):
        if workspace.model(model).is_dir():
            logger.info("model %s goes with the last run that referred to it", model)
            remove_folder(workspace.model(model))


def models_of(record: RunRecord) -> set[str]:
    """The models that a run needs: the one that scored it, and those that stood against each other for it."""
    judged = (
        gate.get(role)
        for gate in record["gates"]
        if gate["gate"] == "champion"
        for role in ("champion", "challenger")
    )
    return {record["model_version"], *(model for model in judged if model)}


def _ids(values: pl.Series | Sequence[Any], dtype: pl.DataType) -> pl.Series:
    """The values as ids of this type. Raises TypeError where they are of another kind."""
    if not isinstance(values, pl.Series):
        values = pl.Series(list(values), dtype=None if len(values) else dtype)
    if not tables.same_kind(values.dtype, dtype):
        raise TypeError(f"user_ids: found {values.dtype}, expected {dtype} as in the file")
    return values.cast(dtype, strict=False).drop_nulls()  # a number beyond the type is no user's id


def _cells(record: RunRecord) -> dict[str, object]:
    """A record as parameters of SQL: mappings and lists as JSON, instants in UTC."""
    cells: dict[str, object] = {}
    for name, value in record.items():
        if isinstance(value, Mapping | list | tuple):
            cells[name] = json.dumps(jsonable(value))
        else:
            cells[name] = value.astimezone(UTC) if isinstance(value, datetime) else value
    return cells


def _run_id(manifest: Manifest) -> str:
    return manifest.record["run_id"]


def _number(publication: Path) -> int:
    return int(publication.name.removeprefix(PUBLICATION))


class _Statement(Template):
    delimiter = "@"


def _sql(name: str, **values: str) -> str:
    """The SQL of a file beside this one, with what no parameter can carry (types, quoted paths) filled in."""
    text = resources.files(__package__).joinpath(f"{name}.sql").read_text("utf8")
    return _Statement(text).substitute(values)


def _quoted(path: Path) -> str:
    """A path as a literal of SQL."""
    return "'" + str(path).replace("'", "''") + "'"
