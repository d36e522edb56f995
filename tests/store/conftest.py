"""What the tests of the store share: the small night, and a server that runs it in processes that may be killed."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest
from file_changes import ENVIRONMENT

SCRIPT = Path(__file__).with_name("small_night.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("small_night", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_night() -> ModuleType:
    """The functions of small_night.py."""
    return _load()


class Nights:
    """Runs small nights in processes of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin: IO[str] = process.stdin
        self.stdout: IO[str] = process.stdout

    def start(self, root: Path, run_id: str, version: int, **task: Any) -> list[int]:
        """Starts one process or several; their pids."""
        self.stdin.write(json.dumps({"root": str(root), "run_id": run_id, "version": version} | task) + "\n")
        self.stdin.flush()
        pids: list[int] = json.loads(self.stdout.readline())
        return pids

    def end(self) -> list[int]:
        """Waits for the processes started last, whose pids are theirs until here; their exit codes, -9 for a killed one."""
        self.stdin.write("\n")
        self.stdin.flush()
        codes: list[int] = json.loads(self.stdout.readline())
        return codes

    def run(self, root: Path, run_id: str, version: int, **task: Any) -> int:
        """One process from start to end; its exit code."""
        self.start(root, run_id, version, **task)
        return self.end()[0]


@pytest.fixture
def nights() -> Iterator[Nights]:
    """A server of small nights, each in a process of its own; one server a test, so that a failing test fails alone."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        yield Nights(process)
        assert process.stdin is not None
        process.stdin.close()
