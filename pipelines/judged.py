"""Who is judged, on what, and what is left to learn from: the tasks of every protocol."""

import logging
from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple, TypeVar

import polars as pl
import torch

from pipelines.inputs import Inputs, cast_ids, read_inputs, source_of, union, warn_of
from pipelines.settings import (
    EvaluateSettings,
    HeldOutProtocol,
    ListedProtocol,
    NextDayProtocol,
    Protocol,
    RankingProtocol,
    RatingProtocol,
    SourceSettings,
    Story,
    TemporalProtocol,
)
from recsys_meta import ingest
from recsys_meta.episodes import group, is_first, select, split_users, user_keys
from recsys_meta.evaluation.protocols import FixedEpisodes, ProtocolError
from recsys_meta.ingest.sources import read
from recsys_meta.models.losses import RATING_LOSSES
from recsys_meta.tables import ITEM_ID, TIMESTAMP, USER_ID, VALUE
from recsys_meta.tensors import Histories

log = logging.getLogger(__name__)

S = TypeVar("S", bound=EvaluateSettings)
T = TypeVar("T", bound=Story)

Judged = Literal["rating", "ranking", "listed"]
"""Errors of predicted values; the ranking of all candidates; the ranking of the query rows alone."""

_HELD_OUT_SEED = 1_000_003
_VALIDATION_SEED = 2_000_003
_VALIDATION_SHARE = 0.1
_ABOVE_0 = 1e-30  # the least value that is


class Tasks(NamedTuple):
    """Who is judged, and on what: one row per task in each."""

    user_ids: pl.Series
    draws: torch.Tensor  # [T] int64
    support: Histories
    query: Histories
    judged: Judged
    newest: bool = False  # whether shot k takes the last k support rows, instead of the first

    def take(self, rows: torch.Tensor) -> "Tasks":
        """These tasks, in this order. rows: [R] int64."""
        return self._replace(
            user_ids=self.user_ids.gather(rows.numpy()),
            draws=self.draws[rows],
            support=self.support.take(rows),
            query=self.query.take(rows),
        )


class Trial(NamedTuple):
    """What a protocol makes of the inputs."""

    tasks: Tasks
    inputs: Inputs  # what may be learned from
    training_users: pl.Series
    item_ids: pl.Series  # the items that the tasks speak of: rows of the judged catalogue
    moment: datetime | None = None  # what is known lies before it; None where time is unknown, or not cut
    horizon: timedelta | None = (
        None  # of a night: how far after its moment the query may lie, and all support before it
    )

    def known(self) -> Histories:
        """What everybody did, on the items of the trial."""
        return group(self.inputs.events, self.inputs.user_ids, self.item_ids)


def read_judged(settings: S) -> tuple[S, Inputs]:
    """The inputs, and the settings that they are read by. What was set aside, and what values are taken for, is said in the log.

    Where rankings are judged of values that differ, a learner whose loss follows the values would learn to predict them. So
    unless each has a loss set, everything above 0, which is what is to be found, counts alike, as ``positive_from`` has it.

    Raises ingest.InputError where no value is above 0, or where values are to be judged that are all the same.
    """
    inputs = read_inputs(settings, None)
    warn_of(inputs.quarantine)
    values = inputs.events[VALUE]
    if getattr(settings.protocol, "metrics", None) == "rating" and values.n_unique() == 1:
        raise ingest.InputError(
            f"protocol.metrics is rating, but all {len(values)} values are {values[0]:g}; expected values that differ"
            " (interactions.value, without positive_from), or ranking"
        )
    if ranks(settings.protocol) and not all("loss" in learner.init_args for learner in settings.learners):
        return events_alike(settings, inputs)
    return settings, inputs


