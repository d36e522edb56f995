"""What a step costs: seconds on the clock, seconds of all processors, and the most memory held meanwhile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.progress import peak_memory


@dataclass
class Cost:
    """Filled in when the step ends."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: int = 0


@contextmanager
def cost() -> Iterator[Cost]:
    """Measures the block, and nothing of what ran before it.

    The peak is that of the whole process; where it cannot be set back (outside Linux) that of the process so far.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    spent = Cost()
    began, cpu_began = time.monotonic(), time.process_time()
    yield spent
    spent.seconds = round(time.monotonic() - began, 2)
    spent.cpu_seconds = round(time.process_time() - cpu_began, 2)
    spent.peak_mib = peak_memory() // 2**20
