"""A quick start of a process, and a heap for all of its threads."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_M_ARENA_MAX = -8  # as in glibc's malloc.h


def share_one_heap() -> None:
    """Lets all threads take memory from one heap (glibc; elsewhere nothing happens). To be called before there are any.

    Heaps of their own keep what they once needed: over a night of a million users 200 MiB that nobody uses.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextmanager
def importing() -> Iterator[None]:
    """Imports inside are not searched for garbage.

    Torch and Lightning make 600,000 objects that stay: to look through them again and again is a third of the time of
    their import.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
