"""A simulated month on the sample world: two policies, what would be logged of them, and the truth beside it."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor

from pipelines.construction import check_classes
from pipelines.loading import load
from pipelines.nightly import nightly
from pipelines.outcomes import ConfigError
from pipelines.settings import NightSettings, SimulateSettings, SlateSettings, VariantSettings
from recsys_meta import store
from recsys_meta.ab.simulation import (
    Audience,
    Month,
    Truth,
    Value,
    Variant,
    habits,
    logged_actions,
    naive_value,
    pools,
    simulated_month,
    slate_probabilities,
    true_values,
)
from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.episodes import rows_of, user_keys
from recsys_meta.ingest.sample_world import true_scores
from recsys_meta.store.table_files import write_tables
from recsys_meta.tables import ITEM_ID, USER_ID

log = logging.getLogger(__name__)

Summary = dict[str, Any]

MONTH_FILE = "month.duckdb"
EXPERIMENT = "simulated-month"
CONTROL, TREATMENT = "control", "treatment"


class Side(NamedTuple):
    """One side of the month as it is given: a night, and the slate that it draws."""

    name: str
    config: Path
    overrides: list[tuple[str, str]]
    night: NightSettings
    slate: SlateSettings


class Simulated(NamedTuple):
    """Everything there is to know of a month."""

    audience: Audience
    control: Variant
    treatment: Variant
    month: Month
    actions: pl.DataFrame  # those of control, each with the probability that the treatment gives it
    truth: Truth
    naive: float


def simulate(settings: SimulateSettings, fingerprint: str) -> Summary:
    """Two nights give the scores; a month is drawn from them, written, and told beside the truth."""
    sides = [side_of(settings, name) for name in (CONTROL, TREATMENT)]
    check_sides(*sides)
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"simulation-{fingerprint[:8]}"):
        candidates = write_candidates(settings, sides[0].night)
        audience = audience_of(settings, sides[0].night.top_k)
        control, treatment = (variant_of(settings, side, candidates, audience) for side in sides)
        found = simulated(settings, audience, control, treatment)
        write_tables(settings.workspace, MONTH_FILE, tables_of(found))
    print(
        f"{told(found)}\nLogs and truth are in {settings.workspace / MONTH_FILE}, and as Parquet beside it.\n"
    )
    return summary_of(found)


def side_of(settings: SimulateSettings, name: str) -> Side:
    """One side. Raises ConfigError where its night draws no slates."""
    given: VariantSettings = getattr(settings, name)
    overrides = [(key, json.dumps(value)) for key, value in given.settings.items()]
    loaded = load(NightSettings, [given.config], overrides)
    check_classes(loaded)
    night = loaded.settings
    if night.slate is None:
        raise ConfigError(
            [f"{name}: {given.config} draws no slates; expected slate in it or in {name}.settings"]
        )
    return Side(name, given.config, overrides, night, night.slate)


def check_sides(control: Side, treatment: Side) -> None:
    """Raises ConfigError where the slates of the two are of different length."""
    lengths = control.night.top_k, treatment.night.top_k
    if lengths[0] != lengths[1]:
        raise ConfigError(
            [f"top_k is {lengths[0]} in control and {lengths[1]} in treatment; expected one length"]
        )


def write_candidates(settings: SimulateSettings, night: NightSettings) -> Path:
    """A table of the most met items, which both sides choose from."""
    met = pl.read_parquet(night.interactions.path).group_by(ITEM_ID).len()
    most = met.sort("len", ITEM_ID, descending=[True, False]).head(settings.candidates)
    path = settings.workspace / "candidates.parquet"
    most.select(ITEM_ID).sort(ITEM_ID).write_parquet(path)
    return path


def audience_of(settings: SimulateSettings, positions: int) -> Audience:
    """Everybody of the sample world: what they like is known, how often they come is drawn."""
    users = pl.read_parquet(settings.truth_users).sort(USER_ID)
    items = pl.read_parquet(settings.truth_items).sort(ITEM_ID)
    utility = torch.from_numpy(true_scores(users, items))
    keys = user_keys(users[USER_ID])
    return Audience(
        user_ids=users[USER_ID],
        user_keys=keys,
        item_ids=items[ITEM_ID],
        item_keys=user_keys(items[ITEM_ID]),
        visiting=habits(keys, settings.visits, settings.seed),
        attraction=settings.largest_attraction * torch.sigmoid(1.5 * (utility - settings.liked_from)),
        examined=torch.arange(1, positions + 1, dtype=torch.float64) ** -settings.attention,
    )


def variant_of(settings: SimulateSettings, side: Side, candidates: Path, audience: Audience) -> Variant:
    """Runs the night that scores the whole pool of everybody, and takes over its scores."""
    workspace = settings.workspace / side.name
    pooled = load(
        NightSettings,
        [side.config],
        [
            *side.overrides,
            ("workspace", str(workspace)),
            ("score", "all"),
            ("top_k", str(side.slate.pool)),
            ("slate", "null"),
            ("candidates.table", json.dumps({"path": str(candidates), "id": ITEM_ID})),
        ],
    )
    log.info("%s ...", side.name)
    run_id = nightly(pooled.settings, pooled.fingerprint)["run_id"]
    items, scores = pools_of(store.read_scores(workspace / "scores.duckdb"), audience, side.slate.pool)
    seed = side.night.seed if side.slate.seed is None else side.slate.seed
    policy = PlackettLuce(side.slate.temperature, side.slate.exploration)
    return Variant(side.name, run_id, policy, seed, items, scores)


def pools_of(published: pl.DataFrame, audience: Audience, size: int) -> tuple[Tensor, Tensor]:
    """Published lists as rows of items [U, N], -1 where they end, and as scores, there minus infinity."""
    at = (
        rows_of(published[USER_ID], audience.user_ids).cast(pl.Int64).to_torch(),
        published["rank"].cast(pl.Int64).to_torch() - 1,
    )
    shape = len(audience.user_ids), size
    found = rows_of(published[ITEM_ID], audience.item_ids).cast(pl.Int64).to_torch()
    return (
        torch.full(shape, -1).index_put(at, found),
        torch.full(shape, -torch.inf).index_put(at, published["score"].to_torch()),
    )


def simulated(
    settings: SimulateSettings, audience: Audience, control: Variant, treatment: Variant
) -> Simulated:
    """The month, and what is true of it."""
    log.info("a month of %d days ...", settings.days)
    month = simulated_month(
        audience,
        control,
        treatment,
        experiment=EXPERIMENT,
        first=settings.first,
        days=settings.days,
        share=settings.treated,
        seed=settings.seed,
    )
    actions = logged_actions(month, CONTROL)
    actions = actions.with_columns(slate_probabilities(actions, audience, treatment))
    log.info("the truth ...")
    truth = true_values(audience, control, treatment, draws=settings.truth_draws, seed=settings.seed)
    return Simulated(
        audience, control, treatment, month, actions, truth, naive_value(actions, audience, treatment)
    )


def tables_of(found: Simulated) -> dict[str, pl.DataFrame]:
    """What is written."""
    return {
        "exposures": found.month.exposures,
        "outcomes": found.month.outcomes,
        "logged_actions": found.actions,
        "pools": pools(found.audience, [found.control, found.treatment]),
        "truth": pl.DataFrame(
            [
                {"what": name, "clicks_per_visit": value.mean, "standard_error": value.standard_error}
                for name, value in found.truth._asdict().items()
            ]
        ),
    }


def told(found: Simulated) -> str:
    """The truth, and what a dashboard would say of it, as Markdown."""
    shown = {
        CONTROL: clicks_per_visit(found.month, CONTROL),
        TREATMENT: clicks_per_visit(found.month, TREATMENT),
    }
    lines = [
        "| clicks per visit | control | treatment | difference |",
        "| --- | --- | --- | --- |",
        f"| the truth | {_told(found.truth.control)} | {_told(found.truth.treatment)} | {_told(found.truth.difference)} |",
        f"| seen in the month | {shown[CONTROL]:.4f} | {shown[TREATMENT]:.4f} | {shown[TREATMENT] - shown[CONTROL]:+.4f} |",
        f"| naive, from the logs of control | {shown[CONTROL]:.4f} | {found.naive:.4f} | {found.naive - shown[CONTROL]:+.4f} |",
    ]
    return "\n".join(lines) + "\n"


def clicks_per_visit(month: Month, variant: str) -> float:
    """What was seen."""
    actions = logged_actions(month, variant)
    return float(actions["reward"].sum() / actions["slate_id"].n_unique())


def summary_of(found: Simulated) -> Summary:
    """What the last line says."""
    return {
        "visits": found.month.exposures.select(USER_ID, "exposed_at").n_unique(),
        "exposures": found.month.exposures.height,
        "clicks": found.month.outcomes.height,
        "users": dict(
            found.month.exposures.group_by("variant")
            .agg(pl.col(USER_ID).n_unique())
            .sort("variant")
            .iter_rows()
        ),
        "truth": {name: value._asdict() for name, value in found.truth._asdict().items()},
        "naive": found.naive,
    }


def _told(value: Value) -> str:
    return f"{value.mean:.4f} ± {value.standard_error:.4f}"
