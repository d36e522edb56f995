"""The evaluation: learners and baselines judged on the same users, at every number of shots."""

import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import polars as pl
import torch

from pipelines.inputs import read_inputs
from pipelines.judged import Tasks, Trial, trial_of
from pipelines.learning import Model, catalogue_at, clock_of, fit_or_reuse
from pipelines.settings import BaselineSettings, EvaluateSettings, LearnerSettings, duration_text
from recsys_meta import store
from recsys_meta.adaptation.judging import Oracle, judge_listed, judge_ranking, judge_rating, oracle_users
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import Negatives, group, user_keys
from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, paired_differences, shot_order, summarize
from recsys_meta.evaluation.report import markdown
from recsys_meta.evaluation.sanity import (
    check_batch_size,
    check_disjoint,
    check_oracle,
    check_shuffled_labels,
    shuffled_labels,
)
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, Ragged

log = logging.getLogger(__name__)

Summary = dict[str, Any]

_SANITY_TASKS = 256  # tasks that the checks are run on, beside the figures themselves
_SHUFFLED_FROM = 50  # users; what fewer have in common is told by their shuffled labels too


def evaluate(settings: EvaluateSettings, fingerprint: str) -> Summary:
    """Fits, judges, compares and writes; prints the tables."""
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"evaluation-{fingerprint[:8]}"):
        trial = trial_of(settings, read_inputs(settings, None))
        check_disjoint(trial.tasks.support, trial.tasks.query)
        few = trial.tasks.take(torch.arange(min(_SANITY_TASKS, len(trial.tasks.user_ids))))
        check_oracle(
            judge(settings, Oracle(few.query), oracle_users(len(few.user_ids)), few, plain(trial.item_ids))
        )
        known = group(trial.inputs.events, trial.inputs.user_ids, trial.item_ids)
        pages, costs = [], {}
        choices: list[LearnerSettings | BaselineSettings] = [*settings.learners, *settings.baselines]
        names = unique_names(choices)
        for place, (name, choice) in enumerate(zip(names, choices, strict=True)):
            began = time.monotonic()
            story = with_window(settings, choice)
            model = fit_or_reuse(
                story,
                LearnerSettings(class_path=choice.class_path, init_args=choice.init_args),
                trial.inputs,
                trial.training_users,
                workspace=workspace,
                moment=trial.moment,
                run_date=datetime.now(UTC).date(),
            )
            fitted = time.monotonic()
            pages.append(
                judged(story, name, model, trial, few, known, shuffle=place < len(settings.learners))
            )
            costs[name] = {
                "model_version": model.version,
                "model_reused": model.reused,
                "fit_seconds": round(fitted - began, 2),
                "judge_seconds": round(time.monotonic() - fitted, 2),
                **model.metrics,
            }
            log.info(
                "%s: fitted in %.1f s, judged in %.1f s", name, fitted - began, time.monotonic() - fitted
            )
        judgements = pl.concat(pages)
        summary = summarize(judgements, settings.bootstrap_draws, settings.seed)
        shown = [markdown(summary, name) for name in summary["metric"].unique(maintain_order=True).to_list()]
        comparison = compared(settings, judgements, summary, names, chief_metric(settings, trial.tasks))
        folder = workspace.root / "evaluations" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        judgements.write_parquet(folder / "judgements.parquet")
        summary.write_parquet(folder / "summary.parquet")
        write_bytes_atomically(folder / "tables.md", "\n".join(shown).encode())
        result = comparison | {"learners": costs, "folder": str(folder)}
        write_bytes_atomically(folder / "result.json", json.dumps(result, indent=1).encode())
    print("\n".join(shown))
    return result


def with_window(settings: EvaluateSettings, choice: LearnerSettings | BaselineSettings) -> EvaluateSettings:
    """The settings that one of the judged is fitted and judged with: a baseline may have a popularity of its own."""
    if isinstance(choice, BaselineSettings) and choice.popularity_window is not None:
        return settings.model_copy(update={"popularity_window": choice.popularity_window})
    return settings


def judged(
    settings: EvaluateSettings,
    name: str,
    model: Model,
    trial: Trial,
    few: Tasks,
    known: Histories,
    *,
    shuffle: bool,
) -> pl.DataFrame:
    """The judgements of one learner, after the checks that would show them to be worthless.

    few: the first of the tasks, for the checks. known: what everybody did, on the items of the trial.
    shuffle: whether to check shuffled labels. A learner whose prior knows nothing learns the mean rating from them.
    """
    learner, inputs, items = model.bundle.learner, trial.inputs, trial.item_ids
    eligible = None
    if inputs.candidates is not None:
        eligible = items.is_in(inputs.candidates.implode()).to_torch()
    features = model.bundle.item_encoder.encode(items, inputs.items)
    catalogue = catalogue_at(clock_of(settings, features, known, eligible), trial.moment)
    users = model.bundle.user_encoder.encode(trial.tasks.user_ids, inputs.users)
    some = users.take(torch.arange(len(few.user_ids)))
    run = partial(judge, settings, learner, name=name)
    check_batch_size(lambda size: run(some, few, catalogue, batch_size=size), (64, 17))
    if shuffle and few.user_ids.n_unique() >= _SHUFFLED_FROM:
        mixed = few._replace(
            support=shuffled_labels(few.support, settings.seed, ranked=few.judged != "rating")
        )
        check_shuffled_labels(run(some, mixed, catalogue, with_prior=True))
    elif shuffle:
        log.warning("%d users are too few for the check with shuffled labels", few.user_ids.n_unique())
    return run(users, trial.tasks, catalogue)