def events_alike(settings: T, inputs: Inputs) -> tuple[T, Inputs]:
    """The same, but every value above 0 is an event like any other, where values differ and ``positive_from`` says nothing.

    Raises ingest.InputError where no value is above 0.
    """
    given = settings.interactions
    if given.value is None or given.positive_from is not None or inputs.events[VALUE].n_unique() == 1:
        return settings, inputs
    if not (inputs.events[VALUE] > 0).any():
        raise ingest.InputError(f"{given.path}: no {given.value} is above 0; expected some events to rank")
    repeated = "first" if given.duplicates == "auto" else given.duplicates  # as of events without a value
    as_events = given.model_copy(update={"positive_from": _ABOVE_0, "duplicates": repeated})
    settings = settings.model_copy(update={"interactions": as_events})
    log.warning(
        "rankings are judged, and values differ: each above 0 counts as one event (see interactions.positive_from)"
    )
    return settings, read_inputs(settings, None)


def ranks(protocol: Protocol) -> bool:
    """Whether the settings say that rankings are judged, whatever the values."""
    if isinstance(protocol, HeldOutProtocol | TemporalProtocol):
        return protocol.metrics == "ranking"
    return isinstance(protocol, NextDayProtocol)


def trial_of(settings: EvaluateSettings, inputs: Inputs) -> Trial:
    """The trial of the protocol; with ``judge: validation`` one more, cut from what the first leaves to learn from.

    Raises ingest.InputError where nobody is left to judge, the episodes break their protocol, or no prediction could be right.
    """
    trial = _trial_of(settings, inputs)
    clip, asked = getattr(settings.protocol, "clip", None), trial.tasks.query.values
    if trial.tasks.judged == "rating" and clip is not None and len(asked):
        least, most = asked.min().item(), asked.max().item()
        if least < clip[0] or most > clip[1]:
            raise ingest.InputError(
                f"protocol.clip is {list(clip)}, but what is asked for lies between {least:g} and {most:g}; expected a range"
                " that holds it"
            )
    return trial


def _trial_of(settings: EvaluateSettings, inputs: Inputs) -> Trial:
    protocol = settings.protocol
    on_validation = settings.judge == "validation"
    match protocol:
        case RatingProtocol() | RankingProtocol() | ListedProtocol():
            if on_validation and protocol.validation is not None:
                return fixed_trial(protocol, protocol.validation, inputs)
            trial = fixed_trial(protocol, protocol.episodes, inputs)
            if on_validation:
                return held_out_trial(settings, held_out_like(protocol), trial.inputs, _VALIDATION_SEED)
        case HeldOutProtocol():
            trial = held_out_trial(settings, protocol, inputs, _HELD_OUT_SEED)
            if on_validation:
                return held_out_trial(settings, protocol, trial.inputs, _VALIDATION_SEED)
        case TemporalProtocol():
            trial = temporal_trial(settings, protocol, inputs)
            if on_validation:
                return temporal_trial(settings, protocol.model_copy(update={"moment": None}), trial.inputs)
        case NextDayProtocol():
            trial = next_day_trial(settings, protocol, inputs)
            if on_validation:
                day_before = protocol.model_copy(update={"day": protocol.day - timedelta(days=1)})
                return next_day_trial(settings, day_before, trial.inputs)
    return trial


def fixed_trial(
    protocol: RatingProtocol | RankingProtocol | ListedProtocol, source: SourceSettings, inputs: Inputs
) -> Trial:
    """Episodes as they stand in a file."""
    named = {"position": protocol.position, "draw": protocol.draw, "value": protocol.value}
    columns = (USER_ID, ITEM_ID, "role", *(name for name in named.values() if name is not None))
    found = read(source_of(source), columns, ids=(USER_ID, ITEM_ID)).table
    rows = found.select(
        *(cast_ids(found[name], inputs.interactions, source) for name in (USER_ID, ITEM_ID)),
        "role",
        *(
            pl.lit(0 if name == "draw" else 1).alias(name) if column is None else pl.col(column).alias(name)
            for name, column in named.items()
        ),
    )
    try:
        episodes = FixedEpisodes.from_table(rows, inputs.item_ids, value="value")
    except ProtocolError as error:
        raise ingest.InputError(f"{source.path}: {error}") from error
    users = inputs.interactions[USER_ID].unique().sort()
    both = users.is_in(episodes.user_ids.implode())
    if both.any():
        raise ingest.InputError(
            f"{int(both.sum())} judged users stand among the interactions to learn from, first {users.filter(both)[0]!r};"
            " expected none: leave them out with interactions.where"
        )
    return Trial(Tasks(*episodes, protocol.kind), inputs, users, inputs.item_ids)


