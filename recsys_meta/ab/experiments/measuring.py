"""Rows to users: what every user of an experiment did after its first exposure, day by day and in all, and before it."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

import polars as pl

from recsys_meta.ab.experiments.metrics import EXPOSURES, Metric
from recsys_meta.ab.experiments.population import Population
from recsys_meta.tables import TIMESTAMP, USER_ID, VALUE


class Daily(NamedTuple):
    """What counts of the rows, and how many do not."""

    rows: (
        pl.DataFrame
    )  # USER_ID, "metric", "day", "total" (of the values), "rows", "squares" (of the values), by user and day
    before_exposure: int  # rows of users of the experiment that lie before their first exposure
    of_others: int  # rows of users who do not take part
    too_late: int  # rows after the end, or beyond the window of their user
    last: datetime | None  # row of a user of the experiment, neither early nor after the end; None: none


def daily(
    people: Population,
    exposures: pl.DataFrame,
    outcomes: pl.DataFrame,
    *,
    until: datetime | None = None,
    window: timedelta | None = None,
) -> Daily:
    """Adds up the outcomes of every user on every day (UTC) from its first exposure on; exposures count as a metric of their own.

    until: rows from this moment on do not count. window: nor do those of a user so long after its first exposure.
    """
    shown = exposures.select(
        USER_ID, metric=pl.lit(EXPOSURES), value=pl.lit(1.0), occurred_at=pl.col("exposed_at")
    )
    joined = pl.concat([outcomes.select(shown.columns), shown]).join(
        people.users.select(USER_ID, "exposed_at"), on=USER_ID
    )
    early = pl.col("occurred_at") < pl.col("exposed_at")
    late = pl.lit(False)
    if until is not None:
        late = late | (pl.col("occurred_at") >= until)
    last = joined.filter(~early & ~late)["occurred_at"].max()
    assert last is None or isinstance(last, datetime)
    if window is not None:
        late = late | (pl.col("occurred_at") >= pl.col("exposed_at") + window)
    told = joined.select(early=early.sum(), late=(late & ~early).sum()).row(0)
    rows = (
        joined.filter(~early & ~late)
        .group_by(USER_ID, "metric", pl.col("occurred_at").dt.date().alias("day"))
        .agg(
            pl.col("value").sum().alias("total"),
            pl.len().cast(pl.Float64).alias("rows"),
            (pl.col("value") ** 2).sum().alias("squares"),
        )
        .sort(USER_ID, "metric", "day")
    )
    return Daily(rows, told[0], outcomes.height + shown.height - joined.height, told[1], last)


def before(
    people: Population,
    metrics: Iterable[Metric],
    interactions: pl.DataFrame | None,
    outcomes: pl.DataFrame,
    *,
    over: timedelta | None = None,
) -> dict[str, pl.DataFrame]:
    """For each metric with a covariate: USER_ID and "covariate", of the users who did anything before their first exposure.

    over: how far before that exposure it is looked; None: to the beginning.
    """
    found: dict[str, pl.DataFrame] = {}
    for metric in metrics:
        if metric.covariate is None:
            continue
        if metric.covariate == "outcome":
            rows = outcomes.filter(pl.col("metric") == metric.outcome).rename(
                {"occurred_at": TIMESTAMP, "value": VALUE}, strict=False
            )
            counts = metric.aggregate != "sum"
        elif interactions is None:
            raise ValueError(
                f"{metric.name}: its covariate {metric.covariate!r} is of interactions, and there are none"
            )
        else:
            rows, counts = interactions, metric.covariate == "interactions"
        joined = rows.join(people.users.select(USER_ID, "exposed_at"), on=USER_ID)
        known = pl.col(TIMESTAMP) < pl.col("exposed_at")
        if over is not None:
            known = known & (pl.col(TIMESTAMP) >= pl.col("exposed_at") - over)
        amount = pl.len() if counts else pl.col(VALUE).cast(pl.Float64).sum()
        found[metric.name] = (
            joined.filter(known)
            .group_by(USER_ID)
            .agg(amount.cast(pl.Float64).alias("covariate"))
            .sort(USER_ID)
        )
    return found


def steps(
    people: Population, days: pl.DataFrame, metric: Metric, covariates: pl.DataFrame | None
) -> pl.DataFrame:
    """What each day adds to a user's numbers, from the day of its first exposure on.

    days: ``Daily.rows``. Gives USER_ID, "variant", "day", "entry" (1 on the day of the first exposure), "numerator",
    "denominator" (1 on that day, and nothing later, but for a ratio), "covariate" (the user's, on every row) by user and day.
    """
    entry = people.users.select(
        USER_ID,
        "variant",
        pl.col("exposed_at").dt.date().alias("day"),
        entry=pl.lit(1.0),
        numerator=pl.lit(0.0),
        denominator=pl.lit(0.0 if metric.kind == "ratio" else 1.0),
    )
    variants = people.users.select(USER_ID, "variant")
    pages = [entry]
    for column, source in (("numerator", metric.outcome), ("denominator", metric.per)):
        if column == "denominator" and metric.kind != "ratio":
            continue
        rows = _amounts(days.filter(pl.col("metric") == source), metric if column == "numerator" else None)
        zeros = {name: pl.lit(0.0) for name in ("entry", "numerator", "denominator") if name != column}
        page = rows.join(variants, on=USER_ID).with_columns(**zeros).rename({"amount": column})
        pages.append(page.select(entry.columns))
    table = pl.concat(pages).group_by(USER_ID, "variant", "day").agg(
        pl.col("entry", "numerator", "denominator").sum()
    )  # fmt: skip
    if covariates is None:
        table = table.with_columns(covariate=pl.lit(0.0))
    else:
        table = table.join(covariates, on=USER_ID, how="left").with_columns(
            pl.col("covariate").fill_null(0.0)
        )
    return table.sort(USER_ID, "day")


def totals(moves: pl.DataFrame) -> pl.DataFrame:
    """One row per user: USER_ID, "variant", "numerator", "denominator", "covariate". moves: what ``steps`` gives."""
    return (
        moves.group_by(USER_ID, "variant")
        .agg(pl.col("numerator").sum(), pl.col("denominator").sum(), pl.col("covariate").first())
        .sort(USER_ID)
    )


def _amounts(rows: pl.DataFrame, metric: Metric | None) -> pl.DataFrame:
    """USER_ID, "day" and the "amount" that the day adds. metric: None for what stands below the line, whose values are added."""
    if metric is None or metric.aggregate == "sum":
        return rows.select(USER_ID, "day", pl.col("total").alias("amount"))
    if metric.aggregate == "count":
        return rows.select(USER_ID, "day", pl.col("rows").alias("amount"))
    return rows.group_by(USER_ID).agg(pl.col("day").min(), amount=pl.lit(1.0))