def judge(
    settings: EvaluateSettings,
    learner: Learner,
    users: Features,
    tasks: Tasks,
    catalogue: Catalogue,
    *,
    name: str | None = None,
    batch_size: int | None = None,
    with_prior: bool = False,
) -> pl.DataFrame:
    """The judgements of one learner on these tasks."""
    protocol = settings.protocol
    shots = [None if shot == "all" else shot for shot in protocol.shots]
    negatives, keys = Negatives(catalogue, seed=settings.seed), user_keys(tasks.user_ids)

    def with_negatives(support: Examples, rows: torch.Tensor) -> Examples:
        if not learner.negatives:
            return support
        known = Ragged(
            support.items[support.mask],
            torch.cat([torch.zeros(1, dtype=torch.int64), support.shots.cumsum(0)]),
        )
        return negatives.append(support, keys[rows], known, learner.negatives, stream=0)

    arguments: dict[str, Any] = {
        "user_ids": tasks.user_ids,
        "draws": tasks.draws,
        "shots": [0, *shots] if with_prior and 0 not in shots else shots,
        "newest": tasks.newest,
        "k": protocol.cutoff,
        "name": name,
        "batch_size": batch_size or settings.batch_size,
        "seed": settings.seed,
        "prepare": with_negatives,
    }
    if tasks.judged == "rating":
        arguments["clip"] = getattr(protocol, "clip", None)
    judge_tasks = {"rating": judge_rating, "ranking": judge_ranking, "listed": judge_listed}[tasks.judged]
    return judge_tasks(learner, tasks.support, tasks.query, users, catalogue, **arguments)


def chief_metric(settings: EvaluateSettings, tasks: Tasks) -> str:
    """The metric that learners are compared by."""
    k = settings.protocol.cutoff
    return {"rating": "mae", "ranking": f"ndcg@{k}", "listed": f"ndcg_of_listed@{k}"}[tasks.judged]


def compared(
    settings: EvaluateSettings, judgements: pl.DataFrame, summary: pl.DataFrame, names: list[str], metric: str
) -> Summary:
    """The first learner against the best baseline of each shot; a positive difference says that the learner is better."""
    higher = metric not in LOWER_IS_BETTER
    baselines = names[len(settings.learners) :]
    means = {
        (row["learner"], row["shot"]): row["mean"]
        for row in summary.filter(pl.col("metric") == metric).to_dicts()
    }
    shots: dict[str, Summary] = {}
    for shot in sorted(summary["shot"].unique().to_list(), key=shot_order):
        found: Summary = {"default": means.get((names[0], shot))}
        if baselines:
            best = (max if higher else min)(baselines, key=lambda name: means[name, shot])
            pair = paired_differences(
                judgements.filter((pl.col("metric") == metric) & (pl.col("shot") == shot)),
                names[0],
                best,
                settings.bootstrap_draws,
                settings.seed,
            ).row(0, named=True)
            low, high = (pair["low"], pair["high"]) if higher else (-pair["high"], -pair["low"])
            found |= {
                "best_baseline": means[best, shot],
                "best_baseline_name": best,
                "difference_low": low,
                "difference_high": high,
            }
        shots[shot] = found
    return {"metric": metric, "higher_is_better": higher, "default_name": names[0], "shots": shots}


def plain(item_ids: pl.Series) -> Catalogue:
    """A catalogue of which nothing but the number of items is known, all eligible: enough for an oracle."""
    items = len(item_ids)
    nothing = torch.zeros(items, 0)
    return Catalogue(
        Features(torch.zeros(items, dtype=torch.int64), nothing.long(), (), nothing, nothing),
        torch.zeros(items),
        torch.ones(items, dtype=torch.bool),
    )


def unique_names(choices: Sequence[LearnerSettings | BaselineSettings]) -> list[str]:
    """The class of each choice; with its settings where a class stands more than once."""
    classes = [choice.class_path.rpartition(".")[2] for choice in choices]
    names = []
    for name, choice in zip(classes, choices, strict=True):
        said = [f"{key}={value}" for key, value in choice.init_args.items()]
        if isinstance(choice, BaselineSettings) and choice.popularity_window is not None:
            said.append(duration_text(choice.popularity_window))
        names.append(f"{name}({', '.join(said)})" if said and classes.count(name) > 1 else name)
    return names
