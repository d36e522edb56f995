"""From events to a fitted learner: meta-trained anew, or found among the bundles of the workspace."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import polars as pl
import torch

from pipelines.construction import takes
from pipelines.inputs import Inputs, declared, table_digest
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.settings import (
    BaselineSettings,
    LearnerSettings,
    MomentSettings,
    Story,
    TrainingSettings,
    duration_text,
)
from pipelines.starting import importing
from recsys_meta import __version__, ingest, store
from recsys_meta.adaptation.judging import Prepare, unchanged
from recsys_meta.adaptation.recommend import out_of_memory
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import (
    CatalogueClock,
    FeatureEncoder,
    MomentSplits,
    Negatives,
    NewcomerSplits,
    RandomSplits,
    Sightings,
    newcomer_moments,
    num_derived,
    pace_of,
    rows_of,
    select,
    split_users,
    trend_of,
    user_keys,
)
from recsys_meta.models.losses import RATING_LOSSES
from recsys_meta.tables import VALUE, Feature
from recsys_meta.tensors import Catalogue, EpisodeBatch, Features, Histories, Sizes
from recsys_meta.training.building import build
from recsys_meta.training.bundle import Bundle, BundleError, check_bundle, load_bundle, save_bundle

log = logging.getLogger(__name__)

_LARGEST_SOFTMAX = 50_000  # items; beyond, a step over all of them costs more than it teaches

# What reading a description that somebody has damaged may raise.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, BundleError)

_MICROSECOND = timedelta(microseconds=1)
_SHOTS = (0, 1, 2, 3, 5, 8, 10, 15, 20)  # drawn from where nothing is said: few, as cold users have
_STEPS, _FEWEST_EPOCHS, _MOST_EPOCHS = 1500, 2, 30  # of the outer loop, where nothing is said
_BATCH, _MANY = 64, 10_000  # users per step, and from how many users on twice as many
_WINDOWS = (24, 8, 4, 1)  # parts of a horizon: of a day the last 1, 3, 6 and 24 hours
# Episodes to settle by, and how often a held-out user is drawn for them where there are few.
_SETTLED, _DRAWS = 4000, 8
_VALIDATION_EPOCH = 2**31  # of the sampler: none that training comes to


class Model(NamedTuple):
    """A fitted learner and where it comes from."""

    bundle: Bundle
    version: str
    reused: bool

    @property
    def started_from(self) -> str | None:
        """The version of the model whose initialization it went on from; None where it started cold."""
        version: str | None = self.bundle.meta.get("started_from")
        return version

    @property
    def metrics(self) -> dict[str, float | None]:
        """What was measured on validation users when it was trained."""
        return dict(self.bundle.meta["metrics"])


class Wanted(NamedTuple):
    """What episodes hold besides what was chosen; of a learner its own settings say it."""

    whole_catalogue: bool
    negatives: int


class Sampler(Protocol):
    """What draws episodes."""

    def __len__(self) -> int: ...
    def epoch(self, number: int) -> Iterator[EpisodeBatch]: ...


def check_buildable(story: Story, choice: LearnerSettings, inputs: Inputs, training_users: pl.Series) -> None:
    """Raises BuildError where the learner refuses its settings or so many items: of several before the first is fitted."""
    events = inputs.events.filter(pl.col("user_id").is_in(training_users.implode()))
    choice = with_loss(choice, events, len(inputs.item_ids))
    users, items = encoders_of(story, inputs, training_users, events, None)
    build(choice.class_path, choice.init_args, Sizes(users.sizes, items.sizes))


def fit_or_reuse(
    story: Story,
    choice: LearnerSettings,
    inputs: Inputs,
    training_users: pl.Series,
    *,
    workspace: store.Workspace,
    moment: datetime | None,
    run_date: date,
    train_anew: bool = True,
    start: Model | None = None,
) -> Model:
    """The learner of these settings, meta-trained on these users' events.

    The bundle of exactly this learner on exactly this data is used where it exists, and else one of the same
    settings that is no older than ``training.reuse_for_days``. An interrupted training goes on where it was. With
    ``training.warm_start`` it goes on from the initialization of ``start``, where that is of the same settings, on the tasks
    that are new since then (C. Finn, A. Rajeswaran, S. Kakade, S. Levine: Online Meta-Learning, ICML 2019, for the idea).

    Raises ingest.InputError where there is nobody to train on, and NothingToDo where a training would be needed but is
    not wanted (``train_anew``).
    """
    events = inputs.events.filter(pl.col("user_id").is_in(training_users.implode()))
    if events.is_empty():
        raise ingest.InputError(
            f"none of the {len(training_users)} users to train on has an event to learn from: lower cold.below, or widen"
            " the interactions"
        )
    choice = with_loss(choice, events, len(inputs.item_ids))
    recipe = recipe_of(story, choice)
    data = store.fingerprint(
        [table_digest(table).hex() for table in (events, inputs.items, inputs.users) if table is not None]
    )
    warm = None if start is None else start_of(story, choice, start, inputs)
    known = [recipe, data, str(moment), *([] if warm is None else [warm.fingerprint])]
    version = f"{choice.class_path.rpartition('.')[2].lower()}-{store.fingerprint(known)[:12]}"
    folder = workspace.model(version)
    if (folder / "bundle").exists():
        log.info("model %s is fitted already", version)
        try:
            return Model(load_bundle(folder / "bundle"), version, reused=True)
        except BundleError as error:
            raise BundleError(f"{error}; remove {folder}, and the same command trains it anew") from error
    recent = newest_bundle(workspace, recipe, run_date, story.training.reuse_for_days)
    if recent is not None:
        log.info("model %s is used again", recent.parent.name)
        return Model(load_bundle(recent), recent.parent.name, reused=True)

    if not train_anew:
        raise NothingToDo(f"model {version} is not fitted yet; train or adapt with the same settings first")
    items = inputs.item_ids
    user_encoder, item_encoder = encoders_of(story, inputs, training_users, events, warm)
    torch.manual_seed(story.seed)
    learner = build(choice.class_path, choice.init_args, Sizes(user_encoder.sizes, item_encoder.sizes))
    histories = inputs.histories.take(rows_of(training_users, inputs.user_ids).cast(pl.Int64).to_torch())
    users = user_encoder.encode(training_users, inputs.users)
    clock = clock_of(story, item_encoder.encode(items, inputs.items), inputs.sightings)
    refuse_constant_values(learner, events)
    metrics: dict[str, float | None] = {}
    if not learner.meta_trained:
        learner.fit_statistics(histories, clock.at(None))
    else:
        train, held_out = split_users(training_users, story.training.validation_share, story.seed)
        # Statistics that know the held-out users, or the future, would make every epoch look better than it is.
        if story.split == "newcomers":
            learner.fit_snapshots(
                [
                    (before(histories.take(train), known), clock.at(known))
                    for known in newcomer_moments(histories)[1]
                ]
            )
        learner.fit_statistics(histories.take(train), clock.at(None))
        if warm is not None:
            learner.continue_from(warm.learner.state_dict())
        drawing = (learner, histories, users, training_users, clock)
        judging_clock = clock_without(
            story, item_encoder.encode(items, inputs.items), inputs, training_users, held_out
        )
        judging = (*drawing[:-1], judging_clock)

        def drawn(story: Story) -> Sampler:
            draw = partial(sampler_of, story, *drawing, train, moment, counted=train)
            sampler = draw(since=None if moment is None else since_of(warm))
            return sampler if warm is None or len(sampler) else draw()  # no task is new

        sampler = drawn(story)
        validation = validation_of(story, *judging, held_out, moment)
        if len(sampler) == 0:
            raise ingest.InputError(
                f"no episode can be drawn from the {events.height} events of {len(train)} users to train on"
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
            folder=folder / "training",
            max_epochs=(warm and story.training.warm_epochs)
            or story.training.max_epochs
            or epochs_of(len(sampler)),
            outer_lr=story.training.outer_lr,
            weight_decay=story.training.weight_decay,
            patience=story.training.patience,
            seed=story.seed,
            # Of "auto" the fit itself says what it has found.
            accelerator="auto"
            if story.training.accelerator == "auto"
            else present(story.training.accelerator),
            fingerprint=version,
            save_every=story.training.checkpoint_every.total_seconds(),
        )
        report = with_room(story, learner, len(train), sampler, drawn, fit_on)
        metrics = {
            "validation_loss": report.best_validation_loss,
            "prior_validation_loss": report.prior_validation_loss,
            "epochs": report.epochs,
            "best_epoch": report.best_epoch,
        }
        # Who is served comes after everybody known, unless no moment says so: of them the newest are the nearest.
        newest = moment is not None and story.split == "time"
        judges = last_half(histories, held_out) if newest else held_out
        draws = min(max(_SETTLED // max(len(judges), 1), 1), _DRAWS)
        settling = validation_of(story, *judging, judges, moment, draws=draws)
        once = len(settling) // draws
        most = -(-_SETTLED // users_per_step(story.training, len(judges)))
        settle(learner, settling[: min(once, most)], settling[once:], story.seed)
        learner.refit_statistics(histories, clock.at(None))
    meta: dict[str, Any] = {
        "recipe": recipe,
        "run_date": run_date.isoformat(),
        "training_users": len(training_users),
        "training_events": events.height,
        "moment": None if moment is None else moment.isoformat(),
        "started_from": None if warm is None or start is None else start.version,
        "metrics": metrics,
    }
    save_bundle(
        folder / "bundle",
        learner,
        class_path=choice.class_path,
        init_args=choice.init_args,
        user_encoder=user_encoder,
        item_encoder=item_encoder,
        meta=meta,
    )
    # Read back rather than handed over: what is scored with is what is kept.
    return Model(load_bundle(folder / "bundle"), version, reused=False)


T = TypeVar("T")


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


def present(accelerator: str) -> str:
    """What there is of the accelerator that is asked for, by Lightning's name: itself, or the CPU, and a line in the log.

    "auto" asks for nothing in particular, and is not missed.
    """
    if accelerator == "cpu":
        return "cpu"
    if accelerator == "mps" and torch.backends.mps.is_available():
        return "mps"
    if accelerator != "mps" and torch.cuda.is_available():
        return "gpu"
    if accelerator != "auto":
        log.warning("training.accelerator is %s, but there is none here: working on the CPU", accelerator)
    return "cpu"


S = TypeVar("S", bound=Story)


class AtPace(NamedTuple, Generic[S]):
    """Settings that suit how fast items come and go."""

    story: S
    learner: LearnerSettings
    why: str  # what was found; empty where everything stays as it was

    def __str__(self) -> str:
        """The settings that differ, as a config has them."""
        training = f"training: {{split: {self.story.split}"
        if self.story.split == "moment":
            moments = (f"{name}: {duration_text(value)}" for name, value in self.story.training.moments)
            training += f", moments: {{{', '.join(moments)}}}"
        training += "}"
        windows = ", ".join(map(duration_text, self.story.item_windows))
        window = duration_text(self.story.popularity_window or timedelta())
        arguments = json.dumps(dict(self.learner.init_args))
        return f"{training}, item_windows: [{windows}], popularity_window: {window}, learner.init_args: {arguments}"


def at_pace(
    story: S,
    choice: LearnerSettings | BaselineSettings,
    inputs: Inputs,
    moment: datetime | None,
    horizon: timedelta | None,
) -> AtPace[S]:
    """The settings of a learner where items come and go within the horizon that it serves; elsewhere the same.

    Such items are known by what they are at the moment rather than by their ids: training looks forward from moments of the
    past, and counts of the last hours stand beside ages. Without a horizon it is newcomers who are served, whenever they come.
    Only what says nothing else is settled so: ``training.split: auto`` without ``item_windows``.
    """
    learner = LearnerSettings(class_path=choice.class_path, init_args=choice.init_args)
    same = AtPace(story, learner, "")
    if moment is None or story.training.split != "auto" or story.item_windows:
        return same
    if horizon is None:
        return for_newcomers(story, learner, inputs, moment)
    pace = pace_of(inputs.sightings, microseconds(moment), horizon)
    if pace is None or pace.window is None or not pace.fleeting(horizon):
        return same
    why = (
        f"items come and go: what was most popular in the last {duration_text(pace.window)} has {100 * pace.hits:.0f} % of what"
        f" is asked for in the next {duration_text(horizon)}, of all time {100 * pace.hits_of_all_time:.0f} %"
    )
    moments = MomentSettings(every=horizon / 4, over=2 * horizon, horizon=horizon / 2)
    if "item_ids" not in learner.init_args and takes(learner, "item_ids"):
        learner = learner.model_copy(update={"init_args": {**learner.init_args, "item_ids": False}})
    story = story.model_copy(
        update={
            "training": story.training.model_copy(update={"split": "moment", "moments": moments}),
            "item_windows": tuple(horizon / part for part in _WINDOWS),
            "popularity_window": story.popularity_window or pace.window,
        }
    )
    return AtPace(story, learner, why)


def for_newcomers(story: S, learner: LearnerSettings, inputs: Inputs, moment: datetime) -> AtPace[S]:
    """The settings of a learner that serves newcomers, where what is popular by now says more of them than what always was."""
    trend = trend_of(inputs.histories, inputs.sightings, microseconds(moment))
    if trend is None:
        return AtPace(story, learner, "")
    why = (
        f"items rise and fall: the ten most popular of the last {duration_text(trend.window)} are {100 * trend.hits:.0f} % of"
        f" what newcomers meet, those of all time {100 * trend.hits_of_all_time:.0f} %"
    )
    known_by = {"item_ids": False, "counts": True}
    arguments = {name: value for name, value in known_by.items() if takes(learner, name)}
    learner = learner.model_copy(update={"init_args": {**arguments, **learner.init_args}})
    story = story.model_copy(
        update={
            "training": story.training.model_copy(update={"split": "newcomers"}),
            "item_windows": trend.windows,
            "popularity_window": story.popularity_window or trend.window,
        }
    )
    return AtPace(story, learner, why)


def start_of(story: Story, choice: LearnerSettings, start: Model, inputs: Inputs) -> Bundle | None:
    """The bundle that a training goes on from; None, and a line in the log, where it is of other settings or not wanted."""
    bundle, wanted = start.bundle, choice.model_dump(mode="json")
    if not story.training.warm_start:
        return None
    differing = [
        name
        for name, found, expected in (
            ("learner", {"class_path": bundle.class_path, "init_args": dict(bundle.init_args)}, wanted),
            ("users", bundle.user_encoder.features, declared(story.users)),
            ("items", bundle.item_encoder.features, declared(story.items)),
            (
                "lengths of user vectors",
                dict(bundle.user_encoder.widths),
                widths(inputs.users, declared(story.users)),
            ),
            (
                "lengths of item vectors",
                dict(bundle.item_encoder.widths),
                widths(inputs.items, declared(story.items)),
            ),
            ("item_windows", bundle.item_encoder.extra_numbers, num_derived(story.item_windows)),
            ("item ids", bundle.item_encoder.ids.dtype, inputs.item_ids.dtype),
        )
        if found != expected
    ]
    if differing:
        log.warning("model %s has other %s: the training starts cold", start.version, ", ".join(differing))
        return None
    log.info("the training goes on from model %s", start.version)
    return bundle


def widths(table: pl.DataFrame | None, features: Sequence[Feature]) -> dict[str, int]:
    """How long the vectors of a table are; 0 where it has none."""
    if table is None:
        return {}
    lengths = {name: table[name].list.len().max() for name, kind in features if kind == "vector"}
    return {name: length if isinstance(length, int) else 0 for name, length in lengths.items()}


def since_of(warm: Bundle | None) -> datetime | None:
    """The moment that a model knew what lies before; None where it starts cold, or time is unknown."""
    moment = None if warm is None else warm.meta.get("moment")
    return None if moment is None else datetime.fromisoformat(moment)


def encoders_of(
    story: Story, inputs: Inputs, training_users: pl.Series, events: pl.DataFrame, warm: Bundle | None
) -> tuple[FeatureEncoder, FeatureEncoder]:
    """Of users and items, fitted on what is trained on; those of a warm start grow."""
    item_ids = events["item_id"].unique().sort()
    if warm is not None:
        return (
            warm.user_encoder.grown(training_users, inputs.users),
            warm.item_encoder.grown(item_ids, inputs.items),
        )
    return (
        FeatureEncoder.fit(training_users, inputs.users, declared(story.users), use_ids=False),
        FeatureEncoder.fit(
            item_ids, inputs.items, declared(story.items), extra_numbers=num_derived(story.item_windows)
        ),
    )


def with_loss(choice: LearnerSettings, events: pl.DataFrame, num_items: int) -> LearnerSettings:
    """The choice with the loss that suits the data, where it names none: values that differ are predicted, events ranked
    among all items, or among sampled ones where all are too many.
    """
    if "loss" in choice.init_args or not takes(choice, "loss"):
        return choice
    loss = "squared" if events[VALUE].n_unique() > 1 else "softmax"
    if loss == "softmax" and num_items > _LARGEST_SOFTMAX:
        loss = "sampled_softmax"
    return choice.model_copy(update={"init_args": {**choice.init_args, "loss": loss}})


def refuse_constant_values(learner: Learner, events: pl.DataFrame) -> None:
    """Raises ConfigError where a learner is to predict values that are all the same: events are ranked, not rated."""
    loss = getattr(learner, "loss", None)
    if loss in RATING_LOSSES and events[VALUE].n_unique() == 1:
        raise ConfigError(
            [
                f"learner.init_args.loss: {loss} predicts values, but those of all {events.height} events are"
                f" {events[VALUE][0]:g}; expected softmax, sampled_softmax, bpr or logistic for events, or interactions.value"
            ]
        )


def recipe_of(story: Story, choice: LearnerSettings) -> str:
    """The fingerprint of everything but the data that the weights depend on."""
    training = story.training.model_dump(
        mode="json", exclude={"reuse_for_days", "checkpoint_every", "accelerator"}
    )
    features = [[list(feature) for feature in declared(table)] for table in (story.users, story.items)]
    windows = story.model_dump(mode="json", include={"seed", "popularity_window", "item_windows"})
    who_and_what = [story.cold.below, str(story.candidates.seen_within)]  # episodes around moments read these
    learner = choice.model_dump(mode="json")
    return store.fingerprint([__version__, learner, training, features, windows, who_and_what])


def newest_bundle(workspace: store.Workspace, recipe: str, run_date: date, days: int) -> Path | None:
    """The newest bundle of this recipe that was trained on one of the last days, or None; one that is damaged is passed over."""
    found = []
    for description in sorted(workspace.root.glob("models/*/bundle/bundle.json")) if days else []:
        try:
            meta = json.loads(description.read_bytes())["meta"]
            if meta.get("recipe") != recipe:
                continue
            check_bundle(description.parent)
        except _UNREADABLE as error:
            log.warning("not used again: %s is damaged (%s)", description.parent, error)
            continue
        if 0 < (run_date - date.fromisoformat(meta["run_date"])).days <= days:
            found.append((meta["run_date"], description.parent))
    return max(found)[1] if found else None


def clock_of(
    story: Story, items: Features, known: Sightings | Histories, eligible: torch.Tensor | None = None
) -> CatalogueClock:
    """The catalogue of any moment, as of all events known."""
    if isinstance(known, Histories):
        known = Sightings(known.items, known.times, len(items.ids))
    return CatalogueClock(
        items,
        known,
        windows=story.item_windows,
        popularity_window=story.popularity_window,
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
) -> Sampler:
    """What draws the episodes of these users, as ``training`` says; ``since``: those alone that are new since then.

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
        "negatives": learner.negatives,
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
        **drawn,
    )


