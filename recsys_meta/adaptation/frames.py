"""Recommended lists as the tables that are published, with the ids as they came in."""

from datetime import datetime
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor

from recsys_meta.adaptation.recommend import REASONS, Recommended
from recsys_meta.tables import INSTANT, ITEM_ID, SCORES, SOURCES, USER_ID, USER_STATUS, USER_VECTORS


class Frames(NamedTuple):
    """One batch of users, in the columns of ``tables``."""

    scores: pl.DataFrame  # tables.SCORES; by user in the order of the batch, then by rank
    user_status: pl.DataFrame  # tables.USER_STATUS; one row per user
    user_vectors: pl.DataFrame | None  # tables.USER_VECTORS; without the users served popularity


def to_frames(
    recommended: Recommended,
    user_ids: pl.Series,
    item_ids: pl.Series,
    *,
    run_id: str,
    model_version: str,
    generated_at: datetime,
) -> Frames:
    """The tables of these users.

    Args:
        recommended: a batch of lists.
        user_ids, item_ids: the id of each user row and of each row of the catalogue.
        run_id, model_version: as published.
        generated_at: with a time zone.
    """
    users = user_ids.gather(_series(recommended.rows)).alias(USER_ID)
    source = pl.Series(SOURCES, dtype=pl.String).gather(_series(recommended.source.long()))
    n_support = _series(recommended.n_support).cast(pl.Int32)

    present = recommended.items >= 0  # [T, k]
    propensity = recommended.propensity
    if propensity is None:  # the policy is deterministic
        propensity = torch.ones_like(recommended.scores, dtype=torch.float64)
    owner, place = (_series(index) for index in present.nonzero(as_tuple=True))
    scores = pl.DataFrame(
        {
            USER_ID: users.gather(owner),
            ITEM_ID: item_ids.gather(_series(recommended.items[present])),
            "rank": (place + 1).cast(pl.Int32),
            "score": _series(recommended.scores[present]),
            "propensity": _series(propensity[present]),
            "source": source.gather(owner),
            "n_support": n_support.gather(owner),
        }
    ).with_columns(
        pl.lit(run_id).alias("run_id"),
        pl.lit(model_version).alias("model_version"),
        pl.lit(generated_at).dt.convert_time_zone("UTC").cast(INSTANT).alias("generated_at"),
    )
    user_status = pl.DataFrame(
        {
            USER_ID: users,
            "source": source,
            "n_support": n_support,
            "support_loss_before": _finite_or_null(recommended.loss_before),
            "support_loss_after": _finite_or_null(recommended.loss_after),
            "reason": pl.Series(REASONS, dtype=pl.String).gather(_series(recommended.reason.long())),
        }
    )
    user_vectors = None
    if recommended.vectors is not None:
        made = recommended.vectors.isfinite().all(1)
        vector = pl.Series("vector", recommended.vectors[made].numpy()).cast(pl.List(pl.Float32))
        user_vectors = pl.DataFrame({USER_ID: users.filter(_series(made)), "vector": vector}).select(
            pl.lit(run_id).alias("run_id"), *list(USER_VECTORS)[1:]
        )
    return Frames(scores.select(SCORES.keys()), user_status.select(USER_STATUS.keys()), user_vectors)


def _series(values: Tensor) -> pl.Series:
    return pl.Series(values.numpy())


def _finite_or_null(values: Tensor) -> pl.Series:
    loss = _series(values)
    return loss.set(~loss.is_finite(), None)
