"""The night: yesterday's interactions in, one published set of scores out."""

import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import polars as pl
import torch

from pipelines.champion import CHALLENGER, CHAMPION, Challenge, Reigning, challenged, reigning
from pipelines.drawing import catalogue_at, clock_of
from pipelines.gates import (
    REFUSED,
    Gate,
    GatesRefused,
    champion_gate,
    drift_gates,
    fallen_gate,
    features_gate,
    quarantine_gate,
    rows_gate,
    shown_before,
    usual_nights,
)
from pipelines.inputs import Inputs, moment_of, read_inputs, run_date_of, timed
from pipelines.learning import Model, at_pace, fit_or_reuse, present
from pipelines.outcomes import NothingToDo
from pipelines.printable import printable
from pipelines.progress import peak_memory, progress
from pipelines.settings import NightSettings, SlateSettings
from recsys_meta import store
from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.adaptation.frames import Frames, to_frames
from recsys_meta.adaptation.recommend import REASONS, Recommended, recommend
from recsys_meta.adaptation.slates import drawn
from recsys_meta.episodes import Negatives, rows_of, user_keys
from recsys_meta.hashing import hashed
from recsys_meta.prefetch import prefetched
from recsys_meta.store.shown import shown_in_parts
from recsys_meta.tables import ITEM_ID, SOURCES, USER_ID
from recsys_meta.tensors import Examples, Ragged
from recsys_meta.training.failure import FitError

log = logging.getLogger(__name__)

Summary = dict[str, Any]

_SERVED = timedelta(days=1)  # how long a night's lists are shown
_NO_CANDIDATE = REASONS[-1]


def nightly(night: NightSettings, fingerprint: str) -> Summary:
    """The whole story. ``fingerprint``: of the settings, without the workspace and the date."""
    run = Run(night, fingerprint)
    with run.workspace.lock(run.run_id):
        inputs = run.read()
        who = decide_users(night, inputs)
        model = run.serving(inputs, who)
        run.adapt(inputs, who, model)
        published = run.publish(inputs, who, model)
    print(excerpt(run, inputs, who))
    return run.summary("published", inputs, who, model, published)


def validate(night: NightSettings, fingerprint: str) -> Summary:
    """Reads and checks, and says who would be trained on and who scored."""
    run = Run(night, fingerprint)
    inputs = run.read()
    return run.summary("valid", inputs, decide_users(night, inputs))


def train(night: NightSettings, fingerprint: str) -> Summary:
    """Up to the bundle."""
    run = Run(night, fingerprint)
    with run.workspace.lock(run.run_id):
        inputs = run.read()
        who = decide_users(night, inputs)
        model = run.fit(inputs, who)
    return run.summary("trained", inputs, who, model)


def adapt(night: NightSettings, fingerprint: str) -> Summary:
    """Up to the finished parts; nothing is published."""
    run = Run(night, fingerprint)
    with run.workspace.lock(run.run_id):
        inputs = run.read()
        who = decide_users(night, inputs)
        model = run.serving(inputs, who)
        run.adapt(inputs, who, model)
    return run.summary("adapted", inputs, who, model)


def publish(night: NightSettings, fingerprint: str) -> Summary:
    """Publishes what ``adapt`` has finished. Raises NothingToDo where it has not."""
    run = Run(night, fingerprint)
    with run.workspace.lock(run.run_id):
        inputs = run.read()
        who = decide_users(night, inputs)
        model = run.serving(inputs, who, train_anew=False)
        left = run.unfinished(inputs, who, model)
        if left:
            raise NothingToDo(
                f"run {run.run_id}: {len(left)} of {len(run.shards(who))} parts are not adapted yet;"
                " adapt with the same settings first"
            )
        published = run.publish(inputs, who, model)
    return run.summary("published", inputs, who, model, published)


class Who(NamedTuple):
    """Who takes which part in a night."""

    user_ids: pl.Series  # everybody, in order: rows of histories
    training: pl.Series  # ids of the warm users: meta-trained on
    requested: pl.Series  # ids of those who get scores, in order


