"""Tests of a fit from start to finish: repeatable, resumable, stopped in time."""

import csv
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from file_changes import ENVIRONMENT
from torch import Tensor

from recsys_meta.algorithms.maml import MAML
from recsys_meta.tensors import EpisodeBatch, FeatureSizes, Sizes
from recsys_meta.training.checkpoints import LAST, PREVIOUS, read_sealed
from recsys_meta.training.failure import FitError
from recsys_meta.training.fitting import FitReport, fit

Weights = dict[str, Tensor]

KILLED_FIT = Path(__file__).with_name("killed_fit.py")


class Interrupted(Exception):
    """Stands for the moment at which the process goes away."""


def killed_fit() -> ModuleType:
    """The script whose fits are killed."""
    spec = importlib.util.spec_from_file_location("killed_fit", KILLED_FIT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fitted(tiny: SimpleNamespace, folder: Path, **settings: Any) -> tuple[Weights, FitReport]:
    learner = settings.pop("learner", None) or tiny.Learner(tiny.SIZES, dropout=0.2)
    sampler = settings.pop("sampler", tiny.Sampler())
    arguments = {"folder": folder, "max_epochs": 4, "outer_lr": 0.05, "patience": None}
    report = fit(learner, sampler, settings.pop("validation", tiny.validation), **(arguments | settings))
    return learner.state_dict(), report


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupting(tiny: SimpleNamespace, epoch: int, batch: int) -> Any:
    class Sampler(tiny.Sampler):  # type: ignore[misc, name-defined]
        def epoch(self, number: int) -> Iterator[EpisodeBatch]:
            for index, episodes in enumerate(super().epoch(number)):
                if (number, index) == (epoch, batch):
                    raise Interrupted
                yield episodes

    return Sampler()


def query_loss(tiny: SimpleNamespace, learner: Any) -> float:
    with torch.no_grad():
        losses = [
            learner.task_loss(learner.adapt(e.support, e.users, items), e.query, items, e.support)
            for e in tiny.validation
            for items in [learner.encode(e.catalogue)]
        ]
    return float(torch.cat(losses).mean())


def test_fitting_lowers_the_loss_of_held_out_users(tiny: SimpleNamespace, tmp_path: Path) -> None:
    learner = tiny.Learner(tiny.SIZES)
    before = query_loss(tiny, learner)
    _, report = fitted(tiny, tmp_path, learner=learner)
    assert report.epochs == 4
    assert report.best_epoch > 0
    assert report.best_validation_loss == pytest.approx(query_loss(tiny, learner), rel=1e-6)
    assert report.best_validation_loss < before
    assert report.prior_validation_loss is not None
    assert report.best_validation_loss < report.prior_validation_loss
    assert not learner.training


def test_maml_fits_on_several_users_at_once(tiny: SimpleNamespace, tmp_path: Path) -> None:
    learner = MAML(
        Sizes(FeatureSizes(), FeatureSizes(ids=13)), head="linear", dim=4, loss="squared", num_steps=2
    )
    before = query_loss(tiny, learner)
    fitted(tiny, tmp_path, learner=learner, gradient_clip=10.0)
    assert query_loss(tiny, learner) < before


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    one, _ = fitted(tiny, tmp_path / "one")
    torch.manual_seed(2)
    same, _ = fitted(tiny, tmp_path / "same")
    other, _ = fitted(tiny, tmp_path / "other", seed=1)
    assert equal(one, same)
    assert not equal(one, other)


def test_a_fit_leaves_the_random_state_and_the_switches_of_torch_as_they_were(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    fitted(tiny, tmp_path, max_epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.parametrize("epoch", [0, 1, 3])
@pytest.mark.parametrize("settings", [{}, {"average": 0.9, "schedule": "constant"}])
def test_an_interrupted_fit_ends_in_the_weights_of_an_undisturbed_one(
    tiny: SimpleNamespace, tmp_path: Path, epoch: int, settings: dict[str, Any]
) -> None:
    undisturbed, first = fitted(tiny, tmp_path / "a", **settings)
    with pytest.raises(Interrupted):
        fitted(tiny, tmp_path / "b", sampler=interrupting(tiny, epoch, 2), **settings)
    resumed, second = fitted(tiny, tmp_path / "b", **settings)
    assert equal(undisturbed, resumed)
    assert second.resumed_from == (epoch or None)
    assert first[:4] == second[:4]


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (0, 3), (1, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("settings", [{}, {"average": 0.9, "schedule": "constant"}])
def test_a_fit_interrupted_within_an_epoch_goes_on_with_the_step_it_was_at(
    tiny: SimpleNamespace, tmp_path: Path, epoch: int, batch: int, settings: dict[str, Any]
) -> None:
    undisturbed, first = fitted(tiny, tmp_path / "a", **settings)
    with pytest.raises(Interrupted):
        fitted(tiny, tmp_path / "b", sampler=interrupting(tiny, epoch, batch), save_every=0.0, **settings)
    sampler = tiny.Sampler()
    resumed, second = fitted(tiny, tmp_path / "b", sampler=sampler, save_every=0.0, **settings)
    # Batches are drawn ahead of the step: the one that was never drawn may have ended the fit a step or two earlier.
    assert second.resumed_step is not None
    assert 4 * epoch + batch - 3 <= second.resumed_step <= 4 * epoch + batch
    assert sampler.drawn == list(range(second.resumed_step // 4, 4))
    assert equal(undisturbed, resumed)
    assert first[:4] == second[:4]
    assert killed_fit().same(read_sealed(tmp_path / "a" / LAST), read_sealed(tmp_path / "b" / LAST))


def test_what_a_learner_remembers_of_being_used_starts_nothing_afresh(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    fitted(tiny, tmp_path)
    used = tiny.Learner(tiny.SIZES, dropout=0.2)
    used._last_shelf = (torch.ones(2), torch.ones(2))
    assert fitted(tiny, tmp_path, learner=used)[1].resumed_from == 4


def test_a_fit_that_is_done_is_not_done_again(tiny: SimpleNamespace, tmp_path: Path) -> None:
    weights, first = fitted(tiny, tmp_path)
    sampler = tiny.Sampler()
    again, second = fitted(tiny, tmp_path, sampler=sampler)
    assert sampler.drawn == []
    assert equal(weights, again)
    assert (second.resumed_from, second.best_validation_loss) == (4, first.best_validation_loss)


def test_a_fit_that_stopped_early_is_not_taken_up_again(tiny: SimpleNamespace, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"outer_lr": 30.0, "patience": 2, "max_epochs": 9, "schedule": "constant"}
    weights, first = fitted(tiny, tmp_path, **settings)
    assert first.epochs == first.best_epoch + 2 < 9
    sampler = tiny.Sampler()
    again, second = fitted(tiny, tmp_path, sampler=sampler, **settings)
    assert sampler.drawn == []
    assert equal(weights, again)
    assert second.epochs == first.epochs


def test_weights_that_training_only_made_worse_come_back_as_they_were(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    before = {
        name: value.clone() for name, value in tiny.Learner(tiny.SIZES, dropout=0.2).state_dict().items()
    }
    weights, report = fitted(tiny, tmp_path, outer_lr=100.0, schedule="constant", patience=1)
    assert report.best_epoch == 0
    assert report.epochs == 1
    assert equal(weights, before)


def test_other_arguments_start_afresh_and_say_so(
    tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(tiny, tmp_path / "a")
    other = tiny.Learner(tiny.SIZES, dropout=0.3)
    assert fitted(tiny, tmp_path / "a", learner=other, max_epochs=4)[1].resumed_from is None
    _, report = fitted(tiny, tmp_path / "a", outer_lr=0.01)
    assert report.resumed_from is None
    assert "other arguments" in caplog.text
    fresh, _ = fitted(tiny, tmp_path / "b", outer_lr=0.01)
    assert equal(fresh, fitted(tiny, tmp_path / "a", outer_lr=0.01)[0])


def test_other_data_start_afresh(tiny: SimpleNamespace, tmp_path: Path) -> None:
    fitted(tiny, tmp_path)
    assert fitted(tiny, tmp_path, validation=tiny.validation[:1])[1].resumed_from is None
    assert (
        fitted(tiny, tmp_path, validation=tiny.validation[:1], fingerprint="tuesday")[1].resumed_from is None
    )
    assert fitted(tiny, tmp_path, validation=tiny.validation[:1], fingerprint="tuesday")[1].resumed_from == 4


def test_resume_false_starts_afresh(tiny: SimpleNamespace, tmp_path: Path) -> None:
    fitted(tiny, tmp_path)
    assert fitted(tiny, tmp_path, resume=False)[1].resumed_from is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    undisturbed, _ = fitted(tiny, tmp_path / "a")
    with pytest.raises(Interrupted):
        fitted(tiny, tmp_path / "b", sampler=interrupting(tiny, 3, 0))
    content = bytearray((tmp_path / "b" / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"flip": len(content), "cut": len(content) // 2, "empty": 0}[damage]
    (tmp_path / "b" / LAST).write_bytes(content[:kept])
    resumed, report = fitted(tiny, tmp_path / "b")
    assert report.resumed_from == 2
    assert "does not match its sha256" in caplog.text
    assert equal(undisturbed, resumed)


def test_without_a_whole_checkpoint_the_fit_starts_afresh(tiny: SimpleNamespace, tmp_path: Path) -> None:
    undisturbed, _ = fitted(tiny, tmp_path / "a")
    with pytest.raises(Interrupted):
        fitted(tiny, tmp_path / "b", sampler=interrupting(tiny, 3, 0))
    for name in (LAST, PREVIOUS):
        (tmp_path / "b" / name).write_bytes(b"nothing of use")
    resumed, report = fitted(tiny, tmp_path / "b")
    assert report.resumed_from is None
    assert equal(undisturbed, resumed)


def exploding(tiny: SimpleNamespace, calls: set[int], *, gradient_only: bool = False) -> Any:
    class Learner(tiny.Learner):  # type: ignore[misc, name-defined]
        seen = 0

        def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
            self.seen += 1
            loss: Tensor = super().meta_loss(episodes)
            if self.seen - 1 not in calls:
                return loss
            if gradient_only:
                return (
                    loss + (self.start.sum() * 0).abs().sqrt()
                )  # the root's slope at 0 is infinite, times 0: NaN
            return loss * torch.nan

    return Learner(tiny.SIZES)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_that_is_not_finite_is_left_out_and_counted(
    tiny: SimpleNamespace, tmp_path: Path, gradient_only: bool
) -> None:
    learner = exploding(tiny, {7}, gradient_only=gradient_only)
    sampler = tiny.Sampler(batches=100, tasks=2)
    weights, report = fitted(tiny, tmp_path, learner=learner, sampler=sampler, max_epochs=1)
    assert learner.seen == 100
    assert report.skipped_steps == 1
    assert all(value.isfinite().all() for value in weights.values())
    assert report.best_epoch == 1


def test_more_than_one_percent_of_such_steps_is_an_error(tiny: SimpleNamespace, tmp_path: Path) -> None:
    sampler = tiny.Sampler(batches=100, tasks=2)
    with pytest.raises(FitError, match="in 2 of 100 steps"):
        fitted(tiny, tmp_path, learner=exploding(tiny, {7, 8}), sampler=sampler, max_epochs=1)


def test_the_count_of_such_steps_survives_an_interruption(tiny: SimpleNamespace, tmp_path: Path) -> None:
    class Sampler(tiny.Sampler):  # type: ignore[misc, name-defined]
        def epoch(self, number: int) -> Iterator[EpisodeBatch]:
            if number == 1 and self.interrupt:
                raise Interrupted
            yield from super().epoch(number)

        interrupt = True

    sampler = Sampler(batches=100, tasks=2)
    settings: dict[str, Any] = {"sampler": sampler, "max_epochs": 2}
    with pytest.raises(Interrupted):
        fitted(tiny, tmp_path, learner=exploding(tiny, {7}), **settings)
    sampler.interrupt = False
    _, report = fitted(tiny, tmp_path, learner=exploding(tiny, set()), **settings)
    assert (report.resumed_from, report.skipped_steps) == (1, 1)


def test_a_learner_that_never_gives_a_finite_loss_is_an_error(tiny: SimpleNamespace, tmp_path: Path) -> None:
    learner = tiny.Learner(tiny.SIZES)
    with torch.no_grad():
        learner.start.fill_(torch.nan)
    with pytest.raises(FitError, match="not finite"):
        fitted(tiny, tmp_path, learner=learner)


def test_a_fit_without_training_episodes_is_an_error(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(FitError, match="no training episodes"):
        fitted(tiny, tmp_path, sampler=tiny.Sampler(batches=0))


def test_no_epochs_give_the_learner_back_as_it_came(tiny: SimpleNamespace, tmp_path: Path) -> None:
    weights, report = fitted(tiny, tmp_path / "none", max_epochs=0)
    assert equal(weights, tiny.Learner(tiny.SIZES).state_dict())
    assert (report.epochs, report.best_validation_loss) == (0, None)
    assert not (tmp_path / "none").exists()


def test_a_learner_that_is_not_meta_trained_comes_back_as_it_came(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    learner = tiny.Learner(tiny.SIZES)
    learner.meta_trained = False
    assert fitted(tiny, tmp_path, learner=learner)[1].epochs == 0


def test_without_validation_users_the_last_weights_are_the_best(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    _, report = fitted(tiny, tmp_path, validation=[], patience=1)
    assert (report.epochs, report.best_epoch) == (4, 4)
    assert (report.best_validation_loss, report.prior_validation_loss) == (None, None)


def test_an_average_of_the_weights_is_judged_and_given_back(tiny: SimpleNamespace, tmp_path: Path) -> None:
    learner = tiny.Learner(tiny.SIZES)
    _, report = fitted(tiny, tmp_path / "a", learner=learner, average=0.95)
    assert report.best_validation_loss == pytest.approx(query_loss(tiny, learner), rel=1e-6)
    assert not equal(learner.state_dict(), fitted(tiny, tmp_path / "b", learner=tiny.Learner(tiny.SIZES))[0])


def test_an_average_outside_its_range_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found 1\.0"):
        fitted(tiny, tmp_path, average=1.0)


def test_every_epoch_leaves_a_line_in_the_log(tiny: SimpleNamespace, tmp_path: Path) -> None:
    fitted(tiny, tmp_path)
    (path,) = tmp_path.glob("log/version_*/metrics.csv")
    with path.open() as file:
        lines = list(csv.DictReader(file))
    judged = [line for line in lines if line["validation_loss"]]
    assert [int(line["epoch"]) for line in judged] == [0, 1, 2, 3]
    assert all(float(line["prior_loss"]) > 0 for line in judged)
    assert sum(bool(line["train_loss"]) for line in lines) == 4


def test_long_fits_say_where_they_stand(
    tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="recsys_meta"):
        fitted(tiny, tmp_path, progress_interval=0.0)
    lines = [record.getMessage() for record in caplog.records if "steps/s" in record.getMessage()]
    assert len(lines) == 16
    assert "epoch 4 of 4, step 16 of 16" in lines[-1]


def test_lightning_says_nothing(
    tiny: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fitted(tiny, tmp_path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"recsys_meta"}


SCRIPT = """
import importlib.util, os, signal, sys
from pathlib import Path
from recsys_meta.training.fitting import fit

spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def deadly(function, moment):
    def called(*args, **kwargs):
        global operations
        operations += 1
        if operations == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return called


for moment in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        operations = 0
        os.fsync, Path.replace = deadly(os.fsync, moment), deadly(Path.replace, moment)
        learner = tiny.TinyLearner(tiny.SIZES, dropout=0.2)
        folder = Path(sys.argv[2], str(moment))
        fit(learner, tiny.SeededSampler(), tiny.validation_episodes(), folder=folder, max_epochs=3, outer_lr=0.05, patience=None)
        os._exit(0)
    print(-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fit_killed_at_any_moment_of_saving_ends_in_the_weights_of_an_undisturbed_one(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    undisturbed, _ = fitted(tiny, tmp_path / "undisturbed", max_epochs=3)
    # A save is a write, then a rename; from the second on, two renames. 8 moments in 3 epochs; the 9th never comes.
    done_before = {1: None, 2: None, 3: 1, 4: 1, 5: 1, 6: 2, 7: 2, 8: 2, 9: 3}
    command = [sys.executable, "-c", SCRIPT, str(tiny.file), str(tmp_path), *map(str, done_before)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.split() == [str(int(signal.SIGKILL))] * 8 + ["0"]
    for moment, epochs in done_before.items():
        resumed, report = fitted(tiny, tmp_path / str(moment), max_epochs=3)
        assert report.resumed_from == epochs
        assert equal(undisturbed, resumed)


def test_fits_killed_at_random_moments_until_they_are_done_end_in_the_very_state_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    command = [sys.executable, str(KILLED_FIT), str(tmp_path), "6"]
    ran = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [fit["same"] for fit in found] == [True] * 6
    assert sum(fit["kills"] for fit in found) >= 10
    assert sum(fit["within"] for fit in found) >= 2
