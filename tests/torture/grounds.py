"""The grounds of the torture: a tiny world, a workspace with one good night, and what the night after it comes to undisturbed."""

import hashlib
import json
import math
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from copy import copy
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import duckdb
from file_changes import at_each_change
from torture.children import Child, Ended, Mark, answer, answered

from pipelines import nightly
from recsys_meta import cli, store

BEFORE, TONIGHT = date(2026, 1, 30), date(2026, 1, 31)

CONFIG = """
workspace: {workspace}
run_date: {run_date}
interactions:
  {{path: {ratings}, user_id: who, item_id: what, value: stars, timestamp: at, value_range: [1, 5], later: drop}}
items: {{path: {items}, id: what, categorical: [kind], multi: [tags], numbers: [price], vectors: [look]}}
learner: {{class_path: recsys_meta.algorithms.maml.MAML, init_args: {{dim: 4, num_steps: 1}}}}
training: {{max_epochs: 1, accelerator: cpu}}
cold: {{below: 6}}
adaptation: {{workers: 1, shard_size: 10}}
publish: {{vectors: true}}
top_k: 3
"""

# What readers see of a night, but for the moment it was made.
_SEEN = (
    "SELECT * EXCLUDE (generated_at) FROM scores ORDER BY ALL",
    "SELECT * FROM user_status ORDER BY ALL",
    "SELECT * FROM user_vectors ORDER BY ALL",
    "SELECT * FROM quarantine ORDER BY ALL",
    "SELECT run_id, run_date, status, model_version, data_fingerprint, counts, metrics, gates FROM runs ORDER BY ALL",
    "SELECT * FROM aliases ORDER BY ALL",
    "SELECT * FROM run_diff ORDER BY ALL",
)
_TWICE = (
    "SELECT count(*) FROM (SELECT 1 FROM scores GROUP BY user_id, item_id HAVING count(*) > 1)",
    "SELECT count(*) FROM (SELECT 1 FROM scores GROUP BY user_id, rank HAVING count(*) > 1)",
    "SELECT count(*) FROM (SELECT 1 FROM user_status GROUP BY user_id HAVING count(*) > 1)",
    "SELECT count(*) FROM (SELECT 1 FROM runs GROUP BY run_id HAVING count(*) > 1)",
)
_NOT_FINITE = (
    "SELECT count(*) FROM scores WHERE NOT isfinite(score) OR NOT isfinite(propensity)",
    "SELECT count(*) FROM user_status WHERE NOT isfinite(support_loss_before) OR NOT isfinite(support_loss_after)",
    "SELECT count(*) FROM (SELECT unnest(vector) AS number FROM user_vectors) WHERE NOT isfinite(number)",
)


class Seen(NamedTuple):
    """What readers of a workspace see."""

    digest: str | None  # None: no whole, intact night is in force
    words: str  # why
    twice: int  # rows that stand twice
    not_finite: int  # numbers that are not finite
    users: Mapping[str, int]  # sources and how many users were served from them
    published: int  # publications in the folders of runs that are in force there


class Aftermath(NamedTuple):
    """What was in force after a trial, and what the same command again came to."""

    seen: Seen
    ended: Ended
    finally_seen: Seen


class Grounds:
    """A folder for trials."""

    def __init__(self, folder: Path, seed: int, reading: float = 5.0) -> None:
        """``reading``: seconds that readers read for."""
        self.folder, self.seed, self.reading = folder, seed, reading
        self.base, self.trial = folder / "base", folder / "trial"
        self.ratings, self.items = folder / "ratings.csv", folder / "items.csv"
        folder.mkdir(parents=True, exist_ok=True)
        self.ratings.write_text(ratings())
        self.items.write_text(items())
        _must(self.night(self.base, BEFORE))
        self.before = self.good(self.base)
        self.restore()
        _must(self.night(self.trial, TONIGHT))  # compiles and fills caches: not the one to be timed
        self.restore()
        with Mark() as mark:
            began = time.monotonic()
            child = self.start(self.trial, TONIGHT, before_publish=mark.say)
            mark.hear_only()
            if not mark.heard():
                raise RuntimeError(f"the undisturbed night never published: {child.ended()}")
            self.until_publish = time.monotonic() - began
            _must(child.ended())
            self.in_publish = time.monotonic() - began - self.until_publish
        self.after = self.good(self.trial)
        self.tree = tree(self.trial)
        self.largest = max(path.lstat().st_size for path in self.trial.rglob("*"))
        self.sizes = used(self.base), used(self.trial)  # before the night and after it
        self.changes = self._changes_in_publish()

    def apart(self, name: str) -> Self:
        """The same grounds, with a place for trials that no other process uses."""
        other = copy(self)
        other.folder = self.folder / name
        other.trial = other.folder / "trial"
        other.folder.mkdir(exist_ok=True)
        return other

    def chance(self, test: str, number: int) -> random.Random:
        """The draws of one trial, whatever the others are."""
        return random.Random(f"{self.seed} {test} {number}")

    def config(self, workspace: Path, run_date: date, **paths: Path) -> Path:
        """Writes the config of a night beside the workspace."""
        given = {"workspace": workspace, "ratings": self.ratings, "items": self.items} | paths
        # As JSON: whatever a path is made of, YAML reads it back.
        texts = {name: json.dumps(str(path)) for name, path in given.items()}
        path = self.folder / f"night-{workspace.name}.yaml"
        path.write_text(CONFIG.format(run_date=run_date, **texts))
        return path

    def start(
        self,
        workspace: Path,
        run_date: date,
        *settings: str,
        verb: str = "nightly",
        first: Callable[[], object] | None = None,
        before_read: Callable[[], object] | None = None,
        before_publish: Callable[[], object] | None = None,
        **paths: Path,
    ) -> Child:
        """``recsys-meta nightly`` in a child; the callables act in it: at once, with the lock held, before publishing."""
        config = self.config(workspace, run_date, **paths)

        def act() -> int:
            if first is not None:
                first()
            _before("read", before_read)
            _before("publish", before_publish)
            return cli.main([verb, "--config", str(config), *settings])

        return Child(act)

    def night(self, workspace: Path, run_date: date, *settings: str, **options: Any) -> Ended:
        """The same, from start to end."""
        return self.start(workspace, run_date, *settings, **options).ended()

    def restore(self) -> None:
        """The trial workspace as it was before tonight."""
        shutil.rmtree(self.trial, ignore_errors=True)
        shutil.copytree(self.base, self.trial, symlinks=True)

    def good(self, workspace: Path) -> str:
        """The digest of what is in force. Raises RuntimeError where it is nothing good."""
        found = seen(workspace)
        if found.digest is None or found.twice or found.not_finite:
            raise RuntimeError(f"{workspace}: what nobody disturbed is not good: {found}")
        return found.digest

    def aftermath(self, workspace: Path) -> Aftermath:
        """What readers see, then the same command again, then what readers see: all in one child."""
        config = self.config(workspace, TONIGHT)

        def act() -> list[Any]:
            first = state(workspace)
            code = cli.main(["nightly", "--config", str(config)])
            return [first, code, state(workspace)]

        given, ended = answered(act)
        if given is None:
            died = Seen(None, f"the process died: {ended}", 0, 0, {}, 0)
            return Aftermath(died, ended, died)
        first, code, last = given
        return Aftermath(Seen(*first), ended._replace(code=code), Seen(*last))

    def _changes_in_publish(self) -> int:
        """How often an undisturbed publication changes the file system, as far as Python knows."""
        self.restore()
        with Mark() as mark:
            child = self.start(
                self.trial,
                TONIGHT,
                before_publish=lambda: at_each_change(lambda number, change: mark.say(b".")),
            )
            mark.hear_only()
            _must(child.ended())
            return len(mark.heard(0))