def decide_users(night: NightSettings, inputs: Inputs) -> Who:
    """Cold users have fewer than ``cold.below`` interactions; whoever is not asked for and not cold is trained on.

    With ``score: all``, warm users are both trained on and scored.
    Raises NothingToDo where nobody is to be scored.
    """
    user_ids = inputs.user_ids
    lengths = pl.Series(inputs.consumed.lengths.numpy())
    cold = user_ids.filter(lengths < night.cold.below)
    warm = user_ids.filter(lengths >= night.cold.below)
    if inputs.requested is not None:
        requested = inputs.requested.sort()
        warm = warm.filter(~warm.is_in(requested.implode()))
    else:
        requested = user_ids if night.score == "all" else cold
    if requested.is_empty():
        raise NothingToDo(f"none of {len(user_ids)} users is to be scored (score: {night.score})")
    return Who(user_ids, warm, requested)


class Run:
    """One execution: where its things lie, and how long its steps took."""

    def __init__(self, night: NightSettings, fingerprint: str) -> None:
        self.night = night
        self.config_fingerprint = fingerprint
        self.run_date = run_date_of(night)
        self.started_at = datetime.now(UTC)
        self.run_id = (
            f"{self.run_date}-{night.learner.class_path.rpartition('.')[2].lower()}-{fingerprint[:8]}"
        )
        self.workspace = store.Workspace(night.workspace)
        self.seconds: dict[str, float] = {}
        self.moment: datetime | None = None  # None where time is unknown
        self.gates: list[Gate] = []
        self.aliases: dict[str, str] = {}  # names and the model versions that they stand for tonight

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Says that a step begins, and how long it took."""
        log.info("%s ...", name)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)
        log.info("%s took %.1f s", name, self.seconds[name])

    def read(self) -> Inputs:
        """The tables of the night."""
        with self.step("read"):
            moment = moment_of(self.night)
            inputs = read_inputs(self.night, moment)
            self.moment = moment if timed(inputs.interactions) else None
            log.info("%s", ", ".join(f"{name} {count:,}" for name, count in inputs.counts.items() if count))
            paced = at_pace(self.night, self.night.learner, inputs, self.moment, _SERVED)
            if paced.why:  # a night goes by its settings: the champion has to be of the same
                log.warning("%s; try %s", paced.why, paced)
            return inputs

    def fit(self, inputs: Inputs, who: Who, *, train_anew: bool = True) -> Model:
        """The learner of the night. Raises GatesRefused where nothing good could come of these tables of features."""
        self.pass_features(inputs)
        with self.step("train"):
            return fit_or_reuse(
                self.night,
                self.night.learner,
                inputs,
                who.training,
                workspace=self.workspace,
                moment=self.moment,
                run_date=self.run_date,
                train_anew=train_anew,
                start=self.champion.model if self.night.training.warm_start else None,
            )

    @cached_property
    def champion(self) -> Reigning:
        """Whom the model of tonight has to beat, and may start from."""
        return reigning(self.workspace, self.run_id, self.run_date)

    def serving(self, inputs: Inputs, who: Who, *, train_anew: bool = True) -> Model:
        """The model that scores the night. Raises FitError where none could be trained and there is no champion."""
        try:
            challenger = self.fit(inputs, who, train_anew=train_anew)
        except FitError as error:
            if self.champion.model is None:
                raise
            champion = self.champion.model
            log.warning("the champion %s scores the night: %s", champion.version, error)
            failed = Challenge(False, f"the training gave no model: {error}")
            self.gates.append(champion_gate(failed, champion.version, None, self.night.gates.champion_margin))
            self.aliases = {CHAMPION: champion.version}
            return champion
        return self.promote(challenger, inputs, who)

    def promote(self, challenger: Model, inputs: Inputs, who: Who) -> Model:
        """The model that scores the night: that of tonight, or the champion where that one is better beyond the gate."""
        with self.step("promote"):
            gates, champion = self.night.gates, self.champion
            found = challenged(
                self.night,
                champion,
                challenger,
                inputs,
                who.training,
                moment=self.moment,
                margin=gates.champion_margin,
                level=gates.champion_level,
                max_users=gates.champion_users,
                file=self.workspace.model(challenger.version) / "challenge.json",
            )
            log.info(
                "%s %s: %s",
                challenger.version,
                "promoted" if found.promoted else "not promoted",
                found.reason,
            )
            reigned = None if champion.model is None else champion.model.version
            self.gates.append(champion_gate(found, reigned, challenger.version, gates.champion_margin))
            model = challenger if found.promoted or champion.model is None else champion.model
            self.aliases = {CHAMPION: model.version, CHALLENGER: challenger.version}
            return model

    def fingerprint(self, inputs: Inputs, model: Model) -> str:
        """Of everything the rows depend on."""
        return store.fingerprint([self.config_fingerprint, inputs.fingerprint, model.bundle.fingerprint])

    def shards(self, who: Who) -> list[pl.Series]:
        """The requested users in parts that a killed run does not repeat."""
        size = self.night.adaptation.shard_size
        return [who.requested.slice(start, size) for start in range(0, len(who.requested), size)]

    def unfinished(self, inputs: Inputs, who: Who, model: Model) -> list[int]:
        """The numbers of the parts that are still to be made."""
        run = self.workspace.run(self.run_id)
        run.begin(self.fingerprint(inputs, model))
        return [number for number in range(len(self.shards(who))) if not run.finished(number)]

    def adapt(self, inputs: Inputs, who: Who, model: Model) -> None:
        """Adapts every requested user and writes the rows in parts."""
        with self.step("adapt"):
            run = self.workspace.run(self.run_id)
            left = self.unfinished(inputs, who, model)
            if not left:
                return
            batches = self.recommended(left, inputs, who, model)
            total = sum(len(self.shards(who)[number]) for number in left)
            made: list[Frames] = []
            # Scored in a thread of its own, written in this one: the disk is waited for while the next users are served.
            with closing(prefetched(lambda: batches)) as ahead:
                for number, batch in progress(ahead, what="users adapted", total=total, size=served):
                    if batch is None:
                        write_shard(run, number, made)
                        made = []
                    else:
                        ids = {"user_ids": who.user_ids, "item_ids": inputs.item_ids}
                        made.append(
                            to_frames(
                                batch,
                                **ids,
                                run_id=self.run_id,
                                model_version=model.version,
                                generated_at=self.started_at,
                            )
                        )

    def recommended(
        self, shards: Sequence[int], inputs: Inputs, who: Who, model: Model
    ) -> Iterator[tuple[int, Recommended | None]]:
        """The lists of these parts, batch by batch, each with the number of its part; None says that it is whole."""
        settings, bundle = self.night.adaptation, model.bundle
        items, histories = inputs.item_ids, inputs.histories
        users = bundle.user_encoder.encode(who.user_ids, inputs.users)
        eligible = None
        if inputs.candidates is not None:
            eligible = items.is_in(inputs.candidates.implode()).to_torch()
        features = bundle.item_encoder.encode(items, inputs.items)
        catalogue = catalogue_at(clock_of(self.night, features, inputs.sightings, eligible), self.moment)
        tempering = bundle.learner.tempering
        negatives = Negatives(catalogue, tempering=tempering, seed=self.night.seed)
        keys = user_keys(who.user_ids)

        def with_negatives(support: Examples, rows: torch.Tensor) -> Examples:
            if not bundle.learner.negatives:
                return support
            known = Ragged(histories.items, histories.offsets).take(rows)
            return negatives.append(support, keys[rows], known, bundle.learner.negatives, stream=0)

        slate, top_k = self.night.slate, self.night.top_k

        def shown(best: Recommended) -> Recommended:
            if slate is None:
                return best
            policy = PlackettLuce(slate.temperature, slate.exploration)
            return drawn(
                best, policy, size=top_k, user_keys=keys, item_keys=item_keys, seed=self.slate_seed(slate)
            )

        item_keys = user_keys(items)  # a key of an id, whosever it is
        rows = rows_of(who.requested, who.user_ids).cast(pl.Int64).to_torch()
        accelerator = present(self.night.training.accelerator)
        device = "cuda" if accelerator == "gpu" else accelerator
        workers = (settings.workers or len(os.sched_getaffinity(0))) if device == "cpu" else 1
        for number in shards:
            for batch in recommend(
                bundle.learner,
                histories,
                users,
                catalogue,
                rows=rows[number * settings.shard_size : (number + 1) * settings.shard_size],
                consumed=inputs.consumed if self.night.exclude_consumed else None,
                top_k=top_k if slate is None else slate.pool,
                batch_size=settings.batch_size,
                tile_size=settings.tile_size,
                newest=settings.newest,
                prepare=with_negatives,
                vectors=self.night.publish.vectors,
                seed=self.night.seed,
                device=device,
                workers=workers,
                prefilter=settings.prefilter,
            ):
                yield number, shown(batch)
            yield number, None

    def slate_seed(self, slate: SlateSettings) -> int:
        """Each day draws anew, and a rerun of a night draws the same again."""
        seed = self.night.seed if slate.seed is None else slate.seed
        return int(hashed(seed, self.run_date.toordinal()))

    def policy(self) -> Mapping[str, Any]:
        """What chooses the lists from the scores, as it stands in ``runs``."""
        slate = self.night.slate
        if slate is None:
            return store.DETERMINISTIC
        return {
            "name": slate.policy,
            "temperature": slate.temperature,
            "exploration": slate.exploration,
            "pool": slate.pool,
            "seed": self.slate_seed(slate),
        }

    def publish(self, inputs: Inputs, who: Who, model: Model) -> store.Published:
        """Builds, validates and puts in force."""
        with self.step("publish"):
            run = self.workspace.run(self.run_id)
            self.pass_gates(run, inputs)
            finished_at = datetime.now(UTC)
            record = store.RunRecord(
                run_id=self.run_id,
                run_date=self.run_date,
                status="published",
                started_at=self.started_at,
                finished_at=finished_at,
                model_version=model.version,
                model_fingerprint=model.bundle.fingerprint,
                config_fingerprint=self.config_fingerprint,
                data_fingerprint=inputs.fingerprint,
                seed=self.night.seed,
                versions=versions(),
                counts=inputs.counts | counts_of(who),
                metrics=model.metrics,
                seconds=self.seconds,
                gates=[gate.row() for gate in self.gates],
                policy=self.policy(),
                expires_at=finished_at + timedelta(days=self.night.publish.expires_after_days),
            )
            return store.publish(
                self.workspace,
                run,
                run_record=record,
                quarantine=inputs.quarantine,
                requested=who.requested,
                top_k=self.night.top_k,
                keep=self.night.publish.keep,
                parquet=self.night.publish.parquet,
                reasons_without_scores=(_NO_CANDIDATE,) if _NO_CANDIDATE else (),
                cold_below=self.night.cold.below,
                aliases=self.aliases,
            )

    @cached_property
    def others(self) -> list[store.Manifest]:
        """The publications that this night is compared with, newest first: what led to the one in force."""
        return [one for one in self.workspace.standing() if one.record["run_id"] != self.run_id]

    def pass_features(self, inputs: Inputs) -> None:
        """Measures the tables of features. Raises GatesRefused before a model is trained without them, and used again later."""
        given = {"users": self.night.users, "items": self.night.items}
        counts = {
            f"{name} of {table.path}": f"{name}_rows_kept"
            for name, table in given.items()
            if table is not None
        }
        gates = self.night.gates
        usual = usual_nights("features", gates.max_feature_drop, self.others, gates.nights)
        earlier = [one.record["counts"] for one in usual]
        gate = features_gate(
            {table: inputs.counts[count] for table, count in counts.items()},
            {table: [found[count] for found in earlier if count in found] for table, count in counts.items()},
            gates.max_feature_drop,
            left_out=len(self.others[: gates.nights]) - len(usual),
        )
        self.gates.append(gate)
        if gate.verdict == REFUSED:
            raise GatesRefused(self.run_id, self.gates)

    def pass_gates(self, run: store.RunFolder, inputs: Inputs) -> None:
        """Measures everything that has a limit. Raises GatesRefused where one of the gates refuses."""
        gates, max_row_drop = self.night.gates, self.night.publish.max_row_drop
        usual = usual_nights("rows", max_row_drop, self.others, gates.nights)
        now = shown_in_parts(run)
        before = shown_before(self.workspace, self.others, self.config_fingerprint, now)
        self.gates += [
            quarantine_gate(inputs.counts, self.night.max_quarantined_share),
            rows_gate(
                len(now.scores),
                [manifest.rows["scores"] for manifest in usual],
                max_row_drop,
                left_out=len(self.others[: gates.nights]) - len(usual),
            ),
            fallen_gate(run.scan("user_status"), gates.max_fallen_share),
            *drift_gates(now, before, gates.max_score_drift, gates.max_item_drift),
        ]
        if any(gate.verdict == REFUSED for gate in self.gates):
            raise GatesRefused(self.run_id, self.gates)

    def summary(
        self,
        status: str,
        inputs: Inputs,
        who: Who,
        model: Model | None = None,
        published: store.Published | None = None,
    ) -> Summary:
        """What is printed as one JSON object."""
        summary: Summary = {"run_id": self.run_id, "status": status, **counts_of(who)}
        if model is not None:
            summary |= {"model_version": model.version, "model_reused": model.reused}
            if model.started_from is not None:
                summary["model_started_from"] = model.started_from
        if status in ("adapted", "published"):
            summary |= self.sources()
        if published is not None:
            summary |= {
                "rows_published": published.rows,
                "scores_path": str(self.workspace.pointer),
                "sha256": published.sha256,
            }
        if self.gates:
            summary |= {"gates": [gate.row() for gate in self.gates], "aliases": self.aliases}
        summary["quarantined"] = inputs.quarantine.height
        summary["metrics"] = {} if model is None else model.metrics
        summary["seconds"] = self.seconds | {"total": round(sum(self.seconds.values()), 3)}
        summary["peak_memory_mib"] = peak_memory() // 2**20
        return summary

    def sources(self) -> Mapping[str, int]:
        """How many users were served from where."""
        status = self.workspace.run(self.run_id).scan("user_status")
        found = dict(status.group_by("source").len().collect().iter_rows())
        return {f"users_{source}": found.get(source, 0) for source in SOURCES}


def served(step: tuple[int, Recommended | None]) -> int:
    """How many users a step of ``Run.recommended`` serves."""
    return 0 if step[1] is None else len(step[1].rows)


def write_shard(run: store.RunFolder, number: int, made: Sequence[Frames]) -> None:
    """Writes what was made for the users of a part, and only then that it is whole."""
    for table, parts in zip(Frames._fields, zip(*made, strict=True), strict=True):
        if parts[0] is not None:
            run.write_part(table, number, pl.concat(parts))
    run.finish_shard(number, {"users": sum(frames.user_status.height for frames in made)})


def excerpt(run: Run, inputs: Inputs, who: Who, users: int = 3, items: int = 3) -> str:
    """What a reader of the published file sees: the top of a few lists, those with most support first."""
    status = (
        run.workspace.run(run.run_id).scan("user_status").sort("n_support", USER_ID, descending=[True, False])
    )
    some = status.select(USER_ID).head(users).collect()[USER_ID]
    rows = store.read_scores(run.workspace.pointer, some).filter(pl.col("rank") <= items)
    columns = [USER_ID, "rank", ITEM_ID, "score", "source", "n_support"]
    with pl.Config(
        tbl_rows=users * items,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN",
    ):
        table = str(rows.sort("n_support", USER_ID, "rank", descending=[True, False, False]).select(columns))
    return printable(
        f"{table}\nThe top of {users} of {len(who.requested)} lists in {run.workspace.pointer}\n"
    )


def counts_of(who: Who) -> dict[str, int]:
    """Users by the part they take."""
    return {
        "users_known": len(who.user_ids),
        "users_trained_on": len(who.training),
        "users_requested": len(who.requested),
    }


def versions() -> dict[str, str]:
    """What ran."""
    packages = ("recsys-meta", "torch", "lightning", "polars", "duckdb")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
