"""Meta-training of one learner: resumable, repeatable, stopped by held-out users."""

import hashlib
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils._pytree import tree_leaves

from recsys_meta.algorithms.base import Learner
from recsys_meta.tensors import EpisodeBatch
from recsys_meta.training.checkpoints import Keeper, SealedCheckpoints
from recsys_meta.training.data import Episodes, Sampler
from recsys_meta.training.failure import FitError
from recsys_meta.training.module import MetaLearning, Schedule
from recsys_meta.training.progress import FitProgress

log = logging.getLogger(__name__)


class FitReport(NamedTuple):
    """What a fit came to."""

    epochs: int  # done in all, those before an interruption included
    best_epoch: int  # whose weights the learner has now; 0: those it came with
    best_validation_loss: float | None  # after adaptation; None without validation users
    prior_validation_loss: float | None  # of the same weights, before adaptation
    seconds: float  # of this call
    resumed_from: int | None  # epochs that an interrupted fit had done
    resumed_step: int | None  # and its steps, those of the epoch that it was in the middle of included
    skipped_steps: int  # left out because the meta-loss or its gradient was not finite


def fit(
    learner: Learner,
    sampler: Sampler,
    validation: Sequence[EpisodeBatch],
    *,
    folder: Path,
    max_epochs: int,
    outer_lr: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: Schedule = "one_cycle",
    patience: int | None = 5,
    seed: int = 0,
    accelerator: str = "auto",
    gradient_clip: float | None = 1.0,
    average: float | None = None,
    resume: bool = True,
    fingerprint: str = "",
    progress_interval: float = 30.0,
    save_every: float = 60.0,
) -> FitReport:
    """Fits the learner in place and leaves the best weights in it, on the CPU, in evaluation mode.

    The same arguments give the same weights, interrupted or not. A learner that is not meta-trained, or ``max_epochs=0``,
    comes back as it was. The weights it came with are the first candidate: without improvement they stay.

    Args:
        learner: with its statistics already fitted.
        sampler: training episodes.
        validation: episodes of held-out users; without any, nothing stops early and the last weights are the best.
        folder: checkpoints (``last.ckpt``, ``previous.ckpt``) and the log (``log/version_N/metrics.csv``).
        max_epochs: at most so many passes of ``sampler``.
        outer_lr, weight_decay, schedule, average: see ``MetaLearning``.
        patience: epochs without a better validation loss after which the fit ends; None: never.
        seed: of dropout and other draws of the learner; the sampler has a seed of its own.
        accelerator: as Lightning calls them: "auto", "cpu", "gpu".
        gradient_clip: largest norm of the meta-gradient; None: unclipped.
        resume: go on from the checkpoints in ``folder``, where they belong to a fit with these arguments, this
            validation set and this state of the learner.
        fingerprint: names what the arguments do not show, such as the training data.
        progress_interval: seconds between two log lines where there is no terminal.
        save_every: seconds after which a checkpoint is taken within an epoch, besides that at its end; math.inf: never.

    Raises:
        FitError: there are no training episodes, too many steps were not finite, or no validation loss was.
    """
    started = time.monotonic()
    if (
        max_epochs == 0
        or not learner.meta_trained
        or not any(weight.requires_grad for weight in learner.parameters())
    ):
        learner.eval()
        return FitReport(0, 0, None, None, time.monotonic() - started, None, None, 0)

    if not len(sampler):
        raise FitError("there are no training episodes")
    settings = (
        max_epochs,
        outer_lr,
        weight_decay,
        schedule,
        patience,
        seed,
        gradient_clip,
        average,
        len(sampler),
    )
    keeper = Keeper(
        folder,
        fingerprint=_fingerprint(learner, validation, (fingerprint, *settings)),
        max_epochs=max_epochs,
        patience=patience,
        save_every=save_every,
    )
    checkpoint = keeper.resumable() if resume else None
    resumed_from = keeper.epochs if checkpoint else None
    module = MetaLearning(
        learner,
        total_steps=max_epochs * len(sampler),
        outer_lr=outer_lr,
        weight_decay=weight_decay,
        schedule=schedule,
        average=average,
        seed=seed,
    )
    resumed_step = None if checkpoint is None else keeper.steps
    if not keeper.finished:
        if resumed_from is not None:
            log.info(
                "fit: resumed after step %d, epoch %d of %d done", keeper.steps, resumed_from, max_epochs
            )
        learner.train()
        with _quiet(), _repeatable(accelerator):
            trainer = Trainer(
                accelerator=accelerator,
                devices=1,
                max_epochs=max_epochs,
                callbacks=[keeper, FitProgress(interval=progress_interval)],
                plugins=[SealedCheckpoints()],
                logger=CSVLogger(folder, name="log"),
                gradient_clip_val=gradient_clip,
                log_every_n_steps=len(sampler),
                num_sanity_val_steps=-1,  # the whole validation set: the weights as they came are a candidate
                limit_val_batches=1.0 if validation else 0,
                inference_mode=False,  # an inner loop differentiates, which torch forbids in inference mode
                enable_checkpointing=False,  # Keeper does it
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=folder,
            )
            if trainer.strategy.root_device.type == "cpu" and accelerator == "auto":
                log.info("fit: no GPU found, working on the CPU")
            trainer.fit(
                module, datamodule=Episodes(sampler, validation), ckpt_path=checkpoint, weights_only=True
            )
    if keeper.best_weights is None:
        raise FitError(
            "the validation loss was not finite after any epoch: lower outer_lr or the inner step size"
        )
    learner.cpu().load_state_dict(keeper.best_weights)
    learner.eval()
    judged = math.isfinite(keeper.best_prior_loss)
    report = FitReport(
        epochs=keeper.epochs,
        best_epoch=keeper.best_epoch,
        best_validation_loss=keeper.best_loss if judged else None,
        prior_validation_loss=keeper.best_prior_loss if judged else None,
        seconds=time.monotonic() - started,
        resumed_from=resumed_from,
        resumed_step=resumed_step,
        skipped_steps=keeper.skipped_steps,
    )
    log.info("fit: %s", report)
    return report


def _fingerprint(learner: Learner, validation: Sequence[EpisodeBatch], settings: Sequence[object]) -> str:
    """A sha256 of all that must be equal for a resumed fit to end where an undisturbed one would."""
    digest = hashlib.sha256(repr(settings).encode())
    for path, module in learner.named_modules():
        # Settings that show in no weight, such as a share of dropout or a number of inner steps.
        plain = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, int | float | str | tuple) and not name.startswith("_")  # what it remembers
        }
        plain.pop("training")
        digest.update(f"{path} {type(module).__qualname__} {sorted(plain.items())};".encode())
    named = [*learner.state_dict().items(), *(("", leaf) for leaf in tree_leaves(list(validation)))]
    for name, value in named:
        if value is None:  # what a batch can do without
            continue
        if not isinstance(value, Tensor):
            digest.update(f"{name} {value};".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its greetings; what it warns of is known here and harmless."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # accelerator="cpu" on a machine with a GPU is a choice.
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            # Episodes goes on with the batch that the trainer is at.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
            # Lightning 2.6 under torch 2.13.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _repeatable(accelerator: str) -> Iterator[None]:
    """Sums in a fixed order and a random state of its own; both as before afterwards."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    switches: Any = torch.utils.deterministic  # its one switch is not in torch's type stubs
    filled = switches.fill_uninitialized_memory
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and accelerator != "cpu" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        # On a GPU some sums have no fixed order to offer; the fit goes on.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        switches.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            switches.fill_uninitialized_memory = filled
