"""Tables to tensors: histories, encoders, the catalogue as of a moment, and episodes drawn from them."""

from recsys_meta.episodes.catalogue import CatalogueClock, Sightings, num_derived
from recsys_meta.episodes.collate import Negatives, collate, spans, unique_items
from recsys_meta.episodes.encoding import FeatureEncoder, Scale
from recsys_meta.episodes.histories import group, head, is_first, newest, select
from recsys_meta.episodes.ids import rows_of, split_users, user_keys
from recsys_meta.episodes.pace import pace_of
from recsys_meta.episodes.sampling import MomentSplits, RandomSplits, fixed_splits

__all__ = [
    "CatalogueClock",
    "FeatureEncoder",
    "MomentSplits",
    "Negatives",
    "RandomSplits",
    "Scale",
    "Sightings",
    "collate",
    "fixed_splits",
    "group",
    "head",
    "is_first",
    "newest",
    "num_derived",
    "pace_of",
    "rows_of",
    "select",
    "spans",
    "split_users",
    "unique_items",
    "user_keys",
]
