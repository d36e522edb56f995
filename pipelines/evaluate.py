"""The evaluation: learners and baselines judged on the same users, at every number of shots."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl
import torch

from pipelines.cost import Cost, cost
from pipelines.drawing import catalogue_at, clock_of, with_negatives
from pipelines.inputs import keep_quarantine, set_aside, told_aside
from pipelines.judged import Tasks, Trial, largest, read_judged, trial_of
from pipelines.learning import Model, at_pace, check_buildable, fit_or_reuse
from pipelines.settings import (
    BaselineSettings,
    EvaluateSettings,
    HeldOutProtocol,
    LearnerSettings,
    Protocol,
    Story,
    TemporalProtocol,
    alike,
    duration_text,
    ladder,
)
from recsys_meta import __version__, store
from recsys_meta.adaptation.judging import Oracle, judge_listed, judge_ranking, judge_rating, oracle_users
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import rows_of, select
from recsys_meta.evaluation.breakdown import (
    ON_ITEMS,
    ItemGroups,
    breakdown,
    history_groups,
    popularity_groups,
    segment_groups,
)
from recsys_meta.evaluation.intervals import (
    LOWER_IS_BETTER,
    against_prior,
    differences_to,
    shot_order,
    summarize,
)
from recsys_meta.evaluation.report import markdown
from recsys_meta.evaluation.sanity import (
    beyond_strangers,
    check_batch_size,
    check_disjoint,
    check_oracle,
    check_shuffled_labels,
    in_same_task,
    mean_of_shuffles,
    shuffled_labels,
)
from recsys_meta.reports.evaluation import Found, evaluation_page
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.store.evaluations import EVALUATIONS_FILE, write_evaluation
from recsys_meta.tables import INSTANT, USER_ID
from recsys_meta.tensors import Catalogue, Features, Histories

log = logging.getLogger(__name__)

Summary = dict[str, Any]
Judging = TypeVar("Judging", bound=EvaluateSettings)

_SANITY_TASKS = 256  # tasks that the checks are run on, beside the figures themselves
_ENOUGH_ALIKE = 500  # users with as many events as those judged
_PART_OF_THE_WAY = 3  # a third of what newcomers have to have, of those known before them
_SHUFFLED_FROM = 50  # users; what fewer have in common is told by their shuffled labels too


class Evaluated(NamedTuple):
    """What an evaluation found."""

    result: Summary  # the learner that leads the list against the best baseline of each shot
    judgements: pl.DataFrame
    summary: pl.DataFrame
    differences: pl.DataFrame  # of everybody to the best baseline of each shot, by the chief metric
    harmed: pl.DataFrame  # by adaptation: the learners against their priors, by the chief metric
    breakdown: pl.DataFrame
    costs: pl.DataFrame
    baselines: list[str]  # their names
    folder: Path


def evaluate(settings: EvaluateSettings, fingerprint: str) -> Summary:
    """Fits, judges, compares and writes; prints the tables; gives the result."""
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"evaluation-{fingerprint[:8]}"):
        found = evaluated(settings, fingerprint, workspace)
    print((found.folder / "tables.md").read_text())
    print(f"{found.folder / 'report.html'}\n")
    return found.result


def evaluated(settings: EvaluateSettings, fingerprint: str, workspace: store.Workspace) -> Evaluated:
    """The whole story but for what is printed. Raises SanityError where a check speaks against the figures."""
    settings, inputs = read_judged(settings)
    trial = trial_of(settings, inputs)
    settings = with_ladder(settings, trial)
    judgements, unadapted, costs = judge_all(settings, trial, workspace)
    metric, names = chief_metric(settings, trial.tasks), unique_names(choices_of(settings))
    draws, seed = settings.bootstrap_draws, settings.seed
    summary = summarize(judgements, draws, seed)
    baselines = names[len(settings.learners) :]
    chief = judgements.filter(pl.col("metric") == metric)
    differences = against_best(chief, summary, baselines, draws, seed)
    found = Evaluated(
        compared(summary, differences, metric, names[0], baselines),
        judgements,
        summary,
        differences,
        against_prior(chief, unadapted.filter(pl.col("metric") == metric), draws, seed),
        breakdown(judgements, metric, groups_of(settings, trial), draws, seed),
        costs,
        baselines,
        workspace.root / "evaluations" / fingerprint[:8],
    )
    write(settings, fingerprint, trial, found)
    return found


def judge_all(
    settings: EvaluateSettings, trial: Trial, workspace: store.Workspace
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The judgements of all learners and baselines after all checks, those of the learners unadapted, and what they cost."""
    check_disjoint(trial.tasks.support, trial.tasks.query)
    few = trial.tasks.take(torch.arange(min(_SANITY_TASKS, len(trial.tasks.user_ids))))
    oracle = Oracle(few.query)
    check_oracle(judge(settings, oracle, oracle_users(len(few.user_ids)), few, plain(trial.item_ids)))
    known = trial.known()
    groups = popularity_groups(torch.bincount(known.items, minlength=len(trial.item_ids)))
    choices = choices_of(settings)
    pages, mixed, priors, costs = [], [], [], []
    unadapted = []
    names = unique_names(choices)
    enough = few.user_ids.n_unique() >= _SHUFFLED_FROM
    if not enough:
        log.warning("%d users are too few for the check with shuffled labels", few.user_ids.n_unique())
    asked = [suited(settings, chosen, trial, name) for name, chosen in zip(names, choices, strict=True)]
    for story, choice in asked:
        check_buildable(story, bare(choice), trial.inputs, trial.training_users)
    for place, (name, (story, choice)) in enumerate(zip(names, asked, strict=True)):
        with cost() as fitting:
            model = fitted(story, choice, trial, workspace)
        fit_cost = kept_cost(workspace.model(model.version) / "cost.json", fitting, anew=not model.reused)
        with cost() as judging:
            learner, users, catalogue = on_trial(story, model, trial, known)
            pages.append(judge(story, learner, users, trial.tasks, catalogue, name=name, groups=groups))
        if place < len(settings.learners):
            unadapted.append(judge_unadapted(story, learner, users, trial.tasks, catalogue, name))
        some = users.take(torch.arange(len(few.user_ids)))
        run = partial(judge_few, story, learner, some, catalogue, name)
        check_batch_size(partial(run, few), (64, 17))
        if enough:
            on_shuffled, on_shuffled_prior = shuffled_pages(run, few, settings.seed)
            mixed.append(on_shuffled)
            priors.append(on_shuffled_prior)
        costs.append(
            {
                "learner": name,
                "model_version": model.version,
                **{f"fit_{what}": value for what, value in fit_cost.items()},
                **{f"judge_{what}": value for what, value in asdict(judging).items()},
            }
        )
        log.info("%s: fitted in %.1f s, judged in %.1f s", name, fitting.seconds, judging.seconds)
    for place, page in enumerate(mixed):
        # A baseline may begin with nothing and learn from any labels what others know beforehand: that is no leak.
        prior = priors[place] if place < len(settings.learners) else pl.concat(priors)
        check_shuffled_labels(page, prior, among=len(mixed))
    unadapted = unadapted or [pages[0].clear()]
    return pl.concat(pages), pl.concat(unadapted), pl.DataFrame(costs, infer_schema_length=None)


