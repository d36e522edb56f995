"""The suite: several evaluations one after the other, and the rank of every learner over all of them."""

import json
import logging
from typing import Any

import polars as pl

from pipelines.construction import check_classes
from pipelines.evaluate import Evaluated, evaluated
from pipelines.loading import load
from pipelines.outcomes import ConfigError
from pipelines.settings import EvaluateSettings, EvaluationSettings, SuiteSettings
from recsys_meta import __version__, store
from recsys_meta.evaluation.ranks import mean_ranks, rank_table
from recsys_meta.reports.suite import STANDINGS, standings_picture, standings_table, suite_page
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.store.evaluations import EVALUATIONS_FILE, write_evaluation

log = logging.getLogger(__name__)

Summary = dict[str, Any]


def suite(settings: SuiteSettings, fingerprint: str) -> Summary:
    """Runs every evaluation, ranks, writes, and prints the ranks and where the first learner wins, ties and loses."""
    loaded = [evaluation_of(settings, entry) for entry in settings.evaluations]
    check_names([given.name for given, _ in loaded])  # all errors before the first hour
    results: dict[str, Summary] = {}
    means, baselines, leaders = [], set(), set()
    for given, evaluation_fingerprint in loaded:
        log.info("%s ...", given.name)
        workspace = store.Workspace(given.workspace)
        with workspace.lock(f"evaluation-{evaluation_fingerprint[:8]}"):
            found = evaluated(given, evaluation_fingerprint, workspace)
        results[given.name] = found.result
        means.append(chief_means(given.name, found))
        baselines |= set(found.baselines)
        leaders.add(found.costs["learner"][0])
    ranks = mean_ranks(pl.concat(means), sorted(baselines))
    stands = standings(results)
    shown = "\n".join([rank_table(ranks), standings_table(stands)])
    summary: Summary = {
        **outcome(stands),
        "mean_ranks": dict(ranks.select("learner", "mean_rank").iter_rows()),
        "evaluations": results,
    }
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"suite-{fingerprint[:8]}"):
        folder = workspace.root / "suites" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        leader = leaders.pop() if len(leaders) == 1 else "the first learner"
        title = f"{len(results)} evaluation{'s' if len(results) > 1 else ''}"
        page = suite_page(title, facts(stands, loaded), stands, ranks, leader)
        write_bytes_atomically(folder / "report.html", page.encode())
        write_bytes_atomically(folder / "standings.svg", standings_picture(stands, leader).encode())
        write_bytes_atomically(folder / "ranks.md", shown.encode())
        write_bytes_atomically(folder / "result.json", json.dumps(summary, indent=1).encode())
        write_evaluation(workspace.root / EVALUATIONS_FILE, fingerprint[:8], {"suite_ranks": ranks})
    print(shown)
    print(f"{folder / 'report.html'}\n")
    return summary


def evaluation_of(suite: SuiteSettings, entry: EvaluationSettings) -> tuple[EvaluateSettings, str]:
    """The settings of one evaluation, with what the suite says instead of them, and their fingerprint."""
    overrides = [(key, json.dumps(value)) for key, value in entry.settings.items()]
    if suite.judge is not None:
        overrides.append(("judge", suite.judge))
    loaded = load(EvaluateSettings, [entry.config], overrides)
    check_classes(loaded)
    return loaded.settings, loaded.fingerprint


def check_names(names: list[str]) -> None:
    """Raises ConfigError where two evaluations have one name, by which their results are told apart."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        given = ", ".join(map(repr, twice))
        raise ConfigError(
            [
                f"evaluations: found {given} more than once; expected a name of its own for each (settings: {{name: ..}})"
            ]
        )


def facts(stands: pl.DataFrame, loaded: list[tuple[EvaluateSettings, str]]) -> dict[str, str]:
    """What stands under the title of the page."""
    found = outcome(stands)
    judged = {given.judge for given, _ in loaded}
    return {
        "against the best baseline of each shot": f"{found['wins']} better, {found['ties']} level, {found['losses']} worse",
        "judged": " and ".join(f"{who} users" for who in sorted(judged)),
        "version": __version__,
    }


def chief_means(name: str, found: Evaluated) -> pl.DataFrame:
    """The means by the chief metric, under the name of the evaluation."""
    chief = found.summary.filter(pl.col("metric") == found.result["metric"])
    return chief.select(pl.lit(name).alias("evaluation"), "shot", "metric", "learner", "mean")


def standings(results: dict[str, Summary]) -> pl.DataFrame:
    """One row for each shot of each evaluation, as ``reports.suite.suite_page`` takes them."""
    rows = [
        {
            "evaluation": name,
            "metric": result["metric"],
            "shot": shot,
            "mean": cell["default"],
            "best_baseline": cell.get("best_baseline"),
            "best_baseline_name": cell.get("best_baseline_name"),
            "low": cell.get("difference_low"),
            "high": cell.get("difference_high"),
            "verdict": verdict(cell),
        }
        for name, result in results.items()
        for shot, cell in result["shots"].items()
    ]
    return pl.DataFrame(rows, schema=STANDINGS)


def verdict(shot: Summary) -> str:
    """Whether the first learner is better than the best baseline of a shot, by the paired interval."""
    if "difference_low" not in shot:
        return "alone"
    if shot["difference_low"] is None:  # a single user decides nothing
        return "tie"
    return "win" if shot["difference_low"] > 0 else "loss" if shot["difference_high"] < 0 else "tie"


def outcome(found: pl.DataFrame) -> dict[str, int]:
    """How often it wins, ties and loses."""
    verdicts = found["verdict"].to_list()
    return {"wins": verdicts.count("win"), "ties": verdicts.count("tie"), "losses": verdicts.count("loss")}
