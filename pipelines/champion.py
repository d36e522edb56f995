"""Champion and challenger: the model in force and a new one, judged on the same users, episodes and candidates."""

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from pipelines.drawing import Wanted, clock_of, clock_without, validation_of, with_negatives
from pipelines.inputs import Inputs, declared
from pipelines.judged import drawn
from pipelines.learning import Model
from pipelines.settings import Story
from recsys_meta import store
from recsys_meta.adaptation.judging import judge_ranking, judge_rating
from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import num_derived, rows_of, split_users
from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, paired_differences
from recsys_meta.models.losses import RATING_LOSSES
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.tables import USER_ID, VALUE, same_kind
from recsys_meta.tensors import EpisodeBatch, Examples, Features, Histories
from recsys_meta.training.bundle import Bundle, BundleError, load_bundle

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"

_EVERYTHING = Wanted(whole_catalogue=True, negatives=0)  # episodes that suit every learner
_CUTOFF = 10
_DRAWS = 1000
_LOST = 0.01  # share of users without a finite figure of the challenger that is borne


class Reigning(NamedTuple):
    """The champion of a night, or why there is none."""

    model: Model | None
    reason: str  # empty where there is one


class Challenge(NamedTuple):
    """What a challenge came to."""

    promoted: bool
    reason: str
    metric: str = ""
    users: int = 0
    champion_mean: float | None = None  # over users
    challenger_mean: float | None = None
    gain: float | None = None  # of the challenger, as a share of the champion's figure; below 0: it is worse
    low: float | None = None  # paired interval of the gain
    high: float | None = None


def reigning(workspace: store.Workspace, run_id: str, run_date: date) -> Reigning:
    """The model that a night of this day has to beat: that of the scores in force.

    A run that is published already is judged against what it was judged against then. No model of a later day is a
    champion: it has seen what this night may not know. There is none where nothing was published yet, or where the
    bundle is gone, damaged or another one than was published.
    """
    published = workspace.manifests()
    own = next((manifest.record for manifest in published if manifest.record["run_id"] == run_id), None)
    if own is not None:
        before = next((gate for gate in own["gates"] if gate["gate"] == CHAMPION), {})
        version, fingerprint = before.get("champion"), None
    else:
        records = [manifest.record for manifest in published if manifest.record["run_date"] <= run_date]
        in_force = _in_force(workspace)
        record = next((one for one in records if one["run_id"] == in_force), records[0] if records else None)
        version = None if record is None else record["model_version"]
        fingerprint = None if record is None else record["model_fingerprint"]
    if version is None:
        return Reigning(None, "there is no champion yet")
    try:
        bundle = load_bundle(workspace.model(version) / "bundle")
    except (BundleError, ValueError) as error:
        log.warning("the champion cannot be used: %s", error)
        return Reigning(None, f"the champion {version} cannot be used: {error}")
    if fingerprint is not None and bundle.fingerprint != fingerprint:
        log.warning("the champion %s is not the bundle that was published", version)
        return Reigning(None, f"the champion {version} is not the bundle that was published")
    return Reigning(Model(bundle, version, reused=True), "")


def challenged(
    story: Story,
    champion: Reigning,
    challenger: Model,
    inputs: Inputs,
    training_users: pl.Series,
    *,
    moment: datetime | None,
    margin: float | None,
    level: float,
    max_users: int,
    file: Path | None = None,
) -> Challenge:
    """Whether the challenger takes the champion's place.

    It does not where the whole paired interval of its gain lies below ``-margin``, a share of the champion's figure. Without a
    champion, without users to judge on, or where the two cannot be judged on the same, it does, and the reason says so.

    Args:
        training_users: those of whom ``training.validation_share`` is held out; nobody of these trained either model, for who is
            held out follows from the id.
        margin: None: every challenger is promoted.
        level: of the interval.
        max_users: so many of the held-out users are judged at most, chosen by their ids.
        file: where the outcome is kept, so that the same question gets the same answer without work.
    """
    if champion.model is None:
        return Challenge(True, champion.reason)
    if champion.model.bundle.fingerprint == challenger.bundle.fingerprint:
        return Challenge(True, "it is the champion")
    if margin is None:
        return Challenge(True, "every challenger is promoted (gates.champion_margin: none)")
    reason = incomparable(story, champion.model.bundle, challenger.bundle, inputs)
    if reason:
        return Challenge(True, f"not comparable with the champion: {reason}")
    if not _finite(challenger.bundle.learner):
        return Challenge(False, "weights of the challenger are not finite")
    question = store.fingerprint(
        [
            *(model.bundle.fingerprint for model in (champion.model, challenger)),
            inputs.fingerprint,
            f"{moment} {margin} {level} {max_users} {story.seed} {story.training.model_dump_json()}",
        ]
    )
    known = _kept(file, question)
    if known is None:
        pair = {CHAMPION: champion.model.bundle, CHALLENGER: challenger.bundle}
        judgements = judged_alike(story, pair, inputs, training_users, moment=moment, max_users=max_users)
        known = decided(judgements, margin, story.seed, level)
        if file is not None:
            answer = known._asdict()
            kept = {"question": question, "answer": answer, "seal": _seal(question, answer)}
            write_bytes_atomically(file, json.dumps(kept).encode())
    return known