def shuffled_pages(
    run: Callable[..., pl.DataFrame], few: Tasks, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """For the check with shuffled labels: what a learner makes of them beyond what strangers gain, and its prior.

    Few tasks are shuffled several times, so that about as many are looked at as where there are many.
    run: judges tasks, adapted or not.
    """
    tasks = len(few.user_ids)
    mixed, priors = [], []
    for number in range(-(-_SANITY_TASKS // tasks)):
        shuffled = with_shuffled_labels(few, seed + number)
        strangers = with_query_of_others(shuffled, 1 + number)
        mixed.append(beyond_strangers(run(shuffled), run(strangers), run(strangers, adapted=False)))
        priors.append(run(shuffled, adapted=False))
    return mean_of_shuffles(mixed), mean_of_shuffles(priors)


def fitted(
    story: EvaluateSettings,
    choice: LearnerSettings | BaselineSettings,
    trial: Trial,
    workspace: store.Workspace,
) -> Model:
    """The model of one choice, on what may be learned from."""
    return fit_or_reuse(
        story,
        bare(choice),
        trial.inputs,
        trial.training_users,
        workspace=workspace,
        moment=trial.moment,
        run_date=datetime.now(UTC).date(),
        listed=trial.tasks.judged == "listed",
    )


def bare(choice: LearnerSettings | BaselineSettings) -> LearnerSettings:
    """What is fitted of a choice: a baseline's popularity window is a matter of its story."""
    return LearnerSettings(class_path=choice.class_path, init_args=choice.init_args)


def choices_of(settings: EvaluateSettings) -> list[LearnerSettings | BaselineSettings]:
    """What is judged, in order."""
    return [*settings.learners, *(settings.baselines or ())]


def with_ladder(settings: Judging, trial: Trial) -> Judging:
    """The settings with the baselines that suit the data, where they name none: those that are not judged as learners already."""
    if settings.baselines is not None:
        return settings
    suiting = ladder(rated=trial.tasks.judged == "rating", protocol=settings.protocol.kind)
    others = tuple(one for one in suiting if not any(alike(one, learner) for learner in settings.learners))
    return settings.model_copy(update={"baselines": others})


def kept_cost(file: Path, spent: Cost, *, anew: bool) -> dict[str, float | None]:
    """What the fit cost when it was done: written down beside the model, read where the model is used again.

    None each where a model is used again of which nobody wrote it down, a night's for example.
    """
    if anew:
        write_bytes_atomically(file, json.dumps(asdict(spent)).encode())
    kept: dict[str, float | None] = (
        json.loads(file.read_text()) if file.exists() else dict.fromkeys(asdict(spent))
    )
    return kept


def groups_of(settings: EvaluateSettings, trial: Trial) -> pl.DataFrame:
    """The groups of users that figures are broken down by."""
    groups = [history_groups(trial.tasks.user_ids, trial.tasks.support.lengths)]
    if trial.inputs.users is not None:
        judged = (
            trial.tasks.user_ids.unique().to_frame(USER_ID).join(trial.inputs.users, on=USER_ID, how="left")
        )
        groups += [segment_groups(judged, name) for name in settings.segments]
    return pl.concat(groups)


def write(settings: EvaluateSettings, fingerprint: str, trial: Trial, found: Evaluated) -> None:
    """Files of this evaluation, and rows among those of all."""
    folder, result = found.folder, found.result
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": settings.name,
        "finished_at": datetime.now(UTC),
        "protocol": settings.protocol.kind,
        "judged": settings.judge,
        "metric": result["metric"],
        "higher_is_better": result["higher_is_better"],
        "default_learner": unique_names(choices_of(settings))[0],
        "moment": trial.moment,
        "users": trial.tasks.user_ids.n_unique(),
        "tasks": len(trial.tasks.user_ids),
        "seed": settings.seed,
        "version": __version__,
    }
    found.judgements.write_parquet(folder / "judgements.parquet")
    found.summary.write_parquet(folder / "summary.parquet")
    metrics = [name for name in found.summary["metric"].unique(maintain_order=True) if ON_ITEMS not in name]
    tables = "\n".join(markdown(found.summary, name) for name in metrics)
    tables += told_aside(trial.inputs.quarantine)
    keep_quarantine(folder, trial.inputs.quarantine)
    write_bytes_atomically(folder / "tables.md", tables.encode())
    write_bytes_atomically(folder / "result.json", json.dumps(result, indent=1).encode())
    page = evaluation_page(
        Found(
            title=settings.name,
            facts=facts_of(settings, trial, found),
            metric=result["metric"],
            default=record["default_learner"],
            baselines=found.baselines,
            summary=found.summary,
            differences=found.differences,
            harmed=found.harmed,
            breakdown=found.breakdown,
            costs=found.costs,
        )
    )
    write_bytes_atomically(folder / "report.html", page.encode())
    write_evaluation(
        folder.parents[1] / EVALUATIONS_FILE,
        fingerprint[:8],
        {
            "evaluations": pl.DataFrame([record], schema_overrides={"moment": INSTANT}),
            "evaluation_summary": found.summary,
            "evaluation_differences": pl.concat([found.differences, found.harmed]),
            "evaluation_breakdown": found.breakdown,
            "evaluation_costs": found.costs,
        },
    )


def facts_of(settings: EvaluateSettings, trial: Trial, found: Evaluated) -> dict[str, str]:
    """What stands under the title of the page."""
    users = f"{trial.tasks.user_ids.n_unique():,} in {len(trial.tasks.user_ids):,} tasks"
    known = f"{trial.inputs.events.height:,} events, {len(trial.training_users):,} users"
    moment = {} if trial.moment is None else {"known until": f"{trial.moment:%Y-%m-%d %H:%M} UTC"}
    return {
        "protocol": settings.protocol.kind,
        f"{settings.judge} users": users,
        "learned from": known,
        **moment,
        "items": f"{len(trial.item_ids):,}",
        "set aside": set_aside(trial.inputs.quarantine),
        "seed": str(settings.seed),
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "evaluation_id": found.folder.name,
    }


def with_window(settings: EvaluateSettings, choice: LearnerSettings | BaselineSettings) -> EvaluateSettings:
    """The settings that one of the judged is fitted and judged with: a baseline may have a popularity of its own."""
    if isinstance(choice, BaselineSettings) and choice.popularity_window is not None:
        return settings.model_copy(
            update={"popularity_window": choice.popularity_window, "popularity_mix": ()}
        )
    return settings


def on_trial(
    settings: Story, model: Model, trial: Trial, known: Histories
) -> tuple[Learner, Features, Catalogue]:
    """The learner, the users of the tasks and the items, as the model sees them. known: what everybody did to these items."""
    inputs, items = trial.inputs, trial.item_ids
    eligible = None
    if inputs.candidates is not None:
        eligible = items.is_in(inputs.candidates.implode()).to_torch()
    features = model.bundle.item_encoder.encode(items, inputs.items)
    catalogue = catalogue_at(clock_of(settings, features, known, eligible), trial.moment)
    users = model.bundle.user_encoder.encode(trial.tasks.user_ids, inputs.users)
    return model.bundle.learner, users, catalogue


def suited(
    settings: EvaluateSettings, choice: LearnerSettings | BaselineSettings, trial: Trial, name: str
) -> tuple[EvaluateSettings, LearnerSettings | BaselineSettings]:
    """The settings that one of the judged is fitted and judged with: of a learner what suits how fast items come and go."""
    story = with_tasks_like(with_window(settings, choice), trial)
    if isinstance(choice, BaselineSettings):
        return story, choice
    met = largest(story.protocol) if isinstance(story.protocol, HeldOutProtocol | TemporalProtocol) else 0
    paced = at_pace(story, choice, trial.inputs, trial.moment, trial.horizon, met)
    if paced.why:
        log.info("%s: %s; fitted with %s", name, paced.why, paced)
    return paced.story, paced.learner


def with_tasks_like(story: EvaluateSettings, trial: Trial) -> EvaluateSettings:
    """The settings with trainings on users who have about as many events as those judged, where rankings of users held out or
    of newcomers are judged and the settings say nothing of it.

    Who has hardly more than its support wants other things next than who has much more, and of few shots there would be
    mostly such users: they have no others. Not of ratings, of which those by other users say as much.
    """
    said, least = story.training.min_history != "auto", least_history(story.protocol)
    if said or least == 1 or trial.tasks.judged != "ranking":
        return story
    known = trial.inputs.events.filter(pl.col(USER_ID).is_in(trial.training_users.implode()))
    enough = known.group_by(USER_ID).len().filter(pl.col("len") >= least).height
    if enough < _ENOUGH_ALIKE:
        return story
    return story.model_copy(update={"training": story.training.model_copy(update={"min_history": least})})


def least_history(protocol: Protocol) -> int:
    """How many events those have at least who are like the judged; 1: anybody may be. Where newcomers are judged it is a part of
    what these have to have, for who is known at a moment has not done by then all that it will.
    """
    match protocol:
        case HeldOutProtocol():
            return protocol.min_history
        case TemporalProtocol():
            return max((largest(protocol) + protocol.min_query) // _PART_OF_THE_WAY, 1)
    return 1


def judge_few(
    settings: EvaluateSettings,
    learner: Learner,
    users: Features,
    catalogue: Catalogue,
    name: str,
    tasks: Tasks,
    batch_size: int = _SANITY_TASKS,
    adapted: bool = True,
) -> pl.DataFrame:
    """What the checks look at."""
    return judge(
        settings, learner, users, tasks, catalogue, name=name, batch_size=batch_size, adapted=adapted
    )


def judge_unadapted(
    settings: EvaluateSettings,
    learner: Learner,
    users: Features,
    tasks: Tasks,
    catalogue: Catalogue,
    name: str,
) -> pl.DataFrame:
    """What users harmed by adaptation are told by: at shot 0 there is none."""
    shots = [shot for shot in settings.protocol.shots if shot != 0]
    protocol = settings.protocol.model_copy(update={"shots": shots})
    story = settings.model_copy(update={"protocol": protocol})
    return judge(story, learner, users, tasks, catalogue, name=name, adapted=False)


def with_shuffled_labels(tasks: Tasks, seed: int) -> Tasks:
    """The same tasks, each with the support of nobody in particular."""
    return tasks._replace(support=shuffled_labels(tasks.support, seed, ranked=tasks.judged != "rating"))


def with_query_of_others(tasks: Tasks, places: int) -> Tasks:
    """The same tasks, each asked what a task of the user so many places before its own is asked: never its own, if there are two.

    Ratings of items that the support holds are left out, as they are in a query of one's own: who adapts to labels of nobody
    errs most on their items, and in a small catalogue that alone would make its own query look known.
    """
    users = tasks.user_ids.unique(maintain_order=True)
    owners = rows_of(tasks.user_ids, users).cast(pl.Int64).to_torch()
    counts, order = torch.bincount(owners), owners.argsort(stable=True)  # the tasks of each user
    starts = counts.cumsum(0) - counts
    number = torch.empty_like(owners)
    number[order] = torch.arange(len(owners)) - starts[owners[order]]  # of the user's own tasks
    others = (owners - 1 - (places - 1) % max(len(users) - 1, 1)) % len(users)
    query = tasks.query.take(order[starts[others] + number % counts[others]])
    if tasks.judged == "rating":
        query = select(query, ~in_same_task(query, tasks.support))
    return tasks._replace(query=query)


def judge(
    settings: EvaluateSettings,
    learner: Learner,
    users: Features,
    tasks: Tasks,
    catalogue: Catalogue,
    *,
    name: str | None = None,
    groups: ItemGroups | None = None,
    batch_size: int | None = None,
    adapted: bool = True,
) -> pl.DataFrame:
    """The judgements of one learner on these tasks."""
    protocol = settings.protocol
    shots = [None if shot == "all" else shot for shot in protocol.shots]
    arguments: dict[str, Any] = {
        "user_ids": tasks.user_ids,
        "draws": tasks.draws,
        "shots": shots,
        "adapted": adapted,
        "newest": tasks.newest,
        "k": protocol.cutoff,
        "name": name,
        "batch_size": batch_size or settings.batch_size,
        "seed": settings.seed,
        "prepare": with_negatives(learner, catalogue, tasks.user_ids, settings.seed),
    }
    if tasks.judged == "rating":
        arguments["clip"] = getattr(protocol, "clip", None)
    if tasks.judged != "listed":
        arguments["groups"] = groups
    judge_tasks = {"rating": judge_rating, "ranking": judge_ranking, "listed": judge_listed}[tasks.judged]
    return judge_tasks(learner, tasks.support, tasks.query, users, catalogue, **arguments)


def chief_metric(settings: EvaluateSettings, tasks: Tasks) -> str:
    """The metric that learners are compared by."""
    k = settings.protocol.cutoff
    return {"rating": "mae", "ranking": f"ndcg@{k}", "listed": f"ndcg_of_listed@{k}"}[tasks.judged]


def against_best(
    chief: pl.DataFrame, summary: pl.DataFrame, baselines: Sequence[str], draws: int, seed: int
) -> pl.DataFrame:
    """How everybody differs, at each shot, from the baseline that is best there. chief: judgements of one metric."""
    pages = []
    for shot in sorted(chief["shot"].unique().to_list(), key=shot_order):
        some = chief.filter(pl.col("shot") == shot)
        best = best_baseline(summary, chief["metric"][0], shot, baselines)
        if best is not None:
            pages.append(differences_to(some, best["learner"], draws, seed))
    return pl.concat(pages) if pages else against_prior(chief.clear(), chief.clear(), draws, seed)


def best_baseline(
    summary: pl.DataFrame, metric: str, shot: str, baselines: Sequence[str]
) -> dict[str, Any] | None:
    """The row of the summary of the best baseline at a shot; the first of equals; None where there is no baseline."""
    rows = summary.filter(
        (pl.col("metric") == metric) & (pl.col("shot") == shot) & pl.col("learner").is_in(baselines)
    )
    rows = rows.sort("mean", descending=metric not in LOWER_IS_BETTER, nulls_last=True, maintain_order=True)
    return rows.row(0, named=True) if len(rows) else None


def compared(
    summary: pl.DataFrame, differences: pl.DataFrame, metric: str, learner: str, baselines: Sequence[str]
) -> Summary:
    """One learner against the best baseline of each shot; a positive difference says that the learner is better."""
    higher = metric not in LOWER_IS_BETTER
    sign = 1 if higher else -1
    shots: dict[str, Summary] = {}
    rows = summary.filter((pl.col("metric") == metric) & (pl.col("learner") == learner))
    for row in rows.sort(pl.col("shot").map_elements(shot_order, pl.Float64)).iter_rows(named=True):
        shots[row["shot"]] = {"default": row["mean"]}
        best = best_baseline(summary, metric, row["shot"], baselines)
        pair = differences.filter((pl.col("learner") == learner) & (pl.col("shot") == row["shot"]))
        if best is not None and len(pair):
            ends = [sign * end for end in (pair["low"].item(), pair["high"].item()) if end is not None]
            low, high = sorted(ends) if ends else (None, None)  # of a single user
            shots[row["shot"]] |= {
                "best_baseline": best["mean"],
                "best_baseline_name": best["learner"],
                "difference_low": low,
                "difference_high": high,
            }
    return {"metric": metric, "higher_is_better": higher, "shots": shots}


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
    """The class of each choice, by its path where two have the name; with its settings where it stands more than once."""
    paths = {choice.class_path for choice in choices}
    homonyms = Counter(path.rpartition(".")[2] for path in paths)
    classes = [choice.class_path.rpartition(".")[2] for choice in choices]
    classes = [
        choice.class_path if homonyms[name] > 1 else name
        for name, choice in zip(classes, choices, strict=True)
    ]
    names = []
    for name, choice in zip(classes, choices, strict=True):
        said = [f"{key}={value}" for key, value in choice.init_args.items()]
        if isinstance(choice, BaselineSettings) and choice.popularity_window is not None:
            said.append(duration_text(choice.popularity_window))
        names.append(f"{name}({', '.join(said)})" if said and classes.count(name) > 1 else name)
    return names
