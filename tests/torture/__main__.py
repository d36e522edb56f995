"""Torture: real nights, killed, starved of disk, set against each other, fed with damage; what was lost is counted.

Prints a table and, last, one JSON object; ends with 1 where anything was lost. Failing inputs are kept in the folder
recsys-meta-torture of the temporary files, and each says how to see it again.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipelines.starting import importing

with importing():
    import pipelines.construction
    import pipelines.nightly  # noqa: F401 - before the fork
    from recsys_meta.training import fitting  # noqa: F401 - before the fork

from torture import abuse, checkpoints, damage, operations, poison
from torture.children import Child
from torture.counts import VERDICTS, Found
from torture.grounds import Grounds

_READING = 60.0  # seconds, of the full run; a twentieth of it lasts a quarter

Run = Callable[[Grounds, Sequence[int], Found], None]


class Test(NamedTuple):
    """One test of the table."""

    run: Run
    full: int  # trials of the full run; 0: all there are, always
    ci: int  # trials inside `make test`
    shared: bool = True  # whether the trials may be shared among processes


TESTS: Mapping[str, Test] = {
    "kills": Test(operations.kills, 500, 20),
    "checkpoint_kills": Test(checkpoints.checkpoint_kills, 200, 10),
    "readers": Test(operations.readers, 100, 10, shared=False),
    "full_disks": Test(operations.full_disks, 200, 10),
    "pairs": Test(operations.pairs, 200, 10),
    "flips": Test(damage.flips, 4_000, 100),
    "mangled": Test(damage.mangled, 10_000, 500),
    "planted": Test(poison.planted, 1_000, 30),
    "abuse": Test(abuse.abused, 0, 0),
}


def share(name: str, numbers: Sequence[int], grounds: Grounds) -> int:
    """The trials of one process; prints what they came to."""
    found = Found(name, grounds.seed, _amount=len(numbers))
    TESTS[name].run(grounds, numbers, found)
    print(json.dumps(found.as_row()), flush=True)
    return 0


def carried_out(name: str, numbers: Sequence[int], grounds: Grounds, jobs: int) -> Found:
    """The trials of one test, shared among processes."""
    found = Found(name, grounds.seed)
    jobs = min(jobs if TESTS[name].shared else 1, len(numbers))
    children = [
        Child(partial(share, name, numbers[job::jobs], grounds.apart(f"{name}-{job}")), aloud=True)
        for job in range(jobs)
    ]
    for child in children:
        ended = child.ended(float("inf"))
        if ended.code != 0:
            raise RuntimeError(f"{name}: the harness itself failed with {ended.code}")
        found.add(json.loads(ended.out.splitlines()[-1]))
    return found


def line(found: Found, seconds: float) -> str:
    """A row of the table."""
    details = ", ".join(f"{count:,} {what}" for what, count in found.details.items())
    again = f"{found.again:,} drawn again" if found.again else ""
    counts = f"{found.tried:>7,} {found.tried - found.failed:>9,} {found.failed:>6,} {seconds:>8.1f}"
    return f"{found.test:<16} {counts}  {'; '.join(filter(None, (again, details)))}"


def _in_memory() -> Path | None:
    """A folder in memory with a GiB to spare: a kill -9 loses nothing that was written, on a disk or there."""
    place = Path("/dev/shm")
    return place if place.is_dir() and shutil.disk_usage(place).free > 2**30 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per test and, last, one JSON object; 1 where anything is not zero."""
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full amounts")
    parser.add_argument("--ci", action="store_true", help="the amounts inside make test, instead")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=TESTS, help="these tests alone")
    parser.add_argument("--trial", type=int, help="this trial alone")
    parser.add_argument(
        "--folder",
        type=Path,
        default=_in_memory(),
        help="where trials are made (memory, where there is some)",
    )
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes beside each other"
    )
    given = parser.parse_args(arguments)
    logging.disable(logging.NOTSET)
    total = dict.fromkeys(("tried", *VERDICTS), 0)
    rows = []
    print(f"seed {given.seed}", file=sys.stderr)
    print(f"{'test':<16} {'tried':>7} {'survived':>9} {'lost':>6} {'seconds':>8}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-", dir=given.folder) as folder:
        grounds = Grounds(Path(folder), given.seed, 5.0 if given.ci else _READING * min(1.0, 5 * given.scale))
        for name in given.only or TESTS:
            test = TESTS[name]
            amount = test.ci if given.ci else max(1, round(test.full * given.scale))
            if not test.full:
                amount = abuse.amount()
            numbers = range(amount) if given.trial is None else range(given.trial, given.trial + 1)
            began = time.monotonic()
            found = carried_out(name, numbers, grounds, given.jobs)
            seconds = time.monotonic() - began
            print(line(found, seconds), flush=True)
            rows.append(found.as_row() | {"seconds": round(seconds, 1)})
            total["tried"] += found.tried
            for verdict, count in found.verdicts.items():
                total[verdict] += count
    print(json.dumps(total | {"seed": given.seed, "scale": given.scale, "tests": rows}), flush=True)
    return int(any(total[verdict] for verdict in VERDICTS))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # at once: to take Lightning down takes a second
