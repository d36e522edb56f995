"""Before an experiment: the users and days that a lift needs, and the smallest effect that given days would show."""

import json
import logging
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

import numpy as np
import polars as pl

from pipelines.experiment_analysis import metric_of, read_outcomes, same_ids
from pipelines.inputs import interactions_of, keep_quarantine, moment_of, told_aside
from pipelines.outcomes import ConfigError, NothingToDo
from pipelines.printable import printable
from pipelines.settings import PowerSettings
from recsys_meta import ingest, store
from recsys_meta.ab.experiments.measuring import before, daily, steps, totals
from recsys_meta.ab.experiments.metrics import EXPOSURES, Metric
from recsys_meta.ab.experiments.moments import of_users
from recsys_meta.ab.experiments.population import population
from recsys_meta.ab.experiments.power import Horizon, days_needed, detectable, horizon, users_needed
from recsys_meta.reports.power import power_markdown, power_picture
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.tables import TIMESTAMP, USER_ID, VALUE

log = logging.getLogger(__name__)

Summary = dict[str, Any]


def power(settings: PowerSettings, fingerprint: str) -> Summary:
    """Measures or takes the stated figures, solves, writes a table and a picture, and prints the table."""
    horizons, quarantine = (stated(settings), None) if settings.stated is not None else measured(settings)
    table = pl.DataFrame([line(settings, at) for at in horizons])
    lifts = [needs(settings, horizons, lift) for lift in settings.lifts]
    summary: Summary = {
        "metric": settings.metric.name,
        "level": settings.level,
        "power": settings.power,
        "horizons": table.to_dicts(),
        "lifts": lifts,
    }
    text = power_markdown(settings.metric.name, table, pl.DataFrame(lifts), settings.level, settings.power)
    if quarantine is not None:
        summary["rows_quarantined"] = quarantine.height
        text += told_aside(quarantine)
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"power-{fingerprint[:8]}"):
        folder = workspace.root / "power" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        if quarantine is not None:
            keep_quarantine(folder, quarantine)
        write_bytes_atomically(folder / "power.md", text.encode())
        write_bytes_atomically(folder / "power.svg", power_picture(settings.metric.name, table).encode())
        write_bytes_atomically(folder / "result.json", json.dumps(summary, indent=1).encode())
    print(printable(text))
    print(f"{folder / 'power.svg'}\n")
    return summary


def stated(settings: PowerSettings) -> list[Horizon]:
    """The horizons of stated figures: every day brings as many users, who are as the others.

    Raises ConfigError where the days bring fewer than two.
    """
    given = settings.stated
    assert given is not None
    least = min(settings.days)
    if round(given.users_a_day * least) < 2:
        raise ConfigError(
            [
                f"stated.users_a_day: {given.users_a_day:g} a day make {given.users_a_day * least:.2g} users in {least} days;"
                " expected two at least"
            ]
        )
    reduction = given.covariate_correlation**2
    deviation = given.standard_deviation * float(np.sqrt(1.0 - reduction))
    return [
        Horizon(days, round(given.users_a_day * days), given.mean, deviation, reduction or None)
        for days in sorted(settings.days)
    ]


