"""The one Lightning module: minimizes the meta-loss of any learner and judges it on held-out users after adaptation."""

from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from recsys_meta.algorithms.base import Learner
from recsys_meta.tensors import EpisodeBatch

Schedule = Literal["one_cycle", "constant"]


class MetaLearning(LightningModule):
    """The outer loop over one learner.

    Args:
        learner: what is fitted, in place. A method ``parameter_groups(weight_decay)``, where it has one, gives the
            parameter groups of the optimizer; otherwise all parameters decay alike.
        outer_lr: step size of AdamW; the peak of it under ``one_cycle``. A group may bring its own as ``lr``.
        weight_decay: decoupled weight decay.
        schedule: ``one_cycle`` (Smith and Topin 2018, arXiv 1708.07120) over ``total_steps`` batches, or ``constant``.
        total_steps: batches of the whole fit.
        average: keep a moving average of the weights with this decay, below 1, and judge and publish that.
        seed: random numbers (dropout, latents) are drawn anew from (seed, epoch) in each epoch, so that an epoch is the
            same whether the fit was interrupted before it or not; within an epoch a checkpoint holds where they stand.

    A step whose meta-loss or meta-gradient is not finite is left out and counted in ``skipped_steps``.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        total_steps: int,
        outer_lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Schedule = "one_cycle",
        average: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if average is not None and not 0 <= average < 1:
            raise ValueError(f"average is the decay of a moving average, in [0, 1); found {average}")
        self.learner = learner
        self.averaged = None if average is None else deepcopy(learner).requires_grad_(False)
        self.outer_lr = outer_lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.total_steps = total_steps
        self.average = average
        self.seed = seed
        self.steps = 0
        self.skipped_steps = 0
        self._finite = True
        self._random_states: list[Tensor] = []  # of a checkpoint, until the first step after it

    @property
    def judged(self) -> Learner:
        """The learner that is validated and published: the averaged one where an average is kept."""
        return self.learner if self.averaged is None else self.averaged

    def training_step(self, episodes: EpisodeBatch, batch_idx: int) -> Tensor:
        """The meta-loss of a batch, a scalar."""
        if batch_idx == 0:
            torch.manual_seed(_mixed(self.seed, self.current_epoch))
        elif self._random_states:
            _set_random_states(self._random_states)
        self._random_states = []
        loss = self.learner.meta_loss(episodes)
        self._finite = bool(loss.isfinite())
        if self._finite:
            self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=_tasks(episodes))
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leaves the step out where the meta-loss or the meta-gradient is not finite: no gradient, no step, no decay."""
        self.steps += 1
        gradients = [weight.grad for weight in self.learner.parameters() if weight.grad is not None]
        if not (self._finite and bool(nn.utils.get_total_norm(gradients).isfinite())):
            self.skipped_steps += 1
            optimizer.zero_grad(set_to_none=True)

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """The step, and that of the average with it: a checkpoint may be taken as soon as this is done."""
        super().optimizer_step(*arguments, **settings)
        self.move_average()

    def move_average(self) -> None:
        """Towards the weights; slower towards the young ones, so that the start is forgotten."""
        if self.averaged is None or self.average is None:
            return
        decay = min(self.average, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_([*self.averaged.parameters()], [*self.learner.parameters()], 1 - decay)
            for average, buffer in zip(self.averaged.buffers(), self.learner.buffers(), strict=True):
                average.copy_(buffer)

    def on_validation_epoch_start(self) -> None:
        """The same random numbers in every validation, for learners that draw some."""
        torch.manual_seed(_mixed(self.seed, -1))

    def validation_step(self, episodes: EpisodeBatch, batch_idx: int) -> None:
        """Query loss of held-out users: after adaptation (``validation_loss``) and before it (``prior_loss``).

        It is the loss of the task, not the meta-loss, which some algorithms replace by a surrogate: so one number means
        the same for all of them.
        """
        learner, (support, query, users, catalogue, *_) = self.judged, episodes
        items = learner.encode(catalogue)
        prior = learner.task_loss(learner.prior(support, users, items), query, items, support)
        adapted = learner.task_loss(learner.adapt(support, users, items), query, items, support)
        # Where the inner loop fails, a night would serve the prior.
        adapted = torch.where(adapted.isfinite(), adapted, prior)
        for name, loss in (("validation_loss", adapted), ("prior_loss", prior)):
            self.log(name, loss.mean(), on_step=False, on_epoch=True, batch_size=_tasks(episodes))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, under one cycle or a constant step size."""
        hook = getattr(self.learner, "parameter_groups", None)
        groups = hook(self.weight_decay) if hook else [{"params": list(self.learner.parameters())}]
        optimizer = AdamW(groups, lr=self.outer_lr, weight_decay=self.weight_decay, fused=True)
        if self.schedule == "constant":
            return optimizer
        peaks = [group["lr"] for group in optimizer.param_groups]
        cycle = OneCycleLR(optimizer, max_lr=peaks, total_steps=self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The counts and the random numbers survive an interruption."""
        checkpoint["step_counts"] = [self.steps, self.skipped_steps]
        checkpoint["random_states"] = _get_random_states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The counts and the random numbers of the interrupted fit."""
        self.steps, self.skipped_steps = checkpoint["step_counts"]
        self._random_states = checkpoint["random_states"]


def _get_random_states(device: torch.device) -> list[Tensor]:
    """Of the CPU, and of the GPU where the fit is on one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_states(states: list[Tensor]) -> None:
    """As they were; on a CPU what a GPU drew cannot be gone on with."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def _tasks(episodes: EpisodeBatch) -> int:
    return len(episodes.query.mask)


def _mixed(seed: int, epoch: int) -> int:
    """One seed of two numbers, far from the seeds of the neighbouring epochs (an odd multiplier modulo 2^63)."""
    return (seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xBF58476D1CE4E5B9) % 2**63
