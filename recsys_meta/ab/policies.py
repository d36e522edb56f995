"""Policies as tables: in which situation which action is chosen with which probability."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from recsys_meta.ab.estimators.sample import Numbers
from recsys_meta.ab.logged_actions import POSITION, REWARD, LoggedActions, LogsError, check_probabilities
from recsys_meta.tables import ITEM_ID, USER_ID, in_width

PROBABILITY = "probability"
_UNEVEN = 1e-4  # by how much probabilities of one situation may miss 1: those read from a text are rounded

_COLDEST = 1e-300  # of a smaller temperature the reciprocal may be infinite; the policy is the same


class Policy(NamedTuple):
    """A policy over the situations of the logs."""

    name: str
    keys: tuple[str, ...]  # columns of the logs that tell situations apart
    table: pl.DataFrame  # keys, ITEM_ID, PROBABILITY; actions of probability 0 may be left out
    note: str = ""  # what a reader has to know of how it came about
    column: str | None = (
        None  # of the logs, where these hold the probability of the logged action; the table is then empty
    )


def from_table(name: str, table: pl.DataFrame, keys: Sequence[str], note: str = "") -> Policy:
    """A policy whose probabilities are written down.

    Raises LogsError for probabilities outside [0, 1], actions named twice, or situations whose probabilities do not add up to 1.
    """
    columns = [*keys, ITEM_ID, PROBABILITY]
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise LogsError(f"policy {name!r} lacks the columns {missing}; found {table.columns}")
    table = table.select(columns).with_columns(pl.col(PROBABILITY).cast(pl.Float64))
    check_probabilities(table[PROBABILITY], f"policy {name!r}", zero=True)
    pairs = table.select(*keys, ITEM_ID)
    if pairs.is_duplicated().any():
        example = pairs.filter(pairs.is_duplicated()).row(0, named=True)
        raise LogsError(
            f"policy {name!r} names {example} more than once; expected one probability for each action"
        )
    totals = (
        table.group_by(keys).agg(pl.col(PROBABILITY).sum())
        if keys
        else table.select(pl.col(PROBABILITY).sum())
    )
    uneven = totals.filter((pl.col(PROBABILITY) - 1).abs() > _UNEVEN)
    if len(uneven):
        raise LogsError(
            f"policy {name!r}: the probabilities of {len(uneven)} of {len(totals)} situations do not add up to 1,"
            f" the first is {uneven.row(0, named=True)}"
        )
    return Policy(name, tuple(keys), table, note)


def uniform(
    logs: LoggedActions,
    actions: pl.Series | None = None,
    *,
    by_position: bool = True,
    name: str = "uniform",
) -> Policy:
    """Every action of a position alike, or of all positions. actions: all there are; None: those that were logged there."""
    keys = (POSITION,) if by_position and POSITION in logs.table.columns else ()
    note = ""
    if actions is None:
        table = logs.table.select(*keys, ITEM_ID).unique(maintain_order=True)
        note = "actions are those that occur in the logs"
    else:
        table = pl.DataFrame({ITEM_ID: actions.unique(maintain_order=True)})
        if keys:
            table = logs.table.select(keys).unique(maintain_order=True).join(table, how="cross")
    count = pl.len().over(keys) if keys else pl.len()
    return from_table(name, table.with_columns((1.0 / count).alias(PROBABILITY)), keys, note)


def softmax(scores: pl.DataFrame, temperature: float = 1.0, name: str = "scores") -> Policy:
    """What a run published, drawn from: probability proportional to exp(score / temperature) within each user's list.

    scores: USER_ID, ITEM_ID, score. The closer the temperature to 0, the closer to the first of the list always.
    """
    if not temperature > 0:
        raise LogsError(f"the temperature is {temperature}; expected a number above 0")
    score = pl.col("score").cast(pl.Float64)
    # Differences first: those of equals are 0 at any temperature, and what is too far below the best is no more than impossible.
    mass = ((score - score.max().over(USER_ID)) / max(temperature, _COLDEST)).exp()
    table = scores.with_columns((mass / mass.sum().over(USER_ID)).alias(PROBABILITY))
    note = f"softmax of published scores at temperature {temperature:g}"
    return from_table(name, table, (USER_ID,), note)


def as_logged(other: pl.DataFrame, keys: Sequence[str], name: str = "as logged") -> Policy:
    """What another behaviour did: the share of each action in its own logs, situation by situation. Estimated, not known."""
    counts = other.group_by(*keys, ITEM_ID, maintain_order=True).agg(pl.len().alias(PROBABILITY))
    total = pl.col(PROBABILITY).sum().over(keys) if keys else pl.col(PROBABILITY).sum()
    note = f"shares of actions in {len(other):,} other rows, by {', '.join(keys) or 'nothing'}: estimated"
    return from_table(name, counts.with_columns(pl.col(PROBABILITY) / total), keys, note)


def from_column(column: str, name: str | None = None) -> Policy:
    """A policy of which the logs hold how probable it makes each logged action (in a slate: given those above), and no more.

    What it would do instead is not known, so that there is neither a model of its value nor a share with support.
    """
    note = f"probabilities of the logged actions in column {column}"
    return Policy(name or column, (), pl.DataFrame(), note, column)


def target_probabilities(policy: Policy, logs: LoggedActions) -> Numbers:
    """The probability of every logged action under the policy, [n]; 0 where the policy never takes it.

    Raises LogsError where the policy does not say what it does in a situation of the logs.
    """
    if policy.column is not None:
        return _of_column(policy.column, logs)
    check_known(policy, logs)
    found = logs.table.select(*policy.keys, ITEM_ID).join(
        matching(policy, logs),
        on=[*policy.keys, ITEM_ID],
        how="left",
        maintain_order="left",
        nulls_equal=True,
    )
    return found[PROBABILITY].fill_null(0.0).to_numpy()


def _of_column(column: str, logs: LoggedActions) -> Numbers:
    if column not in logs.table.columns:
        raise LogsError(f"the logs have no column {column!r} of probabilities; found {logs.table.columns}")
    values = logs.table[column].cast(pl.Float64)
    check_probabilities(values, f"column {column!r}", zero=True)
    return values.to_numpy()


def supported_share(policy: Policy, logs: LoggedActions) -> float | None:
    """The share of the target's probability on actions seen at least once at that position in the logs; None if not known.

    A necessary condition only: an action may be seen in some situations and be impossible in others. What of that shows in the
    mean of the weights.
    """
    if policy.column is not None:
        return None
    place = [POSITION] if POSITION in logs.table.columns else []
    situations = logs.table.group_by(*dict.fromkeys([*policy.keys, *place])).agg(pl.len().alias("rows")) if (
        policy.keys or place
    ) else pl.DataFrame({"rows": [len(logs.table)]})  # fmt: skip
    seen = logs.table.select(*place, ITEM_ID).unique()
    table = matching(policy, logs)
    chosen = (
        situations.join(table, on=policy.keys, nulls_equal=True)
        if policy.keys
        else situations.join(table, how="cross")
    )
    supported = chosen.join(seen, on=[*place, ITEM_ID], how="semi", nulls_equal=True)
    mass = float((supported[PROBABILITY] * supported["rows"]).sum())
    return min(mass / len(logs.table), 1.0)


def check_known(policy: Policy, logs: LoggedActions) -> None:
    """Raises LogsError where a situation of the logs is none of the policy's."""
    lacking = [key for key in policy.keys if key not in logs.table.columns]
    if lacking:
        raise LogsError(
            f"policy {policy.name!r} depends on {lacking}, which the logs do not have; found {logs.table.columns}"
        )
    if not policy.keys:
        return
    situations = logs.table.select(policy.keys).unique(maintain_order=True)
    unknown = situations.join(matching(policy, logs), on=policy.keys, how="anti", nulls_equal=True)
    if len(unknown):
        raise LogsError(
            f"policy {policy.name!r} says nothing about {len(unknown):,} of {len(situations):,} situations of the logs,"
            f" such as {unknown.row(0, named=True)}; expected an action for each"
        )


def matching(policy: Policy, logs: LoggedActions) -> pl.DataFrame:
    """The policy's table with ids in the types of the logs. Raises LogsError where one is text and the other is not, or does not
    fit.
    """
    names = (*policy.keys, ITEM_ID)
    try:
        return policy.table.with_columns(
            in_width(policy.table[name], logs.table.schema[name], "the logs") for name in names
        )
    except ValueError as error:
        raise LogsError(f"policy {policy.name!r}: {error}") from error


def log_mean(logs: LoggedActions) -> float:
    """What the logging policy itself earned per row: the value to beat."""
    return float(np.mean(logs.table[REWARD].to_numpy()))