def measured(settings: PowerSettings) -> tuple[list[Horizon], pl.DataFrame]:
    """Each horizon as a test would have been over the last so many days: who came, and what they did from then on; and what
    was set aside.

    Raises ingest.InputError where none of the horizons says how far users differ, and NothingToDo where there is none.
    """
    metric = metric_of(settings.metric)
    interactions, outcomes, quarantine = read(settings, metric)
    if interactions.is_empty():
        raise NothingToDo("there are no interactions to measure on")
    last, first = interactions[TIMESTAMP].max(), interactions[TIMESTAMP].min()
    assert isinstance(last, datetime)
    assert isinstance(first, datetime)
    end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
    held = (end.date() - first.date()).days
    horizons, without = [], []
    for days in sorted(settings.days):
        if days > held:
            log.warning("%s days are left out: the interactions span %s", days, held)
            continue
        some = interactions.filter(pl.col(TIMESTAMP) >= end - timedelta(days=days))
        shown = some.select(USER_ID, variant=pl.lit("all"), exposed_at=pl.col(TIMESTAMP))
        people = population(shown)
        rows = daily(people, shown, outcomes, until=end).rows
        covariates = before(people, [metric], interactions, outcomes, over=settings.pre_period)
        users = totals(steps(people, rows, metric, covariates.get(metric.name)))
        at = horizon(days, of_users(users), metric.covariate is not None)
        lack = lacking(metric, at)
        if lack is None:
            horizons.append(at)
            continue
        without.append(f"the last {days} days, to {last:%Y-%m-%d}, hold {lack}")
        log.warning("%s days are left out: %s", days, without[-1])
    if without and not horizons:
        given = settings.interactions
        assert given is not None
        raise ingest.InputError(f"{given.path}: column {given.timestamp!r}: {without[-1]}")
    if not horizons:
        raise NothingToDo(f"the interactions span {held} days; expected {min(settings.days)} at least")
    return horizons, quarantine


def lacking(metric: Metric, at: Horizon) -> str | None:
    """What a horizon holds, and should, where it cannot say how far users differ; None: it can."""
    if at.users < 2:
        return "a single user; expected two at least, or nobody differs from anybody"
    if not isfinite(at.mean):
        return f"no {metric.per!r} other than 0; expected some, which {metric.name!r} is divided by"
    if not isfinite(at.deviation):
        return f"values of {metric.name!r} whose squares are beyond counting; expected smaller ones"
    return None


def read(settings: PowerSettings, metric: Metric) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Interactions and outcomes, and what was set aside; without a table of outcomes the interactions are those of the metric.

    What is later than the day of the run has not happened yet: a single such row would be the end of all days measured.
    """
    given, share = settings.interactions, settings.max_quarantined_share
    assert given is not None
    interactions, aside = interactions_of(given, share, moment_of(settings), duplicates="keep")[:2]
    if settings.outcomes is None:
        own = interactions.select(
            USER_ID,
            metric=pl.lit(metric.outcome),
            value=pl.col(VALUE).cast(pl.Float64),
            occurred_at=pl.col(TIMESTAMP),
        )
        return interactions, own, aside
    outcomes = read_outcomes(settings.outcomes, metric.sources - {EXPOSURES}, share)
    table = same_ids(outcomes.table, interactions, "outcomes")
    return interactions, table, pl.concat([aside, outcomes.quarantine])


def line(settings: PowerSettings, at: Horizon) -> Summary:
    """One horizon with the smallest effects that it shows."""
    found = detectable(
        at,
        share=settings.treatment_share,
        level=settings.level,
        power=settings.power,
        planned_days=settings.planned_days,
    )
    return {
        **at._asdict(),
        "minimum_detectable": found.once,
        "relative": found.once / at.mean if at.mean else None,
        "minimum_detectable_always": found.always,
        "relative_always": found.always / at.mean if at.mean else None,
    }


def needs(settings: PowerSettings, horizons: list[Horizon], lift: float) -> Summary:
    """The users and days that one lift needs; none where the mean is zero, or as good as that: there is no share of it."""
    found = [
        users_needed(at, lift, share=settings.treatment_share, level=settings.level, power=settings.power)
        for at in horizons
        if at.deviation
    ]
    needed = [users for users in found if users is not None]
    if len(needed) < len(horizons):
        return {"lift": lift, "users": None, "days": None, "days_at_that_pace": None}
    reached, pace = days_needed(horizons, needed)
    place = -1 if reached is None else [at.days for at in horizons].index(reached)
    return {"lift": lift, "users": needed[place], "days": reached, "days_at_that_pace": pace}
