"""From a new learner to a meta-trained one, stopped and settled by users that it was not trained on."""

import logging
import statistics
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import polars as pl
import torch

from pipelines.drawing import (
    Sampler,
    Shortened,
    Wanted,
    before,
    last_half,
    sampler_of,
    users_per_step,
    validation_of,
)
from pipelines.settings import Story, TrainingSettings
from pipelines.starting import importing
from recsys_meta import ingest
from recsys_meta.adaptation.recommend import out_of_memory
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import (
    CatalogueClock,
    MomentSplits,
    met_by_others,
    newcomer_moments,
    select,
    split_folds,
    split_users,
)
from recsys_meta.tensors import Features, Histories
from recsys_meta.training.bundle import Bundle

if TYPE_CHECKING:
    from recsys_meta.training.fitting import FitReport
    from recsys_meta.training.settling import Judged

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of the outer loop, where nothing is said; the most of an epoch, whose users are drawn anew.
_STEPS, _FEWEST_EPOCHS, _MOST_EPOCHS = 1500, 2, 30
_MOST_STEPS = _STEPS // _FEWEST_EPOCHS
# Episodes to settle by, and how often a held-out user is drawn for them where there are few.
_SETTLED, _DRAWS = 4000, 8
# Scores of users and items, all of which each way to settle is tried on, and as many of them at a time: fewer episodes of more
# than 50,000 items, and fewer at a time of more than 130,000.
_SCORES, _AT_ONCE = 200_000_000, 2**24
# Trainings that hold out a part of the users each, where fewer than enough would settle a single one or it is short; twice as
# many where users are so few that a fifth less of them tells.
_FOLDS, _FEWEST_FOLDED, _VERY_FEW, _ENOUGH = 5, 25, 500, 100
_MOST_HELD_OUT = 0.2  # of the users of a single training, unless the settings say more
_SETTLING = 900  # users that settle a single training, where a fifth is as many
_MOST_JUDGES = 10_000  # of those held out of a training: more would say the same, at every pass
_SHORT = 10_000  # users, and items, of a training that takes minutes


class Known(NamedTuple):
    """What there is to train on."""

    histories: Histories  # of the training users, as are the next two
    users: Features
    user_ids: pl.Series
    clock: CatalogueClock
    clock_without: Callable[[torch.Tensor], CatalogueClock]  # that users of these rows are judged on
    moment: datetime | None
    listed: Histories | None = (
        None  # what they did not choose of what they were shown, where that is to be told apart
    )


class Trained(NamedTuple):
    """A learner meta-trained without some users, and what those say of it."""

    judged: "Judged"
    report: "FitReport | None"  # None of one that foretells, and is not meta-trained


