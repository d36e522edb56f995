"""What can be set: one model per story, every field with its type, its default and a sentence saying what it does."""

import os
import re
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    Tag,
    model_validator,
)

DATASETS_VARIABLE = "RECSYS_META_DATASETS"
_SHARED_DATASETS = "/shared/datasets"

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_LONGEST = timedelta(days=36525)  # moments are dates: a thousand years before one there may be none
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])")


class Located(str):
    """A text of a config that remembers the folder of the file it stands in: a path there is relative to that folder."""

    folder: Path

    def __new__(cls, text: str, folder: Path) -> Self:
        located = super().__new__(cls, text)
        located.folder = folder
        return located


def _path(found: object) -> object:
    """Resolves against the folder of the config; shared data sets may live elsewhere (RECSYS_META_DATASETS)."""
    if not isinstance(found, str | Path) or not str(found):
        raise ValueError("expected a path")
    folder = found.folder if isinstance(found, Located) else Path()
    # Not Path.resolve: a link (the pointer to the newest run, say) stays a link.
    path = os.path.abspath(folder / Path(found).expanduser())  # noqa: PTH100
    elsewhere = os.environ.get(DATASETS_VARIABLE)
    before, shared, rest = f"{path}/".partition(f"{_SHARED_DATASETS}/")
    if elsewhere and shared and before:
        return Path(os.path.abspath(Path(elsewhere).expanduser() / rest))  # noqa: PTH100
    return Path(path)


def _duration(found: object) -> object:
    """ "1d12h" as a timedelta."""
    if isinstance(found, timedelta):
        return found
    parts = _DURATION.findall(found) if isinstance(found, str) else []
    if not parts or _DURATION.sub("", str(found)).strip():
        raise ValueError("expected a number with its unit, such as 30m, 24h, 2d or 1d12h (w, d, h, m, s)")
    amount = timedelta()
    for number, unit in parts:
        try:
            amount += timedelta(**{_UNITS[unit]: float(number)})
        except OverflowError:
            amount = timedelta.max
            break
    if amount > _LONGEST:
        raise ValueError("expected a duration of at most 100 years")
    if not amount:
        raise ValueError("expected a duration longer than nothing")
    return amount


def _day(day: date) -> date:
    """A day that has a morrow and a past."""
    if not 1000 <= day.year < 9999:
        raise ValueError(f"expected a day of the years 1000 to 9998, found {day}")
    return day


def duration_text(duration: timedelta) -> str:
    """A duration as configs write it: 1 day and 12 hours as "1d12h"."""
    seconds = duration.total_seconds()
    text = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        count, seconds = divmod(seconds, size)
        text += f"{count:.0f}{unit}" if count else ""
    return text + (f"{seconds:g}s" if seconds or not text else "")


