"""The torture in the amounts of `make test`; and that it sees what it is there to see."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from file_changes import ENVIRONMENT

NOTHING = {
    "lost": 0,
    "doubled": 0,
    "half_visible": 0,
    "torn": 0,
    "reader_errors": 0,
    "tracebacks": 0,
    "undetected_flips": 0,
    "not_finite": 0,
    "leftovers": 0,
    "escaped": 0,
}


def tortured(repository: Path, *arguments: str, break_by: str = "") -> subprocess.CompletedProcess[str]:
    """The harness in a process of its own; ``break_by``: code that makes the product lie."""
    program = f"{break_by}\nimport runpy, sys\nsys.argv[0] = 'torture'\nrunpy.run_module('torture', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=repository,
        env=ENVIRONMENT | {"MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("tests", "tried"),
    [
        (("kills", "checkpoint_kills", "pairs"), 40),
        (("readers", "full_disks"), 20),
        (("flips", "mangled", "planted"), 630),
    ],
)
def test_nothing_is_lost_doubled_half_visible_torn_or_unexplained(
    repository: Path, tests: tuple[str, ...], tried: int
) -> None:
    run = tortured(repository, "--ci", "--jobs", "1", "--only", *tests)
    assert run.returncode == 0, run.stdout + run.stderr
    total = last_line(run)
    assert {verdict: total[verdict] for verdict in NOTHING} == NOTHING
    assert total["tried"] == tried
    assert [one["test"] for one in total["tests"]] == list(tests)


_NOT_AT_ONCE = """
import pathlib, time
replace = pathlib.Path.replace
def with_a_gap(self, target):
    if self.is_symlink():
        pathlib.Path(target).unlink(missing_ok=True)
        time.sleep(0.2)
    return replace(self, target)
pathlib.Path.replace = with_a_gap
"""

# What would be the end of the promise, one change each, and the verdict that tells.
LIES = {
    "the lock is given to everybody": (
        "import fcntl; fcntl.flock = lambda *_: None",
        "pairs",
        {"doubled", "lost"},
    ),
    "no file is compared with its manifest": (
        # By sys.modules: the package has a function of the same name.
        "import sys, recsys_meta.store; sys.modules['recsys_meta.store.publish'].verify_files = lambda *_: None",
        "flips",
        {"undetected_flips", "tracebacks"},
    ),
    "the old pointer is gone before the new one is there": (_NOT_AT_ONCE, "readers", {"reader_errors"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_product_that_lies_is_found_out(repository: Path, lie: str) -> None:
    break_by, test, verdicts = LIES[lie]
    run = tortured(repository, "--scale", "0.01", "--jobs", "1", "--only", test, break_by=break_by)
    assert run.returncode == 1, run.stdout + run.stderr
    total = last_line(run)
    assert sum(total[verdict] for verdict in verdicts) > 0
