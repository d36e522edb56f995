"""Work done ahead: a thread prepares the next batches while the present one is in use."""

from collections.abc import Callable, Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Batch = TypeVar("Batch")


def prefetched(batches: Callable[[], Iterable[Batch]], *, ahead: int = 2) -> Generator[Batch, None, None]:
    """The same batches, up to ``ahead`` of them prepared by a thread in the meantime.

    The thread starts with the first ``next`` and ends with the iterator, exhausted or closed; what it raises is raised
    here. It must not draw from torch's global generator, which belongs to the caller.
    """
    queue: Queue[tuple[Batch | None, BaseException | None]] = Queue(maxsize=ahead)
    closed = Event()

    def put(batch: Batch | None, error: BaseException | None) -> bool:
        while not closed.is_set():
            try:
                queue.put((batch, error), timeout=0.1)
            except Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in batches():
                if not put(batch, None):
                    return
            put(None, None)
        except BaseException as error:
            put(None, error)

    thread = Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = queue.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        closed.set()
        while thread.is_alive():  # a thread that waits for room in the queue gets it
            try:
                queue.get_nowait()
            except Empty:
                thread.join(timeout=0.05)
