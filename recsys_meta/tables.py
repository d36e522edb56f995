"""What passes between rooms as a table: column names, named once, and the types of what is published."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import polars as pl

# Checked interactions: one row per event. Ids keep the type they came with (any integer or string type).
USER_ID = "user_id"
ITEM_ID = "item_id"
VALUE = "value"  # Float32: the rating, or the weight of an implicit event (1.0 when none is given)
TIMESTAMP = "timestamp"  # Datetime("us", "UTC"); the column is absent where time is unknown

INSTANT = pl.Datetime("us", "UTC")

FeatureKind = Literal["categorical", "multi", "number", "vector"]


class Feature(NamedTuple):
    """One declared column of a user or item table.

    After ingest a ``categorical`` column is String, ``multi`` List(String), ``number`` Float32, ``vector`` List(Float32);
    null says "not known" in every one of them.
    """

    name: str
    kind: FeatureKind


# Where the scores of a user come from.
ADAPTED = "adapted"
PRIOR = "prior"
POPULARITY = "popularity"
SOURCES: Sequence[str] = (ADAPTED, PRIOR, POPULARITY)

ID = pl.Unknown  # stands in the schemas below for "the type the ids came in"

SCORES: Mapping[str, type[pl.DataType] | pl.DataType] = {
    "run_id": pl.String,
    USER_ID: ID,
    ITEM_ID: ID,
    "rank": pl.Int32,  # 1 is the top of the list
    "score": pl.Float32,  # finite, in the units of the learner's loss
    "propensity": pl.Float64,  # of the item at this rank given those above it, exact; 1.0 under the deterministic policy
    "source": pl.String,  # one of SOURCES
    "n_support": pl.Int32,  # examples the user was adapted on
    "model_version": pl.String,
    "generated_at": INSTANT,
}

USER_STATUS: Mapping[str, type[pl.DataType] | pl.DataType] = {
    USER_ID: ID,
    "source": pl.String,
    "n_support": pl.Int32,
    "support_loss_before": pl.Float32,  # null where nothing was adapted
    "support_loss_after": pl.Float32,
    "reason": pl.String,  # null where the user was adapted on its whole history
}

USER_VECTORS: Mapping[str, type[pl.DataType] | pl.DataType] = {
    "run_id": pl.String,
    USER_ID: ID,
    "vector": pl.List(pl.Float32),
}

QUARANTINE: Mapping[str, type[pl.DataType] | pl.DataType] = {
    "run_id": pl.String,
    "source": pl.String,  # file, or table of a database
    "row": pl.Int64,  # 1-based row of data in that source (a header is not counted)
    "column": pl.String,  # null where the whole row is at fault
    "reason": pl.String,
    "raw": pl.String,  # the row as JSON
}

# One row per judged user, draw, shot and metric; the currency of evaluation/.
JUDGEMENTS: Mapping[str, type[pl.DataType] | pl.DataType] = {
    "learner": pl.String,
    USER_ID: ID,
    "draw": pl.Int32,
    "shot": pl.String,  # "0", "1", ..., "all"
    "metric": pl.String,  # e.g. "mae", "ndcg@10"
    "value": pl.Float64,
}

# Who was shown what in an experiment: one row per shown item, or per user and moment where the last four columns are absent.
EXPOSURES: Mapping[str, type[pl.DataType] | pl.DataType] = {
    "experiment": pl.String,
    USER_ID: ID,
    "variant": pl.String,  # what the user was assigned to
    "exposed_at": INSTANT,
    "run_id": pl.String,  # of the night whose scores were shown; this and what follows may be absent
    ITEM_ID: ID,
    "position": pl.Int32,  # 1 is the top of the slate, as the rank of the scores
    "propensity": pl.Float64,  # probability that the item was shown at this position
}

# What users did, whatever the experiment: one row per event and metric.
OUTCOMES: Mapping[str, type[pl.DataType] | pl.DataType] = {
    USER_ID: ID,
    ITEM_ID: ID,  # may be absent, and null where the event is about no item
    "metric": pl.String,  # e.g. "click", "minutes"
    "value": pl.Float64,  # 1.0 for an event that only counts
    "occurred_at": INSTANT,
}

# Lists merged from two rankings: one row per item. A list is in force from its day on, until the next one of its user.
TEAMS: Sequence[str] = ("A", "B")
INTERLEAVED: Mapping[str, type[pl.DataType] | pl.DataType] = {
    "day": pl.Date,  # UTC
    USER_ID: ID,
    "position": pl.Int32,  # 1 is the top of the list
    ITEM_ID: ID,
    "team": pl.String,  # one of TEAMS; null where what comes of the item is credited to neither
}


def same_kind(one: pl.DataType, other: pl.DataType) -> bool:
    """Whether ids of these types can be the same id: of one type, or integers, which are compared by value."""
    return one == other or (one.is_integer() and other.is_integer())


def in_width(ids: pl.Series, dtype: pl.DataType, of: str) -> pl.Series:
    """Ids in the type of those that they are matched with: integers in another width, anything else as it is.

    of: where those stand, in words. Raises ValueError where one side is text and the other is not, and where an id does not fit.
    """
    if ids.dtype == dtype:
        return ids
    if not same_kind(ids.dtype, dtype):
        raise ValueError(f"{ids.name} is {ids.dtype}, in {of} it is {dtype}; expected one type of id")
    cast = ids.cast(dtype, strict=False)
    lost = ids.filter(cast.is_null() & ids.is_not_null())
    if len(lost):
        raise ValueError(
            f"{ids.name} {lost[0]} does not fit {dtype}, its type in {of}; expected {ids.dtype} there too"
        )
    return cast
