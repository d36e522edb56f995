"""From events to a fitted learner: meta-trained anew, or found among the bundles of the workspace."""

import json
import logging
import math
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import polars as pl
import torch

from pipelines.construction import takes
from pipelines.drawing import clock_of, clock_without, microseconds
from pipelines.inputs import Inputs, declared, table_digest
from pipelines.meta_training import Known, meta_trained
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.settings import (
    BaselineSettings,
    LearnerSettings,
    MixSettings,
    MomentSettings,
    Story,
    duration_text,
)
from recsys_meta import __version__, ingest, store
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import (
    FeatureEncoder,
    group,
    late_of,
    mix_of,
    num_derived,
    pace_of,
    rows_of,
    trend_of,
)
from recsys_meta.models.losses import RATING_LOSSES
from recsys_meta.tables import VALUE, Feature, same_kind
from recsys_meta.tensors import Sizes
from recsys_meta.training.building import build
from recsys_meta.training.bundle import Bundle, BundleError, check_bundle, load_bundle, save_bundle

log = logging.getLogger(__name__)

# What reading a description that somebody has damaged may raise.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, BundleError)

# Parts of a horizon: of a day the last 10 and 20 minutes, 1, 3, 6 and 24 hours.
_WINDOWS = (144, 72, 24, 8, 4, 1)


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


def check_buildable(story: Story, choice: LearnerSettings, inputs: Inputs, training_users: pl.Series) -> None:
    """Raises BuildError where the learner refuses its settings or so many items: of several before the first is fitted."""
    events = inputs.events.filter(pl.col("user_id").is_in(training_users.implode()))
    choice = with_loss(choice, events)
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
    listed: bool = False,
) -> Model:
    """The learner of these settings, meta-trained on these users' events.

    The bundle of exactly this learner on the events of exactly these users is used where it exists (whatever others did since:
    their events count in popularity alone, and cold users come and go between a training and a night), and else one of the same
    settings that is no older than ``training.reuse_for_days``. An interrupted training goes on where it was. With
    ``training.warm_start`` it goes on from the initialization of ``start``, where that is of the same settings, on the tasks
    that are new since then (C. Finn, A. Rajeswaran, S. Kakade, S. Levine: Online Meta-Learning, ICML 2019, for the idea).

    listed: whether it will be asked to rank lists of which a part was not chosen, as ``interactions.positive_from`` tells the
        two apart: episodes then hold what training users did not choose, and ask for the same.

    Raises ingest.InputError where there is nobody to train on, and NothingToDo where a training would be needed but is
    not wanted (``train_anew``).
    """
    events = inputs.events.filter(pl.col("user_id").is_in(training_users.implode()))
    if events.is_empty():
        raise ingest.InputError(
            f"none of the {len(training_users)} users to train on has an event to learn from: lower cold.below, or widen"
            " the interactions"
        )
    choice = with_loss(choice, events)
    shown = inputs.refused if listed else None
    recipe = recipe_of(story, choice)
    tables = (events, inputs.items, inputs.users, shown)
    data = store.fingerprint([table_digest(table).hex() for table in tables if table is not None])
    warm = None if start is None else start_of(story, choice, start, inputs)
    parts = [recipe, data, str(moment), *([] if warm is None else [warm.fingerprint])]
    version = f"{choice.class_path.rpartition('.')[2].lower()}-{store.fingerprint(parts)[:12]}"
    folder = workspace.model(version)
    if (folder / "bundle").exists():
        log.info("model %s is fitted already", version)
        discard_checkpoints(folder)  # a kill may have come before
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
        known = Known(
            histories,
            users,
            training_users,
            clock,
            partial(clock_without, story, item_encoder.encode(items, inputs.items), inputs, training_users),
            moment,
            None if shown is None else group(shown, training_users, items),
        )
        learner, metrics = meta_trained(
            story,
            learner,
            known,
            folder=folder / "training",
            fingerprint=version,
            warm=warm,
            # Of "auto" the fit itself says what it has found.
            accelerator="auto"
            if story.training.accelerator == "auto"
            else present(story.training.accelerator),
        )
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
    discard_checkpoints(folder)
    # Read back rather than handed over: what is scored with is what is kept.
    return Model(load_bundle(folder / "bundle"), version, reused=False)


