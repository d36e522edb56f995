"""A night killed at any moment leaves the last good scores in force, and the same night again completes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from file_changes import ENVIRONMENT

from recsys_meta.store import Workspace, read_scores, verify

SCRIPT = Path(__file__).with_name("small_night.py")


def version_in_force(root: Path) -> int:
    """Which version readers see; fails where it is not one whole, intact version."""
    run = Workspace(root).latest_run()
    assert run is not None
    verify(run)
    scores = read_scores(root / "scores.duckdb")
    versions = set(scores["item_id"] // 10)
    assert scores.height == 12
    assert len(versions) == 1
    return int(versions.pop())


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(".tmp-")]


def test_kills_at_random_moments_leave_the_last_good_scores_and_readers_notice_nothing(
    nights: Any, tmp_path: Path
) -> None:
    choice = random.Random(20261123)
    began = time.monotonic()
    assert nights.run(tmp_path, "night-0", 1) == 0
    seconds = time.monotonic() - began  # of an undisturbed night on this machine
    good = 1
    kills = 0
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as reader:
        for version in range(2, 6):
            run_id = f"night-{version // 2}"  # every other night replaces the one before it
            for _ in range(5):
                [pid] = nights.start(tmp_path, run_id, version, settings={"keep": 2})
                time.sleep(choice.uniform(0.0, seconds))
                os.kill(
                    pid, signal.SIGKILL
                )  # the pid is its own until `end`, even where it was faster than this
                kills += nights.end() == [-signal.SIGKILL]
                assert version_in_force(tmp_path) in (good, version)
            assert nights.run(tmp_path, run_id, version, settings={"keep": 2}) == 0
            assert version_in_force(tmp_path) == version
            assert leftovers(tmp_path) == []
            good = version
        seen = json.loads(reader.communicate()[0])
    assert kills >= 1
    assert seen["reads"] > 0
    assert (seen["errors"], seen["torn"], seen["backwards"]) == ([], [], [])


def test_a_kill_at_any_change_of_the_file_system_leaves_the_last_good_scores_and_a_rerun_completes(
    nights: Any, small_night: ModuleType, tmp_path: Path
) -> None:
    root, settings = tmp_path / "workspace", {"keep": 2}
    for version in (1, 2):
        small_night.night(root, f"night-{version}", version, **settings)
    assert nights.run(root, "night-3", 3, settings=settings, list_changes=str(tmp_path / "changes")) == 0
    changes: list[str] = json.loads((tmp_path / "changes").read_text())
    building = next(place for place, change in enumerate(changes) if "publication-" in change)
    pruning = next(
        place for place, change in enumerate(changes) if "rmtree" in change and "night-1" in change
    )
    # Every change from the first file of the publication to the first removal of an old one, and some before and after.
    moments = [*range(0, building, 20), *range(building, pruning + 1), *range(pruning + 1, len(changes), 20)]
    good = 3
    for version, moment in enumerate(moments, start=4):
        run_id = f"night-{version}"
        assert nights.run(root, run_id, version, die_at=moment, settings=settings) == -signal.SIGKILL, (
            changes[moment]
        )
        assert version_in_force(root) in (good, version), changes[moment]
        assert nights.run(root, run_id, version, settings=settings) == 0
        assert version_in_force(root) == version
        assert leftovers(root) == []
        good = version


@pytest.mark.parametrize("size", [0, 100, 3_000, 300_000])
def test_a_full_disk_leaves_the_last_good_scores_and_nothing_else(
    nights: Any, small_night: ModuleType, tmp_path: Path, size: int
) -> None:
    small_night.night(tmp_path, "night-1", version=1)
    assert nights.run(tmp_path, "night-2", 2, file_limit=size) == 1
    assert version_in_force(tmp_path) == 1
    assert leftovers(tmp_path) == []
    assert nights.run(tmp_path, "night-2", 2) == 0
    assert version_in_force(tmp_path) == 2


def test_of_several_nights_at_once_exactly_one_publishes(nights: Any, tmp_path: Path) -> None:
    nights.start(tmp_path, "night-1", 1, times=4, linger=True)
    assert sorted(nights.end()) == [0, 75, 75, 75]
    assert version_in_force(tmp_path) == 1


def test_the_lock_ends_with_its_process_even_where_a_forked_child_lives_on(
    nights: Any, tmp_path: Path
) -> None:
    [pid] = nights.start(tmp_path, "night-1", 1, leave_a_child=str(tmp_path / "child"))
    child = tmp_path / "child"
    ends = time.monotonic() + 60
    while not child.exists() or not child.read_text():
        assert time.monotonic() < ends, "the night ended before it left a child"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert nights.end() == [-signal.SIGKILL]
    try:
        with Workspace(tmp_path).lock():
            os.kill(int(child.read_text()), 0)  # it lives
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)
