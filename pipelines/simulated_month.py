"""A simulated month on the sample world: two policies, their logs, what both analyses say of these, and the truth beside it."""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
import yaml
from torch import Tensor

from pipelines.ab_analysis import WHOLE, ope
from pipelines.construction import check_classes
from pipelines.experiment_analysis import experiment
from pipelines.interleaving import LISTS, interleave
from pipelines.loading import load
from pipelines.nightly import nightly
from pipelines.outcomes import ConfigError
from pipelines.settings import (
    ExperimentSettings,
    InterleaveSettings,
    NightSettings,
    OffPolicySettings,
    SimulateSettings,
    SlateSettings,
    VariantSettings,
)
from recsys_meta import store
from recsys_meta.ab.simulation import (
    CLICK,
    Audience,
    InterleavedMonth,
    Month,
    TrueValues,
    Truth,
    Variant,
    habits,
    interleaved_month,
    logged_actions,
    naive_value,
    pools,
    simulated_month,
    slate_probabilities,
    true_values,
    visits_of_a_user,
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
OPE_TOP, OPE_VISIT, AB, INTERLEAVING = (
    "ope-top",
    "ope-visit",
    "ab",
    "interleave",
)  # names of the configs that are written
_PER_SHOWN, _PER_VISIT, _PER_USER, _PER_TOP = (
    "clicks of a shown item",
    "clicks of a visit",
    "clicks of a user",
    "clicks on the first position",
)


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
    merged: InterleavedMonth  # the same visits, had everybody been shown merged lists; A is control
    actions: pl.DataFrame  # those of control, each with the probability that the treatment gives it
    truth: TrueValues


class Answer(NamedTuple):
    """What somebody says of one figure, or what is true of it."""

    figure: str
    who: str
    control: float
    treatment: float | None  # None: no answer is given
    difference: float | None
    low: float | None = None  # of the difference
    high: float | None = None
    treatment_low: float | None = None
    treatment_high: float | None = None


def simulate(settings: SimulateSettings, fingerprint: str) -> Summary:
    """Two nights give the scores; a month is drawn from them and written; both analyses read it; all is told beside the truth."""
    sides = [side_of(settings, name) for name in (CONTROL, TREATMENT)]
    check_sides(*sides)
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"simulation-{fingerprint[:8]}"):
        candidates = write_candidates(settings, sides[0].night)
        audience = audience_of(settings, sides[0].night.top_k)
        control, treatment = (variant_of(settings, side, candidates, audience) for side in sides)
        found = simulated(settings, audience, control, treatment)
        write_tables(settings.workspace, MONTH_FILE, tables_of(found))
        configs = write_configs(settings, sides[0].night)
    valued = {}
    for name in (OPE_TOP, OPE_VISIT):
        logs = load(OffPolicySettings, [configs[name]])
        valued[name] = ope(logs.settings, logs.fingerprint)[WHOLE]
    test = load(ExperimentSettings, [configs[AB]])
    tested = experiment(test.settings, test.fingerprint)
    merged = load(InterleaveSettings, [configs[INTERLEAVING]])
    preferred = interleave(merged.settings, merged.fingerprint)
    rows = answers(found, valued, tested)
    print(f"{told(rows)}\nLogs, truth and the configs of the analyses are in {settings.workspace}\n")
    return {
        **summary_of(found, rows),
        "interleaving": {name: preferred[name] for name in ("verdict", "preference")},
    }


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
        examined=torch.arange(1, min(positions, len(items)) + 1, dtype=torch.float64) ** -settings.attention,
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
    shape = len(audience.user_ids), min(size, len(audience.item_ids))
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
    merged = interleaved_month(
        audience, control, treatment, first=settings.first, days=settings.days, seed=settings.seed
    )
    actions = logged_actions(month, CONTROL)
    actions = actions.with_columns(slate_probabilities(actions, audience, treatment))
    log.info("the truth ...")
    truth = true_values(audience, control, treatment, draws=settings.truth_draws, seed=settings.seed)
    return Simulated(audience, control, treatment, month, merged, actions, truth)


def tables_of(found: Simulated) -> dict[str, pl.DataFrame]:
    """What is written."""
    return {
        "exposures": found.month.exposures,
        "outcomes": found.month.outcomes,
        LISTS: found.merged.lists,
        "interleaved_outcomes": found.merged.outcomes,
        "logged_actions": found.actions,
        "pools": pools(found.audience, [found.control, found.treatment]),
        "truth": pl.DataFrame(
            [
                {"figure": figure, "of": name, "clicks": value.mean, "standard_error": value.standard_error}
                for figure, truth in found.truth._asdict().items()
                for name, value in truth._asdict().items()
            ]
        ),
    }


