"""Files to checked tables: what enters the house, and what is set aside at its door.

The sample world (``sample_world``) and the recipes (``recipes``) are modules of their own.
"""

from recsys_meta.ingest.experiments import read_exposures, read_outcomes
from recsys_meta.ingest.features import declared_features, read_features, read_ids
from recsys_meta.ingest.interactions import read_interactions
from recsys_meta.ingest.interleaving import read_interleaved, read_ranking
from recsys_meta.ingest.logged_actions import read_logged_actions, read_rows
from recsys_meta.ingest.quarantine import Checked
from recsys_meta.ingest.recipes import Dataset, Recipe, download, movielens_1m, movielens_100k, prepared
from recsys_meta.ingest.sources import InputError, Source

__all__ = [
    "Checked",
    "Dataset",
    "InputError",
    "Recipe",
    "Source",
    "declared_features",
    "download",
    "movielens_1m",
    "movielens_100k",
    "prepared",
    "read_exposures",
    "read_features",
    "read_ids",
    "read_interactions",
    "read_interleaved",
    "read_logged_actions",
    "read_outcomes",
    "read_ranking",
    "read_rows",
]