def _plain(found: object) -> object:
    """Free values (a learner's arguments) without the memory of where they were written."""
    if isinstance(found, Located):
        return str(found)
    if isinstance(found, Mapping):
        return {_plain(key): _plain(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_plain(value) for value in found]
    return found


def _class_spec(found: object) -> object:
    """The short form: the dotted path alone."""
    return {"class_path": found} if isinstance(found, str) else found


FilePath = Annotated[Path, BeforeValidator(_path)]
Duration = Annotated[
    timedelta, BeforeValidator(_duration), PlainSerializer(duration_text, return_type=str, when_used="json")
]
RunDate = Annotated[date, AfterValidator(_day)]
Arguments = Annotated[dict[str, Any], BeforeValidator(_plain)]
Share = Annotated[FiniteFloat, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[FiniteFloat, Field(gt=0.0, lt=1.0)]
TimeUnit = Literal["s", "ms", "us", "iso", "auto"]
Duplicates = Literal["newest", "first", "mean", "keep"]


class Settings(BaseModel):
    """Base of all: an unknown key is an error, and nothing changes after loading."""

    PLACE: ClassVar[frozenset[str]] = (
        frozenset()
    )  # settings that say when and where a run is, and whether it may be published, not what it gives
    KIND_REPLACES: ClassVar[bool] = (
        False  # whether settings of another kind are other settings, with no key in common
    )
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSettings(Settings):
    """A class and the arguments it is constructed with."""

    class_path: str = Field(description="dotted path of the class, e.g. recsys_meta.algorithms.maml.MAML")
    init_args: Arguments = Field(
        default={},
        description="arguments of the class, checked against its signature; without loss, the values of the events say it",
    )


class LearnerSettings(ClassSettings):
    """The learner of a night."""

    class_path: str = Field(
        default="recsys_meta.algorithms.laddered.Laddered", description="dotted path of the learner's class"
    )


AnyLearner = Annotated[LearnerSettings, BeforeValidator(_class_spec)]


class SourceSettings(Settings):
    """Where rows come from: a file, a folder or glob of part files, or a table or query of a DuckDB file."""

    path: FilePath = Field(
        description="Parquet, CSV, TSV (.gz, .zip too), a folder or glob of part files, or a .duckdb file"
    )
    format: Literal["parquet", "csv", "duckdb"] | None = Field(
        default=None, description="by default told by the suffix"
    )
    separator: str | None = Field(
        default=None, min_length=1, description='of a CSV, any text such as "::"; else by suffix'
    )
    header: bool = Field(default=True, description="whether a CSV begins with a line of column names")
    column_names: tuple[str, ...] = Field(
        default=(), description="names of the columns of a CSV without a header"
    )
    encoding: str = Field(default="utf8", description="of a CSV")
    table: str | None = Field(default=None, description="table of a DuckDB file")
    query: str | None = Field(default=None, description="query to a DuckDB file, instead of a table")
    where: str | None = Field(
        default=None, description="SQL condition on the source's own columns; other rows are left out"
    )
    quote: str | None = Field(
        default='"',
        pattern=r"^[\x21-\x7e]$",
        description="around a cell of a CSV that holds separators; none: quotes are text",
    )
    text_columns: tuple[str, ...] = Field(
        default=(), description="ids of a CSV that stay texts even where all look like numbers"
    )
    member: str | None = Field(default=None, description="the file inside a zip archive")

    @model_validator(mode="after")
    def _one_of_table_and_query(self) -> Self:
        if self.table is not None and self.query is not None:
            raise ValueError("table and query are both given; expected one of them")
        if self.column_names and self.header:
            raise ValueError(
                "column_names are given for a file with a header; expected header: false beside them"
            )
        return self


class InteractionSettings(SourceSettings):
    """The interactions: who met what, when, and how it was liked."""

    user_id: str = Field(default="user_id", description="column of the user's id")
    item_id: str = Field(default="item_id", description="column of the item's id")
    value: str | None = Field(
        default=None, description="column of the rating, or of the weight of an event; none: 1 each"
    )
    timestamp: str | None = Field(default=None, description="column of the time; none: time is not known")
    time_unit: TimeUnit = Field(
        default="auto", description="of a number: since 1970, UTC; auto tells it by the size"
    )
    value_range: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="smallest and largest value that is believed; others go to quarantine"
    )
    positive_from: FiniteFloat | None = Field(
        default=None, description="values from here on become events of weight 1, and others are left out"
    )
    later: Literal["quarantine", "drop"] = Field(
        default="quarantine", description="what becomes of events after the moment of the run"
    )
    duplicates: Literal["auto"] | Duplicates = Field(
        default="auto",
        description="what stands for several events of one user with one item; auto: the newest of those with a value,"
        " the first of others",
    )

    @property
    def settled_by(self) -> Duplicates:
        """The rule for several events of one user with one item.

        An opinion may change, and the last one counts. What users do again and again is learned from where they met it: as the
        last of its events it would stand in nobody's support set, and be unknown to every moment of the past.
        """
        if self.duplicates != "auto":
            return self.duplicates
        return "first" if self.value is None else "newest"

    @model_validator(mode="after")
    def _range_in_order(self) -> Self:
        if self.value_range is not None and self.value_range[0] > self.value_range[1]:
            raise ValueError(
                f"value_range {list(self.value_range)} is upside down; expected the smallest value first"
            )
        named = [
            name for name in (self.user_id, self.item_id, self.value, self.timestamp) if name is not None
        ]
        twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
        if twice:
            raise ValueError(
                f"column {twice[0]!r} is named twice; expected user_id, item_id, value and timestamp of their own"
            )
        if (self.positive_from is not None or self.value_range is not None) and self.value is None:
            raise ValueError(
                "value_range and positive_from speak of a value column; expected value beside them"
            )
        return self


class FeatureSettings(SourceSettings):
    """A table of what is known about users or items."""

    id: str = Field(description="column of the id")
    categorical: tuple[str, ...] = Field(default=(), description="columns holding one of several values")
    multi: tuple[str, ...] = Field(
        default=(), description="columns holding any number of values: lists, or separated texts"
    )
    multi_separator: str = Field(
        default="|", min_length=1, description="between the values of a separated text"
    )
    numbers: tuple[str, ...] = Field(default=(), description="columns holding a number")
    vectors: tuple[str, ...] = Field(
        default=(), description="columns holding a list of numbers, all of one length"
    )

    @model_validator(mode="after")
    def _one_kind_each(self) -> Self:
        declared = [*self.categorical, *self.multi, *self.numbers, *self.vectors]
        twice = sorted({name for name in declared if declared.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} declared twice; expected one kind for each column")
        return self


class IdTableSettings(SourceSettings):
    """A table that lists ids."""

    id: str = Field(description="column of the id")


class ColdSettings(Settings):
    """Who counts as cold."""

    below: PositiveInt = Field(default=11, description="users with fewer interactions than this are cold")


class CandidateSettings(Settings):
    """What may be recommended; by default every item that was ever met or is listed."""

    seen_within: Duration | None = Field(
        default=None, description="only items met within this time before the moment"
    )
    table: IdTableSettings | None = Field(default=None, description="only items listed here")


class MomentSettings(Settings):
    """Moments of the past that training looks forward from, as a night does (split: moment)."""

    every: Duration = Field(default=timedelta(hours=1), description="between two moments")
    over: Duration = Field(default=timedelta(days=3), description="how far back the earliest moment lies")
    horizon: Duration = Field(
        default=timedelta(hours=24), description="how far after its moment a query event may lie"
    )


class TrainingSettings(Settings):
    """How the shared initialization is meta-trained."""

    max_epochs: PositiveInt | None = Field(
        default=None,
        description="passes over the training users, at most; none: as many as make some 1,500 steps, from 2 to 30, and where"
        " two would be more (nearly 100,000 users at 128 a step), two of 750 steps, each with users drawn anew (but for moments)",
    )
    batch_size: PositiveInt | None = Field(
        default=None, description="users per step of the outer loop; none: 64, and 128 from 10,000 users on"
    )
    outer_lr: FiniteFloat = Field(default=0.003, gt=0.0, description="step size of the outer loop (Adam)")
    weight_decay: FiniteFloat = Field(default=0.0, ge=0.0, description="of the outer loop")
    patience: PositiveInt = Field(
        default=5, description="epochs without a gain on validation users before training stops"
    )
    validation_share: OpenShare = Field(
        default=0.05,
        description="share of the training users held out to judge epochs and champions; of several folds none trains on it."
        " A single training holds out as many as this share of everybody where min_history leaves users out, and 900 where a"
        " learner settles something by them (the default for events does), at most a fifth of those it learns from. No more than"
        " 10,000 of those held out judge",
    )
    folds: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="trainings, each without another part of the users, of which the mean is kept; auto: 10 where there are"
        " fewer than 500 users, 5 where fewer than 100 would settle a single one (of those that validation_share holds out; where"
        " time is known of the newest half of them) or there are fewer than 10,000 users and items, else 1. Only of learners that"
        " are made for it, as the default for events is",
    )
    split: Literal["auto", "random", "time", "newcomers", "moment"] = Field(
        default="auto",
        description="support and query: at random, query later (time), so of newcomers after moments (newcomers), or around a"
        " common moment; auto: time where it is known",
    )
    shots: tuple[NonNegativeInt, ...] | None = Field(
        default=None,
        min_length=1,
        description="support sizes, one drawn for each episode; none: 0 to 20, or all there is under split: moment",
    )
    query_size: PositiveInt | None = Field(
        default=None, description="query examples per episode; none: all that remain"
    )
    max_support: PositiveInt | None = Field(
        default=None, description="longest support set, the newest; none: no limit"
    )
    most_items: PositiveInt | None = Field(
        default=16_384,
        description="items that the softmax of a step runs over; where there are more, those that its users chose and a quarter"
        " as many: the popular ones, and some of the others, drawn anew for each step and each standing for as many as it was"
        " drawn from; none: always all",
    )
    min_history: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="events that a user has to have to be trained, stopped and settled on; all are counted. auto: where"
        " rankings are judged of users held out as many as these have to have, of newcomers a third of it, if five hundred"
        " others do, else 1",
    )
    moments: MomentSettings = Field(default=MomentSettings(), description="for split: moment")
    warm_start: bool = Field(
        default=False,
        description="whether a night goes on from the champion's initialization, on the tasks that are new since then",
    )
    warm_epochs: PositiveInt | None = Field(
        default=None, description="max_epochs of a night that starts warm; none: the same"
    )
    reuse_for_days: NonNegativeInt = Field(
        default=0, description="how old a bundle may be that is used again; 0: train anew"
    )
    checkpoint_every: Duration = Field(
        default=timedelta(minutes=1),
        description="between two checkpoints within an epoch; each epoch ends with one",
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field(
        default="auto", description="where to compute; the CPU, and a line that says so, where that is absent"
    )


class AdaptationSettings(Settings):
    """How users are streamed; all but ``newest`` change memory and speed only."""

    batch_size: PositiveInt | None = Field(
        default=None, description="users adapted at once; none: by the size of the catalogue"
    )
    tile_size: PositiveInt = Field(default=4096, description="items scored at once")
    workers: PositiveInt | None = Field(
        default=None, description="threads that share the users among them on a CPU; none: one a core"
    )
    prefilter: bool = Field(
        default=False,
        description="whether an MLP may rule out items in bf16 first: the same lists, faster on large catalogues",
    )
    newest: PositiveInt = Field(
        default=500, description="of a longer history only this many of the newest are used"
    )
    shard_size: PositiveInt = Field(
        default=20_000, description="users per part that a killed run does not repeat"
    )


class SlateSettings(Settings):
    """Slates drawn at random from the best of each user, every item with the probability of being shown where it is."""

    policy: Literal["plackett_luce"] = Field(
        default="plackett_luce", description="position by position a softmax over the scores that are left"
    )
    temperature: FiniteFloat = Field(
        default=1.0,
        ge=0.0,
        description="of the softmax, in units of the scores; 0: the best that is left, except where explored",
    )
    exploration: Share = Field(
        default=0.0, description="share of the positions where all that is left of the pool is as probable"
    )
    pool: PositiveInt = Field(default=100, description="so many of the best are drawn from, top_k at least")
    seed: NonNegativeInt | None = Field(
        default=None, description="of the slates, which each day draws anew; none: the seed of all else"
    )


class PublishSettings(Settings):
    """What is published, and for how long it stays."""

    keep: PositiveInt = Field(default=7, description="runs that are kept, the newest counted")
    parquet: bool = Field(default=False, description="whether the same tables are written as Parquet too")
    vectors: bool = Field(
        default=False, description="whether one vector per user is published for an online ranker"
    )
    expires_after_days: PositiveInt = Field(
        default=2, le=36525, description="after so many days readers should not trust the scores"
    )
    max_row_drop: Share = Field(
        default=0.3,
        description="refuse to publish when the rows fall by more than this share against the last nights (see gates.nights)",
    )


class GateSettings(Settings):
    """What a night has to pass before it is published. No part of a run's name: a night let through keeps it."""

    champion_margin: Annotated[FiniteFloat, Field(ge=0.0)] | None = Field(
        default=0.01,
        description="a new model whose paired interval lies below the champion's figure by more than this share is not"
        " promoted; none: all are",
    )
    champion_level: OpenShare = Field(
        default=0.95, description="of that interval; with a lower one less evidence keeps the champion"
    )
    champion_users: PositiveInt = Field(
        default=2000, description="held-out users that both models are judged on, at most"
    )
    nights: PositiveInt = Field(
        default=5,
        description="the rows are compared with the median of so many of the last nights, those let through beyond the limit"
        " not counted",
    )
    max_feature_drop: Share | None = Field(
        default=0.3,
        description="refuse to train and publish when the rows of users or items, the tables of features, fall by more than this"
        " share against the last nights; none: never",
    )
    max_fallen_share: Share = Field(
        default=0.01,
        description="refuse to publish when the adaptation of more than this share of the users was not finite",
    )
    max_score_drift: Share | None = Field(
        default=0.9,
        description="refuse to publish when the distribution of the scores differs by more than this (Kolmogorov-Smirnov)"
        " from the last night of the same settings; none: never",
    )
    max_item_drift: Share | None = Field(
        default=None,
        description="refuse to publish when more than this share of the rows went to other items than on that night; none:"
        " never, for news are new each day",
    )


def _score_kind(found: object) -> str:
    # Tags with a blank cannot be taken for a key of the table in the place of an error.
    return "a word" if isinstance(found, str) else "a table"


class MixSettings(Settings):
    """A part of what popularity is mixed from: a window, or what users meet late."""

    window: Duration | None = Field(default=None, description="events within this time before the moment")
    after: PositiveInt | None = Field(
        default=None,
        description="events of users who had met so many things before, whenever; in place of window",
    )
    share: Share = Field(description="of the mixture; what they all leave is that of all time")

    @property
    def what(self) -> timedelta | int:
        """The window, or after how many things."""
        what = self.window if self.after is None else self.after
        assert what is not None
        return what

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if (self.window is None) == (self.after is None):
            raise ValueError("expected window or after, one of the two")
        return self

    def __str__(self) -> str:
        what = f"after: {self.after}" if self.window is None else f"window: {duration_text(self.window)}"
        return f"{{{what}, share: {self.share:g}}}"


class Story(Settings):
    """What every story needs."""

    workspace: FilePath = Field(description="folder for everything that is written; made where absent")
    seed: NonNegativeInt = Field(default=7, description="of everything that is drawn")
    interactions: InteractionSettings = Field(description="the interactions to learn from")
    users: FeatureSettings | None = Field(default=None, description="what is known about users")
    items: FeatureSettings | None = Field(default=None, description="what is known about items")
    max_quarantined_share: Share = Field(
        default=0.01, description="share of bad rows in a source above which the run stops"
    )
    popularity_window: Duration | None = Field(
        default=None, description="popularity counts events within this time before the moment; none: all"
    )
    popularity_mix: tuple[MixSettings, ...] = Field(
        default=(),
        description="what popularity is mixed from: shares of parts, the rest of all time; in place of popularity_window",
    )
    item_windows: tuple[Duration, ...] = Field(
        default=(), description="log counts of events within each of these times become features of the items"
    )
    cold: ColdSettings = Field(default=ColdSettings(), description="who counts as cold")
    candidates: CandidateSettings = Field(default=CandidateSettings(), description="what may be recommended")
    training: TrainingSettings = Field(
        default=TrainingSettings(), description="how the learner is meta-trained"
    )

    @property
    def split(self) -> Literal["random", "time", "newcomers", "moment"]:
        """How support and query are told apart in training: as set, or as whoever is served does things, one after the other."""
        if self.training.split != "auto":
            return self.training.split
        return "random" if self.interactions.timestamp is None else "time"

    @model_validator(mode="after")
    def _windows_need_time(self) -> Self:
        timed = {
            "popularity_window": self.popularity_window is not None,
            "popularity_mix": bool(self.popularity_mix),
            "item_windows": bool(self.item_windows),
            "training.split": self.training.split in ("time", "newcomers", "moment"),
            "candidates.seen_within": self.candidates.seen_within is not None,
            **self._timed(),
        }
        without = [name for name, needed in timed.items() if needed and self.interactions.timestamp is None]
        if without:
            raise ValueError(
                f"{', '.join(without)} need to know the time; expected interactions.timestamp beside them"
            )
        return self

    @model_validator(mode="after")
    def _mix_is_of_all_time(self) -> Self:
        total = sum(part.share for part in self.popularity_mix)
        if total > 1:
            raise ValueError(f"the shares of popularity_mix are {total:g} together; expected 1 at most")
        if self.popularity_mix and self.popularity_window is not None:
            raise ValueError(
                "popularity_mix is of all time and some windows; expected no popularity_window beside it"
            )
        return self

    def _timed(self) -> dict[str, bool]:
        """Further settings that need to know the time, and whether they are in use."""
        return {}


class NightSettings(Story):
    """A night: yesterday's interactions in, one published set of scores out."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace", "run_date", "gates"})

    run_date: RunDate | None = Field(
        default=None, description="day of the run; it ends the day, at midnight UTC; none: today"
    )
    score: Annotated[
        Annotated[Literal["cold", "all"], Tag("a word")] | Annotated[IdTableSettings, Tag("a table")],
        Discriminator(_score_kind),
    ] = Field(default="cold", description="who is scored: cold, all, or a table of ids (path, id)")
    exclude_consumed: bool = Field(default=True, description="whether what a user already met is left out")
    top_k: PositiveInt = Field(
        default=20, description="items published per user, as many as there are at most"
    )
    slate: SlateSettings | None = Field(
        default=None, description="lists are drawn at random, with propensities; none: the best, in order"
    )
    learner: AnyLearner = Field(default=LearnerSettings(), description="what is meta-trained and adapted")
    adaptation: AdaptationSettings = Field(default=AdaptationSettings(), description="how users are streamed")
    publish: PublishSettings = Field(
        default=PublishSettings(), description="what is published, and for how long"
    )
    gates: GateSettings = Field(
        default=GateSettings(), description="what a night has to pass before it is published"
    )

    @model_validator(mode="after")
    def _pool_holds_a_slate(self) -> Self:
        if self.slate is not None and self.slate.pool < self.top_k:
            raise ValueError(
                f"slate.pool is {self.slate.pool} and top_k {self.top_k}; expected a pool of top_k at least"
            )
        return self


Shot = NonNegativeInt | Literal["all"]


def _each_once(shots: tuple[Shot, ...]) -> tuple[Shot, ...]:
    """Every figure would count each user twice."""
    twice = [shot for place, shot in enumerate(shots) if shot in shots[:place]]
    if twice:
        raise ValueError(f"{twice[0]} stands twice, expected each number of shots once")
    return shots


Shots = Annotated[tuple[Shot, ...], AfterValidator(_each_once)]


_KINDS = "rating, ranking, listed, held_out_users, temporal or next_day"


class _EpisodeSettings(Settings):
    """Fixed episodes in a file, so that every figure is read off the same rows."""

    KIND_REPLACES: ClassVar[bool] = True
    episodes: SourceSettings = Field(
        description="user_id, item_id, role (support or query), and the columns named below"
    )
    validation: SourceSettings | None = Field(
        default=None, description="the same of validation users; none: training users are held out for it"
    )
    value: str | None = Field(default=None, description="column of the rating in the episodes")
    position: str = Field(default="position", description="column that orders the rows of an episode, from 0")
    draw: str | None = Field(
        default="draw", description="column that tells several episodes of a user apart; none: one each"
    )
    shots: Shots = Field(
        default=(1, 3, 5, 10, 20, "all"),
        min_length=1,
        description="support sizes judged: the first k support rows",
    )


class RatingProtocol(_EpisodeSettings):
    """Fixed episodes judged by the error of the predicted rating."""

    kind: Literal["rating"] = Field(description=_KINDS)
    value: str = Field(default="rating", description="column of the rating in the episodes")
    clip: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="predictions are cut to this range"
    )
    cutoff: PositiveInt = Field(default=5, description="length at which nDCG is read")


class RankingProtocol(_EpisodeSettings):
    """Fixed episodes judged by ranking the whole catalogue except the support rows used."""

    kind: Literal["ranking"] = Field(description=_KINDS)
    shots: Shots = Field(
        default=(1, 3, 5, 10, 20), min_length=1, description="support sizes judged: the first k support rows"
    )
    cutoff: PositiveInt = Field(default=10, description="length at which the metrics are read")


class ListedProtocol(_EpisodeSettings):
    """Fixed episodes judged by ranking the candidates that they list: their query rows, relevant where of value above 0."""

    kind: Literal["listed"] = Field(description=_KINDS)
    value: str = Field(default="rating", description="column of the label in the episodes")
    cutoff: PositiveInt = Field(default=5, description="length at which the metrics are read")


class HeldOutProtocol(Settings):
    """Users held out of the interactions themselves, judged on what they did beyond their support set."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["held_out_users"] = Field(description=_KINDS)
    share: OpenShare = Field(default=0.1, description="share of the users held out")
    min_history: PositiveInt = Field(
        default=13, description="held-out users with a shorter history are not judged"
    )
    query_size: PositiveInt | None = Field(
        default=None, description="query examples; none: all beyond the largest shot"
    )
    draws: PositiveInt = Field(default=1, description="times that support and query are drawn")
    metrics: Literal["auto", "rating", "ranking"] = Field(
        default="auto",
        description="auto: rating where the loss set for the learner is in the units of the values, or they vary; ranking of"
        " values that vary: each above 0 is an event like any other, unless losses are set",
    )
    shots: Shots = Field(default=(0, 1, 3, 5, 10), min_length=1, description="support sizes judged")
    clip: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="predicted ratings are cut to this range"
    )
    cutoff: PositiveInt = Field(default=10, description="length at which the metrics are read")


