"""From settings to checked tables: what a story reads, and who and what stands in it."""

import hashlib
import logging
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipelines.outcomes import NothingToDo
from pipelines.settings import (
    FeatureSettings,
    IdTableSettings,
    InteractionSettings,
    NightSettings,
    PowerSettings,
    SourceSettings,
    Story,
)
from recsys_meta import ingest
from recsys_meta.episodes import Sightings, group, met_before
from recsys_meta.store.atomic import replace_file_atomically
from recsys_meta.tables import ITEM_ID, TIMESTAMP, USER_ID, VALUE, Feature, in_width
from recsys_meta.tensors import Histories

log = logging.getLogger(__name__)

_SLICE = 1_000_000  # rows hashed at once: bounds the memory of a fingerprint


class Tables(NamedTuple):
    """Checked tables, before the moment of the run."""

    interactions: pl.DataFrame  # all of them: what users consumed
    events: pl.DataFrame  # those to learn from: the same, or the positive ones with value 1
    users: pl.DataFrame | None
    items: pl.DataFrame | None
    candidates: pl.Series | None  # ids of the items that may be recommended; None: all
    requested: pl.Series | None  # ids of a table of users to score; None where the settings say who
    quarantine: pl.DataFrame
    counts: dict[str, int]


class Inputs(Tables):
    """Checked tables and what follows from them, each worked out once, when it is first asked for."""

    @cached_property
    def item_ids(self) -> pl.Series:
        """Every item that was met or is listed, in order: the rows of the catalogue."""
        listed = [] if self.items is None else [self.items[ITEM_ID]]
        return union(
            self.interactions[ITEM_ID], *listed, *([] if self.candidates is None else [self.candidates])
        )

    @cached_property
    def user_ids(self) -> pl.Series:
        """Every user that did something, is listed or is asked for, in order."""
        listed = [] if self.users is None else [self.users[USER_ID]]
        return union(
            self.interactions[USER_ID], *listed, *([] if self.requested is None else [self.requested])
        )

    @cached_property
    def refused(self) -> pl.DataFrame | None:
        """The interactions that are no events: of value below ``positive_from``. None where there are none."""
        if self.events.height == self.interactions.height:
            return None
        return self.interactions.join(self.events, on=[USER_ID, ITEM_ID], how="anti", maintain_order="left")

    @cached_property
    def histories(self) -> Histories:
        """The events of every user, rows as in ``user_ids``, items as in ``item_ids``."""
        return group(self.events, self.user_ids, self.item_ids)

    @cached_property
    def consumed(self) -> Histories:
        """All interactions of every user, likewise."""
        if self.events is self.interactions:
            return self.histories
        return group(self.interactions, self.user_ids, self.item_ids)

    @cached_property
    def sightings(self) -> Sightings:
        """When each item of ``item_ids`` was met in the events."""
        before = partial(met_before, self.histories)
        return Sightings(self.histories.items, self.histories.times, len(self.item_ids), before)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that was read and kept."""
        digest = hashlib.sha256()
        for table in (self.interactions, self.users, self.items):
            digest.update(b"-" if table is None else table_digest(table))
        for ids in (self.candidates, self.requested):
            digest.update(b"-" if ids is None else table_digest(ids.to_frame()))
        return digest.hexdigest()


def run_date_of(night: NightSettings | PowerSettings) -> date:
    """The day the run ends: as set, or today, UTC."""
    return night.run_date or datetime.now(UTC).date()


def moment_of(night: NightSettings | PowerSettings) -> datetime:
    """Midnight, UTC, at the end of the day of the run: what it may know lies before it."""
    day = run_date_of(night)
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)


def interactions_of(
    given: InteractionSettings, max_quarantined_share: float, moment: datetime | None, **rules: Any
) -> ingest.Checked:
    """The interactions that the settings name. rules: what else ``ingest.read_interactions`` is to know.

    moment: that of the run, which is the first instant of the next day; None: there is none, and no row is later than it.
    """
    return ingest.read_interactions(
        source_of(given),
        user_id=given.user_id,
        item_id=given.item_id,
        value=given.value,
        timestamp=given.timestamp,
        time_unit=given.time_unit,
        value_range=given.value_range,
        moment=None if moment is None else moment - timedelta(microseconds=1),
        later=given.later,
        max_quarantined_share=max_quarantined_share,
        **rules,
    )


def read_inputs(story: Story, moment: datetime | None) -> Inputs:
    """Reads and checks every table of a story.

    Raises ingest.InputError on what cannot be used, and NothingToDo where there are no interactions.
    """
    given = story.interactions
    share = story.max_quarantined_share
    checked = {"interactions": interactions_of(given, share, moment, duplicates=given.settled_by)}
    for name, table, id_name in (("users", story.users, USER_ID), ("items", story.items, ITEM_ID)):
        if table is not None:
            checked[name] = ingest.read_features(
                source_of(table),
                id_column=table.id,
                id_name=id_name,
                categorical=table.categorical,
                multi=table.multi,
                numbers=table.numbers,
                vectors=table.vectors,
                multi_separator=table.multi_separator,
                max_quarantined_share=share,
            )
            if checked[name].table.is_empty():
                log.warning("%s: no rows, so nothing is known of any of the %s", table.path, name)
    interactions = checked["interactions"].table
    if interactions.is_empty():
        raise NothingToDo(f"{given.path}: no interactions before {moment or 'the end'}")
    events = interactions
    if given.positive_from is not None:
        events = interactions.filter(pl.col(VALUE) >= given.positive_from).with_columns(
            pl.lit(1.0, pl.Float32).alias(VALUE)
        )
        if events.is_empty():
            raise ingest.InputError(
                f"{given.path}: column {given.value!r}: the largest value is {interactions[VALUE].max()!r}; expected some from"
                f" interactions.positive_from on, which is {given.positive_from:g}"
            )
    users, items = (checked[name].table if name in checked else None for name in ("users", "items"))
    candidates = ids_of(story.candidates.table, ITEM_ID)
    score = story.score if isinstance(story, NightSettings) else None
    asked = score if isinstance(score, IdTableSettings) else None
    requested = ids_of(asked, USER_ID)
    return Inputs(
        interactions,
        events,
        same_ids(users, USER_ID, interactions, story.users),
        same_ids(items, ITEM_ID, interactions, story.items),
        cast_ids(candidates, interactions, story.candidates.table),
        cast_ids(requested, interactions, asked),
        pl.concat([found.quarantine for found in checked.values()]),
        {f"{name}_{what}": n for name, found in checked.items() for what, n in found.counts.items()},
    )


def keep_quarantine(folder: Path, quarantine: pl.DataFrame) -> None:
    """Writes what an analysis set aside beside what it found, and names the first of it in the log."""
    path = folder / "quarantine.parquet"
    with replace_file_atomically(path) as temporary:
        quarantine.write_parquet(temporary)
    warn_of(quarantine, f" in {path}")


def warn_of(quarantine: pl.DataFrame, where: str = "") -> None:
    """Says in the log how many rows are set aside, where, and what is wrong with the first; nothing of none."""
    if quarantine.height:
        first = quarantine.row(0, named=True)
        log.warning(
            "%s rows are set aside%s, first: %s, row %s, column %r: %s",
            f"{quarantine.height:,}",
            where,
            *(first[name] for name in ("source", "row", "column", "reason")),
        )


def set_aside(quarantine: pl.DataFrame) -> str:
    """How much is in quarantine, and where: for a reader of the folder."""
    return f"{quarantine.height:,} rows (quarantine.parquet)" if quarantine.height else "0 rows"


def told_aside(quarantine: pl.DataFrame) -> str:
    """The same as a paragraph of its own; nothing where nothing is."""
    return f"\nSet aside: {set_aside(quarantine)}.\n" if quarantine.height else ""


def source_of(settings: SourceSettings) -> ingest.Source:
    """The source that the settings describe."""
    return ingest.Source(**{name: getattr(settings, name) for name in SourceSettings.model_fields})


def declared(settings: FeatureSettings | None) -> tuple[Feature, ...]:
    """The features that a table is declared to have."""
    if settings is None:
        return ()
    return ingest.declared_features(
        categorical=settings.categorical,
        multi=settings.multi,
        numbers=settings.numbers,
        vectors=settings.vectors,
    )


def ids_of(table: IdTableSettings | None, name: str) -> pl.Series | None:
    """The ids listed in a table, each once."""
    if table is None:
        return None
    return ingest.read_ids(source_of(table), id_column=table.id).unique(maintain_order=True).alias(name)


def same_ids(
    table: pl.DataFrame | None, name: str, interactions: pl.DataFrame, given: SourceSettings | None
) -> pl.DataFrame | None:
    """The table with its ids in the type of the interactions'."""
    ids = cast_ids(None if table is None else table[name], interactions, given)
    return None if table is None or ids is None else table.with_columns(ids)


