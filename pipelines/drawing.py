"""What a learner is trained, judged and asked on: catalogues as of a moment, and the episodes of users."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import polars as pl
import torch

from pipelines.inputs import Inputs
from pipelines.settings import Story, TrainingSettings
from recsys_meta.adaptation.judging import Prepare, unchanged
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import (
    CatalogueClock,
    MomentSplits,
    Negatives,
    NewcomerSplits,
    RandomSplits,
    Sightings,
    met_before,
    newcomer_moments,
    rows_of,
    select,
    user_keys,
)
from recsys_meta.tensors import Catalogue, EpisodeBatch, Features, Histories

_MICROSECOND = timedelta(microseconds=1)
_SHOTS = (0, 1, 2, 3, 5, 8, 10, 15, 20)  # drawn from where nothing is said: few, as cold users have
_BATCH, _MANY = 64, 10_000  # users per step, and from how many users on twice as many
_VALIDATION_EPOCH = 2**31  # of the sampler: none that training comes to


class Wanted(NamedTuple):
    """What episodes hold besides what was chosen; of a learner its own settings say it, and those of its training."""

    whole_catalogue: bool
    negatives: int
    tempering: float = 0.75


class Sampler(Protocol):
    """What draws episodes."""

    def __len__(self) -> int: ...
    def epoch(self, number: int) -> Iterator[EpisodeBatch]: ...


class Shortened:
    """The first batches of every epoch of a sampler that draws anew which tasks come first.

    most: batches per epoch, at most.
    """

    def __init__(self, sampler: Sampler, most: int) -> None:
        self._sampler, self._most = sampler, most

    def __len__(self) -> int:
        """Batches per epoch."""
        return min(len(self._sampler), self._most)

    def epoch(self, number: int) -> Iterator[EpisodeBatch]:
        """Those of so many tasks."""
        return islice(self._sampler.epoch(number), self._most)


def clock_of(
    story: Story, items: Features, known: Sightings | Histories, eligible: torch.Tensor | None = None
) -> CatalogueClock:
    """The catalogue of any moment, as of all events known."""
    if isinstance(known, Histories):
        known = Sightings(known.items, known.times, len(items.ids), partial(met_before, known))
    return CatalogueClock(
        items,
        known,
        windows=story.item_windows,
        popularity_window=story.popularity_window,
        popularity_mix=[(part.what, part.share) for part in story.popularity_mix],
        candidate_window=story.candidates.seen_within,
        eligible=eligible,
    )


def clock_without(
    story: Story, items: Features, inputs: Inputs, training_users: pl.Series, held_out: torch.Tensor
) -> CatalogueClock:
    """The catalogue that held-out users are judged on. held_out: rows of the training users.

    Popularity of all time would tell what those chose who are judged, the more so the fewer users there are; that before a
    moment may count them, for it does not know what they are asked for after it.
    """
    if story.split not in ("random", "time"):
        return clock_of(story, items, inputs.sightings)
    judged = rows_of(training_users, inputs.user_ids).cast(pl.Int64).to_torch()[held_out]
    others = torch.ones(len(inputs.user_ids), dtype=torch.bool).index_fill(0, judged, False)
    return clock_of(story, items, inputs.histories.take(others.nonzero().squeeze(1)))


def sampler_of(
    story: Story,
    learner: Learner | Wanted,
    histories: Histories,
    users: Features,
    user_ids: pl.Series,
    clock: CatalogueClock,
    rows: torch.Tensor,
    moment: datetime | None,
    since: datetime | None = None,
    counted: torch.Tensor | None = None,
    listed: Histories | None = None,
) -> Sampler:
    """What draws the episodes of these users, as ``training`` says; ``since``: those alone that are new since then.

    listed: of all users what they were shown and did not choose, for episodes that ask to rank the query alone.
    counted: the rows, ascending, that the statistics of the learner were read off; None: none of these users is among them.
    """
    training = story.training
    if since is not None and story.split != "moment":
        rows = newer(histories, rows, since)
    mine, theirs, keys = histories.take(rows), users.take(rows), user_keys(user_ids)[rows]
    drawn: dict[str, Any] = {
        "query_size": training.query_size,
        "max_support": training.max_support,
        "batch_size": users_per_step(training, len(rows)),
        "seed": story.seed,
        "whole_catalogue": learner.whole_catalogue,
        "most_items": training.most_items if isinstance(learner, Learner) else None,
        "negatives": learner.negatives,
        "tempering": learner.tempering,
        "keys": keys,
        "counted": None if counted is None else torch.searchsorted(counted, rows),
    }
    if story.split == "moment":
        if moment is None:
            raise ValueError("episodes around moments need the moment of the run")
        every, over, horizon = training.moments.every, training.moments.over, training.moments.horizon
        drawn["shots"] = training.shots
        last = moment - horizon
        moments = [last - n * every for n in range(over // every + 1)]
        if since is not None:  # some of its query lies after what was known
            moments = [some for some in moments if some + horizon > since] or moments
        return MomentSplits(
            mine,
            theirs,
            clock,
            moments=sorted(map(microseconds, moments)),
            horizon=horizon,
            history_below=story.cold.below - 1,
            **drawn,
        )
    drawn |= {"shots": training.shots or _SHOTS, "min_query": 1}
    if story.split == "newcomers":
        del drawn["counted"]  # who came later was not
        known, snapshots = newcomer_moments(histories)
        return NewcomerSplits(mine, theirs, clock, moments=known, snapshots=snapshots, **drawn)
    return RandomSplits(
        mine,
        theirs,
        clock.at(None),
        by_time=story.split == "time",
        listed=None if listed is None or not learner.whole_catalogue else listed.take(rows),
        **drawn,
    )


def before(histories: Histories, moment: int) -> Histories:
    """What the same users did before a moment, in microseconds since 1970 UTC."""
    return select(histories, histories.times < moment)


def users_per_step(training: TrainingSettings, users: int) -> int:
    """How many of so many users stand in a step of the outer loop."""
    return training.batch_size or (_BATCH if users < _MANY else 2 * _BATCH)


def newer(histories: Histories, rows: torch.Tensor, since: datetime) -> torch.Tensor:
    """Those of the rows whose newest event is not before the moment. histories: with times."""
    some = rows[histories.lengths[rows] > 0]
    newest = histories.times[histories.offsets[some + 1] - 1]
    return some[newest >= microseconds(since)]


def last_half(histories: Histories, rows: torch.Tensor) -> torch.Tensor:
    """The half of the rows that began last, in their order. histories: with times."""
    some = rows[histories.lengths[rows] > 0]
    first = histories.times[histories.offsets[some]]
    return some[first >= first.median()] if len(some) else some


def validation_of(*arguments: Any, draws: int = 1, **others: Any) -> list[EpisodeBatch]:
    """The fixed episodes of held-out users, each so many times; arguments as of ``sampler_of``."""
    sampler = sampler_of(*arguments, **others)
    return [batch for draw in range(draws) for batch in sampler.epoch(_VALIDATION_EPOCH + draw)]


def with_negatives(learner: Learner, catalogue: Catalogue, user_ids: pl.Series, seed: int) -> Prepare:
    """Adds to the support sets of these users the sampled negatives that the learner adapts with, if any."""
    if not learner.negatives:
        return unchanged
    negatives = Negatives(catalogue, tempering=learner.tempering, seed=seed)
    keys = user_keys(user_ids)
    return lambda support, rows: negatives.append(support, keys[rows], None, learner.negatives, stream=0)


def microseconds(instant: datetime) -> int:
    """Microseconds since 1970 UTC."""
    return (instant - datetime(1970, 1, 1, tzinfo=instant.tzinfo)) // _MICROSECOND


def catalogue_at(clock: CatalogueClock, moment: datetime | None) -> Catalogue:
    """The catalogue that users are served from at the moment, or of everything where time is unknown."""
    return clock.served(None if moment is None or not clock.timed else microseconds(moment))
