"""The doctor: what is the matter with a workspace, and with the data set of a night; nothing is changed unless asked for."""

import shutil
from collections.abc import Iterator

import polars as pl
import torch

from pipelines.drawing import Wanted, catalogue_at, clock_of, validation_of, with_negatives
from pipelines.inputs import Inputs, declared, moment_of, read_inputs, timed
from pipelines.nightly import decide_users
from pipelines.outcomes import NothingToDo
from pipelines.settings import NightSettings
from recsys_meta import ingest, store
from recsys_meta.episodes import collate, rows_of, split_users
from recsys_meta.evaluation.leakage import FIGURES, SUSPECT, giveaways
from recsys_meta.evaluation.sanity import SanityError, check_adapts, check_disjoint, check_later
from recsys_meta.store import Finding
from recsys_meta.tables import ITEM_ID, USER_ID
from recsys_meta.tensors import Examples, Features, Histories
from recsys_meta.training.bundle import Bundle, BundleError, check_bundle, load_bundle

_USERS, _ITEMS, _NEWEST = 64, 1_000, 100  # that the scores of a model are looked at with


def doctor(workspace: store.Workspace, night: NightSettings | None, *, fix: bool = False) -> list[Finding]:
    """Looks at the workspace, and with the settings of a night at its data set and at the model in force on it.

    ``fix`` first removes what killed writers left behind and puts links back that a copy has followed; nothing else is ever
    changed.
    """
    findings = cleaned(workspace) if fix else []
    findings += store.examine(workspace)
    findings += bundles(workspace)
    if night is not None:
        findings += data_set(night, workspace)
    return findings


def cleaned(workspace: store.Workspace) -> list[Finding]:
    """Removes the temporary files of killed writers and puts followed links back, under the lock."""
    left = store.removable(workspace)
    with workspace.lock("doctor", mending=True):  # which itself removes those at the top
        for path in store.removable(workspace):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        links = store.relink(workspace)
    findings = [Finding("ok", "fix", f"removed {len(left)} temporary files")]
    if links:
        findings.append(Finding("ok", "fix", f"put back {len(links)} links: {', '.join(map(str, links))}"))
    return findings


def bundles(workspace: store.Workspace) -> Iterator[Finding]:
    """Whether every model is what was written."""
    there = sorted(workspace.root.glob("models/*/bundle"))
    damaged = 0
    for folder in there:
        try:
            check_bundle(folder)
        except (BundleError, OSError) as error:
            damaged += 1
            advice = f"remove {folder.parent}: a night with the same settings and data trains it anew"
            yield Finding("error", "bundles", str(error), advice)
    yield Finding("ok", "bundles", f"{len(there) - damaged} of {len(there)} are what was written")


def data_set(night: NightSettings, workspace: store.Workspace) -> Iterator[Finding]:
    """What can be told of the data of a night before it is run."""
    try:
        inputs = read_inputs(night, moment_of(night))
    except (ingest.InputError, NothingToDo) as error:
        yield Finding("error", "data", str(error), "mend the file or the setting that is named")
        return
    yield from rows(night, inputs)
    yield from features(night, inputs)
    yield from episodes(night, inputs)
    yield from adaptation(night, inputs, workspace)


def rows(night: NightSettings, inputs: Inputs) -> Iterator[Finding]:
    """What was read, and what was set aside, collapsed or guessed."""
    counts = inputs.counts
    yield Finding("ok", "data", f"{inputs.interactions.height:,} interactions, {len(inputs.user_ids):,} users,"
                  f" {len(inputs.item_ids):,} items")  # fmt: skip
    if inputs.quarantine.height:
        first = inputs.quarantine.row(0, named=True)
        said = (
            f"{inputs.quarantine.height:,} faults go to quarantine, the first in {first['source']}, row {first['row']}:"
            f" {first['column']} {first['reason']}"
        )
        yield Finding(
            "warning", "data", said, "look at them: the table quarantine has all of them after a night"
        )
    for count, said, advice in (
        ("exact_duplicates", "rows stand there twice and are collapsed", "say duplicates: keep where each is an event"),
        ("merged_duplicates", f"rows share user and item with others; the rule is {night.interactions.settled_by}",
         "see interactions.duplicates"),
        ("naive_timestamps_read_as_utc", "times have no zone and are read as UTC", "write the zone, if it is another"),
    ):  # fmt: skip
        if counts.get(f"interactions_{count}"):
            yield Finding("warning", "data", f"{counts[f'interactions_{count}']:,} {said}", advice)
    if not timed(inputs.interactions):
        said = "no timestamp is named: nothing can tell support from what comes after it"
        yield Finding("warning", "leakage", said, "name interactions.timestamp where there is one")


def features(night: NightSettings, inputs: Inputs) -> Iterator[Finding]:
    """Features that know what is to be predicted."""
    suspects = 0
    for name, settings, table, id_name in (
        ("users", night.users, inputs.users, USER_ID),
        ("items", night.items, inputs.items, ITEM_ID),
    ):
        if settings is None or table is None:
            continue
        found = giveaways(table, id_name, declared(settings), inputs.interactions)
        for row in found.filter(pl.col("explained") >= SUSPECT).iter_rows(named=True):
            suspects += 1
            said = (
                f"{name}: {row['feature']} explains {row['explained']:.1%} of {FIGURES[row['figure']]} over"
                f" {row['entities']:,} {name}"
            )
            yield Finding(
                "error",
                "leakage",
                said,
                "it looks computed from the very events to be predicted: leave it out",
            )
    if not suspects:
        yield Finding("ok", "leakage", "no feature gives away what is to be predicted")