class TemporalProtocol(Settings):
    """One moment for all: learned from what lies before it, judged on users who first come after it, query after support."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["temporal"] = Field(description=_KINDS)
    share: OpenShare = Field(default=0.2, description="share of the events that lie after the moment")
    moment: date | None = Field(
        default=None, description="the moment is the midnight, UTC, that begins this day; none: told by share"
    )
    min_query: PositiveInt = Field(
        default=1, description="users with fewer events beyond the largest shot are not judged"
    )
    query_size: PositiveInt | None = Field(
        default=None, description="query examples; none: all beyond the largest shot"
    )
    max_users: PositiveInt | None = Field(
        default=None, description="so many of the users are judged, drawn by their ids; none: all"
    )
    metrics: Literal["auto", "rating", "ranking"] = Field(
        default="auto",
        description="auto: rating where the loss set for the learner is in the units of the values, or they vary; ranking of"
        " values that vary: each above 0 is an event like any other, unless losses are set",
    )
    shots: Shots = Field(
        default=(0, 1, 3, 5, 10), min_length=1, description="support sizes judged: the first k events"
    )
    clip: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="predicted ratings are cut to this range"
    )
    cutoff: PositiveInt = Field(default=10, description="length at which the metrics are read")


class NextDayProtocol(Settings):
    """What a night is for: learned until a midnight, judged on what its cold users meet the day after, new to them."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["next_day"] = Field(description=_KINDS)
    day: date = Field(description="the night is the one that ends this day, UTC; judged on the day after")
    max_users: PositiveInt | None = Field(
        default=None, description="so many of the users are judged, drawn by their ids; none: all"
    )
    shots: Shots = Field(
        default=(0, 1, 3, "all"), min_length=1, description="support sizes judged: the newest k events"
    )
    cutoff: PositiveInt = Field(default=10, description="length at which the metrics are read")