def meta_trained(
    story: Story,
    learner: Learner,
    known: Known,
    *,
    folder: Path,
    fingerprint: str,
    warm: Bundle | None,
    accelerator: str,
) -> tuple[Learner, dict[str, float | None]]:
    """The learner, meta-trained and settled, and what was measured on users held out; of several trainings the mean, and the
    epochs of all.

    Where those would be few, or a training is short, everybody is held out in turn: they stop and settle a training each, and
    what is kept is the mean of the learners. A dozen users cannot tell a good epoch from a bad one, and all of them together can;
    the mean is a little better than each besides.

    Args:
        folder: checkpoints and the log of the training; one that was interrupted goes on where it was.
        fingerprint: names learner and data.
        warm: what it goes on from.
        accelerator: as of ``fit``.

    Raises ingest.InputError where no episode can be drawn.
    """
    train_on = partial(
        trained, story, known=known, fingerprint=fingerprint, warm=warm, accelerator=accelerator
    )
    in_time = newest_judge(story, known.moment)
    lengths = known.histories.lengths
    parts = parts_of(story.training, learner, known.user_ids, lengths, story.seed, in_time=in_time)
    several = len(parts) > 1
    members = []
    for number, (train, held_out) in enumerate(parts, 1):
        if several:
            log.info("training %d of %d, without the users that judge it", number, len(parts))
        member = train_on(
            deepcopy(learner) if several else learner,
            train=train,
            held_out=held_out,
            episodes=min(_SETTLED, _SCORES // learner.sizes.item.ids) // len(parts),
            folder=folder / f"part-{number}" if several else folder,
        )
        if member is not None:
            members.append(member)
    if not members:
        raise ingest.InputError(
            f"no episode can be drawn from the {len(known.histories.items)} events of {len(known.user_ids)} users to train on"
            f" (training.split: {story.split}; see training.moments and cold.below)"
        )
    with importing():
        from recsys_meta.training.settling import mean_of, settle

    log.info("settling the learner by held-out users ...")
    settle([member.judged for member in members], story.seed)
    kept = mean_of([member.judged.learner for member in members])
    log.info("statistics of all %s users ...", f"{len(lengths):,}")
    kept.refit_statistics(known.histories, known.clock.at(None))
    reports = [member.report for member in members if member.report is not None]
    return kept, {
        "validation_loss": mean([report.best_validation_loss for report in reports]),
        "prior_validation_loss": mean([report.prior_validation_loss for report in reports]),
        "epochs": sum(report.epochs for report in reports),
        "best_epoch": round(mean([report.best_epoch for report in reports]) or 0),
    }


def newest_judge(story: Story, moment: datetime | None) -> bool:
    """Whether of those held out the newest alone settle: who is served comes after everybody known, unless no moment says so,
    and of them the newest are the nearest.
    """
    return moment is not None and story.split == "time"


def parts_of(
    training: TrainingSettings,
    learner: Learner,
    user_ids: pl.Series,
    lengths: torch.Tensor,
    seed: int,
    *,
    in_time: bool = False,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each training the rows of the users to train on and of those held out of it.

    lengths: of their histories, [U] int64.
    in_time: whether half of those held out settle it, see ``newest_judge``.
    """
    folds, share = training.folds, training.validation_share
    if folds == "auto":
        users, items = len(user_ids), learner.sizes.item.ids
        enough = _ENOUGH * (2 if in_time else 1)
        worth_it = users < enough / share or max(users, items) < _SHORT
        folds = (2 * _FOLDS if users < _VERY_FEW else _FOLDS) if users >= _FEWEST_FOLDED and worth_it else 1
    if folds == 1 or not learner.averaged:
        fewest = _SETTLING if learner.averaged else 0
        return [split_users(user_ids, share_held_out(training, lengths, fewest), seed)]
    return split_folds(user_ids, share, folds, seed)


def share_held_out(training: TrainingSettings, lengths: torch.Tensor, fewest: int = 0) -> float:
    """The share of the users that a single training is judged and settled by.

    Where only those with some history are trained on, as many of these as the settings hold out of everybody, and no fewer than
    ``fewest``, but not more than a fifth unless they say so: of a few thousand a twentieth would say too little. All that the
    settings hold out are among them.
    lengths: of ``parts_of``.
    """
    share, least = training.validation_share, training.min_history
    alike = len(lengths) if least == "auto" else int((lengths >= least).sum())
    return max(share, min(max(share * len(lengths), fewest) / max(alike, 1), _MOST_HELD_OUT))


def trained(
    story: Story,
    learner: Learner,
    *,
    known: Known,
    train: torch.Tensor,
    held_out: torch.Tensor,
    episodes: int,
    folder: Path,
    fingerprint: str,
    warm: Bundle | None,
    accelerator: str,
) -> Trained | None:
    """The learner, in place, meta-trained on the users of some rows and stopped by others; these are drawn for about so many
    episodes to settle it by. None where no episode can be drawn to train on.
    """
    histories, moment = known.histories, known.moment
    least = story.training.min_history
    tasks, held_out = (
        rows if least == "auto" else rows[histories.lengths[rows] >= least] for rows in (train, held_out)
    )
    held_out = some_of(held_out, _MOST_JUDGES, story.seed)
    # Statistics that know the held-out users, or the future, would make every epoch look better than it is.
    log.info("statistics of %s users ...", f"{len(train):,}")
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
    drawing = (learner, asked_of(story, learner, known, train), known.users, known.user_ids)
    clock_without = known.clock_without(held_out)

    epochs = (warm and story.training.warm_epochs) or story.training.max_epochs

    def drawn(story: Story) -> Sampler:
        draw = partial(
            sampler_of, story, *drawing, known.clock, tasks, moment, counted=train, listed=known.listed
        )
        sampler = draw(since=None if moment is None else since_of(warm))
        if warm is not None and not len(sampler):  # no task is new
            sampler = draw()
        return sampler if epochs or isinstance(sampler, MomentSplits) else Shortened(sampler, _MOST_STEPS)

    sampler = drawn(story)
    if len(sampler) == 0:
        return None
    with importing():  # Lightning: seconds that a night without training does not need
        from recsys_meta.training.fitting import fit
        from recsys_meta.training.settling import Judged

    if learner.foretells and isinstance(sampler, MomentSplits):
        learner.fit_forecast(list(sampler.asked()))
        return Trained(Judged(learner, ()), None)
    validation = validation_of(story, *drawing, clock_without, held_out, moment, listed=known.listed)
    if not validation:
        log.warning("no validation users: training does not stop early, see training.validation_share")
    fit_on = partial(
        fit,
        learner,
        validation=validation,
        folder=folder,
        max_epochs=epochs or epochs_of(len(sampler)),
        outer_lr=story.training.outer_lr,
        weight_decay=story.training.weight_decay,
        patience=story.training.patience,
        seed=story.seed,
        accelerator=accelerator,
        save_every=story.training.checkpoint_every.total_seconds(),
    )
    report = with_room(story, learner, len(tasks), sampler, drawn, fit_on, fingerprint)
    judges = last_half(histories, held_out) if newest_judge(story, moment) else held_out
    draws = min(max(episodes // max(len(judges), 1), 1), _DRAWS)
    # Served are all items, so all settle it, where a step of training has but a part of them.
    everything = Wanted(learner.whole_catalogue, learner.negatives, learner.tempering)
    size = min(users_per_step(story.training, len(judges)), max(_AT_ONCE // learner.sizes.item.ids, 1))
    in_pieces = with_batches_of(story, size)
    settling = validation_of(
        in_pieces, everything, *drawing[1:], clock_without, judges, moment, listed=known.listed, draws=draws
    )
    once = len(settling) // draws
    most = -(-episodes // size)
    in_time = story.split != "random"
    return Trained(Judged(learner, settling[: min(once, most)], settling[once:], in_time), report)


def some_of(rows: torch.Tensor, most: int, seed: int) -> torch.Tensor:
    """The rows, or so many of them, drawn at random, in their order."""
    if len(rows) <= most:
        return rows
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most]
    return rows[drawn.sort().values]


def asked_of(story: Story, learner: Learner, known: Known, train: torch.Tensor) -> Histories:
    """What episodes are drawn from: where all items are ranked and time is unknown, not what nobody else met of those trained on.

    Who is served is asked for nothing of the kind, for what nobody met is no candidate. That it is chosen nevertheless would tell
    that popularity repels, as soon as a user's own choice is taken out of it. (Episodes around moments see to that themselves,
    lists come as they are, and where the query comes later it brought nothing, see docs/new-sets.md.)
    """
    whole = learner.whole_catalogue and known.listed is None and story.split == "random"
    return select(known.histories, met_by_others(known.histories, train)) if whole else known.histories


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are."""
    some = [value for value in values if value is not None]
    return statistics.fmean(some) if some else None


def with_room(
    story: Story,
    learner: Learner,
    users: int,
    sampler: Sampler,
    drawn: Callable[[Story], Sampler],
    fit_on: Callable[..., T],
    fingerprint: str,
) -> T:
    """The fit; where the memory does not suffice, once more from the start with half of the users per step, whose checkpoints
    are its own.
    """
    untrained, size = deepcopy(learner.state_dict()), users_per_step(story.training, users)
    try:
        return fit_on(sampler, fingerprint=fingerprint)
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
    return fit_on(drawn(with_batches_of(story, size // 2)), fingerprint=f"{fingerprint} {size // 2}")


def with_batches_of(story: Story, size: int) -> Story:
    """The same with so many users per step."""
    training = story.training.model_copy(update={"batch_size": size})
    return story.model_copy(update={"training": training})


def epochs_of(batches: int) -> int:
    """Passes of so many batches that come to the usual number of steps: few users are seen more often."""
    return min(max(round(_STEPS / batches), _FEWEST_EPOCHS), _MOST_EPOCHS)


def since_of(warm: Bundle | None) -> datetime | None:
    """The moment that a model knew what lies before; None where it starts cold, or time is unknown."""
    moment = None if warm is None else warm.meta.get("moment")
    return None if moment is None else datetime.fromisoformat(moment)