def held_out_like(protocol: RatingProtocol | RankingProtocol | ListedProtocol) -> HeldOutProtocol:
    """Training users judged as the episodes are, as far as histories tell."""
    largest_shot = largest(protocol)
    rating = isinstance(protocol, RatingProtocol)
    return HeldOutProtocol(
        kind="held_out_users",
        share=_VALIDATION_SHARE,
        # With "all" a user has what it has; otherwise everybody has the largest shot and something to be asked.
        min_history=13 if "all" in protocol.shots else largest_shot + 5,
        query_size=10 if rating else None,
        metrics="rating" if rating else "ranking",
        shots=protocol.shots,
        clip=protocol.clip if isinstance(protocol, RatingProtocol) else None,
        cutoff=protocol.cutoff,
    )


def held_out_trial(settings: EvaluateSettings, protocol: HeldOutProtocol, inputs: Inputs, seed: int) -> Trial:
    """Users held out of the interactions: in time where it is known, else in a random order per draw."""
    users = inputs.events[USER_ID].unique().sort()
    # Other seeds than that of the validation users of the training: these would all stand among the held-out ones.
    parts = split_users(users, protocol.share, settings.seed + seed)
    train, held_out = (users.gather(rows.numpy()) for rows in parts)
    learned = inputs._replace(
        interactions=without(inputs.interactions, held_out), events=without(inputs.events, held_out)
    )
    histories = group(inputs.events, held_out, learned.item_ids)
    histories = select(histories, is_first(histories))
    long_enough = (histories.lengths >= protocol.min_history).nonzero().squeeze(1)
    histories, ids = histories.take(long_enough), held_out.gather(long_enough.numpy())
    if held_out.is_empty():
        raise ingest.InputError(
            f"none of {len(users)} users is held out; raise protocol.share, which is {protocol.share:g}"
        )
    if ids.is_empty():
        raise ingest.InputError(
            f"none of {len(held_out)} held-out users has {protocol.min_history} events; lower protocol.min_history"
        )
    cuts = [
        cut(histories if histories.timed else shuffled(histories, settings.seed + draw), protocol)
        for draw in range(protocol.draws)
    ]
    longest = max(int(support.lengths.max()) for support, _ in cuts)
    beyond = [shot for shot in protocol.shots if shot != "all" and shot > longest]
    if beyond:
        log.warning(
            "nobody who is judged has more than %d events to show before its query: figures at %s shots are those at %d; see"
            " protocol.shots and protocol.min_history",
            longest,
            " and ".join(map(str, beyond)),
            longest,
        )
    tasks = Tasks(
        pl.concat([ids] * protocol.draws),
        torch.arange(protocol.draws).repeat_interleave(len(ids)),
        stacked([support for support, _ in cuts]),
        stacked([query for _, query in cuts]),
        judged_by(settings, protocol, learned),
    )
    return Trial(tasks, learned, train, learned.item_ids)


