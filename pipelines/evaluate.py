"""The evaluation: learners and baselines judged on the same users, at every number of shots."""

import json
import logging
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import polars as pl
import torch

from pipelines.inputs import Inputs, cast_ids, read_inputs, source_of
from pipelines.learning import Model, clock_of, fit_or_reuse
from pipelines.settings import EvaluateSettings, HeldOutProtocol, LearnerSettings, RatingProtocol
from recsys_meta import ingest, store
from recsys_meta.adaptation.judging import Oracle, judge_ranking, judge_rating, oracle_users
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import Negatives, group, select, split_users, user_keys
from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, paired_differences, shot_order, summarize
from recsys_meta.evaluation.protocols import FixedEpisodes, ProtocolError
from recsys_meta.evaluation.report import markdown
from recsys_meta.evaluation.sanity import (
    check_batch_size,
    check_disjoint,
    check_oracle,
    check_shuffled_labels,
    shuffled_labels,
)
from recsys_meta.ingest.sources import read
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.tables import ITEM_ID, USER_ID
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, Ragged

log = logging.getLogger(__name__)

Summary = dict[str, Any]

_HELD_OUT_SEED = 1_000_003
_SANITY_TASKS = 256  # tasks that the checks are run on, beside the figures themselves
_SHUFFLED_FROM = 50  # users; what fewer have in common is told by their shuffled labels too
_RATING_LOSSES = ("squared", "absolute")


class Tasks(NamedTuple):
    """Who is judged, and on what: one row per task in each."""

    user_ids: pl.Series
    draws: torch.Tensor  # [T] int64
    support: Histories
    query: Histories
    rating: bool  # whether predicted values are judged, or the ranking

    def first(self, n: int) -> "Tasks":
        """The first tasks."""
        rows = torch.arange(min(n, len(self.user_ids)))
        return self._replace(
            user_ids=self.user_ids.head(n),
            draws=self.draws[:n],
            support=self.support.take(rows),
            query=self.query.take(rows),
        )


