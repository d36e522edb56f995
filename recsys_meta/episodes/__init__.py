"""Tables to tensors: histories, encoders, the catalogue as of a moment, and episodes drawn from them."""

from recsys_meta.episodes.catalogue import CatalogueClock, Sightings, num_derived
from recsys_meta.episodes.collate import (
    DrawnPart,
    Negatives,
    collate,
    spans,
    unique_items,
)
from recsys_meta.episodes.encoding import FeatureEncoder, Scale
from recsys_meta.episodes.histories import group, head, is_first, met_before, met_by_others, newest, select
from recsys_meta.episodes.ids import rows_of, split_folds, split_users, user_keys
from recsys_meta.episodes.pace import late_of, mix_of, pace_of, trend_of
from recsys_meta.episodes.sampling import (
    MomentSplits,
    NewcomerSplits,
    RandomSplits,
    fixed_splits,
    newcomer_moments,
)

__all__ = [
    "CatalogueClock",
    "DrawnPart",
    "FeatureEncoder",
    "MomentSplits",
    "Negatives",
    "NewcomerSplits",
    "RandomSplits",
    "Scale",
    "Sightings",
    "collate",
    "fixed_splits",
    "group",
    "head",
    "is_first",
    "late_of",
    "met_before",
    "met_by_others",
    "mix_of",
    "newcomer_moments",
    "newest",
    "num_derived",
    "pace_of",
    "rows_of",
    "select",
    "spans",
    "split_folds",
    "split_users",
    "trend_of",
    "unique_items",
    "user_keys",
]
