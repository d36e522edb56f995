"""Tests of work done ahead."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from recsys_meta.prefetch import prefetched


def workers() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_prefetching_changes_neither_what_comes_nor_its_order() -> None:
    assert list(prefetched(lambda: range(50), ahead=3)) == list(range(50))
    assert list(prefetched(lambda: [], ahead=1)) == []
    assert workers() == 0


def test_only_so_many_are_prepared_ahead() -> None:
    prepared = []
    third = threading.Event()

    def batches() -> Iterator[int]:
        for number in range(100):
            prepared.append(number)
            if number == 3:
                third.set()
            yield number

    stream = prefetched(batches, ahead=2)
    assert next(stream) == 0
    assert third.wait(10)  # one used, two waiting, one in the hand of the thread
    assert prepared == [0, 1, 2, 3]
    stream.close()
    assert workers() == 0
    assert len(prepared) <= 5


def test_the_next_batch_is_prepared_while_this_one_is_in_use() -> None:
    second = threading.Event()

    def batches() -> Iterator[int]:
        yield 0
        second.set()
        yield 1

    stream = prefetched(batches)
    assert next(stream) == 0
    assert second.wait(10)
    assert list(stream) == [1]


def test_an_error_while_drawing_is_raised_where_the_batch_was_wanted() -> None:
    def batches() -> Iterator[int]:
        yield 0
        raise ValueError("no such user")

    stream = prefetched(batches)
    assert next(stream) == 0
    with pytest.raises(ValueError, match="no such user"):
        next(stream)
    assert workers() == 0


def test_an_abandoned_stream_leaves_no_thread() -> None:
    stream = prefetched(itertools.count, ahead=1)
    next(stream)
    del stream
    assert workers() == 0
