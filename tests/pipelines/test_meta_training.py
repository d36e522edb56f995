"""One training, or where users are few several, each judged by users that it was not trained on."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import torch

from pipelines import meta_training, nightly
from pipelines.drawing import with_negatives
from pipelines.loading import load
from pipelines.meta_training import parts_of, share_held_out
from pipelines.settings import NightSettings, TrainingSettings
from recsys_meta.algorithms.laddered_maml import LadderedMAML
from recsys_meta.algorithms.maml import MAML
from recsys_meta.episodes import MomentSplits, RandomSplits, split_users, user_keys
from recsys_meta.ingest import InputError
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, FeatureSizes, Sizes
from recsys_meta.training import fitting, settling

USERS = 90
NIGHT = """
workspace: workspace
run_date: 2026-03-05
interactions: {path: clicks.parquet, timestamp: at}
cold: {below: 5}
top_k: 3
learner: {class_path: recsys_meta.algorithms.laddered.Laddered}
training: {max_epochs: 2, batch_size: 16, validation_share: 0.2}
"""


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """A world of 90 users, 60 of whom are warm."""
    rows = [
        (
            user,
            f"i{(user * 5 + place * (1 + user % 4)) % 17:02}",
            datetime(2026, 3, 1 + place % 5, 7, tzinfo=UTC),
        )
        for user in range(USERS)
        for place in range(9 if user % 3 else 3)
    ]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row")
    table.unique(["user_id", "item_id"], maintain_order=True).write_parquet(tmp_path / "clicks.parquet")
    (tmp_path / "night.yaml").write_text(NIGHT)
    return tmp_path


def trained(folder: Path, *overrides: tuple[str, str]) -> tuple[nightly.Run, nightly.Model, pl.Series]:
    loaded = load(NightSettings, [folder / "night.yaml"], overrides)
    run = nightly.Run(loaded.settings, loaded.fingerprint)
    with run.workspace.lock():
        inputs = run.read()
        who = nightly.decide_users(run.night, inputs)
        return run, run.fit(inputs, who), who.training


def test_where_users_are_few_everybody_judges_a_training_that_it_is_no_part_of(
    clicks, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    judged, trained_on, settle, fit = [], [], settling.settle, fitting.fit

    def caught_settle(those, seed) -> None:
        judged.extend(those)
        settle(those, seed)

    def caught_fit(learner, sampler, validation, **settings):
        trained_on.append({int(key) for batch in sampler.epoch(0) for key in batch.keys})
        return fit(learner, sampler, validation, **settings)

    monkeypatch.setattr(settling, "settle", caught_settle)
    monkeypatch.setattr(fitting, "fit", caught_fit)
    with caplog.at_level(logging.INFO):
        _, model, warm = trained(clicks, ("training.split", "random"))
    assert "training 10 of 10, without the users that judge it" in caplog.text
    everybody = {int(key) for key in user_keys(warm)}
    judges = [{int(key) for batch in one.once for key in batch.keys} for one in judged]
    assert [len(judges), sum(map(len, judges)), len(everybody)] == [10, 60, 60]
    assert set().union(*judges) == everybody
    # Those whom champion and challenger will be compared on train nobody.
    held_out = {int(key) for key in user_keys(warm)[split_users(warm, 0.2, 7)[1]]}
    assert held_out
    for some, others in zip(trained_on, judges, strict=True):
        assert some == everybody - others - held_out
    assert model.metrics["epochs"] == 20
    assert model.metrics["validation_loss"] is not None


def test_who_has_too_few_events_is_counted_but_neither_trained_nor_judged_on(
    clicks, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, trained_on, judged_on = [], [], []
    count, fit = LadderedMAML.fit_statistics, fitting.fit

    def caught_count(learner, histories, catalogue) -> None:
        counted.append(histories.lengths.tolist())
        count(learner, histories, catalogue)

    def caught_fit(learner, sampler, validation, **settings):
        trained_on.append({int(key) for batch in sampler.epoch(0) for key in batch.keys})
        judged_on.append({int(key) for batch in validation for key in batch.keys})
        return fit(learner, sampler, validation, **settings)

    monkeypatch.setattr(LadderedMAML, "fit_statistics", caught_count)
    monkeypatch.setattr(fitting, "fit", caught_fit)
    settings = (("training.split", "random"), ("training.folds", "1"), ("cold.below", "2"), ("score", "all"))
    for least, some in ((1, {3, 9}), (4, {9})):
        _, _, warm = trained(clicks, *settings, ("training.min_history", str(least)))
        length = dict(zip(user_keys(warm).tolist(), (9 if user % 3 else 3 for user in warm), strict=True))
        assert {length[key] for key in trained_on[-1]} == {length[key] for key in judged_on[-1]} == some
        assert set(counted[-1]) == {3, 9}
    assert counted[0] == counted[1]
    assert judged_on[1] < judged_on[0]


@pytest.mark.parametrize(("passes", "batches"), [("null", 3), ("2", 7)])
def test_of_very_many_users_every_epoch_draws_some_anew_unless_passes_are_said(
    clicks, monkeypatch: pytest.MonkeyPatch, passes: str, batches: int
) -> None:
    monkeypatch.setattr(meta_training, "_MOST_STEPS", 3)
    monkeypatch.setattr(meta_training, "_MOST_EPOCHS", 2)
    epochs, steps, fit = [], [], fitting.fit

    def caught_fit(learner, sampler, validation, **settings):
        epochs.extend([[key for batch in sampler.epoch(n) for key in batch.keys.tolist()] for n in range(4)])
        steps.append(len(sampler))
        return fit(learner, sampler, validation, **settings)

    monkeypatch.setattr(fitting, "fit", caught_fit)
    settings = (("training.split", "random"), ("training.folds", "1"), ("training.batch_size", "8"))
    trained(clicks, *settings, ("training.max_epochs", passes))
    assert steps == [batches]
    for some in epochs:
        assert len(some) == len(set(some))
        assert 8 * (batches - 1) < len(some) <= 8 * batches
    if batches == 3:  # less than half of them, drawn anew
        assert len(set().union(*epochs)) > 30
        assert len({frozenset(some) for some in epochs}) == 4


def test_of_very_many_held_out_some_judge_and_the_others_train_nobody_either(
    clicks, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(meta_training, "_MOST_JUDGES", 5)
    trained_on, judged_on, fit = set(), set(), fitting.fit

    def caught_fit(learner, sampler, validation, **settings):
        trained_on.update(int(key) for batch in sampler.epoch(0) for key in batch.keys)
        judged_on.update(int(key) for batch in validation for key in batch.keys)
        return fit(learner, sampler, validation, **settings)

    monkeypatch.setattr(fitting, "fit", caught_fit)
    with caplog.at_level(logging.INFO):
        _, _, warm = trained(clicks, ("training.split", "random"), ("training.folds", "1"))
    held_out = {int(key) for key in user_keys(warm)[split_users(warm, 0.2, 7)[1]]}
    assert len(held_out) > 5
    assert len(judged_on) == 5
    assert judged_on < held_out
    assert trained_on == {int(key) for key in user_keys(warm)} - held_out
    for line in (
        f"statistics of {60 - len(held_out)} users",
        "settling the learner by held-out users",
        "statistics of all 60 users",
    ):
        assert line in caplog.text


@pytest.mark.parametrize("split", ["random", "time"])
def test_of_many_items_a_step_has_a_part_and_what_is_settled_is_settled_by_all(
    clicks, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    sizes, settle, fit = [], settling.settle, fitting.fit
    judged: list[settling.Judged] = []

    def caught_fit(learner, sampler, validation, **settings):
        batches = [*sampler.epoch(0), *validation]
        sizes.extend(len(batch.catalogue.eligible) for batch in batches)
        assert all(batch.catalogue.log_weight is not None for batch in batches)
        return fit(learner, sampler, validation, **settings)

    def caught_settle(those, seed) -> None:
        judged.extend(those)
        settle(those, seed)

    monkeypatch.setattr(settling, "settle", caught_settle)
    monkeypatch.setattr(fitting, "fit", caught_fit)
    settings = (("training.split", split), ("training.folds", "1"), ("training.batch_size", "2"))
    _, model, _ = trained(clicks, *settings, ("training.most_items", "3"))
    assert min(sizes) < 17  # two users chose some of the items, and one or so is drawn besides
    (one,) = judged
    assert {len(batch.catalogue.eligible) for batch in one.once} == {17}
    assert all(batch.catalogue.log_weight is None for batch in one.once)
    assert model.bundle.learner.chosen.loss == "softmax"


def test_of_very_many_items_fewer_settle_and_a_few_at_a_time(clicks, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[settling.Judged] = []
    settle = settling.settle

    def caught_settle(those, seed) -> None:
        judged.extend(those)
        settle(those, seed)

    monkeypatch.setattr(settling, "settle", caught_settle)
    settings = (("training.split", "random"), ("training.folds", "1"))
    everybody, some = [], []
    for found, scores, at_once in ((everybody, 10**9, 10**9), (some, 18 * 40, 18 * 3)):
        monkeypatch.setattr(meta_training, "_SCORES", scores)
        monkeypatch.setattr(meta_training, "_AT_ONCE", at_once)
        trained(clicks, *settings, ("run_date", f"2026-03-{5 + len(judged):02}"))
        found.extend([*judged[-1].once, *judged[-1].again])
    assert max(len(batch.keys) for batch in some) == 3
    assert sum(len(batch.keys) for batch in some) <= 40 < sum(len(batch.keys) for batch in everybody)
    assert {int(key) for batch in some for key in batch.keys} == {
        int(key) for batch in everybody for key in batch.keys
    }


def test_negatives_are_drawn_as_the_learner_corrects_for(clicks, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[float, list[int]] = {}
    fit = fitting.fit

    def caught_fit(learner, sampler, validation, **settings):
        ids = [
            id_
            for batch in sampler.epoch(0)
            for id_ in batch.catalogue.features.ids[batch.query.items][
                batch.query.mask & (batch.query.targets == 0)
            ].tolist()
        ]
        drawn[learner.tempering] = ids
        return fit(learner, sampler, validation, **settings)

    monkeypatch.setattr(fitting, "fit", caught_fit)
    for tempering in (0.0, 300.0):
        init_args = f"{{loss: sampled_softmax, dim: 4, tempering: {tempering}}}"
        learner = f"{{class_path: recsys_meta.algorithms.maml.MAML, init_args: {init_args}}}"
        _, model, _ = trained(clicks, ("training.split", "random"), ("learner", learner))
        prepare = with_negatives(
            model.bundle.learner,
            plain_catalogue([1, 5, 20]),
            pl.Series(range(50)),
            seed=0,
        )
        chosen = Examples(
            torch.zeros(50, 1, dtype=torch.int64), torch.ones(50, 1), torch.ones(50, 1, dtype=torch.bool)
        )
        served = prepare(chosen, torch.arange(50))
        found = set(served.items[served.mask & (served.targets == 0)].tolist())
        assert found == ({1, 2} if tempering == 0 else {2})
    few, many = (len(set(drawn[tempering])) for tempering in (300.0, 0.0))
    assert few < many


def plain_catalogue(counts: list[int]) -> Catalogue:
    """Items of which nothing is known but how often they were met."""
    ids = torch.arange(len(counts)) + 1
    nothing = torch.zeros(len(counts), 0)
    features = Features(ids, nothing.long(), (), nothing, nothing)
    return Catalogue(
        features, torch.tensor(counts).float().log1p(), torch.ones(len(counts), dtype=torch.bool)
    )


def test_what_is_kept_is_the_mean_of_all_trainings(clicks, monkeypatch: pytest.MonkeyPatch) -> None:
    members, whole = [], settling.mean_of

    def caught_mean(learners):
        members.extend(
            {name: one.detach().clone() for name, one in some.named_parameters()} for some in learners
        )
        return whole(learners)

    monkeypatch.setattr(settling, "mean_of", caught_mean)
    _, model, _ = trained(clicks)
    assert len(members) == 10
    differing = 0
    for name, kept in model.bundle.learner.named_parameters():
        weights = torch.stack([member[name] for member in members])
        differing += not torch.equal(weights[0], weights[1])
        torch.testing.assert_close(kept, weights.mean(0))
    assert differing > 10


def test_a_night_killed_between_two_trainings_goes_on_and_ends_the_same(
    clicks, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = ("training.folds", "5")
    _, undisturbed, _ = trained(clicks, folds, ("workspace", str(clicks / "other")))
    whole, done = fitting.fit, []

    def killed(*arguments, **settings):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(whole(*arguments, **settings))
        return done[-1]

    monkeypatch.setattr(fitting, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(clicks, folds)

    def watched(*arguments, **settings):
        done.append(whole(*arguments, **settings))
        return done[-1]

    monkeypatch.setattr(fitting, "fit", watched)
    run, model, _ = trained(clicks, folds)
    assert [report.resumed_from for report in done[2:]] == [2, 2, None, None, None]
    expected = undisturbed.bundle.learner.state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in model.bundle.learner.state_dict().items()
    )
    folders = sorted(path.name for path in (run.workspace.model(model.version) / "training").iterdir())
    assert folders == [f"part-{number}" for number in range(1, 6)]


@pytest.mark.parametrize("talkative", [1, 0])
def test_a_part_that_leaves_nothing_to_train_on_is_left_out(clicks, caplog, talkative: int) -> None:
    first, last = datetime(2026, 3, 1, 9, tzinfo=UTC), datetime(2026, 3, 5, 9, tzinfo=UTC)
    rows = [(user, f"i{(user + place) % 5}", first) for user in range(60) for place in range(2)]
    rows += [(100, "i0", first), (100, "i1", last), (100, "i2", last)] * talkative
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row")
    table.write_parquet(clicks / "clicks.parquet")
    around = (
        "{split: moment, moments: {every: 1d, over: 1h, horizon: 1d}, validation_share: 0.01, max_epochs: 2}"
    )
    settings = (("cold.below", "2"), ("score", "all"), ("training", around))
    if not talkative:
        with pytest.raises(InputError, match=r"no episode can be drawn from the 120 events of 60 users"):
            trained(clicks, *settings)
        return
    with caplog.at_level(logging.INFO):
        _, model, _ = trained(clicks, *settings)
    assert "training 10 of 10" in caplog.text
    assert model.metrics["epochs"] == 9 * 2  # not without the one user who did anything since then


@pytest.mark.parametrize(
    ("users", "items", "share", "folds", "expected"),
    [
        (24, 10, 0.05, "auto", 1),  # too few to be parted
        (25, 10, 0.05, "auto", 10),
        (499, 10, 0.05, "auto", 10),
        (500, 10, 0.05, "auto", 5),
        (1_999, 20_000, 0.05, "auto", 5),
        (2_000, 20_000, 0.05, "auto", 1),  # a hundred are held out, and there is much to do
        (2_000, 9_999, 0.05, "auto", 5),
        (9_999, 10, 0.05, "auto", 5),
        (10_000, 10, 0.05, "auto", 1),
        (400, 20_000, 0.25, "auto", 1),
        (5_000, 10, 0.05, 3, 3),
        (100, 10, 0.05, 1, 1),
    ],
)
def test_how_many_trainings_there_are(
    users: int, items: int, share: float, folds: int | str, expected: int
) -> None:
    sizes = Sizes(FeatureSizes(), FeatureSizes(items))
    training = TrainingSettings(validation_share=share, folds=folds)
    ids = pl.Series("user_id", range(users), dtype=pl.Int64)
    lengths = torch.ones(users, dtype=torch.int64)
    several = parts_of(training, LadderedMAML(sizes, dim=4, largest=9, regressed=9), ids, lengths, 7)
    assert len(several) == expected
    # A learner whose mean says nothing is trained once.
    ((train, held_out),) = parts_of(training, MAML(sizes, dim=4), ids, lengths, 7)
    once = split_users(ids, share, 7)
    assert torch.equal(train, once[0])
    assert torch.equal(held_out, once[1])


def test_where_the_newest_half_settles_there_are_several_trainings_of_twice_as_many_users() -> None:
    learner = LadderedMAML(Sizes(FeatureSizes(), FeatureSizes(20_000)), dim=4, largest=9, regressed=9)

    def trainings(users: int, *, in_time: bool) -> int:
        ids = pl.Series("user_id", range(users), dtype=pl.Int64)
        lengths = torch.ones(users, dtype=torch.int64)
        return len(parts_of(TrainingSettings(), learner, ids, lengths, 7, in_time=in_time))

    assert [trainings(users, in_time=True) for users in (2_000, 3_999, 4_000)] == [5, 5, 1]
    assert trainings(2_000, in_time=False) == 1


@pytest.mark.parametrize(
    ("share", "least", "expected"),
    [
        (0.05, "auto", 0.05),
        (0.05, 1, 0.05),
        (0.05, 5, 0.1),  # half of the users have as many
        (0.05, 10, 0.2),  # a tenth of them: not half of these
        (0.05, 11, 0.2),  # nobody
        (0.3, 10, 0.3),
    ],
)
def test_of_users_like_those_judged_as_many_are_held_out_as_of_everybody_would_be(
    share: float, least: int | str, expected: float
) -> None:
    lengths = torch.tensor([1] * 5000 + [5] * 4000 + [10] * 1000)
    training = TrainingSettings(validation_share=share, min_history=least)
    assert share_held_out(training, lengths) == pytest.approx(expected)
    ids = pl.Series("user_id", range(10_000), dtype=pl.Int64)
    learner = MAML(Sizes(FeatureSizes(), FeatureSizes(20)), dim=4)
    ((train, held_out),) = parts_of(training, learner, ids, lengths, 7)
    assert len(held_out) == pytest.approx(expected * 10_000, rel=0.1)
    # Whom a champion is compared on trains no challenger.
    assert not torch.isin(train, split_users(ids, share, 7)[1]).any()


def test_what_foretells_is_fitted_at_moments_and_not_meta_trained(
    clicks, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[MomentSplits] = []

    class Caught(MomentSplits):
        def __init__(self, *arguments, **settings) -> None:
            super().__init__(*arguments, **settings)
            made.append(self)

    monkeypatch.setattr("pipelines.drawing.MomentSplits", Caught)
    moments = (
        "{split: moment, moments: {every: 6h, over: 2d, horizon: 1d}, validation_share: 0.2, max_epochs: 2}"
    )
    night = [("training", moments), ("cold.below", "9"), ("item_windows", "[6h, 1d]")]
    choice = "{class_path: recsys_meta.algorithms.%s, init_args: {loss: softmax, item_ids: false}}"
    _, model, _ = trained(clicks, *night, ("learner", choice % "laddered.Laddered"))
    (splits,) = made
    learner = model.bundle.learner.chosen
    assert model.metrics["epochs"] == 0
    assert model.metrics["validation_loss"] is None
    again = LadderedMAML(learner.sizes, loss="softmax", item_ids=False)
    again.fit_forecast(list(splits.asked()))
    torch.testing.assert_close(learner.forecast, again.forecast)
    assert learner.forecast[1:].any()
    _, model, _ = trained(clicks, *night, ("learner", choice % "maml.MAML"))
    assert model.metrics["epochs"] == 2


@pytest.mark.parametrize(
    ("users", "expected"),
    [(3_000, 0.2), (6_000, 0.15), (18_000, 0.05), (40_000, 0.05)],  # 600, 900, 900, 2,000 users
)
def test_what_a_single_training_settles_it_settles_by_hundreds_of_users(users: int, expected: float) -> None:
    training, lengths = TrainingSettings(), torch.ones(users, dtype=torch.int64)
    ids = pl.Series("user_id", range(users), dtype=pl.Int64)
    many = Sizes(FeatureSizes(), FeatureSizes(20_000))  # items, so that there is one training
    learner = LadderedMAML(many, dim=4, largest=9, regressed=9)
    ((train, held_out),) = parts_of(training, learner, ids, lengths, 7)
    assert len(held_out) == pytest.approx(expected * users, rel=0.1)
    assert len(train) + len(held_out) == users
    # Nothing is settled: a twentieth stops it.
    ((_, few),) = parts_of(training, MAML(many, dim=4), ids, lengths, 7)
    assert len(few) == pytest.approx(0.05 * users, rel=0.2)


def test_no_episode_asks_for_what_nobody_else_of_those_trained_on_met(
    clicks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everybody clicks on one thing that nobody else has met, before all others.
    table = pl.read_parquet(clicks / "clicks.parquet")
    own = pl.DataFrame({"user_id": range(USERS)}).with_columns(
        item_id=pl.format("own{}", "user_id"), at=datetime(2026, 2, 1, tzinfo=UTC)
    )
    pl.concat([own.cast(table.schema), table]).write_parquet(clicks / "clicks.parquet")
    drawn: list[EpisodeBatch] = []
    epoch = RandomSplits.epoch

    def watched(sampler: RandomSplits, number: int) -> Iterator[EpisodeBatch]:
        for batch in epoch(sampler, number):
            drawn.append(batch)
            yield batch

    monkeypatch.setattr(RandomSplits, "epoch", watched)
    run, _, _ = trained(clicks, ("training.split", "random"), ("training.folds", "1"))
    names = run.read().item_ids.to_list()
    asked = {
        names[int(examples.items[row, place])]
        for batch in drawn
        for examples in (batch.support, batch.query)
        for row, place in examples.mask.nonzero().tolist()
    }
    assert asked == {name for name in names if not name.startswith("own")}
    assert sum(name.startswith("own") for name in names) == USERS  # they may be recommended nevertheless
