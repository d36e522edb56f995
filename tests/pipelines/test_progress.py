"""Progress: what is passed on, and what is said where."""

import logging

from pipelines.progress import peak_memory, progress


def test_every_step_is_passed_on_and_nothing_is_held(caplog):
    pulled = []
    steps = progress((pulled.append(n) or n for n in range(3)), what="steps", total=3)
    assert next(steps) == 0
    assert pulled == [0]
    assert list(steps) == [1, 2]


def test_without_a_terminal_lines_say_how_far_it_is(caplog):
    with caplog.at_level(logging.INFO, "pipelines"):
        list(progress([1000, 500], what="users adapted", total=2000, size=int, every=0.0))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("users adapted: 1,000 of 2,000, ")
    assert second.startswith("users adapted: 1,500 of 2,000, ")
    assert second.endswith("GiB")


def test_a_short_step_says_nothing(caplog):
    with caplog.at_level(logging.INFO, "pipelines"):
        assert list(progress(range(100), what="steps", total=100, every=3600.0)) == list(range(100))
    assert caplog.records == []


def test_peak_memory_is_in_bytes():
    assert 2**24 < peak_memory() < 2**40
