"""Tests of the tables that lists become."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
import torch

from recsys_meta.adaptation.frames import to_frames
from recsys_meta.adaptation.recommend import REASONS, Recommended
from recsys_meta.tables import ID, SCORES, SOURCES, USER_STATUS, USER_VECTORS

NOW = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
INFINITY = torch.inf
SETTINGS: dict[str, Any] = {"run_id": "2026-11-23-maml-abc", "model_version": "v1", "generated_at": NOW}
IDS = {
    "strings": (pl.Series(["007", "7", "ü", ""]), pl.Series(["a", "b", "c"])),
    "numbers": (pl.Series([7, -1, 2**63 - 1, 0]), pl.Series([10, 20, 30], dtype=pl.UInt16)),
}


def lists(**changes: Any) -> Recommended:
    """Users 2, 0 and 3: adapted, the prior, popularity without a candidate."""
    answers = Recommended(
        rows=torch.tensor([2, 0, 3]),
        items=torch.tensor([[1, 2], [0, -1], [-1, -1]]),
        scores=torch.tensor([[0.5, -2.0], [3.0, -INFINITY], [-INFINITY, -INFINITY]]),
        source=torch.tensor([0, 1, 2], dtype=torch.int8),
        n_support=torch.tensor([5, 0, 1]),
        loss_before=torch.tensor([2.0, torch.nan, torch.nan]),
        loss_after=torch.tensor([1.0, torch.nan, torch.nan]),
        reason=torch.tensor(
            [0, REASONS.index("no history"), REASONS.index("no candidate left")], dtype=torch.int8
        ),
        vectors=torch.tensor([[1.0, 2.0], [3.0, 4.0], [torch.nan, torch.nan]]),
    )
    return answers._replace(**changes)


def conforms(
    table: pl.DataFrame, schema: Mapping[str, Any], user_ids: pl.Series, item_ids: pl.Series
) -> bool:
    types = {"user_id": user_ids.dtype, "item_id": item_ids.dtype}
    wanted = {name: types[name] if kind is ID else kind for name, kind in schema.items()}
    return list(table.schema.items()) == list(wanted.items())


@pytest.mark.parametrize("kind", IDS)
def test_ids_come_out_as_they_came_in_and_columns_are_those_of_the_tables(kind: str) -> None:
    user_ids, item_ids = IDS[kind]
    frames = to_frames(lists(), user_ids, item_ids, **SETTINGS)
    assert conforms(frames.scores, SCORES, user_ids, item_ids)
    assert conforms(frames.user_status, USER_STATUS, user_ids, item_ids)
    assert frames.user_vectors is not None
    assert conforms(frames.user_vectors, USER_VECTORS, user_ids, item_ids)
    assert frames.scores["user_id"].to_list() == [user_ids[2], user_ids[2], user_ids[0]]
    assert frames.scores["item_id"].to_list() == [item_ids[1], item_ids[2], item_ids[0]]
    assert frames.user_status["user_id"].to_list() == [user_ids[2], user_ids[0], user_ids[3]]


def test_scores_hold_what_was_listed_ranked_from_one() -> None:
    scores = to_frames(lists(), *IDS["strings"], **SETTINGS).scores
    assert scores["rank"].to_list() == [1, 2, 1]
    assert scores["score"].to_list() == [0.5, -2.0, 3.0]
    assert scores["source"].to_list() == [SOURCES[0], SOURCES[0], SOURCES[1]]
    assert scores["n_support"].to_list() == [5, 5, 0]
    assert scores["propensity"].to_list() == [1.0] * 3
    assert scores["run_id"].unique().to_list() == [SETTINGS["run_id"]]
    assert scores["model_version"].unique().to_list() == ["v1"]
    assert scores["generated_at"].unique().to_list() == [NOW]
    assert scores.null_count().sum_horizontal().item() == 0


def test_what_was_drawn_keeps_its_propensities() -> None:
    propensity = torch.tensor([[0.25, 0.5], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    scores = to_frames(lists(propensity=propensity), *IDS["strings"], **SETTINGS).scores
    assert scores["propensity"].to_list() == [0.25, 0.5, 1.0]
    assert list(scores.columns) == list(SCORES)


def test_every_user_has_one_status_row_whether_listed_or_not() -> None:
    status = to_frames(lists(), *IDS["strings"], **SETTINGS).user_status
    assert status["source"].to_list() == list(SOURCES)
    assert status["support_loss_before"].to_list() == [2.0, None, None]
    assert status["support_loss_after"].to_list() == [1.0, None, None]
    assert status["reason"].to_list() == [None, "no history", "no candidate left"]


@pytest.mark.parametrize("loss", [torch.nan, torch.inf, -torch.inf])
def test_a_loss_that_is_not_finite_is_null(loss: float) -> None:
    status = to_frames(lists(loss_after=torch.full((3,), loss)), *IDS["strings"], **SETTINGS).user_status
    assert status["support_loss_after"].to_list() == [None] * 3


def test_users_served_popularity_have_no_vector() -> None:
    vectors = to_frames(lists(), *IDS["strings"], **SETTINGS).user_vectors
    assert vectors is not None
    assert vectors.rows() == [(SETTINGS["run_id"], "ü", [1.0, 2.0]), (SETTINGS["run_id"], "007", [3.0, 4.0])]
    assert to_frames(lists(vectors=None), *IDS["strings"], **SETTINGS).user_vectors is None


def test_batches_without_any_list_or_vector_still_conform() -> None:
    user_ids, item_ids = IDS["numbers"]
    nothing = lists(items=torch.full((3, 2), -1), vectors=torch.full((3, 2), torch.nan))
    frames = to_frames(nothing, user_ids, item_ids, **SETTINGS)
    assert len(frames.scores) == 0
    assert conforms(frames.scores, SCORES, user_ids, item_ids)
    assert frames.user_vectors is not None
    assert conforms(frames.user_vectors, USER_VECTORS, user_ids, item_ids)


def test_the_moment_is_written_in_utc() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    scores = to_frames(lists(), *IDS["strings"], **(SETTINGS | {"generated_at": elsewhere})).scores
    assert scores["generated_at"].to_list() == [NOW] * 3