def before(histories: Histories, moment: int) -> Histories:
    """What the same users did before a moment, in microseconds since 1970 UTC."""
    return select(histories, histories.times < moment)


def epochs_of(batches: int) -> int:
    """Passes of so many batches that come to the usual number of steps: few users are seen more often."""
    return min(max(round(_STEPS / batches), _FEWEST_EPOCHS), _MOST_EPOCHS)


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


def validation_of(*arguments: Any, draws: int = 1) -> list[EpisodeBatch]:
    """The fixed episodes of held-out users, each so many times; arguments as of ``sampler_of``."""
    sampler = sampler_of(*arguments)
    return [batch for draw in range(draws) for batch in sampler.epoch(_VALIDATION_EPOCH + draw)]


def with_negatives(learner: Learner, catalogue: Catalogue, user_ids: pl.Series, seed: int) -> Prepare:
    """Adds to the support sets of these users the sampled negatives that the learner adapts with, if any."""
    if not learner.negatives:
        return unchanged
    negatives, keys = Negatives(catalogue, seed=seed), user_keys(user_ids)
    return lambda support, rows: negatives.append(support, keys[rows], None, learner.negatives, stream=0)


def microseconds(instant: datetime) -> int:
    """Microseconds since 1970 UTC."""
    return (instant - datetime(1970, 1, 1, tzinfo=instant.tzinfo)) // _MICROSECOND


def catalogue_at(clock: CatalogueClock, moment: datetime | None) -> Catalogue:
    """The catalogue of the moment, or of everything where time is unknown."""
    return clock.at(None if moment is None or not clock.timed else microseconds(moment))