def temporal_trial(settings: EvaluateSettings, protocol: TemporalProtocol, inputs: Inputs) -> Trial:
    """One moment for all: whoever first comes after it is judged, and nothing after it is learned from."""
    if protocol.moment is None:
        in_time = inputs.events[TIMESTAMP].sort()
        moment: datetime = in_time[int((1 - protocol.share) * len(in_time))]
    else:
        moment = midnight(protocol.moment)
    named = "the moment (protocol.share)" if protocol.moment is None else "protocol.moment"
    learned = before(settings, inputs, moment, named)
    newcomers = without(inputs.events, learned.interactions[USER_ID].unique())
    known = newcomers.filter(pl.col(ITEM_ID).is_in(learned.item_ids.implode()))
    users = known[USER_ID].unique().sort()
    histories = group(known, users, learned.item_ids)
    histories = select(histories, is_first(histories))
    enough = largest(protocol) + protocol.min_query
    rows = (histories.lengths >= enough).nonzero().squeeze(1)
    if not len(rows):
        raise ingest.InputError(
            f"none of {len(users)} users who first come after {named} {moment} has {enough} events;"
            f"{' lower protocol.shots, protocol.min_query, or' if len(users) else ''} move the moment: {span(settings, inputs)}"
        )
    log.info(
        "known until %s: %d events; judged: %d of %d users who come after it; %d of their %d events are left out, with items"
        " that nothing was known of",
        moment,
        learned.events.height,
        len(rows),
        len(users),
        newcomers.height - known.height,
        newcomers.height,
    )
    rows = drawn(users, rows, protocol.max_users)
    support, query = cut(histories.take(rows), protocol)
    tasks = Tasks(
        users.gather(rows.numpy()), torch.zeros(len(rows), dtype=torch.int64), support, query,
        judged_by(settings, protocol, learned),
    )  # fmt: skip
    return Trial(tasks, learned, learned.events[USER_ID].unique().sort(), learned.item_ids, moment)


def next_day_trial(settings: Story, protocol: NextDayProtocol, inputs: Inputs) -> Trial:
    """A night: cold users are judged on candidates that they meet for the first time on the day after."""
    moment = midnight(protocol.day + timedelta(days=1))
    learned = before(settings, inputs, moment, f"the end of day {protocol.day},")
    counts = learned.interactions.group_by(USER_ID).len("n").sort(USER_ID)
    cold = counts.filter(pl.col("n") < settings.cold.below)[USER_ID]
    warm = counts.filter(pl.col("n") >= settings.cold.below)[USER_ID]
    candidates = learned.item_ids if inputs.candidates is None else inputs.candidates
    within = settings.candidates.seen_within
    if within is not None:
        recent = learned.events.filter(pl.col(TIMESTAMP) >= moment - within)[ITEM_ID].unique()
        candidates = candidates.filter(candidates.is_in(recent.implode()))
    asked = (
        inputs.events.filter(
            pl.col(TIMESTAMP).is_between(moment, moment + timedelta(days=1), closed="left")
            & pl.col(USER_ID).is_in(cold.implode())
            & pl.col(ITEM_ID).is_in(candidates.implode())
        )
        .join(learned.interactions, on=[USER_ID, ITEM_ID], how="anti", maintain_order="left")
        .unique([USER_ID, ITEM_ID], maintain_order=True)
    )
    users = asked[USER_ID].unique().sort()
    if users.is_empty():
        raise ingest.InputError(
            f"none of {len(cold)} cold users meets a candidate new to it on the day after day {protocol.day};"
            f" {span(settings, inputs)}"
        )
    rows = drawn(users, torch.arange(len(users)), protocol.max_users)
    log.info(
        "%s: %d users with less than %d events, %d candidates; judged: %d of the %d who meet one that is new to them",
        moment,
        len(cold),
        settings.cold.below,
        len(candidates),
        len(rows),
        len(users),
    )
    users = users.gather(rows.numpy())
    known = learned.events.filter(pl.col(USER_ID).is_in(users.implode()))
    items = union(
        candidates, known[ITEM_ID]
    )  # of a long past most are neither: they would only be carried along
    support = group(known, users, items)
    tasks = Tasks(
        users,
        torch.zeros(len(users), dtype=torch.int64),
        select(support, is_first(support)),
        group(asked, users, items),
        "ranking",
        newest=True,
    )
    return Trial(tasks, learned, warm, items, moment, timedelta(days=1))


