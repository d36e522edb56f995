"""Tests of what feeds the trainer."""

from types import SimpleNamespace

import torch

from recsys_meta.tensors import EpisodeBatch
from recsys_meta.training.data import Episodes


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
