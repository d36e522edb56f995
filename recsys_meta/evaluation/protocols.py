"""Fixed episodes read from a table, so that every figure is read off the same rows."""

from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor

from recsys_meta.tables import ITEM_ID, USER_ID
from recsys_meta.tensors import Histories

SUPPORT = "support"
QUERY_ROLES = ("query", "test")


class ProtocolError(ValueError):
    """A table of episodes breaks the protocol; the message says where."""


class FixedEpisodes(NamedTuple):
    """T tasks whose support and query rows are given: one task per user and draw, sorted by these."""

    user_ids: pl.Series  # [T], as they came
    draws: Tensor  # [T] int64
    support: Histories  # T rows, in the order of the positions: shot k uses the first k
    query: Histories  # T rows

    @classmethod
    def from_table(
        cls, table: pl.DataFrame, item_ids: pl.Series, *, value: str | None = None
    ) -> "FixedEpisodes":
        """Reads and checks a table of episodes.

        table: user_id, item_id, draw, position, role (support, or query or test), and the column named by ``value``
        (without one, every row weighs 1). item_ids: the ids of the catalogue's rows.
        Raises ProtocolError for a missing column, an unknown role or item, an item that stands twice in a task (so support
        and query are disjoint), support positions other than 0..n-1, or a task without query.
        """
        needed = [USER_ID, ITEM_ID, "draw", "position", "role", *([value] if value else [])]
        missing = [name for name in needed if name not in table.columns]
        if missing:
            raise ProtocolError(f"episodes lack the columns {missing}; found {table.columns}")
        columns = [*(pl.col(name) for name in needed[:4]), pl.col("role").cast(pl.String)]
        columns.append((pl.col(value) if value else pl.lit(1.0)).cast(pl.Float32).alias("value"))
        rows = table.select(columns).sort(USER_ID, "draw", "position")
        _check(rows, item_ids)
        tasks = rows.select(USER_ID, "draw").unique(maintain_order=True).with_row_index("task")
        catalogue = item_ids.alias(ITEM_ID).to_frame().with_row_index("item")
        rows = rows.join(tasks, on=[USER_ID, "draw"], maintain_order="left")
        rows = rows.join(catalogue, on=ITEM_ID, maintain_order="left")
        is_support = pl.col("role") == SUPPORT
        return cls(
            tasks[USER_ID],
            tasks["draw"].cast(pl.Int64).to_torch(),
            _histories(rows.filter(is_support), len(tasks)),
            _histories(rows.filter(~is_support), len(tasks)),
        )


def _histories(rows: pl.DataFrame, tasks: int) -> Histories:
    """The rows, sorted by task, as histories of all tasks."""
    owners = rows["task"].cast(pl.Int64).to_torch()
    offsets = torch.zeros(tasks + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(owners, minlength=tasks), 0, out=offsets[1:])
    return Histories(
        rows["item"].cast(pl.Int64).to_torch(),
        rows["value"].to_torch(),
        torch.zeros(0, dtype=torch.int64),
        offsets,
    )


def _check(rows: pl.DataFrame, item_ids: pl.Series) -> None:
    """Raises ProtocolError where rows break the protocol. rows: sorted by user, draw, position."""
    task = [USER_ID, "draw"]
    empty = [name for name in rows.columns if rows[name].null_count()]
    if empty:
        raise ProtocolError(f"episodes hold empty cells in {empty}")
    roles = set(rows["role"].unique()) - {SUPPORT, *QUERY_ROLES}
    if roles:
        raise ProtocolError(f"unknown roles {sorted(roles)}; expected {SUPPORT!r}, or one of {QUERY_ROLES}")
    if rows[ITEM_ID].dtype != item_ids.dtype:
        raise ProtocolError(
            f"item ids are {rows[ITEM_ID].dtype} in the episodes, {item_ids.dtype} in the catalogue"
        )
    unknown = rows.filter(~pl.col(ITEM_ID).is_in(item_ids.implode()))
    if len(unknown):
        raise ProtocolError(
            f"{len(unknown)} rows name items outside the catalogue, first {unknown.row(0, named=True)}"
        )
    twice = rows.filter(pl.struct(*task, ITEM_ID).is_duplicated())
    if len(twice):
        raise ProtocolError(
            f"{len(twice)} rows name an item twice in one task, first {twice.row(0, named=True)}"
        )
    support = rows.filter(pl.col("role") == SUPPORT)
    gaps = support.filter(pl.col("position") != pl.int_range(pl.len()).over(task))
    if len(gaps):
        raise ProtocolError(f"support positions do not run 0, 1, 2, ...: first at {gaps.row(0, named=True)}")
    idle = (
        rows.group_by(task, maintain_order=True)
        .agg((pl.col("role") == SUPPORT).all().alias("idle"))
        .filter("idle")
    )
    if len(idle):
        raise ProtocolError(f"{len(idle)} tasks have no query row, first {idle.row(0, named=True)}")