def judged_by(
    settings: EvaluateSettings, protocol: HeldOutProtocol | TemporalProtocol, inputs: Inputs
) -> Judged:
    """Whether values or rankings are judged: as set, or by the loss set for the first learner, or by the values."""
    if protocol.metrics != "auto":
        return protocol.metrics
    loss = settings.learners[0].init_args.get("loss") if settings.learners else None
    rating = loss in RATING_LOSSES if loss is not None else inputs.events[VALUE].n_unique() > 1
    return "rating" if rating else "ranking"


def cut(histories: Histories, protocol: HeldOutProtocol | TemporalProtocol) -> tuple[Histories, Histories]:
    """Support and query: the largest shot and the rest; with "all" the last ``query_size`` (or half) are query."""
    place = torch.arange(len(histories.items)) - histories.offsets[:-1].repeat_interleave(histories.lengths)
    lengths = histories.lengths.repeat_interleave(histories.lengths)
    end = torch.full_like(lengths, largest(protocol))
    if "all" in protocol.shots:
        asked = torch.full_like(lengths, protocol.query_size) if protocol.query_size else lengths // 2
        end = lengths - asked
    end = end.minimum(lengths - 1)
    query = place >= end
    if protocol.query_size:
        query &= place < end + protocol.query_size
    return select(histories, place < end), select(histories, query)


def largest(
    protocol: HeldOutProtocol | TemporalProtocol | RatingProtocol | RankingProtocol | ListedProtocol,
) -> int:
    """The largest shot that is a number."""
    return max((shot for shot in protocol.shots if shot != "all"), default=0)


def drawn(users: pl.Series, rows: torch.Tensor, most: int | None) -> torch.Tensor:
    """At most so many of these rows of the users, chosen by the ids alone, ascending."""
    if most is None or len(rows) <= most:
        return rows
    return rows[user_keys(users)[rows].argsort()[:most]].sort().values


def before(settings: Story, inputs: Inputs, moment: datetime, named: str) -> Inputs:
    """What was known just before the moment, which is told as ``named``. Raises ingest.InputError where nothing was."""
    later_counts = settings.interactions.settled_by in ("newest", "mean")
    if later_counts and inputs.counts["interactions_merged_duplicates"]:
        # An event that a later one took the place of was known then: what a night at that moment would have read.
        users = inputs.interactions[USER_ID].unique().implode()
        given = settings.interactions.model_copy(update={"later": "drop"})
        then = read_inputs(settings.model_copy(update={"interactions": given}), moment)
        inputs = inputs._replace(
            interactions=then.interactions.filter(pl.col(USER_ID).is_in(users)),
            events=then.events.filter(pl.col(USER_ID).is_in(users)),
        )
    interactions, events = (
        table.filter(pl.col(TIMESTAMP) < moment) for table in (inputs.interactions, inputs.events)
    )
    if events.is_empty():
        raise ingest.InputError(
            f"no events before {named} {moment}, expected some to learn from; {span(settings, inputs)}"
        )
    return inputs._replace(interactions=interactions, events=events)


def span(settings: Story, inputs: Inputs) -> str:
    """When the events were, in words."""
    first, last = inputs.events.select(pl.col(TIMESTAMP).min(), last=pl.col(TIMESTAMP).max()).row(0)
    return f"{settings.interactions.path} has events from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def midnight(day: date) -> datetime:
    """The instant, UTC, that begins a day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def without(table: pl.DataFrame, users: pl.Series) -> pl.DataFrame:
    """The rows of everybody else."""
    return table.filter(~pl.col(USER_ID).is_in(users.implode()))


def stacked(histories: list[Histories]) -> Histories:
    """One below the other."""
    ends = torch.cat([some.lengths for some in histories]).cumsum(0)
    return Histories(
        torch.cat([some.items for some in histories]),
        torch.cat([some.values for some in histories]),
        torch.cat([some.times for some in histories]),
        torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
    )


def shuffled(histories: Histories, seed: int) -> Histories:
    """Each user's interactions in a random order."""
    chance = torch.rand(
        len(histories.items), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    order = torch.argsort(histories.owners() + chance)
    return histories._replace(items=histories.items[order], values=histories.values[order])