Protocol = (
    RatingProtocol | RankingProtocol | ListedProtocol | HeldOutProtocol | TemporalProtocol | NextDayProtocol
)


class BaselineSettings(ClassSettings):
    """A baseline of an evaluation."""

    popularity_window: Duration | None = Field(
        default=None, description="popularity_window for this one alone; none: that of the evaluation"
    )


AnyBaseline = Annotated[BaselineSettings, BeforeValidator(_class_spec)]


def alike(one: ClassSettings, other: ClassSettings) -> bool:
    """Whether both are one class with the same settings, whichever is called the learner and which the baseline."""

    def said(choice: ClassSettings) -> tuple[object, ...]:
        return choice.class_path, choice.init_args, getattr(choice, "popularity_window", None)

    return said(one) == said(other)


# What every evaluation is to be held against, of ratings and of events; the inverse of EASE is dense, and must end.
_RATING_LADDER: tuple[BaselineSettings, ...] = tuple(
    BaselineSettings(class_path=f"recsys_meta.baselines.{name}")
    for name in ("item_mean.ItemMean", "user_bias.ItemMeanUserBias", "als.ALS")
)
_RANKING_LADDER: tuple[BaselineSettings, ...] = (
    BaselineSettings(class_path="recsys_meta.baselines.popularity.Popularity"),
    BaselineSettings(class_path="recsys_meta.baselines.item_knn.ItemKNN"),
    BaselineSettings(class_path="recsys_meta.baselines.item_knn.ItemKNNPopularity"),
    BaselineSettings(
        class_path="recsys_meta.baselines.ease.EASEPopularity",
        init_args={"ridge": 300.0, "most_chosen": 6000},
    ),
    BaselineSettings(class_path="recsys_meta.baselines.ials.IALS", init_args={"factors": 64}),
)
# Days: popularity of late.
_LADDER_WINDOWS = {"temporal": (1, 7, 30), "next_day": (1 / 144, 1 / 24, 1 / 8, 1)}


