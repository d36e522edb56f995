"""What means hide: figures by how popular the items are, by how much is known of the users, and by who they are."""

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor

from recsys_meta.evaluation.intervals import summarize
from recsys_meta.tables import USER_ID

ON_ITEMS = " on "
"""Stands in the name of a metric before the group of items that it is about: ``recall@10 on cold items``."""

HISTORY = "history length"
POPULARITY = "popularity of the items"

_LENGTHS = (0, 2, 5, 10, 20, 50)  # the longest of each group of histories


class ItemGroups(NamedTuple):
    """A group for each of I items."""

    names: tuple[str, ...]
    of: Tensor  # [I] int64: rows of ``names``

    def named(self, metric: str, group: int) -> str:
        """The metric on the items of one group."""
        return f"{metric}{ON_ITEMS}{self.names[group]} items"


def popularity_groups(counts: Tensor) -> ItemGroups:
    """Cold items, of which nothing is known yet, and the others in three groups with about a third of all events each.

    counts: [I], the events of each item. Head are the few most chosen; equals keep the order of the items.
    """
    order = counts.argsort(descending=True, stable=True)
    chosen = counts[order].double()
    before = chosen.cumsum(0) - chosen
    third = (3 * before / chosen.sum().clamp(min=1)).long().clamp(max=2)
    of = torch.empty_like(third)
    of[order] = third
    return ItemGroups(("head", "middle", "tail", "cold"), of.masked_fill(counts == 0, 3))


def history_groups(user_ids: pl.Series, lengths: Tensor) -> pl.DataFrame:
    """user_id, kind, group, place: by how many support examples there are of a user. lengths: [T], the most of a user counts."""
    place = torch.bucketize(lengths, torch.tensor(_LENGTHS))
    lows = [0, *(length + 1 for length in _LENGTHS)]
    names = [
        *(
            str(high) if low == high else f"{low} to {high}"
            for low, high in zip(lows, _LENGTHS, strict=False)
        ),
        f"more than {_LENGTHS[-1]}",
    ]
    users = pl.DataFrame({USER_ID: user_ids, "place": pl.Series(place.numpy(), dtype=pl.Int64)})
    return users.group_by(USER_ID, maintain_order=True).agg(pl.col("place").max()).select(
        USER_ID,
        pl.lit(HISTORY).alias("kind"),
        pl.col("place").replace_strict(dict(enumerate(names)), return_dtype=pl.String).alias("group"),
        "place",
    )  # fmt: skip


def segment_groups(users: pl.DataFrame, name: str) -> pl.DataFrame:
    """user_id, kind, group, place: by a feature of the users, the most frequent value first. Null is a group too."""
    values = users.select(USER_ID, pl.col(name).cast(pl.String).fill_null("unknown").alias("group"))
    order = values["group"].value_counts().sort(["count", "group"], descending=[True, False])["group"]
    places: Mapping[str, int] = {value: place for place, value in enumerate(order)}
    return values.select(
        USER_ID,
        pl.lit(name).alias("kind"),
        "group",
        pl.col("group").replace_strict(places, return_dtype=pl.Int64).alias("place"),
    )


def breakdown(
    judgements: pl.DataFrame, metric: str, groups: pl.DataFrame, draws: int = 1000, seed: int = 0
) -> pl.DataFrame:
    """The summary of one metric for each group of users, and of all metrics on groups of items.

    groups: user_id, kind, group, place; a user may stand in several kinds. A kind of one group alone says nothing, and is
    left out.
    Gives the columns of ``intervals.summarize`` with kind and group before them.
    """
    pages = []
    mine = judgements.filter(pl.col("metric") == metric)
    several = groups.filter(pl.col("group").n_unique().over("kind") > 1)
    told = several.unique(["kind", "place"]).sort("kind", "place").select("kind", "group")
    for kind, group in told.iter_rows():
        members = several.filter((pl.col("kind") == kind) & (pl.col("group") == group))
        some = mine.join(members.select(USER_ID), on=USER_ID, how="semi", maintain_order="left")
        if len(some):
            pages.append(_labelled(summarize(some, draws, seed), kind, pl.lit(group)))
    items = judgements.filter(pl.col("metric").str.contains(ON_ITEMS, literal=True))
    if len(items):
        on = pl.col("metric").str.split_exact(ON_ITEMS, 1).struct.field("field_1").str.strip_suffix(" items")
        pages.append(_labelled(summarize(items, draws, seed), POPULARITY, on))
    return pl.concat(pages) if pages else _labelled(summarize(mine, draws, seed).clear(), "", pl.lit(""))


def _labelled(summary: pl.DataFrame, kind: str, group: pl.Expr) -> pl.DataFrame:
    """The summary under its kind and group."""
    metric = pl.col("metric").str.split_exact(ON_ITEMS, 1).struct.field("field_0")
    return summary.select(
        pl.lit(kind).alias("kind"), group.alias("group"), pl.all().exclude("metric"), metric.alias("metric")
    )