def episodes(night: NightSettings, inputs: Inputs) -> Iterator[Finding]:
    """Whether the episodes that training draws ask for what comes later, and for nothing that was given."""
    try:
        who = decide_users(night, inputs)
    except NothingToDo as error:
        yield Finding("error", "leakage", str(error), "see cold.below and score")
        return
    if who.training.is_empty():
        yield Finding("warning", "leakage", "nobody is warm, so nobody can be trained on", "lower cold.below")
        return
    histories = inputs.histories.take(rows_of(who.training, inputs.user_ids).cast(pl.Int64).to_torch())
    moment = moment_of(night) if timed(inputs.interactions) else None
    clock = clock_of(night, numbered(len(inputs.item_ids)), inputs.sightings)
    everything = Wanted(whole_catalogue=True, negatives=0)
    _, held_out = split_users(who.training, night.training.validation_share, night.seed)
    drawn = validation_of(
        night, everything, histories, numbered(len(who.training)), who.training, clock, held_out, moment
    )
    tasks = 0
    try:
        for batch in drawn:
            support, query = (
                dated(some, batch.users.ids, histories) for some in (batch.support, batch.query)
            )
            check_disjoint(support, query)
            if histories.timed:
                check_later(support, query)
            tasks += len(batch.users.ids)
    except SanityError as error:
        advice = (
            "set training.split to time or moment; as it is, training looks into the future that it predicts"
        )
        yield Finding("warning", "leakage", f"training.split {night.split}: {error}", advice)
        return
    order = ", query after support" if histories.timed else ""
    yield Finding(
        "ok",
        "leakage",
        f"{tasks:,} episodes drawn with training.split {night.split}: no item on both sides{order}",
    )


def adaptation(night: NightSettings, inputs: Inputs, workspace: store.Workspace) -> Iterator[Finding]:
    """Whether the model in force scores these users by what they did."""
    try:
        run = workspace.latest_run()
        if run is None:
            return
        bundle = load_bundle(workspace.model(run.manifest().record["model_version"]) / "bundle")
        scores = scored(night, bundle, inputs)
    except (store.Damaged, BundleError, ValueError) as error:
        yield Finding(
            "warning", "fake scores", f"the model in force cannot be looked at on these data: {error}"
        )
        return
    if scores is None:
        yield Finding("warning", "fake scores", "no user has a history to adapt on")
        return
    try:
        check_adapts(*scores)
    except SanityError as error:
        advice = "right for a learner that adapts to nobody, such as Popularity; of any other, do not publish its scores"
        yield Finding("warning", "fake scores", f"model of run {run.run_id}: {error}", advice)
        return
    yield Finding(
        "ok",
        "fake scores",
        f"model of run {run.run_id}: {len(scores[0])} users get scores of their own, from what they did",
    )


@torch.no_grad()
def scored(night: NightSettings, bundle: Bundle, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scores of some users for some items, [T, N] each: adapted, and with nothing known of anybody. None without histories."""
    chance = torch.Generator().manual_seed(night.seed)
    having = (inputs.histories.lengths > 0).nonzero().squeeze(1)
    if not len(having):
        return None
    chosen = having[torch.randperm(len(having), generator=chance)[:_USERS]]
    items = torch.randperm(len(inputs.item_ids), generator=chance)[:_ITEMS]
    features = bundle.item_encoder.encode(inputs.item_ids, inputs.items)
    moment = moment_of(night) if timed(inputs.interactions) else None
    catalogue = catalogue_at(clock_of(night, features, inputs.sightings), moment)
    users = bundle.user_encoder.encode(inputs.user_ids, inputs.users).take(chosen)
    support = collate(inputs.histories, chosen, newest=_NEWEST)
    prepare = with_negatives(bundle.learner, catalogue, inputs.user_ids, night.seed)
    codes = bundle.learner.encode(catalogue)
    adapted = bundle.learner.predict(
        bundle.learner.adapt(prepare(support, chosen), users, codes), codes.take(items)
    )
    prior = bundle.learner.prior(support.emptied(), users, codes)
    return adapted, bundle.learner.predict(prior, codes.take(items))


def numbered(rows: int) -> Features:
    """Of whom nothing is known but the place in a list."""
    nothing = torch.zeros(rows, 0)
    return Features(torch.arange(rows), nothing.long(), (), nothing, nothing)


def dated(examples: Examples, owners: torch.Tensor, histories: Histories) -> Histories:
    """Examples over the whole catalogue as histories, each event at the first time that its user met its item.

    owners: [T] rows of ``histories``.
    """
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), examples.mask.sum(1).cumsum(0)])
    items = examples.items[examples.mask]
    times = histories.times[:0]
    if histories.timed:
        width = 1 + int(histories.items.max())
        keys, order = torch.sort(histories.owners() * width + histories.items, stable=True)  # oldest first
        wanted = owners.repeat_interleave(examples.mask.sum(1)) * width + items
        times = histories.times[order[torch.searchsorted(keys, wanted)]]
    return Histories(items, examples.targets[examples.mask], times, offsets)
