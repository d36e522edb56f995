"""Logged actions: what was shown, with which probability, and what came of it; single actions and slates in one table."""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import polars as pl

from recsys_meta.ab.estimators.sample import Codes, Numbers
from recsys_meta.tables import ITEM_ID, USER_ID

# One row per shown item. USER_ID (the unit that is independent of others), POSITION and SLATE_ID may be absent.
POSITION = "position"  # whole number; within a slate each stands once
REWARD = "reward"  # Float64, finite: what came of it, e.g. 1.0 for a click
PROPENSITY = "propensity"  # Float64 in (0, 1]: probability that this item was chosen for this position, given those above it
SLATE_ID = "slate_id"  # tells which rows were shown together; a single action may have one too

# Where propensities come from: written down when the action was drawn, told by somebody, worked out afterwards, or nowhere.
Origin = Literal["logged", "stated", "estimated", "none"]


class LogsError(ValueError):
    """The logs, or a policy over them, cannot be used; says what was found and what was expected."""

    exit_code: ClassVar[int] = 3


class LoggedActions(NamedTuple):
    """Checked logs of one logging policy."""

    table: pl.DataFrame
    context: tuple[str, ...]  # columns of the table that describe the situation
    origin: Origin
    embedding: tuple[str, ...] = ()  # columns of the table that describe the action

    @property
    def clustered(self) -> bool:
        """Whether it is known which rows belong to one user."""
        return USER_ID in self.table.columns

    @property
    def users(self) -> Codes:
        """A number for each row's user, 0 .. U-1; where users are not known each slate, or else each row, is one of its own."""
        unit = next((name for name in (USER_ID, SLATE_ID) if name in self.table.columns), None)
        if unit is None:
            return np.arange(len(self.table))
        ranks = self.table[unit].rank("dense").cast(pl.Int64) - 1
        return ranks.to_numpy()

    @property
    def rewards(self) -> Numbers:
        """The rewards, [n]."""
        return self.table[REWARD].to_numpy()

    @property
    def propensities(self) -> Numbers | None:
        """The propensities, [n]; None where there are none."""
        return self.table[PROPENSITY].to_numpy() if PROPENSITY in self.table.columns else None


def logged_actions(
    table: pl.DataFrame,
    *,
    context: Sequence[str] = (),
    embedding: Sequence[str] = (),
    probabilities: Sequence[str] = (),
    origin: Origin = "logged",
) -> LoggedActions:
    """Logs from a table with the columns named above, checked as a whole.

    probabilities: further columns, each of a policy that makes the logged action so probable (``policies.from_column``).
    Raises LogsError for missing columns, values out of range, positions that stand twice in a slate, and no rows at all.
    """
    needed = [
        ITEM_ID,
        REWARD,
        *context,
        *embedding,
        *probabilities,
        *([PROPENSITY] if origin != "none" else []),
    ]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise LogsError(f"logged actions lack the columns {missing}; found {table.columns}")
    if table.is_empty():
        raise LogsError("there are no logged actions; expected one row for each item that was shown")
    kept = [
        name
        for name in (USER_ID, ITEM_ID, POSITION, SLATE_ID, REWARD, *context, *embedding, *probabilities)
        if name in table.columns
    ]
    if origin != "none":
        kept.append(PROPENSITY)
    table = table.select(*dict.fromkeys(kept)).with_columns(
        pl.col(name).cast(pl.Float64) for name in (REWARD, PROPENSITY) if name in kept
    )
    keys = [name for name in kept if name not in (*context, *embedding)]
    empty = [name for name in keys if table[name].null_count()]
    if empty:
        raise LogsError(f"logged actions hold rows without {empty}; expected every row to have them")
    if not table[REWARD].is_finite().all():
        raise LogsError("column 'reward' holds NaN or infinity; expected finite rewards")
    if PROPENSITY in kept:
        check_probabilities(table[PROPENSITY], "column 'propensity' of the logged actions")
    if SLATE_ID in kept and POSITION in kept:
        twice = table.select(SLATE_ID, POSITION).is_duplicated()
        if twice.any():
            example = table.filter(twice).select(SLATE_ID, POSITION).row(0)
            raise LogsError(
                f"slate {example[0]!r} holds position {example[1]!r} more than once; expected one item for each position"
            )
    return LoggedActions(table, tuple(context), origin, tuple(embedding))


def with_uniform_propensities(table: pl.DataFrame, actions: pl.Series | None = None) -> pl.DataFrame:
    """The table with the propensities of a logging policy that chose uniformly, as somebody states.

    actions: all there were at every position; None: those that occur at it.
    """
    if actions is not None:
        return table.with_columns(pl.lit(1.0 / actions.n_unique()).alias(PROPENSITY))
    count = pl.col(ITEM_ID).n_unique()
    return table.with_columns(
        (1.0 / (count.over(POSITION) if POSITION in table.columns else count)).alias(PROPENSITY)
    )


def check_probabilities(values: pl.Series, what: str, *, zero: bool = False) -> None:
    """Raises LogsError, with the first offender, unless all lie in (0, 1] (zero: in [0, 1])."""
    # A sum of floats may pass 1 by its last digits.
    wrong = ~((values >= 0 if zero else values > 0) & (values <= 1 + 1e-9)).fill_null(False)
    if wrong.any():
        row = wrong.arg_max() or 0
        raise LogsError(
            f"{what} holds {values[row]!r} in row {row + 1} (and {int(wrong.sum()) - 1} others out of range);"
            f" expected probabilities {'from 0' if zero else 'above 0'} to 1"
        )
