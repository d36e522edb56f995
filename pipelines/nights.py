"""Nights one after the other, under three regimes: what keeping the model up to date costs, and what it brings.

    warm       each night goes on from the champion's initialization, on the new tasks (``training.warm_start``)
    scratch    each night trains anew
    never      the model of the first night serves all of them

What warm and scratch train is a challenger each night, and serves where the gate promotes it. The lists of a night are judged on
the day after it, as by ``next_day`` of an evaluation.
"""

import json
import logging
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any, NamedTuple

import polars as pl
import torch

from pipelines.champion import Reigning, challenged
from pipelines.cost import cost
from pipelines.drawing import with_negatives
from pipelines.evaluate import kept_cost, on_trial
from pipelines.inputs import Inputs, read_inputs
from pipelines.judged import Trial, events_alike, next_day_trial
from pipelines.learning import Model, fit_or_reuse
from pipelines.settings import NextDayProtocol, NightsSettings
from recsys_meta import store
from recsys_meta.adaptation.judging import judge_ranking
from recsys_meta.evaluation.intervals import paired_differences, summarize
from recsys_meta.reports.nights import nights_picture, nights_table, totals_table
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.tables import USER_ID

log = logging.getLogger(__name__)

Summary = dict[str, Any]

WARM, SCRATCH, NEVER = REGIMES = ("warm", "scratch", "never")


class Night(NamedTuple):
    """What one night came to under one regime."""

    model: Model  # that serves
    row: dict[str, Any]
    judgements: pl.DataFrame


def nights(settings: NightsSettings, fingerprint: str) -> Summary:
    """Runs all nights under all regimes, writes tables and a picture, prints the tables, gives the totals."""
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"nights-{fingerprint[:8]}"):
        inputs = read_inputs(settings, None)
        if "loss" not in settings.learner.init_args:
            settings, inputs = events_alike(settings, inputs)
        folder = workspace.root / "nights" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        serving: dict[str, Model] = {}  # bundles may be large: none is kept that does not serve
        found: list[tuple[dict[str, Any], pl.DataFrame]] = []
        for day in days_of(settings):
            trial = trial_of_night(settings, day, inputs)
            for regime in REGIMES:
                night = one_night(settings, regime, day, trial, serving.get(regime), workspace)
                serving[regime] = night.model
                found.append((night.row, night.judgements))
                log.info("%s %s: %s", day, regime, night.row)
        rows = pl.DataFrame([row for row, _ in found], infer_schema_length=None)
        judgements = pl.concat([page for _, page in found])
        totals = totals_of(rows, judgements, settings)
        rows.write_parquet(folder / "nights.parquet")
        judgements.write_parquet(folder / "judgements.parquet")
        tables = "\n".join([nights_table(rows, REGIMES), totals_table(totals)])
        write_bytes_atomically(folder / "tables.md", tables.encode())
        write_bytes_atomically(folder / "nights.svg", nights_picture(rows, REGIMES, SCRATCH).encode())
        summary = {"nights": rows["night"].n_unique(), "metric": f"ndcg@{settings.cutoff}", "regimes": totals}
        write_bytes_atomically(folder / "result.json", json.dumps(summary, indent=1).encode())
    print(tables)
    print(f"{folder / 'nights.svg'}\n")
    return summary


def days_of(settings: NightsSettings) -> Iterator[date]:
    """The days that end with a night."""
    for number in range((settings.last - settings.first).days + 1):
        yield settings.first + timedelta(days=number)


def trial_of_night(settings: NightsSettings, day: date, inputs: Inputs) -> Trial:
    """What is known that night, and who is judged on the day after."""
    protocol = NextDayProtocol(kind="next_day", day=day, max_users=settings.max_users)
    return next_day_trial(settings, protocol, inputs)