def ladder(*, rated: bool, protocol: str) -> tuple[BaselineSettings, ...]:
    """The simple recommenders that suit the data, and, where time is cut, the popularity of some windows before the cut.

    rated: values differ and are to be predicted; protocol: its kind.
    """
    if rated:
        return _RATING_LADDER
    popularity = _RANKING_LADDER[0]
    recent = (
        popularity.model_copy(update={"popularity_window": timedelta(days=days)})
        for days in _LADDER_WINDOWS.get(protocol, ())
    )
    return (popularity, *recent, *_RANKING_LADDER[1:])


def ladders() -> tuple[BaselineSettings, ...]:
    """All that may stand in one."""
    return (*_RATING_LADDER, *_RANKING_LADDER)


class EvaluateSettings(Story):
    """An evaluation: learners and baselines judged on the same users at every number of shots."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace", "name"})

    name: str = Field(default="evaluation", description="what its reports are headed with")
    protocol: Annotated[Protocol, Discriminator("kind")] = Field(
        description="which users are judged, on what, and how"
    )
    judge: Literal["test", "validation"] = Field(
        default="test",
        description="who is judged; validation: users taken in the same way from what is learned from, for tuning",
    )
    learners: tuple[AnyLearner, ...] = Field(
        default=(LearnerSettings(),),
        description="what is meta-trained and judged: class paths, or class_path and init_args",
    )
    baselines: tuple[AnyBaseline, ...] | None = Field(
        default=None,
        description="what is judged beside them, in the same form, with popularity_window where wanted; none: the ladder of"
        " simple recommenders that suits the data, without what is a learner here",
    )
    segments: tuple[str, ...] = Field(
        default=(), description="categorical features of the users that figures are broken down by"
    )
    batch_size: PositiveInt = Field(default=256, description="users judged at once")
    bootstrap_draws: PositiveInt = Field(
        default=1000, description="resamples of the users behind every interval"
    )

    @model_validator(mode="after")
    def _starts_cold(self) -> Self:
        if self.training.warm_start:
            raise ValueError("training.warm_start goes on from the night before, which an evaluation has not")
        return self

    @model_validator(mode="after")
    def _something_is_judged(self) -> Self:
        if not self.learners and self.baselines is not None and not self.baselines:
            raise ValueError("learners and baselines are both empty; expected something to judge")
        return self

    @model_validator(mode="after")
    def _each_is_judged_once(self) -> Self:
        choices = [*self.learners, *(self.baselines or ())]
        for place, choice in enumerate(choices):
            if any(alike(choice, before) for before in choices[:place]):
                raise ValueError(
                    f"{choice.class_path} stands twice with the same settings among learners and baselines; expected it once:"
                    " every figure would count each user twice"
                )
        return self

    @model_validator(mode="after")
    def _clip_in_order(self) -> Self:
        clip = getattr(self.protocol, "clip", None)
        if clip is not None and clip[0] > clip[1]:
            raise ValueError(f"protocol.clip {list(clip)} is upside down; expected the smallest value first")
        return self

    @model_validator(mode="after")
    def _segments_are_features(self) -> Self:
        known = self.users.categorical if self.users is not None else ()
        strange = [name for name in self.segments if name not in known]
        if strange:
            raise ValueError(f"segments {strange} are no users.categorical; found {list(known)}")
        return self

    def _timed(self) -> dict[str, bool]:
        return {
            "protocol.kind": self.protocol.kind in ("temporal", "next_day"),
            "baselines.popularity_window": any(choice.popularity_window for choice in self.baselines or ()),
        }


class NightsSettings(Story):
    """Nights one after the other, three ways of keeping the model up to date beside each other."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace"})

    first: date = Field(description="day that the first night ends, UTC; each is judged on the day after it")
    last: date = Field(description="day that the last night ends")
    learner: AnyLearner = Field(default=LearnerSettings(), description="what is meta-trained and judged")
    gates: GateSettings = Field(
        default=GateSettings(),
        description="those of the champion, for what is trained every night",
    )
    max_users: PositiveInt | None = Field(
        default=None, description="so many users are judged a night, drawn by their ids; none: all"
    )
    cutoff: PositiveInt = Field(default=10, description="length at which NDCG is read")
    bootstrap_draws: PositiveInt = Field(default=1000, description="resamples behind every interval")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first >= self.last:
            raise ValueError(
                f"first is {self.first} and last {self.last}; expected two nights at least, in order"
            )
        if self.training.warm_start:
            raise ValueError("training.warm_start is what is tried here; expected it to be left out")
        return self

    def _timed(self) -> dict[str, bool]:
        return {"first": True}


class VariantSettings(Settings):
    """One side of a simulated month: a night, and the slate that it draws from its scores."""

    config: FilePath = Field(description="config of a night with the setting slate")
    settings: Arguments = Field(
        default={},
        description="dotted keys and values that stand over those of the config, as on the command line",
    )


class SimulateSettings(Settings):
    """A simulated month on the sample world: two policies, what would be logged, both analyses, and the truth beside them."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace"})

    workspace: FilePath = Field(description="folder for everything that is written; made where absent")
    seed: NonNegativeInt = Field(default=7, description="of everything that is drawn")
    control: VariantSettings = Field(description="what is live: its logs are what off-policy evaluation gets")
    treatment: VariantSettings = Field(description="what might be better")
    truth_users: FilePath = Field(description="truth_users.parquet of the sample world")
    truth_items: FilePath = Field(description="truth_items.parquet of the sample world")
    candidates: PositiveInt = Field(
        default=40, description="so many of the most met items are what both choose from"
    )
    first: date = Field(description="first day of the month, UTC")
    days: PositiveInt = Field(default=30, description="of the month")
    treated: OpenShare = Field(default=0.5, description="share of the users who get the treatment")
    visits: FiniteFloat = Field(
        default=0.4,
        gt=0.0,
        le=0.5,
        description="visits a day of the average user, one at most; users lie between none and twice as many",
    )
    liked_from: FiniteFloat = Field(
        default=4.5, description="true utility at which half of the largest attraction is reached"
    )
    largest_attraction: OpenShare = Field(
        default=0.5, description="probability of a click on what a user likes best, where it is looked at"
    )
    attention: Annotated[FiniteFloat, Field(ge=0.0)] = Field(
        default=0.7, description="position p is looked at with probability p to the power of minus this"
    )
    truth_draws: PositiveInt = Field(
        default=50, description="slates drawn for each user and policy to tell the truth by"
    )


class RangeSettings(Settings):
    """The values that a setting may take in tuning: choices, or everything from low to high."""

    choices: tuple[bool | int | FiniteFloat | str | None, ...] = Field(
        default=(), description="the values, where they are few"
    )
    low: int | FiniteFloat | None = Field(
        default=None, description="least value; whole numbers where both ends are"
    )
    high: int | FiniteFloat | None = Field(default=None, description="largest value")
    log: bool = Field(default=False, description="whether factors count, rather than differences")

    @model_validator(mode="after")
    def _choices_or_ends(self) -> Self:
        ends = (self.low, self.high)
        if bool(self.choices) == (ends != (None, None)) or (not self.choices and None in ends):
            raise ValueError("expected either choices, or low and high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; expected the least value as low")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError(f"low is {self.low:g}; expected it above 0, for with log factors count")
        return self


class TuneSettings(EvaluateSettings):
    """Tuning: an evaluation on validation users, repeated with other settings."""

    trials: PositiveInt = Field(default=20, description="for each learner and baseline that is searched")
    spaces: dict[str, dict[str, RangeSettings]] = Field(
        default={},
        description="for a class path the arguments that are searched, and settings of the training as training.NAME",
    )

    @model_validator(mode="after")
    def _spaces_are_of_what_is_judged(self) -> Self:
        baselines = ladders() if self.baselines is None else self.baselines
        known = {choice.class_path for choice in (*self.learners, *baselines)}
        strange = sorted(set(self.spaces) - known)
        if strange:
            raise ValueError(
                f"spaces of {strange}; expected some of {sorted(known)}, the learners and baselines"
            )
        keys = {key for space in self.spaces.values() for key in space if key.startswith("training.")}
        strange = sorted(key for key in keys if key.partition(".")[2] not in TrainingSettings.model_fields)
        if strange:
            raise ValueError(f"{strange} are no settings of the training")
        return self


def _config_alone(found: object) -> object:
    """The short form: the path of the config alone."""
    return {"config": found} if isinstance(found, str) else found


class EvaluationSettings(Settings):
    """One evaluation of a suite."""

    config: FilePath = Field(description="config of an evaluation")
    settings: Arguments = Field(
        default={},
        description="dotted keys and values that stand over those of the config, as on the command line",
    )


class SuiteSettings(Settings):
    """A suite: several evaluations, and the rank of every learner over all of them."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace"})

    workspace: FilePath = Field(
        description="folder for the ranks; evaluations and models stay in those of the configs"
    )
    evaluations: tuple[Annotated[EvaluationSettings, BeforeValidator(_config_alone)], ...] = Field(
        min_length=1, description="paths of configs, or config and settings"
    )
    judge: Literal["test", "validation"] | None = Field(
        default=None, description="who is judged in all of them; none: as each config says"
    )


