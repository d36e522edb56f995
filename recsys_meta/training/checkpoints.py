"""What a killed fit resumes from: sealed checkpoints, the best weights inside, early stopping."""

import hashlib
import io
import logging
import math
import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from recsys_meta.training.failure import FitError
from recsys_meta.training.module import MetaLearning

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
MAX_SKIPPED_SHARE = 0.01


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written."""


def write_sealed(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes sha256 and content to a file of its own, then renames; the file so far becomes ``previous.ckpt``.

    torch.load itself notices no flipped bit, hence the seal; one file, hence no moment at which seal and content differ.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getbuffer()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk: what was written of it is in the way only
        new.unlink(missing_ok=True)
        raise
    if path.exists():
        path.replace(path.with_name(PREVIOUS))
    new.replace(path)


def read_sealed(path: Path) -> dict[str, Any]:
    """The content, checked before it is unpacked, tensors on the CPU.

    Raises:
        DamagedCheckpoint: the file is not there, not what was written, or holds more than weights and numbers.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(str(error)) from error
    content = memoryview(raw)[hashlib.sha256().digest_size :]
    if hashlib.sha256(content).digest() != raw[: hashlib.sha256().digest_size]:
        raise DamagedCheckpoint(f"{path}: the content does not match its sha256")
    try:
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DamagedCheckpoint(f"{path}: {error}") from error
    return checkpoint


class SealedCheckpoints(CheckpointIO):
    """Lets Lightning read and write sealed files."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a sealed file."""
        write_sealed(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a sealed file; weights only, whatever is asked for."""
        return read_sealed(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes the file."""
        Path(path).unlink(missing_ok=True)


class Keeper(Callback):
    """Keeps the best weights, ends the fit when validation stops improving, saves at the end of each epoch and within it.

    All of it is inside the one checkpoint, so that no kill can leave parts of different moments. A checkpoint within an
    epoch is taken after a whole step: weights, optimizer and schedule after it, random numbers as the next one will find
    them. Which steps it is taken after depends on the clock, what a fit comes to does not.

    Args:
        folder: where the checkpoints go.
        fingerprint: names the fit; a checkpoint of another fit is not resumed from.
        max_epochs: the epochs wanted.
        patience: epochs without improvement after which the fit ends; None never ends it early.
        save_every: seconds after a checkpoint before the next is taken within an epoch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: str,
        max_epochs: int,
        patience: int | None,
        save_every: float = math.inf,
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.max_epochs = max_epochs
        self.patience = patience
        self.save_every = save_every
        self.saved_at = time.monotonic()
        self.epochs = 0
        self.steps = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self.best_prior_loss = math.inf
        self.best_weights: dict[str, Tensor] | None = None
        self.skipped_steps = 0
        self.finished = False

    @property
    def state_key(self) -> str:
        """The name of this part of a checkpoint."""
        return "keeper"

    def state_dict(self) -> dict[str, Any]:
        """What survives an interruption."""
        names = (
            "fingerprint",
            "epochs",
            "steps",
            "best_epoch",
            "best_loss",
            "best_prior_loss",
            "best_weights",
            "skipped_steps",
            "finished",
        )
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The state of the interrupted fit."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def resumable(self) -> Path | None:
        """The newest checkpoint of this same fit that is whole; None where a fresh start is due. Loads its state."""
        for path in (self.folder / LAST, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                state = read_sealed(path).get("callbacks", {}).get(self.state_key, {})
            except DamagedCheckpoint as error:
                log.warning("checkpoint left aside: %s", error)
                continue
            if state.get("fingerprint") != self.fingerprint:
                log.warning("checkpoint left aside: %s belongs to a fit with other arguments", path)
                continue
            self.load_state_dict(state)
            return path
        return None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The learner before any step is the first candidate: training has to beat it."""
        if trainer.sanity_checking:
            self._judge(trainer, pl_module, epoch=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where it is time to; after the last step of an epoch comes the judgement first."""
        self.steps = trainer.global_step
        if (
            batch_idx + 1 < trainer.num_training_batches
            and time.monotonic() - self.saved_at >= self.save_every
        ):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the epoch, saves, and ends the fit where it is time.

        Raises:
            FitError: more than 1 % of the steps so far had to be left out.
        """
        assert isinstance(pl_module, MetaLearning)
        if pl_module.skipped_steps > MAX_SKIPPED_SHARE * pl_module.steps:
            raise FitError(
                f"the meta-loss or its gradient was not finite in {pl_module.skipped_steps} of {pl_module.steps} steps;"
                f" at most {MAX_SKIPPED_SHARE:.0%} is allowed: lower outer_lr or the inner step size"
            )
        self.epochs, self.skipped_steps = trainer.current_epoch + 1, pl_module.skipped_steps
        self._judge(trainer, pl_module, epoch=self.epochs)
        stale = self.epochs - self.best_epoch
        self.finished = self.epochs >= self.max_epochs or (
            self.patience is not None and stale >= self.patience
        )
        trainer.should_stop = self.finished
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self.saved_at = time.monotonic()

    def _judge(self, trainer: Trainer, module: LightningModule, *, epoch: int) -> None:
        assert isinstance(module, MetaLearning)
        judged = "validation_loss" in trainer.callback_metrics
        # Without validation users the last epoch is the best.
        loss = float(trainer.callback_metrics["validation_loss"]) if judged else -epoch
        if loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, loss
            self.best_prior_loss = float(trainer.callback_metrics["prior_loss"]) if judged else math.inf
            self.best_weights = {
                name: value.detach().to("cpu", copy=True)
                for name, value in module.judged.state_dict().items()
            }