def evaluate(settings: EvaluateSettings, fingerprint: str) -> Summary:
    """Fits, judges, compares and writes; prints the table of the chief metric."""
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"evaluation-{fingerprint[:8]}"):
        inputs = read_inputs(settings, None)
        tasks, inputs, training_users = tasks_of(settings, inputs)
        check_disjoint(tasks.support, tasks.query)
        check_oracle(
            judge(settings, Oracle(tasks.query), oracle_users(len(tasks.user_ids)), tasks, plain(inputs))
        )
        pages, costs = [], {}
        names = unique_names([*settings.learners, *settings.baselines])
        for name, choice in zip(names, [*settings.learners, *settings.baselines], strict=True):
            began = time.monotonic()
            model = fit_or_reuse(
                settings,
                LearnerSettings(class_path=choice.class_path, init_args=choice.init_args),
                inputs,
                training_users,
                workspace=workspace,
                moment=None,
                run_date=datetime.now(UTC).date(),
            )
            fitted = time.monotonic()
            pages.append(
                judged(settings, name, model, inputs, tasks, shuffle=name in names[: len(settings.learners)])
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
        metric = f"ndcg@{settings.protocol.cutoff}" if not tasks.rating else "mae"
        shown = [markdown(summary, name) for name in summary["metric"].unique(maintain_order=True).to_list()]
        comparison = compared(settings, judgements, summary, names, metric)
        folder = workspace.root / "evaluations" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        judgements.write_parquet(folder / "judgements.parquet")
        summary.write_parquet(folder / "summary.parquet")
        write_bytes_atomically(folder / "tables.md", "\n".join(shown).encode())
        result = comparison | {"learners": costs, "folder": str(folder)}
        write_bytes_atomically(folder / "result.json", json.dumps(result, indent=1).encode())
    print("\n".join(shown))
    return result


def tasks_of(settings: EvaluateSettings, inputs: Inputs) -> tuple[Tasks, Inputs, pl.Series]:
    """The tasks, what is left to learn from, and the users to learn from."""
    protocol = settings.protocol
    if isinstance(protocol, HeldOutProtocol):
        return held_out_tasks(settings, protocol, inputs)
    columns = (USER_ID, ITEM_ID, "draw", "position", "role", *([protocol.value] if protocol.value else []))
    rows = read(source_of(protocol.episodes), columns, ids=(USER_ID, ITEM_ID)).table
    rows = rows.with_columns(cast_ids(rows[name], inputs.interactions) for name in (USER_ID, ITEM_ID))
    rating = isinstance(protocol, RatingProtocol)
    inputs = inputs._replace(judged=rows[ITEM_ID].unique())
    try:
        episodes = FixedEpisodes.from_table(rows, inputs.item_ids, value=protocol.value)
    except ProtocolError as error:
        raise ingest.InputError(f"{protocol.episodes.path}: {error}") from error
    users = inputs.interactions[USER_ID].unique().sort()
    both = users.is_in(episodes.user_ids.implode())
    if both.any():
        raise ingest.InputError(
            f"{int(both.sum())} judged users stand among the interactions to learn from, first {users.filter(both)[0]!r};"
            " expected none: leave them out with interactions.where"
        )
    return Tasks(*episodes, rating), inputs, users


def held_out_tasks(
    settings: EvaluateSettings, protocol: HeldOutProtocol, inputs: Inputs
) -> tuple[Tasks, Inputs, pl.Series]:
    """Users held out of the interactions: in time where it is known, else in a random order per draw."""
    users = inputs.events[USER_ID].unique().sort()
    # Another seed than that of the validation users: these would all stand among the held-out ones.
    parts = split_users(users, protocol.share, settings.seed + _HELD_OUT_SEED)
    train, held_out = (users.gather(rows.numpy()) for rows in parts)
    histories = group(inputs.events, held_out, inputs.item_ids)
    long_enough = (histories.lengths >= protocol.min_history).nonzero().squeeze(1)
    histories, ids = histories.take(long_enough), held_out.gather(long_enough.numpy())
    if ids.is_empty():
        raise ingest.InputError(
            f"none of {len(held_out)} held-out users has {protocol.min_history} events; lower protocol.min_history"
        )
    largest = max((shot for shot in protocol.shots if shot != "all"), default=0)
    supports, queries = [], []
    for draw in range(protocol.draws):
        ordered = histories if histories.timed else shuffled(histories, settings.seed + draw)
        place = torch.arange(len(ordered.items)) - ordered.offsets[:-1].repeat_interleave(ordered.lengths)
        # The largest shot is support, the rest is query; with "all" the last query_size (or half) are.
        lengths = ordered.lengths.repeat_interleave(ordered.lengths)
        cut = torch.full_like(lengths, largest)
        if "all" in protocol.shots:
            cut = lengths - (
                torch.full_like(lengths, protocol.query_size) if protocol.query_size else lengths // 2
            )
        cut = cut.minimum(lengths - 1)
        query = place >= cut
        if protocol.query_size:
            query &= place < cut + protocol.query_size
        supports.append(select(ordered, place < cut))
        queries.append(select(ordered, query))
    learned = inputs._replace(
        interactions=without(inputs.interactions, held_out),
        events=without(inputs.events, held_out),
        judged=inputs.item_ids,
    )
    loss = settings.learners[0].init_args.get("loss", "squared") if settings.learners else "squared"
    rating = protocol.metrics == "rating" or (protocol.metrics == "auto" and loss in _RATING_LOSSES)
    tasks = Tasks(
        pl.concat([ids] * protocol.draws),
        torch.arange(protocol.draws).repeat_interleave(len(ids)),
        stacked(supports),
        stacked(queries),
        rating,
    )
    return tasks, learned, train


def judged(
    settings: EvaluateSettings, name: str, model: Model, inputs: Inputs, tasks: Tasks, *, shuffle: bool
) -> pl.DataFrame:
    """The judgements of one learner, after the checks that would show them to be worthless.

    shuffle: whether to check shuffled labels. A learner whose prior knows nothing learns the mean rating from them.
    """
    learner = model.bundle.learner
    items = inputs.item_ids
    features = model.bundle.item_encoder.encode(items, inputs.items)
    clock = clock_of(settings, features, group(inputs.events, inputs.user_ids, items))
    catalogue = clock.at(None)
    users = model.bundle.user_encoder.encode(tasks.user_ids, inputs.users)
    few = tasks.first(_SANITY_TASKS)
    some = users.take(torch.arange(len(few.user_ids)))
    run = partial(judge, settings, learner, name=name)
    check_batch_size(lambda size: run(some, few, catalogue, batch_size=size), (64, 17))
    if shuffle and few.user_ids.n_unique() >= _SHUFFLED_FROM:
        mixed = few._replace(support=shuffled_labels(few.support, settings.seed))
        check_shuffled_labels(run(some, mixed, catalogue, with_prior=True))
    elif shuffle:
        log.warning("%d users are too few for the check with shuffled labels", few.user_ids.n_unique())
    return run(users, tasks, catalogue)


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
        "k": protocol.cutoff,
        "name": name,
        "batch_size": batch_size or settings.batch_size,
        "seed": settings.seed,
        "prepare": with_negatives,
    }
    if tasks.rating:
        clip = None if protocol.kind == "ranking" else protocol.clip
        return judge_rating(learner, tasks.support, tasks.query, users, catalogue, clip=clip, **arguments)
    return judge_ranking(learner, tasks.support, tasks.query, users, catalogue, **arguments)


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


def plain(inputs: Inputs) -> Catalogue:
    """A catalogue of which nothing but the number of items is known, all eligible: enough for an oracle."""
    items = len(inputs.item_ids)
    nothing = torch.zeros(items, 0)
    return Catalogue(
        Features(torch.zeros(items, dtype=torch.int64), nothing.long(), (), nothing, nothing),
        torch.zeros(items),
        torch.ones(items, dtype=torch.bool),
    )


def unique_names(choices: list[Any]) -> list[str]:
    """The class of each choice; with its settings where a class stands more than once."""
    classes = [choice.class_path.rpartition(".")[2] for choice in choices]
    return [
        name
        if classes.count(name) == 1
        else f"{name}({', '.join(f'{k}={v}' for k, v in choice.init_args.items())})"
        for name, choice in zip(classes, choices, strict=True)
    ]


def without(table: pl.DataFrame, users: pl.Series) -> pl.DataFrame:
    """The rows of everybody else."""
    return table.filter(~pl.col(USER_ID).is_in(users.implode()))


def stacked(histories: list[Histories]) -> Histories:
    """One below the other."""
    ends = torch.cat([some.lengths for some in histories]).cumsum(0)
    return Histories(
        torch.cat([some.items for some in histories]),
        torch.cat([some.values for some in histories]),
        torch.cat([some.times for some in histories]),
        torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
    )


def shuffled(histories: Histories, seed: int) -> Histories:
    """Each user's interactions in a random order."""
    chance = torch.rand(
        len(histories.items), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    order = torch.argsort(histories.owners() + chance)
    return histories._replace(items=histories.items[order], values=histories.values[order])