class ExposureSettings(SourceSettings):
    """Who was exposed to which variant: one row per shown item, or any number of rows per user."""

    experiment: str | None = Field(
        default="experiment",
        description="column of the experiment's name; none: the table holds one experiment",
    )
    user_id: str = Field(default="user_id", description="column of the user's id")
    variant: str = Field(default="variant", description="column of the variant that the user was assigned to")
    exposed_at: str = Field(default="exposed_at", description="column of the time")
    time_unit: TimeUnit = Field(
        default="auto", description="of a number: since 1970, UTC; auto tells it by the size"
    )


class OutcomeSettings(SourceSettings):
    """What users did: one row per event and metric."""

    user_id: str = Field(default="user_id", description="column of the user's id")
    metric: str | None = Field(
        default="metric",
        description="column of the metric's name; none: all rows are of the metric called so",
    )
    called: str | None = Field(default=None, description="the metric of every row, where metric is none")
    value: str | None = Field(default="value", description="column of the value; none: 1 each")
    occurred_at: str = Field(default="occurred_at", description="column of the time")
    time_unit: TimeUnit = Field(
        default="auto", description="of a number: since 1970, UTC; auto tells it by the size"
    )

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if (self.metric is None) == (self.called is None):
            raise ValueError("expected either metric, a column, or metric: null and called, a name")
        return self