def discard_checkpoints(folder: Path) -> None:
    """Removes those of a model whose bundle is written: nobody goes on from them, and of ten trainings they are gigabytes."""
    for checkpoint in (folder / "training").rglob("*.ckpt"):
        checkpoint.unlink()


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
        if self.story.popularity_mix:
            return f"popularity_mix: [{', '.join(map(str, self.story.popularity_mix))}]"
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
    met: int = 0,
) -> AtPace[S]:
    """The settings of a learner where items come and go within the horizon that it serves; elsewhere the same.

    Such items are known by what they are at the moment rather than by their ids: training looks forward from moments of the
    past, and counts of the last hours stand beside ages. Without a horizon it is newcomers who are served, whenever they come,
    and without a moment anybody, with what they want after they met so many things.
    Only what says nothing else is settled so: ``training.split: auto`` without ``item_windows`` and ``popularity_mix``.
    """
    learner = LearnerSettings(class_path=choice.class_path, init_args=choice.init_args)
    same = AtPace(story, learner, "")
    said = story.training.split != "auto" or bool(story.item_windows) or bool(story.popularity_mix)
    if said:
        return same
    if moment is None:
        return with_mix(story, learner, inputs, None, met) if story.split == "time" else same
    if horizon is None:
        return for_newcomers(story, learner, inputs, moment, met)
    pace = pace_of(inputs.sightings, microseconds(moment), horizon)
    if pace is None or pace.window is None or not pace.fleeting(horizon):
        return same
    why = (
        f"items come and go: what was most popular in the last {duration_text(pace.window)} has {100 * pace.hits:.0f} % of what"
        f" is asked for in the next {duration_text(horizon)}, of all time {100 * pace.hits_of_all_time:.0f} %"
    )
    moments = MomentSettings(every=horizon / 12, over=2 * horizon, horizon=horizon / 2)
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


def for_newcomers(
    story: S, learner: LearnerSettings, inputs: Inputs, moment: datetime, met: int
) -> AtPace[S]:
    """The settings of a learner that serves newcomers, where what is popular by now says more of them than what always was."""
    trend = trend_of(inputs.histories, inputs.sightings, microseconds(moment))
    if trend is None:
        return with_mix(story, learner, inputs, moment, met)
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


def with_mix(
    story: S, learner: LearnerSettings, inputs: Inputs, moment: datetime | None, met: int
) -> AtPace[S]:
    """The settings of a learner with popularity mixed for what users want after they met so many things, and as of a moment for
    newcomers.

    Windows have half of the share that would have suited newcomers of the past, for no moment is quite like those before it.
    """
    rated = inputs.events[VALUE].n_unique() > 1  # predicted, whatever is popular
    if rated or story.popularity_window is not None:
        return AtPace(story, learner, "")
    now = inputs.sightings.known(None if moment is None else microseconds(moment))
    parts, why = list[MixSettings](), []
    if now is None:
        return AtPace(story, learner, "")
    mix = None if moment is None else mix_of(inputs.histories, inputs.sightings, now)
    if mix is not None:
        halves = zip(mix.windows, mix.shares, strict=True)
        parts += [MixSettings(window=rounded(window), share=cut_off(share / 2)) for window, share in halves]
        why.append(
            f"newcomers of the past are foretold best with {100 * sum(mix.shares):.0f} % of what was met of late"
        )
    late = late_of(inputs.histories, len(inputs.item_ids), now, met)
    if late is not None:
        rest = 1 - sum(part.share for part in parts)
        found = zip(late.after, late.shares, strict=True)
        parts += [MixSettings(after=after, share=cut_off(share * rest)) for after, share in found]
        why.append(f"what users meet after {met} things differs from what they all meet")
    return AtPace(story.model_copy(update={"popularity_mix": tuple(parts)}), learner, "; ".join(why))


def cut_off(share: float) -> float:
    """To three decimals, downwards, so that shares of one whole are no more than 1 together."""
    return math.floor(1000 * share) / 1000


def rounded(window: timedelta) -> timedelta:
    """To hours, or of less than a day to minutes, of less than an hour to seconds."""
    units = (timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1))
    unit = next((unit for unit in units if window >= 24 * unit), units[-1])
    return max(round(window / unit), 1) * unit


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
        )
        if found != expected
    ]
    if not same_kind(bundle.item_encoder.ids.dtype, inputs.item_ids.dtype):
        differing.append("item ids")
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


def with_loss(choice: LearnerSettings, events: pl.DataFrame) -> LearnerSettings:
    """The choice with the loss that suits the data, where it names none: values that differ are predicted, events ranked."""
    if "loss" in choice.init_args or not takes(choice, "loss"):
        return choice
    loss = "squared" if events[VALUE].n_unique() > 1 else "softmax"
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
    windows = story.model_dump(
        mode="json", include={"seed", "popularity_window", "popularity_mix", "item_windows"}
    )
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
