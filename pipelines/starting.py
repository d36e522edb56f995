"""A quick start of a process."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
