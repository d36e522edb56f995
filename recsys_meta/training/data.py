"""Episodes for the trainer: batches drawn in a background thread while the current one is computed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, Protocol, TypeVar

import torch
from lightning.pytorch import LightningDataModule

from recsys_meta.prefetch import prefetched
from recsys_meta.tensors import EpisodeBatch

Batch = TypeVar("Batch")


class Sampler(Protocol):
    """Draws the episodes of an epoch; the same epoch number gives the same episodes."""

    def epoch(self, number: int) -> Iterator[EpisodeBatch]:
        """The batches of one epoch."""
        ...

    def __len__(self) -> int:
        """Batches per epoch."""
        ...


class _Loader(Generic[Batch]):
    """What a trainer wants of a loader: a length, and a fresh iterator per epoch."""

    def __init__(self, batches: Callable[[], Iterator[Batch]], length: int) -> None:
        self._batches = batches
        self._length = length

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()

    def __len__(self) -> int:
        return self._length


class Episodes(LightningDataModule):
    """Training episodes from a sampler, prefetched, and fixed validation episodes.

    Args:
        sampler: asked for ``epoch(number)`` with the number of the trainer's epoch, so that a resumed fit sees what an
            undisturbed one would have seen; what that one had seen of the epoch is drawn again and passed over.
        validation: episodes of held-out users; may be empty.
        ahead: batches prepared ahead of the one in use.
    """

    def __init__(self, sampler: Sampler, validation: Sequence[EpisodeBatch] = (), *, ahead: int = 2) -> None:
        super().__init__()
        self.sampler = sampler
        self.validation = validation
        self.ahead = ahead

    def train_dataloader(self) -> Iterable[EpisodeBatch]:
        """The episodes of the trainer's current epoch, whenever an epoch begins."""
        return _Loader(self._epoch, len(self.sampler))

    def val_dataloader(self) -> Iterable[EpisodeBatch]:
        """The fixed episodes of held-out users."""
        return _Loader(lambda: iter(self.validation), len(self.validation))

    def transfer_batch_to_device(
        self, batch: EpisodeBatch, device: torch.device, dataloader_idx: int
    ) -> EpisodeBatch:
        """The batch on the device of the learner."""
        return batch.to(device)

    def _epoch(self) -> Iterator[EpisodeBatch]:
        # A generator: where the trainer stands is read when the first batch is asked for, not when the trainer sets up.
        assert self.trainer is not None
        number = self.trainer.current_epoch
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        yield from prefetched(lambda: islice(self.sampler.epoch(number), done, None), ahead=self.ahead)