def cast_ids(
    ids: pl.Series | None, interactions: pl.DataFrame, given: SourceSettings | None
) -> pl.Series | None:
    """Integer ids in the width of the interactions'; of no rows, as a text file without any has them, in their type.

    given: where the ids come from. None of None. Raises InputError where one side is text and the other is not, or where an id
    does not fit.
    """
    if ids is None:
        return None
    wanted = interactions.schema[ids.name]
    try:
        return ids.cast(wanted) if ids.is_empty() else in_width(ids, wanted, "the interactions")
    except ValueError as error:
        place = "" if given is None else f"{given.path}: "
        raise ingest.InputError(f"{place}{error}") from error


def union(*ids: pl.Series | None) -> pl.Series:
    """All ids, each once, ascending."""
    return pl.concat([some for some in ids if some is not None]).unique().sort()


def timed(interactions: pl.DataFrame) -> bool:
    """Whether time is known."""
    return TIMESTAMP in interactions.columns


def table_digest(table: pl.DataFrame) -> bytes:
    """sha256 of a table's names, types and rows in their order."""
    digest = hashlib.sha256(repr(table.schema).encode())
    for rows in table.iter_slices(_SLICE):
        buffer = BytesIO()
        rows.rechunk().write_ipc(buffer)
        digest.update(buffer.getbuffer())
    return digest.digest()
