"""What a published file shows as a whole: all scores, and how often each item stands in the lists."""

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import polars as pl

from recsys_meta.store.parts import SCORES, RunFolder
from recsys_meta.store.reading import reading
from recsys_meta.tables import ITEM_ID


class Shown(NamedTuple):
    """The lists of a night, users left out."""

    scores: pl.Series  # Float32, in no order
    items: pl.DataFrame  # one row per item: item_id, n


def shown_in_file(path: Path) -> Shown:
    """Of a published file; what it holds is for ``verify`` to check. Raises HeldForWriting."""
    folder = resources.files(__package__)
    with reading(path) as connection:
        scores = connection.sql(folder.joinpath("shown_scores.sql").read_text("utf8")).pl()
        items = connection.sql(folder.joinpath("shown_items.sql").read_text("utf8")).pl()
    return Shown(scores["score"], items)


def shown_in_parts(run: RunFolder) -> Shown:
    """Of a run that is not published yet."""
    rows = run.scan(SCORES)
    items = rows.group_by(ITEM_ID).agg(n=pl.len().cast(pl.Int64))
    scores, counts = pl.collect_all([rows.select("score"), items])
    return Shown(scores["score"], counts)
