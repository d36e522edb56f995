"""Tests of what feeds the trainer."""

from types import SimpleNamespace
from typing import Any

import torch

from recsys_meta.tensors import EpisodeBatch
from recsys_meta.training.data import Episodes


def trainer_at(epoch: int, batch: int) -> Any:
    """What is read of a trainer."""
    progress = SimpleNamespace(current=SimpleNamespace(completed=batch))
    epoch_loop = SimpleNamespace(batch_progress=progress)
    return SimpleNamespace(current_epoch=epoch, fit_loop=SimpleNamespace(epoch_loop=epoch_loop))


def test_what_was_seen_of_an_epoch_is_passed_over(tiny: SimpleNamespace) -> None:
    data = Episodes(tiny.Sampler(batches=4))
    data.trainer = trainer_at(3, 2)
    whole = list(tiny.Sampler(batches=4).epoch(3))
    for one, other in zip(data.train_dataloader(), whole[2:], strict=True):
        assert torch.equal(one.support.items, other.support.items)


def test_the_sampler_is_asked_for_the_epoch_of_the_trainer(tiny: SimpleNamespace) -> None:
    sampler = tiny.Sampler(batches=2)
    data = Episodes(sampler, tiny.validation)
    data.trainer = trainer_at(5, 0)
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
