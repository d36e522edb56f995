"""From a new learner to a meta-trained one, stopped and settled by users that it was not trained on."""

import logging
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl
import torch

from pipelines.drawing import Sampler, before, last_half, sampler_of, users_per_step, validation_of
from pipelines.settings import Story
from pipelines.starting import importing
from recsys_meta import ingest
from recsys_meta.adaptation.recommend import out_of_memory
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import CatalogueClock, newcomer_moments, split_users
from recsys_meta.tensors import Features, Histories
from recsys_meta.training.bundle import Bundle

log = logging.getLogger(__name__)

T = TypeVar("T")

_STEPS, _FEWEST_EPOCHS, _MOST_EPOCHS = 1500, 2, 30  # of the outer loop, where nothing is said
# Episodes to settle by, and how often a held-out user is drawn for them where there are few.
_SETTLED, _DRAWS = 4000, 8


class Known(NamedTuple):
    """What there is to train on."""

    histories: Histories  # of the training users, as are the next two
    users: Features
    user_ids: pl.Series
    clock: CatalogueClock
    clock_without: Callable[
        [torch.Tensor], CatalogueClock
    ]  # what users held out are judged on; of their rows
    moment: datetime | None


def meta_trained(
    story: Story,
    learner: Learner,
    known: Known,
    *,
    folder: Path,
    fingerprint: str,
    warm: Bundle | None,
    accelerator: str,
) -> dict[str, float | None]:
    """Meta-trains the learner in place; what was measured on users held out.

    Args:
        folder: checkpoints and the log of the training; one that was interrupted goes on where it was.
        fingerprint: names learner and data.
        warm: what it goes on from.
        accelerator: as of ``fit``.

    Raises ingest.InputError where no episode can be drawn.
    """
    histories, moment = known.histories, known.moment
    train, held_out = split_users(known.user_ids, story.training.validation_share, story.seed)
    # Statistics that know the held-out users, or the future, would make every epoch look better than it is.
    if story.split == "newcomers":
        learner.fit_snapshots(
            [
                (before(histories.take(train), then), known.clock.at(then))
                for then in newcomer_moments(histories)[1]
            ]
        )
    learner.fit_statistics(histories.take(train), known.clock.at(None))
    if warm is not None:
        learner.continue_from(warm.learner.state_dict())
    drawing = (learner, histories, known.users, known.user_ids)
    judging = (*drawing, known.clock_without(held_out))

    def drawn(story: Story) -> Sampler:
        draw = partial(sampler_of, story, *drawing, known.clock, train, moment, counted=train)
        sampler = draw(since=None if moment is None else since_of(warm))
        return sampler if warm is None or len(sampler) else draw()  # no task is new

    sampler = drawn(story)
    validation = validation_of(story, *judging, held_out, moment)
    if len(sampler) == 0:
        raise ingest.InputError(
            f"no episode can be drawn from the {len(histories.items)} events of {len(train)} users to train on"
            f" (training.split: {story.split}; see training.moments and cold.below)"
        )
    with importing():  # Lightning: seconds that a night without training does not need
        from recsys_meta.training.fitting import fit
        from recsys_meta.training.settling import settle

    if not validation:
        log.warning("no validation users: training does not stop early, see training.validation_share")
    fit_on = partial(
        fit,
        learner,
        validation=validation,
        folder=folder,
        max_epochs=(warm and story.training.warm_epochs)
        or story.training.max_epochs
        or epochs_of(len(sampler)),
        outer_lr=story.training.outer_lr,
        weight_decay=story.training.weight_decay,
        patience=story.training.patience,
        seed=story.seed,
        accelerator=accelerator,
        fingerprint=fingerprint,
        save_every=story.training.checkpoint_every.total_seconds(),
    )
    report = with_room(story, learner, len(train), sampler, drawn, fit_on)
    # Who is served comes after everybody known, unless no moment says so: of them the newest are the nearest.
    newest = moment is not None and story.split == "time"
    judges = last_half(histories, held_out) if newest else held_out
    draws = min(max(_SETTLED // max(len(judges), 1), 1), _DRAWS)
    settling = validation_of(story, *judging, judges, moment, draws=draws)
    once = len(settling) // draws
    most = -(-_SETTLED // users_per_step(story.training, len(judges)))
    settle(learner, settling[: min(once, most)], settling[once:], story.seed)
    learner.refit_statistics(histories, known.clock.at(None))
    return {
        "validation_loss": report.best_validation_loss,
        "prior_validation_loss": report.prior_validation_loss,
        "epochs": report.epochs,
        "best_epoch": report.best_epoch,
    }


def with_room(
    story: Story,
    learner: Learner,
    users: int,
    sampler: Sampler,
    drawn: Callable[[Story], Sampler],
    fit_on: Callable[[Sampler], T],
) -> T:
    """The fit; where the memory does not suffice, once more from the start with half of the users per step."""
    untrained, size = deepcopy(learner.state_dict()), users_per_step(story.training, users)
    try:
        return fit_on(sampler)
    except (RuntimeError, MemoryError) as error:
        if size == 1 or not out_of_memory(error):
            raise
    # Outside of the handler, whose traceback would hold on to the tensors.
    log.warning(
        "out of memory in training: once more with %d users per step, not %d (see training.batch_size)",
        size // 2,
        size,
    )
    learner.to("cpu").load_state_dict(untrained)
    training = story.training.model_copy(update={"batch_size": size // 2})
    return fit_on(drawn(story.model_copy(update={"training": training})))


def epochs_of(batches: int) -> int:
    """Passes of so many batches that come to the usual number of steps: few users are seen more often."""
    return min(max(round(_STEPS / batches), _FEWEST_EPOCHS), _MOST_EPOCHS)


def since_of(warm: Bundle | None) -> datetime | None:
    """The moment that a model knew what lies before; None where it starts cold, or time is unknown."""
    moment = None if warm is None else warm.meta.get("moment")
    return None if moment is None else datetime.fromisoformat(moment)