def incomparable(story: Story, champion: Bundle, challenger: Bundle, inputs: Inputs) -> str:
    """Why the champion cannot be judged beside the challenger; empty where it can."""
    for side, encoder, table, ids in (
        ("users", champion.user_encoder, story.users, inputs.user_ids),
        ("items", champion.item_encoder, story.items, inputs.item_ids),
    ):
        if encoder.features != declared(table):
            return f"it was trained on other features of {side}"
        if not same_kind(encoder.ids.dtype, ids.dtype):
            return f"ids of {side} were {encoder.ids.dtype} to it, tonight they are {ids.dtype}"
    if champion.item_encoder.extra_numbers != num_derived(story.item_windows):
        return "it was trained with other item_windows"
    if _rates(champion.learner, inputs) != _rates(challenger.learner, inputs):
        return "one of them predicts values, the other one ranks"
    return ""


def judged_alike(
    story: Story,
    bundles: Mapping[str, Bundle],
    inputs: Inputs,
    training_users: pl.Series,
    *,
    moment: datetime | None,
    max_users: int,
) -> pl.DataFrame:
    """The judgements of all bundles, by name, on the same episodes of held-out users, each with its own vocabularies.

    Statistics (counts of who was chosen with whom, say) are read off the other users anew, for all bundles alike: what a bundle
    brings along knows the held-out users' own choices.
    """
    train, held_out = split_users(training_users, story.training.validation_share, story.seed)
    rows = drawn(training_users, held_out, max_users)
    histories = inputs.histories.take(rows_of(training_users, inputs.user_ids).cast(pl.Int64).to_torch())
    items, users = _numbered(len(inputs.item_ids)), _numbered(len(training_users))
    clock = clock_without(story, items, inputs, training_users, held_out)
    batches = validation_of(story, _EVERYTHING, histories, users, training_users, clock, rows, moment)
    pages = [
        page
        for name, bundle in bundles.items()
        for page in _pages(story, name, bundle, batches, inputs, training_users, histories.take(train))
    ]
    return pl.concat(pages) if pages else pl.DataFrame(schema={"learner": pl.String, "metric": pl.String})