def one_night(
    settings: NightsSettings,
    regime: str,
    day: date,
    trial: Trial,
    before: Model | None,
    workspace: store.Workspace,
) -> Night:
    """Trains as the regime says, lets the gate decide, and judges the lists of whoever serves."""
    model = before
    row: dict[str, Any] = {"train_seconds": 0.0, "cpu_seconds": 0.0, "gate_seconds": 0.0, "epochs": None}
    promoted: bool | None = None
    if before is None or regime != NEVER:
        challenger, row = trained(settings, regime, day, trial, before, workspace)
        with cost() as gating:
            outcome = challenged(
                settings,
                Reigning(before, "the first night"),
                challenger,
                trial.inputs,
                trial.training_users,
                moment=trial.moment,
                margin=settings.gates.champion_margin,
                level=settings.gates.champion_level,
                max_users=settings.gates.champion_users,
                file=workspace.model(challenger.version) / f"challenge-{regime}.json",
            )
        row |= {"gate_seconds": gating.seconds, "gain": outcome.gain}
        promoted = outcome.promoted
        model = challenger if promoted else before
    assert model is not None
    judgements = judged(settings, regime, day, trial, model)
    row |= {
        "night": day,
        "regime": regime,
        "model_version": model.version,
        "promoted": promoted,
        "users": len(trial.tasks.user_ids),
        "ndcg": judgements["value"].mean(),
    }
    return Night(model, row, judgements)


def trained(
    settings: NightsSettings,
    regime: str,
    day: date,
    trial: Trial,
    before: Model | None,
    workspace: store.Workspace,
) -> tuple[Model, dict[str, Any]]:
    """The model that this night trains, or has trained already, and what that cost when it was done."""
    warm = settings.training.model_copy(update={"warm_start": regime == WARM and before is not None})
    with cost() as training:
        model = fit_or_reuse(
            settings.model_copy(update={"training": warm}),
            settings.learner,
            trial.inputs,
            trial.training_users,
            workspace=workspace,
            moment=trial.moment,
            run_date=day,
            start=before,
        )
    spent = kept_cost(workspace.model(model.version) / "cost.json", training, anew=not model.reused)
    row = {
        "train_seconds": spent["seconds"],
        "cpu_seconds": spent["cpu_seconds"],
        "epochs": model.metrics.get("epochs"),
        "best_epoch": model.metrics.get("best_epoch"),
    }
    return model, row


def judged(settings: NightsSettings, regime: str, day: date, trial: Trial, model: Model) -> pl.DataFrame:
    """NDCG of each judged user, adapted on all that is known of it; the night stands in the place of the draw."""
    learner, users, catalogue = on_trial(settings, model, trial, trial.known())
    page = judge_ranking(
        learner,
        trial.tasks.support,
        trial.tasks.query,
        users,
        catalogue,
        user_ids=trial.tasks.user_ids,
        draws=torch.full((len(trial.tasks.user_ids),), day.toordinal() - settings.first.toordinal()),
        shots=(None,),
        newest=True,
        k=settings.cutoff,
        name=regime,
        seed=settings.seed,
        prepare=with_negatives(learner, catalogue, trial.tasks.user_ids, settings.seed),
    )
    return page.filter(pl.col("metric") == f"ndcg@{settings.cutoff}")


def totals_of(rows: pl.DataFrame, judgements: pl.DataFrame, settings: NightsSettings) -> list[dict[str, Any]]:
    """Each regime in all: seconds of training, mean NDCG with its interval, and the paired difference to training anew.

    Intervals resample users, each with the mean of its nights, and beside it nights, each with the mean of its users. The first
    night is the same for all and left out.
    """
    later = judgements.filter(pl.col("draw") > 0)
    by_night = (
        later.group_by("learner", "draw", "shot", "metric", maintain_order=True)
        .agg(pl.col("value").mean())
        .with_columns(pl.col("draw").alias(USER_ID))
    )
    draws, seed = settings.bootstrap_draws, settings.seed
    cost_of = (
        rows.filter(pl.col("night") > settings.first)
        .group_by("regime")
        .agg(pl.col("train_seconds", "cpu_seconds", "gate_seconds").sum(), kept=(~pl.col("promoted")).sum())
    )
    totals = []
    for regime in REGIMES:
        spent = cost_of.filter(pl.col("regime") == regime).row(0, named=True)
        total = spent | {"ndcg_over_nights": by_night.filter(pl.col("learner") == regime)["value"].mean()}
        mean = summarize(later.filter(pl.col("learner") == regime), draws, seed).row(0, named=True)
        total |= {"ndcg": mean["mean"], "low": mean["low"], "high": mean["high"], "users": mean["users"]}
        if regime != SCRATCH:
            for name, table in (("users", later), ("nights", by_night)):
                pair = paired_differences(table, regime, SCRATCH, draws, seed).row(0, named=True)
                total |= {f"{what}_by_{name}": pair[what] for what in ("difference", "low", "high")}
        totals.append(total)
    return totals
