"""How often intervals cover the truth: many logs of a world with a known answer, all estimators, all kinds of interval."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import polars as pl

from recsys_meta.ab.intervals import KINDS, Kind, interval
from recsys_meta.ab.logged_actions import SLATE_ID, LoggedActions
from recsys_meta.ab.off_policy import DEFAULT_KIND, fitted_models, off_policy
from recsys_meta.ab.policies import Policy
from recsys_meta.ab.slate_off_policy import ordered, slate_off_policy

COVERAGE: Mapping[str, type[pl.DataType]] = {
    "estimator": pl.String,
    "interval": pl.String,
    "covered": pl.Float64,  # share of the draws whose interval holds the truth
    "width": pl.Float64,  # median
    "bias": pl.Float64,  # mean estimate minus truth
    "deviation": pl.Float64,  # standard deviation of the estimate over the draws
    "trusted": pl.Float64,  # share of the draws whose verdict is "trustworthy"
    "covered_when_trusted": pl.Float64,
    "draws": pl.Int64,
}


class Answerable(Protocol):
    """A world with a known answer."""

    @property
    def value(self) -> float:
        """What the target policy earns per row."""

    @property
    def policy(self) -> Policy:
        """The target policy."""

    def logs(self, rows: int, generator: np.random.Generator) -> LoggedActions:
        """That many logged rows."""


def coverage(
    world: Answerable,
    rows: int,
    draws: int,
    *,
    kinds: Sequence[Kind] = KINDS,
    estimators: Sequence[str] | None = None,
    model: bool = True,
    level: float = 0.95,
    resampled: int = 500,
    seed: int = 0,
) -> pl.DataFrame:
    """One row per estimator and kind of interval, columns of COVERAGE."""
    found = [
        row
        for draw in range(draws)
        for row in _one(world, rows, kinds, estimators, model, level, resampled, seed + draw)
    ]
    table = pl.DataFrame(
        found, schema=["estimator", "interval", "value", "low", "high", "trusted"], orient="row"
    )
    truth = pl.lit(world.value)
    covers = (pl.col("low") <= truth) & (truth <= pl.col("high"))
    return (
        table.group_by("estimator", "interval", maintain_order=True)
        .agg(
            covered=covers.mean(),
            width=(pl.col("high") - pl.col("low")).median(),
            bias=pl.col("value").mean() - truth,
            deviation=pl.col("value").std(),
            trusted=pl.col("trusted").mean(),
            covered_when_trusted=covers.filter("trusted").mean(),
            draws=pl.len(),
        )
        .cast(dict(COVERAGE))  # type: ignore[arg-type]
    )


def _one(
    world: Answerable,
    rows: int,
    kinds: Sequence[Kind],
    estimators: Sequence[str] | None,
    model: bool,
    level: float,
    resampled: int,
    seed: int,
) -> Iterator[tuple[str, Kind, float, float, float, bool]]:
    """One set of logs: the interval of every estimator by every kind."""
    logs = world.logs(rows, np.random.default_rng(seed))
    evaluate = slate_off_policy if SLATE_ID in logs.table.columns else off_policy
    if evaluate is slate_off_policy:
        logs = ordered(logs)
    models = fitted_models(logs, seed=seed) if model else None
    found = evaluate(
        logs,
        world.policy,
        models=models,
        estimators=estimators,
        kind=DEFAULT_KIND,
        draws=resampled,
        seed=seed,
    )
    for name, sums in found.sums.items():
        for kind in kinds:
            low, high, _ = interval(sums, kind, found.drawn, level)
            yield name, kind, sums.value, low, high, found.verdict.word == "trustworthy"
