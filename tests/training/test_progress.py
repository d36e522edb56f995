"""Tests of what a fit shows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.progress import Progress

from recsys_meta.training import progress
from recsys_meta.training.fitting import fit
from recsys_meta.training.progress import FitProgress


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """The bars that are made, on what passes for a terminal."""
    made: list[Progress] = []

    class Noted(Progress):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

    monkeypatch.setattr(progress, "Progress", Noted)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setattr(progress, "BAR_INTERVAL", 0.0)
    return made


def test_a_terminal_shows_a_bar(
    tiny: SimpleNamespace, tmp_path: Path, bars: list[Progress], caplog: pytest.LogCaptureFixture
) -> None:
    learner, sampler = tiny.Learner(tiny.SIZES), tiny.Sampler(batches=3)
    fit(learner, sampler, tiny.validation, folder=tmp_path, max_epochs=2, progress_interval=0.0)
    (bar,) = bars
    (task,) = bar.tasks
    assert (task.completed, task.total, task.fields["epoch"]) == (6, 6, 2)
    assert task.fields["loss"] > 0
    assert bar.live.is_started is False
    assert "steps/s" not in caplog.text


def test_a_fit_that_fails_takes_its_bar_away(
    tiny: SimpleNamespace, tmp_path: Path, bars: list[Progress]
) -> None:
    class Failing(tiny.Sampler):  # type: ignore[misc, name-defined]
        def epoch(self, number: int) -> Any:
            yield next(super().epoch(number))
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fit(tiny.Learner(tiny.SIZES), Failing(), tiny.validation, folder=tmp_path, max_epochs=2)
    (bar,) = bars
    assert bar.live.is_started is False


def test_without_a_terminal_there_is_no_bar(
    tiny: SimpleNamespace, tmp_path: Path, bars: list[Progress], monkeypatch: Any
) -> None:
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: False)))
    fit(tiny.Learner(tiny.SIZES), tiny.Sampler(), tiny.validation, folder=tmp_path, max_epochs=1)
    assert bars == []
    assert FitProgress().interval == 30.0
