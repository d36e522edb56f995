"""The k-shot loop: adapts a learner on the first k support examples of every task and judges it on the query.

What comes out is one row per task, shot and metric (``tables.JUDGEMENTS``); means and intervals are evaluation's.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import polars as pl
import torch
from torch import Tensor

from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.episodes import collate, head
from recsys_meta.episodes import newest as last
from recsys_meta.evaluation.breakdown import ItemGroups
from recsys_meta.evaluation.intervals import ALL, SUPPORT_LOSSES
from recsys_meta.evaluation.metrics import (
    Gain,
    absolute_errors,
    multi_hot,
    ranking_metrics,
    rated_ndcg,
    squared_errors,
    tie_places,
)
from recsys_meta.tables import JUDGEMENTS, USER_ID
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Histories, ItemCodes, Sizes

logger = logging.getLogger(__name__)

_LARGEST_GAIN = 30  # rating, whose exponential gain is a billion

SHOTS: Sequence[int | None] = (0, 1, 3, 5, 10, 20, None)  # None: every support example

Prepare = Callable[[Examples, Tensor], Examples]
"""Support examples of some tasks and the rows of these tasks -> what the learner adapts on (with sampled negatives, say)."""

ScoresOf = Callable[[Tensor | None], Tensor]
"""The scores of some tasks: of the items at an index [B, Q], or of all, [B, I]."""


def unchanged(support: Examples, rows: Tensor) -> Examples:
    """Adapts on the support as it stands."""
    return support


def judge_rating(
    learner: Learner,
    support: Histories,
    query: Histories,
    users: Features,
    catalogue: Catalogue,
    *,
    user_ids: pl.Series,
    draws: Tensor | None = None,
    shots: Sequence[int | None] = SHOTS,
    newest: bool = False,
    adapted: bool = True,
    clip: tuple[float, float] | None = None,
    k: int = 5,
    groups: ItemGroups | None = None,
    name: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    prepare: Prepare = unchanged,
) -> pl.DataFrame:
    """Judges predicted ratings: mae, mse (reported as rmse by ``summarize``), ndcg_exponential@k and ndcg_linear@k.

    support, query, users, user_ids, draws: T tasks each (a user drawn five times stands five times); shot k adapts on
    the first k support rows, or the last k (``newest``), or stays with the prior (not ``adapted``). Predictions are
    clipped for the errors, not for the ranking of the query items. Runs where the catalogue lies; learner and catalogue
    have to be on one device. seed: of the shuffle that breaks ties. groups: of items; the error on each of them is
    judged too.
    Ratings below 0 have no gains, and those above 30 no exponential ones, which would be of one rating: these are left out then.
    Gives columns of ``tables.JUDGEMENTS``; name: in the column learner, by default that of the class. For a meta-trained
    learner they hold the loss of the support before and after adaptation too (``intervals.SUPPORT_LOSSES``).
    """
    device = catalogue.log_popularity.device
    places = tie_places(len(catalogue.eligible), seed).to(device)
    groups = None if groups is None else groups._replace(of=groups.of.to(device))

    gains: list[Gain] = []
    if not bool((query.values < 0).any()):
        gains = ["linear"] if bool((query.values > _LARGEST_GAIN).any()) else ["exponential", "linear"]

    def measure(scores_of: ScoresOf, judged: Examples, used: Examples) -> dict[str, Tensor]:
        scores = scores_of(judged.items)
        clipped = scores if clip is None else scores.clamp(*clip)
        ratings, mask, ties = judged.targets, judged.mask, places[judged.items]
        by_group = {}
        if groups is not None:
            for group in range(len(groups.names)):
                some = mask & (groups.of[judged.items] == group)
                by_group[groups.named("mae", group)] = absolute_errors(clipped, ratings, some)
        ranked = {f"ndcg_{gain}@{k}": rated_ndcg(scores, ratings, mask, k, gain, ties) for gain in gains}
        errors = {
            "mae": absolute_errors(clipped, ratings, mask),
            "mse": squared_errors(clipped, ratings, mask),
        }
        return errors | ranked | by_group

    book = _measured(
        learner, support, query, users, catalogue, shots, newest, adapted, batch_size, prepare, measure
    )
    return book.judgements(name or type(learner).__name__, user_ids, draws)


def judge_ranking(
    learner: Learner,
    support: Histories,
    query: Histories,
    users: Features,
    catalogue: Catalogue,
    *,
    user_ids: pl.Series,
    draws: Tensor | None = None,
    shots: Sequence[int | None] = SHOTS,
    newest: bool = False,
    adapted: bool = True,
    k: int = 10,
    groups: ItemGroups | None = None,
    name: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    prepare: Prepare = unchanged,
) -> pl.DataFrame:
    """Judges the ranking of the whole catalogue: ndcg@k, recall@k, hit_rate@k and mrr@k.

    Candidates are the eligible items except the support rows used at the shot; relevant are the query rows of value above
    0 that are candidates. NaN where a task has none of them. Everything else as in ``judge_rating``.
    """
    items, device = len(catalogue.eligible), catalogue.log_popularity.device
    places = tie_places(items, seed).to(device)
    groups = None if groups is None else groups._replace(of=groups.of.to(device))

    def measure(scores_of: ScoresOf, judged: Examples, used: Examples) -> dict[str, Tensor]:
        relevant = multi_hot(judged.items, judged.mask & (judged.targets > 0), items)
        candidates = catalogue.eligible & ~multi_hot(used.items, used.mask, items)
        return ranking_metrics(scores_of(None), candidates, relevant, k, places, groups)

    book = _measured(
        learner, support, query, users, catalogue, shots, newest, adapted, batch_size, prepare, measure
    )
    return book.judgements(name or type(learner).__name__, user_ids, draws)


def judge_listed(
    learner: Learner,
    support: Histories,
    query: Histories,
    users: Features,
    catalogue: Catalogue,
    *,
    user_ids: pl.Series,
    draws: Tensor | None = None,
    shots: Sequence[int | None] = SHOTS,
    newest: bool = False,
    adapted: bool = True,
    k: int = 5,
    name: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    prepare: Prepare = unchanged,
) -> pl.DataFrame:
    """Judges the ranking of the query rows alone: ndcg_of_listed@k.

    Candidates are the rows of the query, those of value above 0 are relevant: sampled negatives beside what was chosen,
    say. Such a figure tells nothing of a whole catalogue. Everything else as in ``judge_ranking``.
    """
    places = tie_places(len(catalogue.eligible), seed).to(catalogue.log_popularity.device)

    def measure(scores_of: ScoresOf, judged: Examples, used: Examples) -> dict[str, Tensor]:
        relevant = (judged.targets > 0).to(judged.targets)
        scores, ties = scores_of(judged.items), places[judged.items]
        return {f"ndcg_of_listed@{k}": rated_ndcg(scores, relevant, judged.mask, k, "linear", ties)}

    book = _measured(
        learner, support, query, users, catalogue, shots, newest, adapted, batch_size, prepare, measure
    )
    return book.judgements(name or type(learner).__name__, user_ids, draws)


class Oracle(Learner):
    """Scores by the query itself, for ``evaluation.sanity.check_oracle``: goes the way of every learner through the judge.

    It is told which task it serves by the user's id, so the users have to be ``oracle_users(T)``.
    """

    meta_trained = False

    def __init__(self, query: Histories, sizes: Sizes | None = None) -> None:
        super().__init__(sizes or Sizes(FeatureSizes(), FeatureSizes()))
        self.query = query

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """Nothing is kept of an item."""
        nothing = torch.zeros_like(catalogue.log_popularity)
        return ItemCodes(catalogue.features.ids, nothing.unsqueeze(1), nothing, catalogue.eligible)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"values": [T, I]}: the query value of each item, 0 outside the query."""
        query = collate(self.query, users.ids.cpu()).to(items.bias.device)
        values = items.bias.new_zeros(len(users.ids), len(items.bias))
        return {"values": values.scatter_add(1, query.items, query.targets * query.mask)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        return state["values"] if index is None else state["values"].gather(1, index)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """An oracle loses nothing, [T]."""
        return items.bias.new_zeros(len(examples.items))


def oracle_users(tasks: int) -> Features:
    """Users whose ids are the rows of their tasks."""
    return Features(
        torch.arange(tasks),
        torch.zeros(tasks, 0, dtype=torch.int64),
        (),
        torch.zeros(tasks, 0),
        torch.zeros(tasks, 0),
    )


@torch.no_grad()
def _measured(
    learner: Learner,
    support: Histories,
    query: Histories,
    users: Features,
    catalogue: Catalogue,
    shots: Sequence[int | None],
    newest: bool,
    adapted: bool,
    batch_size: int,
    prepare: Prepare,
    measure: Callable[[ScoresOf, Examples, Examples], dict[str, Tensor]],
) -> "_Book":
    """Runs all tasks through all shots, without dropout. measure: scores, query and support used -> metrics to [B].

    A task whose support is no longer than at the shot before is not run again: all is as it was.
    """
    device = catalogue.log_popularity.device
    some_of = last if newest else head
    histories = [support if shot is None else some_of(support, shot) for shot in shots]
    book = _Book()

    def judged(rows: Tensor, history: Histories, prior: TaskState, adapts: bool) -> dict[str, Tensor]:
        used = collate(history, rows)
        given = prepare(used, rows).to(device)
        state = learner.adapt(given, users.take(rows).to(device), codes) if adapts else prior
        scores_of = partial(_scores, learner, state, prior, codes)
        found = measure(scores_of, collate(query, rows).to(device), used.to(device))
        if learner.meta_trained and adapts:
            losses = [learner.task_loss(which, given, codes) for which in (prior, state)]
            found |= dict(zip(SUPPORT_LOSSES, losses, strict=True))
        return {name: values.cpu() for name, values in found.items()}

    training = learner.training
    learner.eval()
    try:
        codes = learner.encode(catalogue)
        for batch in torch.split(torch.arange(len(support.offsets) - 1), batch_size):
            nobody = collate(head(support, 0), batch).to(device)
            priors = learner.adapt(nobody, users.take(batch).to(device), codes)
            page: dict[str, Tensor] = {}
            lengths = begun = torch.full_like(batch, -1)
            for place, (shot, history) in enumerate(zip(shots, histories, strict=True)):
                if 0 in shots[max(place - 1, 0) : place + 1]:  # nothing is adapted there, unlike elsewhere
                    page, lengths = {}, begun
                anew = (history.lengths[batch] != lengths).nonzero().squeeze(1)
                lengths = history.lengths[batch]
                if len(anew):
                    prior = {name: value[anew.to(device)] for name, value in priors.items()}
                    found = judged(batch[anew], history, prior, adapted and shot != 0)
                    for name, values in found.items():
                        rows = page.get(name, values.new_empty(len(batch)))
                        page[name] = rows.index_copy(0, anew, values)
                book.enter(shot, batch, page)
    finally:
        learner.train(training)
    return book


def _scores(
    learner: Learner, state: TaskState, prior: TaskState, codes: ItemCodes, index: Tensor | None
) -> Tensor:
    """Scores, the prior's for tasks whose adaptation went out of bounds: that is what a night would serve them."""
    scores = learner.predict(state, codes, index)
    lost = ~torch.isfinite(scores.sum(1))  # a sum is quicker looked at than all; large scores may overflow it
    lost[lost.clone()] = ~torch.isfinite(scores[lost]).all(1)
    if lost.any():
        logger.warning(
            "%d of %d tasks have no finite scores after adaptation: judged on the prior",
            int(lost.sum()),
            len(lost),
        )
        scores = torch.where(lost.unsqueeze(1), learner.predict(prior, codes, index), scores)
    return scores


class _Book:
    """Judgements as they come in, batch by batch."""

    def __init__(self) -> None:
        self.pages: list[tuple[str, str, Tensor, Tensor]] = []  # shot, metric, rows, values

    def enter(self, shot: int | None, rows: Tensor, metrics: dict[str, Tensor]) -> None:
        """Notes the metrics of these tasks. rows: [B]; metrics: names to [B]."""
        label = ALL if shot is None else str(shot)
        self.pages += [(label, metric, rows, values.cpu()) for metric, values in metrics.items()]

    def judgements(self, learner: str, user_ids: pl.Series, draws: Tensor | None) -> pl.DataFrame:
        """All pages as one table of the columns of ``tables.JUDGEMENTS``."""
        draws = torch.zeros(len(user_ids), dtype=torch.int64) if draws is None else draws
        rows = torch.cat([torch.zeros(0, dtype=torch.int64), *(rows for _, _, rows, _ in self.pages)])
        values = torch.cat([torch.zeros(0, dtype=torch.float64), *(values for *_, values in self.pages)])
        lengths = [len(rows) for _, _, rows, _ in self.pages]
        return pl.DataFrame(
            {
                "learner": pl.repeat(learner, len(rows), dtype=pl.String, eager=True),
                USER_ID: user_ids.gather(rows.numpy()),
                "draw": pl.Series(draws[rows].numpy(), dtype=pl.Int32),
                "shot": _repeated([shot for shot, *_ in self.pages], lengths),
                "metric": _repeated([metric for _, metric, *_ in self.pages], lengths),
                "value": pl.Series(values.numpy(), dtype=pl.Float64),
            }
        ).select(list(JUDGEMENTS))


def _repeated(labels: list[str], lengths: list[int]) -> pl.Series:
    """Each label as often as its page is long."""
    return pl.DataFrame({"label": labels, "n": lengths}, schema={"label": pl.String, "n": pl.Int64}).select(
        pl.col("label").repeat_by("n").explode(empty_as_null=False)
    )["label"]