def decided(judgements: pl.DataFrame, margin: float, seed: int, level: float = 0.95) -> Challenge:
    """The outcome of these judgements, by the chief metric."""
    metric = next((m for m in (f"ndcg@{_CUTOFF}", "mae") if m in judgements["metric"]), None)
    if metric is None:
        return Challenge(True, "there are no users to judge on (see training.validation_share)")
    chief = judgements.filter(pl.col("metric") == metric)
    means = dict(
        chief.with_columns(pl.col("value").fill_nan(None))
        .group_by("learner", USER_ID)
        .agg(pl.col("value").mean())
        .group_by("learner")
        .agg(pl.col("value").mean(), pl.col("value").is_null().mean().alias("lost"))
        .select("learner", pl.struct("value", "lost"))
        .iter_rows()
    )
    if means[CHALLENGER]["lost"] > means[CHAMPION]["lost"] + _LOST:
        return Challenge(False, "scores of the challenger are not finite", metric)
    if means[CHAMPION]["value"] is None:
        return Challenge(True, "nobody could be judged", metric)
    pair = paired_differences(chief, CHALLENGER, CHAMPION, draws=_DRAWS, seed=seed, level=level).row(
        0, named=True
    )
    sign = -1 if metric in LOWER_IS_BETTER else 1
    base = abs(means[CHAMPION]["value"]) or 1.0
    ends = [sign * pair[end] / base for end in ("low", "high") if pair[end] is not None]
    low, high = sorted(ends) if ends else (None, None)
    found = {
        "metric": metric,
        "users": pair["users"],
        "champion_mean": means[CHAMPION]["value"],
        "challenger_mean": means[CHALLENGER]["value"],
        "gain": sign * pair["difference"] / base,
        "low": low,
        "high": high,
    }
    if low is None or high is None:
        return Challenge(
            True, f"a single user tells nothing of others: {found['gain']:+.2%} of {metric}", **found
        )
    interval = f"{found['gain']:+.2%} ({low:+.2%} to {high:+.2%}) of {metric} on {pair['users']} users"
    if high < -margin:
        return Challenge(
            False, f"the challenger is worse than the champion by more than {margin:.1%}: {interval}", **found
        )
    return Challenge(
        True, f"the challenger is not worse than the champion by more than {margin:.1%}: {interval}", **found
    )


def _pages(
    story: Story,
    name: str,
    bundle: Bundle,
    batches: list[EpisodeBatch],
    inputs: Inputs,
    training_users: pl.Series,
    others: Histories,
) -> list[pl.DataFrame]:
    """The judgements of one bundle, batch by batch."""
    items = bundle.item_encoder.encode(inputs.item_ids, inputs.items)
    users = bundle.user_encoder.encode(training_users, inputs.users)
    learner = deepcopy(bundle.learner)
    known = clock_of(story, items, inputs.sightings).at(None)
    if learner.meta_trained:
        learner.refit_statistics(others, known)
    else:
        learner.fit_statistics(others, known)
    judge = judge_rating if _rates(learner, inputs) else partial(judge_ranking, k=_CUTOFF)
    pages = []
    for number, batch in enumerate(batches):
        of_batch = items.take(batch.catalogue.features.ids)
        numbers = torch.cat([of_batch.numbers, batch.catalogue.features.numbers], 1)
        catalogue = batch.catalogue._replace(features=of_batch._replace(numbers=numbers))
        ids = training_users.gather(batch.users.ids.numpy())
        pages.append(
            judge(
                learner,
                _histories(batch.support),
                _histories(batch.query),
                users.take(batch.users.ids),
                catalogue,
                user_ids=ids,
                draws=torch.full((len(ids),), number),
                shots=(None,),
                name=name,
                seed=story.seed,
                prepare=with_negatives(learner, catalogue, ids, story.seed),
            )
        )
    return pages


def _numbered(rows: int) -> Features:
    """Of whom nothing is known but the place in a list."""
    nothing = torch.zeros(rows, 0)
    return Features(torch.arange(rows), nothing.long(), (), nothing, nothing)


def _histories(examples: Examples) -> Histories:
    """The same examples without padding."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), examples.mask.sum(1).cumsum(0)])
    times = torch.zeros(0, dtype=torch.int64)
    return Histories(examples.items[examples.mask], examples.targets[examples.mask], times, offsets)


def _rates(learner: Learner, inputs: Inputs) -> bool:
    """Whether values are predicted, rather than items ranked."""
    loss = getattr(learner, "loss", None)
    return loss in RATING_LOSSES if loss is not None else inputs.events[VALUE].n_unique() > 1


def _finite(learner: Learner) -> bool:
    return all(bool(weight.isfinite().all()) for weight in learner.parameters())


def _in_force(workspace: store.Workspace) -> str | None:
    try:
        latest = workspace.latest_run()
    except store.Damaged:
        return None
    return None if latest is None else latest.run_id


def _kept(file: Path | None, question: str) -> Challenge | None:
    """The outcome that was kept of this very question, where it is what was written."""
    try:
        found: Mapping[str, Any] = {} if file is None else json.loads(file.read_bytes())
        intact = found["question"] == question and found["seal"] == _seal(question, found["answer"])
        return Challenge(**found["answer"]) if intact else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _seal(question: str, answer: Mapping[str, Any]) -> str:
    return store.fingerprint([question, json.dumps(answer, sort_keys=True)])