def write_configs(settings: SimulateSettings, night: NightSettings) -> dict[str, Path]:
    """The configs of the analyses, as anybody would write them for the tables beside them."""
    logs = {"path": "logged_actions.parquet", "propensity": "propensity", "user_id": USER_ID}
    target, against = (
        {
            "kind": "table",
            "name": name,
            "path": "pools.parquet",
            "where": f"variant = '{name}'",
            "keys": [USER_ID],
        }
        for name in (TREATMENT, CONTROL)
    )
    contents: dict[str, Summary] = {
        OPE_TOP: {
            "name": "treatment on the first position, from the logs of control",
            "workspace": ".",
            "logs": logs | {"where": "position = 1"},
            "target": target,
            "against": against,
        },
        # No policy to compare with: below the first position, what control explores is no Plackett-Luce model's.
        OPE_VISIT: {
            "name": "whole slates of treatment, from the logs of control",
            "workspace": ".",
            "logs": logs | {"position": "position", "slate_id": "slate_id"},
            "target": target,
        },
        AB: {
            "workspace": ".",
            "experiment": EXPERIMENT,
            "exposures": {"path": "exposures.parquet"},
            "outcomes": {"path": "outcomes.parquet"},
            "interactions": {
                "path": str(night.interactions.path),
                "timestamp": night.interactions.timestamp,
            },
            "control": CONTROL,
            "shares": {CONTROL: 1 - settings.treated, TREATMENT: settings.treated},
            "planned_end": settings.first + timedelta(days=settings.days - 1),
            "planned_days": settings.days,
            "metrics": [
                {"name": _PER_SHOWN, "outcome": CLICK, "kind": "ratio"},
                {"name": _PER_USER, "outcome": CLICK, "covariate": "interactions"},
            ],
        },
    }
    contents[INTERLEAVING] = {
        "workspace": ".",
        "name": "what both variants would show, interleaved: A is control, B treatment",
        "interleaved": {"path": f"{LISTS}.parquet"},
        "outcomes": {"path": "interleaved_outcomes.parquet"},
        "outcome": CLICK,
        "planned_end": settings.first + timedelta(days=settings.days - 1),
        "planned_days": settings.days,
    }
    paths = {name: settings.workspace / f"{name}.yaml" for name in contents}
    for name, content in contents.items():
        paths[name].write_text(yaml.safe_dump(content, sort_keys=False))
    return paths


def answers(found: Simulated, valued: Mapping[str, Summary], tested: Summary) -> list[Answer]:
    """Every figure that somebody tells, under its truth."""
    positions, days = len(found.audience.examined), found.month.exposures["exposed_at"].dt.date().n_unique()
    metrics = tested["treatments"][TREATMENT]["metrics"]
    top = found.actions.filter(position=1)
    slates = found.actions.group_by("slate_id").agg(pl.col("reward").sum())
    return [
        truth_of(_PER_VISIT, found.truth.visit, 1.0),
        naive_of(_PER_VISIT, found, found.actions, positions),
        valued_of(_PER_VISIT, slates, valued[OPE_VISIT]),
        tested_of(_PER_VISIT, metrics[_PER_SHOWN], positions),
        truth_of(_PER_USER, found.truth.visit, visits_of_a_user(found.audience, days)),
        tested_of(_PER_USER, metrics[_PER_USER], 1),
        truth_of(_PER_TOP, found.truth.top, 1.0),
        naive_of(_PER_TOP, found, top, 1),
        valued_of(_PER_TOP, top, valued[OPE_TOP]),
    ]


def truth_of(figure: str, truth: Truth, times: float) -> Answer:
    """What is true."""
    return Answer(figure, "the truth", *(value.mean * times for value in truth))


def naive_of(figure: str, found: Simulated, actions: pl.DataFrame, times: int) -> Answer:
    """What a look at the click rates says."""
    control = float(actions["reward"].sum() / actions.height)
    treatment = naive_value(actions, found.audience, found.treatment)
    values = (times * value for value in (control, treatment, treatment - control))
    return Answer(figure, "click rates in the logs of control", *values)


def tested_of(figure: str, metric: Summary, times: int) -> Answer:
    """What the experiment says."""
    control, effect, low, high = (times * metric[name] for name in ("control", "effect", "low", "high"))
    return Answer(
        figure, f"the experiment: {metric['verdict']}", control, control + effect, effect, low, high
    )


def valued_of(figure: str, logged: pl.DataFrame, said: Summary) -> Answer:
    """What off-policy evaluation says of the logs of control, if anything; only a paired difference has an interval."""
    control = float(logged["reward"].sum() / logged.height)
    answer, gained = said["answer"] or {}, said.get("difference") or {}
    who = f"off-policy, from the logs of control{'' if not answer else ' by ' + answer['estimator']}: {said['verdict']}"
    difference, value = gained.get("value"), answer.get("value")
    if difference is None and value is not None:
        difference = value - control
    return Answer(
        figure,
        who,
        control,
        value,
        difference,
        gained.get("low"),
        gained.get("high"),
        answer.get("low"),
        answer.get("high"),
    )


def told(rows: Sequence[Answer]) -> str:
    """The answers as Markdown."""
    lines = [
        "| figure | who says so | control | treatment | its interval | difference | its interval |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        treatment = "none" if row.treatment is None else f"{row.treatment:.4f}"
        difference = "none" if row.difference is None else f"{row.difference:+.4f}"
        cells = [
            row.figure,
            row.who,
            f"{row.control:.4f}",
            treatment,
            _between(row.treatment_low, row.treatment_high, ".4f"),
            difference,
            _between(row.low, row.high, "+.4f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _between(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def summary_of(found: Simulated, rows: Sequence[Answer]) -> Summary:
    """What the last line says."""
    shown = found.month.exposures
    users = shown.group_by("variant").agg(pl.col(USER_ID).n_unique()).sort("variant")
    return {
        "visits": shown.select(USER_ID, "exposed_at").n_unique(),
        "exposures": shown.height,
        "clicks": found.month.outcomes.height,
        "users": dict(users.iter_rows()),
        "standard_errors_of_the_truth": {
            figure: {name: value.standard_error for name, value in truth._asdict().items()}
            for figure, truth in found.truth._asdict().items()
        },
        "answers": [row._asdict() for row in rows],
    }
