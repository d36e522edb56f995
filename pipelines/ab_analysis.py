"""Off-policy evaluation: what a policy would have earned, from the logged actions of another, and whether that can be told."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipelines.inputs import ids_of, keep_quarantine, source_of
from pipelines.outcomes import ConfigError
from pipelines.settings import (
    AnalysisSettings,
    ColumnPolicySettings,
    LoggedPolicySettings,
    OffPolicySettings,
    PolicySettings,
    ScoresPolicySettings,
    TablePolicySettings,
)
from recsys_meta import ingest, store
from recsys_meta.ab.estimators.registry import ESTIMATORS, refused
from recsys_meta.ab.estimators.slates import SLATE_ESTIMATORS
from recsys_meta.ab.intervals import resamples
from recsys_meta.ab.logged_actions import PROPENSITY, LoggedActions, logged_actions, with_uniform_propensities
from recsys_meta.ab.off_policy import Models, OffPolicy, compare, fitted_models, off_policy
from recsys_meta.ab.policies import PROBABILITY, Policy, as_logged, from_column, from_table, softmax, uniform
from recsys_meta.ab.slate_off_policy import ordered, slate_off_policy
from recsys_meta.reports.off_policy import Told, markdown, off_policy_page
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.store.evaluations import EVALUATIONS_FILE, write_evaluation
from recsys_meta.tables import ITEM_ID, USER_ID

log = logging.getLogger(__name__)

Summary = dict[str, Any]

WHOLE = "all"  # the analysis of a config that names none
_SHORT = {"IPS": "ipw", "SNIPS": "snipw"}  # as the field's benchmarks call them


class Analysed(NamedTuple):
    """One analysis."""

    target: OffPolicy
    against: OffPolicy | None
    differences: pl.DataFrame | None
    quarantine: pl.DataFrame


def ope(settings: OffPolicySettings, fingerprint: str) -> Summary:
    """Reads, values, judges and writes; prints the tables; gives estimates and verdict of each analysis."""
    check_estimators(settings)
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"off-policy-{fingerprint[:8]}"):
        analysed = {
            name: analyse(settings, name, analysis) for name, analysis in analyses_of(settings).items()
        }
        folder = workspace.root / "off_policy" / fingerprint[:8]
        summary = {name: result_of(found) for name, found in analysed.items()}
        write(settings, fingerprint, folder, analysed, summary)
    print((folder / "tables.md").read_text())
    print(f"{folder / 'report.html'}\n")
    return summary


def analyses_of(settings: OffPolicySettings) -> Mapping[str, AnalysisSettings]:
    """What is analysed, by name."""
    return settings.analyses or {WHOLE: AnalysisSettings()}


def check_estimators(settings: OffPolicySettings) -> None:
    """Raises ConfigError for an estimator that nobody knows, and for what is fixed and may not be."""
    known = [*SLATE_ESTIMATORS] if settings.logs.slates else [*ESTIMATORS]
    strange = [name for name in settings.estimators if name not in known]
    problems = []
    if strange:
        problems.append(f"estimators: {strange} are not known here; expected some of {', '.join(known)}")
    if settings.fixed and settings.logs.slates:
        problems.append(f"fixed: {', '.join(settings.fixed)}: slates are valued, where no estimator is tuned")
    else:
        problems += [f"fixed: {problem}" for problem in refused(settings.fixed, settings.estimators)]
    if problems:
        raise ConfigError(problems)


def analyse(settings: OffPolicySettings, name: str, analysis: AnalysisSettings) -> Analysed:
    """One set of logs, one policy or two."""
    logs, quarantine, actions = read_logs(settings, analysis)
    log.info("%s: %s logged actions, %s set aside", name, f"{len(logs.table):,}", f"{len(quarantine):,}")
    models = models_of(settings, logs)
    drawn = resamples(int(logs.users.max()) + 1, settings.bootstrap_draws, settings.seed)

    def valued(given: PolicySettings, taken: str | None = None) -> OffPolicy:
        without = settings.logs.slates and settings.logs.filling == "without replacement"
        policy = policy_of(given, logs, actions, without_replacement=without)
        if policy.name == taken:  # of two parts of one file, say
            policy = policy._replace(name=f"{policy.name} (against)")
        arguments: dict[str, Any] = {
            "models": models,
            "estimators": settings.estimators or None,
            "kind": settings.interval,
            "level": settings.level,
            "drawn": drawn,
        }
        if settings.logs.slates:
            return slate_off_policy(logs, policy, filling=settings.logs.filling, **arguments)
        return off_policy(logs, policy, fixed=settings.fixed, **arguments)

    target = valued(analysis.target or settings.target)
    log.info("%s: %s", name, target.verdict.word)
    given = analysis.against or settings.against
    if given is None:
        return Analysed(target, None, None, quarantine)
    against = valued(given, target.policy.name)
    return Analysed(target, against, compare(target, against, settings.interval, settings.level), quarantine)


def read_logs(
    settings: OffPolicySettings, analysis: AnalysisSettings
) -> tuple[LoggedActions, pl.DataFrame, pl.Series | None]:
    """The checked logs of one analysis, what was set aside, and the actions where they are listed."""
    given = settings.logs
    if given.written_by is not None and not given.path.exists():
        raise ingest.InputError(
            f"{given.path}: not found; first run the command that writes it: {given.written_by}"
        )
    conditions = [condition for condition in (given.where, analysis.where) if condition is not None]
    where = " AND ".join(f"({condition})" for condition in conditions) or None
    actions = ids_of(settings.actions, ITEM_ID)
    policies = (analysis.target or settings.target, analysis.against or settings.against)
    columns = list(
        dict.fromkeys(policy.column for policy in policies if isinstance(policy, ColumnPolicySettings))
    )
    checked = ingest.read_logged_actions(
        source_of(given.model_copy(update={"where": where})),
        item_id=given.item_id,
        reward=given.reward,
        propensity=given.propensity,
        user_id=given.user_id,
        position=given.position,
        slate_id=given.slate_id,
        context=given.context,
        embedding=given.embedding,
        probabilities=columns,
        actions=actions,
        max_quarantined_share=settings.max_quarantined_share,
    )
    table = checked.table
    if table.is_empty():
        raise ingest.InputError(f"{given.path}: no logged actions{f' where {where}' if where else ''}")
    if given.propensity is not None:
        table = table.with_columns(pl.col(PROPENSITY) * given.propensity_factor)
    if given.propensity is None and given.origin == "stated":
        table = with_uniform_propensities(table, actions)
    logs = logged_actions(
        table, context=given.context, embedding=given.embedding, probabilities=columns, origin=given.origin
    )
    return logs, checked.quarantine, actions


def models_of(settings: OffPolicySettings, logs: LoggedActions) -> Models | None:
    """The reward models, where they are wanted."""
    given = settings.reward_model
    needed = [name for name, one in ESTIMATORS.items() if {"model", "robust model"} & one.needs]
    needed += [name for name, one in SLATE_ESTIMATORS.items() if one.needs_model]
    if given.kind == "none" or (settings.estimators and not set(needed) & set(settings.estimators)):
        return None
    if settings.logs.slates:
        logs = ordered(logs)
    return fitted_models(logs, given.kind, folds=given.folds, seed=settings.seed)


def policy_of(
    given: PolicySettings,
    logs: LoggedActions,
    actions: pl.Series | None,
    *,
    without_replacement: bool = False,
) -> Policy:
    """The policy that the settings describe, over these logs."""
    match given:
        case TablePolicySettings():
            names = {given.item_id: ITEM_ID, given.probability: PROBABILITY}
            ids = (given.item_id, *(key for key in given.keys if key not in logs.context))
            wanted = (given.probability, *given.keys)
            table = ingest.read_rows(source_of(given), wanted, ids).rename(names)
            probabilities = table[PROBABILITY].cast(pl.Float64, strict=False)
            name = given.name or given.path.name
            return from_table(
                name, table.with_columns(probabilities), given.keys, given.path.name if given.name else ""
            )
        case ScoresPolicySettings():
            names = {given.user_id: USER_ID, given.item_id: ITEM_ID, given.score: "score"}
            table = ingest.read_rows(source_of(given), (given.score,), (given.user_id, given.item_id))
            name = given.name or f"scores of {given.path.name}"
            return softmax(of_users(table.rename(names), logs), given.temperature, name)
        case ColumnPolicySettings():
            return from_column(given.column)
        case LoggedPolicySettings():
            ids = (given.item_id, *(key for key in given.keys if key not in logs.context))
            table = ingest.read_rows(source_of(given), given.keys, ids)
            name = given.name or f"as logged in {given.path.name}"
            return as_logged(table.rename({given.item_id: ITEM_ID}), given.keys, name)
    return uniform(logs, actions, by_position=not without_replacement)


def of_users(scores: pl.DataFrame, logs: LoggedActions) -> pl.DataFrame:
    """The scores of those who occur in the logs: a run publishes for more."""
    if not logs.clustered:
        raise ingest.InputError(
            "a policy of kind scores depends on the user; expected logs.user_id beside it"
        )
    return scores.filter(pl.col(USER_ID).is_in(logs.table[USER_ID].unique().implode()))


def result_of(found: Analysed) -> Summary:
    """What the last line says of one analysis."""
    target, overlap = found.target, found.target.diagnostics.row()
    values = {
        _SHORT.get(row["estimator"], row["estimator"].lower().replace(" ", "_").replace("-", "_")): row[
            "value"
        ]
        for row in target.estimates.iter_rows(named=True)
    }
    summary: Summary = {
        **values,
        "ess": overlap["effective_rows"],
        **{name: overlap[name] for name in ("mean_weight", "largest_weight", "support")},
        "verdict": target.verdict.word,
        "reasons": list(target.verdict.reasons),
        "answer": plain_answer(target.answer),
    }
    if found.differences is not None:
        chosen = found.differences.filter("is_answer")
        summary["difference"] = plain_answer(chosen.row(0, named=True) if len(chosen) else None)
    return summary


def plain_answer(row: dict[str, Any] | None) -> Summary | None:
    """The estimate and its interval, without the rest of the row."""
    return (
        None if row is None else {key: row[key] for key in ("estimator", "value", "low", "high", "interval")}
    )


def write(
    settings: OffPolicySettings,
    fingerprint: str,
    folder: Path,
    analysed: Mapping[str, Analysed],
    summary: Summary,
) -> None:
    """Files of this evaluation, and rows among those of all."""
    folder.mkdir(parents=True, exist_ok=True)
    told = [
        Told(name, found.target, found.against, found.differences, len(found.quarantine))
        for name, found in analysed.items()
    ]
    modelled = any({"DM", "Cascade-DR"} & set(found.target.sums) for found in analysed.values())
    fitting = f"{settings.reward_model.kind}, cross-fitted by user in {settings.reward_model.folds} folds"
    facts = {
        "logs": settings.logs.path.name,
        "propensities": settings.logs.origin,
        "interval": f"{settings.interval}, {settings.level:.0%}, users resampled {settings.bootstrap_draws:,} times",
        "reward model": fitting if modelled else "none",
        "seed": str(settings.seed),
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "evaluation_id": fingerprint[:8],
    }
    estimates, diagnostics = rows_of(analysed)
    estimates.write_parquet(folder / "estimates.parquet")
    diagnostics.write_parquet(folder / "diagnostics.parquet")
    keep_quarantine(folder, pl.concat([found.quarantine for found in analysed.values()]))
    write_bytes_atomically(folder / "tables.md", markdown(told).encode())
    write_bytes_atomically(folder / "result.json", json.dumps(summary, indent=1).encode())
    write_bytes_atomically(folder / "report.html", off_policy_page(settings.name, facts, told).encode())
    write_evaluation(
        folder.parents[1] / EVALUATIONS_FILE,
        fingerprint[:8],
        {"off_policy_estimates": estimates, "off_policy_diagnostics": diagnostics},
    )


def rows_of(analysed: Mapping[str, Analysed]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All estimates and differences, and all diagnostics with their verdicts."""
    estimates, diagnostics = [], []
    for name, found in analysed.items():
        policies = [found.target] if found.against is None else [found.target, found.against]
        tables = [policy.estimates for policy in policies]
        tables += [] if found.differences is None else [found.differences]
        estimates += [table.select(pl.lit(name).alias("analysis"), pl.all()) for table in tables]
        diagnostics += [
            {
                "analysis": name,
                "policy": policy.policy.name,
                "verdict": policy.verdict.word,
                "reasons": list(policy.verdict.reasons),
                **policy.diagnostics.row(),
            }
            for policy in policies
        ]
    return pl.concat(estimates), pl.DataFrame(diagnostics, infer_schema_length=None)
