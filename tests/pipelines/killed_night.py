"""Serves nights in forked processes, for a test that kills them: what a night imports is imported once.

A line of JSON each: the workspace, settings that differ from ``night.yaml``, and the change of the file system before which the
process ends without any farewell, by words that stand in it. Answers with the exit code.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from file_changes import at_each_change

from pipelines import nightly
from pipelines.loading import load
from pipelines.settings import NightSettings
from recsys_meta.training import fitting  # noqa: F401 - not once a night


def night(workspace: str, settings: list[list[str]], die_before: list[str] | None) -> None:
    """One night of ``night.yaml`` in the working directory, killed where it is told."""

    def die(number: int, change: str) -> None:
        if die_before and all(words in change for words in die_before):
            os.kill(os.getpid(), signal.SIGKILL)

    at_each_change(die)
    torch.set_num_threads(1)
    loaded = load(NightSettings, [Path("night.yaml")], [("workspace", workspace), *map(tuple, settings)])
    nightly.nightly(loaded.settings, loaded.fingerprint)


for line in sys.stdin:
    task = json.loads(line)
    if (pid := os.fork()) == 0:
        code = 70
        try:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is for the answers
            night(task["workspace"], task["settings"], task["die_before"])
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)  # at once: to take Lightning down takes a second
