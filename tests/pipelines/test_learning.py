"""Tests of how a learner is chosen and fitted."""

import polars as pl
import pytest

from pipelines.learning import with_loss
from pipelines.settings import LearnerSettings


def events(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"value": values})


@pytest.mark.parametrize(
    ("values", "num_items", "expected"),
    [
        ((1.0, 1.0), 100, "softmax"),
        ((1.0, 1.0), 50_001, "sampled_softmax"),
        ((1.0, 4.0), 100, "squared"),
        ((1.0, 4.0), 50_001, "squared"),
    ],
)
def test_the_data_say_the_loss_where_the_settings_do_not(
    values: tuple[float, ...], num_items: int, expected: str
) -> None:
    choice = with_loss(LearnerSettings(init_args={"item_ids": False}), events(*values), num_items)
    assert choice.init_args == {"item_ids": False, "loss": expected}


def test_a_loss_that_is_set_stays_and_a_class_without_one_gets_none() -> None:
    for choice in (
        LearnerSettings(init_args={"loss": "bpr"}),
        LearnerSettings(class_path="recsys_meta.baselines.popularity.Popularity"),
    ):
        assert with_loss(choice, events(1.0, 4.0), 10) == choice