class MetricSettings(Settings):
    """What is compared: rows are added up per user first, whatever they are rows of."""

    name: str = Field(min_length=1, description="what it is called in the results")
    outcome: str | None = Field(
        default=None, description="metric of the outcomes that it is made of; none: that of its name"
    )
    kind: Literal["mean", "ratio", "quantile"] = Field(
        default="mean",
        description="mean of the users' numbers, their sum divided by that of per, or their quantile",
    )
    aggregate: Literal["sum", "count", "any"] = Field(
        default="sum", description="a user's number: its values added up, its rows, or 1 where there is any"
    )
    per: str = Field(
        default="exposures",
        description="of a ratio: what it is divided by, a metric of the outcomes, or the rows of exposures",
    )
    quantile: OpenShare = Field(default=0.5, description="which quantile")
    covariate: Literal["interactions", "value", "outcome"] | None = Field(
        default=None,
        description="what reduces the variance (CUPED), from before a user's first exposure: the number of interactions, their"
        " values added up, or the outcome itself; none: nothing",
    )
    better: Literal["higher", "lower"] = Field(default="higher", description="which way is better")
    guardrail: OpenShare | None = Field(
        default=None,
        description="makes it a guardrail: the share of control's mean by which it may be worse",
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "quantile" and self.covariate is not None:
            raise ValueError(f"{self.name}: a quantile takes no covariate")
        if self.kind != "ratio" and "per" in self.model_fields_set:
            raise ValueError(f"{self.name}: per belongs to kind: ratio")
        return self


def _metric_alone(found: object) -> object:
    """The short form: the name alone."""
    return {"name": found} if isinstance(found, str) else found


AnyMetric = Annotated[MetricSettings, BeforeValidator(_metric_alone)]


class ReadingSettings(Settings):
    """How experiments are read, before and after."""

    level: OpenShare = Field(
        default=0.95, description="of every interval; 1 - level is the risk of a false alarm"
    )
    power: OpenShare = Field(
        default=0.8, description="probability with which a minimum detectable effect is seen"
    )
    planned_days: FiniteFloat = Field(
        default=14.0,
        gt=0.0,
        description="days after which always-valid intervals are narrowest; to be set before the first look",
    )


class ExperimentSettings(ReadingSettings):
    """The analysis of an experiment: did a variant do better than control?"""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace", "aa", "aa_draws"})

    workspace: FilePath = Field(description="folder for everything that is written; made where absent")
    seed: NonNegativeInt = Field(default=7, description="of the random splits of an A/A check")
    experiment: str | None = Field(
        default=None, description="name of the experiment; none: the only one in the table of exposures"
    )
    exposures: ExposureSettings = Field(description="who was exposed to which variant, and when")
    outcomes: OutcomeSettings = Field(description="what users did, and when")
    interactions: InteractionSettings | None = Field(
        default=None, description="what users did before: for the covariates of metrics"
    )
    users: FeatureSettings | None = Field(default=None, description="what is known about users: for segments")
    max_quarantined_share: Share = Field(
        default=0.01, description="share of bad rows in a source above which the run stops"
    )
    metrics: tuple[AnyMetric, ...] = Field(
        min_length=1, description="what is compared: names, or keys and values"
    )
    control: str = Field(description="the variant that the others are compared with")
    shares: dict[str, Annotated[FiniteFloat, Field(gt=0.0)]] | None = Field(
        default=None,
        min_length=2,
        description="variants and the shares of the users meant for them (any scale); none: equal, for all that are found",
    )
    crossed: Literal["exclude", "first"] = Field(
        default="exclude",
        description="users seen in several variants: left out, or kept with the variant that they saw first",
    )
    max_crossed_share: Share = Field(
        default=0.01, description="share of such users above which the verdict is refused"
    )
    planned_end: date | None = Field(
        default=None,
        description="last day of the test, UTC; reached: intervals for one reading decide, and later rows do not count;"
        " before, or none: always-valid intervals decide",
    )
    window: Duration | None = Field(
        default=None,
        description="outcomes of a user count for so long after its first exposure; none: to the end",
    )
    pre_period: Duration | None = Field(
        default=None,
        description="covariates look back so far from a user's first exposure; none: to the beginning",
    )
    correction: Literal["holm", "benjamini-hochberg", "none"] = Field(
        default="holm", description="of the p-values over the metrics that are no guardrails"
    )
    segments: tuple[str, ...] = Field(
        default=(), description="categorical features of the users that effects are broken down by"
    )
    segment_correction: Literal["holm", "benjamini-hochberg", "none"] = Field(
        default="benjamini-hochberg", description="of the p-values over all segments and their metrics"
    )
    min_users: PositiveInt = Field(
        default=100, description="in each variant, for a verdict and for the first look"
    )
    sample_ratio_alpha: OpenShare = Field(
        default=0.001, description="the verdict is refused where the p-value of the sample ratio is smaller"
    )
    aa: bool = Field(
        default=False,
        description="instead of the analysis: split the same users at random, again and again, and count false alarms",
    )
    aa_draws: PositiveInt = Field(default=2000, description="random splits of it")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [metric.name for metric in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"metrics {', '.join(twice)} stand twice; expected a name of its own for each")
        if all(metric.guardrail is not None for metric in self.metrics):
            raise ValueError("all metrics are guardrails; expected one at least that is to be won")
        before = [metric.name for metric in self.metrics if metric.covariate in ("interactions", "value")]
        if before and (self.interactions is None or self.interactions.timestamp is None):
            raise ValueError(
                f"covariates of {', '.join(before)} are taken from interactions; expected interactions with a timestamp"
            )
        known = self.users.categorical if self.users is not None else ()
        strange = [name for name in self.segments if name not in known]
        if strange:
            raise ValueError(f"segments {strange} are no users.categorical; found {list(known)}")
        if self.shares and self.control not in self.shares:
            raise ValueError(f"control {self.control!r} is none of shares; found {list(self.shares)}")
        return self


class RankingSettings(SourceSettings):
    """A ranking of items for every user: what a run published, or any table of scores."""

    user_id: str = Field(default="user_id", description="column of the user's id")
    item_id: str = Field(default="item_id", description="column of the item's id")
    score: str | None = Field(
        default=None, description="column of the score, the largest first; none: score, unless rank is given"
    )
    rank: str | None = Field(default=None, description="column of the rank, the smallest first")

    @model_validator(mode="after")
    def _one_order(self) -> Self:
        if self.score is not None and self.rank is not None:
            raise ValueError("score and rank are both given; expected one of them")
        return self


class InterleavedSettings(SourceSettings):
    """The merged lists that users were shown: one row per item, as `interleave` writes them."""

    day: str = Field(default="day", description="column of the day from which a list is in force, UTC")
    user_id: str = Field(default="user_id", description="column of the user's id")
    position: str = Field(default="position", description="column of the position, 1 at the top")
    item_id: str = Field(default="item_id", description="column of the item's id")
    team: str = Field(default="team", description="column of the team: A, B or nothing")


class InterleavedOutcomeSettings(OutcomeSettings):
    """What users did with which item: one row per event and metric."""

    item_id: str = Field(
        default="item_id", description="column of the item's id; nothing: the event is about none"
    )


class InterleaveSettings(ReadingSettings):
    """Interleaving: two rankings merged into one list for each user, or which of them users prefer by what they did with it."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace", "name"})

    workspace: FilePath = Field(description="folder for everything that is written; made where absent")
    name: str = Field(default="interleaving", description="what its report is headed with")
    a: RankingSettings | None = Field(
        default=None, description="the first ranking: what is live, the champion"
    )
    b: RankingSettings | None = Field(
        default=None, description="the second: what might be better, the challenger"
    )
    seed: NonNegativeInt = Field(default=7, description="of everything that is drawn")
    day: RunDate | None = Field(
        default=None, description="from which the lists are in force, UTC; each day draws anew; none: today"
    )
    positions: PositiveInt = Field(default=10, description="of a merged list, at most")
    method: Literal["team draft", "probabilistic"] = Field(
        default="team draft", description="how two rankings are merged, see interleaving.md"
    )
    credit_shared: bool = Field(
        default=False,
        description="of a team draft: whether items at the top that both rankings have in the same order count for a team",
    )
    interleaved: InterleavedSettings | None = Field(
        default=None,
        description="the lists that users were shown; none: all that were merged into this workspace",
    )
    outcomes: InterleavedOutcomeSettings | None = Field(
        default=None, description="what users did: makes it the analysis; none: the rankings are merged"
    )
    outcome: str = Field(
        default="click",
        description="metric of the outcomes whose values are credited to the teams; more is better",
    )
    planned_end: date | None = Field(
        default=None,
        description="last day of the test, UTC; reached: the interval for one reading decides, and later rows do not count;"
        " before, or none: the always-valid interval decides",
    )
    min_users: PositiveInt = Field(
        default=100, description="who did anything with their lists, for a verdict and for the first look"
    )
    draws_alpha: OpenShare = Field(
        default=0.001, description="the verdict is refused where the p-value of a fair coin is smaller"
    )
    max_quarantined_share: Share = Field(
        default=0.01, description="share of bad rows in a source above which the run stops"
    )

    @model_validator(mode="after")
    def _merges_or_analyses(self) -> Self:
        if self.outcomes is None and (self.a is None or self.b is None):
            raise ValueError("expected either a and b, to be merged, or outcomes, to be analysed")
        return self


class StatedSettings(Settings):
    """Figures of a metric that are known already."""

    mean: FiniteFloat = Field(description="of the users")
    standard_deviation: FiniteFloat = Field(gt=0.0, description="of the users")
    users_a_day: FiniteFloat = Field(gt=0.0, description="who come for the first time on a day of the test")
    covariate_correlation: FiniteFloat = Field(
        default=0.0,
        ge=-1.0,
        le=1.0,
        description="with what is known of users from before (CUPED); 0: nothing is",
    )


class PowerSettings(ReadingSettings):
    """Before an experiment: how many users, for how long, to see a lift."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace"})

    workspace: FilePath = Field(description="folder for everything that is written; made where absent")
    run_date: RunDate | None = Field(
        default=None,
        description="last day that is measured, UTC; interactions later than it are not; none: today",
    )
    metric: AnyMetric = Field(
        default=MetricSettings(name="interactions"),
        description="a mean or a ratio; without outcomes one of the interactions themselves, whatever it is called",
    )
    interactions: InteractionSettings | None = Field(
        default=None, description="who comes when, and covariates; with its timestamp"
    )
    outcomes: OutcomeSettings | None = Field(
        default=None, description="what users did; none: the interactions are what is counted"
    )
    stated: StatedSettings | None = Field(
        default=None, description="figures that are known already, instead of tables"
    )
    days: tuple[PositiveInt, ...] = Field(
        default=(7, 14, 21, 28),
        min_length=1,
        description="lengths of a test; each is measured on the last so many days of the interactions",
    )
    lifts: tuple[Annotated[FiniteFloat, Field(gt=0.0)], ...] = Field(
        default=(0.01, 0.02, 0.05, 0.1), description="relative effects that users and days are wanted for"
    )
    treatment_share: OpenShare = Field(default=0.5, description="of the users, in the treatment")
    pre_period: Duration | None = Field(
        default=None,
        description="covariates look back so far from a user's first visit; none: to the beginning",
    )
    max_quarantined_share: Share = Field(
        default=0.01, description="share of bad rows in a source above which the run stops"
    )

    @model_validator(mode="after")
    def _tables_or_figures(self) -> Self:
        if (self.stated is None) == (self.interactions is None):
            raise ValueError("expected either interactions, to measure on, or stated figures")
        if self.interactions is not None and self.interactions.timestamp is None:
            raise ValueError("expected interactions.timestamp: a test is measured in days")
        if self.stated is not None and self.outcomes is not None:
            raise ValueError("outcomes are given beside stated figures; expected one of them")
        if self.metric.kind == "quantile" or self.metric.guardrail is not None:
            raise ValueError("metric: expected a mean or a ratio, and no guardrail")
        return self


