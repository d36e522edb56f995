"""Progress of a fit: a bar on a terminal, otherwise a log line every now and then."""

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

log = logging.getLogger(__name__)

BAR_INTERVAL = 0.2  # seconds between two looks at the bar


class FitProgress(Callback):
    """Epoch, steps per second, loss, time left.

    Args:
        interval: seconds between two log lines; a terminal shows a bar instead.
    """

    def __init__(self, *, interval: float = 30.0) -> None:
        self.interval = interval
        self._bar: Progress | None = None
        self._started = self._shown = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; the steps of an interrupted fit count as done, not as fast."""
        self._started = self._shown = time.monotonic()
        self._first = trainer.global_step
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.1f}/s loss {task.fields[loss]:.4f}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(
                "",
                total=_total(trainer),
                completed=self._first,
                epoch=trainer.current_epoch + 1,
                rate=0,
                loss=0,
            )
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows where the fit stands, if it is time to; reading the loss waits for the device, so not at every step."""
        now = time.monotonic()
        if now - self._shown < (BAR_INTERVAL if self._bar else self.interval):
            return
        self._shown = now
        done, total = trainer.global_step, _total(trainer)
        rate = (done - self._first) / max(now - self._started, 1e-9)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        value = float(loss) if isinstance(loss, Tensor) else float("nan")
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, epoch=trainer.current_epoch + 1, rate=rate, loss=value)
        else:
            log.info(
                "fit: epoch %d of %s, step %d of %d, %.1f steps/s, loss %.4f, %.0f s left at most",
                *(trainer.current_epoch + 1, trainer.max_epochs, done, total, rate, value),
                (total - done) / max(rate, 1e-9),
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the bar away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the bar away."""
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def _total(trainer: Trainer) -> int:
    return int(trainer.num_training_batches) * (trainer.max_epochs or 0)
