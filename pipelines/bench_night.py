"""A night's wall time by step, and how time and memory grow with its users: synthetic nights, each in a process of its own.

Run as a script with the folder of such a night it is that process. Heavy imports stand inside the functions: the process
imports them as the command line does, for start-up is a part of what is measured.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import linear_regression
from threading import Lock
from typing import ParamSpec, TypeVar

from pipelines.starting import importing, share_one_heap

# A learner without a ladder on 500 items, so that the rest of a night is a part of it that shows.
PLAIN = {
    "learner.class_path": "recsys_meta.algorithms.maml.MAML",
    "learner.init_args": "{loss: softmax, dim: 32, num_steps: 2}",
    "training.max_epochs": "2",
}
# What a night is that says nothing; trained once and briefly, for that is not what is measured.
DEFAULT = {"training.folds": "1", "training.max_epochs": "2"}

P = ParamSpec("P")
R = TypeVar("R")


def nights(sizes: Sequence[int]) -> dict[str, float]:
    """Whole nights of more and more cold users, each in a process of its own: time, memory, and what is neither
    mathematics nor files.
    """
    found = [measured_night(users, 500, PLAIN, title=f"a night of {users:,} users") for users in sizes]
    users_of, seconds = ([math.log(night[name]) for night in found] for name in ("users", "serving"))
    return {
        "night_slope": linear_regression(users_of, seconds).slope if len(found) > 1 else math.nan,
        # What scoring holds beside the tables it was given, against the whole of the smallest night.
        "memory_growth": (found[-1]["scoring MiB"] - found[0]["scoring MiB"]) / found[0]["peak MiB"],
        "overhead_share": found[-1]["overhead"] / found[-1]["wall"],
    }


def night_of_the_default(users: int, items: int) -> dict[str, float]:
    """A night of these cold users and items as the default serves it: users per second of adapting, scoring and writing."""
    title = f"the default, {users:,} users, {items:,} items"
    night = measured_night(users, items, DEFAULT, title=title)
    return {"default_users_per_second": users / night["answer or write"]}


def measured_night(users: int, items: int, settings: Mapping[str, str], *, title: str) -> dict[str, float]:
    """A whole night in a process of its own: its users, seconds and memory (MiB)."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "night"
        write_night(place, users, items=items)
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "pipelines.bench_night", str(place), json.dumps(settings)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        night: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
        night["wall"] = time.monotonic() - began
    night["serving"] = night["wall"] - night["train"]
    night["overhead"] = night["wall"] - sum(
        night[name] for name in ("read", "train", "answer or write", "publish")
    )
    print(f"{title:<40}" + "   ".join(f"{n} {x:.1f}" for n, x in night.items()))
    return {"users": users, **night}


def write_night(folder: Path, users: int, *, items: int, each: int = 5, warm: int = 500) -> None:
    """The interactions of a night: cold users with ``each``, and some warm ones, with four times as many."""
    import polars as pl
    import torch

    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    owners = torch.cat(
        [torch.arange(users).repeat_interleave(each), users + torch.arange(warm).repeat_interleave(4 * each)]
    )
    columns = {
        "user_id": owners,
        "item_id": (torch.rand(len(owners), generator=chance).square() * items).long(),
        "timestamp": 1_780_000_000 + torch.randint(10_000_000, owners.shape, generator=chance),
    }
    pl.DataFrame({name: column.numpy() for name, column in columns.items()}).write_parquet(
        folder / "events.parquet"
    )


def night(folder: Path, of_learner: Mapping[str, str]) -> None:
    """A night with these settings of what ``write_night`` has written. Prints its seconds and memory (MiB) as one JSON line."""
    share_one_heap()
    with importing():
        import torch

        from pipelines import nightly
        from pipelines.loading import load
        from pipelines.settings import NightSettings
        from recsys_meta.store import RunFolder
        from recsys_meta.training import fitting  # noqa: F401 - Lightning, here so that it does not count as training

    settings = {
        "workspace": folder / "workspace",
        "run_date": "2026-11-23",
        "interactions.path": folder / "events.parquet",
        "interactions.timestamp": "timestamp",
        "cold.below": 11,
        "top_k": 10,
        **of_learner,
    }
    loaded = load(NightSettings, [], [(name, str(value)) for name, value in settings.items()])
    torch.set_num_threads(1)
    answering, writing, either = Clock(), Clock(), Clock()  # the two run at once
    nightly.recommend = either.stream(answering.stream(nightly.recommend))  # type: ignore[attr-defined]
    RunFolder.write_part = either.call(writing.call(RunFolder.write_part))  # type: ignore[method-assign]
    RunFolder.finish_shard = either.call(writing.call(RunFolder.finish_shard))  # type: ignore[method-assign]
    summary = nightly.nightly(loaded.settings, loaded.fingerprint)
    seconds = summary["seconds"]
    print(
        json.dumps(
            {
                "read": seconds["read"],
                "train": seconds["train"],
                "answer": answering.seconds,
                "write": writing.seconds,
                "answer or write": either.seconds,
                "publish": seconds["publish"],
                "peak MiB": summary["peak_memory_mib"],
                "scoring MiB": answering.memory / 2**20,
            }
        )
    )


def held_memory(*, peak: bool = False) -> int:
    """Bytes that this process holds; or the most it held since it was last asked for what it holds (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


class Clock:
    """Counts the seconds in which any thread is inside of what it is wrapped around; of streams, notes the most bytes that
    the process held beside those at the first one's start.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.memory = 0
        self.held_before: int | None = None
        self._changing = Lock()
        self._inside = 0
        self._began = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts."""
        with self._changing:
            if self._inside == 0:
                self._began = time.monotonic()
            self._inside += 1
        yield
        with self._changing:
            self._inside -= 1
            if self._inside == 0:
                self.seconds += time.monotonic() - self._began

    def call(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, counted."""

        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.running():
                return function(*args, **kwargs)

        return counted

    def stream(self, function: Callable[P, Iterator[R]]) -> Callable[P, Iterator[R]]:
        """The same generator, counted while it makes the next value."""

        def counted(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
            values = function(*args, **kwargs)
            if self.held_before is None:
                self.held_before = held_memory()
            while True:
                with self.running():
                    value = next(values, None)
                if value is None:
                    self.memory = held_memory(peak=True) - self.held_before
                    return
                yield value

        return counted


if __name__ == "__main__":
    night(Path(sys.argv[1]), json.loads(sys.argv[2]))