class LogSettings(SourceSettings):
    """The logged actions: what was shown, with which probability, and what came of it."""

    item_id: str = Field(default="item_id", description="column of the item that was shown: the action")
    reward: str = Field(default="reward", description="column of what came of it, e.g. 1 for a click")
    written_by: str | None = Field(
        default=None, description="command that writes these logs, to be told where there are none yet"
    )
    propensity: str | None = Field(
        default=None,
        description="column of the probability with which it was chosen (in a slate: given those above it); none: not known",
    )
    propensity_factor: FiniteFloat = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="times the column; 1/n where it is the probability of being among n choices of a user, not of being the one",
    )
    propensities: Literal["logged", "estimated", "stated", "none"] | None = Field(
        default=None,
        description="where they come from; stated without a column: uniform over the actions; none: told by the column",
    )
    user_id: str | None = Field(
        default=None, description="column that tells which rows are of one user; none: every row stands alone"
    )
    position: str | None = Field(
        default=None, description="column of the position on the page or in the slate"
    )
    slate_id: str | None = Field(
        default=None,
        description="column that tells which rows were shown together; with position: slates are valued",
    )
    filling: Literal["without replacement", "independently"] = Field(
        default="without replacement",
        description="how positions of a slate are filled, in the logs and by the policy",
    )

    @property
    def slates(self) -> bool:
        """Whether slates are valued, rather than single actions."""
        return self.slate_id is not None and self.position is not None and self.origin != "none"

    context: tuple[str, ...] = Field(
        default=(),
        description="columns of the situation, for reward models and for policies that depend on it",
    )
    embedding: tuple[str, ...] = Field(
        default=(), description="columns that say what the item is like, such as its category, for MIPS"
    )

    @property
    def origin(self) -> Literal["logged", "estimated", "stated", "none"]:
        """Where the propensities come from."""
        return self.propensities or ("none" if self.propensity is None else "logged")

    @model_validator(mode="after")
    def _column_fits_origin(self) -> Self:
        if self.propensity is None and self.origin in ("logged", "estimated"):
            raise ValueError(
                f"propensities are {self.origin}, but no column holds them; expected propensity beside it"
            )
        if self.propensity is not None and self.propensities == "none":
            raise ValueError("propensities are none, and a column holds them; expected one or the other")
        return self


_POLICIES = "uniform, table, scores, logged or column"
_NAME = "what reports call it; none: by its file"


class ColumnPolicySettings(Settings):
    """A policy of which the logs hold how probable it makes each logged action: no model of its value, hence no DM and DR."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["column"] = Field(description=_POLICIES)
    column: str = Field(
        description="column of the logs with that probability; in a slate: given the items above"
    )


class UniformPolicySettings(Settings):
    """Every action of a position alike."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["uniform"] = Field(description=_POLICIES)


class TablePolicySettings(SourceSettings):
    """A policy whose probabilities are written down."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["table"] = Field(description=_POLICIES)
    name: str | None = Field(default=None, min_length=1, description=_NAME)
    keys: tuple[str, ...] = Field(
        default=(), description="columns that tell situations apart: user_id, position, or of the context"
    )
    item_id: str = Field(default="item_id", description="column of the item")
    probability: str = Field(default="probability", description="column of its probability in that situation")


class ScoresPolicySettings(SourceSettings):
    """What a run published for each user, drawn from by a softmax over the scores."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["scores"] = Field(description=_POLICIES)
    name: str | None = Field(default=None, min_length=1, description=_NAME)
    user_id: str = Field(default="user_id", description="column of the user's id")
    item_id: str = Field(default="item_id", description="column of the item's id")
    score: str = Field(default="score", description="column of the score")
    temperature: FiniteFloat = Field(
        default=1.0, gt=0.0, description="in units of the scores; the smaller, the closer to the best alone"
    )


class LoggedPolicySettings(SourceSettings):
    """What another behaviour did: the shares of the actions in its own logs."""

    KIND_REPLACES: ClassVar[bool] = True
    kind: Literal["logged"] = Field(description=_POLICIES)
    name: str | None = Field(default=None, min_length=1, description=_NAME)
    keys: tuple[str, ...] = Field(
        default=(), description="columns that tell situations apart: position, or of the context"
    )
    item_id: str = Field(default="item_id", description="column of the item that was shown")


PolicySettings = Annotated[
    UniformPolicySettings
    | TablePolicySettings
    | ScoresPolicySettings
    | LoggedPolicySettings
    | ColumnPolicySettings,
    Discriminator("kind"),
]


class RewardModelSettings(Settings):
    """The model of the reward behind DM and DR, cross-fitted by user."""

    kind: Literal["logistic", "boosting", "none"] = Field(
        default="logistic",
        description="linear on indicators, gradient boosted trees, or no model and no DM and DR",
    )
    folds: int = Field(
        default=5, ge=2, description="parts of the users; each is judged by a fit on the others"
    )


class AnalysisSettings(Settings):
    """One of several analyses of the same source."""

    where: str | None = Field(default=None, description="SQL condition on the logs, beside logs.where")
    target: PolicySettings | None = Field(
        default=None, description="the policy that is valued; none: that of the story"
    )
    against: PolicySettings | None = Field(
        default=None, description="another that it is compared with on the same logs; none: that of the story"
    )


class OffPolicySettings(Settings):
    """Off-policy evaluation: what a policy would have earned, from the logged actions of another."""

    PLACE: ClassVar[frozenset[str]] = frozenset({"workspace", "name"})

    workspace: FilePath = Field(description="folder for everything that is written; made where absent")
    name: str = Field(default="off-policy evaluation", description="what its report is headed with")
    seed: NonNegativeInt = Field(default=7, description="of everything that is drawn")
    logs: LogSettings = Field(description="the logged actions")
    actions: IdTableSettings | None = Field(
        default=None,
        description="table of all items that could be shown; none: those that occur at a position",
    )
    target: PolicySettings = Field(
        default=UniformPolicySettings(kind="uniform"), description="the policy that is valued"
    )
    against: PolicySettings | None = Field(
        default=None, description="another policy that the target is compared with on the same logs"
    )
    analyses: dict[str, AnalysisSettings] = Field(
        default={}, description="name and settings of each, where there are several; none: one, of all rows"
    )
    estimators: tuple[str, ...] = Field(
        default=(), description="names of those wanted; none: all that can be computed"
    )
    fixed: dict[str, FiniteFloat] = Field(
        default={},
        description="estimators that tune a threshold or a shrinkage, and what it is to be instead, e.g. Switch-DR: 1",
    )
    reward_model: RewardModelSettings = Field(
        default=RewardModelSettings(), description="the model behind DM and DR"
    )
    interval: Literal["normal", "percentile", "studentized", "likelihood", "bernstein", "sequence"] = Field(
        default="studentized", description="method; the default by measured coverage, see offline_ab.md"
    )
    level: OpenShare = Field(default=0.95, description="of every interval")
    bootstrap_draws: int = Field(default=1000, ge=100, description="resamples of the users")
    max_quarantined_share: Share = Field(
        default=0.01, description="share of bad rows in the logs above which the run stops"
    )