def seen(workspace: Path) -> Seen:
    """What readers see, in a child."""
    return Seen(*answer(lambda: state(workspace)))


def state(workspace: Path) -> Seen:
    """What readers see; for a process of its own."""
    try:
        run = store.Workspace(workspace).latest_run()
        if run is None:
            return Seen(None, "nothing is in force", 0, 0, {}, 0)
        store.verify(run)
        with closing(duckdb.connect(str(workspace / "scores.duckdb"), read_only=True)) as connection:
            digest = hashlib.sha256()
            for query in _SEEN:
                digest.update(repr(connection.execute(query).fetchall()).encode())
            twice, strange = (
                sum(int(connection.execute(query).fetchall()[0][0]) for query in queries)
                for queries in (_TWICE, _NOT_FINITE)
            )
            users = dict(
                connection.execute("SELECT source, count(*) FROM user_status GROUP BY source").fetchall()
            )
    except (store.Damaged, OSError, duckdb.Error) as error:
        return Seen(None, f"{type(error).__name__}: {error}", 0, 0, {}, 0)
    published = sum(1 for _ in run.path.glob("publication-*"))
    return Seen(digest.hexdigest(), "", twice, strange, users, published)


def tree(workspace: Path) -> Counter[str]:
    """The names of all files and links, but for what counts attempts: numbers of publications, and logs of training."""
    names = (
        path.relative_to(workspace).as_posix()
        for path in workspace.rglob("*")
        if path.is_symlink() or path.is_file()
    )
    return Counter(re.sub(r"publication-\d+", "publication", name) for name in names if "/log/" not in name)


def used(workspace: Path) -> int:
    """Bytes of disk, by whole pages, as a tmpfs counts."""
    return sum(-(-path.lstat().st_size // 4096) * 4096 + 4096 for path in workspace.rglob("*"))


def temporary(workspace: Path) -> list[str]:
    """What only an unfinished attempt may have, and an attempt that ended by itself may not."""
    return sorted(
        path.relative_to(workspace).as_posix()
        for path in workspace.rglob("*")
        if path.name.startswith(".tmp-") or path.suffix in (".wal", ".tmp", ".new")
    )


def ratings() -> str:
    """Sixty users in CSV, the last events on the day of tonight."""
    start = datetime(2026, 1, 8, tzinfo=UTC)
    lines = ["who,what,stars,at"]
    for user in range(60):
        for step in range(2 + user % 12):
            at = start + timedelta(days=step + 12 * (user % 2), hours=user % 24)
            lines.append(
                f"u{user},{(user + step * step) % 30},{1 + (user * step) % 5},{at:%Y-%m-%dT%H:%M:%SZ}"
            )
    return "\n".join(lines) + "\n"


def items() -> str:
    """Thirty items in CSV, with features of every kind."""
    lines = ["what,kind,tags,price,look"]
    for item in range(30):
        look = f"[{math.sin(item):.3f}, {math.cos(item):.3f}]"
        lines.append(f'{item},kind {item % 4},t{item % 5}|t{item % 7},{item * 1.5:.1f},"{look}"')
    return "\n".join(lines) + "\n"


def _before(step: str, act: Callable[[], object] | None) -> None:
    """Lets a step of the night be preceded by an act; only in a child, which ends soon."""
    if act is None:
        return
    original = getattr(nightly.Run, step)

    def preceded(run: nightly.Run, *arguments: Any) -> Any:
        act()
        return original(run, *arguments)

    setattr(nightly.Run, step, preceded)


def _must(ended: Ended) -> None:
    if ended.code != 0:
        raise RuntimeError(f"a night that nobody disturbs failed: {ended}")
