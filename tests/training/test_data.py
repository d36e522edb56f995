"""Tests of what feeds the trainer."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from recsys_meta.tensors import EpisodeBatch
from recsys_meta.training.data import Episodes, prefetched


def workers() -> int:
    return sum(thread.name == "episodes" for thread in threading.enumerate())


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
    stream.close()  # type: ignore[attr-defined]
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


def test_an_abandoned_stream_leaves_no_thread(tiny: SimpleNamespace) -> None:
    stream = prefetched(lambda: tiny.Sampler().epoch(0), ahead=1)
    next(stream)
    del stream
    assert workers() == 0


def test_the_sampler_is_asked_for_the_epoch_of_the_trainer(tiny: SimpleNamespace) -> None:
    sampler = tiny.Sampler(batches=2)
    data = Episodes(sampler, tiny.validation)
    data.trainer = SimpleNamespace(current_epoch=5)  # type: ignore[assignment]
    loader = data.train_dataloader()
    assert len(loader) == 2  # type: ignore[arg-type]
    assert sampler.drawn == []
    drawn = list(loader)
    assert sampler.drawn == [5]
    for one, other in zip(drawn, tiny.Sampler(batches=2).epoch(5), strict=True):
        assert torch.equal(one.support.items, other.support.items)
    assert len(list(data.val_dataloader())) == len(tiny.validation)


def test_every_tensor_of_a_batch_moves_to_the_device(tiny: SimpleNamespace) -> None:
    episodes: EpisodeBatch = tiny.validation[0]
    moved = Episodes(tiny.Sampler()).transfer_batch_to_device(episodes, torch.device("meta"), 0)
    assert isinstance(moved, EpisodeBatch)
    assert moved.support.items.is_meta
    assert moved.users.ids.is_meta
    assert moved.catalogue.features.numbers.is_meta
