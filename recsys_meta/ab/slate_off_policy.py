"""Off-policy evaluation of slates: several items shown together, their rewards added up, positions filled from the top."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl

from recsys_meta.ab.estimators.sample import Codes, Numbers, Sample
from recsys_meta.ab.estimators.slates import SlateSample, available_for_slates
from recsys_meta.ab.intervals import Kind, Resamples, resamples
from recsys_meta.ab.logged_actions import POSITION, PROPENSITY, REWARD, SLATE_ID, LoggedActions, LogsError
from recsys_meta.ab.off_policy import DEFAULT_KIND, Evidence, Models, OffPolicy, evaluated
from recsys_meta.ab.policies import Policy, supported_share, target_probabilities
from recsys_meta.ab.verdict import Limits
from recsys_meta.tables import ITEM_ID

# How the positions of a slate are filled: by draws without replacement (Plackett-Luce), or each by a draw of its own.
Filling = Literal["without replacement", "independently"]

SLATE_ANSWERS = ("Cascade-DR", "RIPS")

_SLATE, _TARGET, _ABOVE = "slate", "target", "above"
_PLACE, _START, _END, _WHOLE = "place of a row", "start of a slate", "end of a slate", "slate without gaps"
# Share of the slates without gaps that have to be as long for a shorter one to lack its end; and where more than so many slates
# have gaps, so that rows are known to be missing.
_AGREEING, _AGREEING_WITH_GAPS, _GAPS = 0.9, 0.5, 0.01
_LEAST_LEFT = (
    1e-12  # of the target's probability on what is not shown yet: below it nothing is left to choose
)


def slate_off_policy(
    logs: LoggedActions,
    policy: Policy,
    *,
    filling: Filling = "without replacement",
    models: Models | None = None,
    estimators: Sequence[str] | None = None,
    kind: Kind = DEFAULT_KIND,
    level: float = 0.95,
    drawn: Resamples | None = None,
    draws: int = 1000,
    seed: int = 0,
    limits: Limits | None = None,
) -> OffPolicy:
    """Everything that logged slates say about a policy; values are per slate. Arguments as of ``off_policy``.

    policy: probabilities of the items for a position; without replacement they are those of the first position, and further down
    those that are left, made to add up to 1 again: as a Plackett-Luce model does.
    models: fitted on ``ordered(logs)``, so that they know the same rows.
    drawn: of the users of all slates; drawn anew, alike for every policy, where slates that are left out take users with them.
    Slates that lack rows are left out whole (``ordered``); their number stands in every note, and the verdict knows it.
    Raises LogsError as ``ordered`` does, or where a policy depends on the position.
    """
    if filling == "without replacement" and POSITION in policy.keys:
        raise LogsError(
            f"policy {policy.name!r} depends on the position, and positions are filled without replacement; expected one"
            " distribution for the whole slate, from which each position takes what is left"
        )
    given, logs = logs, ordered(logs)
    left_out = given.table[SLATE_ID].n_unique() - logs.table[SLATE_ID].n_unique()
    sample = slate_sample_of(logs, policy, filling, models)
    n_users = int(sample.users.max()) + 1
    if drawn is None or (left_out and len(drawn.groups) != n_users):
        drawn = resamples(n_users, draws if drawn is None else len(drawn.counts), seed)
    whole = Sample(
        sample.users, sample.total(sample.rewards), np.ones(len(sample.users)), sample.whole
    )  # so that the weights are those of whole slates
    found = [
        (estimator.name, estimator.contributions(sample), estimator.note)
        for estimator in available_for_slates(sample)
        if estimators is None or estimator.name in estimators
    ]
    evidence = Evidence(whole, logs.clustered, logs.origin, supported_share(policy, logs), "slate", left_out)
    return evaluated(policy, evidence, found, SLATE_ANSWERS, kind, level, drawn, limits)


def ordered(logs: LoggedActions) -> LoggedActions:
    """The logs by slate and position, without the slates that lack rows.

    A slate lacks rows where its positions are not 1, 2, .. without gaps (0, 1, .. where more slates begin at 0 than at 1), and
    where it ends above the position at which nine in ten of the slates without gaps end (half of them, where more than one slate
    in a hundred has gaps). Where lengths differ more than that, and where all slates were cut at one position, nothing tells that
    an end is missing.
    Positions that are text are sorted as the numbers that they are.
    Raises LogsError without slates, positions or propensities, for a position that is no whole number, and where all slates lack
    rows.
    """
    missing = [name for name in (SLATE_ID, POSITION, PROPENSITY) if name not in logs.table.columns]
    if missing:
        raise LogsError(f"logged slates lack {missing}; found {logs.table.columns}")
    rows = logs.table.with_columns(_places(logs.table).alias(_PLACE)).sort(SLATE_ID, _PLACE)
    place = pl.col(_PLACE)
    rows = rows.with_columns(
        place.min().over(SLATE_ID).alias(_START),
        place.max().over(SLATE_ID).alias(_END),
        (place - pl.int_range(pl.len())).over(SLATE_ID).alias(_WHOLE),
    )
    slates = rows.group_by(SLATE_ID).agg(pl.col(_START).first())[_START]
    top = 0 if (slates == 0).sum() > (slates == 1).sum() else 1
    rows = rows.filter((pl.col(_WHOLE) == top).all().over(SLATE_ID))
    if rows.is_empty():
        raise LogsError(
            f"none of the {len(slates):,} logged slates has all its rows; expected positions 1, 2, .. without gaps from the top"
        )
    ends = rows.group_by(SLATE_ID).agg(pl.col(_END).first())[_END]
    usual = ends.value_counts(sort=True).row(0, named=True)
    with_gaps = len(slates) - len(ends) > _GAPS * len(slates)
    if usual["count"] >= (_AGREEING_WITH_GAPS if with_gaps else _AGREEING) * len(ends):
        rows = rows.filter(pl.col(_END) >= usual[_END])
    return logs._replace(table=rows.select(logs.table.columns))


def _places(table: pl.DataFrame) -> pl.Series:
    """The positions as whole numbers, [n]. Raises LogsError, with the first offender, where one is none."""
    positions = table[POSITION]
    text = positions if positions.dtype.is_numeric() else positions.cast(pl.String).str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    wrong = ~(numbers.is_finite() & (numbers == numbers.floor())).fill_null(False)
    if wrong.any():
        row = wrong.arg_max() or 0
        raise LogsError(
            f"slate {table[SLATE_ID][row]!r} holds position {positions[row]!r} (and {int(wrong.sum()) - 1} other rows the like);"
            " expected whole numbers that count the places of a slate from its top"
        )
    return numbers


def slate_sample_of(
    logs: LoggedActions, policy: Policy, filling: Filling, models: Models | None
) -> SlateSample:
    """The slates as the estimators see them. logs: ordered."""
    slates = (logs.table[SLATE_ID].rank("dense").cast(pl.Int64) - 1).to_numpy()
    probabilities = target_probabilities(policy, logs)
    table = pl.DataFrame({_SLATE: slates, _TARGET: probabilities, PROPENSITY: logs.propensities})
    above = (pl.col(_TARGET).cum_sum() - pl.col(_TARGET)).over(_SLATE)
    table = table.with_columns(above.alias(_ABOVE))
    left = np.maximum(1.0 - table[_ABOVE].to_numpy(), 0.0)
    if filling == "independently" or policy.column is not None:  # which is given the items above already
        left = np.ones(len(left))
    conditional = np.divide(probabilities, left, out=np.zeros(len(left)), where=left > _LEAST_LEFT)
    weights = np.minimum(conditional, 1.0) / table[PROPENSITY].to_numpy()
    prefix = pl.DataFrame({_SLATE: slates, "w": weights}).select(pl.col("w").cum_prod().over(_SLATE))
    firsts = np.flatnonzero(np.diff(slates, prepend=-1))
    users = logs.users[firsts]
    _, users = np.unique(users, return_inverse=True)
    sample = SlateSample(
        slates,
        users,
        logs.table[REWARD].to_numpy(),
        weights,
        prefix["w"].to_numpy(),
        independent=filling == "independently",
    )
    if models is None or policy.column is not None:
        return sample
    values = models.plain.values(logs, policy)
    if filling == "without replacement":
        taken = _taken(logs, models, slates, probabilities)
        values = np.divide(values - taken, left, out=np.zeros(len(left)), where=left > _LEAST_LEFT)
    return sample._replace(model_value=values, model_reward=models.plain.rewards(logs))


def _taken(logs: LoggedActions, models: Models, slates: Codes, probabilities: Numbers) -> Numbers:
    """What the items above each row would have added to its v_k, [n]: they cannot be placed again."""
    rows = logs.table.with_columns(
        pl.Series(_SLATE, slates), pl.Series(_TARGET, probabilities), pl.int_range(pl.len()).alias("row")
    )
    pairs = rows.drop(ITEM_ID, _TARGET).join(
        rows.select(_SLATE, ITEM_ID, _TARGET, pl.col("row").alias("other")), on=_SLATE
    )
    pairs = pairs.filter(pl.col("other") < pl.col("row"), pl.col(_TARGET) > 0)
    if pairs.is_empty():
        return np.zeros(len(rows))
    predicted = models.plain.at(pairs, pairs["row"].to_numpy())
    added = np.bincount(pairs["row"].to_numpy(), pairs[_TARGET].to_numpy() * predicted, len(rows))
    return added.astype(np.float64)
