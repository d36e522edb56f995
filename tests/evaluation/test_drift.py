"""Distances of what two nights show, held against scipy and against figures worked by hand."""

import warnings

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from recsys_meta.evaluation.drift import ks_distance, total_variation

SAMPLES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


@given(SAMPLES, SAMPLES)
def test_the_distance_of_scores_is_that_of_kolmogorov_and_smirnov_ties_and_all(before, now) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its p-value, which nobody asks for
        expected = ks_2samp(before, now).statistic
    assert ks_distance(np.array(before), np.array(now)) == pytest.approx(expected)


def test_rows_that_moved_to_other_items_are_counted_once() -> None:
    before = pl.DataFrame({"item_id": ["a", "b"], "n": [3, 1]})
    now = pl.DataFrame({"item_id": ["b", "c"], "n": [4, 4]})
    assert total_variation(before, now, "item_id") == pytest.approx((0.75 + 0.25 + 0.5) / 2)
    assert total_variation(before, before, "item_id") == 0
    assert total_variation(before, now.tail(1), "item_id") == 1


def test_ids_are_the_same_where_their_values_are_and_text_is_no_number() -> None:
    before = pl.DataFrame({"item_id": [1, 2], "n": [3, 1]}, schema_overrides={"item_id": pl.Int32})
    for wide in (pl.Int64, pl.UInt64):
        assert total_variation(before, before.cast({"item_id": wide}), "item_id") == 0
    largest = pl.DataFrame({"item_id": [2**64 - 1], "n": [1]}, schema_overrides={"item_id": pl.UInt64})
    assert total_variation(before.cast({"item_id": pl.Int64}), largest, "item_id") == 1
    with pytest.raises(ValueError, match="item_id is Int32 before and String now"):
        total_variation(before, before.cast({"item_id": pl.String}), "item_id")


def test_nothing_shown_is_as_far_as_can_be() -> None:
    nothing, something = (
        pl.DataFrame({"item_id": ["a"], "n": [0]}),
        pl.DataFrame({"item_id": ["a"], "n": [2]}),
    )
    assert ks_distance(np.zeros(0), np.ones(3)) == 1
    assert total_variation(nothing, something, "item_id") == 1


def test_of_large_samples_the_distance_is_known_to_a_millionth() -> None:
    before = np.linspace(0, 1, 2_500_001)
    assert ks_distance(before, before + 0.3) == pytest.approx(0.3, abs=3e-6)
