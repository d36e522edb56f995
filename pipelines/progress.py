"""Progress of a long step: a bar on a terminal, otherwise a log line every few seconds with rate, time left and memory."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

logger = logging.getLogger(__name__)

T = TypeVar("T")


def progress(
    steps: Iterable[T],
    *,
    what: str,
    total: int,
    size: Callable[[T], int] = lambda step: 1,
    every: float = 10.0,
) -> Iterator[T]:
    """Passes the steps on, and says how far they are.

    Args:
        steps: what is done, piece by piece.
        what: the name of it, e.g. "users adapted".
        total: the sum of the sizes of all steps.
        size: how much of the total a step is.
        every: seconds between two log lines, where there is no terminal.
    """
    done, start = 0, time.monotonic()
    if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            for step in steps:
                yield step
                bar.advance(task, size(step))
        return
    said = start
    for step in steps:
        yield step
        done += size(step)
        now = time.monotonic()
        if now - said >= every and done:
            said, rate = now, done / (now - start)
            logger.info(
                "%s: %s of %s, %s/s, %.0f s left, peak memory %.2f GiB",
                *(
                    what,
                    f"{done:,}",
                    f"{total:,}",
                    f"{rate:,.0f}",
                    max(total - done, 0) / rate,
                    peak_memory() / 2**30,
                ),
            )


def peak_memory() -> int:
    """The most memory that this process held so far, in bytes."""
    try:  # what the system counts as a process's peak begins with that of the process that started it
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
