"""A night of a handful of users, written in shards and published; run as a script it serves such nights in processes
that may be killed at any moment, or at the n-th change they make to the file system."""

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from file_changes import at_each_change

from recsys_meta import store, tables

NOW = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)
TOP_K = 3
NOTHING_QUARANTINED = pl.DataFrame(schema=dict(tables.QUARANTINE))


def record(run_id: str, **columns: Any) -> store.RunRecord:
    """The row of a run in the table ``runs``."""
    defaults: store.RunRecord = {
        "run_id": run_id,
        "run_date": date(2026, 11, 22),
        "status": "published",
        "started_at": NOW,
        "finished_at": NOW,
        "model_version": "maml-1",
        "model_fingerprint": "aa",
        "config_fingerprint": "bb",
        "data_fingerprint": "cc",
        "seed": 7,
        "versions": {"polars": "2.1"},
        "counts": {"users": 4},
        "metrics": {"mae": 0.75},
        "seconds": {"adapt": 1.5},
        "gates": [{"gate": "rows", "figure": 0.0, "verdict": "passed"}],
        "policy": store.DETERMINISTIC,
        "expires_at": None,
    }
    return defaults | columns  # type: ignore[return-value]


def scores(run_id: str, users: Sequence[Any], items: Sequence[Any], top_score: float = 1.0) -> pl.DataFrame:
    """Every user is shown the items in this order; the scores fall from ``top_score`` by halves."""
    rows = [
        {"user_id": user, "item_id": item, "rank": rank, "score": top_score / 2**rank}
        for user in users
        for rank, item in enumerate(items, start=1)
    ]
    ids = {"user_id": pl.Series(users).dtype, "item_id": pl.Series(items).dtype}
    return pl.DataFrame(rows, schema=ids | {"rank": pl.Int32, "score": pl.Float32}).with_columns(
        run_id=pl.lit(run_id),
        propensity=pl.lit(1.0),
        source=pl.lit(tables.ADAPTED),
        n_support=pl.lit(4, pl.Int32),
        model_version=pl.lit("maml-1"),
        generated_at=pl.lit(NOW, tables.INSTANT),
    )


def status(users: Sequence[Any]) -> pl.DataFrame:
    """Every user was adapted."""
    return pl.DataFrame({"user_id": users}).with_columns(
        source=pl.lit(tables.ADAPTED),
        n_support=pl.lit(4, pl.Int32),
        support_loss_before=pl.lit(1.0, pl.Float32),
        support_loss_after=pl.lit(0.5, pl.Float32),
        reason=pl.lit(None, pl.String),
    )


def write(
    run: store.RunFolder, shards: Sequence[Sequence[Any]], items: Sequence[Any], fingerprint: str = "f"
) -> None:
    """Writes the parts of a night, one shard per group of users, skipping what is finished."""
    run.begin(fingerprint)
    for number, users in enumerate(shards):
        if not run.finished(number):
            run.write_part("scores", number, scores(run.run_id, users, items))
            run.write_part("user_status", number, status(users))
            run.finish_shard(number, {"users": len(users)})


def publish(
    workspace: store.Workspace, run: store.RunFolder, users: Sequence[Any], **settings: Any
) -> store.Published:
    """Publishes with settings that suit this night."""
    defaults: Mapping[str, Any] = {
        "run_record": record(run.run_id),
        "quarantine": NOTHING_QUARANTINED,
        "requested": pl.Series(users),
        "top_k": TOP_K,
    }
    return store.publish(workspace, run, **(defaults | settings))


def night(root: Path, run_id: str, version: int = 1, **settings: Any) -> store.Published:
    """One whole night over four users in two shards; the items shown say which version it is."""
    workspace = store.Workspace(root)
    with workspace.lock(run_id):
        run = workspace.run(run_id)
        write(
            run,
            [[1, 2], [3, 4]],
            [10 * version, 10 * version + 1, 10 * version + 2],
            fingerprint=f"v{version}",
        )
        return publish(workspace, run, [1, 2, 3, 4], **settings)


def _die(number: int, change: str, *, at: int) -> None:
    """Ends this process without any farewell."""
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)


def _limit_files_to(size: int) -> None:
    """Lets every write beyond this many bytes of a file fail, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _in_child(task: Mapping[str, Any], others_ended: int) -> int:
    """One night as the task says; the exit code of its process."""
    workspace = store.Workspace(Path(task["root"]))
    if task.get("die_at") is not None:
        at_each_change(partial(_die, at=task["die_at"]))
    changes: list[str] = []
    if task.get("list_changes"):
        at_each_change(lambda number, change: changes.append(change))
    if task.get("file_limit") is not None:
        _limit_files_to(task["file_limit"])
    try:
        with workspace.lock(task["run_id"]):
            if task.get("linger"):  # holds the lock until all others have ended
                select.select([others_ended], [], [], 30)
            if task.get("leave_a_child"):
                if (child := os.fork()) == 0:
                    time.sleep(600)
                    os._exit(0)
                Path(task["leave_a_child"]).write_text(str(child))
                time.sleep(600)
        night(workspace.root, task["run_id"], task["version"], **task.get("settings", {}))
    except store.AlreadyRunning as error:
        return error.exit_code
    except (OSError, duckdb.Error):
        return 1
    if task.get("list_changes"):
        Path(task["list_changes"]).write_text(json.dumps(changes))
    return 0


def _serve() -> None:
    """Reads tasks from stdin, a line of JSON each; forks ``times`` processes and prints their pids, and, once the next line
    asks for them, their exit codes. Until then no process is waited for: its pid remains its own, even when it has ended."""
    for line in sys.stdin:
        task = json.loads(line)
        others_ended, ending = os.pipe()
        pids = []
        for _ in range(task.get("times", 1)):
            if (pid := os.fork()) == 0:
                os.close(ending)
                code = 70
                try:
                    code = _in_child(task, others_ended)
                finally:
                    os._exit(code)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        sys.stdin.readline()
        codes = []
        for place in range(len(pids)):
            if place == len(pids) - 1:
                os.close(ending)
            codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
        os.close(others_ended)
        print(json.dumps(codes), flush=True)


def _read(root: Path) -> None:
    """Reads the scores in force again and again until stdin closes; prints what it saw as one line of JSON."""
    seen = {"reads": 0, "errors": [], "torn": [], "backwards": []}
    newest = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            with duckdb.connect(str(root / "scores.duckdb"), read_only=True) as connection:
                connection.execute(
                    "SELECT count(*), count(DISTINCT run_id), min(item_id) // 10, max(item_id) // 10,"
                    " (SELECT count(*) FROM user_status), (SELECT count(*) FROM latest_user_lists) FROM scores"
                )
                found = connection.fetchall()[0]
        except Exception as error:
            seen["errors"].append(repr(error))
            continue
        seen["reads"] += 1
        if found != (12, 1, found[2], found[2], 4, 4):
            seen["torn"].append(found)
        if found[2] < newest:
            seen["backwards"].append(found)
        newest = max(newest, found[2])
        time.sleep(0.02)
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _read(Path(sys.argv[1]))
    else:
        _serve()
