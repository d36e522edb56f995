"""Tuning: the settings of learners and baselines chosen on validation users, the same number of trials for each.

Needs the extra ``tune`` (optuna). Every trial fits anew on what the evaluation learns from, less its validation users; users of
the test are never judged.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import polars as pl
import yaml

from pipelines.cost import cost
from pipelines.evaluate import (
    chief_metric,
    choices_of,
    fitted,
    judge,
    on_trial,
    suited,
    unique_names,
    with_ladder,
)
from pipelines.judged import Trial, read_judged, trial_of
from pipelines.settings import (
    BaselineSettings,
    LearnerSettings,
    RangeSettings,
    TrainingSettings,
    TuneSettings,
)
from recsys_meta import store
from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, summarize
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.store.evaluations import EVALUATIONS_FILE, write_evaluation
from recsys_meta.tensors import Histories

log = logging.getLogger(__name__)

Summary = dict[str, Any]
Choice = LearnerSettings | BaselineSettings

_OF_TRAINING = "training."  # begins the name of a setting that is no argument of the class


def tune(settings: TuneSettings, fingerprint: str) -> Summary:
    """Tries, writes every trial and the best settings as an overlay of the config, and gives both."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = settings.model_copy(update={"judge": "validation"})
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"tuning-{fingerprint[:8]}"):
        settings, inputs = read_judged(settings)
        trial = trial_of(settings, inputs)
        settings = with_ladder(settings, trial)
        known = trial.known()
        choices = choices_of(settings)
        rows: list[Summary] = []
        best: list[tuple[Choice, Summary]] = []
        for name, choice in zip(unique_names(choices), choices, strict=True):
            tried = trials_of(settings, choice, trial, known, name)
            rows += tried
            best.append((choice, best_of(tried, settings, trial)))
        folder = workspace.root / "tunings" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        overlay = overlay_of(settings, best)
        text = f"# Best of {settings.trials} trials each on {trial.tasks.user_ids.n_unique()} validation users.\n"
        text += yaml.safe_dump(overlay, sort_keys=False)
        write_bytes_atomically(folder / "best.yaml", text.encode())
        table = pl.DataFrame([row | {"parameters": json.dumps(row["parameters"])} for row in rows])
        write_evaluation(workspace.root / EVALUATIONS_FILE, fingerprint[:8], {"tuning_trials": table})
    print(text)
    return {
        "metric": chief_metric(settings, trial.tasks),
        "trials": settings.trials,
        "validation_users": trial.tasks.user_ids.n_unique(),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
        "best": {row["learner"]: {"value": row["value"], **row["parameters"]} for _, row in best},
        "overlay": str(folder / "best.yaml"),
    }


def trials_of(
    settings: TuneSettings, choice: Choice, trial: Trial, known: Histories, name: str
) -> list[Summary]:
    """All trials of one learner; one as it stands where nothing of it is searched."""
    space = settings.spaces.get(choice.class_path, {})
    lower = chief_metric(settings, trial.tasks) in LOWER_IS_BETTER
    study = optuna.create_study(
        direction="minimize" if lower else "maximize",
        sampler=optuna.samplers.TPESampler(seed=settings.seed),
    )
    rows: list[Summary] = []

    def value_of(suggest: optuna.Trial) -> float:
        parameters = {key: suggested(suggest, key, given) for key, given in space.items()}
        with cost() as spent:
            value = validated(settings, with_parameters(choice, parameters), parameters, trial, known, name)
        rows.append(
            {
                "learner": name,
                "trial": len(rows) + 1,
                "parameters": parameters,
                "value": value,
                **asdict(spent),
            }
        )
        log.info("%s, trial %d: %.4f with %s, %.1f s", name, len(rows), value, parameters, spent.seconds)
        return value

    study.optimize(value_of, n_trials=settings.trials if space else 1)
    return rows


def suggested(trial: optuna.Trial, name: str, given: RangeSettings) -> Any:
    """A value of the range."""
    if given.choices:
        return trial.suggest_categorical(name, given.choices)
    assert given.low is not None  # as the settings see to
    assert given.high is not None
    if isinstance(given.low, int) and isinstance(given.high, int):
        return trial.suggest_int(name, given.low, given.high, log=given.log)
    return trial.suggest_float(name, given.low, given.high, log=given.log)


def with_parameters(choice: Choice, parameters: Summary) -> Choice:
    """The choice with these arguments of its class."""
    arguments = {key: value for key, value in parameters.items() if not key.startswith(_OF_TRAINING)}
    return choice.model_copy(update={"init_args": choice.init_args | arguments})


def training_of(parameters: Summary) -> dict[str, Any]:
    """The settings of the training among these."""
    begins = len(_OF_TRAINING)
    return {key[begins:]: value for key, value in parameters.items() if key.startswith(_OF_TRAINING)}


def validated(
    settings: TuneSettings, choice: Choice, parameters: Summary, trial: Trial, known: Histories, name: str
) -> float:
    """The mean over the shots of the chief metric, on validation users."""
    training = TrainingSettings(**settings.training.model_dump() | training_of(parameters))
    story, choice = suited(settings.model_copy(update={"training": training}), choice, trial, name)
    with TemporaryDirectory() as folder:
        workspace = store.Workspace(Path(folder))
        with workspace.lock("trial"):
            model = fitted(story, choice, trial, workspace)
        learner, users, catalogue = on_trial(story, model, trial, known)
        judgements = judge(story, learner, users, trial.tasks, catalogue)
    metric = chief_metric(settings, trial.tasks)
    means = summarize(judgements.filter(pl.col("metric") == metric), draws=1)["mean"]
    return float(means.mean())  # type: ignore[arg-type]


def best_of(rows: list[Summary], settings: TuneSettings, trial: Trial) -> Summary:
    """The trial of the best value, the first of equals."""
    pick = min if chief_metric(settings, trial.tasks) in LOWER_IS_BETTER else max
    return pick(rows, key=lambda row: row["value"])


def overlay_of(settings: TuneSettings, best: list[tuple[Choice, Summary]]) -> dict[str, Any]:
    """What to put over the config: learners and baselines with their best arguments, and the first learner's training."""
    chosen = [
        with_parameters(choice, row["parameters"]).model_dump(mode="json", exclude_none=True)
        for choice, row in best
    ]
    count = len(settings.learners)
    overlay: dict[str, Any] = {"learners": chosen[:count], "baselines": chosen[count:]}
    training = training_of(best[0][1]["parameters"])
    return overlay | ({"training": training} if training else {})
