"""The suite: several evaluations one after the other, and the rank of every learner over all of them."""

import json
import logging
from typing import Any

import polars as pl

from pipelines.construction import check_classes
from pipelines.evaluate import Evaluated, evaluated
from pipelines.loading import load
from pipelines.settings import EvaluateSettings, EvaluationSettings, SuiteSettings
from recsys_meta import store
from recsys_meta.evaluation.ranks import mean_ranks, rank_table
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.store.evaluations import EVALUATIONS_FILE, write_evaluation

log = logging.getLogger(__name__)

Summary = dict[str, Any]


def suite(settings: SuiteSettings, fingerprint: str) -> Summary:
    """Runs every evaluation, ranks, writes, and prints the ranks and where the first learner wins, ties and loses."""
    loaded = [
        evaluation_of(settings, entry) for entry in settings.evaluations
    ]  # all errors before the first hour
    results: dict[str, Summary] = {}
    means, baselines = [], set()
    for given, evaluation_fingerprint in loaded:
        log.info("%s ...", given.name)
        workspace = store.Workspace(given.workspace)
        with workspace.lock(f"evaluation-{evaluation_fingerprint[:8]}"):
            found = evaluated(given, evaluation_fingerprint, workspace)
        results[given.name] = found.result
        means.append(chief_means(given.name, found))
        baselines |= set(found.baselines)
    ranks = mean_ranks(pl.concat(means), sorted(baselines))
    shown = "\n".join([rank_table(ranks), verdicts(results)])
    summary: Summary = {
        **outcome(results),
        "mean_ranks": dict(ranks.select("learner", "mean_rank").iter_rows()),
        "evaluations": results,
    }
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"suite-{fingerprint[:8]}"):
        folder = workspace.root / "suites" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(folder / "ranks.md", shown.encode())
        write_bytes_atomically(folder / "result.json", json.dumps(summary, indent=1).encode())
        write_evaluation(workspace.root / EVALUATIONS_FILE, fingerprint[:8], {"suite_ranks": ranks})
    print(shown)
    return summary


def evaluation_of(suite: SuiteSettings, entry: EvaluationSettings) -> tuple[EvaluateSettings, str]:
    """The settings of one evaluation, with what the suite says instead of them, and their fingerprint."""
    overrides = [(key, json.dumps(value)) for key, value in entry.settings.items()]
    if suite.judge is not None:
        overrides.append(("judge", suite.judge))
    loaded = load(EvaluateSettings, [entry.config], overrides)
    check_classes(loaded)
    return loaded.settings, loaded.fingerprint


def chief_means(name: str, found: Evaluated) -> pl.DataFrame:
    """The means by the chief metric, under the name of the evaluation."""
    chief = found.summary.filter(pl.col("metric") == found.result["metric"])
    return chief.select(pl.lit(name).alias("evaluation"), "shot", "metric", "learner", "mean")


def verdict(shot: Summary) -> str:
    """Whether the first learner is better than the best baseline of a shot, by the paired interval."""
    if "difference_low" not in shot:
        return "alone"
    return "win" if shot["difference_low"] > 0 else "loss" if shot["difference_high"] < 0 else "tie"


def outcome(results: dict[str, Summary]) -> dict[str, int]:
    """How often it wins, ties and loses."""
    found = [verdict(shot) for result in results.values() for shot in result["shots"].values()]
    return {"wins": found.count("win"), "ties": found.count("tie"), "losses": found.count("loss")}


def verdicts(results: dict[str, Summary]) -> str:
    """One line for each shot of each evaluation, as Markdown."""
    lines = [
        "| evaluation | shot | first learner | best baseline | difference | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        for shot, cell in result["shots"].items():
            best, interval = "", ""
            if "difference_low" in cell:
                best = f"{cell['best_baseline']:.4f} {cell['best_baseline_name']}"
                interval = f"{cell['difference_low']:+.4f} to {cell['difference_high']:+.4f}"
            lines.append(
                f"| {name}, {result['metric']} | {shot} | {cell['default']:.4f} | {best} | {interval} | {verdict(cell)} |"
            )
    return "\n".join(lines) + "\n"
