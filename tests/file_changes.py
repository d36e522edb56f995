"""What a process is about to change in the file system, told beforehand: for tests that end it there."""

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of scripts that import this, as pytest does.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    ),
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
CHANGES = {
    "os.rename",
    "os.symlink",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "shutil.rmtree",
}


def at_each_change(act: Callable[[int, str], None]) -> None:
    """Calls ``act`` whenever this process is about to change the file system, with 0, 1, 2, .. and what it is about to do."""
    numbers = itertools.count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and arguments[1] and set("wxa+") & set(arguments[1])):
            act(next(numbers), f"{event} {arguments}")

    sys.addaudithook(hook)
